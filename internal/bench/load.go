package bench

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Load is the traffic to put on a system. Only Target is required.
type Load struct {
	// Target is the base URL of the system, http://HOST:PORT. Events go to Target/webhook.
	Target string
	// Connections is how many requests are under way at most, each on its own kept connection. 0
	// means 64.
	Connections int
	// Rate is how many events a second are offered (open loop), however the system keeps up. 0
	// makes a closed loop, in which each connection sends its next event when the last was
	// answered.
	Rate float64
	// Duration and Count end the sending, whichever comes first. Both exclude the warm-up. Without
	// either, sending ends after 10 s.
	Duration time.Duration
	Count    int64
	// WarmUp is how long the same traffic runs before anything is counted.
	WarmUp time.Duration
	// BodySize is the length of a request's body in bytes. 0 means 1024.
	BodySize int
	// DuplicateRatio and ConflictRatio are shares of requests, 0 to 1 and at most 1 together. Such
	// a request repeats an event already acknowledged on the same connection, unchanged or with
	// another payload.
	DuplicateRatio float64
	ConflictRatio  float64
	// Timeout is how long an answer may take, connecting included. 0 means 10 s.
	Timeout time.Duration
	// Seed makes the choice of duplicates and conflicts, and the padding of the payload,
	// repeatable.
	Seed uint64
	// RunID begins every event id, so that runs do not meet each other's events. It has 1 to 64
	// characters of A-Z a-z 0-9 _ -. Empty means a new one.
	RunID string
	// Progress, if set, is called about once a second until the run is over.
	Progress func(Snapshot)
}

// Snapshot is the progress of a run. The counts exclude the warm-up.
type Snapshot struct {
	Elapsed      time.Duration // since the start, warm-up included
	WarmingUp    bool
	Sent         int64
	Acknowledged int64
	Errors       int64
	Delivered    int64   // acknowledged events that arrived; 0 for an ingest
	PerSecond    float64 // acknowledged, since the snapshot before
}

var runID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// complete fills in the defaults, or returns an error that names a wrong field.
func (l Load) complete() (Load, error) {
	target, err := url.Parse(l.Target)
	switch {
	case err != nil || target.Scheme != "http" || target.Hostname() == "" || target.RawQuery != "":
		return l, fmt.Errorf("target must be http://HOST:PORT, not %q", l.Target)
	case l.Connections < 0:
		return l, fmt.Errorf("connections must not be negative, not %d", l.Connections)
	case !(l.Rate >= 0 && l.Rate <= 1e6): // also true of NaN
		return l, fmt.Errorf("rate must be between 0 and 1000000, not %v", l.Rate)
	case l.Duration < 0:
		return l, fmt.Errorf("duration must not be negative, not %v", l.Duration)
	case l.Count < 0:
		return l, fmt.Errorf("count must not be negative, not %d", l.Count)
	case l.WarmUp < 0:
		return l, fmt.Errorf("warm-up must not be negative, not %v", l.WarmUp)
	case !(l.DuplicateRatio >= 0 && l.ConflictRatio >= 0 && l.DuplicateRatio+l.ConflictRatio <= 1):
		return l, fmt.Errorf("duplicate and conflict ratio must be between 0 and 1 together, not %v and %v",
			l.DuplicateRatio, l.ConflictRatio)
	case l.Timeout < 0:
		return l, fmt.Errorf("timeout must not be negative, not %v", l.Timeout)
	case l.RunID != "" && !runID.MatchString(l.RunID):
		return l, errors.New("run id must be 1 to 64 characters of A-Z a-z 0-9 _ -")
	}
	if l.Connections == 0 {
		l.Connections = 64
	}
	if l.Duration == 0 && l.Count == 0 {
		l.Duration = 10 * time.Second
	}
	if l.BodySize == 0 {
		l.BodySize = 1024
	}
	if l.Timeout == 0 {
		l.Timeout = 10 * time.Second
	}
	if l.RunID == "" {
		// Ids ascend from run to run as they do within one. A random prefix would put each run
		// among others and leave half-empty pages in the index, as neither ordered nor random ids
		// do.
		l.RunID = "bench-" + strconv.FormatInt(time.Now().UnixMilli(), 36) + strings.ToLower(rand.Text()[:4])
	}
	if shortest := len(newRequest(l).body); l.BodySize < shortest {
		return l, fmt.Errorf("body size must be at least %d bytes, not %d", shortest, l.BodySize)
	}
	return l, nil
}

// end returns when the sending ends, after the start; 0 if only Count ends it.
func (l Load) end() time.Duration {
	if l.Duration == 0 {
		return 0
	}
	return l.WarmUp + l.Duration
}

// address returns the target's host and port.
func (l Load) address() string {
	target, _ := url.Parse(l.Target) // checked by complete
	port := target.Port()
	if port == "" {
		port = "80"
	}
	return net.JoinHostPort(target.Hostname(), port)
}
