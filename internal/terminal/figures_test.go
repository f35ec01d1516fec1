package terminal

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDurationsHaveTheDigitsThatMatter(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                 "0s",
		1_234_567:         "1.23ms",
		12_345_678:        "12ms",
		2_345_678_901:     "2.35s",
		90 * time.Second:  "1m30s",
		4 * time.Minute:   "4m",
		time.Hour:         "1h",
		90 * time.Minute:  "1h30m",
		50 * time.Hour:    "2d2h",
		-90 * time.Second: "-1m30s",
	} {
		require.Equal(t, want, ShortDuration(d))
	}
	require.Equal(t, "1 event", Plural(1, "event"))
	require.Equal(t, "0 events", Plural(0, "event"))
}
