package api

import (
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
)

// GuardConfig says who may pass a Guard. With neither Token nor Open set, only requests from this machine pass.
type GuardConfig struct {
	Token     string // ADMIN_TOKEN: its holder may do everything; it wins over Open
	ReadToken string // ADMIN_READ_TOKEN: its holder may read; empty where there is none
	Open      bool   // ADMIN_AUTH=none: lets everyone pass
}

// Guard returns a middleware for what only the operator may see.
//
// With a token it asks for it, as bearer (RFC 6750) or as the password of HTTP Basic (RFC 7617) under any user name.
// It answers 401 to other requests, and 403 to a request with the token for reading that may change something.
//
// With neither token nor Open it answers 403, unless the peer's address and the Host header are loopback and the
// headers show no proxy. So a page in a browser cannot reach it by a name of its own (DNS rebinding), nor a stranger
// through a proxy on this machine.
//
// Open, it lets everyone read. It answers 403 where a browser would change something under another name than localhost
// or an IP address: a page's own name may lead here, and the page is then of the same origin.
func Guard(c GuardConfig, log zerolog.Logger) mux.MiddlewareFunc {
	// A flood of rejections is not a flood of log lines.
	log = log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Second})
	token, readToken := sha256.Sum256([]byte(c.Token)), sha256.Sum256([]byte(c.ReadToken))
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			respond.Secure(w.Header())
			reads := c.Token != "" && c.ReadToken != "" && carriesToken(r, readToken)
			switch {
			case reads && mayChange(r):
				noteRejected(log, r, "read_token")
				respond.Reject(w, respond.Problem{
					Status: http.StatusForbidden,
					Detail: "This token may only read. Use the admin token to change something.",
				})
			case c.Token != "" && !reads && !carriesToken(r, token):
				noteRejected(log, r, "admin_token")
				w.Header().Add("WWW-Authenticate", `Basic realm="spine", charset="UTF-8"`)
				w.Header().Add("WWW-Authenticate", `Bearer realm="spine"`)
				respond.Reject(w, respond.Problem{
					Status: http.StatusUnauthorized,
					Detail: "The admin token is missing or wrong. " +
						"Send it as bearer, or as the password of HTTP Basic with any user name.",
				})
			case c.Token == "" && !c.Open && !local(r):
				noteRejected(log, r, "not_local")
				respond.Reject(w, respond.Problem{
					Status: http.StatusForbidden,
					Detail: "Without an admin token Spine answers only this machine, " +
						"under localhost or a loopback address, and not through a proxy. " +
						"Set ADMIN_TOKEN to ask for a token, or ADMIN_AUTH=none to answer everyone.",
				})
			case c.Token == "" && c.Open && mayChange(r) && fromBrowser(r) && !loopbackName(r.Host) && !isAddress(r.Host):
				noteRejected(log, r, "host_name")
				respond.Reject(w, respond.Problem{
					Status: http.StatusForbidden,
					Detail: "Without an admin token a browser may change something " +
						"only under an IP address or localhost (against DNS rebinding). " +
						"Set ADMIN_TOKEN to use a name.",
				})
			default:
				next.ServeHTTP(w, r)
			}
		})
	}
}

// noteRejected logs a request that a guard rejects.
func noteRejected(log zerolog.Logger, r *http.Request, cause string) {
	log.Warn().Str("cause", cause).Str("path", r.URL.Path).Str("remote", r.RemoteAddr).Msg("request rejected")
}

// mayChange reports whether a request's method may change something (RFC 9110, 9.2.1).
func mayChange(r *http.Request) bool {
	return r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodOptions
}

// fromBrowser reports whether a browser sent a request that changes something. All browsers send Origin with it. They
// do not send Sec-Fetch-Site to a name without TLS.
func fromBrowser(r *http.Request) bool {
	return len(r.Header.Values("Origin")) > 0 || len(r.Header.Values("Sec-Fetch-Site")) > 0
}

// SameOrigin returns a middleware that answers 403 where a browser sends a request for a page of another origin, unless
// the method only reads. Requests of other clients pass: they carry neither Sec-Fetch-Site nor Origin.
func SameOrigin(log zerolog.Logger) mux.MiddlewareFunc {
	log = log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Second})
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		noteRejected(log, r, "cross_origin")
		respond.Reject(w, respond.Problem{
			Status: http.StatusForbidden,
			Detail: "A page of another origin sent this. " +
				"Only Spine's own page, and clients that are not browsers, may change something.",
		})
	}))
	return protection.Handler
}

// caller says who asks, for the audit log: the address, and the user name of HTTP Basic. The client may claim any name,
// so it is quoted.
func caller(r *http.Request) string {
	from := r.RemoteAddr
	if host, _, err := net.SplitHostPort(from); err == nil {
		from = host
	}
	if user, _, ok := r.BasicAuth(); ok && user != "" {
		if runes := []rune(user); len(runes) > maxUser {
			user = string(runes[:maxUser]) + "…"
		}
		from += " as " + strconv.QuoteToGraphic(user)
	}
	return from
}

// maxUser is how many characters of a user name go into the audit log.
const maxUser = 60

// carriesToken reports whether a request carries the token with this hash. All hashes have one length, so the
// comparison tells nothing about the token's length.
func carriesToken(r *http.Request, token [sha256.Size]byte) bool {
	if len(r.Header.Values("Authorization")) != 1 {
		return false
	}
	given := ""
	if scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "Bearer") {
		given = strings.TrimSpace(rest)
	} else if _, password, ok := r.BasicAuth(); ok {
		given = password
	}
	hash := sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(hash[:], token[:]) == 1
}

// local reports whether a request was sent on this machine, to this machine, without a proxy in between.
func local(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && peer.Addr().Unmap().IsLoopback() && loopbackName(r.Host) && !forwarded(r.Header)
}

// loopbackName reports whether a Host header is localhost or a loopback address, with any port.
func loopbackName(host string) bool {
	if strings.EqualFold(hostname(host), "localhost") {
		return true
	}
	address, err := netip.ParseAddr(hostname(host))
	return err == nil && address.Unmap().IsLoopback()
}

// isAddress reports whether a Host header is an IP address, with any port.
func isAddress(host string) bool {
	_, err := netip.ParseAddr(hostname(host))
	return err == nil
}

// hostname is a Host header without its port, and without the brackets of an address.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}

// proxyHeaders are the headers that proxies add, besides those with a prefix of their own.
var proxyHeaders = []string{
	"forwarded",
	"via",
	"x-real-ip",
	"x-client-ip",
	"x-cluster-client-ip",
	"true-client-ip",
	"fastly-client-ip",
	"fly-client-ip",
	"x-envoy-external-address",
	"x-proxyuser-ip",
	"x-azure-clientip",
	"cdn-loop",
}

// forwarded reports whether a request's header shows that it came through a proxy.
func forwarded(header http.Header) bool {
	for name := range header {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-forwarded") || strings.HasPrefix(name, "x-original-") ||
			strings.HasPrefix(name, "cf-") || slices.Contains(proxyHeaders, name) {
			return true
		}
	}
	return false
}
