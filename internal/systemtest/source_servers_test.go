package systemtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/webhookspine/spine/internal/service"
)

// G1, G2, A9: a command tells what each server makes of a source, whatever the command itself can read.
func TestServersTellWhatTheyMakeOfASource(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	folder := func(files ...string) string {
		dir := t.TempDir()
		for _, file := range files {
			require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte("xyzzy-of-all-of-github"), 0o600))
		}
		return dir
	}
	has, lacks, shell := folder("github", "third"), folder(), folder("github", "github-2")
	startService(t, service.Roles{API: true}, database, "SECRET_DIR="+has)
	s := startService(t, service.Roles{API: true}, database, "SECRET_DIR="+lacks)
	c := commandLine{t: t, env: []string{"DATABASE_URL=" + database, "SECRET_DIR=" + shell}}

	added := c.ok("source", "add", "github", "--preset", "github", "--secret", "file:github")
	require.Regexp(t, `(?m)^(state)? +verified at \S+$`, added)
	gone := `broken at \S+: secrets\[0\] file:github cannot be read: the file github is not there ` +
		regexp.QuoteMeta("(SECRET_DIR "+lacks+")")
	require.Regexp(t, `(?m)^(state)? +`+gone+`$`, added)
	require.Contains(t, added, "The settings are stored all the same.\ngithub is not usable yet: the state says")
	require.Contains(t, added, "A server looks at the files of secrets every second")
	require.Contains(t, added, "spine rejected replay --all --source github takes what came before.\n\n1. In the repo")
	// The provider's form needs the secret. It is not printed.
	require.Contains(t, added, "4. Secret: the one that file:github holds (to see it: cat "+shell+"/github)\n")
	require.NotContains(t, added, "xyzzy")
	blind := commandLine{t: t, env: []string{"DATABASE_URL=" + database}}
	require.Contains(
		t,
		blind.ok("source", "show", "github"),
		"(to see it, print the file github of the server's SECRET_DIR)",
	)
	for _, trial := range [][]string{{"send", "--source", "github", "--sign"}, {"source", "test", "github"}} {
		require.Contains(t, blind.fails(1, trial...), "; SECRET_DIR is not set here: set it to the server's folder")
	}
	require.Equal(
		t,
		503,
		s.request(t, "POST", "/webhook/github", "{}").code,
		"the server knew it before the command ended",
	)

	listed := c.ok("source", "list")
	require.Regexp(t, `(?m)^github +github +(verified at \S+; broken at \S+|broken at \S+; verified at \S+)  `, listed)
	require.Regexp(t, `(?m)^github is `+gone+`$`, listed)
	require.Regexp(t, `(?m)^default +envelope +open `, listed)
	require.Regexp(t, gone, c.ok("source", "show", "github"))

	// The secret that only the shell sees.
	tried := c.ok("source", "test", "github")
	require.Contains(t, tried, "verified  here, with the secrets of this command's own environment\n")
	require.Regexp(t, `(?m)^servers .*`+gone, tried)
	code, out, errs := c.run("source", "test", "github", "--json")
	require.Zero(t, code)
	require.Contains(t, out, `"status":200`)
	require.Regexp(t, gone, errs)

	// A file that comes later is found.
	require.NoError(t, os.WriteFile(filepath.Join(lacks, "github"), []byte("xyzzy-of-all-of-github"), 0o600))
	require.Eventually(t, func() bool {
		return regexp.MustCompile(`(?m)^github +github +verified  `).MatchString(c.ok("source", "list"))
	}, patience, 50*time.Millisecond)
	require.Regexp(t, `(?m)^servers +verified at \S+, \S+$`, c.ok("source", "test", "github"))

	// A new secret that no server can read: the old one serves on.
	rotated := c.ok("source", "rotate", "github", "--secret", "file:github-2", "--keep", "1h")
	require.Regexp(
		t,
		`verified at \S+, but secrets\[0\] file:github-2 cannot be read: the file github-2 is not there`,
		rotated,
	)
	require.NotContains(t, rotated, "stored all the same")
	require.NotContains(t, rotated, "not usable")
	require.Contains(t, c.ok("source", "set", "github", "--secret", "file:github"), "verified at ")
	broken := c.ok("source", "rotate", "github", "--secret", "file:github-2", "--keep", "0")
	require.Equal(t, 2, strings.Count(broken, "broken at "), broken)
	require.Contains(t, broken, "stored all the same")

	// The secret that only servers see.
	require.Contains(t, c.ok("source", "set", "github", "--secret", "file:third"), "verified at ")
	tries := c.fails(1, "source", "test", "github")
	require.Contains(t, tries, "this command's own environment")
	require.Regexp(t, `\(the servers: .*verified at `, tries)

	c.stdin = `sources: {github: {preset: github, secrets: [file:github]}, any: {preset: none},
		billing: {preset: hmac, secrets: [env:A_WEBHOOK_SECRET], verify: [{header: X-Sig}]}}`
	applied := c.ok("apply", "-f", "-")
	require.Regexp(t, `(?m)^github: verified at \S+, \S+$`, applied)
	require.Regexp(t, `(?m)^any: open at \S+, \S+$`, applied)
	require.Regexp(t, `(?m)^billing: broken at \S+, \S+: secrets\[0\] env:A_WEBHOOK_SECRET is not set`, applied)
	require.Contains(t, applied, "stored all the same.\nbilling is not usable yet")
	require.Contains(
		t,
		applied,
		"\nA server reads its variables as it starts: after you have set one, start it again.\n",
	)
	require.Equal(t, "0 sources changed, 3 unchanged\n", c.ok("apply", "-f", "-"))

	// JSON is as it was, and nobody waits for it.
	require.NotContains(t, c.ok("source", "set", "github", "--rate", "5", "--json"), "verified")
	c.ok("source", "disable", "github")
	require.Regexp(t, `(?m)^github +github +disabled `, c.ok("source", "list"))
	c.ok("source", "remove", "any")
	await(t, s.db, 0, "select count(*) from spine.source_reports where source = 'any'")
	require.NotContains(t, strings.Join(rows(t, s, "select r::text from spine.source_reports r"), "\n"), "xyzzy")
}

