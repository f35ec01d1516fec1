// Package secret keeps secrets from being shown. A Value holds one and cannot be printed, by whatever way. A Resolver
// reads the secrets that settings name, and only those that the operator of the process allows.
//
// It promises that no text of this package holds a secret, but for the result of Value.Reveal. It never reads a setting
// of Spine itself, or a file outside of the one folder.
//
// It must not know who uses secrets, or for what.
package secret

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
)

// Shown is what is shown in the place of a secret.
const Shown = "[secret]"

// Value is a secret. Whatever prints, encodes or logs one shows Shown, also where a Value is a field of another type.
// The zero Value holds none.
type Value struct {
	// By a pointer, since package fmt follows the fields of a type without asking their methods. It shows a pointer
	// that it meets there as an address.
	hidden *string
}

// New returns the secret that a text is. An empty text is none.
func New(text string) Value {
	if text == "" {
		return Value{}
	}
	return Value{&text}
}

// Reveal returns the text. It is the only way to it: whoever looks for places that could show a secret looks for its
// name.
func (v Value) Reveal() string {
	if v.hidden == nil {
		return ""
	}
	return *v.hidden
}

// IsZero reports whether there is no secret.
func (v Value) IsZero() bool { return v.hidden == nil }

// Equal compares two secrets in constant time. Their lengths do not show either.
func (v Value) Equal(other Value) bool {
	a, b := sha256.Sum256([]byte(v.Reveal())), sha256.Sum256([]byte(other.Reveal()))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// String returns Shown.
func (Value) String() string { return Shown }

// GoString returns Shown.
func (Value) GoString() string { return Shown }

// Format writes Shown, whatever the verb.
func (Value) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(Shown)) } // nobody to tell

// MarshalText returns Shown. Encoders of JSON, YAML and XML call it.
func (Value) MarshalText() ([]byte, error) { return []byte(Shown), nil }

// MarshalJSON returns Shown as JSON.
func (Value) MarshalJSON() ([]byte, error) { return []byte(`"` + Shown + `"`), nil }

// MarshalBinary returns Shown. It keeps encoders such as gob from looking further.
func (Value) MarshalBinary() ([]byte, error) { return []byte(Shown), nil }
