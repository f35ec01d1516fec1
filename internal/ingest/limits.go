package ingest

import (
	"context"
	"math"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

// maxAddresses limits how many client addresses have a rate of their own; they take about 10 MB. Beyond it the address
// that has been silent for longest is forgotten and begins anew.
const maxAddresses = 65_536

// limits holds the rates of sources and client addresses.
type limits struct {
	everywhere Rate     // of one client address, over all sources
	sources    sync.Map // by name, of *rate.Limiter
	addresses  *lru.Cache[addressKey, *rate.Limiter]
}

// addressKey is a client address at a source, or at all sources where source is empty.
type addressKey struct{ source, address string }

func newLimits(everywhere Rate) *limits {
	addresses, err := lru.New[addressKey, *rate.Limiter](maxAddresses)
	if err != nil {
		panic(err) // the size is positive
	}
	return &limits{everywhere: everywhere, addresses: addresses}
}

// chargeAddress charges a request to its client's address.
func (l *limits) chargeAddress(a *arrival) *rejection {
	for _, limit := range [2]struct {
		rate Rate
		key  addressKey
	}{{l.everywhere, addressKey{address: a.remote}}, {a.policy.Address, addressKey{a.name, a.remote}}} {
		if limit.rate.PerSecond <= 0 {
			continue
		}
		limit.key.address = network(limit.key.address)
		limiter, ok := l.addresses.Get(limit.key)
		if !ok {
			// Two requests that come at once make one limiter each; one of the two stays.
			limiter = limit.rate.limiter()
			l.addresses.Add(limit.key, limiter)
		}
		if wait := limit.rate.charge(limiter); wait > 0 {
			return &rejection{
				status: http.StatusTooManyRequests, cause: "address_rate", after: wait,
				detail: "This address sends requests faster than its rate limit. Send the event again later.",
			}
		}
	}
	return nil
}

// chargeSource charges a verified request to its source.
func (l *limits) chargeSource(a *arrival) *rejection {
	limit := a.policy.Verified
	if limit.PerSecond <= 0 {
		return nil
	}
	limiter, ok := l.sources.Load(a.name)
	if !ok {
		limiter, _ = l.sources.LoadOrStore(a.name, limit.limiter())
	}
	if wait := limit.charge(limiter.(*rate.Limiter)); wait > 0 { //nolint:forcetypeassert // it holds nothing else
		return &rejection{
			status: http.StatusTooManyRequests, cause: "source_rate", after: wait,
			detail: "This source sends events faster than its rate limit. Send the event again later.",
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

// charge takes a token, or says how long to wait for one. A limit that was changed meanwhile applies from now on, to
// the tokens that are left.
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

// network returns what counts as one address. For IPv6 that is the /64 network, since one client usually has all of it.
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

// ClientAddress returns the address that a request comes from. That is the peer's, unless the peer is a trusted proxy:
// then it is the last address in X-Forwarded-For that is no trusted proxy. A proxy only appends to that header, so
// anyone can write the earlier addresses.
func ClientAddress(r *http.Request, trusted []netip.Prefix) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr // of no network
	}
	client := peer.Addr().Unmap()
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
				break // nothing before it can be believed: the proxy that wrote it is the last known address
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

// Rejections are answered at a bounded rate, so that a flood of them leaves the processor to verified requests. Beyond
// the rate a rejection waits for its turn. Both the wait and the number of those that wait are bounded, since each
// costs memory.
const (
	brakePerSecond = 1000
	brakeBurst     = 500
	brakePause     = time.Second // at most
	brakeWaiting   = 4000        // at once; the others are answered without a wait
)

// Brake slows rejections down. All that a process rejects shares one.
type Brake struct {
	rate    *rate.Limiter
	waiting atomic.Int64
}

// NewBrake returns a Brake that was not used yet.
func NewBrake() *Brake { return &Brake{rate: rate.NewLimiter(brakePerSecond, brakeBurst)} }

// Wait waits for a rejection's turn, or until ctx ends.
func (b *Brake) Wait(ctx context.Context) {
	if b.waiting.Add(1) <= brakeWaiting {
		turn := b.rate.Reserve()
		pause := turn.Delay()
		if pause > brakePause {
			turn.Cancel() // or the rate would be in debt for long after a flood
			pause = brakePause
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
