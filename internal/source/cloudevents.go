package source

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/webhookspine/spine/internal/event"
)

// maxBatch bounds the events of one request, which are stored in one transaction.
const maxBatch = 1000

// attributes are the context attributes of a CloudEvent that Spine reads (CloudEvents 1.0). The others are only part of
// the payload.
var attributes = []string{"id", "source", "specversion", "type", "time"}

var attributePointers = []pointer{{"id"}, {"source"}, {"specversion"}, {"type"}, {"time"}}

// readCloudEvents reads a request of the HTTP binding of CloudEvents 1.0, in any of its modes. The payload of an event
// is its object in the JSON format, in binary mode too.
//
// The content type is hardly ever signed, and neither are the headers ce-*. If they decided, somebody who has seen a
// signed event could send it again as the data of another one, with another id. So the bytes of a signed body decide.
// Where the headers ce-id and ce-source are signed, they are there, and the mode is the binary one.
func (r *reader) readCloudEvents(q *event.Request) (events []event.Event, batch bool, err error) {
	media := strings.ToLower(strings.TrimSpace(q.Header.Get("Content-Type")))
	isBatch := strings.HasPrefix(media, "application/cloudevents-batch")
	isStructured := strings.HasPrefix(media, "application/cloudevents") && !isBatch
	switch {
	case r.signsCE:
		isBatch, isStructured = false, false
	case r.signed:
		switch kind := cloudEventKind(q.Body); {
		case kind == jsontext.KindBeginArray && !isBatch:
			isBatch, isStructured, media = true, false, "application/cloudevents-batch+json"
		case kind == jsontext.KindBeginObject && !isStructured:
			isBatch, isStructured, media = false, true, "application/cloudevents+json"
		}
	}
	switch {
	case isBatch:
		events, err = r.readBatch(q, media)
		return events, true, err
	case isStructured:
		if err := checkFormat(media); err != nil {
			return nil, false, err
		}
		if err := checkJSON(q.Body); err != nil {
			return nil, false, err
		}
		e, problems := r.readStructured(q, q.Body)
		if problems != nil {
			return nil, false, &event.InvalidError{Problems: problems}
		}
		return []event.Event{e}, false, nil
	}
	e, err := r.readBinary(q)
	if err != nil {
		return nil, false, err
	}
	return []event.Event{e}, false, nil
}

// cloudEventKind says whether a body is a CloudEvent in the JSON format or a list of them: the kind of an object or of
// an array. It is 0 for any other body. One that has a specversion is meant as a CloudEvent, though it be a bad one.
func cloudEventKind(body []byte) jsontext.Kind {
	isEvent := func(object []byte) bool {
		v := extractValues(object, []pointer{{"specversion"}})[0]
		return v.ok || v.repeated || v.invalid
	}
	value := jsontext.Value(body)
	if !value.IsValid(lenientJSON...) {
		return 0
	}
	switch kind := value.Kind(); kind { //nolint:exhaustive // the others are no events
	case jsontext.KindBeginObject:
		if isEvent(body) {
			return kind
		}
	case jsontext.KindBeginArray:
		dec := jsontext.NewDecoder(bytes.NewBuffer(body), lenientJSON...)
		_, _ = dec.ReadToken() // the text is valid
		isEmpty := true
		for dec.PeekKind() != jsontext.KindEndArray {
			element, err := dec.ReadValue()
			if err != nil {
				return 0
			}
			isEmpty = false
			if element.Kind() == jsontext.KindBeginObject && isEvent(bytes.Clone(element)) {
				return kind
			}
		}
		if isEmpty {
			return kind
		}
	}
	return 0
}

// checkFormat rejects event formats other than JSON.
func checkFormat(media string) error {
	name := event.MediaType(media)
	if name != "application/cloudevents" && !strings.HasSuffix(name, "+json") &&
		name != "application/cloudevents-batch" {
		return &event.InvalidError{Problems: []event.Problem{{
			Field: "Content-Type", Detail: "must name the event format json, as in application/cloudevents+json",
		}}}
	}
	return nil
}

