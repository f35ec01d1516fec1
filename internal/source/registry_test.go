package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
)

// table stands in for the database.
type table struct {
	mu    sync.Mutex
	rows  map[string]event.SourceSettings
	err   error
	loads int
}

func (t *table) Sources(context.Context) ([]event.SourceSettings, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.loads++
	if t.err != nil {
		return nil, t.err
	}
	var rows []event.SourceSettings
	for _, row := range t.rows {
		rows = append(rows, row)
	}
	return rows, nil
}

func (t *table) put(name, settings string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows[name] = event.SourceSettings{Source: name, Settings: json.RawMessage(settings)}
}

func (t *table) change(change func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change()
}

// logged is the log of a registry.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// count is how many lines hold a text.
func (l *logged) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// testSecrets are secrets of which all may be named. Those of files are named by their paths.
type testSecrets struct{ resolve SecretResolver }

func (testSecrets) Check(string) error                         { return nil }
func (s testSecrets) Resolve(ref string) (secret.Value, error) { return s.resolve(ref) }
func (testSecrets) File(ref string) (path string, ok bool)     { return strings.CutPrefix(ref, "file:") }

// filesOf reads the secrets of a folder as a process does.
func filesOf(dir string) SecretResolver { return secret.NewResolver(secret.Rules{Dir: dir}).Resolve }

// inRegistry runs a test beside a registry on a clock of its own.
func inRegistry(t *testing.T, tab *table, resolve SecretResolver, test func(t *testing.T, r *Registry, l *logged)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &logged{}
		r := NewRegistry(tab, testSecrets{resolve}, zerolog.New(l))
		_, err := r.Lookup("default")
		require.ErrorIs(t, err, event.ErrSourcesUnknown)
		require.Empty(t, r.Statuses())

		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		test(t, r, l)
		cancel()
		require.NoError(t, <-done)
	})
}

func newTable() *table { return &table{rows: map[string]event.SourceSettings{}} }

func TestRegistryFollowsChanges(t *testing.T) {
	tab := newTable()
	tab.put("default", `{"preset":"envelope"}`)
	tab.put("github", `{"preset":"github","secrets":["env:S"]}`)
	inRegistry(t, tab, vault{"S": "x"}.resolve, func(t *testing.T, r *Registry, l *logged) {
		github, err := r.Lookup("github")
		require.NoError(t, err)
		require.Equal(t, "github", github.Name())
		_, err = r.Lookup("stripe")
		require.ErrorIs(t, err, event.ErrNoSource)

		// A change is seen once the bell was rung, or after a while.
		tab.put("stripe", `{"preset":"stripe","secrets":["env:S"]}`)
		tab.change(func() {
			row := tab.rows["default"]
			row.DisabledAt = &event.Timestamp{}
			tab.rows["default"] = row
		})
		for range 1000 {
			r.Reload()
		}
		synctest.Wait()
		require.Less(t, tab.loads, 10)
		_, err = r.Lookup("stripe")
		require.NoError(t, err)
		_, err = r.Lookup("default")
		require.ErrorIs(t, err, event.ErrSourceDisabled)
		same, err := r.Lookup("github")
		require.NoError(t, err)
		require.Same(t, github, same, "what did not change is not made anew")

		tab.change(func() { delete(tab.rows, "github") })
		time.Sleep(pollInterval)
		synctest.Wait()
		_, err = r.Lookup("github")
		require.ErrorIs(t, err, event.ErrNoSource)
	})
}

