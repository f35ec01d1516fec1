package mockapi

import (
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// MaxDelay limits Behaviour.Delay, and how long a request hangs.
const MaxDelay = 5 * time.Minute

// Cut says where to cut a connection.
type Cut string

// The values of Cut.
const (
	CutNever  Cut = "false"
	CutBefore Cut = "true" // before any byte of the answer
	CutBody   Cut = "body" // in the middle of the answer's body
)

// Behaviour says how to answer a request. Each field is a setting of the server; a request may
// replace it by a query parameter.
//
// A request fails by chance, at FailureRate. Status, Hang and Cut are ways to fail, and at most one
// of them may be set. Without them, a failure is answered with 500, 502 or 503. With one of them
// and no FailureRate, every request is answered that way.
type Behaviour struct {
	// FailureRate is the share of requests that fail, 0 to 1. (MOCK_API_FAILURE_RATE, failure_rate)
	FailureRate float64
	// Status is the status of a failure, 200 to 599; a 2xx counts as a success. (MOCK_API_STATUS,
	// status)
	Status int
	// Hang leaves a request without an answer until its client goes, the server stops or MaxDelay
	// is over. Then the connection is cut. (MOCK_API_HANG, hang)
	Hang bool
	// Cut cuts the connection instead of answering. (MOCK_API_CUT, cut)
	Cut Cut
	// Delay passes before the answer, or before the cut; 0 to MaxDelay. (MOCK_API_DELAY, delay)
	Delay time.Duration
	// RetryAfter is sent with every answer that is not a 2xx. Whole seconds ("2") and an HTTP date
	// are sent as they stand. A duration ("2s") is sent as the HTTP date that far from now.
	// (MOCK_API_RETRY_AFTER, retry_after)
	RetryAfter string
}

// invalid reports a value that makes no sense, under the name of its query parameter.
type invalid struct{ parameter, reason string }

func (e *invalid) Error() string { return e.parameter + " " + e.reason }

// setting reports the same under the name of the setting.
func (e *invalid) setting() error {
	return fmt.Errorf("MOCK_API_%s %s", strings.ToUpper(e.parameter), e.reason)
}

func (b Behaviour) check() *invalid {
	ways := 0
	for _, given := range []bool{b.Status != 0, b.Hang, b.cuts()} {
		if given {
			ways++
		}
	}
	switch {
	case !(b.FailureRate >= 0 && b.FailureRate <= 1): // also true of NaN
		return &invalid{"failure_rate", fmt.Sprintf("must be between 0 and 1, not %v", b.FailureRate)}
	case b.Status != 0 && (b.Status < 200 || b.Status > 599):
		return &invalid{"status", fmt.Sprintf("must be between 200 and 599, not %d", b.Status)}
	case b.Delay < 0 || b.Delay > MaxDelay:
		return &invalid{"delay", fmt.Sprintf("must be between 0 and %v, not %v", MaxDelay, b.Delay)}
	case b.Cut != "" && b.Cut != CutNever && b.Cut != CutBefore && b.Cut != CutBody:
		return &invalid{"cut", fmt.Sprintf("must be %q, %q or %q, not %q", CutBefore, CutBody, CutNever, string(b.Cut))}
	case ways > 1 && b.Hang:
		return &invalid{"hang", "excludes status and cut"}
	case ways > 1:
		return &invalid{"status", "excludes cut"}
	}
	if _, ok := retryAfter(b.RetryAfter, time.Time{}); !ok {
		return &invalid{"retry_after", fmt.Sprintf("must be seconds, a duration or an HTTP date, not %q", b.RetryAfter)}
	}
	return nil
}

func (b Behaviour) cuts() bool { return b.Cut == CutBefore || b.Cut == CutBody }

func (b Behaviour) hasWay() bool { return b.Status != 0 || b.Hang || b.cuts() }

// chance returns the probability that a request fails, 0 to 1.
func (b Behaviour) chance() float64 {
	if b.FailureRate == 0 && b.hasWay() {
		return 1
	}
	return b.FailureRate
}

// with returns b as changed by a query. A way to fail in the query replaces the server's own. It
// also replaces the server's failure rate, unless the query sets one.
func (b Behaviour) with(query string) (Behaviour, *invalid) {
	if query == "" {
		return b, nil
	}
	parameters, err := url.ParseQuery(query)
	if err != nil {
		return b, &invalid{"query", "cannot be read"}
	}
	if parameters.Has("status") || parameters.Has("hang") || parameters.Has("cut") {
		b.FailureRate, b.Status, b.Hang, b.Cut = 0, 0, false, CutNever
	}
	for name, values := range parameters {
		if len(values) > 1 {
			return b, &invalid{name, "is given more than once"}
		}
		value := values[0]
		switch name {
		case "failure_rate":
			b.FailureRate, err = strconv.ParseFloat(value, 64)
		case "status":
			b.Status, err = strconv.Atoi(value)
			if b.Status == 0 && err == nil {
				return b, &invalid{"status", "must be between 200 and 599, not 0"}
			}
		case "hang":
			b.Hang, err = strconv.ParseBool(value)
		case "cut":
			b.Cut = Cut(value)
		case "delay":
			b.Delay, err = time.ParseDuration(value)
		case "retry_after":
			b.RetryAfter = value
		default:
			return b, &invalid{name, "is unknown; known are failure_rate, status, hang, cut, delay and retry_after"}
		}
		if err != nil {
			return b, &invalid{name, fmt.Sprintf("cannot be %q", value)}
		}
	}
	if fault := b.check(); fault != nil {
		return b, fault
	}
	if parameters.Has("failure_rate") && b.FailureRate == 0 {
		b.Status, b.Hang, b.Cut = 0, false, CutNever
	}
	return b, nil
}

// retryAfter returns the header's value for a RetryAfter. ok is false if the value makes no sense.
func retryAfter(value string, now time.Time) (string, bool) {
	if value == "" {
		return "", true
	}
	if _, err := strconv.ParseUint(value, 10, 32); err == nil {
		return value, true
	}
	if _, err := http.ParseTime(value); err == nil {
		return value, true
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 {
		return "", false
	}
	// A date has whole seconds. Rounding up keeps the promise "not before".
	at := now.Add(time.Duration(math.Ceil(d.Seconds())) * time.Second)
	return at.UTC().Format(http.TimeFormat), true
}
