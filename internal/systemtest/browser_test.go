package systemtest

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/service"
)

// slowBrowser limits waits for what a browser does at once on an idle machine. After a step of TestBrowser has failed,
// the others wait for hurriedBrowser only: they mostly fail for the same reason, and would together wait for too long.
const (
	slowBrowser    = 2 * time.Minute
	hurriedBrowser = 20 * time.Second
)

// browserPath finds a browser. Without one the test is skipped, unless
// SPINE_TEST_BROWSER says that there must be one.
func browserPath(t *testing.T) string {
	t.Helper()
	if named := os.Getenv("SPINE_TEST_BROWSER"); named != "" {
		path, err := exec.LookPath(named)
		require.NoError(t, err, "SPINE_TEST_BROWSER")
		return path
	}
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip(
		"*** NO BROWSER ON THIS MACHINE: THE DASHBOARD IS NOT TESTED. " +
			"Install chromium, or name one in SPINE_TEST_BROWSER. ***",
	)
	return ""
}

// tab is a page in a browser. Errors in the console, violations of its policy and requests to another host fail the
// test.
type tab struct {
	ctx    context.Context
	t      *testing.T
	failed *atomic.Bool

	mu       sync.Mutex
	faults   []string
	requests []string
	awayOK   bool // failed requests are no fault: the server is stopped on purpose
}

// browser is a running browser. Each of its tabs has a window, so that none is
// hidden.
type browser struct {
	ctx    context.Context
	failed *atomic.Bool // a step has failed
}

// startBrowser starts a browser with a profile of its own, until the test ends.
func startBrowser(t *testing.T) browser {
	t.Helper()
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(browserPath(t)),
		chromedp.NoFirstRun,
		chromedp.NoDefaultBrowserCheck,
		chromedp.DisableGPU,
		chromedp.Flag(
			"headless",
			"new",
		),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag(
			"disable-component-update",
			true,
		),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-extensions", true),
		chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("disable-background-timer-throttling", true),
		chromedp.Flag(
			"disable-renderer-backgrounding",
			true,
		),
		chromedp.Flag("disable-hang-monitor", true),
		chromedp.Flag("enable-automation", true),
		chromedp.Flag("hide-scrollbars", true),
		// Drawing takes most of the processor's time where no graphics card helps.
		chromedp.Flag("force-prefers-reduced-motion", true),
		chromedp.Flag("process-per-site", true),
		chromedp.Flag("renderer-process-limit", "1"),
		chromedp.Flag("disable-site-isolation-trials", true),
	}
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox) // it does not work for root
	}
	// The browser outlives the test's own context, so that it can be closed properly.
	allocator, stopAllocator := chromedp.NewExecAllocator(context.WithoutCancel(t.Context()), options...)
	ctx, closeBrowser := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		assert.NoError(t, chromedp.Cancel(ctx))
		closeBrowser()
		stopAllocator()
	})
	require.NoError(t, chromedp.Do(ctx))
	return browser{ctx, &atomic.Bool{}}
}

// tab opens a tab until the test ends.
func (w browser) tab(t *testing.T) *tab {
	t.Helper()
	ctx, closeTab := chromedp.NewContext(w.ctx)
	b := &tab{ctx: ctx, t: t, failed: w.failed}
	t.Cleanup(func() {
		closeTab()
		b.mu.Lock()
		defer b.mu.Unlock()
		assert.Empty(t, b.faults)
		assert.NotEmpty(t, b.requests)
	})
	require.NoError(t, chromedp.Listen(ctx, b.hear))
	_, err := chromedp.Call(ctx, log.Enable, chromedp.Void{})
	require.NoError(t, err)
	_, err = chromedp.Call(ctx, network.Enable, network.EnableParams{})
	require.NoError(t, err)
	b.resize(1280, 900)
	return b
}

// mayFail says that from now on failed requests do not fail the test.
func (b *tab) mayFail() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.awayOK = true
}

func (b *tab) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning ||
			e.Type == runtime.ConsoleAPICalledTypeAssert {
			for _, argument := range e.Args {
				b.faults = append(b.faults, fmt.Sprintf("console: %s %s", argument.Value, argument.Description))
			}
		}
	case *runtime.EventExceptionThrown:
		b.faults = append(b.faults, "exception: "+e.ExceptionDetails.Text)
		if e.ExceptionDetails.Exception != nil {
			b.faults = append(b.faults, e.ExceptionDetails.Exception.Description)
		}
	case *log.EventEntryAdded:
		// Violations of the policy are among these.
		if e.Entry.Level != log.EntryLevelError && e.Entry.Level != log.EntryLevelWarning ||
			b.awayOK && e.Entry.Source == log.EntrySourceNetwork {
			return
		}
		b.faults = append(b.faults, fmt.Sprintf("log: %s %s", e.Entry.Text, e.Entry.URL))
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
		u, err := url.Parse(e.Request.URL)
		if err != nil || u.Scheme != "data" && u.Scheme != "about" && u.Hostname() != "127.0.0.1" {
			b.faults = append(b.faults, "a request left the host: "+e.Request.URL)
		}
	}
}

// patience is how long the tab waits now.
func (b *tab) patience() time.Duration {
	if b.failed.Load() {
		return hurriedBrowser
	}
	return slowBrowser
}

// do makes the browser do something. An action has no end of its own: a click waits until there is something to click
// on.
func (b *tab) do(action func(ctx context.Context) error, about ...any) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, b.patience()+10*time.Second)
	defer cancel()
	require.NoError(b.t, action(ctx), about...)
}

func (b *tab) resize(width, height int64) {
	b.t.Helper()
	b.do(func(ctx context.Context) error { return chromedp.Do(ctx, chromedp.EmulateViewport(width, height)) })
}

func (b *tab) colours(scheme string) {
	b.t.Helper()
	b.do(func(ctx context.Context) error {
		_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{
				{Name: "prefers-color-scheme", Value: scheme},
				{Name: "prefers-reduced-motion", Value: "reduce"},
			},
		})
		return err
	})
}

