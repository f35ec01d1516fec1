package store_test

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/view"
)

// key is what tells events apart.
type key struct{ source, id string }

// sent is an event as it is sent: a key and a payload.
type sent struct {
	key
	payload string
}

func numbered(n int) string { return fmt.Sprintf(`{"n":%d}`, n) }

// hexHash is the hash of a payload that is in canonical form.
func hexHash(payload string) string {
	hash := sha256.Sum256([]byte(payload))
	return hex.EncodeToString(hash[:])
}

func events(batch []sent) []event.Event {
	all := make([]event.Event, len(batch))
	for i, s := range batch {
		all[i] = webhook(s.id, s.payload)
		all[i].Source = s.source
	}
	return all
}

// When a row of the queue is due. What is later does not come by itself while
// a test runs.
const (
	never = "never"
	now   = "now"
	later = "later"
)

// known is what the model knows of an event, its row in the queue, and its trail.
type known struct {
	payload  string
	seen     int
	evidence map[string]*evidence // by payload

	status    string
	attempts  int
	deferrals int  // in a row
	old       bool // the row of them is so long that it is deferred no more
	token     int64
	due       string
	since     int // the step at which it fell due

	trail []string
}

type evidence struct {
	seen     int
	accepted string // event_id of the event made of it
}

// at is a step of the trail.
func (e *known) at(actions ...string) { e.trail = append(e.trail, actions...) }

// lent is a lease that a claim handed out, and what its delivery came to: the
// one result that its worker goes on to report.
type lent struct {
	job     event.Job
	result  *event.Settlement
	counted bool
}

// GoString is how rapid shows it.
func (l *lent) GoString() string {
	return fmt.Sprintf("lease %d of %s of %s", l.job.Lease, l.job.ID, l.job.Source)
}

// model is what Spine promises of storing and of the queue, in Go: each action
// is done to the database and to the model, which then must agree. All goes by
// one connection; what many do at once is TestModelTogether's.
type model struct {
	d      *database
	step   int
	events map[key]*known
	leases []*lent // newest first: rapid draws more from the beginning
}

// TestModel takes longer with -rapid.checks and -rapid.steps. It is not parallel:
// their number is rapid's for all tests of the binary.
func TestModel(t *testing.T) {
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		require.NoError(t, checks.Value.Set("40"))
		defer func() { require.NoError(t, checks.Value.Set(checks.DefValue)) }()
	}
	d := newDatabase(t, 1)
	rapid.Check(t, func(rt *rapid.T) {
		d.run(emptySQL)
		m := &model{d: d, events: map[key]*known{}}
		rt.Repeat(map[string]func(*rapid.T){
			"":                 m.compare,
			"ingest":           m.ingest,
			"ingest evidence":  m.ingestEvidence,
			"accept":           m.accept,
			"claim":            m.claim,
			"ingest and claim": m.ingestAndClaim,
			"settle":           m.settle,
			"renew":            m.renew,
			"give back":        m.giveBack,
			"replay":           m.replay,
			"replay dead":      m.replayDead,
			"make due":         m.makeDue,
			"make old":         m.makeOld,
			"set by hand":      m.setByHand,
		})
		require.Empty(rt, d.rows(broken))
		require.Equal(rt, strconv.Itoa(len(m.events)), d.value("select distinct checked from spine.verify()"))
	})
}

const emptySQL = "truncate spine.events, spine.conflicts, spine.processing_state, spine.audit_trail"

// compare holds the tables against the model.
func (m *model) compare(t *rapid.T) {
	m.step++
	want := make([]string, 0, len(m.events))
	for k, e := range m.events {
		var others []string
		for payload, o := range e.evidence {
			others = append(others, fmt.Sprintf("%s %d %s", payload, o.seen, o.accepted))
		}
		slices.Sort(others)
		want = append(
			want,
			fmt.Sprintf(
				"%s|%s|%s|%d|%s|%s|%d|%d|%d|%s|%t|%s",
				k.source,
				k.id,
				e.payload,
				e.seen,
				strings.Join(others, ", "),
				e.status,
				e.attempts,
				e.deferrals,
				e.token,
				e.due,
				e.status == "completed",
				strings.Join(e.trail, " "),
			),
		)
	}
	slices.Sort(want)
	got := m.d.rows(`select e.source, e.event_id, e.payload, e.seen_count,
			(select string_agg(
				format('%s %s %s', c.payload, c.seen_count, c.accepted_as), ', ' order by c.payload::text collate "C")
				from spine.conflicts c
				where c.event = e.id),
			p.status, p.attempt_count, coalesce(p.deferrals, 0), p.lease_token,
			case
				when p.next_attempt_at <= clock_timestamp() then 'now'
				when p.next_attempt_at > clock_timestamp() then 'later'
				else 'never' end,
			(p.completed_at is not null)::text,
			(select string_agg(a.action::text, ' ' order by a.id) from spine.audit_trail a where a.event = e.id)
		from spine.events e left join spine.processing_state p on p.event = e.id`)
	slices.Sort(got)
	require.Equal(
		t,
		want,
		got,
		"source, id, payload, seen, other payloads, status, attempts, deferrals, token, due, completed, trail",
	)
}