// readBatch reads a list of events. The error lists at most 50 problems.
func (r *reader) readBatch(q *event.Request, media string) ([]event.Event, error) {
	if err := checkFormat(media); err != nil {
		return nil, err
	}
	if err := checkJSON(q.Body); err != nil {
		return nil, err
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(q.Body), lenientJSON...)
	if kind := dec.PeekKind(); kind != jsontext.KindBeginArray {
		value, _ := dec.ReadValue()
		return nil, &event.InvalidError{Problems: []event.Problem{{
			Detail: "must be an array of events, found " + describeKind(value),
		}}}
	}
	_, _ = dec.ReadToken() // the text is valid
	events := []event.Event{}
	var problems []event.Problem
	for n := 0; dec.PeekKind() != jsontext.KindEndArray; n++ {
		value, err := dec.ReadValue()
		if err != nil {
			return nil, readError(q.Body, err)
		}
		if n == maxBatch {
			return nil, &event.InvalidError{Problems: []event.Problem{{
				Detail: fmt.Sprintf("must have at most %d events", maxBatch),
			}}}
		}
		e, wrong := r.readStructured(q, bytes.Clone(value))
		for _, p := range wrong {
			field := strings.TrimSuffix(fmt.Sprintf("[%d].%s", n, p.Field), ".")
			problems = append(problems, event.Problem{Field: field, Detail: p.Detail})
		}
		events = append(events, e)
	}
	if problems != nil {
		return nil, &event.InvalidError{Problems: problems[:min(len(problems), 50)]}
	}
	return events, nil
}

// readStructured reads an event in the JSON format.
func (r *reader) readStructured(q *event.Request, object jsontext.Value) (event.Event, []event.Problem) {
	if object.Kind() != jsontext.KindBeginObject {
		return event.Event{}, []event.Problem{{Detail: "must be an object, found " + describeKind(object)}}
	}
	values := map[string]string{}
	var problems []event.Problem
	for i, v := range extractValues(object, attributePointers) {
		switch name := attributes[i]; {
		case v.repeated:
			problems = append(problems, event.Problem{Field: name, Detail: "must be given only once"})
		case v.invalid:
			problems = append(problems, event.Problem{
				Field: name, Detail: "must be valid Unicode, found invalid UTF-8 or a lone surrogate",
			})
		case v.ok:
			values[name] = v.text
		}
	}
	e := event.Event{Source: r.name, Payload: object}
	e.Hash, e.Unqueryable = r.cloudFingerprint(object)
	return e, append(problems, r.setAttributes(&e, q, values, problems)...)
}

// readBinary reads an event whose attributes are headers.
func (r *reader) readBinary(q *event.Request) (event.Event, error) {
	values := map[string]string{}
	var problems []event.Problem
	for _, name := range attributes {
		given := q.Header.Values("Ce-" + name)
		if len(given) == 0 || !r.visible[canonicalName("Ce-"+name)] {
			continue
		}
		if len(given) > 1 {
			problems = append(problems, event.Problem{Field: "ce-" + name, Detail: "must be given only once"})
			continue
		}
		value, problem := decodeAttribute(given[0])
		if problem != "" {
			problems = append(problems, event.Problem{Field: "ce-" + name, Detail: problem})
			continue
		}
		if isCredential(given[0]) || isCredential(value) || r.redactor.exposesSecret(value) {
			problems = append(problems, event.Problem{Field: "ce-" + name, Detail: "must not be a credential"})
			continue
		}
		values[name] = value
	}
	if len(q.Header.Values("Ce-Id"))+len(q.Header.Values("Ce-Specversion")) == 0 {
		return event.Event{}, &event.InvalidError{Problems: []event.Problem{{
			Detail: "is no CloudEvent: it has neither the content type application/cloudevents+json " +
				"nor headers such as ce-id",
		}}}
	}
	e := event.Event{Source: r.name}
	contentType := q.Header.Get("Content-Type")
	kind, media := r.bodyKindOf(contentType, q.Body)
	if media == "" && jsontext.Value(q.Body).IsValid(lenientJSON...) {
		kind = bodyJSON // data without a type is JSON
	}
	if len(q.Body) > 0 && kind == bodyJSON {
		if err := checkJSON(q.Body); err != nil {
			return event.Event{}, err
		}
	}
	if !r.vouchedFor("Content-Type") {
		contentType = ""
	}
	maps.Copy(values, r.extensions(q.Header))
	object := cloudObject(values, storableText(contentType), q.Body, kind)
	if hash, unqueryable := r.cloudFingerprint(object); unqueryable == "" {
		e.Payload, e.Raw, e.Hash = object, q.Body, hash
		if e.Raw == nil {
			e.Raw = []byte{} // there is no data
		}
	} else {
		setBytes(&e, q.Body, unqueryable)
	}
	if problems = append(problems, r.setAttributes(&e, q, values, problems)...); problems != nil {
		return event.Event{}, &event.InvalidError{Problems: problems}
	}
	return e, nil
}

