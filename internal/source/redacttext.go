package source

import (
	"encoding/base64"
	"strings"

	"github.com/webhookspine/spine/internal/secret"
)

// maxNested is how often one text may be encoded in another, as in ?next=https%3A%2F%2Fh%2F%3Ftoken%3D. What is nested
// deeper is replaced as a whole.
const maxNested = 3

// redactText replaces the secrets in any text: an address, a query, JSON, a list of parameters, a sentence. header is
// the canonical name of the header that has the text. It is empty for an address.
//
// It reads a text as pairs of a name and a value, and as words. It decodes what is encoded. It replaces these:
//   - the value of a name that is one of secrets
//   - the user and password before a host
//   - a word that looks like a credential
//   - a part that holds a secret of the source
func (r *Redactor) redactText(text, header string, nested int) string {
	if header == "" || strings.ContainsAny(text, "&;?#=%\\") {
		text = r.redactParts(text, header, nested)
		if r.spreadsSecret(text, nested) {
			return redacted
		}
	}
	return r.redactPairs(text, header)
}

// spreadsSecret reports whether a text holds a secret of the source over several parts: the secret has separators.
func (r *Redactor) spreadsSecret(text string, nested int) bool {
	for ; nested >= 0; nested-- {
		if r.holdsSecret(text) {
			return true
		}
		plain := secret.Unescaped(text)
		if plain == text {
			return false
		}
		text = plain
	}
	return true
}

// redactParts replaces the parts of an address, or of a list of parameters, that hides names.
func (r *Redactor) redactParts(text, header string, nested int) string {
	var b strings.Builder
	for rest := text; rest != ""; {
		part, separator := rest, ""
		if end := strings.IndexAny(rest, "&;?#"); end >= 0 {
			part, separator, rest = rest[:end], rest[end:end+1], rest[end+1:]
		} else {
			rest = ""
		}
		name, value, _ := strings.Cut(part, "=")
		switch {
		case r.holdsSecret(name), value == "" && r.hides(part, header, nested), r.hides(name, header, nested):
			part = redacted
		case r.hides(value, header, nested):
			part = name + "=" + redacted
		case r.holdsSecret(part):
			part = redacted // the secret has an equals sign
		}
		b.WriteString(part)
		b.WriteString(separator)
	}
	return b.String()
}

// hides reports whether a part of a text is replaced as a whole: it is a credential or a secret, or is encoded and
// holds one.
func (r *Redactor) hides(text, header string, nested int) bool {
	if r.holdsSecret(text) || isCredential(text) ||
		strings.Contains(text, "+") && isCredential(strings.ReplaceAll(text, "+", " ")) {
		return true
	}
	// Each level is read once, so that a long text costs no more than its length times the levels.
	for plain, before := secret.Unescaped(text), text; plain != before; plain, before = secret.Unescaped(plain), plain {
		if nested--; nested < 0 || r.shows(plain, header) {
			return true
		}
	}
	return false
}

// shows reports whether there is a secret in a text as it stands.
func (r *Redactor) shows(text, header string) bool {
	if r.holdsSecret(text) || isCredential(text) || r.redactPairs(text, header) != text {
		return true
	}
	for part := range strings.FieldsFuncSeq(text, func(c rune) bool { return strings.ContainsRune("&;?#", c) }) {
		_, value, _ := strings.Cut(part, "=")
		if isCredential(part) || isCredential(value) || isCredential(strings.ReplaceAll(value, "+", " ")) {
			return true
		}
	}
	return false
}

