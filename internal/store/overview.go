package store

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/webhookspine/spine/internal/view"
)

// overviewSteps has the ranges that Overview knows, each with the length of the time steps in which it is shown. Spine
// keeps rollups of these lengths for long enough: see spine.rollup_steps().
var overviewSteps = map[time.Duration]time.Duration{
	15 * time.Minute:   10 * time.Second,
	time.Hour:          10 * time.Second,
	6 * time.Hour:      time.Minute,
	24 * time.Hour:     5 * time.Minute,
	7 * 24 * time.Hour: time.Hour,
}

// Overview returns the totals of all events, and their series over a range: 15 minutes, 1, 6 or 24 hours, or 7 days. It
// reads rollups and samples in one round trip. Of the tables that grow it reads only an end of audit_trail_xid.
func (s *Store) Overview(ctx context.Context, over time.Duration) (o view.Overview, err error) {
	step, ok := overviewSteps[over]
	if !ok {
		return o, fmt.Errorf("there is no overview of %s", over)
	}
	o = view.Overview{RangeSeconds: int(over / time.Second), StepSeconds: int(step / time.Second)}
	var counts []rollup
	var depths []depthSample
	batch := &pgx.Batch{}
	batch.Queue("select set_config('enable_seqscan', 'off', true)")
	batch.Queue(`select clock_timestamp(), s.covered_from, spine.rolled_up_to(), d.at,
			-- A row that fell due after the sample is in its next_attempt_at.
			case when d.sampled_at is not null then extract(epoch from greatest(
				d.oldest_ready + case when d.oldest_ready > '0' then d.at - d.sampled_at else '0' end,
				(
					select d.at - min(r.next_attempt_at)
					from jsonb_to_recordset(d.rows) as r(next_attempt_at timestamptz)
					where isfinite(r.next_attempt_at) and r.next_attempt_at < d.at
				)))::float8 end
		from spine.rollup_state s cross join (
			select d.sampled_at, d.oldest_ready, d.rows, case
				when d.sampled_at > clock_timestamp() - interval '15 s'
					and not spine.audited_beyond(d.next_xid, d.in_progress) then clock_timestamp()
				else d.sampled_at end as at
			from spine.depth_state d) d`).
		QueryRow(func(row pgx.Row) error {
			return row.Scan(&o.At, &o.CoveredFrom, &o.CoveredTo, &o.Depth.At, &o.OldestReady)
		})
	queue(
		batch,
		pgx.CollectRows[view.DepthRow],
		&o.Depth.Rows,
		`select d.destination, d.status, d.count, d.oldest_created_at, d.next_attempt_at
		from spine.depth_state s cross join jsonb_to_recordset(s.rows)
			as d(
				destination text, status text, count bigint, oldest_created_at timestamptz, next_attempt_at timestamptz
			)
		order by d.destination, d.status`,
	)
	queue(batch, pgx.CollectRows[view.PauseRow], &o.Paused, pausedSQL)
	queue(
		batch,
		pgx.CollectRows[view.SourceArrival],
		&o.Sources,
		`select s.name, s.last_arrival_at, case
			when s.disabled_at is not null then 'disabled'
			when b.source is not null then 'broken'
			end
		from spine.sources s
			left join (
				select p.source, max(p.settings_at) as settings_at
				from spine.source_reports p join spine.receivers r on r.process = p.process
				where p.state = 'broken' and r.told_at > clock_timestamp() - interval '150 seconds'
				group by p.source
			) b on b.source = s.name and b.settings_at >= s.updated_at
		order by s.name`,
	)
	// now() and not clock_timestamp(), which no index condition may hold. The database sums, so that a thousand sources
	// are no more to send than one.
	queue(batch, pgx.CollectRows[rollup], &counts, `select extract(epoch from r.at)::bigint,
			sum(r.received)::bigint, sum(r.accepted)::bigint, sum(r.deduplicated)::bigint, sum(r.conflicts)::bigint,
			sum(r.rejected)::bigint,
			sum(r.attempts)::bigint, sum(r.attempts_failed)::bigint, sum(r.delivered)::bigint, sum(r.died)::bigint,
			coalesce(l.latency, '{}')
		from spine.rollups r left join (
				select b.at, array_agg(b.n order by b.bucket) as latency
				from (
					select r.at, l.bucket, sum(l.n)::bigint as n
					from spine.rollups r cross join unnest(r.latency) with ordinality l(n, bucket)
					where r.step = $1 and r.at > now() - $2::interval group by 1, 2
				) b
				group by 1
			) l on l.at = r.at
		where r.step = $1 and r.at > now() - $2::interval
		group by r.at, l.latency`, o.StepSeconds, over)
	queue(
		batch,
		pgx.CollectRows[depthSample],
		&depths,
		`select extract(epoch from d.at)::bigint, d.pending, d.processing, d.failed, d.dead,
			extract(epoch from d.oldest_ready)::float8
		from spine.depth_samples d where d.step = $1 and d.at > now() - $2::interval order by d.at`,
		o.StepSeconds,
		over+carried+step,
	)
	if err := s.read(ctx, batch); err != nil {
		return view.Overview{}, fmt.Errorf("reading the overview: %w", err)
	}
	o.Series = series(o, counts, depths)
	return o, nil
}