func TestRegistryKeepsBrokenSources(t *testing.T) {
	tab := newTable()
	tab.put("a", `{"preset":"github","secrets":["env:S","env:GONE"],"tolerance":1}`)
	tab.put("b", `{"preset":"github","secrets":["env:GONE"]}`)
	tab.put("c", `[]`)
	tab.put("open", `{"preset":"none"}`)
	tab.put("d", `{"preset":"github","secrets":[{"ref":"env:S","until":"1999-01-01T00:00:00Z"}]}`)
	secrets := vault{"S": "hidden-from-all-eyes"}
	inRegistry(t, tab, secrets.resolve, func(t *testing.T, r *Registry, l *logged) {
		for _, name := range []string{"a", "b", "c"} {
			s, err := r.Lookup(name)
			require.ErrorIs(t, err, event.ErrSourceBroken)
			require.Nil(t, s)
		}
		steps := r.Statuses()[1].Steps
		require.NotEmpty(t, steps)
		preset, _ := PresetOf("none")
		require.Equal(t, []event.SourceStatus{
			{Source: "a", State: "broken", Path: "/webhook/a", Problems: []string{
				"tolerance is no setting; there are conflicts, format, handshake, id, id_signed, limits, preset, " +
					"rejected, secrets, time, type, url, verify, verify_token, volatile",
			}},
			{
				Source:   "b",
				State:    "broken",
				Path:     "/webhook/b",
				Preset:   "github",
				Steps:    steps,
				Problems: []string{"secrets[0] env:GONE is not set"},
			},
			{Source: "c", State: "broken", Path: "/webhook/c", Problems: []string{"must be an object, found an array"}},
			{
				Source:   "d",
				State:    "verified",
				Path:     "/webhook/d",
				Preset:   "github",
				Steps:    r.Statuses()[3].Steps,
				Problems: []string{"none of its secrets is valid now: every request is rejected"},
			},
			{
				Source: "open",
				State:  "open",
				Path:   "/webhook/open",
				Preset: "none",
				Steps:  preset.StepsFor("open", Config{}, unseen),
			},
		}, r.Statuses())

		time.Sleep(10 * pollInterval)
		synctest.Wait()
		require.Equal(t, 3, l.count("a source is broken"), "once each")

		tab.change(func() { secrets["GONE"] = "hidden" })
		r.Reload()
		synctest.Wait()
		_, err := r.Lookup("b")
		require.NoError(t, err)
		require.Equal(t, 1, l.count("can be used again"))
		require.Zero(t, l.count("hidden"))

		tab.change(func() {
			row := tab.rows["b"]
			row.DisabledAt = &event.Timestamp{}
			tab.rows["b"] = row
		})
		r.Reload()
		synctest.Wait()
		require.Equal(t, "disabled", r.Statuses()[1].State)
	})
}

// G2: a source that lacks one of several secrets works, and says so. It is broken once the others end.
func TestRegistryKeepsSourcesThatLackASecret(t *testing.T) {
	tab := newTable()
	secrets := vault{"S": "hidden-from-all-eyes"}
	inRegistry(t, tab, secrets.resolve, func(t *testing.T, r *Registry, l *logged) {
		until := time.Now().Add(time.Hour).Format(time.RFC3339Nano)
		tab.put("github", `{"preset":"github","secrets":["env:NEW",{"ref":"env:S","until":"`+until+`"}]}`)
		r.Reload()
		synctest.Wait()
		s, err := r.Lookup("github")
		require.NoError(t, err)
		q, err := s.Sample(time.Now())
		require.NoError(t, err)
		require.NoError(t, s.Verify(q))
		status := r.Statuses()[0]
		require.Equal(t, "verified", status.State)
		require.Equal(t, []string{"secrets[0] env:NEW is not set"}, status.Problems)
		time.Sleep(10 * pollInterval)
		synctest.Wait()
		require.Equal(t, 1, l.count("a source lacks a secret"), "once")
		require.Zero(t, l.count("a source is broken"))

		time.Sleep(time.Hour)
		_, err = r.Lookup("github")
		require.ErrorIs(t, err, event.ErrSourceBroken, "no 4xx is given for our fault")
		require.Equal(t, "broken", r.Statuses()[0].State)
		synctest.Wait()

		tab.change(func() { secrets["NEW"] = "hidden-from-all-eyes, too" })
		time.Sleep(pollInterval)
		synctest.Wait()
		_, err = r.Lookup("github")
		require.NoError(t, err)
		require.Empty(t, r.Statuses()[0].Problems)
		require.Zero(t, l.count("hidden"))
	})
}

