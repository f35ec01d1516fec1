package source

import (
	"time"
)

// Config is what there is to say about a source, in the form in which it is
// stored: a JSON object in the column settings of spine.sources. What is left
// out is as the preset has it.
type Config struct {
	Preset  string   `json:"preset"`            // one of Presets
	Secrets []Secret `json:"secrets,omitempty"` // any of them may have been used; none where nothing is verified

	// Verify are the ways in which a request may prove where it comes from. The
	// first whose header is there decides where it is Final; else any may do.
	Verify []Method `json:"verify,omitempty"`

	Format    string   `json:"format,omitempty"`    // envelope, body (whatever the provider sends), or cloudevents
	ID        []string `json:"id,omitempty"`        // templates, see Rule
	Type      []string `json:"type,omitempty"`      // templates
	Time      []string `json:"time,omitempty"`      // templates
	IDSigned  *bool    `json:"id_signed,omitempty"` // whether what ID is made of is signed
	Volatile  []string `json:"volatile,omitempty"`  // JSON pointers (RFC 6901) of what the payload hash leaves out
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
	Scheme string   `json:"scheme"`           // hmac, ed25519, token, bearer, basic, twilio, or none
	Header []string `json:"header,omitempty"` // that holds the signature or token: the first that is there
	Final  bool     `json:"final,omitempty"`  // where its header is there, no other method is tried

	// How the header lists signatures: parts between Separator, each a name, Assign
	// and a value. Those named Key count. Without Assign the header is the value.
	Separator string `json:"separator,omitempty"`
	Assign    string `json:"assign,omitempty"`
	Key       string `json:"key,omitempty"`

	Signed   string `json:"signed,omitempty"`   // what is signed: a template of {body}, {timestamp}, {url}, {header:Name}
	Hash     string `json:"hash,omitempty"`     // sha256, sha1, or sha512
	Encoding string `json:"encoding,omitempty"` // of the signature: hex or base64

	// Which secrets this method takes, and how the key is read from one.
	SecretPrefix string `json:"secret_prefix,omitempty"` // it begins so
	SecretNot    string `json:"secret_not,omitempty"`    // it does not begin so
	Secret       string `json:"secret,omitempty"`        // text, or base64 or hex of what follows the prefix

	// Where the time is that is signed: header:Name, key:name (in the signature's
	// header), or body:/json/pointer. Empty where there is none.
	Timestamp []string      `json:"timestamp,omitempty"`
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
