package postgres

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// Standby copies a running server with pg_basebackup, which must lie beside its other programs. It
// starts the copy as a hot standby on port, or on any free one if port is 0. The server that it
// follows sees it under the application_name name. The standby has the same roles, passwords and
// Settings. It is a throw-away server like any other, and Stop ends it.
//
// When the primary is gone the standby runs on. `select pg_promote()` as superuser makes it a
// primary.
func (s *Server) Standby(ctx context.Context, name string, port int) (*Server, error) {
	h, err := openEphemeralHome(ctx, cmp.Or(s.options.TempDir, defaultTempDir), s.options.Logger)
	if err != nil {
		return nil, fmt.Errorf("starting a standby: %w", err)
	}
	standby := &Server{options: s.options, home: h, binaries: s.binaries, user: s.user, state: s.state}
	standby.options.Dir, standby.options.Port, standby.state.Port = "", port, port
	if err = s.copyTo(ctx, h, name); err == nil {
		err = standby.start(ctx)
	}
	if err != nil {
		if standby.process != nil {
			_ = standby.process.stop(ctx)
		}
		_ = h.close()
		return nil, fmt.Errorf("starting a standby: %w", err)
	}
	return standby, nil
}

func (s *Server) copyTo(ctx context.Context, h *home, name string) error {
	if err := os.Mkdir(h.data(), 0o700); err != nil {
		return fmt.Errorf("making a folder for the copy: %w", err)
	}
	if s.user != nil {
		if err := os.Lchown(h.data(), int(s.user.Uid), int(s.user.Gid)); err != nil {
			return fmt.Errorf("giving the copy to the server's user: %w", err)
		}
	}
	from := "host=127.0.0.1 port=" + strconv.Itoa(s.state.Port) + " user=" + superuser + " application_name=" + name
	cmd := serverCommand(ctx, s.user, h.dir, filepath.Join(s.binaries.Dir, "pg_basebackup"),
		"--dbname="+from, "--pgdata="+h.data(), "--checkpoint=fast", "--wal-method=stream",
		"--write-recovery-conf", "--no-sync")
	cmd.Env = append(cmd.Env, "PGPASSWORD="+s.state.SuperuserPassword)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running pg_basebackup: %w\n%s", err, lastLines(string(out)))
	}
	return nil
}
