package service

import (
	"math"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

func TestGroupMemory(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	for name, c := range map[string]struct {
		files fstest.MapFS
		want  int64
	}{
		"none": {fstest.MapFS{}, 0},
		"v2, in a container": {fstest.MapFS{
			"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/memory.max": file("536870912\n"),
		}, 512 << 20},
		"v2, no limit": {fstest.MapFS{
			"proc/self/cgroup": file("0::/a/b\n"), "sys/fs/cgroup/a/b/memory.max": file("max\n"),
		}, 0},
		"v2, of a group above": {fstest.MapFS{
			"proc/self/cgroup": file("0::/a/b\n"), "sys/fs/cgroup/a/b/memory.max": file("max\n"),
			"sys/fs/cgroup/a/memory.max": file("1073741824\n"),
		}, 1 << 30},
		"v1, in a container with the path of its host": {fstest.MapFS{
			"proc/self/cgroup":                           file("12:cpu,cpuacct:/x\n4:memory:/docker/abc\n"),
			"sys/fs/cgroup/memory/memory.limit_in_bytes": file("268435456\n"),
		}, 256 << 20},
		"v1, no limit": {fstest.MapFS{
			"proc/self/cgroup":                           file("4:memory:/\n"),
			"sys/fs/cgroup/memory/memory.limit_in_bytes": file("9223372036854771712\n"),
		}, 0},
	} {
		require.Equal(t, c.want, groupMemory(c.files), name)
	}
}

// B1: the limit by default leaves room for what the settings allow, and for little else.
func TestMemoryPlan(t *testing.T) {
	s, err := settingsOf()
	require.NoError(t, err)
	plan := planMemory(&s, Roles{API: true, Worker: true}, 0)
	require.Greater(t, plan.limit, s.Intake.MaxInFlightBytes)
	require.Less(t, plan.limit, int64(400<<20))
	require.Equal(t, s.Intake.MaxInFlightBytes, plan.inFlight)
	require.EqualValues(t, math.MaxInt64, plan.most)
	require.Equal(t, plan.limit, plan.limitFor(100<<20))
	require.EqualValues(t, 800<<20, plan.limitFor(600<<20), "a limit below what is used would only cost time")
	require.Less(t, planMemory(&s, Roles{Worker: true}, 0).limit, int64(128<<20))

	small := planMemory(&s, Roles{API: true, Worker: true}, 200<<20)
	require.Less(t, small.limit, int64(200<<20))
	require.Less(t, small.inFlight, int64(100<<20))
	require.Equal(t, small.most, small.limitFor(600<<20))
	require.EqualValues(t, 128<<20, plan.connections)
	require.Equal(t, small.most/8, small.connections)
	tiny := planMemory(&s, Roles{API: true}, 1<<20)
	require.Equal(t, 2*s.Intake.MaxBodyBytes, tiny.inFlight, "one webhook of the largest size always has room")
	require.Equal(t, plan.limit, planMemory(&s, Roles{API: true, Worker: true}, 64<<30).limit)
}

// settingsOf reads settings that are all at their defaults.
func settingsOf() (s Settings, err error) {
	for _, group := range Groups(&s) {
		if err := Read(group, map[string]string{}); err != nil {
			return s, err
		}
	}
	return s, nil
}
