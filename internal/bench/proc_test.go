package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fakeProc is a proc(5) file system.
type fakeProc struct {
	procfs
	t *testing.T
}

func newProc(t *testing.T) fakeProc {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "uptime"), []byte("1 1"), 0o600))
	return fakeProc{procfs(dir), t}
}

// set makes a process. times are in clock ticks: its own user and system time, and those of
// children that it has waited for.
func (p fakeProc) set(pid int, name, cmdline string, parent int, started uint64, times [4]int, status string) {
	p.t.Helper()
	dir := filepath.Join(string(p.procfs), strconv.Itoa(pid))
	require.NoError(p.t, os.MkdirAll(dir, 0o700))
	stat := fmt.Sprintf("%d (%s) S %d %d %d 0 -1 4194560 13270 1020 3 0 %d %d %d %d 20 0 11 0 %d "+
		"1904283648 11180 18446744073709551615 1 1 0 0\n",
		pid, name, parent, pid, pid, times[0], times[1], times[2], times[3], started)
	for file, text := range map[string]string{"stat": stat, "cmdline": cmdline, "status": status} {
		require.NoError(p.t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
	}
}

func (p fakeProc) end(pid int) {
	p.t.Helper()
	require.NoError(p.t, os.RemoveAll(filepath.Join(string(p.procfs), strconv.Itoa(pid))))
}

const status = "Name:\tspine\nUmask:\t0022\nState:\tS (sleeping)\n" +
	"VmPeak:\t 1859652 kB\nVmHWM:\t   44968 kB\nVmRSS:\t   44720 kB\nRssAnon:\t   18096 kB\nRssFile:\t   26624 kB\n"

func TestUsageOfAProcess(t *testing.T) {
	p := newProc(t)
	p.set(7, "a (b) c) S 1", "", 1, 500, [4]int{100, 50, 7, 8}, status)
	name, read, err := p.usageOf(7)
	require.NoError(t, err)
	assert.Equal(t, "a (b) c) S 1", name)
	u, err := read()
	require.NoError(t, err)
	assert.Equal(t, usage{1500 * time.Millisecond, 44720 << 10}, u, "without its children")
	peak, err := p.memory(7, "VmHWM")
	require.NoError(t, err)
	assert.Equal(t, int64(44968<<10), peak)

	p.set(7, "another", "", 1, 501, [4]int{}, status)
	_, err = read()
	require.ErrorIs(t, err, errProcessEnded, "another has its number")
	p.set(7, "a (b) c) S 1", "", 1, 500, [4]int{100, 50, 7, 8}, "Name:\tspine\nState:\tZ (zombie)\n")
	_, err = read()
	require.ErrorIs(t, err, errProcessEnded, "it has no memory any more")
	p.end(7)
	_, err = read()
	require.ErrorIs(t, err, errProcessEnded)
	_, _, err = p.usageOf(7)
	require.ErrorIs(t, err, errProcessEnded)
}

func TestAProcessThatCannotBeRead(t *testing.T) {
	p := newProc(t)
	for _, stat := range []string{
		"",
		"7 (x) S 1",
		"7 )x( S 1",
		"7 (x) S 1 2 3 4 5 6 7 8 9 10 u s 1 2 20 0 1 0 5",
		"7 (x) S 1 2 3 4 5 6 7 8 9 10 1 1 1 2 20 0 1 0 x",
	} {
		p.set(7, "x", "", 1, 1, [4]int{}, "VmRSS:\tmuch kB\n")
		require.NoError(t, os.WriteFile(filepath.Join(string(p.procfs), "7", "stat"), []byte(stat), 0o600))
		_, err := p.stat(7)
		require.ErrorContains(t, err, "process 7", stat)
	}
	_, err := p.memory(7, "VmRSS")
	require.ErrorContains(t, err, "much")

	_, _, err = procfs("").usageOf(7)
	require.ErrorIs(t, err, errNoProc)
	_, err = procfs("").usageOfServer(7, "u", "d")
	require.ErrorIs(t, err, errNoProc)
}

func TestUsageOfAServer(t *testing.T) {
	p := newProc(t)
	private := func(kB int) string {
		return fmt.Sprintf("VmRSS:\t 99999 kB\nRssAnon:\t %d kB\nRssShmem:\t 90000 kB\n", kB)
	}
	p.set(10, "postgres", "/usr/lib/postgresql/15/bin/postgres\x00-D\x00data\x00",
		1, 1, [4]int{100, 0, 200, 0}, private(1000))
	p.set(11, "postgres", "postgres: checkpointer \x00", 10, 2, [4]int{10, 0, 0, 0}, private(100))
	p.set(12, "postgres", "postgres: main: ann db1 127.0.0.1(1234) idle\x00\x00\x00",
		10, 3, [4]int{40, 10, 0, 0}, private(200))
	p.set(20, "postgres", "/usr/lib/postgresql/15/bin/postgres\x00", 1, 4, [4]int{5, 5, 5, 5}, private(7))
	p.set(21, "postgres", "postgres: ann db1 [local] idle", 20, 5, [4]int{5, 5, 5, 5}, private(7))

	for pid, database := range map[int]string{11: "db1", 12: "db", 13: "db1", 10: "db1"} {
		_, err := p.usageOfServer(pid, "ann", database)
		require.ErrorContains(t, err, "does not run on this machine", pid)
	}
	read, err := p.usageOfServer(12, "ann", "db1")
	require.NoError(t, err)
	u, err := read()
	require.NoError(t, err)
	assert.Equal(t, usage{3600 * time.Millisecond, 1300 << 10}, u)

	p.end(12) // the postmaster gets its account
	p.set(10, "postgres", "", 1, 1, [4]int{100, 0, 240, 10}, private(1000))
	u, err = read()
	require.NoError(t, err)
	assert.Equal(t, usage{3600 * time.Millisecond, 1100 << 10}, u)
	p.set(10, "postgres", "", 1, 9, [4]int{}, private(1000))
	_, err = read()
	require.ErrorIs(t, err, errProcessEnded, "the server was restarted")
}

func TestPeakMemoryOfThisProcess(t *testing.T) {
	peak, err := PeakMemory(os.Getpid())
	if proc == "" {
		require.ErrorIs(t, err, errNoProc)
		return
	}
	require.NoError(t, err)
	assert.Greater(t, peak, int64(1<<20))
}
