package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/respond"
	"github.com/webhookspine/spine/internal/secret"
)

// GuardConfig says who may pass a Guard. Tokens win over Open, and Open wins over Local. With none of the three nobody
// passes.
type GuardConfig struct {
	Tokens     []secret.Value // ADMIN_TOKEN: the holder of one may do everything
	ReadTokens []secret.Value // ADMIN_READ_TOKEN: the holder of one may read; of use only beside Tokens
	Open       bool           // ADMIN_AUTH=none: lets everyone pass
	Names      []string       // ADMIN_NAMES: host names under which browsers reach it where it is open
	// Local lets requests of this machine pass. It is for a listener that no one else reaches, and on which nothing but
	// the administration is served: no trace in a request tells that a proxy on this machine has not sent it.
	Local bool

	// Client is the address of a request's client. Nil stands for the peer.
	Client func(*http.Request) string
	// Rejected gets every rejection before it is answered, which may wait for it. It may be nil. causes are bounded.
	Rejected func(ctx context.Context, cause string, status int)
}

// RejectionCauses are all causes of rejections, in the log, in metrics and in the audit log.
func RejectionCauses() []string {
	return []string{tokenMissing, tokenWrong, readToken, notLocal, hostName, crossOrigin}
}

const (
	tokenMissing = "admin_token_missing"
	tokenWrong   = "admin_token_wrong"
	readToken    = "admin_read_token" // it would have changed something
	notLocal     = "admin_not_local"  // it needs a token
	hostName     = "admin_host_name"  // a browser under a name that any page may have
	crossOrigin  = "admin_cross_origin"
)

// guard rejects requests for what only the operator may see.
type guard struct {
	config     GuardConfig
	log        zerolog.Logger
	tokens     [][sha256.Size]byte
	readTokens [][sha256.Size]byte
	traces     secret.Traces // of all tokens
	sameOrigin *http.CrossOriginProtection
}

