package source

import (
	"bytes"
	"encoding/base64"
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/webhookspine/spine/internal/event"
)

// A CloudEvent has one shape in every mode: the object of the JSON format. So a query finds an attribute in one place,
// and every attribute reaches the destination. An event that comes again in another mode is the same event.

// cloudObject writes an event of the binary mode as an object of the JSON format. contentType is empty where nothing
// vouches for it.
func cloudObject(values map[string]string, contentType string, body []byte, kind bodyKind) jsontext.Value {
	b := []byte{'{'}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		b = appendMember(b, name, quoted(values[name]))
	}
	if contentType != "" {
		b = appendMember(b, "datacontenttype", quoted(contentType))
	}
	switch {
	case len(body) == 0:
	case kind == bodyJSON:
		b = appendMember(b, "data", body)
	case isShortText(body):
		b = appendMember(b, "data", quoted(string(body)))
	default:
		b = appendMember(b, "data_base64", quoted(base64.StdEncoding.EncodeToString(body)))
	}
	return append(b, '}')
}

// isShortText reports whether bytes are text that a JSON string does not make much longer.
func isShortText(body []byte) bool {
	control := len(body) - len(strings.Map(withoutControl, string(body)))
	return utf8.Valid(body) && !bytes.Contains(body, []byte{0}) && control <= maxFormControl
}

// extensions are the attributes in headers that Spine does not read itself, such as ce-subject. A header stays out of
// the event if its name is no attribute's, if it came twice, or if it holds a credential.
func (r *reader) extensions(h http.Header) map[string]string {
	found := map[string]string{}
	for header, values := range h {
		name := strings.ToLower(strings.TrimPrefix(header, "Ce-"))
		if !strings.HasPrefix(header, "Ce-") || len(values) != 1 || !isAttributeName(name) ||
			slices.Contains(attributes, name) || !r.vouchedFor(header) {
			continue
		}
		value, problem := decodeAttribute(values[0])
		if problem != "" || r.redactor.hidesFromRules(header) || r.redactor.hidesValue(values[0]) ||
			r.redactor.hidesValue(value) {
			continue
		}
		if shown := r.redactor.redactText(value, header, maxNested); shown != value {
			continue
		}
		found[name] = storableText(value)
	}
	return found
}

// isAttributeName reports whether a header's name is that of an attribute: lower-case letters and digits. The data and
// its type have places of their own.
func isAttributeName(name string) bool {
	odd := strings.ContainsFunc(name, func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') })
	return name != "" && !odd && name != "data" && name != "datacontenttype"
}

// vouchedFor reports whether a header may become a part of an event. Where a signature covers the body, a header that
// it does not cover may be anybody's.
func (r *reader) vouchedFor(header string) bool {
	return !r.signed || !slices.ContainsFunc(r.config.Verify, func(m Method) bool { return !signsHeaders(m, header) })
}

// cloudFingerprint is the hash of a CloudEvent. It is the same in every mode. An attribute counts as its text in a
// header. Data without a type counts as JSON, and other data by its bytes.
func (r *reader) cloudFingerprint(object jsontext.Value) (hash [event.HashSize]byte, unqueryable string) {
	if hash, unqueryable = r.fingerprint(object); unqueryable != "" {
		return hash, unqueryable
	}
	members := membersOf(object)
	for name, value := range members {
		switch value.Kind() { //nolint:exhaustive // the others are as they should be
		case jsontext.KindNull:
			if name != "data" {
				delete(members, name)
			}
		case jsontext.KindTrue, jsontext.KindFalse, jsontext.KindNumber:
			if name != "data" {
				members[name] = quoted(string(value))
			}
		}
	}
	if data, ok := members["data"]; ok {
		switch given, typed := members["datacontenttype"]; {
		case !typed || isJSONType(event.MediaType(unquoted(given))):
			members["datacontenttype"] = quoted("application/json")
		case data.Kind() == jsontext.KindString:
			delete(members, "data")
			members["data_base64"] = quoted(base64.StdEncoding.EncodeToString([]byte(unquoted(data))))
		}
	}
	b := []byte{'{'}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		b = appendMember(b, name, members[name])
	}
	return r.fingerprint(append(b, '}'))
}

// membersOf reads an object that is valid JSON without repeated names.
func membersOf(object jsontext.Value) map[string]jsontext.Value {
	members := map[string]jsontext.Value{}
	dec := jsontext.NewDecoder(bytes.NewBuffer(object))
	_, _ = dec.ReadToken()
	for dec.PeekKind() == jsontext.KindString {
		name, _ := dec.ReadToken()
		text := name.String()
		value, _ := dec.ReadValue()
		members[text] = value.Clone()
	}
	return members
}

// appendMember appends a member to an object that is still open.
func appendMember(b []byte, name string, value jsontext.Value) []byte {
	if len(b) > 1 {
		b = append(b, ',')
	}
	b, _ = jsontext.AppendQuote(b, name) // it is valid
	return append(append(b, ':'), value...)
}

// quoted writes valid text as a JSON string.
func quoted(text string) jsontext.Value {
	b, _ := jsontext.AppendQuote(nil, text)
	return b
}

// unquoted reads a JSON string. It is empty for another value.
func unquoted(v jsontext.Value) string {
	text, _ := jsontext.AppendUnquote(nil, v)
	return string(text)
}

func isJSONType(media string) bool {
	return media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json")
}
