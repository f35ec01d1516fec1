package command

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFixedCompletionsStayWhatTheyAre(t *testing.T) {
	t.Parallel()
	f := fixedValues([]string{"pending", "processing", "dead"})
	for range 2 {
		found, _ := f(nil, nil, "de")
		require.Equal(t, []string{"dead"}, found)
		found, _ = f(nil, nil, "p")
		require.Equal(t, []string{"pending", "processing"}, found)
	}
}
