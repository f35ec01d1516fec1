package source

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/webhookspine/spine/internal/event"
)

// Kinds of what a placeholder of a rule names.
const (
	ruleHeader = "header" // a header, {header:X-GitHub-Delivery}
	ruleBody   = "body"   // a string, number or boolean in a JSON body, {body:/data/id}
	ruleForm   = "form"   // a field of a form, {form:MessageSid}
	ruleQuery  = "query"  // a parameter of the address, {query:id}
	ruleHash   = "hash"   // the SHA-256 of the body in hex, {hash}
	ruleHidden = "hidden" // what may hold a credential or a signature: it has no value
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
	return t.renderEscaped(lookup, nil)
}

// renderEscaped makes the text. In the value of the part i it percent-encodes the characters of escapes[i], and the
// percent sign where there are any. It is not ok where a value is missing or empty.
func (t template) renderEscaped(lookup func(kind, name string) (string, bool), escapes []string) (string, bool) {
	var b strings.Builder
	for i, part := range t {
		if part.kind == "" {
			b.WriteString(part.name)
			continue
		}
		value, ok := lookup(part.kind, part.name)
		if !ok || value == "" {
			return "", false
		}
		if escapes != nil && escapes[i] != "" {
			value = escapeAll(value, escapes[i])
		}
		b.WriteString(value)
	}
	return b.String(), true
}

// escapeAll percent-encodes some characters and the percent sign.
func escapeAll(text, characters string) string {
	if !strings.ContainsAny(text, characters) && !strings.Contains(text, "%") {
		return text
	}
	var b strings.Builder
	for i, r := range text {
		whole := text[i:min(len(text), i+max(1, utf8.RuneLen(r)))]
		if r == utf8.RuneError && !strings.HasPrefix(text[i:], "\ufffd") {
			whole = text[i : i+1] // no character
		}
		if r != '%' && !strings.Contains(characters, whole) {
			b.WriteString(whole)
			continue
		}
		for _, c := range []byte(whole) {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// escapesOf says what the values of ids percent-encode, so that no two ids are equal unless their values are: for each
// rule and each of its parts the characters that stand between values.
//
// Where one rule joins values, its last but one value stays as it is: its beginning and its end are known from the
// others. So the ids of Shopify, whose topics have a slash, can be read.
func escapesOf(all rules) [][]string {
	joining := 0
	separators := ""
	for _, t := range all {
		places := t.placeholders()
		if len(places) < 2 {
			continue
		}
		joining++
		for _, part := range t[places[0]:places[len(places)-1]] {
			if part.kind == "" {
				separators += firstRune(part.name) + lastRune(part.name)
			}
		}
	}
	escapes := make([][]string, len(all))
	for i, t := range all {
		escapes[i] = make([]string, len(t))
		places := t.placeholders()
		for n, at := range places {
			switch last := len(places) - 1; {
			case joining > 1 || last == 0:
				escapes[i][at] = separators
			case n < last-1:
				escapes[i][at] = firstRune(t[at+1].name)
			case n == last:
				escapes[i][at] = lastRune(t[at-1].name)
			}
		}
	}
	return escapes
}

func firstRune(text string) string {
	_, size := utf8.DecodeRuneInString(text)
	return text[:size]
}

func lastRune(text string) string {
	_, size := utf8.DecodeLastRuneInString(text)
	return text[len(text)-size:]
}

// placeholders are the positions of the parts that are not literal text.
func (t template) placeholders() []int {
	var places []int
	for i, part := range t {
		if part.kind != "" {
			places = append(places, i)
		}
	}
	return places
}

// isSeparator reports whether a character can stand between the values of an id. None that percent-encoding needs can.
func isSeparator(r rune) bool { return r != '%' && !unicode.IsLetter(r) && !unicode.IsDigit(r) }

// checkID says what is wrong with a template of ids: two values must be told apart.
func (t template) checkID() (problem string) {
	for i, part := range t {
		isBetween := i > 0 && i < len(t)-1 && part.kind == ""
		first, _ := utf8.DecodeRuneInString(part.name)
		last, _ := utf8.DecodeLastRuneInString(part.name)
		switch {
		case i > 0 && part.kind != "" && t[i-1].kind != "":
			return fmt.Sprintf("must have text between %s and %s, or two events could get one id", t[i-1], part)
		case isBetween && (!isSeparator(first) || !isSeparator(last)):
			return fmt.Sprintf("must have text between %s and %s that begins and ends with a sign such as / or -",
				t[i-1], t[i+1])
		}
	}
	return ""
}

// String is a placeholder as it is written.
func (p templatePart) String() string {
	if p.name == "" {
		return "{" + p.kind + "}"
	}
	return "{" + p.kind + ":" + p.name + "}"
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

// render makes the text of the first rule that fits and that is not to be skipped. Escapes are those of each rule, or
// nil.
func (r rules) render(
	lookup func(kind, name string) (string, bool), skips func(text string) bool, escapes [][]string,
) (text string, ok bool) {
	for i, t := range r {
		var own []string
		if escapes != nil {
			own = escapes[i]
		}
		if text, ok := t.renderEscaped(lookup, own); ok && !skips(text) {
			return text, true
		}
	}
	return "", false
}

// namesSecret reports whether a placeholder names what may hold a credential or a signature: by the name of a header, a
// parameter or a field, or by the last name in a pointer.
func (p templatePart) namesSecret(redactor *Redactor) bool {
	switch p.kind {
	case ruleHeader:
		return redactor.hidesFromRules(p.name)
	case ruleQuery:
		return isSecretParameter(p.name)
	case ruleForm:
		return isSecretField(p.name)
	case ruleBody:
		names, _ := parsePointer(p.name) // it was checked with the template
		for _, name := range slices.Backward(names) {
			if strings.Trim(name, "0123456789") != "" { // not a position in a list
				return isSecretField(name)
			}
		}
	}
	return false
}

// checkRules lists what is wrong with the rules and pointers of settings.
func checkRules(c Config) []event.Problem {
	var problems []event.Problem
	redactor := NewRedactor(c)
	for _, list := range []struct {
		field string
		texts []string
	}{{"id", c.ID}, {"type", c.Type}, {"time", c.Time}} {
		for i, text := range list.texts {
			field := fmt.Sprintf("%s[%d]", list.field, i)
			t, err := parseTemplate(text)
			if err != nil {
				problems = append(problems, event.Problem{Field: field, Detail: err.Error()})
				continue
			}
			for _, part := range t {
				if part.namesSecret(&redactor) {
					problems = append(problems, event.Problem{
						Field: field, Detail: "names " + part.String() + ", which may hold a credential or a signature",
					})
				}
			}
			if problem := t.checkID(); problem != "" && list.field == "id" {
				problems = append(problems, event.Problem{Field: field, Detail: problem})
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
