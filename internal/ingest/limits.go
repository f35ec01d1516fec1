package ingest

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

// maxAddresses is how many client addresses are told apart, some 10 MB of them.
// One that was not heard of for longest makes room and begins anew.
const maxAddresses = 65_536

// limits holds the rates of sources and client addresses.
type limits struct {
	sources   sync.Map // by name, of *rate.Limiter
	addresses *lru.Cache[addressKey, *rate.Limiter]
}

// addressKey is a client address at a source, or at all of them where source is
// empty.
type addressKey struct{ source, address string }

func newLimits() *limits {
	addresses, err := lru.New[addressKey, *rate.Limiter](maxAddresses)
	if err != nil {
		panic(err) // the size is positive
	}
	return &limits{addresses: addresses}
}

// address charges a request to its client's address.
func (l *limits) address(a *arrival, everywhere, here Rate) *refusal {
	for _, limit := range [2]struct {
		rate Rate
		key  addressKey
	}{{everywhere, addressKey{address: a.remote}}, {here, addressKey{a.name, a.remote}}} {
		if limit.rate.PerSecond <= 0 {
			continue
		}
		limit.key.address = network(limit.key.address)
		limiter, ok := l.addresses.Get(limit.key)
		if !ok {
			// Two that come at once begin with one limiter each; one of them stays.
			limiter = limit.rate.limiter()
			l.addresses.Add(limit.key, limiter)
		}
		if wait := limit.rate.charge(limiter); wait > 0 {
			return &refusal{
				status: http.StatusTooManyRequests, cause: "address_rate", after: wait,
				detail: "More requests come from this address than are taken. Send the event again later.",
			}
		}
	}
	return nil
}

// source charges a verified request to its source.
func (l *limits) source(a *arrival, limit Rate) *refusal {
	if limit.PerSecond <= 0 {
		return nil
	}
	limiter, ok := l.sources.Load(a.name)
	if !ok {
		limiter, _ = l.sources.LoadOrStore(a.name, limit.limiter())
	}
	if wait := limit.charge(limiter.(*rate.Limiter)); wait > 0 { //nolint:forcetypeassert // it holds nothing else
		return &refusal{
			status: http.StatusTooManyRequests, cause: "source_rate", after: wait,
			detail: "This source sends more than is taken from it. Send the event again later.",
		}
	}
	return nil
}

func (r Rate) limiter() *rate.Limiter { return rate.NewLimiter(rate.Limit(r.PerSecond), r.burst()) }

func (r Rate) burst() int {
	if r.Burst > 0 {
		return r.Burst
	}
	return int(min(math.Ceil(r.PerSecond), 1e9))
}

// charge takes a token, or says how long to wait for one. A limit that was
// changed meanwhile holds from now on, with the tokens that there are.
func (r Rate) charge(limiter *rate.Limiter) (wait time.Duration) {
	if limiter.Limit() != rate.Limit(r.PerSecond) {
		limiter.SetLimit(rate.Limit(r.PerSecond))
	}
	if limiter.Burst() != r.burst() {
		limiter.SetBurst(r.burst())
	}
	reservation := limiter.Reserve()
	if wait = reservation.Delay(); wait > 0 {
		reservation.Cancel()
	}
	return wait
}

// network is what counts as one address: of IPv6 a network of 64 bits, all of
// which one client has.
func network(address string) string {
	parsed, err := netip.ParseAddr(address)
	if err != nil || !parsed.Is6() {
		return address
	}
	prefix, err := parsed.WithZone("").Prefix(64)
	if err != nil {
		return address
	}
	return prefix.String()
}

// clientAddress is who sent a request: the peer, or where that is a trusted
// proxy, the last address in X-Forwarded-For that is not one. What proxies do
// not add to the end of that header could be from anyone.
func clientAddress(r *http.Request, trusted []netip.Prefix) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	peer, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	client := peer.Unmap()
	if len(trusted) == 0 || !within(client, trusted) {
		return client.String()
	}
	chain := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(chain) - 1; i >= 0; i-- {
		text := strings.TrimSpace(chain[i])
		next, err := netip.ParseAddr(text)
		if err != nil {
			if withPort, portErr := netip.ParseAddrPort(text); portErr == nil {
				next = withPort.Addr()
			} else {
				break // the proxy that wrote this is the last one that is known
			}
		}
		client = next.Unmap().WithZone("")
		if !within(client, trusted) {
			break
		}
	}
	return client.String()
}

func within(address netip.Addr, prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if p.Contains(address) {
			return true
		}
	}
	return false
}

// What is refused is answered at a bounded rate, so that a flood of it leaves the
// processor to those who may send. What is beyond the rate waits for its turn, but
// not for long, and only so many at once: waiting costs memory.
const (
	refusedPerSecond = 1000
	refusedBurst     = 500
	refusedPause     = time.Second // at most
	refusedWaiting   = 4000        // the others are answered at once
)

// brake slows refusals down.
type brake struct {
	rate    *rate.Limiter
	waiting atomic.Int64
}

func newBrake() *brake { return &brake{rate: rate.NewLimiter(refusedPerSecond, refusedBurst)} }

// hold waits for a refusal's turn, or until ctx ends.
func (b *brake) hold(ctx context.Context) {
	if b.waiting.Add(1) <= refusedWaiting {
		turn := b.rate.Reserve()
		pause := turn.Delay()
		if pause > refusedPause {
			turn.Cancel() // or the rate would be in debt for long after a flood
			pause = refusedPause
		}
		if pause > 0 {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	}
	b.waiting.Add(-1)
}

// errInFlight says that there is no room for more bytes now.
var errInFlight = errors.New("too many bytes in flight")

// holdStep is how many bytes a request takes of the room there is at a time.
const holdStep = 32 << 10

// hold makes room for n more bytes of a request, if there is any. It is not
// given on the word of a sender who has not sent them yet.
func (h *Handler) hold(a *arrival, n int64) bool {
	a.bytes += n
	if a.bytes <= a.held {
		return true
	}
	more := (a.bytes - a.held + holdStep - 1) / holdStep * holdStep
	if !h.inFlight.TryAcquire(more) {
		return false
	}
	a.held += more
	return true
}

// letGo gives back the room that a request's bytes have, and the bytes.
func (h *Handler) letGo(a *arrival) {
	h.inFlight.Release(a.held)
	a.held, a.request = 0, nil
}

// counted is a reader that asks for room before it hands out more bytes than it
// has room for.
type counted struct {
	io.Reader
	hold func(n int64) bool
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if n > 0 && !c.hold(int64(n)) {
		return 0, errInFlight
	}
	return n, err
}
