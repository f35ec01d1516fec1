package systemtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

// The record of what Spine was asked, what it promised and what reached the destination, and the check against what
// is stored. nemesis_test.go breaks things meanwhile.

// variants is how many payloads an event may be sent with: its own and another.
const variants = 2

// promised is what clients were answered about an event, by payload.
type promised struct {
	tries                            [variants]int // requests, whatever became of them
	accepted, deduplicated, conflict [variants]int // answers
}

func (p *promised) acknowledged() bool {
	return p.accepted != [variants]int{} || p.deduplicated != [variants]int{} || p.conflict != [variants]int{}
}

// silence is a request that was not answered.
type silence struct{ from, to time.Time }

// senders post new, known and conflicting events, and remember every answer.
type senders struct {
	run  string        // begins every event_id
	api  func() string // base address of an API, any
	http *http.Client

	acked   atomic.Int64 // answers that promise
	refused atomic.Int64 // all others

	mu       sync.Mutex
	events   []*promised     // by number
	strange  []string        // answers that are none
	acks     []time.Time     // some of them: the first of each 10 ms
	took     []time.Duration // of those that promise
	silences []silence       // requests that were not answered at all
	kinds    map[string]int  // of what was not acknowledged, how often
}

func (s *senders) id(n int) string { return s.run + "-" + strconv.Itoa(n) }

// number is the number of an event by its id, if it is one of these senders'.
func (s *senders) number(id string) (n int, ok bool) {
	n, err := strconv.Atoi(strings.TrimPrefix(id, s.run+"-"))
	return n, err == nil && n >= 0 && s.id(n) == id
}

// kind and time tell events apart beside their ids and payloads.
func (s *senders) kind(n int) string { return "kind." + strconv.Itoa(n%97) }

func (s *senders) time(n int) time.Time {
	return time.Date(2024, 1, 30, 12, 0, 0, 0, time.UTC).Add(time.Duration(n) * time.Second)
}

// body is a request.
func (s *senders) body(n, variant int) string {
	return fmt.Sprintf(
		`{"event_id":%q,"event_type":%q,"occurred_at":%q,"payload":%s}`,
		s.id(n),
		s.kind(n),
		s.time(n).Format(time.RFC3339),
		s.payload(n, variant),
	)
}

// payload is what an event is sent with: words of many kinds, of which each byte
// counts.
func (s *senders) payload(n, variant int) string {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s %d %d", s.run, n, variant)
	return fmt.Sprintf(`{"n": %d ,"variant":%d, "é\u00e9":"\ud83d\ude00 € Привет %x", "big":%d.10e2,"pad":"%s"}`,
		n, variant, h.Sum64(), h.Sum64(), strings.Repeat("x", int(h.Sum64()%500)))
}

// post sends an event once and records the answer.
func (s *senders) post(ctx context.Context, n, variant int) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s.mu.Lock()
	s.events[n].tries[variant]++
	s.mu.Unlock()
	began := time.Now()
	r, err := (&target{url: s.api(), http: s.http}).do(
		ctx,
		http.MethodPost,
		"/webhook",
		strings.NewReader(s.body(n, variant)),
	)
	at := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.events[n]
	switch {
	case err != nil:
		s.refused.Add(1)
		s.kinds["no answer"]++
		s.silences = append(s.silences, silence{began, at})
		return
	case r.code == http.StatusOK && r.status() == "accepted":
		e.accepted[variant]++
	case r.code == http.StatusOK && r.status() == "deduplicated":
		e.deduplicated[variant]++
	case r.code == http.StatusOK && r.status() == "conflict":
		e.conflict[variant]++
	default:
		s.refused.Add(1)
		s.kinds[strconv.Itoa(r.code)]++
		if r.code != http.StatusServiceUnavailable {
			s.strange = append(s.strange, fmt.Sprintf("%s was answered with %d: %s", s.id(n), r.code, r.body))
		} else if r.header.Get("Retry-After") == "" {
			s.strange = append(s.strange, s.id(n)+" was answered with 503 and no Retry-After")
		}
		return
	}
	s.acked.Add(1) // under the lock, as all that follows
	s.took = append(s.took, at.Sub(began))
	if len(s.acks) == 0 || at.Sub(s.acks[len(s.acks)-1]) >= 10*time.Millisecond {
		s.acks = append(s.acks, at)
	}
}

