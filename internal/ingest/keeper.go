package ingest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
)

// RejectedStore keeps rejected requests, those of each source within its budget.
type RejectedStore interface {
	// KeepRejected keeps requests. again says that some of them may be kept already: an earlier call with them ended
	// with an error.
	KeepRejected(
		ctx context.Context, requests []event.RejectedRequest, budgets map[string]event.Budget, again bool,
	) error
}

// Limits of the Keeper. They make a flood of requests cheap: what is written does not grow with what is sent. The audit
// log has the sums of all requests.
const (
	// keptFirst requests of a source and cause are kept in each hour that begins with one. Beyond them a sample is.
	keptFirst  = 100
	keptPeriod = time.Hour
	// keptFirstOurs is keptFirst of requests that came while their source was disabled, closed or broken. Their sender
	// did nothing wrong, and may not send them again. Where the source can verify, only verified ones are among them.
	keptFirstOurs = 1000

	keptBeginningHeaders = 4 << 10 // bytes of headers that are kept of a request that is not kept as a whole
	keptText             = 2 << 10 // bytes of other texts of a request

	// Limits on what waits for the database, of one class. A source takes no more of them than it leaves free: alone it
	// has half, of two each has a third. A flood at one source therefore leaves room to all others.
	keptWaiting  = 1000    // requests
	keptBytes    = 8 << 20 // bytes of their bodies, headers and texts
	keptInterval = 250 * time.Millisecond
	keptPatience = 5 * time.Second // for one call to the database
	keptAtOnce   = 100             // requests of one call, whose words the database looks for
)

// Rates of the Keeper, in requests and in bytes that the database writes.
var (
	sampledOfKind = allowance{perSecond: 1, burst: 1}    // requests beyond keptFirst, of one source and cause
	sampledOfAll  = allowance{perSecond: 10, burst: 100} // of all sources
	// Of a request that does not fit, only the beginning is kept.
	bytesOfKind = allowance{perSecond: 75_000, burst: 1 << 20}
	bytesOfAll  = allowance{perSecond: 125_000, burst: 2 << 20}
)

// The words by which a request is found, as spine.rejected_words() notes them.
const (
	mostWords   = 40
	leastWord   = 4   // bytes of one, with what stands between two
	wordWritten = 130 // bytes that the database writes for one
)

// Keeper keeps rejected requests, so that an operator finds them, and can replay those rejected by mistake. It never
// delays an answer: a request beyond its limits is counted and not kept.
type Keeper struct {
	store   RejectedStore
	log     zerolog.Logger
	metrics *Metrics

	atOnce   int            // requests of the next call: fewer after one that took too long, or was rejected
	stored   int            // requests, since the start
	slowAt   time.Time      // when a request last took too long alone
	slow     map[string]int // stored, when a request took too long alone; by its time, address and target
	doubtful int            // so many of those that wait, the first ones, may be kept already, after an error

	mu      sync.Mutex
	waiting []event.RejectedRequest
	budgets map[string]event.Budget
	kinds   map[keeperKey]*keptKind
	pots    [classes]pot
}

// keeperKey is bounded: sources that exist, and the causes of this package.
type keeperKey struct {
	source, cause string
	class         int
}

// keptKind is what was kept of a source, cause and class.
type keptKind struct {
	since   time.Time // when the period began
	count   int       // requests kept in it
	sampled purse
	bytes   purse
}

// pot is what requests of one class share. Each class has its own, so that a flood of one leaves room for the other.
type pot struct {
	holding
	sources map[string]holding // by name, of those that hold something
	sampled purse
	bytes   purse
}

// holding is what waits for the database or is being stored.
type holding struct {
	rows int   // requests
	held int64 // bytes of their bodies, headers and texts
}

func (h holding) plus(rows int, held int64) holding { return holding{h.rows + rows, h.held + held} }

// hold adds requests and bytes to what a source holds. Negative ones take off.
func (p *pot) hold(source string, rows int, held int64) {
	if p.sources == nil {
		p.sources = map[string]holding{}
	}
	p.holding = p.plus(rows, held)
	if p.sources[source] = p.sources[source].plus(rows, held); p.sources[source] == (holding{}) {
		delete(p.sources, source)
	}
}

// allowance is a rate at which something may be spent.
type allowance struct{ perSecond, burst float64 }

// purse holds what is left of an allowance. The zero value is full.
type purse struct {
	spent float64 // beyond what the allowance has given back since
	at    time.Time
}

// has reports whether n may be spent now. More than the burst may be spent from a full purse, which then stays in debt
// for longer.
func (p *purse) has(a allowance, now time.Time, n float64) bool {
	if since := now.Sub(p.at).Seconds(); since > 0 {
		p.spent = max(0, p.spent-since*a.perSecond)
	}
	p.at = now
	return p.spent == 0 || p.spent+n <= a.burst
}

