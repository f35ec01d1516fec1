package source

import (
	"bytes"
	"errors"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// pointer is a JSON pointer (RFC 6901) in its tokens. In the pointers of dropPointers the token * stands for all
// elements of an array. Elsewhere it stands for itself.
type pointer []string

// parsePointer reads a pointer. That of the whole document is an error.
func parsePointer(text string) (pointer, error) {
	if !strings.HasPrefix(text, "/") {
		return nil, errors.New("must be a JSON pointer, such as /data/id")
	}
	tokens := strings.Split(text[1:], "/")
	for i, token := range tokens {
		if strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(token), "~") {
			return nil, errors.New("has a ~ that is neither ~0 nor ~1")
		}
		tokens[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
	}
	return tokens, nil
}

// pointerValue is the value at a pointer: the text of a string, number or boolean.
type pointerValue struct {
	text     string
	ok       bool
	repeated bool // a name on the way to it came more than once; the first one counts
	invalid  bool // it is a string that is not valid Unicode; then it is not ok
}

// extraction reads the values at pointers as it goes down a document.
type extraction struct {
	dec      *jsontext.Decoder
	pointers []pointer
	values   []pointerValue // one for each pointer
}

// extractValues reads the values at pointers in one pass over a JSON text. It compares names after unescaping, and case
// matters. It also finds the values before an error in the text.
func extractValues(text []byte, pointers []pointer) []pointerValue {
	x := extraction{
		dec:      jsontext.NewDecoder(bytes.NewBuffer(text), lenientJSON...),
		pointers: pointers, values: make([]pointerValue, len(pointers)),
	}
	if len(pointers) > 0 {
		active := make([]int, len(pointers))
		for i := range active {
			active[i] = i
		}
		_ = x.walk(active, 0) // checkJSON reports what is wrong with the text
	}
	return x.values
}

// walk reads one value. The active pointers lead to it with their first depth tokens.
func (x *extraction) walk(active []int, depth int) error {
	if k := x.dec.PeekKind(); k != jsontext.KindBeginObject && k != jsontext.KindBeginArray {
		value, err := x.dec.ReadValue()
		if err != nil {
			return err
		}
		for _, i := range active {
			if len(x.pointers[i]) == depth {
				x.takeValue(i, value)
			}
		}
		return nil
	}
	if depth > maxNesting {
		return x.dec.SkipValue()
	}
	open, err := x.dec.ReadToken()
	if err != nil {
		return err
	}
	object := open.Kind() == jsontext.KindBeginObject
	seen := make(map[string]bool, len(active))
	for n := 0; ; n++ {
		next := x.dec.PeekKind()
		if next == jsontext.KindEndObject || next == jsontext.KindEndArray || next == jsontext.KindInvalid {
			_, err := x.dec.ReadToken()
			return err
		}
		name := strconv.Itoa(n)
		if object {
			quoted, err := x.dec.ReadValue()
			if err != nil {
				return err
			}
			unquoted, _ := jsontext.AppendUnquote(nil, quoted)
			name = string(unquoted)
		}
		var further []int
		for _, i := range active {
			if p := x.pointers[i]; len(p) > depth && p[depth] == name {
				further = append(further, i)
			}
		}
		if len(further) > 0 && seen[name] {
			for _, i := range further {
				x.values[i].repeated = true
			}
			further = nil
		}
		if len(further) == 0 {
			if err := x.dec.SkipValue(); err != nil {
				return err
			}
			continue
		}
		seen[name] = true
		if err := x.walk(further, depth+1); err != nil {
			return err
		}
	}
}

// takeValue keeps the value at the pointer i, unless it is null.
func (x *extraction) takeValue(i int, value jsontext.Value) {
	p := &x.values[i]
	if value.Kind() == jsontext.KindString {
		text, err := jsontext.AppendUnquote(nil, value)
		p.text, p.ok, p.invalid = string(text), err == nil, err != nil
	} else if value.Kind() != jsontext.KindNull {
		p.text, p.ok = string(value), true
	}
}

// textAtPointer reads the value at one pointer. It is not ok where a name on the way to it came more than once.
func textAtPointer(text []byte, at string) (string, bool) {
	p, err := parsePointer(at)
	if err != nil {
		return "", false
	}
	value := extractValues(text, []pointer{p})[0]
	return value.text, value.ok && !value.repeated
}

// dropPointers returns a JSON text without the values at pointers, to be hashed. The text must be valid and have no
// name twice in an object.
func dropPointers(text []byte, pointers []pointer) []byte {
	dec := jsontext.NewDecoder(bytes.NewBuffer(text))
	left, err := appendDropped(make([]byte, 0, len(text)), dec, pointers, 0)
	if err != nil {
		return text
	}
	return left
}

// appendDropped appends one value without the values at the active pointers, which lead to it with their first depth
// tokens.
func appendDropped(b []byte, dec *jsontext.Decoder, active []pointer, depth int) ([]byte, error) {
	kind := dec.PeekKind()
	if len(active) == 0 || kind != jsontext.KindBeginObject && kind != jsontext.KindBeginArray {
		value, err := dec.ReadValue()
		return append(b, value...), err
	}
	if _, err := dec.ReadToken(); err != nil {
		return b, err
	}
	b = append(b, byte(kind))
	first := true
	for n := 0; ; n++ {
		if k := dec.PeekKind(); k == jsontext.KindEndObject || k == jsontext.KindEndArray {
			_, err := dec.ReadToken()
			return append(b, byte(k)), err
		}
		var quoted jsontext.Value
		name := strconv.Itoa(n)
		if kind == jsontext.KindBeginObject {
			value, err := dec.ReadValue()
			if err != nil {
				return b, err
			}
			quoted = bytes.Clone(value)
			unquoted, _ := jsontext.AppendUnquote(nil, quoted)
			name = string(unquoted)
		}
		var further []pointer
		gone := false
		for _, p := range active {
			if token := p[depth]; token != name && (token != "*" || quoted != nil) {
				continue
			}
			gone = gone || len(p) == depth+1
			further = append(further, p)
		}
		if gone {
			if err := dec.SkipValue(); err != nil {
				return b, err
			}
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		if quoted != nil {
			b = append(append(b, quoted...), ':')
		}
		var err error
		if b, err = appendDropped(b, dec, further, depth+1); err != nil {
			return b, err
		}
	}
}
