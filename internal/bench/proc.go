package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// procfs is a mounted proc(5) file system, empty if the system has none.
type procfs string

// clockTick is the unit of /proc/PID/stat. USER_HZ is 100 on every architecture that Go supports.
const clockTick = time.Second / 100

var errProcessEnded = errors.New("the process has ended")

// processStat is what we need of /proc/PID/stat.
type processStat struct {
	name    string
	parent  int
	started uint64        // clock ticks after boot; tells a process from a later one with its PID
	cpu     time.Duration // user and system
	waited  time.Duration // the same of children that have been waited for
}

func (p procfs) stat(pid int) (s processStat, err error) {
	text, err := p.read(pid, "stat")
	if err != nil {
		return s, err
	}
	// The name is in parentheses, and may hold any character.
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	var fields []string
	if end > open && open >= 0 {
		s.name = string(text[open+1 : end])
		fields = strings.Fields(string(text[end+1:]))
	}
	const state, ppid, utime, cstime, starttime = 0, 1, 11, 14, 19
	if len(fields) <= starttime {
		return s, fmt.Errorf("reading what process %d uses: its stat is not as in proc(5)", pid)
	}
	if fields[state] == "Z" {
		return s, errProcessEnded
	}
	var ticks [cstime - utime + 1]int64
	for i := range ticks {
		if ticks[i], err = strconv.ParseInt(fields[utime+i], 10, 64); err != nil {
			return s, fmt.Errorf("reading what process %d uses: %w", pid, err)
		}
	}
	s.cpu, s.waited = time.Duration(ticks[0]+ticks[1])*clockTick, time.Duration(ticks[2]+ticks[3])*clockTick
	if s.parent, err = strconv.Atoi(fields[ppid]); err == nil {
		s.started, err = strconv.ParseUint(fields[starttime], 10, 64)
	}
	if err != nil {
		return s, fmt.Errorf("reading what process %d uses: %w", pid, err)
	}
	return s, nil
}

// memory returns a line of /proc/PID/status that is in kB, such as VmRSS, in bytes.
func (p procfs) memory(pid int, line string) (size int64, err error) {
	text, err := p.read(pid, "status")
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(l, line+":"); ok {
			kB, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("reading what process %d uses: %w", pid, err)
			}
			return kB << 10, nil
		}
	}
	return 0, errProcessEnded // a dead process that is not yet waited for has no memory
}

// children returns the processes whose parent is pid.
func (p procfs) children(pid int) ([]int, error) {
	if p == "" {
		return nil, errNoProc
	}
	entries, err := os.ReadDir(string(p))
	if err != nil {
		return nil, fmt.Errorf("listing the processes: %w", err)
	}
	var all []int
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if s, err := p.stat(child); err == nil && s.parent == pid { // others may have ended
			all = append(all, child)
		}
	}
	return all, nil
}

func (p procfs) read(pid int, name string) ([]byte, error) {
	if p == "" {
		return nil, errNoProc
	}
	text, err := os.ReadFile(filepath.Join(string(p), strconv.Itoa(pid), name)) //nolint:gosec // G304: below proc
	if errors.Is(err, os.ErrNotExist) {
		return nil, errProcessEnded
	}
	if err != nil {
		return nil, fmt.Errorf("reading what process %d uses: %w", pid, err)
	}
	return text, nil
}

var errNoProc = errors.New("only Linux tells what a process uses")

// usage is what a process has used so far.
type usage struct {
	cpu    time.Duration
	memory int64 // bytes, resident
}

// usageOf returns the name of process pid, and a function that reads its usage. The function fails
// once another process has that number.
func (p procfs) usageOf(pid int) (name string, read func() (usage, error), err error) {
	first, err := p.stat(pid)
	if err != nil {
		return "", nil, err
	}
	return first.name, func() (usage, error) {
		now, err := p.stat(pid)
		if err != nil {
			return usage{}, err
		}
		if now.started != first.started {
			return usage{}, errProcessEnded
		}
		memory, err := p.memory(pid, "VmRSS")
		return usage{now.cpu, memory}, err
	}, nil
}

// usageOfServer is usageOf for the PostgreSQL server that a session's backend belongs to: the
// postmaster and all its children. It counts only their private memory. Shared memory is as large
// as shared_buffers says, a server fills it over time, and every process would count it again.
//
// The title that PostgreSQL gives a backend tells it from a process of this machine that just has
// the same number.
func (p procfs) usageOfServer(backend int, user, database string) (read func() (usage, error), err error) {
	title, err := p.read(backend, "cmdline")
	if errors.Is(err, errProcessEnded) || err == nil && !isBackend(title, user, database) {
		return nil, errors.New("the server does not run on this machine, or its processes cannot be seen")
	}
	if err != nil {
		return nil, err
	}
	session, err := p.stat(backend)
	if err != nil {
		return nil, err
	}
	first, err := p.stat(session.parent)
	if err != nil {
		return nil, err
	}
	return func() (usage, error) {
		postmaster, err := p.stat(session.parent)
		if err != nil {
			return usage{}, err
		}
		if postmaster.started != first.started {
			return usage{}, errProcessEnded
		}
		children, err := p.children(session.parent)
		if err != nil {
			return usage{}, err
		}
		// The postmaster's account includes the children that ended.
		u := usage{cpu: postmaster.cpu + postmaster.waited}
		for _, pid := range append(children, session.parent) {
			if pid != session.parent {
				child, err := p.stat(pid)
				if err != nil {
					continue // it ended just now
				}
				u.cpu += child.cpu + child.waited
			}
			if memory, err := p.memory(pid, "RssAnon"); err == nil { // as above
				u.memory += memory
			}
		}
		return u, nil
	}, nil
}

func isBackend(cmdline []byte, user, database string) bool {
	title := string(bytes.TrimRight(cmdline, "\x00 "))
	return strings.HasPrefix(title, "postgres: ") && strings.Contains(title, " "+user+" "+database+" ")
}

// ProcessorTime is the user and system time that a process of this machine has used so far, in units of 10 ms.
// It is an error on anything but Linux.
func ProcessorTime(pid int) (time.Duration, error) {
	s, err := proc.stat(pid)
	return s.cpu, err
}

// ServerProcessorTime returns a function that tells the user and system time of a PostgreSQL server, all its processes
// together, in units of 10 ms. The server is the one that the session with process number backend belongs to; user and
// database are the session's. It is an error on anything but Linux, and for a server on another machine.
func ServerProcessorTime(backend int, user, database string) (read func() (time.Duration, error), err error) {
	used, err := proc.usageOfServer(backend, user, database)
	if err != nil {
		return nil, err
	}
	return func() (time.Duration, error) {
		u, err := used()
		return u.cpu, err
	}, nil
}

// PeakMemory returns the largest resident memory that a process of this machine has had so far, in
// bytes. It fails on anything but Linux.
func PeakMemory(pid int) (int64, error) { return proc.memory(pid, "VmHWM") }
