package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPairsAreComparedOneByOne(t *testing.T) {
	t.Parallel()
	const us = time.Microsecond
	now := []cost{{process: 100 * us}, {process: 90 * us}, {process: 300 * us}}
	before := []cost{{process: 100 * us}, {process: 100 * us}, {process: 200 * us}}
	require.Equal(t, []string{"100.0", "100.0", "1.000 (0.90 to 1.50)"},
		paired(now, before, func(c cost) time.Duration { return c.process }))
}

func TestABaseThatIsNotThereIsNamed(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	args := []string{"-spine", "/dev/null", "-base", "/no/such/file"}
	require.Equal(t, 1, run(t.Context(), args, &bytes.Buffer{}, &stderr))
	require.Contains(t, stderr.String(), "-base: stat /no/such/file")
	stderr.Reset()
	require.Equal(t, 2, run(t.Context(), []string{"-pairs", "0"}, &bytes.Buffer{}, &stderr))
	require.Contains(t, stderr.String(), "-pairs")
}
