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
	"golang.org/x/time/rate"

	"github.com/webhookspine/spine/internal/bell"
	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
)

// Loader reads all sources from where they are stored.
type Loader interface {
	Sources(ctx context.Context) ([]event.SourceSettings, error)
}

const (
	pollInterval = 30 * time.Second // between two reads of the sources that no bell asked for
	fileInterval = time.Second      // between two checks of the files of secrets, and after a failed read
	loadTimeout  = 10 * time.Second // for the database to answer

	// A file that is written in place is empty for a moment. So a source that worked is reported broken only when it
	// still is after this many reads.
	fileReads    = 4
	fileReadWait = 25 * time.Millisecond // between two of them
)

// Registry holds the sources of a process, compiled, and follows their changes. Lookup never waits: it answers from a
// snapshot, which stays as it was while the database is away.
type Registry struct {
	loader  Loader
	secrets Secrets
	log     zerolog.Logger
	changed *bell.Bell // the stored sources may have changed
	seen    *bell.Bell // what this process makes of them may have changed: see Tell
	known   chan struct{}

	closeDefault bool // the source default takes nothing while it verifies nothing

	hidden secretSet // all secrets that were read, and the process's own

	mu      sync.Mutex // guards the replacement of the snapshot
	current atomic.Pointer[snapshot]
	away    atomic.Bool // whether the last read of the sources failed
}

// snapshot is what is known of all sources, by name. It does not change.
type snapshot map[string]*entry

// entry is a source as it was last read.
type entry struct {
	settings event.SourceSettings
	source   *Source              // nil where it is broken
	err      error                // why it is, wrapping event.ErrSourceBroken
	problems []string             // the same, one by one; of one that works, the secrets that cannot be read
	files    map[string]fileStamp // of its secrets, taken before they were read
}

// fileStamp tells whether a file may have changed. It is zero where there is no file.
type fileStamp struct {
	modified time.Time
	size     int64 // bytes
}

func stampOf(path string) fileStamp {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}
	}
	return fileStamp{modified: info.ModTime(), size: info.Size()}
}

// NewRegistry returns a Registry that knows no sources until Run has read them.
func NewRegistry(loader Loader, secrets Secrets, log zerolog.Logger) *Registry {
	return &Registry{
		loader: loader, secrets: secrets, log: log, changed: bell.New(), seen: bell.New(), known: make(chan struct{}),
	}
}

// Known is closed when Run has read the sources for the first time.
func (r *Registry) Known() <-chan struct{} { return r.known }

// CloseDefault closes the source default while it verifies nothing: a new database has it, and nobody has chosen to let
// everyone send. Call it before Run.
func (r *Registry) CloseDefault() { r.closeDefault = true }

// isClosed reports whether a source takes nothing because nobody has chosen to let everyone send to it.
func (r *Registry) isClosed(e *entry) bool {
	return r.closeDefault && e.settings.Source == event.DefaultSource && e.source != nil && e.source.isOpen()
}

// Lookup returns the source of a name. The error is event.ErrNoSource, event.ErrSourceDisabled, event.ErrSourceClosed
// or event.ErrSourcesUnknown, or it wraps event.ErrSourceBroken. The last says what is broken, which no sender may
// read.
func (r *Registry) Lookup(name string) (*Source, error) {
	known := r.current.Load()
	if known == nil {
		return nil, event.ErrSourcesUnknown
	}
	e, isKnown := (*known)[name]
	switch {
	case !isKnown:
		return nil, event.ErrNoSource
	case e.settings.DisabledAt != nil:
		return nil, event.ErrSourceDisabled
	case e.err != nil:
		return nil, e.err
	case r.isClosed(e):
		return nil, event.ErrSourceClosed
	case !e.source.until.IsZero() && e.source.expired(time.Now()):
		return nil, brokenSource(&event.BadSettingsError{Problems: e.source.Unread()})
	}
	return e.source, nil
}

// brokenSource is the error of a source that cannot be used.
func brokenSource(err error) error { return fmt.Errorf("%w: %w", event.ErrSourceBroken, err) }

// Reload rings for Run to read the sources again soon. It never waits.
func (r *Registry) Reload() { r.changed.Ring() }

// Any role that may connect to the database can send the notifications that ring for a reload. So their rate is
// bounded.
const (
	reloadsPerSecond = 4
	reloadBurst      = 20
)