// open loads the page and marks it, so that a reload would be noticed.
func (b *tab) open(base, hash string) {
	b.t.Helper()
	b.do(func(ctx context.Context) error { return chromedp.Do(ctx, chromedp.Navigate(base+"/dashboard"+hash)) })
	b.run(`window.sameDocument = true`)
	b.sees(`document.querySelector('main h1')`)
}

// show goes to another view of the page that is loaded.
func (b *tab) show(hash string) {
	b.t.Helper()
	b.run(`location.hash = ` + quoted(hash))
	b.sees(
		`location.hash === ` + quoted(
			hash,
		) + ` && document.querySelector('main h1') && !document.querySelector('.skeletons:not([hidden])')`,
	)
}

func (b *tab) requireNotReloaded() {
	b.t.Helper()
	require.True(b.t, get[bool](b, `window.sameDocument === true`), "the page was loaded again")
}

func (b *tab) run(script string) {
	b.t.Helper()
	b.do(func(ctx context.Context) error {
		_, err := chromedp.Run(ctx, chromedp.Evaluate[chromedp.Void](script))
		return err
	}, script)
}

// get evaluates an expression.
func get[T any](b *tab, expression string) (v T) {
	b.t.Helper()
	b.do(func(ctx context.Context) (err error) {
		v, err = chromedp.Run(ctx, chromedp.Evaluate[T](expression))
		return err
	}, expression)
	return v
}

// sees waits until an expression is true and can be evaluated.
func (b *tab) sees(expression string) {
	b.t.Helper()
	script := fmt.Sprintf(`new Promise((resolve) => {
		const until = performance.now() + %d;
		const seen = () => { try { return %s; } catch { return false; } }; // what is not there yet has no text
		let pause = 10;
		const look = () => { // a look may lay the whole page out
			pause = Math.min(1.5 * pause, 250);
			if (seen()) resolve('');
			else if (performance.now() > until) resolve('address ' + location.href + '\n' + document.body.innerText);
			else setTimeout(look, pause);
		};
		look();
	})`, b.patience().Milliseconds(), expression)
	var shown string
	b.do(func(ctx context.Context) (err error) {
		shown, err = chromedp.Run(ctx, chromedp.Evaluate[string](script, chromedp.EvalAwaitPromise))
		return err
	}, expression)
	require.Empty(b.t, shown, "not seen: %s", expression)
}

// press clicks on an element as a mouse would.
func (b *tab) press(selector string) {
	b.t.Helper()
	b.sees(
		`document.querySelector(` + quoted(
			selector,
		) + `) && !document.querySelector(` + quoted(
			selector,
		) + `).disabled`,
	)
	b.do(func(ctx context.Context) error { return chromedp.Do(ctx, chromedp.Click(chromedp.CSS(selector))) }, selector)
}

// enter replaces the text of a field.
func (b *tab) enter(selector, text string) {
	b.t.Helper()
	b.run(
		fmt.Sprintf(
			`(() => {
				const e = document.querySelector(%s);
				e.focus();
				e.value = %s;
				e.dispatchEvent(new Event('input', {bubbles: true}));
				e.dispatchEvent(new Event('change', {bubbles: true}));
			})()`,
			quoted(selector),
			quoted(text),
		),
	)
}

func (b *tab) key(keys string) {
	b.t.Helper()
	b.do(func(ctx context.Context) error { return chromedp.Do(ctx, chromedp.KeyEvent(keys)) })
}

// quoted is s as a literal of JavaScript.
func quoted(s string) string {
	var text strings.Builder
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(s); err != nil {
		panic(err) // a string is always fine
	}
	return strings.TrimSpace(text.String())
}

// rowOf is a selector of an event's row in a list.
func rowOf(id string) string { return `tr[data-event-id=` + quoted(id) + `]` }

// steps waits for the actions of a timeline, in their order, others between
// them.
func (b *tab) steps(actions ...string) {
	b.t.Helper()
	wanted, err := json.Marshal(actions)
	require.NoError(b.t, err)
	b.sees(fmt.Sprintf(`%s.reduce((rest, a) => rest && (rest.includes(a) ? rest.slice(rest.indexOf(a) + 1) : null),
		[...document.querySelectorAll('main .timeline .step')].map((s) => s.dataset.action))`, wanted))
}

// TestBrowser looks at the dashboard with a real browser.
func TestBrowser(t *testing.T) {
	t.Parallel()
	w := startBrowser(t)
	for _, step := range []struct {
		name  string
		whole bool // in a whole run only
		run   func(t *testing.T)
	}{
		{"an event's life as it happens", false, w.seesALife},
		{"after the server was killed", true, w.outlivesAServer},
		{"text from outside", false, w.showsText},
		{"contrast and names", true, w.isReadable},
		{"by keyboard", true, w.worksByKeyboard},
		{"what is not known", true, w.saysWhatItDoesNotKnow},
		{"why, at once", false, w.answersAtOnce},
		{"changes ask first", true, w.asksFirst},
		{"dates, choices and figures", true, w.saysWhatIsKnown},
	} {
		done := t.Run(step.name, func(t *testing.T) {
			if step.whole {
				wholeRun(t)
			}
			step.run(t)
		})
		if !done {
			w.failed.Store(true)
		}
	}
}

