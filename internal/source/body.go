package source

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/webhookspine/spine/internal/event"
)

// reader makes events of requests, by the settings of a source.
type reader struct {
	name     string
	config   Config
	id       rules
	escapes  [][]string // of the values of ids, by rule
	kind     rules      // of the event's type
	time     rules
	texts    []string // of pointers
	pointers []pointer
	volatile []pointer
	redactor *Redactor
	visible  map[string]bool // headers that the rules name, but none that holds a credential or a signature
	signed   bool            // a signature covers the body, and no header that says what it is
	signsCE  bool            // a signature covers the headers that identify a CloudEvent
}

func newReader(name string, c Config, redactor *Redactor) (*reader, error) {
	r := &reader{name: name, config: c, redactor: redactor, signed: signsBody(c), signsCE: signsCloudEvent(c)}
	for _, list := range []struct {
		to    *rules
		texts []string
	}{{&r.id, c.ID}, {&r.kind, c.Type}, {&r.time, c.Time}} {
		parsed, err := parseRules(list.texts)
		if err != nil {
			return nil, fmt.Errorf("reading a rule of source %s: %w", name, err) // cannot be: it was checked
		}
		for _, t := range parsed {
			for i, part := range t {
				if part.namesSecret(redactor) {
					t[i] = templatePart{kind: ruleHidden, name: part.name} // settings that have it are rejected
				}
			}
		}
		*list.to = parsed
	}
	r.escapes = escapesOf(r.id)
	r.visible = r.visibleHeaders()
	r.texts, r.pointers = pointersOf(r.id, r.kind, r.time)
	for _, text := range c.Volatile {
		p, err := parsePointer(text)
		if err != nil {
			return nil, fmt.Errorf("reading a pointer of source %s: %w", name, err) // as above
		}
		r.volatile = append(r.volatile, p)
	}
	return r, nil
}

// visibleHeaders are the headers that the reader sees. Settings that name others are rejected, and would see nothing.
func (r *reader) visibleHeaders() map[string]bool {
	visible := map[string]bool{}
	see := func(name string) { visible[name] = !r.redactor.hidesFromRules(name) }
	for _, name := range attributes {
		see(canonicalName("Ce-" + name))
	}
	for _, t := range slices.Concat(r.id, r.kind, r.time) {
		for _, part := range t {
			if part.kind == ruleHeader {
				see(part.name)
			}
		}
	}
	return visible
}

// header is the value of a header that the reader sees. The name is canonical.
func (r *reader) header(h http.Header, name string) string {
	if values := h[name]; len(values) > 0 && r.visible[name] && !r.redactor.hidesValue(values[0]) {
		return values[0]
	}
	return ""
}

// read makes events of a request. With batch the request is a list of events, and its answer is a list too.
func (r *reader) read(q *event.Request) (events []event.Event, batch bool, err error) {
	var e event.Event
	switch r.config.Format {
	case "envelope":
		e, err = ReadEnvelope(q.Body)
		e.Source = r.name
	case "cloudevents":
		return r.readCloudEvents(q)
	default:
		e, err = r.readBody(q)
	}
	if err != nil {
		return nil, false, err
	}
	return []event.Event{e}, false, nil
}

// bodyKind is what a body is.
type bodyKind int

const (
	bodyJSON bodyKind = iota
	bodyForm
	bodyOther
)

// signsBody reports whether a signature covers the body of a request.
func signsBody(c Config) bool { return slices.ContainsFunc(c.Verify, Method.usesSignature) }

// signsCloudEvent reports whether every method signs the headers that identify a CloudEvent.
func signsCloudEvent(c Config) bool {
	return !slices.ContainsFunc(c.Verify, func(m Method) bool { return !signsHeaders(m, "Ce-Id", "Ce-Source") })
}

// bodyKindOf tells what a body is, and its media type, which is empty where it cannot be read. It looks for JSON in
// every body, since some providers send JSON as text/plain, as a form, or without a content type.
//
// The content type is hardly ever signed. If it decided, somebody who has seen a signed body could send it again as
// another kind, with another payload and id. So the bytes of a signed body decide.
func (r *reader) bodyKindOf(contentType string, body []byte) (kind bodyKind, media string) {
	media = event.MediaType(contentType)
	if isJSONType(media) {
		return bodyJSON, media
	}
	start := bytes.TrimLeft(body, " \t\r\n")
	if len(start) > 0 && (r.signed || start[0] == '{' || start[0] == '[') &&
		jsontext.Value(body).IsValid(lenientJSON...) {
		return bodyJSON, media
	}
	if r.signed && looksLikeForm(body) || !r.signed && media == "application/x-www-form-urlencoded" {
		return bodyForm, media
	}
	return bodyOther, media
}

