package source

import (
	"slices"
	"strings"
	"unicode"
)

// secretParts make a name that of a secret, wherever in it they stand.
var secretParts = []string{
	"authoriz", "authentic", "cookie", "token", "secret", "passw", "passphrase", "passcode", "passkey", "credential",
	"apikey", "session", "sessid", "jwt", "macaroon",
}

// secretWords make a name that of a secret where they are one of its words.
var secretWords = []string{
	"auth",
	"authn",
	"authz",
	"oauth",
	"pass",
	"pw",
	"pwd",
	"bearer",
	"assertion",
	"oidc",
	"saml",
	"csrf",
	"xsrf",
	"otp",
	"totp",
	"dpop",
	"pat",
	"psk",
	"cred",
	"verify", // as CDNs call the word that they share with an origin
	"bypass",
}

// bareWords make a name that of a secret where it has no other word. As parts of other names they mean nothing.
var bareWords = []string{"code", "ticket", "pin", "sid"}

// codeOwners are words before "code" with which it opens something. They may be written together.
var codeOwners = []string{
	"access", "activation", "auth", "authorization", "confirmation", "device", "invite", "login", "oauth", "recovery",
	"reset", "security", "user", "verification",
}

// signatureWords make a name that of a signature where they are one of its words, or the beginning of one.
var signatureWords = []string{"sig", "hmac", "signature", "sign", "mac"}

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
	if words[0] == "x" && len(words) > 1 {
		words = words[1:]
	}
	if len(words) == 1 && slices.Contains(bareWords, words[0]) {
		return true
	}
	lower := strings.ToLower(name)
	if slices.ContainsFunc(secretParts, func(part string) bool { return strings.Contains(lower, part) }) {
		return true
	}
	for i, word := range words {
		owner, isKey := strings.CutSuffix(word, "key")
		opener, isCode := strings.CutSuffix(word, "code")
		if isCode && opener == "" && i > 0 {
			opener = words[i-1]
		}
		switch {
		case isCode && slices.Contains(codeOwners, opener):
			return true
		case slices.Contains(secretWords, word), isKey && owner != "" && slices.Contains(keyOwners, owner):
			return true
		case isKey && owner == "" && (i == 0 || !slices.Contains(plainKeys, words[i-1])):
			return len(words) != 2 || words[1] != "id" // as in keyId, which names a key
		}
	}
	return false
}

// isSignature reports whether a header or parameter of this name holds a signature.
func isSignature(name string) bool {
	words := wordsOf(name)
	if len(words) == 0 || len(words) > 1 && slices.Contains(plainEnds, words[len(words)-1]) {
		return false
	}
	return slices.ContainsFunc(words, func(word string) bool {
		return slices.Contains(signatureWords, word) || strings.HasPrefix(word, "signature")
	})
}

// isSecretParameter is isSecret for a parameter of an address. A signature in an address opens what the address names,
// so it is a secret there.
func isSecretParameter(name string) bool { return isSecret(name) || isSignature(name) }

// isSecretField is isSecretParameter for a field of a form or a member of a JSON body. There a key or a code alone is
// rather the name of something, and what ends in "id" is one.
func isSecretField(name string) bool {
	words := wordsOf(name)
	if len(words) == 0 || words[len(words)-1] == "id" || isBareName(name) {
		return false
	}
	return isSecretParameter(name)
}

// isBareName reports whether a name is a single word that says little: key, code.
func isBareName(name string) bool {
	words := wordsOf(name)
	return len(words) == 1 && (words[0] == "key" || slices.Contains(bareWords, words[0]))
}

// wordsOf are the words of a name in lower case: X-Api-Key, api_key and apiKeys2 end in the same two. A word has no
// digits at its end, and no s of a plural.
func wordsOf(name string) []string {
	var words []string
	start := -1 // of the word under way
	end := func(at int) {
		if start >= 0 {
			words = append(words, stem(strings.ToLower(name[start:at])))
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

// stem is a word without the digits at its end and without the s of a plural.
func stem(word string) string {
	if short := strings.TrimRight(word, "0123456789"); short != "" {
		word = short
	}
	if strings.HasSuffix(word, "s") && !strings.HasSuffix(word, "ss") && len(word) > 3 {
		word = word[:len(word)-1]
	}
	return word
}

// credentialSchemes are words with which the value of Authorization begins. Others end in key, token or auth.
var credentialSchemes = []string{"digest", "hawk", "hmac", "negotiate", "ntlm", "oauth", "dpop", "signature", "splunk"}

// isCredential reports whether a value looks like a credential, whatever its header or parameter is called: that of
// Authorization, a JSON Web Token, or the key of a provider.
func isCredential(value string) bool {
	value = strings.TrimSpace(value)
	if isToken(value) {
		return true
	}
	end := strings.IndexAny(value, " \t:")
	if end < 0 || end > maxScheme {
		return false
	}
	rest := strings.TrimLeft(value[end:], " \t:")
	if rest == "" {
		return false
	}
	scheme := strings.ToLower(value[:end])
	switch {
	case scheme == "basic", scheme == "sharedaccesssignature", strings.HasPrefix(scheme, "aws4-hmac"):
		return true
	case value[end] == ':':
		return false // a pair of another name
	case slices.Contains(credentialSchemes, scheme),
		strings.HasSuffix(scheme, "key"), strings.HasSuffix(scheme, "token"), strings.HasSuffix(scheme, "auth"):
		// Not a sentence that begins so.
		return !strings.ContainsAny(rest, " \t") || strings.Contains(rest, "=")
	}
	return false
}

// maxScheme bounds the name of a scheme of credentials, in bytes.
const maxScheme = 32

// keyPrefixes begin the keys of providers, so that those who look for leaked ones find them.
var keyPrefixes = []string{
	"AIza", "AKIA", "dop_v1_", "gho_", "ghp_", "ghr_", "ghs_", "ghu_", "github_pat_", "glpat-", "hvs.", "pypi-AgE",
	"rk_live_", "rk_test_", "shpat_", "shpss_", "sk_live_", "sk_test_", "whsec_", "xapp-", "xoxa-", "xoxb-", "xoxp-",
	"xoxs-", "ya29.",
}

// keyLength is the length of the provider's key with which a text begins, in bytes. 0 where it begins with none.
func keyLength(text string) int {
	const least = 16 // of what follows the prefix
	for _, prefix := range keyPrefixes {
		if !strings.HasPrefix(text, prefix) {
			continue
		}
		end := len(prefix)
		for end < len(text) && (isNameByte(text[end]) || strings.IndexByte("+/=", text[end]) >= 0) {
			end++
		}
		if end >= len(prefix)+least {
			return end
		}
	}
	return 0
}

// isToken reports whether a value is a bearer token, a JSON Web Token or a provider's key, and certainly no plain text.
func isToken(value string) bool {
	const bearer = "bearer"
	if len(value) > len(bearer)+1 && strings.EqualFold(value[:len(bearer)], bearer) &&
		strings.IndexByte(" \t:", value[len(bearer)]) >= 0 {
		return true
	}
	if length := keyLength(value); length > 0 && length == len(value) {
		return true
	}
	return strings.HasPrefix(value, "eyJ") && strings.Count(value, ".") >= 2 && !strings.ContainsAny(value, " \t,;")
}
