package source

import (
	"context"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// ReportStore keeps what the processes that receive webhooks make of the sources, so that commands can tell it. Whether
// a source can be used depends on secrets that only these processes can read.
type ReportStore interface {
	// TellSources notes what a process makes of all sources. Repeated within tellInterval, it says that the process is
	// alive.
	TellSources(ctx context.Context, process string, reports []event.SourceReport) error
	// ForgetReceiver removes all that a process told.
	ForgetReceiver(ctx context.Context, process string) error
}

const (
	tellInterval  = time.Minute      // between two reports in which nothing is new
	tellAgain     = 10 * time.Second // after a report that failed
	tellTimeout   = 10 * time.Second // for the database to answer
	forgetTimeout = time.Second      // the same at the end, which waits for it
)

// Tell tells what this process makes of the sources, whenever that changes and every minute, until ctx ends. Then it
// takes all of it back. A report that fails is repeated. Its error is nil.
func (r *Registry) Tell(ctx context.Context, to ReportStore, process string) error {
	var told []event.SourceReport
	failed := false
	tell := func(again bool) (next time.Duration) {
		reports := r.reports(time.Now())
		if reports == nil || !again && reflect.DeepEqual(reports, told) {
			return tellInterval
		}
		limited, cancel := context.WithTimeout(ctx, tellTimeout)
		defer cancel()
		if err := to.TellSources(limited, process, reports); err != nil {
			if ctx.Err() == nil && !failed {
				r.log.Warn().Err(err).Msg("commands cannot tell what this process makes of the sources, trying again")
			}
			told, failed = nil, true
			return tellAgain
		}
		told, failed = reports, false
		return tellInterval
	}
	next := time.NewTimer(tellInterval)
	defer next.Stop()
	for {
		select {
		case <-r.seen.C():
			if rest := tell(failed); rest == tellAgain {
				next.Reset(rest)
			}
		case <-next.C:
			next.Reset(tell(true))
		case <-ctx.Done():
			ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetTimeout)
			defer cancel()
			if err := to.ForgetReceiver(ending, process); err != nil {
				r.log.Debug().Err(err).Msg("what this process told of the sources stays for some minutes")
			}
			return nil
		}
	}
}

// reports are what this process makes of the sources at a time, sorted by name. They are nil until the sources were
// read.
func (r *Registry) reports(now time.Time) []event.SourceReport {
	known := r.current.Load()
	if known == nil {
		return nil
	}
	all := make([]event.SourceReport, 0, len(*known))
	for _, name := range slices.Sorted(maps.Keys(*known)) {
		e := (*known)[name]
		problems := r.problems(e, now)
		if problems == nil {
			problems = []string{}
		}
		all = append(all, event.SourceReport{
			Source: name, SettingsAt: e.settings.UpdatedAt, State: r.state(e, now), Problems: problems,
		})
	}
	return all
}
