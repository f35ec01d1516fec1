package source

import (
	"slices"
	"strings"
	"unicode"
)

// secretParts make a name that of a secret, wherever in it they stand.
var secretParts = []string{
	"authoriz", "authentic", "cookie", "token", "secret", "passw", "passphrase", "passcode", "credential", "apikey",
	"session", "sessid", "jwt", "macaroon",
}

// secretWords make a name that of a secret where they are one of its words.
var secretWords = []string{
	"auth", "pass", "pwd", "bearer", "assertion", "oidc", "saml", "csrf", "xsrf", "otp", "totp", "dpop", "pat",
}

// keyOwners are words before "key" of which one tells a secret from the name of something. They may be written
// together.
var keyOwners = []string{
	"api", "app", "access", "account", "admin", "auth", "client", "consumer", "encryption", "function", "functions",
	"host", "license", "licence", "master", "private", "project", "secret", "service", "shared", "signing",
	"subscription", "user", "x",
}

// plainKeys are words before "key" with which it names something, and is no secret.
var plainKeys = []string{
	"cache", "correlation", "dedup", "deduplication", "event", "idempotency", "idempotent", "message", "object",
	"ordering", "partition", "routing", "sort", "surrogate",
}

// plainEnds are the last words of names that speak about a secret and do not hold one.
var plainEnds = []string{
	"timestamp", "time", "date", "version", "algorithm", "algo", "type", "method", "length", "expires", "expiry",
}

// isSecret reports whether a header or parameter of this name holds a secret. It goes by the words of the name, so that
// it knows names that nobody has listed.
func isSecret(name string) bool {
	words := wordsOf(name)
	if len(words) == 0 || len(words) > 1 && slices.Contains(plainEnds, words[len(words)-1]) {
		return false
	}
	lower := strings.ToLower(name)
	if slices.ContainsFunc(secretParts, func(part string) bool { return strings.Contains(lower, part) }) {
		return true
	}
	for i, word := range words {
		owner, isKey := strings.CutSuffix(word, "key")
		switch {
		case slices.Contains(secretWords, word), isKey && owner != "" && slices.Contains(keyOwners, owner):
			return true
		case isKey && owner == "" && (i == 0 || !slices.Contains(plainKeys, words[i-1])):
			return true
		}
	}
	return false
}

// secretParameters are names of parameters that hold a secret. As parts of other names these words mean nothing.
var secretParameters = []string{"code", "ticket", "pin", "pw", "sid"}

// isSecretParameter is isSecret for a parameter of an address. A signature in an address opens what the address names,
// so it is a secret there.
func isSecretParameter(name string) bool {
	if slices.Contains(secretParameters, strings.ToLower(name)) || isSecret(name) {
		return true
	}
	return slices.ContainsFunc(wordsOf(name), func(word string) bool {
		return word == "sig" || word == "hmac" || strings.HasPrefix(word, "signature")
	})
}

// wordsOf are the words of a name in lower case: X-Api-Key, api_key and apiKey end in the same two.
func wordsOf(name string) []string {
	var words []string
	start := -1 // of the word under way
	end := func(at int) {
		if start >= 0 {
			words = append(words, strings.ToLower(name[start:at]))
		}
		start = -1
	}
	var before rune
	for i, r := range name {
		switch {
		case !unicode.IsLetter(r) && !unicode.IsDigit(r):
			end(i)
		case unicode.IsUpper(r) && unicode.IsLower(before):
			end(i)
			start = i
		case start < 0:
			start = i
		}
		before = r
	}
	end(len(name))
	return words
}

// isCredential reports whether a value looks like a credential, whatever its header or parameter is called: that of
// Authorization, or a JSON Web Token.
func isCredential(value string) bool {
	for _, scheme := range []string{"bearer ", "basic "} {
		if len(value) > len(scheme) && strings.EqualFold(value[:len(scheme)], scheme) {
			return true
		}
	}
	return strings.HasPrefix(value, "eyJ") && strings.Count(value, ".") >= 2 && !strings.ContainsAny(value, " \t,;")
}
