package source

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"

	"github.com/webhookspine/spine/internal/event"
)

// twilioHash is the parameter of the query that holds the SHA-256 in hex of a body that is not a form. See
// https://www.twilio.com/docs/usage/webhooks/webhooks-security.
const twilioHash = "bodySHA256"

// verifyTwilio checks the signature of Twilio. It is an HMAC with SHA-1 over the address with its query, followed by
// the fields of the form in the order of their names. If the body is not a form, its hash is in the query.
func (m *method) verifyTwilio(r *event.Request, header, value string) *event.UnverifiedError {
	var c candidates
	c.add("base64", value, m.signatureSize())
	if c.n == 0 {
		return unverified(causeSignatureWrong, "The header %s does not hold a signature in base64.", header)
	}
	fields, failed := twilioFields(r)
	if failed != nil {
		return failed
	}
	addresses := twilioAddresses(m.url, r.URL)
	equal := 0
	for _, k := range m.keys {
		if !k.validAt(r.At) {
			continue
		}
		h := k.hashes.Get().(*hmacState)
		for _, address := range addresses {
			equal |= subtle.ConstantTimeCompare(twilioSum(h, address, fields), c.bytes[0][:m.signatureSize()])
		}
		k.hashes.Put(h)
	}
	if equal == 1 {
		return nil
	}
	return unverified(causeSignatureWrong, "The signature in the header %s does not fit the request, the source's "+
		"secret and the address in its settings.", header)
}

// twilioSum makes the HMAC. It belongs to h and is valid until h is used again.
func twilioSum(h *hmacState, address, fields string) []byte {
	h.mac.Reset()
	h.in = append(append(h.in[:0], address...), fields...)
	h.mac.Write(h.in)
	h.out = h.mac.Sum(h.out[:0])
	return h.out
}

// twilioFields are the names and values of a form as Twilio signs them: sorted, and each value of a name once. If the
// query holds the hash of the body, they are empty, and the hash must fit.
func twilioFields(r *event.Request) (string, *event.UnverifiedError) {
	if r.URL != nil && strings.Contains(r.URL.RawQuery, twilioHash) {
		given := r.URL.Query()[twilioHash]
		sum := sha256.Sum256(r.Wire)
		var sent []byte
		if len(given) == 1 {
			sent, _ = hex.DecodeString(given[0]) // text that is not hex does not fit
		}
		if subtle.ConstantTimeCompare(sum[:], sent) != 1 {
			return "", unverified(causeSignatureWrong, "The body does not fit its hash, %s in the query.", twilioHash)
		}
		return "", nil
	}
	if len(r.Wire) == 0 {
		return "", nil
	}
	if event.MediaType(r.Header.Get("Content-Type")) != "application/x-www-form-urlencoded" {
		return "", unverified(
			causeSignatureWrong,
			"The body is not a form, and the query does not hold its hash as %s.",
			twilioHash,
		)
	}
	form, err := url.ParseQuery(string(r.Wire))
	if err != nil {
		return "", unverified(causeSignatureWrong, "The body is not a form that can be read.")
	}
	names := make([]string, 0, len(form))
	for name := range form {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		values := form[name]
		slices.Sort(values)
		for _, value := range slices.Compact(values) {
			b.WriteString(name)
			b.WriteString(value)
		}
	}
	return b.String(), nil
}

// twilioAddresses are the forms in which Twilio may have signed the address of the settings. Each has the query of the
// request, if it has one. One form has the default port of the scheme and one does not, since Twilio's documentation
// leaves open which it signs.
func twilioAddresses(address string, request *url.URL) []string {
	u, err := url.Parse(address)
	if err != nil {
		return nil // cannot be: the settings were checked
	}
	base, query, _ := strings.Cut(address, "?")
	if request != nil && request.RawQuery != "" {
		query = request.RawQuery
	}
	if query != "" {
		query = "?" + query
	}
	port := ":443"
	if u.Scheme == "http" {
		port = ":80"
	}
	scheme, rest, _ := strings.Cut(base, "://")
	host, path := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		host, path = rest[:i], rest[i:]
	}
	bareHost := strings.TrimSuffix(host, port)
	addresses := []string{base + query}
	if bareHost != host {
		addresses = append(addresses, scheme+"://"+bareHost+path+query)
	} else if u.Port() == "" {
		addresses = append(addresses, scheme+"://"+host+port+path+query)
	}
	return addresses
}