// spendAnyway spends n in any case. What is owed is at most the burst, so that it is paid back within the time of one.
func (p *purse) spendAnyway(a allowance, n float64) { p.spent = max(p.spent, min(p.spent+n, a.burst)) }

// NewKeeper returns a Keeper; Run makes it work.
func NewKeeper(store RejectedStore, log zerolog.Logger, metrics *Metrics) *Keeper {
	return &Keeper{
		store: store, log: log, metrics: metrics,
		budgets: map[string]event.Budget{}, kinds: map[keeperKey]*keptKind{}, atOnce: keptAtOnce,
		slow: map[string]int{},
	}
}

// keep hands in a rejected request. It copies what it keeps only a part of, so that the caller can free the rest.
func (k *Keeper) keep(a *arrival, rej *rejection) {
	if a.policy.Kept.Rows <= 0 || !k.admit(a, rej) {
		k.metrics.unkept.Inc()
		return
	}
	// Outside of the lock, since redacting may take a while.
	kept := event.RejectedRequest{
		Source: a.name, At: event.Timestamp{Time: a.request.At},
		Cause: rej.cause, Status: rej.status, Detail: cutText(rej.longDetail()),
		Remote: a.remote, Method: cutText(a.request.Method), Target: a.request.URL.EscapedPath(), Verified: a.verified,
		Headers: []byte("{}"), Body: a.request.Wire,
	}
	if a.redactor != nil { // or nobody knows which of the headers hold secrets
		kept.Target, kept.Headers = a.redactor.RedactTarget(a.request.URL), a.redactor.Redact(a.request.Header)
		kept.Method = a.redactor.RedactMethod(kept.Method)
	}
	if a.bodyState != bodyWhole {
		announced := max(a.announced, int64(len(kept.Body)))
		kept.BodyBytes = &announced
	}
	class := &k.pots[classOf(rej.cause, a.verified)]
	k.mu.Lock()
	size := heldBytes(kept)
	fits := k.spendBytes(a, rej, class, size)
	if fits {
		class.hold(a.name, 0, size)
	}
	k.mu.Unlock()
	if !fits {
		if kept.BodyBytes == nil && len(kept.Body) > keptBeginning {
			whole := int64(len(kept.Body))
			kept.BodyBytes = &whole
		}
		kept.Body = kept.Body[:min(len(kept.Body), keptBeginning)]
		if len(kept.Headers) > keptBeginningHeaders {
			kept.Headers = []byte("{}")
		}
	}
	kept.Target = cutText(kept.Target)
	if cap(kept.Body) > len(kept.Body)+len(kept.Body)/8 {
		kept.Body = bytes.Clone(kept.Body)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.waiting = append(k.waiting, kept)
	if fits {
		class.hold(a.name, 0, -size) // as it was before its target was cut
	} else {
		k.spendAnyway(a, rej, class, heldBytes(kept))
	}
	class.hold(a.name, 0, heldBytes(kept))
	k.budgets[a.name] = a.policy.Kept
}

// heldBytes is how many bytes of memory a request takes while it waits for the database.
func heldBytes(r event.RejectedRequest) int64 {
	return int64(len(r.Body) + len(r.Headers) + len(r.Target) + len(r.Detail))
}

// admit reports whether a request is kept, and counts it then. It is counted among those that wait, too.
func (k *Keeper) admit(a *arrival, rej *rejection) bool {
	now := time.Now()
	of := classOf(rej.cause, a.verified)
	class := &k.pots[of]
	k.mu.Lock()
	defer k.mu.Unlock()
	if class.sources[a.name].rows >= keptWaiting-class.rows {
		return false
	}
	kind := k.kind(a, rej)
	if now.Sub(kind.since) >= keptPeriod {
		kind.since, kind.count = now, 0
	}
	first := keptFirst
	if of != theirs {
		first = keptFirstOurs
	}
	if kind.count >= first {
		if !kind.sampled.has(sampledOfKind, now, 1) || !class.sampled.has(sampledOfAll, now, 1) {
			return false
		}
		kind.sampled.spent++
		class.sampled.spent++
	}
	kind.count++
	class.hold(a.name, 1, 0)
	return true
}

func (k *Keeper) kind(a *arrival, rej *rejection) *keptKind {
	key := keeperKey{a.name, rej.cause, classOf(rej.cause, a.verified)}
	kind := k.kinds[key]
	if kind == nil {
		kind = &keptKind{since: time.Now()}
		k.kinds[key] = kind
	}
	return kind
}

// spendBytes reports whether a request may be kept as a whole, and spends its bytes then.
func (k *Keeper) spendBytes(a *arrival, rej *rejection, class *pot, size int64) bool {
	now, n := time.Now(), bytesWritten(size)
	kind := k.kind(a, rej)
	// Both are asked, since each gives back what time has paid.
	fitsKind, fitsAll := kind.bytes.has(bytesOfKind, now, n), class.bytes.has(bytesOfAll, now, n)
	if class.sources[a.name].held+size > keptBytes-class.held || size > a.policy.Kept.Bytes || !fitsKind || !fitsAll {
		return false
	}
	kind.bytes.spent += n
	class.bytes.spent += n
	return true
}

// spendAnyway spends the bytes of a request of which only the beginning is kept, also where there are none left.
func (k *Keeper) spendAnyway(a *arrival, rej *rejection, class *pot, size int64) {
	n := bytesWritten(size)
	k.kind(a, rej).bytes.spendAnyway(bytesOfKind, n)
	class.bytes.spendAnyway(bytesOfAll, n)
}

// bytesWritten is about what the database writes for a request of so many bytes.
func bytesWritten(size int64) float64 {
	return float64(size + min(size/leastWord*wordWritten, mostWords*wordWritten))
}

// cutText returns the beginning of a long text. The store mends a character that is cut in two.
func cutText(text string) string { return text[:min(len(text), keptText)] }

// Run stores rejected requests until ctx ends, and then those that are left.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(keptInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			for k.flush(ctx) {
			}
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			for k.flush(last) {
			}
			k.mu.Lock()
			n := len(k.waiting)
			k.mu.Unlock()
			if n > 0 {
				k.log.Warn().Int("requests", n).Msg("rejected requests were not kept, since this process stops")
				k.metrics.unkept.Add(float64(n))
			}
			return nil
		}
	}
}