// B5, of its kind: whoever may connect to the database can ring for reloads. They are few.
func TestReloadsAreFew(t *testing.T) {
	tab := newTable()
	tab.put("default", `{"preset":"envelope"}`)
	inRegistry(t, tab, vault{}.resolve, func(t *testing.T, r *Registry, _ *logged) {
		for range 10_000 {
			r.Reload()
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		require.Less(t, tab.loads, 1+reloadBurst+10*reloadsPerSecond+2)
		tab.put("last", `{"preset":"none"}`)
		r.Reload()
		time.Sleep(time.Second)
		synctest.Wait()
		_, err := r.Lookup("last")
		require.NoError(t, err, "no change is missed")
	})
}

func TestRegistryWhileTheDatabaseIsAway(t *testing.T) {
	tab := newTable()
	tab.put("default", `{"preset":"envelope"}`)
	tab.err = errors.New("away")
	inRegistry(t, tab, vault{}.resolve, func(t *testing.T, r *Registry, l *logged) {
		time.Sleep(10 * time.Second)
		synctest.Wait()
		_, err := r.Lookup("default")
		require.ErrorIs(t, err, event.ErrSourcesUnknown)
		require.Equal(t, 1, l.count("could not be read"), "once")
		require.GreaterOrEqual(t, tab.loads, 10)

		tab.change(func() { tab.err = nil })
		time.Sleep(fileInterval)
		synctest.Wait()
		_, err = r.Lookup("default")
		require.NoError(t, err)
		require.Equal(t, 1, l.count("can be read again"))

		tab.change(func() { tab.err = errors.New("away") })
		r.Reload()
		time.Sleep(time.Hour)
		synctest.Wait()
		_, err = r.Lookup("default")
		require.NoError(t, err, "what was known stays")
		require.Equal(t, 2, l.count("could not be read"))
	})
}

func TestRegistryFollowsFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	modified := time.Now()
	// The test sets the time of the file, since the file system has another clock than the test.
	write := func(text string) {
		modified = modified.Add(time.Second)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		require.NoError(t, os.Chtimes(path, modified, modified))
	}
	write("old\n")
	tab := newTable()
	tab.put("github", `{"preset":"github","secrets":["file:`+path+`"]}`)
	inRegistry(t, tab, filesOf(filepath.Dir(path)), func(t *testing.T, r *Registry, l *logged) {
		signs := func(secret string) bool {
			s, err := r.Lookup("github")
			require.NoError(t, err)
			q := request("x")
			require.NoError(t, compiled(t, `{"preset":"github","secrets":["env:S"]}`, vault{"S": secret}).Sign(q, now))
			return s.Verify(q) == nil
		}
		require.True(t, signs("old"))
		tab.change(func() { tab.err = errors.New("away") }) // the database is not needed for it
		write("new\n")
		time.Sleep(fileInterval)
		synctest.Wait()
		require.True(t, signs("new"))
		require.False(t, signs("old"))
		require.Equal(t, 1, l.count("read again"))

		// A file that is just being written is empty for a moment.
		write("")
		go func() {
			time.Sleep(fileInterval + fileReadWait/2)
			write("newer")
		}()
		time.Sleep(fileInterval + fileReadWait)
		synctest.Wait()
		require.True(t, signs("newer"))
		require.Zero(t, l.count("broken"))

		require.NoError(t, os.Remove(path))
		time.Sleep(2 * fileInterval)
		synctest.Wait()
		_, err := r.Lookup("github")
		require.ErrorIs(t, err, event.ErrSourceBroken)
		require.ErrorContains(t, err, path)
		time.Sleep(10 * fileInterval)
		require.Equal(t, 1, l.count("a source is broken"))

		write("last")
		time.Sleep(fileInterval)
		synctest.Wait()
		require.True(t, signs("last"))

		// A change that the stamp does not tell is seen at the next look.
		tab.change(func() { tab.err = nil })
		modified = modified.Add(-time.Second)
		write("lost")
		time.Sleep(fileInterval)
		synctest.Wait()
		require.True(t, signs("last"))
		time.Sleep(pollInterval)
		synctest.Wait()
		require.True(t, signs("lost"))
	})
}

