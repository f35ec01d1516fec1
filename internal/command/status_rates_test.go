package command

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRatesHaveTheDigitsThatMatter(t *testing.T) {
	for text, value := range map[string]float64{
		"0": 0, "<0.1": 0.04, "0.1": 0.05, "9.9": 9.94, "10": 9.96, "99999": 99_999, "100k": 100_000,
	} {
		require.Equal(t, text, rateText(&value))
	}
}
