package service

import (
	"bufio"
	"context"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
)

// Spine limits its memory. The bytes of webhooks in hand are counted (MAX_INFLIGHT_BYTES), and beside them Spine needs
// little. But a collector that waits until the heap is five times what is in use (GOGC=400) would let garbage grow to a
// multiple of what is counted, and a process keeps what it once had.

const (
	memoryBase        = 96 << 20  // of a process without webhooks in hand, at saturation
	memoryPerConn     = 1 << 20   // of a connection to the database, with a batch that it encodes
	memoryPerDelivery = 64 << 10  // of a delivery of usual size
	memoryConnections = 128 << 20 // of clients' connections that wait for a request or for a part of one
	memoryInterval    = time.Second
	// memoryKept is how much memory a process keeps although it may not need it.
	memoryKept = 192 << 20
	// memoryPatience is how long a process has more than that before it gives back what it does not need. Collecting
	// for it that seldom takes no time that could be measured.
	memoryPatience = 15 * time.Second
)

// memoryPlan says how much memory a process uses.
type memoryPlan struct {
	limit       int64 // bytes at which the collector works harder
	most        int64 // the limit is never raised beyond; math.MaxInt64 without a control group
	inFlight    int64 // limit on the bytes of webhooks in hand
	connections int64 // limit on the bytes of clients' connections that wait
}

// planMemory plans for settings and what givenMemory returns.
func planMemory(s *Settings, r Roles, given int64) memoryPlan {
	p := memoryPlan{most: math.MaxInt64, inFlight: s.Intake.MaxInFlightBytes, connections: memoryConnections}
	if given > 0 {
		p.most = given / 10 * 9 // the rest is for what the runtime does not count
		// Half of it is for what becomes of the webhooks, and for all else.
		p.inFlight = min(p.inFlight, max(p.most/2, 2*s.Intake.MaxBodyBytes))
		p.connections = min(p.connections, p.most/8)
	}
	p.limit = memoryBase + int64(s.Pool.MaxConns)*memoryPerConn
	if r.API {
		p.limit += p.inFlight
	}
	if r.Worker {
		p.limit += int64(s.Worker.Concurrency) * memoryPerDelivery
	}
	p.limit = min(p.limit, p.most)
	return p
}

// inFlightBytes is the limit on the bytes of webhooks in hand. It logs where that is not what was set.
func (s *Service) inFlightBytes() int64 {
	if s.memory.inFlight < s.settings.Intake.MaxInFlightBytes {
		s.log.Warn().Int64("bytes", s.memory.inFlight).Int64("setting", s.settings.Intake.MaxInFlightBytes).
			Msg("MAX_INFLIGHT_BYTES is more than this process may use (its container, GOMEMLIMIT): it is lowered")
	}
	return s.memory.inFlight
}

// keep holds the process to its plan until ctx ends. GOMEMLIMIT overrides the limit.
func (p memoryPlan) keep(ctx context.Context, log zerolog.Logger) error {
	adjusts := os.Getenv("GOMEMLIMIT") == ""
	if adjusts {
		debug.SetMemoryLimit(p.limit)
		log.Debug().Int64("bytes", p.limit).Msg("memory is limited")
	}
	limit, large := p.limit, time.Duration(0)
	tick := time.NewTicker(memoryInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		live, mapped := memoryInUse()
		if next := p.limitFor(live); adjusts && next != limit {
			limit = next
			debug.SetMemoryLimit(limit)
		}
		if large += memoryInterval; mapped <= memoryKept {
			large = 0
		}
		if large >= memoryPatience {
			debug.FreeOSMemory()
			large = 0
		}
	}
}

// limitFor is the limit where so many bytes are in use. A limit that is below them, or just above, would have the
// collector take half of the processors. So it follows them, as far as the control group allows.
func (p memoryPlan) limitFor(live int64) int64 { return min(p.most, max(p.limit, live/3*4)) }

// memoryInUse reads what the last collection found in use, and what the process has of the system.
func memoryInUse() (live, mapped int64) {
	samples := []metrics.Sample{
		{
			Name: "/gc/heap/live:bytes",
		},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(samples)
	value := func(i int) int64 { return int64(samples[i].Value.Uint64()) } //nolint:gosec // less than the machine has
	return value(0), value(1) - value(2)
}

// givenMemory is how much memory the process may use: by its control group, or by GOMEMLIMIT, of which that is nine
// tenths. It is 0 where neither says it.
func givenMemory(root fs.FS) int64 {
	given := groupMemory(root)
	if os.Getenv("GOMEMLIMIT") == "" {
		return given
	}
	limit := debug.SetMemoryLimit(-1) // it has read the variable, and nothing else sets a limit then
	if limit < math.MaxInt64 && (given == 0 || limit/9*10 < given) {
		return limit / 9 * 10
	}
	return given
}

// groupMemory reads the memory limit of the process's control group: the least of its own and of those above it, of
// cgroup v2 or v1. It is 0 where there is none.
func groupMemory(root fs.FS) int64 {
	list, err := root.Open("proc/self/cgroup")
	if err != nil {
		return 0
	}
	defer func() { _ = list.Close() }() // it was only read
	var least int64
	for lines := bufio.NewScanner(list); lines.Scan(); {
		_, rest, _ := strings.Cut(lines.Text(), ":")
		controllers, group, _ := strings.Cut(rest, ":")
		folder, file := "sys/fs/cgroup", "memory.max"
		switch {
		case controllers == "":
		case strings.Contains(","+controllers+",", ",memory,"):
			folder, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		// In a container the group's path may be that of the host, of which only the root is there.
		for group = path.Clean("/" + group); ; group = path.Dir(group) {
			if limit := readLimit(root, path.Join(folder, group, file)); limit > 0 && (least == 0 || limit < least) {
				least = limit
			}
			if group == "/" {
				break
			}
		}
	}
	return least
}

// readLimit reads a limit in bytes. It is 0 where there is none, as the system writes it: max, or more than any machine
// has.
func readLimit(root fs.FS, name string) int64 {
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return 0
	}
	limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || limit >= 1<<50 {
		return 0
	}
	return limit
}
