package source

import (
	"bytes"
	"encoding/json"
	"time"
)

// Config is the settings of a source as they are stored: a JSON object in the column settings of spine.sources. A
// setting that is left out is as the preset has it. An empty list is not left out: it replaces the preset's.
//
// In JSON a list of texts may also be a single text. A duration is a text such as "5m" or "7d", or a number of seconds.
// A secret that is always valid is its reference alone. Unknown members are rejected.
type Config struct {
	Preset  string   `json:"preset"`           // one of Presets
	Secrets []Secret `json:"secrets,omitzero"` // any valid one verifies; none where nothing is verified

	// Verify lists the ways in which a request may prove where it comes from. Any of them does, unless the header of a
	// Final one is there, which then decides alone. A method without a scheme takes what it leaves out from the
	// preset's method at the same place.
	Verify []Method `json:"verify,omitzero"`

	Format string   `json:"format,omitempty"` // envelope, body (whatever the provider sends), or cloudevents
	ID     []string `json:"id,omitzero"`      // templates; if none fits, the id is made of the body's hash
	Type   []string `json:"type,omitzero"`    // templates; if none fits, the type is the source's name
	Time   []string `json:"time,omitzero"`    // templates; if none fits, the time is that of arrival

	IDSigned  *bool    `json:"id_signed,omitempty"` // whether the id is signed; left out, Verify and ID tell
	Volatile  []string `json:"volatile,omitzero"`   // JSON pointers (RFC 6901) of what the payload hash leaves out
	Conflicts string   `json:"conflicts,omitempty"` // answer keep: 200, refuse: 409; the evidence is kept either way

	Handshake   string `json:"handshake,omitempty"`    // slack, meta, discord, cloudevents, or none
	VerifyToken string `json:"verify_token,omitempty"` // reference to the word that Meta asks for in its handshake
	URL         string `json:"url,omitempty"`          // as the provider knows it, where it is signed: Twilio, Square

	Limits   Limits `json:"limits,omitzero"`
	Rejected Budget `json:"rejected,omitzero"`
}

// Secret is a reference to a secret, never the secret itself, and when it is valid by the server's clock. In JSON it is
// a string where it is always valid.
type Secret struct {
	Ref   string    `json:"ref"`            // env:NAME, file:NAME or file:/absolute/path; see package secret
	From  time.Time `json:"from,omitzero"`  // inclusive
	Until time.Time `json:"until,omitzero"` // exclusive
}

// Method is a way to verify a request.
type Method struct {
	Scheme string   `json:"scheme"`          // hmac, ed25519, token, bearer, basic, twilio, or none
	Header []string `json:"header,omitzero"` // that holds the signature or token: the first that is there
	Final  bool     `json:"final,omitempty"` // if its header is there, no other method counts, whatever their order

	// How the header lists signatures: as parts between Separator, each a name, Assign and a value. The values named
	// Key count. Without Assign the whole part is the value.
	Separator string `json:"separator,omitempty"`
	Assign    string `json:"assign,omitempty"`
	Key       string `json:"key,omitempty"`

	// The signed message: a template of {body}, {timestamp}, {url} and {header:Name}, or {header:Name|Other}, of which
	// the first that is there counts.
	Signed   string `json:"signed,omitempty"`
	Hash     string `json:"hash,omitempty"`     // of an HMAC: sha256, sha1, or sha512
	Encoding string `json:"encoding,omitempty"` // of the signature: hex or base64

	// Which secrets this method takes, and how it reads a key from one. A secret must begin with one of SecretPrefix,
	// if there are any, and with none of SecretNot. The prefix is not part of the key.
	SecretPrefix []string `json:"secret_prefix,omitzero"`
	SecretNot    []string `json:"secret_not,omitzero"`
	Secret       string   `json:"secret,omitempty"` // how it is written: text, base64, or hex

	// Where the signed time is: header:Name, key:name (in the signature's header), or body:/json/pointer. The first
	// that is there counts. Empty where no time is signed.
	Timestamp []string      `json:"timestamp,omitzero"`
	Unit      string        `json:"unit,omitempty"`      // seconds, milliseconds, or rfc3339
	Tolerance time.Duration `json:"-"`                   // how far from the arrival, 0 to 365d; in JSON as "5m"
	PastOnly  bool          `json:"past_only,omitempty"` // a time in the future is never too far away
}

// Limits bounds what each process takes from a source. Zero means no limit.
type Limits struct {
	Rate         float64 `json:"rate,omitempty"`          // verified requests a second
	Burst        int     `json:"burst,omitempty"`         // of them at once; 0 for a second's worth
	AddressRate  float64 `json:"address_rate,omitempty"`  // requests a second of one client address, verified or not
	AddressBurst int     `json:"address_burst,omitempty"` // of them at once; 0 for a second's worth
}

// Budget bounds what Spine keeps of rejected requests. Zero means the default.
type Budget struct {
	Rows  int           `json:"rows,omitempty"`  // requests; 1000 by default
	Bytes int64         `json:"bytes,omitempty"` // 16 MiB by default
	Age   time.Duration `json:"-"`               // at least a minute, 7 days by default; in JSON as "7d"
}

// members are settings by their names in JSON, as places to put their values.
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
		"rate": &l.Rate, "burst": &l.Burst,
		"address_rate": &l.AddressRate, "address_burst": &l.AddressBurst,
	}
}

func (b *Budget) members() members {
	return members{"rows": &b.Rows, "bytes": &b.Bytes, "age": &b.Age}
}

// MarshalJSON writes the reference alone where the secret is always valid.
func (s Secret) MarshalJSON() ([]byte, error) {
	if s.From.IsZero() && s.Until.IsZero() {
		return encodeJSON(s.Ref)
	}
	type fields Secret
	return encodeJSON(fields(s))
}

// MarshalJSON writes the tolerance as text.
func (m Method) MarshalJSON() ([]byte, error) {
	type fields Method
	return encodeJSON(struct {
		fields
		Tolerance string `json:"tolerance,omitempty"`
	}{fields(m), formatDuration(m.Tolerance)})
}

// MarshalJSON writes the age as text.
func (b Budget) MarshalJSON() ([]byte, error) {
	type fields Budget
	return encodeJSON(struct {
		fields
		Age string `json:"age,omitempty"`
	}{fields(b), formatDuration(b.Age)})
}

// MarshalJSON writes what ParseConfig reads.
func (c Config) MarshalJSON() ([]byte, error) {
	type fields Config
	return encodeJSON(fields(c))
}

// encodeJSON writes JSON without the escapes for HTML, which would make addresses hard to read.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), nil
}