// draw draws one of the events that are stored.
func (m *model) draw(t *rapid.T) (key, *known) {
	if len(m.events) == 0 {
		t.Skip("nothing is stored")
	}
	k := rapid.SampledFrom(slices.SortedFunc(maps.Keys(m.events), func(a, b key) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.source, b.source))
	})).Draw(t, "event")
	return k, m.events[k]
}

// drawLeases draws up to four leases, held and lost ones.
func (m *model) drawLeases(t *rapid.T) []*lent {
	if len(m.leases) == 0 {
		t.Skip("nothing was claimed")
	}
	return rapid.SliceOfNDistinct(rapid.SampledFrom(m.leases), 1, 4, rapid.ID[*lent]).Draw(t, "leases")
}

// of is the event of a lease, and whether the lease is held.
func (m *model) of(l *lent) (e *known, held bool) {
	e = m.events[key{l.job.Source, l.job.ID}]
	return e, e.token == l.job.Lease
}

// become is a change of status. It ends a lease, if there was one.
func (m *model) become(e *known, status, due string) {
	e.status, e.due, e.since = status, due, m.step
	e.token++
}

var (
	delays = rapid.SampledFrom([]time.Duration{0, time.Hour})
	keys   = rapid.Custom(func(t *rapid.T) key {
		return key{
			rapid.SampledFrom([]string{event.DefaultSource, "github"}).Draw(t, "source"),
			rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "id"),
		}
	})
	// Of few keys and payloads, so that what is new, known and in conflict comes
	// together, and more than once.
	batches = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) sent {
		return sent{keys.Draw(t, "key"), numbered(rapid.IntRange(0, 2).Draw(t, "payload"))}
	}), 1, 5)
)

// dueIn says when that is due which is put off for d.
func dueIn(d time.Duration) string {
	if d == 0 {
		return now
	}
	return later
}

func (m *model) ingest(t *rapid.T) { m.send(t, batches.Draw(t, "batch")) }

// ingestEvidence sends more payloads under one id than are kept.
func (m *model) ingestEvidence(t *rapid.T) {
	k := keys.Draw(t, "key")
	batch := make([]sent, 12)
	for i := range batch {
		batch[i] = sent{k, numbered(i)}
	}
	m.send(t, batch)
}

func (m *model) send(t *rapid.T, batch []sent) {
	receipts, err := m.d.Ingest(t.Context(), events(batch))
	require.NoError(t, err)
	m.stored(t, batch, receipts)
}

func (m *model) stored(t *rapid.T, batch []sent, receipts []event.Receipt) {
	want := make([]event.Receipt, len(batch))
	for i, s := range batch {
		want[i].Outcome = m.store(s)
	}
	require.Equal(t, want, receipts)
}

func (m *model) store(s sent) event.Outcome {
	e := m.events[s.key]
	if e == nil {
		m.events[s.key] = &known{
			payload: s.payload, seen: 1, evidence: map[string]*evidence{}, status: "pending", due: now, since: m.step,
			trail: []string{"event_received", "event_inserted"},
		}
		return event.Accepted
	}
	e.seen++
	if s.payload == e.payload {
		e.at("event_received", "event_deduped")
		return event.Deduplicated
	}
	if o := e.evidence[s.payload]; o != nil {
		o.seen++
	} else if len(e.evidence) < 10 {
		e.evidence[s.payload] = &evidence{seen: 1}
	}
	e.at("event_received", "conflict_detected")
	return event.Conflict
}

