package systemtest

import (
	"bytes"
	"compress/gzip"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/command"
	"github.com/webhookspine/spine/internal/service"
)

// commandLine runs commands on a database, and on a server if they send.
type commandLine struct {
	t     *testing.T
	env   []string
	stdin string
}

func (c commandLine) run(args ...string) (code int, stdout, stderr string) {
	c.t.Helper()
	var out, errs bytes.Buffer
	code = command.Run(c.t.Context(), args, c.env, strings.NewReader(c.stdin), &out, &errs, "")
	return code, out.String(), errs.String()
}

// ok runs a command that must succeed.
func (c commandLine) ok(args ...string) string {
	c.t.Helper()
	code, out, errs := c.run(args...)
	require.Zero(c.t, code, "%v: %s", args, errs)
	return out
}

// fails runs a command that must fail.
func (c commandLine) fails(code int, args ...string) string {
	c.t.Helper()
	got, out, errs := c.run(args...)
	require.Equal(c.t, code, got, "%v: %s%s", args, out, errs)
	// What is known of an event that is not stored has a line for each sentence.
	require.Equal(c.t, 1, strings.Count(errs, "\n")-strings.Count(errs, "\n  "), "one line: %s", errs)
	return errs
}

// An operator adds a source, tries it, looks at its rejected requests, and mends it.
func TestSourceCommands(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	dir := t.TempDir()
	s := startService(t, service.Roles{API: true}, database, "SECRET_DIR="+dir)
	secret := filepath.Join(dir, "secret")
	require.NoError(t, os.WriteFile(secret, []byte("first-secret\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "other"), []byte("other-secret\n"), 0o600))
	c := commandLine{t: t, env: []string{"DATABASE_URL=" + database, "SECRET_DIR=" + dir}}

	require.Contains(t, c.ok("source", "list"), "default")
	require.NotContains(
		t,
		c.fails(2, "source", "add", "github", "--preset", "github", "--secret", "first-secret"),
		"first-secret",
	)
	// A1, A2: the command line says at once which setting allows a secret.
	for ref, says := range map[string]string{
		"env:DATABASE_URL":       "a setting of Spine itself",
		"env:DESTINATION_SECRET": "a setting of Spine itself",
		"env:HOME":               "SECRET_ENV allows only",
		"file:/etc/shadow":       "SECRET_DIR allows only",
		"file:/proc/1/environ":   "SECRET_DIR allows only",
	} {
		require.Contains(t, c.fails(2, "source", "add", "github", "--preset", "github", "--secret", ref), says)
		c.stdin = `{sources: {github: {preset: github, secrets: ["` + ref + `"]}}}`
		require.Contains(t, c.fails(2, "apply", "-f", "-"), says)
		require.Contains(t, c.fails(2, "source", "rotate", "default", "--secret", ref), says)
		require.Contains(
			t,
			c.fails(2, "send", "--source", "github", "--sign", "--preset", "github", "--secret", ref),
			says,
		)
	}
	c.fails(2, "source", "add", "github", "--preset", "githb", "--secret", "env:X_WEBHOOK_SECRET")
	c.fails(2, "source", "add", "github", "--preset", "github")
	c.fails(2, "source", "add")
	c.fails(1, "source", "set", "github", "--preset", "github", "--secret", "env:X_WEBHOOK_SECRET")
	added := c.ok("source", "add", "github", "--preset", "github", "--secret", "file:"+secret, "--rate", "1000")
	require.Contains(t, added, "github added")
	require.Contains(t, added, "/webhook/github")
	c.fails(1, "source", "add", "github", "--preset", "github", "--secret", "file:"+secret)
	s.awaitSource(t, "github")
	require.Regexp(t, `github +github +verified `, c.ok("source", "list"))
	require.Contains(t, c.ok("source", "test", "github"), "issues.opened")
	require.Contains(t, c.ok("send", "--source", "github", "--sign", "--url", s.url), "accepted")
	require.Contains(t, c.fails(1, "send", "--source", "github", "--url", s.url), "401")
	require.Contains(
		t,
		c.fails(
			1,
			"send",
			"--source",
			"github",
			"--sign",
			"--secret",
			"file:"+filepath.Join(dir, "other"),
			"--payload",
			`{"id":"lost-1"}`,
			"--url",
			s.url,
		),
		"401",
	)

	// A lost request is found, and stored by a replay after the secret was corrected.
	await(t, s.db, 1, "select count(*) from spine.rejected_requests where cause = 'signature_wrong'")
	trace := c.fails(1, "trace", "lost-1")
	require.Contains(t, trace, "was never stored")
	require.Contains(t, trace, "signature_wrong")
	var listed []struct {
		ID    int64
		Cause string
	}
	require.NoError(
		t,
		json.Unmarshal(
			[]byte(c.ok("rejected", "list", "--source", "github", "--cause", "signature_wrong", "--json")),
			&listed,
		),
	)
	require.Len(t, listed, 1)
	id := jsonNumber(listed[0].ID)
	require.Contains(t, c.ok("rejected", "list"), "signature_missing")
	require.Contains(t, c.ok("rejected", "show", id), `{"id":"lost-1"}`)
	require.Contains(t, c.fails(1, "rejected", "replay", id), "rejected again")
	c.fails(1, "rejected", "show", "99999")
	c.fails(2, "rejected", "show", "x")
	c.fails(2, "rejected", "replay")
	require.Contains(t, c.fails(2, "rejected", "replay", id, "--source", "github"), "--source goes with --all")
	require.Contains(t, c.fails(1, "trace", "lost-1", "--follow"), "signature_wrong")
	require.JSONEq(t, `{"requested":0}`, c.ok("rejected", "replay", "--all", "--cause", "no_such_cause", "--json"))
	rotated := c.ok("source", "rotate", "github", "--secret", "file:"+filepath.Join(dir, "other"), "--keep", "1h")
	require.Contains(t, rotated, `"until"`)
	require.Eventually(t, func() bool {
		code, out, _ := c.run("rejected", "replay", id)
		return code == 0 && strings.Contains(out, "stored as")
	}, patience, 100*time.Millisecond)
	require.Contains(
		t,
		c.ok("send", "--source", "github", "--sign", "--url", s.url, "--secret", "file:"+secret),
		"accepted",
		"the one before holds on",
	)

	require.Contains(t, c.ok("source", "disable", "github"), "disabled")
	require.Eventually(
		t,
		func() bool {
			return s.request(t, http.MethodPost, "/webhook/github", "{}").code == http.StatusServiceUnavailable
		},
		patience,
		10*time.Millisecond,
	)
	require.Contains(t, c.ok("source", "list"), "disabled")
	require.Contains(t, c.ok("source", "enable", "github"), "enabled")

	// A setting is removed.
	require.Contains(t, c.ok("source", "set", "github", "--volatile", "/pushed_at"), "pushed_at")
	require.NotContains(t, c.ok("source", "set", "github", "--volatile", ""), "pushed_at")

	require.Contains(t, c.ok("source", "show", "github"), "settings")
	require.Contains(t, c.ok("source", "disable", "github", "--json"), `"disabled_at":"20`)
	require.Contains(t, c.ok("source", "enable", "github", "--json"), `"disabled_at":null`)
	require.Contains(t, c.ok("source", "rotate", "github", "--secret", "file:"+secret, "--json"), `"until"`)
	require.Contains(t, c.ok("source", "remove", "github", "--json"), `"change":"removed"`)
	c.fails(1, "source", "remove", "default")
	require.Contains(t, c.ok("source", "presets"), "stripe")
}

func jsonNumber(n int64) string {
	text, err := json.Marshal(n)
	if err != nil {
		panic(err) // a number is always fine
	}
	return string(text)
}

func TestApplyCommand(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	startService(t, service.Roles{API: true}, database) // it migrates
	c := commandLine{t: t, env: []string{"DATABASE_URL=" + database}}
	apply := func(text string, args ...string) string {
		c.stdin = text
		return c.ok(append([]string{"apply", "-f", "-"}, args...)...)
	}
	const file = `
sources:
  github: {preset: github, secrets: [env:GITHUB_WEBHOOK_SECRET], limits: {rate: 100}}
  billing:
    preset: hmac
    secrets:
      - {ref: file:/run/secrets/billing, until: 2030-01-01T00:00:00Z}
    verify: [{scheme: hmac, header: X-Signature}]
    id: "{body:/id}"
`
	require.Contains(t, apply(file, "--dry-run"), "2 sources would change, 0 unchanged")
	require.NotContains(t, c.ok("source", "list"), "github")
	said := apply(file)
	require.Contains(t, said, "+ billing\n")
	require.Contains(t, said, `+ secrets: ["env:GITHUB_WEBHOOK_SECRET"]`)
	require.Equal(t, "0 sources changed, 2 unchanged\n", apply(file))
	said = apply("sources: {github: {preset: github, secrets: [env:OTHER_WEBHOOK_SECRET]}}", "--prune")
	require.Contains(t, said, "- billing\n")
	require.Contains(t, said, "~ github\n")
	require.Contains(t, said, `- limits: {"rate":100}`)
	require.Contains(t, said, `+ secrets: ["env:OTHER_WEBHOOK_SECRET"]`)
	for text, problem := range map[string]string{
		"sources: {a: {preset: github, secrets: [*words-not-to-repeat]}}": "no",
		"words-not-to-repeat: 1":                  "only sources may stand at the top",
		"sources: words-not-to-repeat":            "must be an object",
		"sources: {a: 1, a: words-not-to-repeat}": "comes twice",
		"sources: {{a: words-not-to-repeat}: 1}":  "",
		"sources: !!int words-not-to-repeat":      "",
		"":                                        "empty",
		"sources:":                                "no sources",
		"source: 1":                               "line 1: only sources may stand",
		"sources: {a: {preset: none, x: 1}, b: {preset: nothing}}":          "sources.a.x",
		"sources: {a: {preset: github, secrets: [words-not-to-repeat]}}":    "sources.a.secrets[0]",
		"sources: {A: {preset: none}}":                                      "lower-case",
		"sources: {a: {preset: none}}\n---\nsources: {b: {preset: none}}\n": "more than one document",
		"sources: {a: [}": "reading the file",
	} {
		c.stdin = text
		code, _, errs := c.run("apply", "-f", "-")
		require.NotZero(t, code, text)
		require.Contains(t, errs, problem, text)
		require.NotContains(t, errs, "words")
	}
}

// TestTryCaptured tries requests from files as a server would read them.
func TestTryCaptured(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	dir := t.TempDir()
	startService(t, service.Roles{API: true}, database, "SECRET_DIR="+dir) // it migrates
	secret := filepath.Join(dir, "secret")
	require.NoError(t, os.WriteFile(secret, []byte("first-secret\n"), 0o600))
	c := commandLine{t: t, env: []string{"DATABASE_URL=" + database, "SECRET_DIR=" + dir}}
	c.ok("source", "add", "github", "--preset", "github", "--secret", "file:"+secret)
	c.ok("source", "add", "slack", "--preset", "slack", "--secret", "file:"+secret)

	captured := func(lineEnd, body, after string, headers ...string) string {
		lines := append([]string{"POST /webhook/x HTTP/1.1", "Host: x"}, headers...)
		return strings.Join(lines, lineEnd) + lineEnd + lineEnd + body + after
	}
	github := func(body string) []string {
		mac := hmac.New(sha256.New, []byte("first-secret"))
		mac.Write([]byte(body))
		return []string{
			"X-GitHub-Event: push",
			"X-GitHub-Delivery: d-1",
			"Content-Type: application/json",
			"X-Hub-Signature-256: sha256=" + hex.EncodeToString(mac.Sum(nil)),
		}
	}
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, err := w.Write([]byte(`{"zipped":true}`))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	length := func(body string) string { return "Content-Length: " + strconv.Itoa(len(body)) }

	const crlf, lf = "\r\n", "\n"
	empty, spaced := "{}", "{\"a\":1,\r\n\r\n\"b\":2}"
	for name, text := range map[string]string{
		"as it came":                captured(crlf, empty, "", append(github(empty), length(empty))...),
		"the file ends its line":    captured(crlf, empty, "\n", append(github(empty), length(empty))...),
		"without a length":          captured(lf, empty, "", github(empty)...),
		"an empty line in the body": captured(lf, spaced, "", github(spaced)...),
		"zipped": captured(
			crlf,
			zipped.String(),
			"",
			append(github(zipped.String()), "Content-Encoding: gzip")...,
		),
		"in chunks": captured(
			crlf,
			"2\r\n{}\r\n0\r\n\r\n",
			"",
			append(github(empty), "Transfer-Encoding: chunked")...,
		),
		"the other kind in the body": captured(crlf, "{\n\n}", "", github("{\n\n}")...),
	} {
		c.stdin = text
		require.Contains(t, c.ok("source", "test", "github", "--request", "-"), "push", name)
	}
	for text, problem := range map[string]string{
		captured(lf, empty, "", "X-GitHub-Event: push"):                                     "signature_missing",
		captured(lf, empty, "", append(github(empty), "Content-Type: text/plain")...):       "400 (repeated_header)",
		captured(lf, empty, "", append(github(empty), "X-Hub-Signature-256: sha256=00")...): "came more than once",
		captured(lf, empty, "", append(github(empty), "Content-Encoding: br")...):           "415",
		captured(lf, empty, "", append(github(empty), "Content-Encoding: gzip")...):         "cut_short",
		captured(lf, empty, "", append(github(empty), "Content-Length: 3")...):              "Content-Length says 3",
		captured(lf, "{}x", "", append(github(empty), "Content-Length: 2")...):              "Content-Length says 2",
		strings.Replace(captured(lf, empty, "", github(empty)...), "POST", "PUT", 1):        "405",
		captured(
			lf,
			strings.Repeat(" ", 1<<20)+"{}",
			"",
			github(strings.Repeat(" ", 1<<20)+"{}")...,
		): "413",
		"hello words": "POST /webhook/github HTTP/1.1",
		captured(lf, empty, "", "words without a colon"): "POST /webhook/github HTTP/1.1",
	} {
		c.stdin = text
		said := c.fails(1, "source", "test", "github", "--request", "-")
		require.Contains(t, said, problem)
		require.NotContains(t, said, "words")
	}
	c.stdin = captured(lf, empty, "", github(empty)...)
	c.ok("source", "disable", "github")
	require.Contains(t, c.fails(1, "source", "test", "github", "--request", "-"), "503 (source_disabled)")
	c.ok("source", "enable", "github")

	// A signature that holds a time is judged by when the request came.
	body := `{"type":"event_callback","event_id":"Ev1","event_time":1767225600,"event":{"type":"message"}}`
	then := "1767225600" // 2026-01-01
	mac := hmac.New(sha256.New, []byte("first-secret"))
	mac.Write([]byte("v0:" + then + ":" + body))
	c.stdin = captured(
		lf,
		body,
		"",
		"Content-Type: application/json",
		"X-Slack-Request-Timestamp: "+then,
		"X-Slack-Signature: v0="+hex.EncodeToString(mac.Sum(nil)),
	)
	require.Contains(t, c.fails(1, "source", "test", "slack", "--request", "-"), "401")
	var tried struct {
		Status int
		Events []struct {
			EventID string `json:"event_id"`
		}
	}
	require.NoError(
		t,
		json.Unmarshal(
			[]byte(c.ok("source", "test", "slack", "--request", "-", "--at", "2026-01-01T00:00:10Z", "--json")),
			&tried,
		),
	)
	require.Equal(t, http.StatusOK, tried.Status)
	require.Len(t, tried.Events, 1)
	require.Equal(t, "Ev1", tried.Events[0].EventID)

	// An unsigned request needs no secret.
	c.stdin = ""
	require.NoError(t, os.Remove(secret))
	require.Contains(t, c.fails(1, "send", "--source", "github", "--url", "http://127.0.0.1:1"), "refused")
	require.NotContains(t, c.fails(1, "send", "--source", "github", "--url", "http://127.0.0.1:1"), "secret")
	c.ok("source", "add", "meta", "--preset", "meta", "--secret", "file:"+secret, "--verify-token", "file:"+secret)
	require.Contains(t, c.fails(1, "send", "--source", "meta", "--url", "http://127.0.0.1:1"), "refused")
}

func TestConflictCommands(t *testing.T) {
	t.Parallel()
	s := startService(t, service.Roles{API: true}, databases.New(t))
	c := commandLine{t: t, env: []string{"DATABASE_URL=" + s.db.Config().ConnString()}}
	require.Contains(t, c.ok("conflicts", "list"), "no conflicts")
	require.Contains(t, c.fails(1, "conflicts", "list", "--event", "c-never"), `event "c-never" was never stored`)
	s.accept(t, "c-1", `{"a":1,"x":"\u001b[31m"}`)
	require.Equal(t, "conflict", s.post(t, webhook("c-1", `{"a":2,"x":"\u001b[32m"}`)).status())
	said := c.ok("conflicts", "list", "--event", "c-1")
	require.Contains(t, said, "/a: 1 → 2")

	// G13: a key that is gone and one that is null differ.
	s.accept(t, "c-gone", `{"gone":1,"null":1}`)
	require.Equal(t, "conflict", s.post(t, webhook("c-gone", `{"null":null,"new":null}`)).status())
	said = c.ok("conflicts", "list", "--event", "c-gone")
	require.Contains(t, said, "/gone: 1 → absent\n")
	require.Contains(t, said, "/new: absent → null\n")
	require.Contains(t, said, "/null: 1 → null\n")
	require.NotContains(t, said, "\x1b")
	require.Contains(t, c.ok("conflicts", "list", "--json"), `"differences":[{"path":"/a"`)
	shown := c.ok("conflicts", "show", "c-1")
	require.Contains(t, shown, "  \"a\": 1,\n")
	require.Contains(t, shown, "  \"a\": 2,\n")
	require.NotContains(t, shown, "\x1b")
	require.Contains(t, c.ok("conflicts", "show", "c-1", "--json"), `"first":{"payload":{"a":1`)
	c.fails(1, "conflicts", "show", "never")
	c.fails(2, "conflicts", "show")
	require.Contains(t, c.ok("conflicts", "accept", "c-1"), "accepted as c-1~")
	trace := c.ok("trace", "c-1")
	require.Contains(t, trace, "another payload accepted by")
	require.Contains(t, trace, " as c-1~")
	require.Contains(t, c.ok("conflicts", "list"), "accepted as c-1~")
	c.fails(1, "conflicts", "accept", "never")
	c.fails(2, "conflicts", "accept")
}

func TestVerifyCommand(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	c := commandLine{t: t, env: []string{"DATABASE_URL=" + database}}
	require.Contains(t, c.ok("migrate"), "")
	require.Contains(t, c.ok("verify"), "0 events checked")
	db := open(t, database, nil)
	execute(t, db, `select spine.ingest('v-1', 'user.created', '{}')`)
	execute(t, db, `select spine.ingest('v-\' || chr(120), 'user.created', '{}')`)
	said := c.ok("verify")
	require.Contains(t, said, "2 events checked")
	require.Equal(t, 13, strings.Count(said, "  holds  "))
	require.Contains(t, c.ok("verify", "--until", "1h"), "0 events checked")
	c.fails(2, "verify", "--since", "1h", "--until", "2h")
	c.fails(2, "verify", "--examples", "-1")

	execute(t, db, "delete from spine.processing_state where event_id = 'v-1'")
	code, out, errs := c.run("verify")
	require.Equal(t, 1, code)
	require.Contains(t, out, "event_queued: v-1 of default: no row in processing_state")
	require.Contains(t, errs, "1 of 13 invariants do not hold")
	code, out, _ = c.run("verify", "--json")
	require.Equal(t, 1, code)
	var all []struct {
		Invariant  string
		Checked    int
		Violations int
		Examples   []struct {
			EventID string `json:"event_id"`
		}
	}
	require.NoError(t, json.Unmarshal([]byte(out), &all))
	require.Len(t, all, 13)
	require.Equal(t, "event_queued", all[1].Invariant)
	require.Equal(t, 2, all[1].Checked)
	require.Equal(t, 1, all[1].Violations)
	require.Equal(t, "v-1", all[1].Examples[0].EventID)
}