// maxFormName bounds the name of a form's first field, in bytes.
const maxFormName = 200

// looksLikeForm reports whether a body is a form, by its bytes. The first field has a name, and nothing in the form
// breaks a line.
func looksLikeForm(body []byte) bool {
	text := bytes.TrimRight(body, "\r\n")
	name, value, found := bytes.Cut(text, []byte("="))
	if !found || len(name) == 0 || len(name) > maxFormName || bytes.ContainsFunc(text, unicode.IsControl) {
		return false
	}
	for _, c := range name {
		if !isDigit(c) && (c|0x20 < 'a' || c|0x20 > 'z') && !strings.ContainsRune("_.~*%+-[]$@:!',()", rune(c)) {
			return false
		}
	}
	if len(bytes.Trim(value, "=")) == 0 {
		return false // it is rather base64
	}
	_, err := url.ParseQuery(string(text))
	return err == nil
}

// lenientJSON is the JSON that Spine takes. PostgreSQL cannot store all of it as json: see event.Event.Unqueryable.
var lenientJSON = []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}

// readBody makes an event of a request as its provider sends it.
func (r *reader) readBody(q *event.Request) (event.Event, error) {
	e := event.Event{Source: r.name}
	kind, media := r.bodyKindOf(q.Header.Get("Content-Type"), q.Body)
	var fields url.Values
	switch kind {
	case bodyJSON:
		if err := checkJSON(q.Body); err != nil {
			return event.Event{}, err
		}
		e.Payload = q.Body
		e.Hash, e.Unqueryable = r.fingerprint(q.Body)
	case bodyForm:
		fields = r.readForm(&e, q.Body)
	default:
		setBytes(&e, q.Body, notJSON(media))
	}
	return e, r.identify(&e, q, fields)
}

// checkJSON says what is wrong with a body that should be JSON. The error is an *event.SyntaxError or an
// *event.InvalidError.
func checkJSON(body []byte) error {
	dec := jsontext.NewDecoder(bytes.NewBuffer(body), lenientJSON...)
	value, err := dec.ReadValue()
	if err == nil {
		err = expectEnd(dec)
	}
	if err != nil {
		return readError(body, err)
	}
	if problem := checkLimits(value); problem != "" {
		return &event.InvalidError{Problems: []event.Problem{{Detail: problem}}}
	}
	return nil
}

// fingerprint is the hash of a payload without the volatile values, which change from one attempt of the provider to
// the next.
func (r *reader) fingerprint(payload []byte) (hash [event.HashSize]byte, unqueryable string) {
	hash, unqueryable = fingerprint(payload)
	if unqueryable == "" && len(r.volatile) > 0 {
		hash, _ = fingerprint(dropPointers(payload, r.volatile))
	}
	return hash, unqueryable
}

// setBytes makes a body the payload of an event, as bytes alone. The reason says why it cannot be queried.
func setBytes(e *event.Event, body []byte, reason string) {
	e.Payload, e.Raw, e.Hash, e.Unqueryable = body, nil, sha256.Sum256(body), reason
}

// notJSON says why a body is kept as bytes.
func notJSON(media string) string {
	if _, _, err := mime.ParseMediaType(media); err != nil || len(media) > 100 {
		return "the body is not JSON"
	}
	return "the body is not JSON but " + media
}

// maxFormControl is how many control characters a form may have whose fields are written as JSON.
const maxFormControl = 64 << 10

func withoutControl(r rune) rune {
	if r < ' ' && r != '\n' && r != '\r' && r != '\t' {
		return -1
	}
	return r
}

// readForm reads a form into an object of its fields. A field that came more than once becomes a list. GitHub and Slack
// send JSON as the single field payload, which then is the event's payload. The exact bytes are kept beside it.
func (r *reader) readForm(e *event.Event, body []byte) url.Values {
	fields, err := url.ParseQuery(string(body))
	if err != nil {
		setBytes(e, body, "the body is not a well-formed form")
		return nil
	}
	var payload []byte
	if inner := fields["payload"]; len(fields) == 1 && len(inner) == 1 && checkJSON([]byte(inner[0])) == nil {
		payload = []byte(inner[0])
	} else {
		object := make(map[string]any, len(fields))
		control := 0
		for name, values := range fields {
			for _, text := range append(values[:len(values):len(values)], name) {
				control += len(text) - len(strings.Map(withoutControl, text))
			}
			if !utf8.ValidString(name) ||
				slices.ContainsFunc(values, func(v string) bool { return !utf8.ValidString(v) }) {
				setBytes(e, body, "invalid UTF-8 in a field of the form")
				return fields
			}
			object[name] = values
			if len(values) == 1 {
				object[name] = values[0]
			}
		}
		if control > maxFormControl { // each takes six bytes
			setBytes(e, body, "control characters in the fields of the form")
			return fields
		}
		var b bytes.Buffer
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(object); err != nil {
			setBytes(e, body, "the fields of the form cannot be written as JSON") // cannot be: they are valid text
			return fields
		}
		payload = bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	}
	if _, unqueryable := fingerprint(payload); unqueryable != "" {
		setBytes(e, body, unqueryable)
		return fields
	}
	e.Payload, e.Raw, e.Hash = payload, body, sha256.Sum256(body)
	return fields
}

