package service

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/caarlos0/env/v11"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/observe"
	"github.com/webhookspine/spine/internal/secret"
	"github.com/webhookspine/spine/internal/source"
	"github.com/webhookspine/spine/internal/store"
)

// These types are read by parsers of their own.
type (
	// LogLevel is the name of a level.
	LogLevel zerolog.Level
	// Address is HOST:PORT. HOST may be empty.
	Address string
	// HTTPURL is an absolute URL, http or https.
	HTTPURL string
	// DestinationURL is an HTTPURL, or "none".
	DestinationURL string
	// ProxyURL is the URL of a proxy, or its HOST:PORT. It may hold a password.
	ProxyURL string
	// PostgresURL is a connection string. It may hold a password.
	PostgresURL string
	// AdminAuth is empty, or "none".
	AdminAuth string
	// AdminNames are host names, separated by commas.
	AdminNames []string
	// AdminAddress is an Address, or "same" for that of LISTEN.
	AdminAddress string
	// Tokens are secrets, of which any one suffices.
	Tokens []secret.Value
	// DefaultSource is "open" or "closed".
	DefaultSource string
	// SecretPatterns are names of variables, in which * stands for any text.
	SecretPatterns []string
	// SecretDir is a folder.
	SecretDir string
	// TrustedProxies are networks and addresses, separated by commas.
	TrustedProxies []netip.Prefix
)

// parsers read the text of a setting by its type. Their errors say what the text must be, and never quote it.
func parsers() map[reflect.Type]env.ParserFunc {
	return map[reflect.Type]env.ParserFunc{
		reflect.TypeFor[time.Duration](): func(s string) (any, error) { return ParseDuration(s) },
		reflect.TypeFor[int]():           must("be a whole number", strconv.Atoi),
		reflect.TypeFor[int64](): must("be a whole number",
			func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }),
		reflect.TypeFor[float64](): must("be a number",
			func(s string) (float64, error) { return strconv.ParseFloat(s, 64) }),
		reflect.TypeFor[bool](): must("be true or false", strconv.ParseBool),
		reflect.TypeFor[LogLevel](): must(
			"be trace, debug, info, warn, error, fatal, panic or disabled",
			func(s string) (LogLevel, error) {
				level, err := zerolog.ParseLevel(s)
				return LogLevel(level), err
			},
		),
		reflect.TypeFor[observe.Format](): must("be auto, json or text", observe.ParseFormat),
		reflect.TypeFor[Address](): must(
			"be HOST:PORT, such as 127.0.0.1:8000 or :8000",
			func(s string) (Address, error) { return Address(s), checkAddress(s) },
		),
		reflect.TypeFor[AdminAddress](): must(
			"be HOST:PORT, such as 127.0.0.1:8003, or same",
			func(s string) (AdminAddress, error) {
				if s == sameAddress {
					return sameAddress, nil
				}
				return AdminAddress(s), checkAddress(s)
			},
		),
		reflect.TypeFor[Tokens](): must(
			"have 16 characters or more, as must each of several with commas between",
			parseTokens,
		),
		reflect.TypeFor[DefaultSource](): must("be open or closed", func(s string) (DefaultSource, error) {
			if s != "open" && s != "closed" {
				return "", errUnreadable
			}
			return DefaultSource(s), nil
		}),
		reflect.TypeFor[HTTPURL](): must("be an absolute http or https URL", func(s string) (HTTPURL, error) {
			return HTTPURL(s), checkHTTP(s)
		}),
		reflect.TypeFor[DestinationURL](): must(
			"be an absolute http or https URL, or none",
			func(s string) (DestinationURL, error) {
				if s == "none" {
					return "none", nil
				}
				return DestinationURL(s), checkHTTP(s)
			},
		),
		reflect.TypeFor[ProxyURL](): must(
			"be HOST:PORT, or a URL that begins with http://, https:// or socks5://",
			func(s string) (ProxyURL, error) {
				if !strings.Contains(s, "://") {
					s = "http://" + s
				}
				u, err := url.Parse(s)
				if err != nil {
					return "", err
				}
				if !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) || u.Hostname() == "" {
					return "", errUnreadable
				}
				return ProxyURL(s), nil
			},
		),
		reflect.TypeFor[PostgresURL](): func(s string) (any, error) {
			if _, err := pgconn.ParseConfig(s); err != nil {
				return nil, errors.New("must be a PostgreSQL connection string, such as " +
					"postgres://user:password@host:5432/database")
			}
			return PostgresURL(s), store.CheckURL(s)
		},
		reflect.TypeFor[secret.Value](): func(s string) (any, error) { return secret.New(s), nil },
		reflect.TypeFor[SecretPatterns](): func(s string) (any, error) {
			var patterns SecretPatterns
			for part := range strings.SplitSeq(s, ",") {
				part = strings.TrimSpace(part)
				if err := secret.CheckPattern(part); err != nil {
					return nil, err
				}
				patterns = append(patterns, part)
			}
			return patterns, nil
		},
		reflect.TypeFor[SecretDir](): func(s string) (any, error) { return SecretDir(s), secret.CheckDir(s) },
		reflect.TypeFor[TrustedProxies](): must("be networks or addresses, such as 10.0.0.0/8,192.0.2.1",
			parseNetworks),
		reflect.TypeFor[AdminNames](): must("be host names without a port, such as spine.example.com", parseNames),
		reflect.TypeFor[AdminAuth](): must("be none or unset", func(s string) (AdminAuth, error) {
			if s != "none" {
				return "", errUnreadable
			}
			return "none", nil
		}),
	}
}