// flush stores the first of the requests that wait, and reports whether it did. If that fails they wait on. They then
// still count towards the limits, so in a long outage the newest requests are not kept. Where it took too long, or the
// database rejects one of them, fewer are stored at once, down to one. One that takes too long alone waits behind all
// others, and is not kept when that happens again.
func (k *Keeper) flush(ctx context.Context) bool {
	k.mu.Lock()
	n := min(len(k.waiting), k.atOnce)
	if len(k.waiting) == 1 && len(k.slow) > 0 && time.Since(k.slowAt) < time.Minute {
		n = 0 // it is the one that took too long
	}
	requests, budgets := k.waiting[:n:n], map[string]event.Budget{}
	k.waiting = k.waiting[n:]
	for _, r := range requests {
		budgets[r.Source] = k.budgets[r.Source]
	}
	k.mu.Unlock()
	if n == 0 {
		return false
	}

	ctx, cancel := context.WithTimeout(ctx, keptPatience)
	defer cancel()
	err := k.store.KeepRejected(ctx, requests, budgets, k.doubtful > 0)
	k.mu.Lock()
	defer k.mu.Unlock()
	invalid := errors.Is(err, event.ErrInvalidData)
	tookTooLong := errors.Is(err, context.DeadlineExceeded)
	if tookTooLong && n == 1 {
		// One that took too long alone, and once more while others were stored meanwhile, costs too much.
		id := requests[0].At.String() + requests[0].Remote + requests[0].Target
		since, slow := k.slow[id]
		k.slow[id], k.slowAt = k.stored, time.Now()
		invalid = slow && k.stored > since
	}
	if err == nil || invalid && n == 1 { // then every further try would fail too
		for _, r := range requests {
			k.pots[classOf(r.Cause, r.Verified)].hold(r.Source, -1, -heldBytes(r))
		}
		k.doubtful = max(0, k.doubtful-n)
		k.atOnce = min(2*k.atOnce, keptAtOnce)
		if err == nil {
			k.stored += n
		}
		if len(k.waiting) == 0 {
			k.waiting, k.budgets, k.slow = nil, map[string]event.Budget{}, map[string]int{}
		}
		if err != nil {
			k.log.Error().Err(err).Int("requests", n).Msg("rejected requests cannot be kept")
			k.metrics.unkept.Add(float64(n))
		}
		return true
	}
	k.log.Warn().Err(err).Int("requests", n).Msg("keeping rejected requests failed, trying again later")
	if tookTooLong || invalid {
		k.atOnce = max(1, n/2)
	}
	if tookTooLong && n == 1 {
		k.waiting = append(k.waiting, requests...)
		k.doubtful = len(k.waiting)
	} else {
		k.waiting = append(requests, k.waiting...)
		k.doubtful = max(k.doubtful, n)
	}
	return false
}

// Classes of rejected requests. spine.keep_rejected() knows them too.
const (
	theirs       = iota // their senders' fault, or not sent by the source as far as it can tell
	oursUnknown         // the source took none, and nobody can tell who sent it
	oursVerified        // the source took none, and sent it
	classes
)

// classOf returns the class of a request by why it was rejected, and by whether its source sent it: nil where nobody
// can tell.
func classOf(cause string, verified *bool) int {
	switch {
	case !isStrayCause(cause):
		return theirs
	case verified == nil:
		return oursUnknown
	case *verified:
		return oursVerified
	}
	return theirs
}

// isStrayCause reports whether a cause says that the source took no requests.
func isStrayCause(cause string) bool {
	return slices.Contains([]string{"source_disabled", "source_broken", "source_closed"}, cause)
}
