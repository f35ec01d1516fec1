package bell_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/bell"
)

func TestRingsAreHeardOnceAndNeverLost(t *testing.T) {
	t.Parallel()
	b := bell.New()
	require.Empty(t, b.C())
	for range 3 {
		b.Ring()
	}
	require.Len(t, b.C(), 1, "three rings are one wake-up")
	<-b.C()
	require.Empty(t, b.C())
	b.Ring()
	require.Len(t, b.C(), 1, "a ring after the loop woke is a new wake-up")
}