// accept makes an event of another payload.
func (m *model) accept(t *rapid.T) {
	k, e := m.draw(t)
	if len(e.evidence) == 0 {
		t.Skip("no other payload came")
	}
	payload := rapid.SampledFrom(slices.Sorted(maps.Keys(e.evidence))).Draw(t, "payload")
	id, err := m.d.AcceptConflict(t.Context(), k.id, k.source, hexHash(payload), "the model")
	require.NoError(t, err)
	require.Equal(t, k.id+"~"+hexHash(payload)[:8], id)
	if o := e.evidence[payload]; o.accepted == "" {
		o.accepted = id
		m.store(sent{key{k.source, id}, payload})
		e.at("conflict_accepted")
	}
}

// drawClaim draws claims that lease for long or for no time at all, and that
// allow one attempt or three.
func drawClaim(t *rapid.T) event.Claim {
	return event.Claim{
		Destination: event.DefaultDestination, Worker: "worker-1",
		Limit:  rapid.IntRange(1, 8).Draw(t, "limit"),
		Lease:  delays.Draw(t, "lease"),
		Delays: rapid.SampledFrom([][]time.Duration{{}, {0, time.Hour}}).Draw(t, "delays"),
	}
}

func (m *model) claim(t *rapid.T) {
	c := drawClaim(t)
	claimed, err := m.d.Claim(t.Context(), c)
	require.NoError(t, err)
	m.claimed(t, c, claimed)
}

func (m *model) ingestAndClaim(t *rapid.T) {
	batch, c := batches.Draw(t, "batch"), drawClaim(t)
	receipts, claimed, err := m.d.IngestAndClaim(t.Context(), events(batch), c)
	require.NoError(t, err)
	m.stored(t, batch, receipts)
	m.claimed(t, c, claimed)
}

func (m *model) claimed(t *rapid.T, c event.Claim, claimed event.Claimed) {
	waiting := map[key]*known{}
	for k, e := range m.events {
		if e.due == now {
			waiting[k] = e
		}
	}
	require.Equal(t, min(c.Limit, len(waiting)), len(claimed.Jobs)+len(claimed.Expired), "as many as are due")
	require.Zero(t, claimed.NextDue)
	youngest := 0
	take := func(job event.Job) *known {
		k := key{job.Source, job.ID}
		require.Contains(t, waiting, k, "it is due, and taken once")
		e := waiting[k]
		delete(waiting, k)
		youngest = max(youngest, e.since)
		return e
	}
	for _, job := range claimed.Jobs {
		e := take(job)
		require.Contains(t, []string{"pending", "failed"}, e.status)
		m.become(e, "processing", dueIn(c.Lease))
		e.attempts++
		e.at("processing_attempt_started")
		require.Equal(
			t,
			[]any{c.Destination, e.token, e.attempts, e.payload},
			[]any{job.Destination, job.Lease, job.Attempt, string(job.Payload)},
		)
		m.leases = slices.Insert(m.leases, 0, &lent{job: job})
	}
	for _, job := range claimed.Expired {
		e := take(job)
		require.Equal(t, []any{"processing", e.attempts}, []any{e.status, job.Attempt})
		switch {
		case e.attempts > len(c.Delays):
			m.become(e, "dead", never)
			e.at("lease_expired", "processing_failed_permanently")
		case len(c.Delays) == 0: // a hand put it to processing before its first attempt
			m.become(e, "failed", now)
			e.at("lease_expired", "retry_scheduled")
		default:
			m.become(e, "failed", dueIn(c.Delays[max(e.attempts, 1)-1]))
			e.at("lease_expired", "retry_scheduled")
		}
	}
	for k, e := range waiting {
		require.GreaterOrEqual(t, e.since, youngest, "the oldest come first: %v", k)
	}
}

// settle reports results, of leases that are held, lost, or settled before, and
// some twice in one batch.
func (m *model) settle(t *rapid.T) {
	leases := m.drawLeases(t)
	leases = append(leases, leases[:rapid.IntRange(0, 1).Draw(t, "twice")]...)
	settlements, want := make([]event.Settlement, len(leases)), make([]event.LeaseState, len(leases))
	for i, l := range leases {
		if l.result == nil {
			l.result = rapid.SampledFrom([]*event.Settlement{
				new(completed(l.job)), new(failed(l.job, 0)), new(failed(l.job, time.Hour)), new(dead(l.job)),
				new(deferred(l.job, 0)), new(deferred(l.job, time.Hour)),
			}).Draw(t, "result")
		}
		settlements[i] = *l.result
		if e, held := m.of(l); held {
			l.counted = true
			m.settled(e, l.result)
		}
	}
	for i, l := range leases { // what counts is in the trail before what is late
		e, _ := m.of(l)
		if l.counted && l.result.Disposition == event.Deferred && e.status == "dead" && e.token == l.job.Lease+1 {
			want[i] = event.LeaseGivenUp
		}
		if !l.counted {
			want[i] = event.LeaseLost
			e.at("lease_lost")
		}
	}
	holds, err := m.d.Settle(t.Context(), settlements)
	require.NoError(t, err)
	require.Equal(t, want, holds)
}

