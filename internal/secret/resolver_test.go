package secret

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// folder has secrets, and beside it stands a file that is none of them.
func folder(t *testing.T) (dir string, r *Resolver) {
	t.Helper()
	outer := t.TempDir()
	dir = filepath.Join(outer, "secrets")
	write := func(name, content string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(outer, name)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(outer, name), []byte(content), 0o600))
	}
	link := func(target, name string) { require.NoError(t, os.Symlink(target, filepath.Join(dir, name))) }
	write("outside", "hidden")
	write("secrets-2/a", "hidden")
	write("secrets/plain", "hidden")
	write("secrets/line", "hidden\n")
	write("secrets/windows", "hidden\r\n")
	write("secrets/lines", "hidden\n\n")
	write("secrets/binary", "\x00\xff")
	write("secrets/large", strings.Repeat("x", maxFile))
	write("secrets/huge", strings.Repeat("hidden", maxFile))
	write("secrets/empty", "\n")
	write("secrets/..2026/mounted", "hidden")
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	link("plain", "link")
	link(filepath.Join(dir, "plain"), "absolute-link")
	link("..2026", "..data")
	link("..data/mounted", "mounted")
	link("../outside", "out")
	link(filepath.Join(outer, "outside"), "absolute-out")
	link("..", "up")
	link("/proc/self/environ", "environ")
	link("out", "twice")
	link("gone", "dangling")
	environment := map[string]string{
		"GITHUB_WEBHOOK_SECRET": " hidden\n",
		"SPINE_SECRET_A":        "hidden",
		"EMPTY_WEBHOOK_SECRET":  "",
		"DATABASE_URL":          "hidden",
		"PGPASSWORD":            "hidden",
		"HOME":                  "hidden",
		"ADMIN_WEBHOOK_SECRET":  "hidden",
	}
	return dir, NewResolver(Rules{
		Patterns: []string{"*_WEBHOOK_SECRET", "SPINE_SECRET_*", "DATABASE_URL", "PG*"}, Dir: dir,
		Own:    []string{"DATABASE_URL", "PG*", "ADMIN_WEBHOOK_SECRET"},
		Lookup: func(name string) (string, bool) { value, found := environment[name]; return value, found },
	})
}

func TestResolve(t *testing.T) {
	dir, r := folder(t)
	for ref, want := range map[string]string{
		"env:GITHUB_WEBHOOK_SECRET": " hidden\n", // as it is
		"env:SPINE_SECRET_A":        "hidden",
		"file:plain":                "hidden",
		"file:" + dir + "/plain":    "hidden",
		"file:link":                 "hidden",
		"file:absolute-link":        "hidden",
		"file:mounted":              "hidden", // as Kubernetes mounts it
		"file:line":                 "hidden",
		"file:windows":              "hidden",
		"file:lines":                "hidden\n",
		"file:binary":               "\x00\xff",
		"file:large":                strings.Repeat("x", maxFile),
	} {
		value, err := r.Resolve(ref)
		require.NoError(t, err, ref)
		require.Equal(t, want, value.Reveal(), ref)
	}
	path, ok := r.File("file:plain")
	require.True(t, ok)
	require.Equal(t, filepath.Join(dir, "plain"), path)
	for _, ref := range []string{"env:SPINE_SECRET_A", "file:/etc/shadow", "hidden"} {
		_, ok := r.File(ref)
		require.False(t, ok, ref)
	}
}

