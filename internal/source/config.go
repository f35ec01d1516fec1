package source

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/webhookspine/spine/internal/event"
)

// Config is what there is to say about a source, in the form in which it is
// stored: a JSON object in the column settings of spine.sources. What is left
// out is as the preset has it; an empty list is not left out.
//
// In JSON a list of texts may also be a single text, a duration is a text such
// as "5m" or "7d" or a number of seconds, and a secret that always holds is just
// its reference. Unknown members are refused.
type Config struct {
	Preset  string   `json:"preset"`           // one of Presets
	Secrets []Secret `json:"secrets,omitzero"` // any of them may have been used; none where nothing is verified

	// Verify are the ways in which a request may prove where it comes from: any may
	// do, unless the header of one is there that is Final, which then decides. A
	// method without a scheme is that of the preset at the same place, changed by
	// what it gives.
	Verify []Method `json:"verify,omitzero"`

	Format    string   `json:"format,omitempty"`    // envelope, body (whatever the provider sends), or cloudevents
	ID        []string `json:"id,omitzero"`         // templates; without one that fits, the id is made of the body's hash
	Type      []string `json:"type,omitzero"`       // templates; without one that fits, the type is the source's name
	Time      []string `json:"time,omitzero"`       // templates; without one that fits, the time is that at which it came
	IDSigned  *bool    `json:"id_signed,omitempty"` // whether what ID is made of is signed; left out, Verify and ID tell
	Volatile  []string `json:"volatile,omitzero"`   // JSON pointers (RFC 6901) of what the payload hash leaves out
	Conflicts string   `json:"conflicts,omitempty"` // keep: answer 200; refuse: answer 409. The evidence is kept either way

	Handshake   string `json:"handshake,omitempty"`    // slack, meta, discord, cloudevents, or none
	VerifyToken string `json:"verify_token,omitempty"` // reference to the word that Meta asks for in its handshake
	URL         string `json:"url,omitempty"`          // as the provider knows it, where the address is signed; Twilio, Square

	Limits   Limits `json:"limits,omitzero"`
	Rejected Budget `json:"rejected,omitzero"`
}

// Secret is a reference to a secret, never the secret itself, and when it
// holds by the server's clock. In JSON it is a string where it always holds.
type Secret struct {
	Ref   string    `json:"ref"`            // env:NAME, or file:/absolute/path, whose last line end is not part of it
	From  time.Time `json:"from,omitzero"`  // inclusive
	Until time.Time `json:"until,omitzero"` // exclusive
}

// Method is a way to verify a request.
type Method struct {
	Scheme string   `json:"scheme"`          // hmac, ed25519, token, bearer, basic, twilio, or none
	Header []string `json:"header,omitzero"` // that holds the signature or token: the first that is there
	Final  bool     `json:"final,omitempty"` // where its header is there, no other method is tried, whatever their order

	// How the header lists signatures: parts between Separator, each a name, Assign
	// and a value. Those named Key count. Without Assign the header is the value.
	Separator string `json:"separator,omitempty"`
	Assign    string `json:"assign,omitempty"`
	Key       string `json:"key,omitempty"`

	// What is signed: a template of {body}, {timestamp}, {url} and {header:Name},
	// or {header:Name|Other} where the first that is there counts.
	Signed   string `json:"signed,omitempty"`
	Hash     string `json:"hash,omitempty"`     // of an HMAC: sha256, sha1, or sha512
	Encoding string `json:"encoding,omitempty"` // of the signature: hex or base64

	// Which secrets this method takes, and how the key is read from one. A secret
	// is taken that begins with one of SecretPrefix, if there are any, and with none
	// of SecretNot; the prefix is no part of the key.
	SecretPrefix []string `json:"secret_prefix,omitzero"`
	SecretNot    []string `json:"secret_not,omitzero"`
	Secret       string   `json:"secret,omitempty"` // what it is: text, base64, or hex

	// Where the time is that is signed: header:Name, key:name (in the signature's
	// header), or body:/json/pointer; the first that is there. Empty where there is
	// none.
	Timestamp []string      `json:"timestamp,omitzero"`
	Unit      string        `json:"unit,omitempty"`      // seconds, milliseconds, or rfc3339
	Tolerance time.Duration `json:"-"`                   // how far from now it may be; in JSON as "5m"
	PastOnly  bool          `json:"past_only,omitempty"` // a time to come is never too far away
}

// Limits bounds what is taken from a source. Zero means no limit.
type Limits struct {
	Rate         float64 `json:"rate,omitempty"`          // requests a second that were verified
	Burst        int     `json:"burst,omitempty"`         // of them at once; without it a second's worth
	AddressRate  float64 `json:"address_rate,omitempty"`  // requests a second of one client address, verified or not
	AddressBurst int     `json:"address_burst,omitempty"` // of them at once; without it a second's worth
}

// Budget bounds what is kept of requests that were refused. Zero means the
// default.
type Budget struct {
	Rows  int           `json:"rows,omitempty"`  // 1000 by default
	Bytes int64         `json:"bytes,omitempty"` // 16 MiB by default
	Age   time.Duration `json:"-"`               // 7 days by default; in JSON as "7d"
}

// members are the settings by their names in JSON, as places to put them.
type members map[string]any

func (c *Config) members() members {
	return members{
		"preset": &c.Preset, "secrets": &c.Secrets, "verify": &c.Verify,
		"format": &c.Format, "id": &c.ID, "type": &c.Type, "time": &c.Time, "id_signed": &c.IDSigned,
		"volatile": &c.Volatile, "conflicts": &c.Conflicts,
		"handshake": &c.Handshake, "verify_token": &c.VerifyToken, "url": &c.URL,
		"limits": &c.Limits, "rejected": &c.Rejected,
	}
}