// Guard returns a middleware for what only the operator may see.
//
// With tokens it asks for one, as bearer (RFC 6750) or as the password of HTTP Basic (RFC 7617) under any user name,
// and answers 401 to other requests. A request with a token for reading that may change something gets 403.
//
// Local, it answers 403 unless the peer's address and the Host header are loopback. So a page in a browser cannot reach
// it by a name of its own (DNS rebinding).
//
// Open, it answers everyone. It answers 403 to a browser under a name that is neither listed nor localhost nor an IP
// address: a page's own name may lead here, and the page is then of the same origin.
//
// However it is configured, it answers 403 where a browser sends a request for a page of another origin, unless the
// method only reads. Requests of other clients pass: they carry neither Sec-Fetch-Site nor Origin.
func Guard(c GuardConfig, log zerolog.Logger) mux.MiddlewareFunc {
	// A flood of rejections is not a flood of log lines.
	g := &guard{
		config: c, log: log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Second}),
		sameOrigin: http.NewCrossOriginProtection(),
		traces:     secret.NewTraces(slices.Concat(c.Tokens, c.ReadTokens)),
	}
	for _, token := range c.Tokens {
		g.tokens = append(g.tokens, sha256.Sum256([]byte(token.Reveal())))
	}
	for _, token := range c.ReadTokens {
		g.readTokens = append(g.readTokens, sha256.Sum256([]byte(token.Reveal())))
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			respond.Secure(w.Header())
			client := r.RemoteAddr
			if c.Client != nil {
				client = c.Client(r)
			} else if host, _, err := net.SplitHostPort(client); err == nil {
				client = host
			}
			seen := identity{client: client}
			// A part of a token in the place of the name is a secret. So is a name without a password: curl -u TOKEN:
			if user, password, ok := r.BasicAuth(); ok && password != "" {
				seen.user = user
				if g.isToken(user) || g.traces.In(user[:min(len(user), maxLookedAt)]) {
					seen.user = secret.Shown
				}
			}
			r = r.WithContext(context.WithValue(r.Context(), identityKey{}, seen))
			if cause, problem := g.judge(w.Header(), r); cause != "" {
				g.reject(w, r, cause, problem)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// judge returns why a request is rejected; cause is empty where it passes. It may set headers of the answer.
func (g *guard) judge(header http.Header, r *http.Request) (cause string, problem respond.Problem) {
	if len(g.tokens) > 0 {
		cause, problem = g.judgeToken(header, r)
	} else {
		cause, problem = g.judgeOrigin(r)
	}
	if cause == "" && g.sameOrigin.Check(r) != nil {
		return crossOrigin, respond.Problem{
			Status: http.StatusForbidden,
			Detail: "A page of another origin sent this. " +
				"Only Spine's own page, and clients that are not browsers, may change something.",
		}
	}
	return cause, problem
}

// judgeToken asks for a token.
func (g *guard) judgeToken(header http.Header, r *http.Request) (cause string, problem respond.Problem) {
	given := givenToken(r)
	switch {
	case isOneOf(given, g.tokens):
		return "", problem
	case isOneOf(given, g.readTokens) && !mayChange(r):
		return "", problem
	case isOneOf(given, g.readTokens):
		return readToken, respond.Problem{
			Status: http.StatusForbidden,
			Detail: "This token may only read. Use the admin token to change something.",
		}
	}
	header.Add("WWW-Authenticate", `Basic realm="spine", charset="UTF-8"`)
	header.Add("WWW-Authenticate", `Bearer realm="spine"`)
	cause = tokenWrong
	if given == "" {
		cause = tokenMissing
	}
	return cause, respond.Problem{
		Status: http.StatusUnauthorized,
		Detail: "The admin token is missing or wrong. " +
			"Send it as bearer, or as the password of HTTP Basic with any user name.",
	}
}

// judgeOrigin asks where a request comes from, since there is no token to ask for.
func (g *guard) judgeOrigin(r *http.Request) (cause string, problem respond.Problem) {
	switch {
	case g.config.Open && fromBrowser(r) && !g.isOwnName(r.Host):
		return hostName, respond.Problem{
			Status: http.StatusForbidden,
			Detail: "Without an admin token Spine answers a browser " +
				"only under an IP address or localhost (against DNS rebinding). " +
				"Set ADMIN_TOKEN or ADMIN_NAMES to use a name.",
		}
	case g.config.Open:
		return "", problem
	case !g.config.Local:
		return notLocal, respond.Problem{
			Status: http.StatusForbidden,
			Detail: "Others than this machine reach this address. " +
				"Set ADMIN_TOKEN to ask for a token, or ADMIN_AUTH=none to answer everyone.",
		}
	case !local(r):
		return notLocal, respond.Problem{
			Status: http.StatusForbidden,
			Detail: "Without an admin token Spine answers only this machine, " +
				"under localhost or a loopback address (against DNS rebinding). " +
				"Set ADMIN_TOKEN to ask for a token, or ADMIN_AUTH=none to answer everyone.",
		}
	}
	return "", problem
}

// reject tells of a rejection and answers it.
func (g *guard) reject(w http.ResponseWriter, r *http.Request, cause string, problem respond.Problem) {
	path := r.URL.Path
	if g.traces.In(path) {
		path = secret.Shown
	}
	g.log.Warn().
		Str("cause", cause).
		Str("path", path).
		Str("remote", clientOf(r)).
		Msg("request rejected")
	if g.config.Rejected != nil {
		g.config.Rejected(r.Context(), cause, problem.Status)
	}
	respond.Reject(w, problem)
}

// mayChange reports whether a request's method may change something (RFC 9110, 9.2.1).
func mayChange(r *http.Request) bool {
	return r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodOptions
}

// fromBrowser reports whether a browser sent a request. All browsers send Origin with one that changes something. With
// one that reads, to a name without TLS, they send neither Origin nor Sec-Fetch-Site. They all say Mozilla, and the
// page cannot change that.
func fromBrowser(r *http.Request) bool {
	return len(r.Header.Values("Origin")) > 0 || len(r.Header.Values("Sec-Fetch-Site")) > 0 ||
		strings.HasPrefix(r.UserAgent(), "Mozilla/")
}

// identity is who sends a request, as the guard has found it.
type identity struct {
	client string // the address
	user   string // the name of HTTP Basic; empty where it may be a token
}

// identityKey is the key of a request's identity in its context.
type identityKey struct{}

// clientOf is the client's address, as the guard has found it.
func clientOf(r *http.Request) string {
	if seen, ok := r.Context().Value(identityKey{}).(identity); ok {
		return seen.client
	}
	return r.RemoteAddr
}

// isToken reports whether a text is a token, of whatever rights.
func (g *guard) isToken(text string) bool {
	return isOneOf(text, g.tokens) || isOneOf(text, g.readTokens)
}

// caller says who asks, for the audit log: the client's address, and the user name of HTTP Basic as far as the guard
// has let it pass. The client may claim any name, so it is quoted.
func caller(r *http.Request) string {
	from := clientOf(r)
	if seen, _ := r.Context().Value(identityKey{}).(identity); seen.user != "" {
		user := seen.user
		if runes := []rune(user); len(runes) > maxUser {
			user = string(runes[:maxUser]) + "…"
		}
		from += " as " + strconv.QuoteToGraphic(user)
	}
	return from
}

const (
	maxUser     = 60   // characters of a user name that go into the audit log
	maxLookedAt = 1000 // bytes of it in which a token is looked for, more than those characters can have
)

// givenToken is the token that a request carries; empty where there is none, or more than one.
func givenToken(r *http.Request) string {
	if len(r.Header.Values("Authorization")) != 1 {
		return ""
	}
	if scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(rest)
	}
	_, password, _ := r.BasicAuth()
	return password
}

// isOneOf reports whether a token has one of the hashes. All hashes have one length, so the comparison tells nothing
// about the tokens' lengths.
func isOneOf(given string, tokens [][sha256.Size]byte) bool {
	hash := sha256.Sum256([]byte(given))
	equal := 0
	for _, token := range tokens {
		equal |= subtle.ConstantTimeCompare(hash[:], token[:])
	}
	return equal == 1
}

// local reports whether a request was sent on this machine, to a name of this machine.
func local(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && peer.Addr().Unmap().IsLoopback() && loopbackName(r.Host)
}

// loopbackName reports whether a Host header is localhost or a loopback address, with any port.
func loopbackName(host string) bool {
	if strings.EqualFold(hostname(host), "localhost") {
		return true
	}
	address, err := netip.ParseAddr(hostname(host))
	return err == nil && address.Unmap().IsLoopback()
}

// isOwnName reports whether a Host header is one that no page of another can have: localhost, an IP address, or a
// listed name.
func (g *guard) isOwnName(host string) bool {
	return loopbackName(host) || isAddress(host) ||
		slices.ContainsFunc(g.config.Names, func(name string) bool { return strings.EqualFold(name, hostname(host)) })
}

// isAddress reports whether a Host header is an IP address, with any port.
func isAddress(host string) bool {
	_, err := netip.ParseAddr(hostname(host))
	return err == nil
}

// hostname is a Host header without its port, and without the brackets of an address. A header that is no name or
// address stays as it is.
func hostname(host string) string {
	name, port, err := net.SplitHostPort(host)
	if err == nil {
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return host
		}
		return name
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if address, ok := strings.CutSuffix(inner, "]"); ok {
			return address
		}
	}
	return host
}
