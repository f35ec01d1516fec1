package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// run gives lines to a progress, one a second, and returns what it printed.
func run(t *testing.T, lines ...string) (output string, ok bool) {
	t.Helper()
	var out bytes.Buffer
	now := time.Unix(0, 0)
	p := newProgress(&out, now)
	for _, line := range lines {
		now = now.Add(time.Second)
		if line == "beat" {
			p.running(now)
		} else {
			p.line(line, now)
		}
	}
	ok = p.summary(now)
	return out.String(), ok
}

const (
	pkg     = `"Package":"github.com/webhookspine/spine/internal/a"`
	started = `{"Action":"start",` + pkg + `}`
	passed  = `{"Action":"pass",` + pkg + `,"Elapsed":1.5}`
	failed  = `{"Action":"fail",` + pkg + `,"Elapsed":1.5}`
)

func action(action, test string) string {
	return `{"Action":"` + action + `",` + pkg + `,"Test":"` + test + `"}`
}

func says(test, output string) string {
	return `{"Action":"output",` + pkg + `,"Test":"` + test + `","Output":"` + output + `\n"}`
}

func TestPackagePasses(t *testing.T) {
	t.Parallel()
	output, ok := run(
		t,
		"beat",
		started,
		action("run", "TestA"),
		says("TestA", "chatter"),
		action("run", "TestA/b"),
		"beat",
		action("pass", "TestA/b"),
		action("pass", "TestA"),
		action("run", "TestS"),
		action("skip", "TestS"),
		passed,
	)
	require.True(t, ok)
	require.Equal(t, "  0m01s  ...   building\n"+
		"  0m06s  ...   internal/a: TestA/b (1s)\n"+
		"  0m11s  ok    internal/a                             2 tests     1.5s\n"+
		"skipped  internal/a TestS\n"+
		"  0m11s  2 tests passed, 0 failed, 1 skipped\n", output)
}

func TestLongestRunningTestsAreNamed(t *testing.T) {
	t.Parallel()
	output, _ := run(
		t,
		started,
		action("run", "TestA"),
		action("pause", "TestA"),
		action("run", "TestB"),
		action("run", "TestC"),
		action("run", "TestD"),
		action("cont", "TestA"),
		action("pass", "TestB"),
		"beat",
		passed,
	)
	require.Contains(t, output, "  0m09s  ...   internal/a: TestC (4s), TestD (3s) and 1 more\n")
}

func TestTestsThatWaitForTheirOwnAreNotNamed(t *testing.T) {
	t.Parallel()
	output, _ := run(
		t,
		started,
		action("run", "TestA"),
		action("run", "TestA/b"),
		action("pause", "TestA/b"),
		action("run", "TestC"),
		"beat",
		passed,
	)
	require.Contains(t, output, "internal/a: TestC (1s)\n")
}

func TestFailurePrintsAllThatTheTestSaid(t *testing.T) {
	t.Parallel()
	output, ok := run(
		t,
		started,
		action("run", "TestA"),
		says("TestA", "reason"),
		action("run", "TestB"),
		says("TestB", "chatter"),
		action("fail", "TestA"),
		action("pass", "TestB"),
		failed,
	)
	require.False(t, ok)
	require.Contains(t, output, "reason\n")
	require.NotContains(t, output, "chatter")
	require.Contains(t, output, "  FAIL  internal/a")
	require.Contains(t, output, "FAILED   internal/a TestA\n")
	require.Contains(t, output, "1 tests passed, 1 failed")
}

func TestPanicIsPrinted(t *testing.T) {
	t.Parallel()
	output, ok := run(t, started, action("run", "TestA"), says("TestA", "panic: timed out"), says("", "FAIL"), failed)
	require.False(t, ok)
	require.Contains(t, output, "panic: timed out\n")
	require.Contains(t, output, "FAILED   internal/a\n")
}

func TestRunThatBreaksOffFails(t *testing.T) {
	t.Parallel()
	output, ok := run(t, started, action("run", "TestA"), says("TestA", "last words"))
	require.False(t, ok)
	require.Contains(t, output, "last words\n")
	require.Contains(t, output, "FAILED   internal/a (never ended)\n")
}

func TestBuildFailureIsPrinted(t *testing.T) {
	t.Parallel()
	output, ok := run(
		t,
		`{"ImportPath":"x/a","Action":"build-output","Output":"a.go:1: wrong\n"}`,
		`{"ImportPath":"x/a","Action":"build-fail"}`,
		"go: no such module",
	)
	require.False(t, ok)
	require.Contains(t, output, "a.go:1: wrong\n")
	require.Contains(t, output, "go: no such module\n")
	require.Contains(t, output, "FAILED   build of x/a\n")
}

func TestNothingRanIsAFailure(t *testing.T) {
	t.Parallel()
	output, ok := run(t, started, passed)
	require.False(t, ok)
	require.Contains(t, output, "no test has run")
}

func TestLinesOfAnyLength(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 1<<20)
	lines := make(chan string, 2)
	require.NoError(t, readLines(strings.NewReader(long+"\nend"), lines))
	require.Equal(t, long, <-lines)
	require.Equal(t, "end", <-lines)
}