func (w browser) seesALife(t *testing.T) {
	s := startService(t, both, databases.New(t), "MOCK_API_URL="+startMock(t, 0), "INITIAL_RETRY_DELAY=100ms")
	desk, events, overview := w.tab(t), w.tab(t), w.tab(t)
	events.open(s.url, "#/events")
	events.sees(`document.querySelector('main .empty').innerText.includes('No event has been stored yet')`)
	overview.open(s.url, "#/")
	overview.sees(`document.querySelector('#verdict').innerText.includes('All delivered')`)
	overview.sees(`document.querySelector('#live').dataset.state === 'live'`)

	// New, a duplicate, a conflict.
	desk.open(s.url, "#/test")
	desk.enter("[name=event_id]", "life-1")
	desk.press("#desk-send")
	desk.sees(`document.querySelector('[data-answer=accepted]')`)
	desk.steps("event_received", "event_inserted", "processing_attempt_started", "processing_succeeded")
	events.sees(`document.querySelector('` + rowOf("life-1") + ` [data-status=completed]')`)
	overview.sees(`document.querySelector('#feed').innerText.includes('life-1')`)
	desk.press("#desk-again")
	desk.sees(`document.querySelector('[data-answer=deduplicated]')`)
	desk.steps("processing_succeeded", "event_received", "event_deduped")
	events.sees(`document.querySelector('` + rowOf("life-1") + ` .col-times').innerText.startsWith('2')`)
	desk.press("#desk-changed")
	desk.sees(`document.querySelector('[data-answer=conflict]')`)
	desk.steps("event_deduped", "event_received", "conflict_detected")
	events.sees(`document.querySelector('` + rowOf("life-1") + ` .col-times').innerText.startsWith('3')`)

	// Failures, retries, success.
	desk.press("#desk-new")
	desk.enter("[name=event_id]", "life-2")
	desk.enter("[name=wish]", "twice")
	desk.press("#desk-send")
	desk.steps(
		"processing_attempt_failed",
		"retry_scheduled",
		"processing_attempt_failed",
		"retry_scheduled",
		"processing_succeeded",
	)
	events.sees(`document.querySelector('` + rowOf("life-2") + ` [data-status=completed]')`)
	require.Equal(
		t,
		"life-2",
		get[string](events, `document.querySelector('tbody tr').dataset.eventId`),
		"the newest comes first",
	)

	// The event's own page: both payloads, and a replay that is announced.
	events.press(rowOf("life-1") + " a.id")
	events.steps("conflict_detected")
	events.sees(
		`document.querySelectorAll('#conflicts .sides pre').length === 2 &&
			document.querySelector('#conflicts').innerText.includes('changed_at')`,
	)
	events.press("main [data-replay]")
	events.sees(`document.querySelector('dialog[open]')`)
	events.key(kb.Escape)
	events.sees(`!document.querySelector('dialog')`)
	require.Zero(
		t,
		value[int](t, s.db, "select count(*) from spine.audit_log where action = 'event_replayed'"),
		"Escape is no yes",
	)
	events.press("main [data-replay]")
	events.press("dialog button.primary")
	events.sees(`document.querySelector('#say').textContent.includes('queued again')`)
	events.steps("conflict_detected", "event_replayed", "processing_attempt_started", "processing_succeeded")
	require.Contains(
		t,
		value[string](t, s.db, "select details->>'caller' from spine.audit_log where action = 'event_replayed'"),
		"127.0.0.1",
	)

	// Given up, and replayed from among the dead letters, in vain.
	desk.press("#desk-new")
	desk.enter("[name=event_id]", "life-3")
	desk.enter("[name=wish]", "never")
	desk.press("#desk-send")
	desk.steps("processing_attempt_failed", "processing_failed_permanently")
	overview.sees(`document.querySelector('#verdict').innerText.includes('1 dead letter needs you')`)
	overview.show("#/dead")
	overview.sees(`document.querySelector('` + rowOf("life-3") + `').innerText.includes('422')`)
	overview.press(rowOf("life-3") + " [data-replay]")
	overview.press("dialog button.primary")
	desk.steps("processing_failed_permanently", "event_replayed", "processing_failed_permanently")
	overview.show("#/attempts?outcome=failure")
	overview.sees(
		`document.querySelectorAll('` + rowOf(
			"life-3",
		) + `').length === 2 && document.querySelectorAll('` + rowOf(
			"life-2",
		) + `').length === 2`,
	)

	// A rejection says why.
	desk.enter("[name=payload]", "[1]")
	desk.sees(`document.querySelector('.field-problem').innerText.includes('must be a JSON object')`)
	desk.mayFail() // browsers log every answer that is a refusal
	desk.press("#desk-send")
	desk.sees(`document.querySelector('[data-answer=rejected]').innerText.includes('must be an object')`)

	for _, b := range []*tab{desk, events, overview} {
		b.requireNotReloaded()
	}
}

func (w browser) outlivesAServer(t *testing.T) {
	database := databases.New(t)
	address := unusedAddress(t)
	environment := []string{"DATABASE_URL=" + database, "DESTINATION_URL=none", "LISTEN=" + address}
	first := startProcess(t, environment, "serve")
	s := newTarget(t, first.ready(t), database)
	b := w.tab(t)
	b.open(s.url, "#/events")
	b.sees(`document.querySelector('#live').dataset.state === 'live'`)
	post := func(id string) { s.accept(t, id, `{}`) }
	for i := range 5 {
		post(fmt.Sprintf("before-%d", i))
	}
	b.sees(`document.querySelectorAll('tbody tr').length === 5`)

	b.mayFail()
	first.signal(t, syscall.SIGKILL)
	<-first.exited
	b.sees(`document.querySelector('#live').dataset.state === 'reconnecting'`)
	b.sees(
		`document.querySelector('.notice').innerText.includes('cannot be reached') &&
			document.querySelectorAll('tbody tr').length === 5`,
	)
	for i := range 70 { // by another way, more than a page
		execute(t, s.db, "select spine.ingest($1, 'by.hand', '{}')", fmt.Sprintf("away-%d", i))
	}
	second := startProcess(t, environment, "serve")
	require.Equal(t, s.url, second.ready(t))
	post("after")
	b.sees(`document.querySelector('#live').dataset.state === 'live' && !document.querySelector('.notice')`)
	b.sees(`document.querySelector('` + rowOf("after") + `')`)
	b.requireNotReloaded()

	// Read to its end, the list is what the table holds.
	b.sees(`(scrollTo(0, document.body.scrollHeight), document.querySelectorAll('tbody tr').length === 76)`)
	var want []string
	require.NoError(
		t,
		s.db.QueryRow(t.Context(), "select array_agg(event_id order by id desc) from spine.events").Scan(&want),
	)
	require.Equal(t, want, get[[]string](b, `[...document.querySelectorAll('tbody tr')].map((r) => r.dataset.eventId)`))

	// Further down nothing moves. A note says that there are new rows.
	post("later")
	b.sees(`document.querySelector('.fresh-button:not([hidden])').innerText.includes('1 new')`)
	require.Equal(t, "after", get[string](b, `document.querySelector('tbody tr').dataset.eventId`))
	b.press(".fresh-button")
	b.sees(`scrollY === 0 && document.querySelector('tbody tr').dataset.eventId === 'later'`)
}

