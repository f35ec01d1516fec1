package terminal

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTextIsWrappedAndCutByCells(t *testing.T) {
	require.Equal(t, []string{"受注受注", "受注"}, Wrap("受注受注受注", 8, 8))
	require.Equal(t, []string{""}, Wrap("", 8, 8))
	require.Equal(t, "受…", Fit("受注受注", 4))
	require.Equal(t, "abcd", Fit("abcd", 4))
	require.Empty(t, Fit("abcd", 0))
}