// A1, A2: a reference names what the operator allows, and never a setting of Spine or a file elsewhere.
func TestReferencesThatAreNotAllowed(t *testing.T) {
	dir, r := folder(t)
	outer := filepath.Dir(dir)
	for ref, want := range map[string]string{
		"hidden":                   "a secret is named by env:NAME, file:NAME or file:/absolute/path",
		"env:":                     "a secret is named by",
		"env:A B":                  "a secret is named by",
		"file:":                    "a secret is named by",
		"file:..":                  "a secret is named by",
		"file:a/b":                 "a secret is named by",
		"file:../outside":          "a secret is named by",
		"file:" + dir + "/../x":    "a secret is named by",
		"file:/":                   "a secret is named by",
		"http:hidden":              "a secret is named by",
		"env:DATABASE_URL":         "env:DATABASE_URL may not be named: it is a setting of Spine itself",
		"env:PGPASSWORD":           "env:PGPASSWORD may not be named: it is a setting of Spine itself",
		"env:pgpassword":           "it is a setting of Spine itself",
		"env:ADMIN_WEBHOOK_SECRET": "it is a setting of Spine itself",
		"env:HOME": "env:HOME may not be named: SECRET_ENV allows only " +
			"*_WEBHOOK_SECRET, SPINE_SECRET_*",
		"env:github_webhook_secret": "SECRET_ENV allows only",
		"file:/etc/shadow": "file:/etc/shadow may not be named: SECRET_DIR allows " +
			"only files directly in " + dir,
		"file:/proc/self/environ":         "SECRET_DIR allows only files directly in",
		"file:" + outer + "/outside":      "SECRET_DIR allows only files directly in",
		"file:" + outer + "/secrets-2/a":  "SECRET_DIR allows only files directly in",
		"file:" + dir + "/..2026/mounted": "SECRET_DIR allows only files directly in",
		"env:GONE_WEBHOOK_SECRET": "env:GONE_WEBHOOK_SECRET is not set in this process's environment: " +
			"set it where the process is started",
		"env:EMPTY_WEBHOOK_SECRET": "env:EMPTY_WEBHOOK_SECRET is empty",
		"file:empty":               "file:empty is empty",
		"file:nothing": "file:nothing cannot be read: the file nothing is not there " +
			"(SECRET_DIR " + dir + ")",
		"file:dangling":     "cannot be read: the file dangling is not there (SECRET_DIR " + dir + ")",
		"file:pipe":         "cannot be read: it is no regular file",
		"file:..2026":       "cannot be read: it is no regular file",
		"file:huge":         "file:huge cannot be read: it is larger than 64 KiB",
		"file:out":          "file:out cannot be read: it is a link that leads out of SECRET_DIR",
		"file:absolute-out": "leads out of SECRET_DIR",
		"file:up":           "leads out of SECRET_DIR",
		"file:twice":        "leads out of SECRET_DIR",
		"file:environ":      "leads out of SECRET_DIR",
	} {
		value, err := r.Resolve(ref)
		require.ErrorContains(t, err, want, ref)
		require.NotContains(t, err.Error(), "hidden", ref)
		require.True(t, value.IsZero(), ref)
	}
	// The folder itself may be a link, as /var/run is, but not one into the processes.
	link := filepath.Join(outer, "link")
	require.NoError(t, os.Symlink(dir, link))
	value, err := NewResolver(Rules{Dir: link}).Resolve("file:plain")
	require.NoError(t, err)
	require.Equal(t, "hidden", value.Reveal())
	require.NoError(t, os.Symlink("/proc/self", filepath.Join(outer, "self")))
	_, err = NewResolver(Rules{Dir: filepath.Join(outer, "self")}).Resolve("file:environ")
	require.ErrorContains(t, err, "leads out of SECRET_DIR")
}

func TestRules(t *testing.T) {
	for _, pattern := range []string{"*", "*_WEBHOOK_SECRET", "A", "a_*_B1"} {
		require.NoError(t, CheckPattern(pattern), pattern)
	}
	for _, pattern := range []string{"", "A B", "A-B", "[A]", "1A", "A?", `A\`} {
		require.Error(t, CheckPattern(pattern), pattern)
	}
	for _, dir := range []string{"/run/secrets", ".spine/secrets", "/dev/shm/secrets", "/process"} {
		require.NoError(t, CheckDir(dir), dir)
	}
	for _, dir := range []string{"", "/", "/proc", "/proc/self", "/sys/x", "/dev", "/run/../proc"} {
		require.Error(t, CheckDir(dir), dir)
	}
}