func (m *model) settled(e *known, s *event.Settlement) {
	deferrals, old := e.deferrals, e.old
	e.deferrals, e.old = 0, false
	switch s.Disposition {
	case event.Completed:
		m.become(e, "completed", never)
		e.at("processing_succeeded")
	case event.Failed:
		m.become(e, "failed", dueIn(s.Delay))
		e.at("processing_attempt_failed", "retry_scheduled")
	case event.Deferred:
		if old {
			m.become(e, "dead", never)
			e.at("processing_attempt_failed", "processing_failed_permanently")
			return
		}
		m.become(e, "failed", dueIn(s.Delay))
		e.attempts, e.deferrals = max(e.attempts-1, 0), deferrals+1
		e.at("delivery_deferred")
	case event.Dead:
		m.become(e, "dead", never)
		e.at("processing_attempt_failed", "processing_failed_permanently")
	}
}

func jobs(leases []*lent) []event.Job {
	all := make([]event.Job, len(leases))
	for i, l := range leases {
		all[i] = l.job
	}
	return all
}

func (m *model) renew(t *rapid.T) {
	leases, lease := m.drawLeases(t), delays.Draw(t, "lease")
	want := make([]event.LeaseState, len(leases))
	for i, l := range leases {
		want[i] = event.LeaseLost
		if e, held := m.of(l); held {
			want[i] = event.LeaseHeld
			e.due, e.since = dueIn(lease), m.step
		}
	}
	holds, err := m.d.Renew(t.Context(), jobs(leases), lease)
	require.NoError(t, err)
	require.Equal(t, want, holds)
}

func (m *model) giveBack(t *rapid.T) {
	leases := m.drawLeases(t)
	for _, l := range leases {
		if e, held := m.of(l); held {
			e.attempts--
			m.become(e, "failed", now)
			if e.attempts == 0 {
				e.status = "pending"
			}
			e.at("lease_returned")
		}
	}
	require.NoError(t, m.d.GiveBack(t.Context(), jobs(leases)))
}

func (m *model) replayed(e *known) {
	m.become(e, "pending", now)
	e.attempts, e.deferrals, e.old = 0, 0, false
	e.at("event_replayed")
}

func (m *model) replay(t *rapid.T) {
	k, e := m.draw(t)
	var want int64
	if e.status != "pending" && e.status != "processing" {
		want = 1
		m.replayed(e)
	}
	n, err := m.d.Replay(t.Context(), k.id, k.source, "", "the model")
	require.NoError(t, err)
	require.Equal(t, want, n)
}

func (m *model) replayDead(t *rapid.T) {
	var filter store.DeadFilter
	filter.Source = rapid.SampledFrom([]string{"", "github"}).Draw(t, "source")
	var want int64
	for k, e := range m.events {
		if e.status == "dead" && (filter.Source == "" || filter.Source == k.source) {
			want++
			m.replayed(e)
		}
	}
	n, err := m.d.ReplayDead(t.Context(), filter, 0, func(int64) {})
	require.NoError(t, err)
	require.Equal(t, want, n)
}

// makeDue lets time pass for one row: a retry falls due, a lease runs out.
func (m *model) makeDue(t *rapid.T) {
	k, e := m.draw(t)
	m.d.run(`
		update spine.processing_state
		set next_attempt_at = clock_timestamp()
		where source = $1 and event_id = $2 and next_attempt_at is not null`, k.source, k.id)
	if e.due != never {
		e.due, e.since = now, m.step
	}
}

// makeOld lets 72 hours pass since the first attempt that did not reach the destination.
func (m *model) makeOld(t *rapid.T) {
	k, e := m.draw(t)
	m.d.run(`
		update spine.processing_state
		set created_at = created_at - interval '72 h', deferred_since = deferred_since - interval '72 h'
		where source = $1 and event_id = $2`, k.source, k.id)
	e.old = e.deferrals > 0
}

