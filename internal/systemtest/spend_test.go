package systemtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres/postgrestest"
)

// What strangers can make Spine spend. These tests run the attacks of the issue for some seconds.

// memory is what the process has of the machine, in bytes.
func (p *process) memory(t require.TestingT) int64 {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), "status"))
	require.NoError(t, err)
	_, after, _ := strings.Cut(string(status), "VmRSS:")
	var kB int64
	_, err = fmt.Sscan(after, &kB)
	require.NoError(t, err)
	return kB << 10
}

// serveProcess runs spine serve in a process of its own, which only stores.
func serveProcess(t *testing.T, database string) (*process, *target) {
	t.Helper()
	p := startProcess(t, []string{
		"DATABASE_URL=" + database, "DESTINATION_URL=none", "LISTEN=127.0.0.1:0", "LOG_LEVEL=info",
		"ADMIN_AUTH=none", "DEFAULT_SOURCE=open", "SPINE_SECRET_X=0123456789abcdef",
	}, "serve")
	return p, newTarget(t, p.ready(t), database)
}

// attackTime is how long an attack goes on: a quarter of most in a short run, which suffices to fill what it fills.
func attackTime(most time.Duration) time.Duration {
	if testing.Short() {
		return most / 8
	}
	return most
}

// B1: 240 POSTs of 1,048,570 bytes that stop after 1,000,000, beside 8 clients with rejected bodies of 950 kB. The
// process stays under 450 MB, still takes webhooks, and gives the memory back.
func TestStoppedUploadsTakeBoundedMemory(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("memory is read from /proc")
	}
	if raceDetector {
		t.Skip("the race detector takes several times the memory")
	}
	p, s := serveProcess(t, databases.New(t))
	execute(t, s.db, "select spine.put_source('hm', $1)",
		`{"preset":"hmac","secrets":["env:SPINE_SECRET_X"],"verify":[{"header":["X-Signature"],"encoding":"hex"}],
			"id":["{body:/id}"]}`)
	s.awaitSource(t, "hm")
	address := strings.TrimPrefix(s.url, "http://")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var all sync.WaitGroup
	part := bytes.Repeat([]byte("x"), 1_000_000)
	for range 240 {
		all.Go(func() {
			var d net.Dialer
			for ctx.Err() == nil {
				conn, err := d.DialContext(ctx, "tcp", address)
				if err != nil {
					continue
				}
				context.AfterFunc(ctx, func() { _ = conn.Close() })
				_, _ = io.WriteString(conn, "POST /webhook HTTP/1.1\r\nHost: a\r\nContent-Length: 1048570\r\n\r\n")
				_, _ = conn.Write(part)
				_, _ = io.Copy(io.Discard, conn) // until it is closed
				_ = conn.Close()
			}
		})
	}
	for range 8 {
		all.Go(func() {
			for ctx.Err() == nil {
				_, _ = s.do(ctx, http.MethodPost, "/webhook/hm", bytes.NewReader(part[:950_000]), "X-Signature", "00")
			}
		})
	}
	time.Sleep(attackTime(25 * time.Second))
	stop()
	all.Wait()
	t.Logf("at most %d MB", p.peakMemory(t)/1e6)
	require.Less(t, p.peakMemory(t), int64(450e6))
	s.accept(t, newID("after"), `{}`)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Less(c, p.memory(c), int64(220e6))
	}, patience, 100*time.Millisecond)
	t.Logf("%d MB are left", p.memory(t)/1e6)
}

// B2: 25 POSTs/s of 1 MB with a wrong signature make the database write less than 300 kB/s, and all are counted.
func TestWrongSignaturesWriteLittle(t *testing.T) {
	t.Parallel()
	_, s := serveProcess(t, postgrestest.Server(t).URL()) // whose WAL nobody else writes
	execute(t, s.db, "select spine.put_source('hm', $1)",
		`{"preset":"hmac","secrets":["env:SPINE_SECRET_X"],"verify":[{"header":["X-Signature"],"encoding":"hex"}],
			"id":["{body:/id}"]}`)
	s.awaitSource(t, "hm")
	const each = 25
	const seconds = 10
	random := rand.NewChaCha8([32]byte{1}) // bytes that cannot be compressed
	body := make([]byte, 1_000_000)
	_, _ = random.Read(body)
	wal := func() int64 {
		return value[int64](t, s.db, "select (pg_current_wal_lsn() - '0/0')::bigint")
	}
	before := wal()
	tick := time.NewTicker(time.Second / each)
	defer tick.Stop()
	var all sync.WaitGroup
	for range seconds * each {
		<-tick.C
		all.Go(func() {
			_, _ = s.do(t.Context(), http.MethodPost, "/webhook/hm", bytes.NewReader(body), "X-Signature", "00")
		})
	}
	all.Wait()
	time.Sleep(time.Second)
	rate := (wal() - before) / (seconds + 1)
	kept := value[int64](t, s.db, "select count(*) from spine.rejected_requests")
	t.Logf("%d kB of WAL a second, %d requests kept", rate/1000, kept)
	require.Less(t, rate, int64(300_000))
	require.GreaterOrEqual(t, kept, int64(100))
	// On a slow machine some find no room.
	await(t, s.db, int64(seconds*each), `
		select coalesce(sum((details ->> 'count')::bigint), 0)::bigint
		from spine.audit_log
		where action = 'request_rejected' and details ->> 'cause' in ('signature_wrong', 'bytes_in_flight')`)
}