// unusedAddress is an address on which nobody listens at the moment.
func unusedAddress(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	return l.Addr().String()
}

func (w browser) showsText(t *testing.T) {
	const evil = `"'><script>pwned()</script><img src=x onerror=pwned()>{{1}}&amp;` + "\u202e"
	hostile := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = w.Write([]byte("\x1b[31m" + evil))
	}))
	t.Cleanup(hostile.Close)
	s := startService(t, both, databases.New(t), "DESTINATION_URL="+hostile.URL)
	body := func(payload string) string {
		return fmt.Sprintf(
			`{"event_id":%s,"event_type":%s,"occurred_at":"2024-01-30T12:00:00Z","payload":%s}`,
			quoted(evil),
			quoted("\x07"+evil),
			payload,
		)
	}
	require.Equal(
		t,
		"accepted",
		s.post(t, body(`{"big":12345678901234567890,"text":`+quoted("\x1b"+evil)+`}`)).status(),
	)
	require.Equal(t, "conflict", s.post(t, body(`{"other":`+quoted(evil)+`}`)).status())
	s.awaitStatus(t, evil, "dead")
	// By hand more is allowed than by HTTP.
	execute(t, s.db, "update spine.processing_state set error_message = $1 where event_id = $2", "\x01\n"+evil, evil)
	require.Equal(t, "accepted", s.post(t, webhook("unqueryable", `{"nul":"\u0000<script>pwned()</script>"}`)).status())

	b := w.tab(t)
	b.open(s.url, "#/")
	b.run(`window.pwned = () => { window.wasPwned = true; }`)
	check := func(where string, contains ...string) {
		t.Helper()
		for _, text := range contains {
			b.sees(`document.body.innerText.includes(` + quoted(text) + `)`)
		}
		require.Zero(
			t,
			get[int](
				b,
				`document.querySelectorAll('main script, main img, main iframe, main [onerror], bdi *:not(.ctl)').length`,
			),
			where,
		)
		require.False(t, get[bool](b, `window.wasPwned === true`), where)
		require.NotContains(
			t,
			get[string](b, `document.body.innerText`),
			"\u202e",
			"%s: a change of direction is shown, not made",
			where,
		)
		require.NotContains(t, get[string](b, `document.body.innerText`), "\x1b", where)
	}
	const markup = `"'><script>pwned()</script>`
	check("overview", markup)
	b.show("#/events")
	check("events", markup, "\u2407"+markup)
	b.show("#/attempts")
	check("attempts", markup, "\u241b[31m"+markup)
	b.show("#/audit")
	check("audit", markup)
	b.show("#/dead")
	check("dead letters", markup, "\u2401\u240a"+markup)
	b.show("#/event?id=" + url.QueryEscape(evil) + "&source=default")
	check(
		"event",
		markup,
		"\u2407"+markup,
		"12345678901234567890",
		`"\u001b\"'>`,
		"\u2401\u240a"+markup,
		"\u241b[31m"+markup,
		"{{1}}&amp;",
	)
	b.show("#/event?id=unqueryable")
	check("unqueryable", "Kept as bytes", "<script>pwned()</script>")
	// C18: a browser would take these for directories in a path.
	for _, id := range []string{"..", ".", "%2e%2e/"} {
		require.Equal(t, "accepted", s.post(t, webhook(id, `{"is":"its own"}`)).status())
		s.awaitStatus(t, id, "dead")
		b.show("#/event?id=" + url.QueryEscape(id) + "&source=default")
		b.press("[data-replay]")
		b.press("dialog button.primary")
		b.sees(`document.querySelector('.step[data-action=event_replayed]')`)
		check(id, "its own")
	}
	b.show("#/test")
	b.enter("[name=event_id]", evil)
	b.press("#desk-send")
	check("test desk", markup)
	b.enter("#find input", evil[:10])
	b.sees(`document.querySelector('#find [role=option] .option-id')`)
	check("search", markup)
	b.requireNotReloaded()
}

// longID is an id without a place to break.
var longID = strings.Repeat("a1", 120)

// views are the addresses of all views of a page that has these events.
var views = []string{
	"#/",
	"#/events",
	"#/attempts",
	"#/audit",
	"#/dead",
	"#/sources",
	"#/rejected",
	"#/conflicts",
	"#/test",
	"#/event?id=dead&source=default",
	"#/event?id=nobody",
	"#/event?id=" + longID,
	"#/nowhere",
}

// furnished is a service on which every view has something to show.
func furnished(t *testing.T) *target {
	t.Helper()
	s, d := startWithDestination(t, "INITIAL_RETRY_DELAY=50")
	s.accept(t, "done", `{"a":[1,{"b":null}]}`)
	s.accept(t, "dead", `{"do":["status=422"]}`)
	s.accept(t, "later", `{"do":["status=503"]}`)
	long := strings.Replace(
		webhook(longID, `{"`+longID+`":"`+longID+`"}`),
		"user.created",
		strings.Repeat("long", 25),
		1,
	)
	require.Equal(t, "accepted", s.post(t, long).status())
	execute(t, s.db, `select spine.put_source('shop', '{"preset":"github","secrets":["env:SHOP_WEBHOOK_SECRET"]}')`)
	require.Equal(t, "conflict", s.post(t, webhook("dead", `{"do":[],"more":1}`)).status())
	d.await(t, "later", 1)
	s.awaitStatus(t, "dead", "dead")
	s.awaitStatus(t, "later", "failed")
	s.awaitStatus(t, longID, "completed")
	await(t, s.db, 1, "select count(*) from spine.source_reports where source = 'shop' and state = 'broken'")
	execute(t, s.db, "select spine.pause()")
	s.accept(t, "waits", `{}`)
	require.Equal(t, http.StatusUnprocessableEntity, s.post(t, `{}`).code)
	await(t, s.db, 1, "select count(*) from spine.rejected_requests")
	return s
}