// send goes on posting until ctx ends. Of ten requests some eight are new. The others repeat one of the last hundred,
// every other time with another payload.
func (s *senders) send(ctx context.Context, random *rand.Rand, pause time.Duration) {
	for ctx.Err() == nil {
		began := time.Now()
		s.mu.Lock()
		n, variant := len(s.events), 0
		if n > 0 && random.IntN(10) < 2 {
			n = max(0, n-1-random.IntN(100))
			variant = random.IntN(variants)
		} else {
			s.events = append(s.events, &promised{})
		}
		s.mu.Unlock()
		s.post(context.WithoutCancel(ctx), n, variant)
		select {
		case <-time.After(pause - time.Since(began)):
		case <-ctx.Done():
		}
	}
}

// next makes a new event, and returns its number.
func (s *senders) next() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, &promised{})
	return len(s.events) - 1
}

// sendAt posts new events at a rate a second until ctx ends, even if Spine is slower. It returns when all are
// answered.
func (s *senders) sendAt(ctx context.Context, rate float64) {
	var running sync.WaitGroup
	defer running.Wait()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	began, sent := time.Now(), 0.0
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for due := rate * time.Since(began).Seconds(); sent < due; sent++ {
			n := s.next()
			running.Go(func() { s.post(context.WithoutCancel(ctx), n, 0) })
		}
	}
}

// answered is how many acknowledgements there have been.
func (s *senders) answered() int { return int(s.acked.Load()) }

// slowest is the quantile share of how long acknowledgements took, from the given one on.
func (s *senders) slowest(from int, share float64) time.Duration {
	s.mu.Lock()
	took := slices.Sorted(slices.Values(s.took[from:]))
	s.mu.Unlock()
	if len(took) == 0 {
		return 0
	}
	return took[min(int(share*float64(len(took))), len(took)-1)]
}

// firstAck is the time of the first acknowledgement after a moment.
func (s *senders) firstAck(after time.Time) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, _ := slices.BinarySearchFunc(s.acks, after, func(a, b time.Time) int { return a.Compare(b) })
	if i == len(s.acks) {
		return time.Time{}, false
	}
	return s.acks[i], true
}

// arrival is one delivery, as the destination saw it.
type arrival struct {
	at      time.Time
	attempt int
	variant int    // which payload it was, to the byte; -1 for none that was sent
	did     string // what the destination answered
}

// record is a destination that remembers every arrival, and may misbehave.
type record struct {
	url     string
	senders *senders

	mu      sync.Mutex
	random  *rand.Rand
	misdo   string  // what to do instead of answering
	share   float64 // of the deliveries, 0 to 1
	arrived map[int][]arrival
	foreign []string // what nobody sent
}

func newRecord(t *testing.T, s *senders, random *rand.Rand) *record {
	t.Helper()
	d := &record{senders: s, random: random, arrived: map[int][]arrival{}}
	server := httptest.NewServer(d)
	t.Cleanup(server.Close)
	d.url = server.URL
	return d
}

// Misbehaviours of a destination.
var misdeeds = []string{"hang", "reset", "500", "429", "410", "half a body"}

// misbehave makes a share of the deliveries fail, until it is called with none.
func (d *record) misbehave(how string, share float64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.misdo, d.share = how, share
}

func (d *record) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // cut by the sender
	}
	var sent struct {
		EventID    string    `json:"event_id"`
		EventType  string    `json:"event_type"`
		OccurredAt time.Time `json:"occurred_at"`
		Source     string
		Attempt    int
		Payload    json.RawMessage
	}
	err = json.Unmarshal(body, &sent)
	n, ours := d.senders.number(sent.EventID)
	ours = ours && sent.EventType == d.senders.kind(n) && sent.OccurredAt.Equal(d.senders.time(n)) &&
		sent.Source == event.DefaultSource &&
		r.Header.Get("Webhook-Id") == sent.EventID
	d.mu.Lock()
	if err != nil || !ours {
		d.foreign = append(d.foreign, string(body))
		d.mu.Unlock()
		return
	}
	a := arrival{at: time.Now(), attempt: sent.Attempt, variant: -1, did: "ok"}
	for v := range variants {
		// A JSON decoder may have read it on the way here, but must not have changed it.
		if bytes.Equal(sent.Payload, []byte(d.senders.payload(n, v))) {
			a.variant = v
		}
	}
	if d.misdo != "" && d.random.Float64() < d.share {
		a.did = d.misdo
	}
	d.arrived[n] = append(d.arrived[n], a)
	d.mu.Unlock()

	switch a.did {
	case "late":
		time.Sleep(300 * time.Millisecond)
		w.WriteHeader(http.StatusOK)
	case "ok":
		w.WriteHeader(http.StatusOK)
	case "hang":
		<-r.Context().Done()
	case "429":
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
	case "500", "410":
		status, _ := strconv.Atoi(a.did) // of the list above
		w.WriteHeader(status)
	case "reset", "half a body":
		conn, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return // cut by the sender
		}
		if a.did == "half a body" {
			_, _ = buffered.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"half\":")
			_ = buffered.Flush()
		} else if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
}

