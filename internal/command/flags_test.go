package command

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseMoment(t *testing.T) {
	now := time.Date(2024, 1, 30, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"90":                        now.Add(-90 * time.Second),
		"10m":                       now.Add(-10 * time.Minute),
		"7d":                        now.Add(-7 * 24 * time.Hour),
		"0.5d":                      now.Add(-12 * time.Hour),
		"2024-01-30T12:00:00+02:00": now.Add(-2 * time.Hour),
	} {
		got, err := parsePastTime(text, now)
		require.NoError(t, err, text)
		require.True(t, want.Equal(got), "%s: %s", text, got)
	}
	for _, text := range []string{"", "-1m", "d", "xd", "NaNd", "1e300d", "2024-01-30", "yesterday"} {
		_, err := parsePastTime(text, now)
		require.Error(t, err, text)
	}
}