// rollup is what happened in one time step, over all sources.
type rollup struct {
	At                                          int64 // Unix seconds
	Received, Accepted, Deduplicated, Conflicts int64
	Rejected                                    int64
	Attempts, AttemptsFailed, Delivered, Died   int64
	Latency                                     []int64
}

// depthSample is the state of the queue as last sampled in a time step.
type depthSample struct {
	At                                int64 // Unix seconds
	Pending, Processing, Failed, Dead int64
	OldestReady                       float64 // seconds
}

// carried is how long a sample stands for the time steps after it. With a million waiting rows there is one about every
// 20 seconds, and fewer on a busy machine.
const carried = time.Minute

// behind is the lag of rollups that count as up to date: they are made once a second, and that takes a moment.
const behind = 3 * time.Second

// series puts counts and samples, sorted by time, into the time steps of o.
func series(o view.Overview, counts []rollup, depths []depthSample) (s view.Series) {
	step := int64(o.StepSeconds)
	n := int64(o.RangeSeconds) / step
	now := o.At.Time.Unix()
	first := now - now%step - (n-1)*step

	sums := make([]rollup, n)
	for _, c := range counts {
		if i := (c.At - first) / step; c.At >= first && i < n {
			sums[i] = c
		}
	}
	// A time step that has just ended may not be counted to its end. Where the rollups lag less than behind, it is
	// shown as the one under way is: with the numbers that there are.
	current := o.At.Time.Sub(o.CoveredTo.Time) < behind
	sampled := 0 // how many samples were taken before the end of the time step
	for i, sum := range sums {
		at := first + int64(i)*step
		s.At = append(s.At, at)
		end := at + step
		if int64(i) == n-1 || current {
			end = at
		}
		covered := !time.Unix(at, 0).Before(o.CoveredFrom.Time) && !time.Unix(end, 0).After(o.CoveredTo.Time)
		s.Received = append(s.Received, known(sum.Received, covered))
		s.Accepted = append(s.Accepted, known(sum.Accepted, covered))
		s.Deduplicated = append(s.Deduplicated, known(sum.Deduplicated, covered))
		s.Conflicts = append(s.Conflicts, known(sum.Conflicts, covered))
		s.Rejected = append(s.Rejected, known(sum.Rejected, covered))
		s.Attempts = append(s.Attempts, known(sum.Attempts, covered))
		s.AttemptsFailed = append(s.AttemptsFailed, known(sum.AttemptsFailed, covered))
		s.Delivered = append(s.Delivered, known(sum.Delivered, covered))
		s.Died = append(s.Died, known(sum.Died, covered))
		delivered := covered && len(sum.Latency) > 0
		s.LatencyP50 = append(s.LatencyP50, known(percentile(sum.Latency, 0.5), delivered))
		s.LatencyP95 = append(s.LatencyP95, known(percentile(sum.Latency, 0.95), delivered))
		s.LatencyP99 = append(s.LatencyP99, known(percentile(sum.Latency, 0.99), delivered))

		for sampled < len(depths) && depths[sampled].At < at+step {
			sampled++
		}
		var depth depthSample
		looked := sampled > 0 && depths[sampled-1].At >= at-int64(carried/time.Second)
		if looked {
			depth = depths[sampled-1]
		}
		s.Pending = append(s.Pending, known(depth.Pending, looked))
		s.Processing = append(s.Processing, known(depth.Processing, looked))
		s.Failed = append(s.Failed, known(depth.Failed, looked))
		s.Dead = append(s.Dead, known(depth.Dead, looked))
		s.OldestReady = append(s.OldestReady, known(depth.OldestReady, looked))
	}
	return s
}

// known is a number, or nil where it is not known.
func known[T int64 | float64](n T, ok bool) *T {
	if !ok {
		return nil
	}
	return &n
}

// percentile reads a histogram in milliseconds, as spine.latency_percentile does: the middle of the bucket that holds
// it. It is 0 for an empty histogram.
func percentile(histogram []int64, fraction float64) float64 {
	var total, upTo int64
	for _, n := range histogram {
		total += n
	}
	rank := max(1, int64(math.Ceil(float64(total)*fraction)))
	for i, n := range histogram {
		if upTo += n; upTo >= rank {
			return math.Round(math.Pow(1.2, float64(i)-0.5)*100) / 100
		}
	}
	return 0
}
