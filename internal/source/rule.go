package source

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// Kinds of what a placeholder of a rule names.
const (
	ruleHeader = "header" // a header, {header:X-GitHub-Delivery}
	ruleBody   = "body"   // a string, number or boolean in a JSON body, {body:/data/id}
	ruleForm   = "form"   // a field of a form, {form:MessageSid}
	ruleQuery  = "query"  // a parameter of the address, {query:id}
	ruleHash   = "hash"   // the SHA-256 of the body in hex, {hash}
)

// template makes a text of values in a request. It consists of literal text and placeholders in braces. {{ stands for a
// brace.
type template []templatePart

type templatePart struct {
	kind string // empty for literal text
	name string // header, field or parameter, JSON pointer, or the literal text
}

// parseTemplate reads a template. Its error reads on from the name of the setting.
func parseTemplate(text string) (template, error) {
	var t template
	literal := ""
	for rest := text; rest != ""; {
		before, after, brace := strings.Cut(rest, "{")
		literal += before
		if !brace {
			break
		}
		if strings.HasPrefix(after, "{") {
			literal, rest = literal+"{", after[1:]
			continue
		}
		placeholder, behind, closed := strings.Cut(after, "}")
		if !closed {
			return nil, errors.New("has a { without a }; {{ stands for a brace")
		}
		if literal != "" {
			t = append(t, templatePart{name: literal})
			literal = ""
		}
		kind, name, named := strings.Cut(placeholder, ":")
		switch {
		case kind == ruleHash && !named:
		case kind == ruleHeader && name != "":
			name = http.CanonicalHeaderKey(name)
		case kind == ruleBody && named:
			if _, err := parsePointer(name); err != nil {
				return nil, fmt.Errorf("{%s} %w", placeholder, err)
			}
		case (kind == ruleForm || kind == ruleQuery) && name != "":
		default:
			return nil, fmt.Errorf(
				"has {%s}: must be {header:Name}, {body:/pointer}, {form:name}, {query:name} or {hash}",
				placeholder,
			)
		}
		t = append(t, templatePart{kind: kind, name: name})
		rest = behind
	}
	if literal != "" {
		t = append(t, templatePart{name: literal})
	}
	if len(t) == 0 {
		return nil, errors.New("must not be empty")
	}
	return t, nil
}

// render makes the text. It is not ok where a value is missing or empty.
func (t template) render(lookup func(kind, name string) (string, bool)) (string, bool) {
	var b strings.Builder
	for _, part := range t {
		if part.kind == "" {
			b.WriteString(part.name)
			continue
		}
		value, ok := lookup(part.kind, part.name)
		if !ok || value == "" {
			return "", false
		}
		b.WriteString(value)
	}
	return b.String(), true
}

// rules are templates, of which the first that fits counts.
type rules []template

func parseRules(texts []string) (rules, error) {
	all := make(rules, len(texts))
	for i, text := range texts {
		t, err := parseTemplate(text)
		if err != nil {
			return nil, err
		}
		all[i] = t
	}
	return all, nil
}

func (r rules) render(lookup func(kind, name string) (string, bool)) (text string, ok bool) {
	for _, t := range r {
		if text, ok := t.render(lookup); ok {
			return text, true
		}
	}
	return "", false
}

// checkRules lists what is wrong with the rules and pointers of settings.
func checkRules(c Config) []event.Problem {
	var problems []event.Problem
	for _, list := range []struct {
		field string
		texts []string
	}{{"id", c.ID}, {"type", c.Type}, {"time", c.Time}} {
		for i, text := range list.texts {
			if _, err := parseTemplate(text); err != nil {
				field := fmt.Sprintf("%s[%d]", list.field, i)
				problems = append(problems, event.Problem{Field: field, Detail: err.Error()})
			}
		}
	}
	for i, text := range c.Volatile {
		if _, err := parsePointer(text); err != nil {
			problems = append(problems, event.Problem{Field: fmt.Sprintf("volatile[%d]", i), Detail: err.Error()})
		}
	}
	if c.Format == "envelope" && len(c.ID)+len(c.Type)+len(c.Time)+len(c.Volatile) > 0 {
		problems = append(problems, event.Problem{
			Field: "format", Detail: "envelope has its own id, type and time, and leaves nothing out of the hash",
		})
	}
	return problems
}

// parseTime reads a time as providers write it: RFC 3339, an HTTP date, or a Unix time. The size of a Unix time tells
// whether it is in seconds, milliseconds, microseconds or nanoseconds. The result is in UTC, cut to microseconds, the
// precision of PostgreSQL. It is not ok outside of the years 1 to 9999.
func parseTime(text string) (t time.Time, ok bool) {
	if n, err := strconv.ParseFloat(text, 64); err == nil {
		for _, unit := range []float64{1, 1e3, 1e6, 1e9} {
			// Below 1e11 it is seconds, up to the year 5138. The finer units then begin in 1973: 1e11 milliseconds.
			if seconds := n / unit; seconds > -1e11 && seconds < 1e11 {
				whole, notWhole := strconv.ParseInt(text, 10, 64)
				if notWhole == nil {
					perSecond := int64(unit)
					t = time.Unix(whole/perSecond, whole%perSecond*(1e9/perSecond))
					return t.UTC().Truncate(time.Microsecond), true
				}
				return time.UnixMicro(int64(seconds * 1e6)).UTC(), true
			}
		}
		return time.Time{}, false
	}
	upper := []byte(strings.ToUpper(text))
	if t.UnmarshalText(upper) == nil && isStrictRFC3339(upper) {
		utc := t.UTC().Truncate(time.Microsecond)
		return utc, min(t.Year(), utc.Year()) >= 1 && utc.Year() <= 9999
	}
	if t, err := http.ParseTime(text); err == nil && t.Year() >= 1 {
		return t.UTC(), true
	}
	return time.Time{}, false
}

// pointersOf collects the JSON pointers that rules need, each once.
func pointersOf(all ...rules) (texts []string, pointers []pointer) {
	for _, r := range all {
		for _, t := range r {
			for _, part := range t {
				if part.kind != ruleBody || slices.Contains(texts, part.name) {
					continue
				}
				p, err := parsePointer(part.name)
				if err == nil { // it was checked with the template
					texts, pointers = append(texts, part.name), append(pointers, p)
				}
			}
		}
	}
	return texts, pointers
}