func (s *Secret) members() members {
	return members{"ref": &s.Ref, "from": &s.From, "until": &s.Until}
}

func (m *Method) members() members {
	return members{
		"scheme": &m.Scheme, "header": &m.Header, "final": &m.Final,
		"separator": &m.Separator, "assign": &m.Assign, "key": &m.Key,
		"signed": &m.Signed, "hash": &m.Hash, "encoding": &m.Encoding,
		"secret_prefix": &m.SecretPrefix, "secret_not": &m.SecretNot, "secret": &m.Secret,
		"timestamp": &m.Timestamp, "unit": &m.Unit, "tolerance": &m.Tolerance, "past_only": &m.PastOnly,
	}
}

func (l *Limits) members() members {
	return members{
		"rate": &l.Rate, "burst": &l.Burst, "address_rate": &l.AddressRate, "address_burst": &l.AddressBurst,
	}
}

func (b *Budget) members() members {
	return members{"rows": &b.Rows, "bytes": &b.Bytes, "age": &b.Age}
}

// maxSettings bounds the text of a source's settings, in bytes.
const maxSettings = 64 << 10

// ParseConfig reads the settings of a source: a JSON object without members
// that are unknown or come twice. It does not say whether they make sense;
// Config.Resolve does. The error is an *event.BadSettingsError that lists all
// problems.
func ParseConfig(settings []byte) (Config, error) {
	var c Config
	p := settingsParser{}
	value := jsontext.Value(settings)
	switch {
	case len(settings) > maxSettings:
		p.add("", fmt.Sprintf("must have at most %d bytes, found %d", maxSettings, len(settings)))
	case !value.IsValid(): // duplicate names and invalid text too
		p.add("", "must be a JSON object without members that come twice")
	case value.Kind() != jsontext.KindBeginObject:
		p.add("", "must be an object, found "+describe(value))
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

// settingsParser fills settings from JSON that is valid and collects what does
// not fit.
type settingsParser struct{ problems []event.Problem }

func (p *settingsParser) add(path, detail string) {
	p.problems = append(p.problems, event.Problem{Field: path, Detail: detail})
}

// object fills what an object gives, and says which of its members are unknown.
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
		at := name
		if path != "" {
			at = path + "." + name
		}
		if place, known := into[name]; known {
			p.value(at, value, place)
		} else {
			p.add(at, "is no setting; there are "+strings.Join(slices.Sorted(maps.Keys(into)), ", "))
		}
	}
}

// value puts one value in its place.
func (p *settingsParser) value(path string, v jsontext.Value, place any) {
	switch place := place.(type) {
	case *string:
		if v.Kind() != jsontext.KindString {
			p.add(path, "must be a string, found "+describe(v))
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
			p.add(path, "must be true or false, found "+describe(v))
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
			p.add(path, "must be a number, found "+describe(v))
			return
		}
		*place = n
	case *time.Duration:
		d, ok := parseDuration(v)
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
		p.add(path, "must be "+wanted+", found "+describe(v))
		return
	}
	p.object(path, v, into)
}

// parseList reads an array into a list that is not nil, even where it is empty.
func parseList[T any](p *settingsParser, path string, v jsontext.Value, list *[]T, of string) {
	if v.Kind() != jsontext.KindBeginArray {
		p.add(path, "must be a list of "+of+", found "+describe(v))
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

const day = 24 * time.Hour

// parseDuration reads a duration of JSON: a number of seconds, a text in Go's
// form, or a text that is a number of days and a d.
func parseDuration(v jsontext.Value) (time.Duration, bool) {
	var scale float64
	text := string(v)
	switch v.Kind() {
	case jsontext.KindNumber:
		scale = float64(time.Second)
	case jsontext.KindString:
		unquoted, _ := jsontext.AppendUnquote(nil, v)
		text = string(unquoted)
		days, found := strings.CutSuffix(text, "d")
		if !found {
			d, err := time.ParseDuration(text)
			return d, err == nil
		}
		text, scale = days, float64(day)
	default:
		return 0, false
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(n) || math.Abs(n*scale) > float64(math.MaxInt64/2) {
		return 0, false
	}
	return time.Duration(n * scale), true
}

// formatDuration is the text that parseDuration reads; empty for zero.
func formatDuration(d time.Duration) string {
	switch {
	case d == 0:
		return ""
	case d%day == 0:
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// MarshalJSON writes the reference alone where the secret always holds.
func (s Secret) MarshalJSON() ([]byte, error) {
	if s.From.IsZero() && s.Until.IsZero() {
		return encode(s.Ref)
	}
	type plain Secret
	return encode(plain(s))
}

// MarshalJSON writes the tolerance as text.
func (m Method) MarshalJSON() ([]byte, error) {
	type plain Method
	return encode(struct {
		plain
		Tolerance string `json:"tolerance,omitempty"`
	}{plain(m), formatDuration(m.Tolerance)})
}

// MarshalJSON writes the age as text.
func (b Budget) MarshalJSON() ([]byte, error) {
	type plain Budget
	return encode(struct {
		plain
		Age string `json:"age,omitempty"`
	}{plain(b), formatDuration(b.Age)})
}

// MarshalJSON writes what ParseConfig reads.
func (c Config) MarshalJSON() ([]byte, error) {
	type plain Config
	return encode(plain(c))
}

// encode writes JSON without escapes for the sake of HTML, which would make
// addresses hard to read.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), nil
}