// stored is an event with its row, as the database has it.
type stored struct {
	EventID  string
	Type     string
	Occurred time.Time
	Payload  string
	Seen     int64
	Evidence []string // payloads kept as conflicts
	Status   string
	Attempts int
	Error    string
	// From its trail:
	Lost   []int // attempts whose lease ran out, or that failed as far as the worker knows
	Late   []int // of these, those whose answer did not come within the worker's limit
	Counts int   // results of lost leases, or of leases that had a result, that were counted
}

// check compares the promises with what is stored and what arrived, and returns every difference. budget is the most
// attempts that an event may have.
func check(t *testing.T, db *pgx.Conn, s *senders, d *record, done []fault, budget int) (differences []string) {
	t.Helper()
	differ := func(format string, values ...any) { differences = append(differences, fmt.Sprintf(format, values...)) }
	found, err := db.Query(t.Context(), `
		with trail as (
			select a.event, a.action,
				(a.details ->> 'attempt')::int as attempt,
				(a.details ->> 'lease')::bigint as lease,
				a.details ->> 'error' as error
			from spine.audit_trail a
			where a.action in (
				'lease_expired', 'lease_lost', 'processing_attempt_failed', 'processing_succeeded', 'lease_returned',
				'delivery_deferred')
		), twice as (
			select l.event, count(*) as n from (
				select t.event from trail t where t.action <> 'lease_lost' group by t.event, t.lease having count(*) > 1
			) l group by l.event
		), lost as (
			select t.event,
				array_agg(t.attempt) filter (
					where t.action in (
						'lease_expired', 'processing_attempt_failed', 'lease_returned', 'delivery_deferred')
				) as attempts,
				array_agg(t.attempt) filter (where t.error like 'timeout after %') as late
			from trail t
			group by t.event
		)
		select e.event_id, e.event_type, e.occurred_at, coalesce(e.payload::text, ''), e.seen_count,
			array(select c.payload::text from spine.conflicts c where c.event = e.id),
			coalesce(p.status, 'not queued'), coalesce(p.attempt_count, 0), coalesce(p.error_message, ''),
			coalesce(l.attempts, '{}'), coalesce(l.late, '{}'), coalesce(w.n, 0)
		from spine.events e
		left join spine.processing_state p on p.event = e.id
		left join lost l on l.event = e.id
		left join twice w on w.event = e.id`)
	require.NoError(t, err)
	all, err := pgx.CollectRows(found, pgx.RowToStructByPos[stored])
	require.NoError(t, err)

	s.mu.Lock()
	defer s.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	differences = append(differences, s.strange...)
	for _, body := range d.foreign {
		differ("what nobody sent was delivered: %s", body)
	}
	seen := make([]*stored, len(s.events))
	for i := range all {
		e := &all[i]
		n, ours := s.number(e.EventID)
		if !ours || n >= len(s.events) {
			differ("%s is stored, and nobody sent it", e.EventID)
			continue
		}
		if seen[n] != nil {
			differ("%s is stored twice", e.EventID)
		}
		seen[n] = e
	}
	for n, p := range s.events {
		e, id := seen[n], s.id(n)
		if e == nil {
			if p.acknowledged() {
				differ("%s was acknowledged, and is lost", id)
			}
			if len(d.arrived[n]) > 0 {
				differ("%s was delivered, and is not stored", id)
			}
			continue
		}
		if e.Type != s.kind(n) || !e.Occurred.Equal(s.time(n)) {
			differ("%s is stored with type %s and time %s", id, e.Type, e.Occurred)
		}
		variant := slices.Index([]string{s.payload(n, 0), s.payload(n, 1)}, e.Payload)
		if variant < 0 {
			differ("%s is stored with bytes that nobody sent: %s", id, e.Payload)
			continue
		}
		checkAnswers(differ, id, p, e, variant, s.payload(n, 1-variant), len(done) == 0 && s.refused.Load() == 0)
		checkDeliveries(differ, id, e, variant, d.arrived[n], done, budget)
	}
	for n := range d.arrived {
		if n >= len(s.events) {
			differ("%s was delivered, and nobody sent it", s.id(n))
		}
	}
	for _, silence := range s.silences {
		if !slices.ContainsFunc(done, func(f fault) bool { return f.silences(silence) }) {
			differ(
				"a request at %s was not answered within %s, and no fault explains it",
				silence.from.Format(time.StampMilli),
				silence.to.Sub(silence.from),
			)
		}
	}
	broken, err := db.Query(
		t.Context(),
		`select invariant || ' (' || violations || '): ' || examples::text
		from spine.verify('-infinity', _examples => 3)
		where violations > 0`,
	)
	require.NoError(t, err)
	lines, err := pgx.CollectRows(broken, pgx.RowTo[string])
	require.NoError(t, err)
	for _, line := range lines {
		differ("verify: %s", line)
	}
	return differences
}