// redactPairs replaces the values of names that say that they are secret, and what stands before a host and in words
// that look like a credential. It reads a text once, from its beginning to its end.
func (r *Redactor) redactPairs(text, header string) string {
	var b strings.Builder
	written := 0 // of text
	for i := 0; i < len(text); i++ {
		var start, end int // of what is replaced
		switch text[i] {
		case '=', ':':
			if namesSecretBefore(text[written:i], text[i:], header) {
				if start, end = valueAfter(text, i); strings.Trim(text[start:end], "=") == "" {
					end = start // it pads base64
				}
			}
		case '/':
			start, end = userAfter(text, i)
		case '@':
			start, end = userBefore(text, written, i)
		case 'b',
			'B',
			'e',
			'A',
			'd',
			'g',
			'h',
			'n',
			'p',
			'r',
			's',
			'w',
			'x',
			'y': // of bearer, basic, eyJ and keyPrefixes
			if i == 0 || strings.IndexByte(aroundNames+"/", text[i-1]) >= 0 {
				start, end = credentialWord(text, i)
			}
		}
		if start < end && start >= written {
			b.WriteString(text[written:start])
			b.WriteString(redacted)
			written, i = end, end-1
		}
	}
	if written == 0 {
		return text
	}
	b.WriteString(text[written:])
	return b.String()
}

const (
	// aroundNames are the characters around the names of pairs.
	aroundNames = " \t\r\n\"'`,;&?#={}()<>|\\:@"
	// quotes may stand between a name and what separates it from its value.
	quotes = "\"'`\\ \t"
)

// namesSecretBefore reports whether a pair is one of a secret: text ends with its name, and rest begins with what
// separates the name from its value.
func namesSecretBefore(text, rest, header string) bool {
	name := strings.TrimRight(text, quotes)
	isQuoted := len(name) < len(text) && strings.ContainsAny(text[len(name):], "\"'`\\")
	before := strings.LastIndexAny(name, aroundNames+"/")
	for before >= 0 && strings.HasPrefix(name[before:], `\u00`) { // a letter of the name, as JSON may write it
		before = strings.LastIndexAny(name[:before], aroundNames+"/")
	}
	name = name[before+1:]
	if name == "" || len(name) > maxPairName {
		return false
	}
	if rest[0] == ':' && !isQuoted && (strings.HasPrefix(rest, "://") ||
		strings.Contains(name, ".") && isPort(rest[1:]) || isBareName(name)) {
		return false // an address, or a word of a sentence
	}
	for range maxNested {
		plain := secret.Unescaped(name)
		if plain == name {
			break
		}
		name = plain
	}
	return isSecret(name) || isSignature(name) && (header == "" || !isSignature(header))
}

// maxPairName bounds the name of a pair, in bytes.
const maxPairName = 256

// isPort reports whether a text begins with the number of a port.
func isPort(text string) bool {
	digits := len(text) - len(strings.TrimLeft(text, "0123456789"))
	return digits > 0 && digits <= 5 && (digits == len(text) || !isNameByte(text[digits]))
}

func isNameByte(c byte) bool {
	return isDigit(c) || c|0x20 >= 'a' && c|0x20 <= 'z' || c == '_' || c == '-' || c == '.'
}

// valueAfter is where the value of a pair begins and ends, by the place of what separates it from its name. A quoted
// value ends with its quotes. Another one ends where the next pair begins: a separator may stand in the secret. A list
// or an object goes to the end of the text.
func valueAfter(text string, separator int) (start, end int) {
	start = separator + 1
	for start < len(text) && (text[start] == ' ' || text[start] == '\t') {
		start++
	}
	rest := text[start:]
	from := start
	for _, quote := range []string{`\"`, `"`, `'`, "`"} {
		if !strings.HasPrefix(rest, quote) {
			continue
		}
		inside := start + len(quote)
		length := quotedLength(text[inside:], quote)
		from = inside + length + len(quote)
		if from >= len(text) {
			return inside, min(inside+length, len(text))
		}
		if strings.IndexByte(aroundNames, text[from]) >= 0 {
			return inside, inside + length
		}
		break
	}
	if rest != "" && (rest[0] == '{' || rest[0] == '[') && !strings.HasPrefix(rest, redacted) {
		return start, len(text)
	}
	gap, isGap, isWord := -1, false, false // gap is where the separators before a word begin
	for p := from; p < len(text); p++ {
		switch c := text[p]; c {
		case '&', '\r', '\n':
			return start, p
		case ',', ';', '?', '#', ' ', '\t':
			if !isGap {
				gap = p
			}
			isGap, isWord = true, false
		case '"', '\'', '\\', '{', '[':
		case '=', ':':
			isPair := isWord && gap >= 0 && p+1 < len(text) && text[p+1] != '=' && text[p+1] != '&'
			if isPair && (c == '=' || c == text[separator]) {
				return start, gap
			}
			gap, isGap = -1, false
		default:
			isGap, isWord = false, true
		}
	}
	return start, len(text)
}