// Run reads the sources and follows their changes until ctx ends. It reads them again on Reload and every 30 seconds.
// It reads the secrets of a source again within a second after one of their files changed, also while the database is
// away. Its error is nil.
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
				r.followFiles(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	defer files.Wait()

	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	reloads := rate.NewLimiter(reloadsPerSecond, reloadBurst)
	r.load(ctx, true)
	for {
		select {
		case <-r.changed.C():
			if reloads.Wait(ctx) != nil {
				return nil
			}
			r.load(ctx, false)
		case <-poll.C:
			r.load(ctx, true)
		case <-ctx.Done():
			return nil
		}
	}
}

// load reads the sources from the database. It compiles those that changed and those that lack a secret. With all it
// also compiles those that have secrets in files, since a file can change and keep its stamp.
func (r *Registry) load(ctx context.Context, all bool) {
	limited, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	rows, err := r.loader.Sources(limited)
	if err != nil {
		if ctx.Err() == nil && !r.away.Swap(true) {
			r.log.Warn().Err(err).Bool("known", r.current.Load() != nil).
				Msg("the sources could not be read, trying again every second")
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
		if old != nil && string(old.settings.Settings) == string(row.Settings) && old.isWhole() &&
			(!all || len(old.files) == 0) {
			same := *old
			same.settings = row
			after[row.Source] = &same
			continue
		}
		after[row.Source] = r.compile(row)
	}
	r.replace(before, &after)
}

// followFiles compiles the sources whose files of secrets changed. It reads and waits without the lock, so that load
// never waits for a file. An entry that load has replaced meanwhile stays: if its files changed too, the next check of
// the files sees it.
func (r *Registry) followFiles(ctx context.Context) {
	known := r.current.Load()
	if known == nil {
		return
	}
	compiled := snapshot{}
	for name, old := range *known {
		if old.filesChanged() {
			compiled[name] = r.compileAgain(ctx, old)
		}
	}
	if len(compiled) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.current.Load()
	after := maps.Clone(*before)
	for name, e := range compiled {
		if (*before)[name] != (*known)[name] {
			continue
		}
		after[name] = e
		r.log.Info().Str("source", name).Msg("the files of a source's secrets changed and were read again")
	}
	r.replace(before, &after)
}

// isWhole reports whether a source works and all of its secrets could be read.
func (e *entry) isWhole() bool { return e.err == nil && e.source.unread == nil }

// filesChanged reports whether a file of the source's secrets changed since it was read.
func (e *entry) filesChanged() bool {
	for path, stamp := range e.files {
		if stampOf(path) != stamp {
			return true
		}
	}
	return false
}

// compileAgain compiles the settings of an entry. Where all secrets could be read before, it gives a file that is just
// being written some time.
func (r *Registry) compileAgain(ctx context.Context, old *entry) *entry {
	compiled := r.compile(old.settings)
	for read := 1; read < fileReads && !compiled.isWhole() && old.isWhole(); read++ {
		select {
		case <-time.After(fileReadWait):
		case <-ctx.Done():
			return compiled
		}
		compiled = r.compile(old.settings)
	}
	return compiled
}

// compile makes an entry of a row. The entry is broken where the source cannot be used.
func (r *Registry) compile(row event.SourceSettings) *entry {
	e := &entry{settings: row, files: map[string]fileStamp{}}
	c, err := ParseConfig(row.Settings)
	if err == nil {
		_, refs := c.references()
		for _, ref := range refs {
			// The stamp is taken before the file is read: the next check sees a change in between.
			if path, ok := r.secrets.File(ref); ok {
				e.files[path] = stampOf(path)
			}
		}
		e.source, err = Compile(row.Source, c, r.secrets.Resolve)
	}
	if e.source != nil {
		r.hidden.add(e.source.forms)
		e.source.known = &r.hidden
	}
	if err != nil {
		e.source, e.problems = nil, problemsOf(err)
		e.err = brokenSource(err)
	} else if e.source.unread != nil {
		e.problems = problemsOf(&event.BadSettingsError{Problems: e.source.unread})
	}
	return e
}

// Hide keeps a secret of the process itself out of what is stored of requests, as those of sources are.
func (r *Registry) Hide(own secret.Value) {
	var all Redactor
	all.learn(own.Reveal())
	r.hidden.add(all.forms)
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

// replace makes after the snapshot in the place of before, and logs what that changes. The caller holds the lock.
func (r *Registry) replace(before, after *snapshot) {
	r.current.Store(after)
	r.seen.Ring()
	if before == nil {
		before = &snapshot{}
		line := r.log.Info().Int("sources", len(*after))
		if e := (*after)[event.DefaultSource]; e != nil {
			line = line.Str("default", r.state(e, time.Now()))
		}
		line.Msg("the sources were read")
		close(r.known)
	}
	for _, name := range slices.Sorted(maps.Keys(*after)) {
		e, old := (*after)[name], (*before)[name]
		was, unread := "", []string(nil)
		switch {
		case old == nil:
		case old.err != nil:
			was = old.err.Error()
		default:
			unread = old.problems
		}
		switch {
		case e.err != nil && e.err.Error() != was:
			r.log.Warn().Str("source", name).Strs("problems", e.problems).
				Msg("a source is broken: its requests are answered with 503")
		case e.err == nil && was != "":
			r.log.Info().Str("source", name).Msg("a source that was broken can be used again")
		}
		switch {
		case e.err != nil:
		case len(e.problems) > 0 && !slices.Equal(e.problems, unread):
			r.log.Warn().Str("source", name).Strs("problems", e.problems).
				Msg("a source lacks a secret: it takes only what its other secrets verify")
		case len(e.problems) == 0 && len(unread) > 0:
			r.log.Info().Str("source", name).Msg("all secrets of a source can be read again")
		}
	}
}

// Statuses returns the state of each source as this process sees it, sorted by name. It is nil until the sources were
// read.
func (r *Registry) Statuses() []event.SourceStatus {
	known := r.current.Load()
	if known == nil {
		return nil
	}
	now := time.Now()
	statuses := make([]event.SourceStatus, 0, len(*known))
	for _, name := range slices.Sorted(maps.Keys(*known)) {
		statuses = append(statuses, r.status((*known)[name], now))
	}
	return statuses
}

// States counts the sources by state as this process sees them, and names them all. ok is false until the sources were
// read. It compiles nothing, so it is cheap.
func (r *Registry) States() (count map[string]int, names []string, ok bool) {
	known := r.current.Load()
	if known == nil {
		return nil, nil, false
	}
	count = map[string]int{"open": 0, "verified": 0, "closed": 0, "disabled": 0, "broken": 0}
	now := time.Now()
	for name, e := range *known {
		count[r.state(e, now)]++
		names = append(names, name)
	}
	return count, names, true
}

// state is the state of a source at a time, in a word.
func (r *Registry) state(e *entry, now time.Time) string {
	switch {
	case e.settings.DisabledAt != nil:
		return "disabled"
	case e.source == nil, e.source.expired(now):
		return "broken"
	case r.isClosed(e):
		return "closed"
	case e.source.isOpen():
		return "open"
	}
	return "verified"
}

// status is the state of a source at a time, which decides whether its secrets are valid.
func (r *Registry) status(e *entry, now time.Time) event.SourceStatus {
	name := e.settings.Source
	s := event.SourceStatus{Source: name, State: r.state(e, now), Path: pathOf(name), Problems: r.problems(e, now)}
	if c, err := ParseConfig(e.settings.Settings); err == nil {
		s.Preset = c.Preset
		if preset, known := PresetOf(c.Preset); known {
			s.Steps = preset.StepsFor(name, c, r.whereItIs)
		}
	}
	return s
}

// whereItIs says which file of this process has the secret that a reference names. It is empty of variables.
func (r *Registry) whereItIs(ref string) string {
	if path, ok := r.secrets.File(ref); ok {
		return "on the server, it is in " + path
	}
	return ""
}

// problems say at a time why a source is broken or closed, or warn about one that works.
func (r *Registry) problems(e *entry, now time.Time) []string {
	switch state := r.state(e, now); {
	case state == "closed":
		return []string{"It takes nothing until it has a secret: it would take events from anyone. " +
			"DEFAULT_SOURCE=open lets anyone send."}
	case state == "broken" || e.source == nil:
		return e.problems
	}
	return e.source.warnings(now)
}
