package source

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
)

// Loader reads all sources from where they are stored.
type Loader interface {
	Sources(ctx context.Context) ([]event.SourceSettings, error)
}

const (
	pollInterval = 30 * time.Second // between two looks at the sources that nobody asked for
	fileInterval = time.Second      // between two looks at the files of secrets, and after a look at the sources that failed
	loadPatience = 10 * time.Second // for the database to answer

	// A file that is written in place is empty for a moment. A source that worked
	// is said to be broken only when it still is after this many looks.
	fileLooks = 4
	fileRest  = 25 * time.Millisecond // between two of them
)

// Registry holds the sources of a process, ready to be used, and follows their
// changes. Lookup never waits: it is answered from a snapshot, which stays as it
// was while the database is away.
type Registry struct {
	loader  Loader
	resolve SecretResolver
	log     zerolog.Logger
	bell    chan struct{} // of capacity one: a ring that was not heard yet stands for all

	mu      sync.Mutex // held to replace the snapshot
	current atomic.Pointer[snapshot]
	away    atomic.Bool // whether the last look at the sources failed
}

// snapshot is what is known of all sources, by name. It does not change.
type snapshot map[string]*entry

// entry is a source as it was last read.
type entry struct {
	settings event.SourceSettings
	source   *Source          // nil where it is broken
	err      error            // why it is, wrapping event.ErrSourceBroken
	problems []string         // the same, one by one
	files    map[string]stamp // of its secrets, looked at before they were read
}

// stamp tells whether a file may have changed. It is zero where there is none.
type stamp struct {
	modified time.Time
	size     int64
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{modified: info.ModTime(), size: info.Size()}
}

// NewRegistry returns a Registry that knows no sources until Run has read them.
func NewRegistry(loader Loader, resolve SecretResolver, log zerolog.Logger) *Registry {
	return &Registry{loader: loader, resolve: resolve, log: log, bell: make(chan struct{}, 1)}
}

// Lookup returns the source of a name. The error is event.ErrNoSource,
// event.ErrSourceDisabled, event.ErrSourcesUnknown, or wraps
// event.ErrSourceBroken and says why it is, which is not for a sender to read.
func (r *Registry) Lookup(name string) (*Source, error) {
	known := r.current.Load()
	if known == nil {
		return nil, event.ErrSourcesUnknown
	}
	e, found := (*known)[name]
	switch {
	case !found:
		return nil, event.ErrNoSource
	case e.settings.DisabledAt != nil:
		return nil, event.ErrSourceDisabled
	case e.err != nil:
		return nil, e.err
	}
	return e.source, nil
}

// Reload has the sources read again soon. It never waits.
func (r *Registry) Reload() {
	select {
	case r.bell <- struct{}{}:
	default:
	}
}