// A file that is being written delays its own source alone.
func TestReloadNeverWaitsForAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte("whole"), 0o600))
	tab := newTable()
	tab.put("github", `{"preset":"github","secrets":["file:`+path+`"]}`)
	inRegistry(t, tab, filesOf(filepath.Dir(path)), func(t *testing.T, r *Registry, l *logged) {
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		time.Sleep(fileInterval + fileReadWait/2) // the registry waits to read the file again
		tab.put("default", `{"preset":"envelope"}`)
		r.Reload()
		synctest.Wait()
		_, err := r.Lookup("default")
		require.NoError(t, err)
		_, err = r.Lookup("github")
		require.NoError(t, err, "it is not yet broken")

		// The entry that was compiled meanwhile is for the next check.
		time.Sleep(2 * fileInterval)
		synctest.Wait()
		_, err = r.Lookup("github")
		require.ErrorIs(t, err, event.ErrSourceBroken)
		require.Equal(t, 1, l.count("a source is broken"))
	})
}

func TestRegistryLookupWhileReloading(t *testing.T) {
	tab := newTable()
	tab.put("default", `{"preset":"envelope"}`)
	r := NewRegistry(tab, testSecrets{vault{}.resolve}, zerolog.Nop())
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { _ = r.Run(ctx) })
	isKnown := func() bool { _, err := r.Lookup("default"); return err == nil }
	require.Eventually(t, isKnown, time.Minute, time.Millisecond)
	for range 4 {
		all.Go(func() {
			for range 1000 {
				r.Reload()
				if _, err := r.Lookup("default"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	time.AfterFunc(50*time.Millisecond, cancel)
	all.Wait()
}

// A, of its kind: a request may carry the secret of another source, or one that its source had before. Neither is kept.
func TestSecretsOfOtherSourcesAreHidden(t *testing.T) {
	tab := newTable()
	const token, short = "A-token-of-Some-length", "short-1x"
	tab.put("theirs", `{"preset":"token","secrets":["env:T","env:S"],"verify":[{"header":"X-Proof"}]}`)
	tab.put("other", `{"preset":"github","secrets":["env:O"]}`)
	tab.put("broken", `{"preset":"github","secrets":["env:MISSING"]}`)
	inRegistry(t, tab, vault{"T": token, "S": short, "O": "quite-another-secret"}.resolve,
		func(t *testing.T, r *Registry, _ *logged) {
			hides := func() {
				t.Helper()
				for _, name := range []string{"theirs", "other", "broken"} {
					redactor, ok := r.Stray(name)
					require.True(t, ok)
					if found, err := r.Lookup(name); err == nil {
						redactor.Redactor = found.Redactor
					}
					for _, text := range []string{token, strings.ToUpper(token), "a=" + token + ";", short} {
						kept := string(redactor.Redact(http.Header{"X-Proof": {text}, "X-Note": {text + " word"}}))
						kept += redactor.RedactTarget(&url.URL{Path: "/webhook/" + text, RawQuery: "p=" + text})
						require.NotContains(t, strings.ToLower(kept), strings.ToLower(token), name)
						require.NotContains(t, kept, short, name)
					}
					split := redactor.Redact(http.Header{"X-Note": {"a", token[:9], token[9:]}})
					require.Equal(t, 3, strings.Count(string(split), redacted), "over lines")
					require.True(t, redactor.exposesSecret("id-"+token), name)
					require.True(t, redactor.exposesSecret(short), name)
					require.False(t, redactor.exposesSecret("id-"+short), "it may be a word")
					require.Contains(t, string(redactor.Redact(http.Header{"X-Note": {"A-token-of-some"}})), "of-some")
				}
			}
			hides()
			tab.put("theirs", `{"preset":"github","secrets":["env:O"]}`)
			r.Reload()
			time.Sleep(time.Second)
			hides()
			tab.change(func() { delete(tab.rows, "theirs") })
			tab.put("theirs", `{"preset":"github","secrets":["env:O"]}`)
			r.Reload()
			time.Sleep(time.Second)
			hides()
		})
}

// A set finds each secret wherever it stands, and nothing else.
func TestSecretSet(t *testing.T) {
	var set secretSet
	var forms []secret.Value
	for n := range 500 {
		forms = append(forms, secret.New(fmt.Sprintf("secret%04d", n)))
	}
	set.add(forms[:250])
	set.add(forms)
	set.add(forms)
	index := set.index.Load()
	require.Len(t, index.forms, 500)
	for n := range 500 {
		require.True(t, index.in(fmt.Sprintf("%ssecret%04d!", strings.Repeat("s", n%7), n), 0))
		require.False(t, index.in(fmt.Sprintf("%04dsecret", n), 0))
	}
	require.False(t, index.in("", 0))
	require.False(t, index.in("sec", 0))
	require.False(t, index.in("secret0001 and more", 11))
	require.NotContains(t, fmt.Sprintf("%v %+v %#v", index, index, index), "secret0")
}

// A15: the source default of a new database takes nothing until it verifies, or until somebody chooses that anyone may
// send. Other sources without verification were made by somebody, who has chosen.
func TestDefaultIsClosedUntilItVerifies(t *testing.T) {
	tab := newTable()
	tab.put("default", `{"preset":"envelope"}`)
	tab.put("raw", `{"preset":"none","id":["{body:/id}"]}`)
	r := NewRegistry(tab, testSecrets{vault{"S": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODk="}.resolve}, zerolog.Nop())
	r.CloseDefault()
	state := func() string {
		for _, s := range r.Statuses() {
			if s.Source == "default" {
				return s.State
			}
		}
		return ""
	}
	r.load(t.Context(), true)
	_, err := r.Lookup("default")
	require.ErrorIs(t, err, event.ErrSourceClosed)
	require.Equal(t, "closed", state())
	verifier := func() *Source {
		stray, known := r.Stray("default")
		require.True(t, known)
		return stray.Source
	}
	require.Nil(t, verifier(), "it takes requests from anyone")
	_, err = r.Lookup("raw")
	require.NoError(t, err)
	count, names, ok := r.States()
	require.True(t, ok)
	require.ElementsMatch(t, []string{"default", "raw"}, names)
	require.Equal(t, map[string]int{"open": 1, "verified": 0, "closed": 1, "disabled": 0, "broken": 0}, count)

	tab.put("default", `{"preset":"none"}`)
	r.load(t.Context(), true)
	_, err = r.Lookup("default")
	require.ErrorIs(t, err, event.ErrSourceClosed, "another preset that verifies nothing")

	tab.put("default", `{"preset":"standard-webhooks","format":"envelope","secrets":["env:S"]}`)
	r.load(t.Context(), true)
	secured, err := r.Lookup("default")
	require.NoError(t, err)
	require.Equal(t, "verified", state())
	request, err := secured.Sample(time.Now())
	require.NoError(t, err)
	require.NoError(t, secured.Verify(request))
	request.Body = request.Wire
	events, _, err := secured.Read(request)
	require.NoError(t, err)
	require.Equal(t, "sample", events[0].Type, "an envelope")

	// B2: who sent a request can be told also while its source is disabled.
	tab.change(func() {
		row := tab.rows["default"]
		row.DisabledAt = &event.Timestamp{}
		tab.rows["default"] = row
	})
	r.load(t.Context(), true)
	_, err = r.Lookup("default")
	require.ErrorIs(t, err, event.ErrSourceDisabled)
	require.NoError(t, verifier().Verify(request))

	tab.put("default", `{"preset":"standard-webhooks","format":"envelope","secrets":["env:GONE"]}`)
	r.load(t.Context(), true)
	_, err = r.Lookup("default")
	require.ErrorIs(t, err, event.ErrSourceBroken)
	require.Equal(t, "broken", state())
	require.Nil(t, verifier(), "it has no secret")
}
