package source

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestResolveSecret(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return "file:" + path
	}
	t.Setenv("SPINE_TEST_SECRET", " hidden\n")
	t.Setenv("SPINE_TEST_EMPTY", "")
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink(filepath.Join(dir, "plain"), link))

	for ref, want := range map[string]string{
		"env:SPINE_TEST_SECRET":                           " hidden\n", // as it is
		file("plain", "hidden"):                           "hidden",
		"file:" + link:                                    "hidden",
		file("line", "hidden\n"):                          "hidden",
		file("windows", "hidden\r\n"):                     "hidden",
		file("lines", "hidden\n\n"):                       "hidden\n",
		file("binary", "\x00\xff"):                        "\x00\xff",
		file("large", strings.Repeat("x", maxSecretSize)): strings.Repeat("x", maxSecretSize),
	} {
		value, err := ResolveSecret(ref)
		require.NoError(t, err, ref)
		require.Equal(t, want, value, ref)
	}
	for ref, want := range map[string]string{
		"hidden":                   "a secret is named by env:NAME or file:/absolute/path",
		"env:SPINE_TEST_NOT_THERE": "env:SPINE_TEST_NOT_THERE is not set in this process's environment",
		"env:SPINE_TEST_EMPTY":     "env:SPINE_TEST_EMPTY is empty",
		file("empty", "\n"):        "/empty is empty",
		"file:" + dir + "/nothing": "/nothing cannot be read: no such file or directory",
		"file:" + dir:              "cannot be read: it is no regular file",
		"file:" + pipe:             "cannot be read: it is no regular file",
		file("huge", strings.Repeat("hidden", maxSecretSize)): "/huge cannot be read: it is larger than 64 KiB",
	} {
		_, err := ResolveSecret(ref)
		require.ErrorContains(t, err, want, ref)
		require.NotContains(t, err.Error(), "hidden")
	}
}
