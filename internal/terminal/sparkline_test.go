package terminal

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSparkline(t *testing.T) {
	n := func(values ...int64) (series []*int64) {
		for _, v := range values {
			if v < 0 {
				series = append(series, nil)
				continue
			}
			series = append(series, &v)
		}
		return series
	}
	require.Equal(t, " ▁▂▅█", Sparkline(n(-1, 0, 1, 500, 1000), 10))
	require.Equal(t, "▅█", Sparkline(n(0, 500, 1000, 0), 2), "averages of what has no room")
	require.Equal(t, "▁▁", Sparkline(n(0, 0), 2))
	require.Empty(t, Sparkline(n(), 2))
	require.Empty(t, Sparkline(n(1), 0))
}