// setByHand sets a status as one does in psql.
func (m *model) setByHand(t *rapid.T) {
	k, e := m.draw(t)
	status := rapid.SampledFrom([]string{"pending", "processing", "failed", "completed", "dead"}).Draw(t, "status")
	m.d.run("update spine.processing_state set status = $3 where source = $1 and event_id = $2", k.source, k.id, status)
	if status == e.status {
		return
	}
	m.become(e, status, now)
	e.deferrals, e.old = 0, false
	if status == "completed" || status == "dead" {
		e.due = never
	}
	e.at("status_changed")
}

// work is what one connection did, and what it was told.
type work struct {
	sent     []sent
	outcomes []event.Outcome
	settled  []event.Settlement
	holds    []event.LeaseState
}

// crew is several connections at work on the same few events. They share their
// leases, so that each also reports the results of others, and old ones.
type crew struct {
	d     *database
	mutex sync.Mutex
	jobs  []event.Job // all that were ever claimed
}

// TestModelTogether does what TestModel does from several connections at once.
// Nobody knows in which order, so that the model is of what holds in any.
// SPINE_TEST_SEED makes the same scripts again, if not the same order.
func TestModelTogether(t *testing.T) {
	const rounds, conns, steps = 8, 5, 40
	seed := uint64(time.Now().UnixNano())
	if given := os.Getenv("SPINE_TEST_SEED"); given != "" {
		var err error
		seed, err = strconv.ParseUint(given, 10, 64)
		require.NoError(t, err, "SPINE_TEST_SEED")
	}
	t.Logf("SPINE_TEST_SEED=%d", seed)
	d := newDatabase(t, conns)
	for round := range rounds {
		d.run(emptySQL)
		c := &crew{d: d}
		all, errs := together(conns, func(i int) (w work, err error) {
			random := rand.New(rand.NewPCG(seed, uint64(round*conns+i))) //nolint:gosec // scripts of a test
			for range steps {
				if err := c.act(random, &w); err != nil {
					return w, err
				}
			}
			return w, nil
		})
		requireNoErrors(t, errs)
		c.drain()
		c.checkStored(all)
		c.checkQueue(all)
		require.Empty(t, d.rows(broken))
	}
}

// act does one step of a script.
func (c *crew) act(random *rand.Rand, w *work) error {
	ctx := c.d.t.Context()
	k := key{event.DefaultSource, string("abcd"[random.IntN(4)])}
	switch random.IntN(10) {
	case 0, 1:
		batch := make([]sent, 1+random.IntN(4))
		for i := range batch {
			batch[i] = sent{key{k.source, string("abcd"[random.IntN(4)])}, numbered(random.IntN(3))}
		}
		receipts, err := c.d.persistently(events(batch)...)
		if err != nil {
			return err
		}
		w.sent = append(w.sent, batch...)
		for _, r := range receipts {
			w.outcomes = append(w.outcomes, r.Outcome)
		}
	case 2, 3, 4:
		claim := ask(1 + random.IntN(3))
		claim.Lease = time.Duration(random.IntN(2)) * time.Hour
		claim.Delays = make([]time.Duration, random.IntN(4))
		claimed, err := c.d.Claim(ctx, claim)
		if err != nil {
			return err
		}
		c.mutex.Lock()
		c.jobs = append(c.jobs, claimed.Jobs...)
		c.mutex.Unlock()
	case 5, 6, 7:
		var settlements []event.Settlement
		for _, job := range c.pick(random) {
			settlements = append(settlements, resultOf(job))
		}
		holds, err := c.d.Settle(ctx, settlements)
		if err != nil {
			return err
		}
		w.settled, w.holds = append(w.settled, settlements...), append(w.holds, holds...)
	case 8:
		if random.IntN(2) == 0 {
			return c.d.GiveBack(ctx, c.pick(random))
		}
		_, err := c.d.Renew(ctx, c.pick(random), time.Duration(random.IntN(2))*time.Hour)
		return err
	case 9:
		if random.IntN(4) == 0 {
			_, err := c.d.ReplayDead(ctx, store.DeadFilter{}, 0, func(int64) {})
			return err
		}
		_, err := c.d.Replay(ctx, k.id, k.source, "", "the model")
		var unknown *view.NotStoredError
		if !errors.As(err, &unknown) {
			return err
		}
	}
	return nil
}