// G1: where no server runs, a command says so, and the change is stored. A9: the list then says that it does not know.
func TestNoServerTells(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	c := commandLine{t: t, env: []string{"DATABASE_URL=" + database}}
	c.ok("migrate")
	added := c.ok("source", "add", "github", "--preset", "github", "--secret", "file:github")
	require.Contains(t, added, "state     not known here: no server has answered within 3 s: is one running?\n")
	c.stdin = `sources: {a: {preset: none}, b: {preset: github, secrets: [file:b]}}`
	require.Contains(t, c.ok("apply", "-f", "-"), "\nthe servers: not known here: no server has answered within 3 s")
	listed := c.ok("source", "list")
	for name, state := range map[string]string{"a": "open", "b": "not known here", "default": "not known here"} {
		require.Regexp(t, `(?m)^`+name+` +\w+ +`+state+`  `, listed)
	}

	// One that was killed a while ago, and one that hangs.
	db := open(t, database, nil)
	execute(t, db, `insert into spine.receivers
		values ('killed', clock_timestamp() - interval '3 minutes'), ('hangs', clock_timestamp())`)
	added = c.ok("source", "set", "github", "--rate", "5")
	require.Contains(t, added, "state     not known yet at hangs, which has not answered within 3 s")
	require.NotContains(t, added, "killed")
	require.Regexp(t, `(?m)^github +github +not known here  `, c.ok("source", "list"))
}

// G1: each clone has the folder for secrets, which make run and compose both read, and git commits nothing in it.
func TestFolderForSecrets(t *testing.T) {
	t.Parallel()
	const top = "../.."
	require.FileExists(t, filepath.Join(top, ".spine", "secrets", ".gitignore"))
	text, err := os.ReadFile(filepath.Join(top, "docker-compose.yml"))
	require.NoError(t, err)
	var compose struct {
		Services map[string]struct{ Volumes []string }
	}
	require.NoError(t, yaml.Unmarshal(text, &compose))
	require.Equal(t, []string{"./.spine/secrets:/run/secrets:ro,z"}, compose.Services["api"].Volumes)

	git := func(args ...string) error {
		//nolint:gosec // in a clone that this test has made
		return exec.CommandContext(t.Context(), "git", append([]string{"-C", top}, args...)...).Run()
	}
	if git("rev-parse", "--git-dir") != nil {
		t.Skip("git is NOT asked what it ignores: this is no clone")
	}
	for _, ignored := range []string{".spine/data/x", ".spine/lock", ".spine/secrets/github", ".spine/secrets/.env"} {
		require.NoError(t, git("check-ignore", "--quiet", ignored), ignored)
	}
	require.Error(t, git("check-ignore", "--quiet", ".spine/secrets/.gitignore"))
}
