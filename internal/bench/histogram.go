package bench

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// histogram counts durations in log-linear buckets, as HdrHistogram does: each power of two is cut
// into 128 equal parts. A quantile returns the middle of its bucket, so it is at most 1/256 (0.4 %)
// off. Below 256 ns, and for the largest duration, it is exact. It takes 59 kB whatever it holds.
// Any number of goroutines may record at once.
type histogram struct {
	buckets [(64 - subBits + 2) << (subBits - 1)]atomic.Uint64
	sum     atomic.Uint64 // ns
	max     atomic.Uint64 // ns
}

// subBits is how many leading bits of a duration the histogram keeps.
const subBits = 8

func bucketOf(ns uint64) int {
	shift := max(0, bits.Len64(ns)-subBits)
	return shift<<(subBits-1) + int(ns>>shift) //nolint:gosec // G115: below 1<<subBits by the shift
}

// bucketMiddle is the inverse of bucketOf.
func bucketMiddle(bucket int) uint64 {
	shift := max(0, bucket>>(subBits-1)-1)
	low := uint64(bucket-shift<<(subBits-1)) << shift //nolint:gosec // G115: not negative by the shift
	return low + 1<<shift/2
}

// record counts d. A negative d counts as 0.
func (h *histogram) record(d time.Duration) {
	ns := uint64(max(0, d))
	h.buckets[bucketOf(ns)].Add(1)
	h.sum.Add(ns)
	for {
		largest := h.max.Load()
		if ns <= largest || h.max.CompareAndSwap(largest, ns) {
			return
		}
	}
}

// counts are the contents of a histogram, by bucket.
type counts [len(histogram{}.buckets)]uint64

func (h *histogram) counts() *counts {
	var c counts
	for i := range c {
		c[i] = h.buckets[i].Load()
	}
	return &c
}

// minus returns what was recorded since before, which must be older than c.
func (c *counts) minus(before *counts) *counts {
	var d counts
	for i := range d {
		d[i] = c[i] - before[i]
	}
	return &d
}

func (c *counts) total() (n uint64) {
	for _, count := range c {
		n += count
	}
	return n
}

// quantile returns a quantile by nearest rank, in ns; 0 if nothing was recorded.
func (c *counts) quantile(q float64) uint64 {
	rank := uint64(math.Ceil(q * float64(c.total())))
	var seen uint64
	for i, count := range c {
		if seen += count; count > 0 && seen >= rank {
			return bucketMiddle(i)
		}
	}
	return 0
}

// latency sums up what was recorded. Quantiles are by nearest rank.
func (h *histogram) latency() Latency {
	c := h.counts()
	n := c.total()
	if n == 0 {
		return Latency{}
	}
	largest := h.max.Load()
	quantile := func(q float64) float64 { return milliseconds(min(c.quantile(q), largest)) }
	return Latency{
		Count: n,
		P50:   quantile(0.5),
		P90:   quantile(0.9),
		P99:   quantile(0.99),
		P999:  quantile(0.999),
		Max:   milliseconds(largest),
		Mean:  milliseconds(h.sum.Load()) / float64(n),
	}
}

func milliseconds(ns uint64) float64 { return float64(ns) / 1e6 }