// decodeAttribute reads the value of a header. It removes quotes and one round of percent-encoding (CloudEvents HTTP
// binding, section 3.1.3.2).
func decodeAttribute(value string) (decoded, problem string) {
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		var b strings.Builder
		for inner := value[1 : len(value)-1]; inner != ""; inner = inner[1:] {
			if inner[0] == '\\' && len(inner) > 1 {
				inner = inner[1:]
			}
			b.WriteByte(inner[0])
		}
		value = b.String()
	}
	if unescaped, err := url.PathUnescape(value); err == nil {
		value = unescaped
	} else {
		return "", "has a % that no two hex digits follow"
	}
	if !utf8.ValidString(value) {
		return "", "must be valid UTF-8"
	}
	return value, ""
}

// setAttributes sets the id, type and time of an event by its attributes. It lists what is wrong with them, without the
// problems that are known already.
func (r *reader) setAttributes(
	e *event.Event, q *event.Request, values map[string]string, known []event.Problem,
) (problems []event.Problem) {
	for _, name := range []string{"id", "source", "specversion", "type"} {
		bad := false
		for _, p := range known {
			bad = bad || strings.TrimPrefix(p.Field, "ce-") == name
		}
		if values[name] == "" && !bad {
			problems = append(problems, event.Problem{Field: name, Detail: "is required"})
		}
	}
	if len(problems)+len(known) > 0 {
		return problems
	}
	e.ID = cloudEventID(values["source"], values["id"])
	if problem := checkID(e.ID); problem != "" {
		return []event.Problem{{Field: "id", Detail: problem}}
	}
	e.IDUnsigned = r.config.IDSigned != nil && !*r.config.IDSigned
	e.Type = cleanType(values["type"])
	e.OccurredAt = q.At.UTC().Truncate(time.Microsecond)
	// A number is not a time here: CloudEvents have RFC 3339 alone.
	if occurred, ok := parseTime(values["time"]); ok && strings.Contains(values["time"], "-") {
		e.OccurredAt = occurred
	}
	return nil
}

// cloudEventID is the identity of a CloudEvent: its source and its id with a space between. No source has a space,
// since it is a URI reference, in which %20 stands for it. A source that is too long is replaced by its hash.
func cloudEventID(source, id string) string {
	const hashed = "sha256:"
	source = strings.ReplaceAll(source, " ", "%20")
	isLong := utf8.RuneCountInString(source)+1+utf8.RuneCountInString(id) > maxIDLength
	// One that looks like a hash is hashed too, so that it cannot stand in for another.
	if isLong || strings.HasPrefix(source, hashed) {
		sum := sha256.Sum256([]byte(source))
		source = hashed + hex.EncodeToString(sum[:16])
	}
	return source + " " + id
}