// checkAnswers compares the answers about an event with what is stored. variant is the payload that is stored, and
// other the one that is not. calm says that nothing failed, so that nothing was tried twice.
func checkAnswers(
	differ func(string, ...any),
	id string,
	p *promised,
	e *stored,
	variant int,
	other string,
	calm bool,
) {
	answers, tries := 0, 0
	for v := range variants {
		answers += p.accepted[v] + p.deduplicated[v] + p.conflict[v]
		tries += p.tries[v]
	}
	if p.accepted[0]+p.accepted[1] > 1 {
		differ("%s was accepted %d times", id, p.accepted[0]+p.accepted[1])
	}
	if p.accepted[1-variant] > 0 || p.deduplicated[1-variant] > 0 {
		differ("%s was acknowledged with a payload that is not stored", id)
	}
	if p.conflict[variant] > 0 {
		differ("%s was called a conflict with itself", id)
	}
	if p.conflict[1-variant] > 0 && !slices.Contains(e.Evidence, other) {
		differ("%s has no evidence of a conflict that was acknowledged", id)
	}
	for _, evidence := range e.Evidence {
		if evidence != other || p.tries[1-variant] == 0 {
			differ("%s has evidence of a payload that was not sent: %s", id, evidence)
		}
	}
	if calm && (e.Seen != int64(tries) || p.accepted[variant] != 1) {
		differ(
			"%s was sent %d times, accepted %d times and is counted as seen %d times",
			id,
			tries,
			p.accepted[variant],
			e.Seen,
		)
	}
	// A request without an answer may have been stored, and Spine tries again after a lost answer.
	if e.Seen < int64(answers) {
		differ("%s was seen %d times, and acknowledged %d times", id, e.Seen, answers)
	}
}

// checkDeliveries compares what arrived with what is stored.
func checkDeliveries(
	differ func(string, ...any),
	id string,
	e *stored,
	variant int,
	arrived []arrival,
	done []fault,
	budget int,
) {
	if e.Counts > 0 {
		differ("%s has %d leases that ended more than once", id, e.Counts)
	}
	if e.Attempts > budget {
		differ("%s had %d attempts, of %d at most", id, e.Attempts, budget)
	}
	delivered := false
	for i, a := range arrived {
		if a.variant != variant {
			differ("%s was delivered with bytes that are not those stored", id)
		}
		if a.attempt < 1 || a.attempt > budget {
			differ("%s was delivered as attempt %d of %d at most", id, a.attempt, budget)
		}
		if (a.did == "ok" || a.did == "late" || a.did == "half a body") && a.attempt == e.Attempts {
			delivered = true
		}
		if i == 0 {
			continue
		}
		before := arrived[i-1]
		if slices.Contains([]string{"hang", "reset", "500", "429"}, before.did) && before.attempt != a.attempt {
			continue // it was due again
		}
		if slices.Contains(e.Late, before.attempt) && before.attempt < a.attempt {
			continue // it was answered, and the answer came too late: on a busy machine both sides may stand still
		}
		if before.did == "reset" && before.attempt == a.attempt {
			continue // it met the end of a connection that was used before, and was sent again at once
		}
		// A worker that stood still may finish its delivery after others have delivered the event.
		if before.attempt != a.attempt && !slices.Contains(e.Lost, min(before.attempt, a.attempt)) {
			differ(
				"%s was delivered as attempt %d after attempt %d, and its trail does not say why the lower one did not count",
				id,
				a.attempt,
				before.attempt,
			)
		}
		if !slices.ContainsFunc(done, func(f fault) bool { return f.explains(before.at, a.at) }) {
			differ(
				"%s was delivered again as attempt %d after attempt %d (%s), and no fault explains it",
				id,
				a.attempt,
				before.attempt,
				before.did,
			)
		}
	}
	switch e.Status {
	case "completed":
		if !delivered {
			differ("%s is completed with attempt %d, which did not arrive: %v", id, e.Attempts, arrived)
		}
	case "dead":
		refused := slices.ContainsFunc(
			arrived,
			func(a arrival) bool { return a.did == "410" && a.attempt == e.Attempts },
		)
		if e.Error == "" || !refused && e.Attempts < budget {
			differ("%s is dead after %d attempts without a reason: %q", id, e.Attempts, e.Error)
		}
	default:
		differ("%s is %s, and nothing goes on", id, e.Status)
	}
}
