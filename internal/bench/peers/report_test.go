package main

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestReport(t *testing.T) {
	t.Parallel()
	rate := row{Scenario: "S1", What: "acknowledged", Unit: "/s", Goal: atLeast(12_000), TimesRiver: 5}
	delay := row{Scenario: "S1", What: "p99", Unit: "ms", Goal: atMost(20)}
	share := row{Scenario: "SM", What: "three ÷ one"}
	r := results{
		Systems: []string{"spine", "river", "limit"}, Machine: []string{"two cores"},
		Settings: []string{"spine: defaults"}, Seconds: 61,
	}
	for _, v := range []float64{13_000, 11_000, 12_345.6} {
		r.add(rate, "spine", v)
	}
	r.add(rate, "river", 3_000)
	r.add(delay, "river", 60)
	r.add(delay, "spine", 15.04)
	r.add(share, "limit", 0.5)
	r.note("S5 spine", "it went well")
	r.Failures = []string{"round 1, S2, river: LOST"}

	var out bytes.Buffer
	require.NoError(t, r.write(&out, false))
	const head = "Medians. The last columns are Spine ÷ River and the goals, " +
		"for Spine alone and as a multiple of River."
	assert.Equal(t, head+`

|     |                  | spine  | river | limit | ÷ River | goal                         |
|-----|------------------|--------|-------|-------|---------|------------------------------|
| S1  | acknowledged, /s | 12,346 | 3,000 |       | 4.12    | ≥ 12,000 yes, ≥ 5 × River NO |
| S1  | p99, ms          | 15.0   | 60    |       | 0.25    | ≤ 20 yes                     |
| SM  | three ÷ one      |        |       | 0.50  |         |                              |

Ranges over the rounds, least to largest.

|     |              | spine           | river        | limit       |
|-----|--------------|-----------------|--------------|-------------|
| S1  | acknowledged | 11,000 – 13,000 | 3,000 (once) |             |
| S1  | p99          | 15.0 (once)     | 60 (once)    |             |
| SM  | three ÷ one  |                 |              | 0.50 (once) |

- S5 spine: it went well

- two cores
- spine: defaults
- the run took 2 minutes

FAILED: round 1, S2, river: LOST
`, out.String())
	out.Reset()
	require.NoError(t, r.write(&out, true))
	assert.NotContains(t, out.String(), "yes")
	require.ErrorContains(t, r.write(broken{}, false), "writing the report")
	require.Error(t, r.writeJSON(t.TempDir()))
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("no space") }

func TestNumber(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{
		0: "0", 3: "3", 0.125: "0.12", 9.99: "9.99", 12.34: "12.3", 123.4: "123",
		1234: "1,234", 1234567: "1,234,567", -250.5: "-250", -1234: "-1,234",
	} {
		assert.Equal(t, want, formatNumber(v))
	}
}

func TestSearch(t *testing.T) {
	t.Parallel()
	// A system that delivers at most so much.
	upTo := func(capacity float64) func(float64) (step, error) {
		return func(rate float64) (step, error) {
			return step{rate: rate, delivered: min(rate, capacity), grown: max(0, rate-capacity)}, nil
		}
	}
	for _, start := range []float64{500, 1000, 1300, 2500} {
		best, tried, err := searchRate(start, 12, upTo(1500))
		require.NoError(t, err)
		assert.InDelta(t, 1500, best.rate, 120, "from %v: %s", start, tried)
		assert.Contains(t, tried, "(not sustained)")
	}
	_, tried, err := searchRate(1000, 3, upTo(1))
	require.ErrorContains(t, err, "not even 760/s were sustained", tried)
	lost := errors.New("lost")
	_, _, err = searchRate(1000, 3, func(float64) (step, error) { return step{}, lost })
	require.ErrorIs(t, err, lost)
	assert.False(t, step{rate: 1000, delivered: 990, grown: 40}.sustained(), "the backlog grows")
}
