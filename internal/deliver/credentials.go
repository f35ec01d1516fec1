package deliver

import (
	"net/url"
	"strings"

	"github.com/webhookspine/spine/internal/secret"
)

// A destination gets credentials with every request, and so does a proxy. An answer may repeat them: pages about errors
// often show the request. So every text of theirs is masked before it gets into a Result.

const (
	// minQuery is how many bytes a value in the query of a URL has at least that counts as a credential.
	minQuery = 8
	// minSegment is the same for a part of its path. The addresses of Slack's webhooks end with their secret.
	minSegment = 16
)

// credentials are the secrets of a Config in every part in which an answer may repeat them.
func credentials(cfg Config, destination *url.URL) (all []secret.Value) {
	add := func(text string) { all = append(all, secret.New(text)) }
	for _, u := range []*url.URL{destination, cfg.Proxy} {
		if u == nil || u.User == nil {
			continue
		}
		password, hasPassword := u.User.Password()
		if name := u.User.Username(); !hasPassword || password == "" {
			add(name) // some take a token in its place
		} else {
			add(name + ":" + password)
			add(password)
		}
	}
	for part := range strings.FieldsFuncSeq(destination.RawQuery, func(r rune) bool { return r == '&' || r == ';' }) {
		name, value, found := strings.Cut(part, "=")
		if !found {
			value = name
		}
		if len(value) >= minQuery {
			add(value)
			add(unescape(value, url.QueryUnescape))
		}
	}
	for segment := range strings.SplitSeq(destination.EscapedPath(), "/") {
		if len(segment) >= minSegment {
			add(segment)
			add(unescape(segment, url.PathUnescape))
		}
	}
	if !cfg.Secret.IsZero() {
		text := strings.TrimPrefix(cfg.Secret.Reveal(), "whsec_")
		add(text)
		if key, err := parseSecret(text); err == nil {
			add(string(key))
		}
	}
	return all
}

// unescape is a text without its escapes, or as it is where they are malformed.
func unescape(text string, how func(string) (string, error)) string {
	if plain, err := how(text); err == nil {
		return plain
	}
	return text
}
