package source

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/webhookspine/spine/internal/event"
)

// ParseConfig reads the settings of a source: a JSON object of at most event.MaxSettings bytes without members that are
// unknown or come twice. Whether the settings make sense is for Config.Resolve to say. The error is an
// *event.BadSettingsError that lists all problems.
func ParseConfig(settings []byte) (Config, error) {
	var c Config
	p := settingsParser{}
	value := jsontext.Value(settings)
	switch {
	case len(settings) > event.MaxSettings:
		p.add("", fmt.Sprintf("must have at most %d bytes, found %d", event.MaxSettings, len(settings)))
	case !value.IsValid(): // duplicate names and invalid text too
		p.add("", "must be a JSON object without members that come twice")
	case value.Kind() != jsontext.KindBeginObject:
		p.add("", "must be an object, found "+describeKind(value))
	default:
		p.object("", value, c.members())
	}
	if p.problems != nil {
		return Config{}, &event.BadSettingsError{Problems: p.problems}
	}
	return c, nil
}

// UnmarshalJSON is ParseConfig.
func (c *Config) UnmarshalJSON(settings []byte) (err error) {
	*c, err = ParseConfig(settings)
	return err
}

// settingsParser fills settings from valid JSON and collects what does not fit.
type settingsParser struct{ problems []event.Problem }

func (p *settingsParser) add(path, detail string) {
	p.problems = append(p.problems, event.Problem{Field: path, Detail: detail})
}

// object fills the members that an object gives, and collects those that are unknown.
func (p *settingsParser) object(path string, object jsontext.Value, into members) {
	dec := jsontext.NewDecoder(bytes.NewReader(object))
	_, _ = dec.ReadToken()
	for dec.PeekKind() != jsontext.KindEndObject {
		token, err := dec.ReadToken()
		if err != nil {
			return // cannot be: the text is valid
		}
		name := token.String()
		value, err := dec.ReadValue()
		if err != nil {
			return
		}
		field := name
		if path != "" {
			field = path + "." + name
		}
		if place, known := into[name]; known {
			p.value(field, value, place)
		} else {
			p.add(field, "is no setting; there are "+strings.Join(slices.Sorted(maps.Keys(into)), ", "))
		}
	}
}

// value reads one value into its place.
func (p *settingsParser) value(path string, v jsontext.Value, place any) {
	switch place := place.(type) {
	case *string:
		if v.Kind() != jsontext.KindString {
			p.add(path, "must be a string, found "+describeKind(v))
			return
		}
		text, _ := jsontext.AppendUnquote(nil, v)
		if bytes.ContainsFunc(text, unicode.IsControl) {
			p.add(path, "must not contain control characters")
			return
		}
		*place = string(text)
	case *[]string:
		if v.Kind() == jsontext.KindString {
			*place = make([]string, 1)
			p.value(path, v, &(*place)[0])
			return
		}
		parseList(p, path, v, place, "strings")
	case *bool:
		switch v.Kind() {
		case jsontext.KindTrue, jsontext.KindFalse:
			*place = v.Kind() == jsontext.KindTrue
		default:
			p.add(path, "must be true or false, found "+describeKind(v))
		}
	case **bool:
		*place = new(bool)
		p.value(path, v, *place)
	case *int:
		var n int64
		p.value(path, v, &n)
		*place = int(n)
	case *int64:
		n, err := strconv.ParseInt(string(v), 10, 64)
		if v.Kind() != jsontext.KindNumber || err != nil {
			p.add(path, "must be a whole number")
			return
		}
		*place = n
	case *float64:
		n, err := strconv.ParseFloat(string(v), 64)
		if v.Kind() != jsontext.KindNumber || err != nil {
			p.add(path, "must be a number, found "+describeKind(v))
			return
		}
		*place = n
	case *time.Duration:
		d, ok := readDuration(v)
		if !ok {
			p.add(path, `must be a duration such as "5m", "12h" or "7d", or a number of seconds`)
			return
		}
		*place = d
	case *time.Time:
		t, problem := readTime(v)
		if problem != "" {
			p.add(path, problem)
			return
		}
		*place = t
	case *[]Secret:
		parseList(p, path, v, place, "secrets")
	case *Secret:
		if v.Kind() == jsontext.KindString {
			p.value(path, v, &place.Ref)
			return
		}
		p.nested(path, v, place.members(), "a reference such as env:NAME, or an object with ref, from and until")
	case *[]Method:
		parseList(p, path, v, place, "methods")
	case *Method:
		p.nested(path, v, place.members(), "an object")
	case *Limits:
		p.nested(path, v, place.members(), "an object")
	case *Budget:
		p.nested(path, v, place.members(), "an object")
	}
}

func (p *settingsParser) nested(path string, v jsontext.Value, into members, wanted string) {
	if v.Kind() != jsontext.KindBeginObject {
		p.add(path, "must be "+wanted+", found "+describeKind(v))
		return
	}
	p.object(path, v, into)
}

// parseList reads an array into a list that is not nil, even where it is empty.
func parseList[T any](p *settingsParser, path string, v jsontext.Value, list *[]T, of string) {
	if v.Kind() != jsontext.KindBeginArray {
		p.add(path, "must be a list of "+of+", found "+describeKind(v))
		return
	}
	*list = []T{}
	dec := jsontext.NewDecoder(bytes.NewReader(v))
	_, _ = dec.ReadToken()
	for dec.PeekKind() != jsontext.KindEndArray {
		element, err := dec.ReadValue()
		if err != nil {
			return // cannot be: the text is valid
		}
		var one T
		p.value(fmt.Sprintf("%s[%d]", path, len(*list)), element, &one)
		*list = append(*list, one)
	}
}