// contrast computes the contrast of all visible text with its background (WCAG 2.2, success criterion 1.4.3), and
// returns what falls short.
const contrast = `(() => {
	const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
	const rgba = (colour) => {
		canvas.clearRect(0, 0, 1, 1);
		canvas.fillStyle = colour;
		canvas.fillRect(0, 0, 1, 1);
		const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
		return [r, g, b, a / 255];
	};
	const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
	const light = (c) => {
		const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255, v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
		return 0.2126 * r + 0.7152 * g + 0.0722 * b;
	};
	const ground = (e) => {
		const layers = [];
		for (; e; e = e.parentElement) {
			const c = rgba(getComputedStyle(e).backgroundColor);
			if (c[3] > 0) layers.push(c);
			if (c[3] === 1) break;
		}
		return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
	};
	const short = new Set();
	let checked = 0;
	const check = (e, colour, what) => {
		const style = getComputedStyle(e);
		if (!e.checkVisibility({visibilityProperty: true}) || e.closest('.visually-hidden')) return;
		const below = ground(e);
		const text = over(rgba(colour), below);
		const [a, b] = [light(text), light(below)].sort((x, y) => y - x);
		const ratio = (a + 0.05) / (b + 0.05);
		const size = parseFloat(style.fontSize);
		const needed = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
		checked++;
		if (ratio < needed) {
			const kind = e.tagName + '.' + (e.className.baseVal ?? e.className);
			short.add(ratio.toFixed(2) + ' ' + kind + ' ' + what.trim().slice(0, 30));
		}
	};
	const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	for (let node = walker.nextNode(); node; node = walker.nextNode()) {
		const e = node.parentElement;
		if (!node.data.trim() || e.closest('noscript, script')) continue;
		check(e, e instanceof SVGElement ? getComputedStyle(e).fill : getComputedStyle(e).color, node.data);
	}
	for (const e of document.querySelectorAll('input, textarea')) {
		check(e, getComputedStyle(e).color, e.name);
		if (e.placeholder) check(e, getComputedStyle(e, '::placeholder').color, e.placeholder);
	}
	return checked < 10 ? ['hardly any text was found'] : [...short];
})()`

// unnamed finds elements that a screen reader could not name, and ids that stand twice.
const unnamed = `(() => {
	const found = [];
	const named = (id) => document.getElementById(id)?.textContent ?? '';
	const name = (e) => (e.getAttribute('aria-label')
		|| (e.getAttribute('aria-labelledby') ?? '').split(' ').map(named).join('')
		|| [...(e.labels ?? [])].map((l) => l.textContent).join('') || e.textContent || e.title || '').trim();
	const controls = 'a[href], button, input, select, textarea, summary, ';
	for (const e of document.querySelectorAll(controls + '[role=img], [role=region], nav, search, dialog')) {
		if (e.checkVisibility() && e.tagName !== 'SEARCH' && !name(e)) found.push('no name: ' + e.outerHTML.slice(0, 120));
	}
	for (const table of document.querySelectorAll('table')) {
		if (!table.caption) found.push('no caption: ' + table.className);
	}
	const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
	found.push(...ids.filter((id, i) => ids.indexOf(id) !== i).map((id) => 'twice: ' + id));
	if (document.querySelectorAll('main h1').length !== 1) found.push('not one h1');
	for (const e of document.querySelectorAll('nav a, .segment')) {
		const {left, right} = e.getBoundingClientRect();
		if (left < 0 || right > innerWidth || e.scrollWidth > e.clientWidth) found.push('cut off: ' + e.textContent);
	}
	const width = document.documentElement.scrollWidth;
	if (width > innerWidth) found.push('wider than the window: ' + width);
	return found;
})()`

func (w browser) isReadable(t *testing.T) {
	s := furnished(t)
	b := w.tab(t)
	b.mayFail() // an event that is not there is asked for
	b.open(s.url, "#/")
	for _, scheme := range []string{"light", "dark"} {
		b.colours(scheme)
		widths := []int64{1280, 390, 360}
		if testing.Short() {
			widths = []int64{1280, 360}
		}
		for _, width := range widths {
			b.resize(width, 844)
			for _, view := range views {
				b.show(view)
				b.settled()
				require.Empty(t, get[[]string](b, contrast), "%s %s %d", view, scheme, width)
				require.Empty(t, get[[]string](b, unnamed), "%s %s %d", view, scheme, width)
			}
		}
	}
	// The choice of the reader wins over the system's.
	require.Equal(t, "rgb(15, 19, 25)", get[string](b, `getComputedStyle(document.body).backgroundColor`))
	b.press("#theme")
	require.Equal(t, "rgb(245, 246, 248)", get[string](b, `getComputedStyle(document.body).backgroundColor`))
	b.open(s.url, "#/")
	require.Equal(
		t,
		"rgb(245, 246, 248)",
		get[string](b, `getComputedStyle(document.body).backgroundColor`),
		"it is remembered",
	)
}

// settled waits until a view shows what it has read.
func (b *tab) settled() {
	b.t.Helper()
	b.sees(
		`!document.querySelector('main .loading') && (document.querySelector('main table.rows tbody tr, ' +
			'main .verdict[data-text], main .event-parts:not([hidden]), main .notice, main .source, main .desk-form'))`,
	)
}