// identify finds the id, type and time of an event that has its payload. The fields are those of a form. The error is
// an *event.InvalidError.
func (r *reader) identify(e *event.Event, q *event.Request, fields url.Values) error {
	var values []pointerValue
	text := e.Payload
	if e.Unqueryable != "" && fields != nil {
		text = nil // the bytes of a form
	}
	if len(r.pointers) > 0 && len(text) > 0 {
		values = extractValues(text, r.pointers)
	}
	bodyValue := func(name string) pointerValue {
		if i := slices.Index(r.texts, name); i >= 0 && i < len(values) {
			return values[i]
		}
		return pointerValue{}
	}
	var query url.Values
	lookup := func(kind, name string) (string, bool) {
		switch kind {
		case ruleHeader:
			value := r.header(q.Header, name)
			return value, value != ""
		case ruleBody:
			v := bodyValue(name)
			return v.text, v.ok && !isToken(v.text)
		case ruleForm:
			value := fields.Get(name)
			return value, fields.Has(name) && !isToken(value)
		case ruleQuery:
			if query == nil && q.URL != nil {
				query = q.URL.Query()
			}
			value := query.Get(name)
			return value, query.Has(name) && !isToken(value)
		case ruleHash:
			sum := sha256.Sum256(q.Body)
			return hex.EncodeToString(sum[:]), true
		}
		return "", false
	}

	// An id must not be a guess. So an id that is there and makes no sense is an error, where another rule would fit
	// too. A repeated name is an error, since either value may be meant.
	for _, t := range r.id {
		complete := true
		for _, part := range t {
			if part.kind == ruleBody {
				if v := bodyValue(part.name); v.invalid {
					return invalidID(part.name, "must be valid Unicode, found invalid UTF-8 or a lone surrogate")
				} else if v.repeated {
					return invalidID(part.name, onlyOnce)
				}
			}
			if part.kind != "" {
				_, ok := lookup(part.kind, part.name)
				complete = complete && ok
			}
			if part.kind == ruleForm && len(fields[part.name]) > 1 ||
				part.kind == ruleQuery && len(query[part.name]) > 1 {
				return invalidID(part.name, onlyOnce)
			}
		}
		if complete {
			break
		}
	}
	if id, ok := r.id.render(lookup, r.redactor.exposesSecret, r.escapes); ok {
		if problem := checkID(id); problem != "" {
			return &event.InvalidError{Problems: []event.Problem{{Field: "event_id", Detail: problem}}}
		}
		e.ID = id
		e.IDUnsigned = r.config.IDSigned != nil && !*r.config.IDSigned
	} else {
		sum := sha256.Sum256(q.Body)
		e.ID, e.IDDerived = "sha256:"+hex.EncodeToString(sum[:]), true
	}

	kind, _ := r.kind.render(lookup, r.redactor.exposesSecret, nil)
	e.Type = cleanType(kind)
	if e.Type == "" {
		e.Type = r.name
	}
	e.OccurredAt = q.At.UTC().Truncate(time.Microsecond)
	for _, t := range r.time {
		if text, ok := t.render(lookup); ok {
			if occurred, ok := parseTime(text); ok {
				e.OccurredAt = occurred
				break
			}
		}
	}
	return nil
}

const onlyOnce = "must be given only once"

func invalidID(pointer, detail string) error {
	return &event.InvalidError{Problems: []event.Problem{{Field: pointer, Detail: detail}}}
}

// checkID says what is wrong with an id that a rule made.
func checkID(id string) (problem string) {
	switch n := utf8.RuneCountInString(id); {
	case !utf8.ValidString(id):
		return "must be valid UTF-8"
	case n < 1 || n > maxIDLength:
		return fmt.Sprintf("must have 1 to %d characters, found %d", maxIDLength, n)
	case strings.ContainsFunc(id, unicode.IsControl):
		return "must not contain control characters"
	}
	return ""
}

// cleanType makes a type of any text of a provider: valid, cut to its limit. A bad type is no reason to reject an
// event.
func cleanType(text string) string {
	text = strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
	if utf8.RuneCountInString(text) > maxTypeLength {
		text = string([]rune(text)[:maxTypeLength])
	}
	return text
}