// pick picks jobs, mostly those that were claimed last.
func (c *crew) pick(random *rand.Rand) (picked []event.Job) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for back := random.IntN(3); back < len(c.jobs) && len(picked) < 3; back += 1 + random.IntN(4) {
		picked = append(picked, c.jobs[len(c.jobs)-1-back])
	}
	return picked
}

// resultOf is the one result of a job, whoever reports it.
func resultOf(job event.Job) event.Settlement {
	switch job.Lease % 4 {
	case 0:
		return completed(job)
	case 1:
		return failed(job, 0)
	case 2:
		return deferred(job, 0)
	default:
		return dead(job)
	}
}

// drain brings all to its end.
func (c *crew) drain() {
	for c.d.value("select count(*) from spine.processing_state where status not in ('completed', 'dead')") != "0" {
		c.d.due()
		claimed := c.d.look(100)
		c.jobs = append(c.jobs, claimed.Jobs...)
		for _, job := range claimed.Jobs {
			require.Equal(c.d.t, []event.LeaseState{event.LeaseHeld}, c.d.settle(completed(job)))
		}
	}
}

// checkStored: of what was sent under one id, one was told that it is new, and
// its payload stays; each of the others was told whether it is the same.
func (c *crew) checkStored(all []work) {
	told := map[string]int{}
	for _, w := range all {
		for i, s := range w.sent {
			told[fmt.Sprintf("%s|%s|%s", s.id, s.payload, w.outcomes[i])]++
		}
	}
	var want []string
	for what, n := range told {
		want = append(want, fmt.Sprintf("%s|%d", what, n))
	}
	require.ElementsMatch(c.d.t, want, c.d.rows(`with known as (
			select e.*, e.seen_count - 1
				- coalesce((select sum(c.seen_count) from spine.conflicts c where c.event = e.id), 0) as again
			from spine.events e
		)
		select event_id, payload::text, 'accepted', 1 from known
		union all select event_id, payload::text, 'deduplicated', again from known where again <> 0
		union all select event_id, payload::text, 'conflict', seen_count from spine.conflicts`))
}

// checkQueue: no lease was handed out twice, each claim is an attempt, and what
// a settle answered is what the trail says of its lease.
func (c *crew) checkQueue(all []work) {
	name := func(job event.Job) string { return fmt.Sprintf("%s|%d", job.ID, job.Lease) }
	claims := map[string]int{}
	leases := map[string]bool{}
	for _, job := range c.jobs {
		claims[job.ID]++
		require.False(c.d.t, leases[name(job)], "%s was handed out twice", name(job))
		leases[name(job)] = true
	}
	var want []string
	for id, n := range claims {
		want = append(want, fmt.Sprintf("%s|%d|t", id, n))
	}
	require.ElementsMatch(c.d.t, want, c.d.rows(`select p.event_id, count(*), p.attempt_count <= count(*)
		from spine.processing_state p
		join spine.audit_trail a on a.event = p.event and a.action = 'processing_attempt_started'
		group by p.event, p.destination`))
	results := map[string]string{}
	for _, line := range c.d.rows(`
		select event_id, details ->> 'lease', action
		from spine.audit_trail
		where action in ('processing_succeeded', 'processing_attempt_failed', 'delivery_deferred')`) {
		at := strings.LastIndex(line, "|")
		require.Empty(c.d.t, results[line[:at]], "%s was settled twice", line)
		results[line[:at]] = line[at+1:]
	}
	for _, w := range all {
		for i, s := range w.settled {
			switch w.holds[i] {
			case event.LeaseHeld:
				action := "processing_attempt_failed"
				switch s.Disposition { //nolint:exhaustive // the others have failed
				case event.Completed:
					action = "processing_succeeded"
				case event.Deferred:
					action = "delivery_deferred"
				}
				require.Equal(c.d.t, action, results[name(s.Job)], "%s counts", name(s.Job))
			case event.LeaseGivenUp:
				require.Equal(c.d.t, "processing_attempt_failed", results[name(s.Job)], "%s counts", name(s.Job))
			case event.LeaseLost:
				require.Empty(c.d.t, results[name(s.Job)], "%s is lost", name(s.Job))
			case event.LeaseLocked: // nothing was decided
			}
		}
	}
}