// reachable are the controls that are shown.
const reachable = `(() => {
	const all = [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')]
		.filter((e) => !e.disabled && e.checkVisibility({visibilityProperty: true}));
	window.controls = all;
	window.reached ??= (document.addEventListener('focusin', ({target: e}) => {
		reached.add(e);
		if (e.type === 'radio') document.getElementsByName(e.name).forEach((r) => reached.add(r));
	}), new Set());
	reached.clear();
	document.activeElement?.blur();
	return all.length;
})()`

func (w browser) worksByKeyboard(t *testing.T) {
	s := furnished(t)
	b := w.tab(t)
	b.open(s.url, "#/")
	for _, view := range views[:len(views)-3] {
		b.show(view)
		b.settled()
		count := get[int](b, reachable)
		require.Greater(t, count, 10, view)
		b.key(strings.Repeat(kb.Tab, count+10))
		require.Empty(
			t,
			get[[]string](
				b,
				`controls.filter((e) => e.isConnected && e.checkVisibility() && !reached.has(e))
					.map((e) => e.outerHTML.slice(0, 160))`,
			),
			view,
		)
		require.True(t, get[bool](b, `[...reached].some((e) => e.id === 'skip')`))
	}

	// The search, from anywhere, without a mouse.
	b.show("#/audit")
	b.run(`document.activeElement?.blur()`)
	b.key("/")
	b.sees(`document.activeElement === document.querySelector('#find input')`)
	b.enter("#find input", "") // a browser's own keys leave no / there
	b.key("de")
	b.sees(`document.querySelector('#find [role=option] .option-id').innerText === 'dead'`)
	b.key(kb.Escape)
	b.sees(`document.querySelector('#find [role=listbox]').hidden`)
	b.key("a")
	b.sees(`!document.querySelector('#find [role=listbox]').hidden`)
	b.key(kb.ArrowDown)
	b.sees(`document.querySelector('#find input').getAttribute('aria-activedescendant')`)
	b.key(kb.Enter)
	b.sees(`location.hash.startsWith('#/event?id=dead') && document.activeElement.tagName === 'H1'`)

	// Back leads to the view before.
	b.run(`history.back()`)
	b.sees(`location.hash === '#/audit' && document.querySelector('h1').innerText === 'Audit'`)

	// An address that leads nowhere says so, whatever it is called.
	for _, hash := range []string{"#/nowhere", "#/constructor"} {
		b.show(hash)
		b.sees(`document.querySelector('h1').innerText === 'There is nothing here' &&
			document.querySelector('main').innerText.includes(location.hash) &&
			!document.querySelector('nav [aria-current]')`)
	}
	b.press("main .view a.button")
	b.sees(`location.hash === '#/' && document.querySelector('#verdict')`)
	b.show("#/audit")

	// Filters stand in the address.
	b.enter("[name=action]", "conflict_detected")
	b.sees(`location.hash === '#/audit?action=conflict_detected' && document.querySelectorAll('tbody tr').length === 1`)
	b.enter("[name=source]", "another…\n")
	b.sees(`document.activeElement.dataset.other === 'source'`)
	b.key("nobody")
	b.key(kb.Enter)
	b.sees(`location.hash.endsWith('source=nobody') && document.querySelector('[name=source]').value === 'nobody'`)
	b.sees(`document.querySelector('main .empty:not([hidden])').innerText.includes('Nothing matches the filters')`)
	b.press("main .empty button")
	b.sees(`location.hash === '#/audit' && document.querySelectorAll('tbody tr').length > 5`)
	b.requireNotReloaded()
}

func (w browser) saysWhatItDoesNotKnow(t *testing.T) {
	s := furnished(t)
	b := w.tab(t)
	b.open(s.url, "#/")
	b.sees(`document.querySelector('#verdict').innerText.includes('Claims are paused; 1 dead letter needs you')`)

	// If a part cannot be read, the old one stays and says how old it is.
	b.mayFail()
	execute(t, s.db, "alter table spine.depth_state rename to depth_state_away")
	b.sees(
		`document.querySelector('.notice').innerText.includes('cannot be read now') &&
			document.querySelector('.notice').innerText.includes('as of')`,
	)
	b.sees(
		`document.querySelector('#verdict').innerText.includes('That was') &&
			document.querySelector('.overview').classList.contains('stale')`,
	)
	execute(t, s.db, "alter table spine.depth_state_away rename to depth_state")
	b.sees(`!document.querySelector('.notice') && !document.querySelector('#verdict').innerText.includes('That was')`)

	// An unknown figure is not 0.
	b.run(`(() => {
		const real = window.fetch;
		window.fetch = async (...request) => {
			const answer = await real(...request);
			if (!String(request[0]).startsWith('api/overview')) return answer;
			const overview = await answer.json();
			Object.assign(overview, {depth: {at: null, rows: []}, covered_from: null, covered_to: null});
			for (const [name, column] of Object.entries(overview.series)) if (name !== 'at') column.fill(null);
			return new Response(JSON.stringify(overview), {headers: {'Content-Type': 'application/json'}});
		};
	})()`)
	b.sees(`document.querySelector('#verdict').innerText.includes('The queue is not counted yet')`)
	b.sees(`[...document.querySelectorAll('.tile-value, .legend b')].every((e) => e.innerText === '—')`)
	b.sees(`document.querySelector('.as-of').innerText.includes('not known yet')`)
	b.requireNotReloaded()
}