// quotedLength is the length of a text up to its closing quote, or to its end.
func quotedLength(text, quote string) int {
	for i := 0; i < len(text); i++ {
		switch {
		case strings.HasPrefix(text[i:], quote):
			return i
		case text[i] == '\\':
			i++
		}
	}
	return len(text)
}

// userAfter is where the user and the password of an address begin and end, by the place of its two slashes.
func userAfter(text string, slashes int) (start, end int) {
	if !strings.HasPrefix(text[slashes:], "//") {
		return 0, 0
	}
	start = slashes + len("//")
	host := text[start:]
	if end := strings.IndexAny(host, "/?#\\ \t\"'<>"); end >= 0 {
		host = host[:end]
	}
	return start, start + max(strings.LastIndexByte(host, '@'), 0)
}

// userBefore is where a user and a password before an at sign begin and end, without slashes before them.
func userBefore(text string, from, at int) (start, end int) {
	start = from + strings.LastIndexAny(text[from:at], " \t\r\n\"'`,;&?#={}()<>|\\/@") + 1
	user, password, hasPassword := strings.Cut(text[start:at], ":")
	if !hasPassword || user == "" && password == "" || at+1 == len(text) ||
		!isNameByte(text[at+1]) && text[at+1] != '[' {
		return 0, 0
	}
	switch strings.ToLower(user) {
	case "mailto", "acct", "sip", "sips", "xmpp":
		if !strings.Contains(password, ":") {
			return 0, 0 // no password, but an address of a person
		}
	}
	return start, at
}

// credentialWord is where a credential within a text begins and ends, if a word at this place is or announces one.
func credentialWord(text string, word int) (start, end int) {
	rest := text[word:]
	if strings.HasPrefix(rest, "eyJ") {
		length := len(rest)
		for i := range len(rest) {
			if !isNameByte(rest[i]) {
				length = i
				break
			}
		}
		if strings.Count(rest[:length], ".") < 2 {
			return 0, 0
		}
		return word, word + length
	}
	if length := keyLength(rest); length > 0 {
		return word, word + length
	}
	for _, scheme := range []string{"bearer", "basic"} {
		if len(rest) <= len(scheme) || !strings.EqualFold(rest[:len(scheme)], scheme) {
			continue
		}
		value := strings.TrimLeft(rest[len(scheme):], " \t:\"'\\")
		start = len(text) - len(value)
		if start == word+len(scheme) {
			continue // the word goes on
		}
		end := strings.IndexAny(value, " \t\r\n\"'`,;&<>\\")
		if scheme == "basic" { // what is no base64 is read once more, by the word in which it stands
			end = strings.IndexFunc(value, isNoBase64)
		}
		if end >= 0 {
			value = value[:end]
		}
		if scheme == "basic" && !isBasic(value) {
			continue
		}
		return start, start + len(value)
	}
	return 0, 0
}

func isNoBase64(c rune) bool {
	return !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=", c)
}

// isBasic reports whether a text is a user and a password as HTTP Basic encodes them.
func isBasic(text string) bool {
	plain, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
	return err == nil && strings.Contains(string(plain), ":")
}