// Run reads the sources and follows their changes until ctx ends: when told by
// Reload, every 30 seconds, and within a second of a change of a file that holds
// a secret, for which the database is not needed. Its error is nil.
func (r *Registry) Run(ctx context.Context) error {
	var files sync.WaitGroup
	files.Go(func() {
		tick := time.NewTicker(fileInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if r.away.Load() {
					r.Reload()
				}
				r.follow(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	defer files.Wait()

	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	r.load(ctx, true)
	for {
		select {
		case <-r.bell:
			r.load(ctx, false)
		case <-poll.C:
			r.load(ctx, true)
		case <-ctx.Done():
			return nil
		}
	}
}

// load reads the sources from the database. What did not change is not made
// anew, unless it is broken or, where all is set, has secrets in files: a change
// of a file can leave its stamp as it was.
func (r *Registry) load(ctx context.Context, all bool) {
	patient, cancel := context.WithTimeout(ctx, loadPatience)
	defer cancel()
	rows, err := r.loader.Sources(patient)
	if err != nil {
		if ctx.Err() == nil && !r.away.Swap(true) {
			r.log.Warn().Err(err).Bool("known", r.current.Load() != nil).Msg("the sources could not be read, trying again every second")
		}
		return
	}
	if r.away.Swap(false) {
		r.log.Info().Msg("the sources can be read again")
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.current.Load()
	after := make(snapshot, len(rows))
	for _, row := range rows {
		var old *entry
		if before != nil {
			old = (*before)[row.Source]
		}
		if old != nil && string(old.settings.Settings) == string(row.Settings) && old.err == nil && (!all || len(old.files) == 0) {
			same := *old
			same.settings = row
			after[row.Source] = &same
			continue
		}
		after[row.Source] = r.compile(row)
	}
	r.replace(before, &after)
}

// follow makes those sources anew whose secrets' files changed.
func (r *Registry) follow(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.current.Load()
	if before == nil {
		return
	}
	var after snapshot
	for name, old := range *before {
		changed := false
		for path, seen := range old.files {
			changed = changed || stampOf(path) != seen
		}
		if !changed {
			continue
		}
		made := r.compile(old.settings)
		for look := 1; look < fileLooks && made.err != nil && old.err == nil && ctx.Err() == nil; look++ {
			time.Sleep(fileRest)
			made = r.compile(old.settings)
		}
		if after == nil {
			after = maps.Clone(*before)
		}
		after[name] = made
		r.log.Info().Str("source", name).Msg("the files of a source's secrets changed and were read again")
	}
	if after != nil {
		r.replace(before, &after)
	}
}

// compile makes an entry of a row, broken where it cannot be used.
func (r *Registry) compile(row event.SourceSettings) *entry {
	e := &entry{settings: row, files: map[string]stamp{}}
	c, err := ParseConfig(row.Settings)
	if err == nil {
		refs := []string{c.VerifyToken}
		for _, s := range c.Secrets {
			refs = append(refs, s.Ref)
		}
		for _, ref := range refs {
			// The stamp is taken before the file is read: a change in between is seen at
			// the next look.
			if kind, path, ok := splitRef(ref); ok && kind == "file" {
				e.files[path] = stampOf(path)
			}
		}
		e.source, err = Compile(row.Source, c, r.resolve)
	}
	if err != nil {
		e.source, e.problems = nil, problemsOf(err)
		e.err = fmt.Errorf("%w: %w", event.ErrSourceBroken, err)
	}
	return e
}

// problemsOf lists what is wrong with settings, a line each.
func problemsOf(err error) []string {
	var bad *event.BadSettingsError
	if !errors.As(err, &bad) {
		return []string{err.Error()}
	}
	var lines []string
	for _, p := range bad.Problems {
		lines = append(lines, strings.TrimSpace(p.Field+" "+p.Detail))
	}
	return lines
}

// replace puts a snapshot in the place of another and logs what that changes.
func (r *Registry) replace(before, after *snapshot) {
	r.current.Store(after)
	if before == nil {
		before = &snapshot{}
		r.log.Info().Int("sources", len(*after)).Msg("the sources were read")
	}
	for _, name := range slices.Sorted(maps.Keys(*after)) {
		e, old := (*after)[name], (*before)[name]
		was := ""
		if old != nil && old.err != nil {
			was = old.err.Error()
		}
		switch {
		case e.err != nil && e.err.Error() != was:
			r.log.Warn().Str("source", name).Strs("problems", e.problems).Msg("a source is broken: what comes to it is answered with 503")
		case e.err == nil && was != "":
			r.log.Info().Str("source", name).Msg("a source that was broken can be used again")
		}
	}
}

// Statuses says how each source is, by name.
func (r *Registry) Statuses() []event.SourceStatus {
	known := r.current.Load()
	if known == nil {
		return nil
	}
	now := time.Now()
	statuses := make([]event.SourceStatus, 0, len(*known))
	for _, name := range slices.Sorted(maps.Keys(*known)) {
		statuses = append(statuses, (*known)[name].status(now))
	}
	return statuses
}

func (e *entry) status(now time.Time) event.SourceStatus {
	s := event.SourceStatus{Source: e.settings.Source, State: "verified", Path: pathOf(e.settings.Source), Problems: e.problems}
	if c, err := ParseConfig(e.settings.Settings); err == nil {
		s.Preset = c.Preset
		if preset, known := PresetOf(c.Preset); known {
			s.Steps = preset.StepsFor(e.settings.Source, c)
		}
	}
	if e.source != nil {
		s.Problems = e.source.warnings(now)
		if e.source.isOpen() {
			s.State = "open"
		}
	} else {
		s.State = "broken"
	}
	if e.settings.DisabledAt != nil {
		s.State = "disabled"
	}
	return s
}