// The page answers as spine trace and psql do: F1, F2, F7, F8, F13, G12.
func (w browser) answersAtOnce(t *testing.T) {
	database := databases.New(t)
	s := newTarget(t, runService(t, service.Roles{API: true}, database), database)
	execute(t, s.db, `select spine.put_source('shop', '{"preset":"token","secrets":["env:SHOP_WEBHOOK_SECRET"],
		"verify":[{"scheme":"token","header":"X-Shop"}]}')`)
	execute(t, s.db, `insert into spine.rejected_requests
			(source, at, cause, status, detail, remote, method, target, headers, body, size)
		values ('shop', now(), 'credentials_wrong', 401, 'The token is wrong.', '192.0.2.1', 'POST', '/webhook/shop', '{}',
			'{"id":"lost-1"}', 1)`)
	s.accept(t, "77O1", `{"amount":1}`)
	require.Equal(t, "conflict", s.post(t, webhook("77O1", `{"amount":2}`)).status())
	many := `{"amount":3,"items":[` + strings.Repeat("0,", 60) + `0]}`

	b := w.tab(t)
	b.mayFail() // browsers log every 404
	b.open(s.url, "#/event?id=lost-1")
	b.sees(`document.querySelector('[data-topic=rejected] a')?.innerText.includes('401 credentials_wrong')`)
	b.sees(`document.querySelector('.notice').innerText.includes('is not stored by itself')`)
	b.show("#/event?id=7701")
	b.sees(`document.querySelector('[data-topic=near] a')?.innerText.includes('77O1')`)
	b.press("[data-topic=near] a")

	// G16: a conflict is told once. Where nobody sees at a glance what differs, its places are listed.
	b.sees(`document.querySelector('#conflicts .line.new')?.innerText.includes('"amount": 2') &&
		document.querySelector('#conflicts').innerText.match(/\b2\b/g).length === 1`)
	require.Equal(t, "conflict", s.post(t, webhook("77O1", many)).status())
	b.sees(`document.querySelector('#conflicts .places-list')?.innerText.includes('/amount 1 → 3')`)
	execute(t, s.db, "delete from spine.conflicts where payload->>'amount' = '3'")
	execute(t, s.db, "select spine.pause('default', 'deploying billing')")
	execute(t, s.db, "update spine.processing_state set status = 'dead' where event_id = '77O1'")
	b.sees(
		`document.querySelector('.standing [data-topic=by_hand]')?.innerText.includes('from pending to dead by hand')`,
	)
	b.sees(`document.querySelector('.step[data-action=status_changed]').classList.contains('bad')`)
	execute(t, s.db, "update spine.processing_state set status = 'pending' where event_id = '77O1'")
	b.sees(`document.querySelector('.standing [data-topic=paused]')?.innerText.includes('because: deploying billing')`)
	b.sees(`!/\d{4}-\d\d-\d\dT/.test(document.querySelector('.stands').innerText)`) // G16: times are the reader's

	b.press("#conflicts [data-accept]")
	b.press("dialog button.primary")
	b.sees(`document.querySelector('.toast').innerText.includes('It is the event 77O1~')`)
	for range 2 {
		b.sees(`document.querySelector('#conflicts')?.innerText.includes('accepted as 77O1~') &&
			!document.querySelector('[data-accept]')`)
		b.show("#/events")
		b.show("#/event?id=77O1&source=default")
	}
}

// G16: what cannot be taken back asks first, and says what came of it.
func (w browser) asksFirst(t *testing.T) {
	s := startService(t, both, databases.New(t), "DESTINATION_URL=none")
	b := w.tab(t)
	b.mayFail() // browsers log every 404
	asked := func(words string) {
		t.Helper()
		b.sees(`document.querySelector('dialog[open]').innerText.includes(` + quoted(words) + `)`)
	}
	told := func(words string) {
		t.Helper()
		b.sees(`[...document.querySelectorAll('.toast')].some((e) => e.innerText.includes(` + quoted(words) + `))`)
		b.sees(`!document.querySelector('dialog')`)
		b.run(`document.querySelectorAll('.toast button').forEach((e) => e.click())`) // it may lie over the next button
	}
	const yes = "dialog button.primary"

	// A source is added.
	b.open(s.url, "#/sources")
	b.press("#source-add")
	b.sees(`document.querySelector('#source-form [name=name]').value === 'github'`)
	b.sees(`document.querySelector('#source-form .facts').innerText.includes('/webhook/github') &&
		document.querySelector('#source-form .facts').innerText.includes('file:github')`)
	b.enter("#source-form [name=preset]", "token")
	b.enter("#source-form [name=name]", "shop")
	b.enter("#source-form [name=kind]", "env")
	b.sees(`document.querySelector('#source-form .facts').innerText.includes('env:SHOP_WEBHOOK_SECRET')`)
	b.press("#source-form button.primary")
	b.sees(`document.querySelector('#source-form .field-problem').innerText.includes('header')`)
	b.press("#source-form summary")
	b.enter("#source-form [name=more]", `[1]`)
	b.press("#source-form button.primary")
	b.sees(`document.querySelector('#source-form .field-problem').innerText.includes('not an object')`)
	b.enter("#source-form [name=more]", `{"verify":[{"scheme":"token","header":"X-Shop"}]}`)
	b.press("#source-form button.primary")
	told("The source shop is added")
	require.JSONEq(
		t,
		`{"preset":"token","secrets":["env:SHOP_WEBHOOK_SECRET"],"verify":[{"scheme":"token","header":["X-Shop"]}]}`,
		value[string](t, s.db, "select settings from spine.sources where name = 'shop'"),
	)
	b.press("#source-add")
	b.sees(`document.querySelector('#source-form [name=name]').value === 'github'`)
	b.enter("#source-form [name=name]", "shop")
	b.press("#source-form button.primary")
	b.sees(`document.querySelector('#source-form .field-problem').innerText.includes('a source shop already')`)
	b.press("#source-form .actions [type=button]")
	b.sees(`!document.querySelector('#source-form')`)

	// It is disabled.
	const disabled = "select disabled_at is not null from spine.sources where name = 'shop'"
	b.sees(`document.querySelector('[data-source=shop][data-state=broken]')`)
	b.press("[data-source=shop] .actions .quiet")
	asked("Disable shop?")
	b.key(kb.Escape)
	b.sees(`!document.querySelector('dialog')`)
	require.False(t, value[bool](t, s.db, disabled), "Escape is no yes")
	b.press("[data-source=shop] .actions .quiet")
	b.press(yes)
	told("its requests get 503")
	require.True(t, value[bool](t, s.db, disabled))
	b.sees(`document.querySelector('[data-source=shop][data-state=disabled]')`)
	b.press("[data-source=shop] .actions .quiet")
	told("The source shop is enabled")

	// Deliveries are paused, and resumed.
	b.show("#/")
	b.press("[data-claims=pause]")
	asked("Pause deliveries to default?")
	b.key("deploying billing")
	b.key(kb.Enter)
	told("are paused")
	b.sees(`document.querySelector('[data-destination=default]').innerText.includes('deploying billing')`)
	require.Equal(
		t,
		"deploying billing",
		value[string](t, s.db, "select paused_reason from spine.destinations where name = 'default'"),
	)
	b.press("[data-claims=resume]")
	asked("Resume deliveries to default?")
	b.press(yes)
	told("are resumed")
	b.sees(`document.querySelector('[data-claims=pause]')`)

	// The dead letters that the filters show are replayed, and no others.
	for i := range 3 {
		s.accept(t, fmt.Sprintf("paid-%d", i), `{}`)
	}
	execute(t, s.db, "select spine.ingest('moved', 'user.moved', '{}')")
	execute(t, s.db, "update spine.processing_state set status = 'dead'")
	b.show("#/dead?type=user.moved")
	b.press("#replay-all")
	asked("Deliver 1 dead letter again?")
	asked("type user.moved")
	b.press("dialog button[type=button]")
	b.sees(`!document.querySelector('dialog')`)
	b.show("#/dead?type=user.created")
	b.press("#replay-all")
	asked("Deliver 3 dead letters again?")
	b.press(yes)
	told("3 dead letters are queued again")
	require.Equal(t, "moved", value[string](t, s.db,
		"select string_agg(event_id, ' ') from spine.processing_state where status = 'dead'"))

	// A rejected request is replayed.
	require.Equal(t, http.StatusUnprocessableEntity, s.post(t, `{}`).code)
	b.show("#/rejected")
	b.press("[data-again]")
	asked("Replay this request?")
	b.press(yes)
	told("It was rejected again")
	b.sees(`document.querySelector('tbody [data-status=refused]').innerText.includes('rejected again')`)
	b.sees(`document.querySelector('tbody .remedies a').innerText === 'See all of it'`)
	b.press("tbody .remedies a")
	b.sees(`document.querySelector('h1').innerText.startsWith('Rejected request')`)
	b.requireNotReloaded()
}

