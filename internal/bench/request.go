package bench

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
)

// idDigits is the width of the number at the end of an event id.
const idDigits = 10

// request is one HTTP request, assembled once. Only the digits of the id and of the payload's
// variant change from event to event.
type request struct {
	wire    []byte // head and body
	body    []byte // the end of wire
	id      []byte // digits, in body
	variant []byte // digits, in body
}

// newRequest assembles a request as l says. If BodySize is too small for the fixed parts, the body
// is longer.
func newRequest(l Load) *request {
	prefix := `{"event_id":"` + l.RunID + "-"
	middle := `","event_type":"bench.event","occurred_at":"2024-01-30T12:00:00Z","payload":{"variant":"`
	zeros := strings.Repeat("0", idDigits)
	rest := `","padding":"`
	end := `"}}`
	fixed := len(prefix) + len(zeros) + len(middle) + len(zeros) + len(rest) + len(end)
	body := prefix + zeros + middle + zeros + rest + padding(max(0, l.BodySize-fixed), l.Seed) + end

	target, _ := url.Parse(l.Target) // checked by complete
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
		strings.TrimSuffix(target.EscapedPath(), "/")+"/webhook", target.Host, len(body))

	r := &request{wire: []byte(head + body)}
	r.body = r.wire[len(head):]
	r.id = r.body[len(prefix):][:idDigits]
	r.variant = r.body[len(prefix)+idDigits+len(middle):][:idDigits]
	return r
}

// padding returns n bytes of text that hardly compresses.
func padding(n int, seed uint64) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 -"
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // G404: repeatable, guards nothing
	text := make([]byte, n)
	for i := range text {
		text[i] = letters[random.IntN(len(letters))]
	}
	return string(text)
}

// set makes r the request for an event. variant 0 is its first payload.
func (r *request) set(event, variant uint64) {
	putDigits(r.id, event)
	putDigits(r.variant, variant)
}

// putDigits writes n in decimal, with leading zeros.
func putDigits(to []byte, n uint64) {
	for i := len(to) - 1; i >= 0; i-- {
		to[i] = byte('0' + n%10)
		n /= 10
	}
}

// eventNumber returns the number that set put into an id. ok is false if the id is not of this run.
func eventNumber(id []byte, runID string) (uint64, bool) {
	digits, ours := bytes.CutPrefix(id, []byte(runID+"-"))
	if !ours || len(digits) != idDigits {
		return 0, false
	}
	n := uint64(0)
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}

// field returns the first string value of a name in JSON text, without reading the rest. It does
// not decode escapes, and the values that we look for have none.
func field(text []byte, name string) []byte {
	quoted := []byte(`"` + name + `"`)
	for {
		_, rest, found := bytes.Cut(text, quoted)
		if !found {
			return nil
		}
		text = rest
		value, isName := bytes.CutPrefix(bytes.TrimLeft(text, " \t\r\n"), []byte(":"))
		value, isString := bytes.CutPrefix(bytes.TrimLeft(value, " \t\r\n"), []byte(`"`))
		if isName && isString {
			value, _, _ = bytes.Cut(value, []byte(`"`))
			return value
		}
	}
}