// parseNames reads host names, separated by commas.
func parseNames(text string) (AdminNames, error) {
	var names AdminNames
	for name := range strings.SplitSeq(text, ",") {
		name = strings.TrimSpace(name)
		if name == "" || strings.ContainsFunc(name, func(r rune) bool {
			return r != '.' && r != '-' && r != '_' &&
				(r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r))
		}) {
			return nil, errUnreadable
		}
		names = append(names, name)
	}
	return names, nil
}

// sameAddress is the AdminAddress that stands for the address of LISTEN.
const sameAddress = "same"

// checkAddress checks HOST:PORT.
func checkAddress(text string) error {
	_, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	return err
}

// minToken is the fewest characters of a token. A random token of 16 letters and digits cannot be guessed.
const minToken = 16

// parseTokens reads tokens, separated by commas. White space around a token is not part of it: a variable that is
// filled from a file often ends in a line end, which no client can send.
func parseTokens(text string) (Tokens, error) {
	var tokens Tokens
	for token := range strings.SplitSeq(text, ",") {
		token = strings.TrimSpace(token)
		if utf8.RuneCountInString(token) < minToken || strings.ContainsFunc(token, unicode.IsControl) {
			return nil, errUnreadable
		}
		tokens = append(tokens, secret.New(token))
	}
	return tokens, nil
}

// parseNetworks reads networks and addresses, separated by commas.
func parseNetworks(text string) (TrustedProxies, error) {
	var networks TrustedProxies
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		network, err := netip.ParsePrefix(part)
		if err != nil {
			address, err := netip.ParseAddr(part)
			if err != nil {
				return nil, err
			}
			address = address.Unmap()
			network = netip.PrefixFrom(address, address.BitLen())
		}
		networks = append(networks, network.Masked())
	}
	return networks, nil
}

// Addresses may hold a password. A log or an error shows none of them by accident.

// String is what is shown of an address.
func (PostgresURL) String() string { return secret.Shown }

// String is what is shown of an address.
func (DestinationURL) String() string { return secret.Shown }

// String is what is shown of an address.
func (HTTPURL) String() string { return secret.Shown }

// Format writes String, whatever the verb.
func (u PostgresURL) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, u.String()) } // nobody to tell

// Format writes String, whatever the verb.
func (u DestinationURL) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, u.String()) } // nobody to tell

// Format writes String, whatever the verb.
func (u HTTPURL) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, u.String()) } // nobody to tell

// MarshalText returns String.
func (u PostgresURL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// MarshalText returns String.
func (u DestinationURL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// MarshalText returns String.
func (u HTTPURL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// errUnreadable is for parsers that are wrapped in must, which says what is wrong.
var errUnreadable = errors.New("unreadable")

// must wraps a parser so that its error is the phrase alone. The parser's own error may quote a secret.
func must[T any](phrase string, parse func(string) (T, error)) env.ParserFunc {
	return func(s string) (any, error) {
		v, err := parse(s)
		if err != nil {
			return nil, errors.New("must " + phrase)
		}
		return v, nil
	}
}

// ParseDuration reads a number of seconds (30, 0.5), Go's form (500ms), or a number of days of 24 hours each (30d). The
// settings of a source have the same form.
func ParseDuration(s string) (time.Duration, error) { return source.ParseDuration(s) }

// checkHTTP checks an absolute URL of http or https.
func checkHTTP(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return errUnreadable
	}
	return nil
}
