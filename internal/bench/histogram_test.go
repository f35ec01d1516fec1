package bench

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestABucketStandsForItsValues(t *testing.T) {
	before := -1
	for ns := uint64(1); ns < math.MaxInt64/2; ns += ns/300 + 1 {
		bucket := bucketOf(ns)
		require.GreaterOrEqual(t, bucket, before)
		before = bucket
		require.InEpsilon(t, float64(ns), float64(bucketMiddle(bucket)), 1.0/256, "%d ns", ns)
		if ns < 256 {
			require.Equal(t, ns, bucketMiddle(bucket))
		}
	}
	assert.Less(t, bucketOf(math.MaxUint64), len(histogram{}.buckets))
}

func TestQuantiles(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // G404: repeatable
	var h histogram
	var sorted []time.Duration
	var sum time.Duration
	for range 20_000 {
		d := time.Duration(math.Exp(random.NormFloat64()+13)) * time.Nanosecond
		sorted = append(sorted, d)
		sum += d
		h.record(d)
	}
	slices.Sort(sorted)
	l := h.latency()
	assert.Equal(t, uint64(20_000), l.Count)
	at := func(rank int) float64 { return sorted[rank-1].Seconds() * 1000 }
	assert.InEpsilon(t, at(10_000), l.P50, 0.004)
	assert.InEpsilon(t, at(18_000), l.P90, 0.004)
	assert.InEpsilon(t, at(19_800), l.P99, 0.004)
	assert.InEpsilon(t, at(19_980), l.P999, 0.004)
	assert.InEpsilon(t, at(20_000), l.Max, 1e-9)
	assert.InEpsilon(t, sum.Seconds()*1000/20_000, l.Mean, 1e-9)
}

func TestQuantilesOfLittle(t *testing.T) {
	var h histogram
	assert.Equal(t, Latency{}, h.latency())
	h.record(-time.Second)
	assert.Equal(t, Latency{Count: 1}, h.latency())

	var one histogram
	one.record(1_000_001)
	l := one.latency()
	assert.InEpsilon(t, 1.000001, l.Max, 1e-9)
	assert.LessOrEqual(t, l.P50, l.Max)
	assert.InEpsilon(t, l.Max, l.P999, 0.004)
}
