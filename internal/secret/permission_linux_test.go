package secret

import (
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// G1: a file or a folder that the user of a container cannot read says so, and what to do.
func TestSecretsWithoutPermission(t *testing.T) {
	t.Parallel()
	outer, err := os.MkdirTemp("", "spine-secret-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(outer)) })
	require.NoError(t, os.Chmod(outer, 0o755)) //nolint:gosec // a stranger must get in
	folder := func(name string, mode os.FileMode) string {
		dir := filepath.Join(outer, name)
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "open"), []byte("hidden"), 0o600))
		require.NoError(t, os.Chmod(filepath.Join(dir, "open"), 0o644)) //nolint:gosec // as said
		require.NoError(t, os.WriteFile(filepath.Join(dir, "github"), []byte("hidden"), 0o200))
		require.NoError(t, os.Chmod(dir, mode))
		return dir
	}
	readable, closed, blind := folder("readable", 0o755), folder("closed", 0o600), folder("blind", 0o311)
	asStranger(t, func() {
		value, err := NewResolver(Rules{Dir: readable}).Resolve("file:open")
		require.NoError(t, err)
		require.Equal(t, "hidden", value.Reveal())
		_, err = NewResolver(Rules{Dir: readable}).Resolve("file:github")
		require.ErrorContains(t, err, "may not read the file github (SECRET_DIR "+readable+"): chmod a+r")
		require.NotContains(t, err.Error(), "hidden")
		for _, dir := range []string{closed, blind} {
			_, err = NewResolver(Rules{Dir: dir}).Resolve("file:open")
			require.ErrorContains(t, err, "may not enter the folder of secrets (SECRET_DIR "+dir+"): chmod a+rx")
		}
		gone := filepath.Join(outer, "gone")
		_, err = NewResolver(Rules{Dir: gone}).Resolve("file:github")
		require.ErrorContains(
			t,
			err,
			"file:github cannot be read: the folder of secrets is not there (SECRET_DIR "+gone+")",
		)
	})
}

// asStranger runs a test as a user without rights on files, where root runs it. The thread is thrown away afterwards.
func asStranger(t *testing.T, run func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Geteuid() == 0 {
			runtime.LockOSThread()
			_ = syscall.Setfsuid(65534) // its result says nothing; Linux takes the rights of root over files away too
		}
		run()
	}()
	<-done
}