// G16: times of other days have their day, known values are choices, and a figure is the same wherever it stands.
func (w browser) saysWhatIsKnown(t *testing.T) {
	s := furnished(t)
	execute(t, s.db, "update spine.events set created_at = created_at - interval '40 hours' where event_id = 'done'")
	execute(t, s.db, `update spine.processing_state set updated_at = updated_at - interval '40 hours'
		where event_id = 'dead'`)
	b := w.tab(t)
	b.open(s.url, "#/")

	// The tiles, the verdict, the destinations and the charts have the same figures.
	b.sees(`document.querySelector('#verdict').innerText.includes('1 dead letter')`)
	b.sees(`document.querySelector('#verdict').innerText.includes('the source shop is broken')`)
	b.sees(`document.querySelector('[aria-labelledby=h-sources] tbody tr').innerText.includes('broken')`)
	b.sees(`(() => {
		const tile = (name) => [...document.querySelectorAll('.tile')].find((e) => e.innerText.includes(name))
			.querySelector('.tile-value').innerText;
		const legend = (name) => [...document.querySelectorAll('.legend li')].find((e) => e.innerText.startsWith(name))
			.querySelector('b').innerText;
		return tile('Waiting') === legend('waiting') && tile('Dead letters') === legend('dead') &&
			tile('Coming in') === legend('received') && tile('Delivered') === legend('delivered') &&
			tile('Latency') === legend('p95') && tile('Dead letters') === '1' &&
			document.querySelector('[data-destination=default] td:nth-of-type(2)').innerText === '1';
	})()`)

	const dated = `%s.innerText.includes(', ')`
	b.show("#/events")
	b.sees(fmt.Sprintf(dated, `document.querySelector('`+rowOf("done")+` time')`))
	b.sees(`!` + fmt.Sprintf(dated, `document.querySelector('`+rowOf("dead")+` time')`))
	b.show("#/dead")
	b.sees(fmt.Sprintf(dated, `document.querySelector('`+rowOf("dead")+` time')`))

	// Values that are known are choices.
	for view, names := range map[string][]string{
		"#/events":   {"status", "type", "source"},
		"#/attempts": {"outcome", "type", "source"},
		"#/audit":    {"action", "success", "type", "source"},
		"#/dead":     {"type", "source", "destination"},
		"#/rejected": {"source", "cause", "state"},
	} {
		b.show(view)
		for _, name := range names {
			b.sees(`document.querySelectorAll('select[name=` + name + `] option').length >= 3`)
		}
	}
	b.show("#/events")
	b.enter("[name=type]", "user.created")
	b.sees(`location.hash === '#/events?type=user.created' && document.querySelectorAll('tbody tr').length === 4`)

	// At midnight a time gets its day.
	b.show("#/events")
	b.run(`(() => {
		const real = window.fetch;
		window.fetch = async (...request) => {
			const answer = await real(...request);
			if (!String(request[0]).startsWith('api/overview')) return answer;
			const overview = await answer.json();
			overview.at = new Date(Date.parse(overview.at) + 86400000).toISOString();
			return new Response(JSON.stringify(overview), {headers: {'Content-Type': 'application/json'}});
		};
	})()`)
	b.show("#/")
	b.sees(fmt.Sprintf(dated, `document.querySelector('#feed time')`))
	b.show("#/events")
	b.sees(`[...document.querySelectorAll('tbody time')].every((e) => ` + fmt.Sprintf(dated, "e") + `)`)
	b.requireNotReloaded()
}
