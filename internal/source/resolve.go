package source

import (
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// defaultTolerance is what the libraries of most providers allow.
const defaultTolerance = 5 * time.Minute

// Defaults of a Budget.
const (
	defaultRows  = 1000
	defaultBytes = 16 << 20 // 16 MiB
	defaultAge   = 7 * day
)

// The schemes of a Method.
const (
	schemeHMAC    = "hmac"
	schemeEd25519 = "ed25519"
	schemeToken   = "token"
	schemeBearer  = "bearer"
	schemeBasic   = "basic"
	schemeTwilio  = "twilio"
	schemeNone    = "none"
)

// Resolve fills in the settings of the preset and the defaults. Only the secrets themselves are then unknown. To
// resolve settings twice changes nothing. The error is an *event.BadSettingsError that lists everything that makes no
// sense.
func (c Config) Resolve() (Config, error) {
	preset, known := PresetOf(c.Preset)
	if !known {
		detail := "must be one of " + strings.Join(Presets(), ", ")
		if c.Preset == "" {
			detail = "is required: one of " + strings.Join(Presets(), ", ")
		}
		return Config{}, &event.BadSettingsError{Problems: []event.Problem{{Field: "preset", Detail: detail}}}
	}
	r := c.overlay(preset.Config)
	p := settingsParser{}
	p.check(r)
	if p.problems == nil {
		p.problems = checkRules(r)
	}
	if p.problems != nil {
		return Config{}, &event.BadSettingsError{Problems: p.problems}
	}
	if r.IDSigned == nil {
		signed := idIsSigned(r, r.Verify)
		r.IDSigned = &signed
	}
	return r, nil
}

// overlay lays the settings over those of a preset and fills in the defaults. It takes no secrets, addresses, limits
// and budgets from a preset: these belong to the source alone. The result shares lists with preset.
func (c Config) overlay(preset Config) Config {
	r := preset
	r.Secrets, r.IDSigned, r.VerifyToken, r.URL = c.Secrets, c.IDSigned, c.VerifyToken, c.URL
	r.Limits, r.Rejected = c.Limits, c.Rejected
	if c.Verify != nil {
		r.Verify = make([]Method, len(c.Verify))
		for i, m := range c.Verify {
			if m.Scheme == "" && i < len(preset.Verify) {
				m = m.overlay(preset.Verify[i])
			}
			r.Verify[i] = m
		}
	}
	for i := range r.Verify {
		r.Verify[i].fillDefaults()
	}
	if c.Format == "envelope" && preset.Format != c.Format {
		r.ID, r.Type, r.Time, r.Volatile = nil, nil, nil, nil // the preset has them for its own format
	}
	setFirst(&r.Format, c.Format)
	setList(&r.ID, c.ID)
	setList(&r.Type, c.Type)
	setList(&r.Time, c.Time)
	setList(&r.Volatile, c.Volatile)
	setFirst(&r.Conflicts, c.Conflicts)
	setFirst(&r.Conflicts, r.Conflicts, "keep")
	setFirst(&r.Handshake, c.Handshake)
	setFirst(&r.Handshake, r.Handshake, "none")
	setFirst(&r.Rejected.Rows, r.Rejected.Rows, defaultRows)
	setFirst(&r.Rejected.Bytes, r.Rejected.Bytes, defaultBytes)
	setFirst(&r.Rejected.Age, r.Rejected.Age, defaultAge)
	return r
}

// overlay lays the settings of a method over those of a preset's method.
func (m Method) overlay(preset Method) Method {
	r := preset
	setList(&r.Header, m.Header)
	setFirst(&r.Separator, m.Separator)
	setFirst(&r.Assign, m.Assign)
	setFirst(&r.Key, m.Key)
	setFirst(&r.Signed, m.Signed)
	setFirst(&r.Hash, m.Hash)
	setFirst(&r.Encoding, m.Encoding)
	setList(&r.SecretPrefix, m.SecretPrefix)
	setList(&r.SecretNot, m.SecretNot)
	setFirst(&r.Secret, m.Secret)
	setList(&r.Timestamp, m.Timestamp)
	setFirst(&r.Unit, m.Unit)
	setFirst(&r.Tolerance, m.Tolerance)
	r.Final = r.Final || m.Final
	r.PastOnly = r.PastOnly || m.PastOnly
	return r
}

// fillDefaults fills in what a scheme usually has.
func (m *Method) fillDefaults() {
	switch m.Scheme {
	case schemeHMAC, schemeEd25519:
		setFirst(&m.Signed, m.Signed, "{body}")
		setFirst(&m.Encoding, m.Encoding, "hex")
		if m.Scheme == schemeHMAC {
			setFirst(&m.Hash, m.Hash, "sha256")
			setFirst(&m.Secret, m.Secret, "text")
		} else {
			setFirst(&m.Secret, m.Secret, "hex")
		}
		if len(m.Timestamp) > 0 {
			setFirst(&m.Unit, m.Unit, "seconds")
			setFirst(&m.Tolerance, m.Tolerance, defaultTolerance)
		}
	case schemeBearer, schemeBasic:
		if m.Header == nil {
			m.Header = []string{"Authorization"}
		}
	case schemeTwilio:
		if m.Header == nil {
			m.Header = []string{"X-Twilio-Signature"}
		}
	}
}

// setFirst sets a value to the first that is not zero, if there is one.
func setFirst[T comparable](to *T, from ...T) {
	var zero T
	for _, v := range from {
		if v != zero {
			*to = v
			return
		}
	}
}

// setList sets a list to a copy of one that is given.
func setList(to *[]string, from []string) {
	if from != nil {
		*to = append([]string{}, from...)
	}
}
