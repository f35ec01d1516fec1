package systemtest

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
)

// standbyName is how a primary knows its standby.
const standbyName = "standby"

// pair is a primary and its standby.
type pair struct {
	t                *testing.T
	primary, standby *postgres.Server
}

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{t: t, primary: postgrestest.Server(t)}
	p.follow(0)
	return p
}

// follow makes a standby on port, or on a free one if that is 0.
func (p *pair) follow(port int) {
	p.t.Helper()
	var err error
	p.standby, err = p.primary.Standby(p.t.Context(), standbyName, port)
	require.NoError(p.t, err)
	standby := p.standby
	p.t.Cleanup(func() { assert.NoError(p.t, standby.Stop(context.WithoutCancel(p.t.Context()))) })
}

// url names both, in the order of their ports, which stay. A client finds the one that accepts writes.
func (p *pair) url() string {
	u, err := url.Parse(p.primary.URL())
	require.NoError(p.t, err)
	u.Host = fmt.Sprintf(
		"127.0.0.1:%d,127.0.0.1:%d",
		min(p.primary.Port(), p.standby.Port()),
		max(p.primary.Port(), p.standby.Port()),
	)
	query := u.Query()
	query.Set("target_session_attrs", "read-write")
	u.RawQuery = query.Encode()
	return u.String()
}

// superuser runs statements on a server as its superuser.
func (p *pair) superuser(s *postgres.Server, statements ...string) {
	p.t.Helper()
	conn, err := pgx.Connect(p.t.Context(), s.SuperuserURL())
	require.NoError(p.t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(p.t.Context())) }()
	for _, statement := range statements {
		_, err := conn.Exec(p.t.Context(), statement)
		require.NoError(p.t, err, statement)
	}
}

// waitFor makes every commit on the primary wait for its standby. It returns when that is in force.
func (p *pair) waitFor() {
	p.t.Helper()
	p.superuser(p.primary, "alter system set synchronous_standby_names = '"+standbyName+"'", "select pg_reload_conf()")
	require.EventuallyWithT(p.t, func(c *assert.CollectT) {
		conn, err := pgx.Connect(p.t.Context(), p.primary.SuperuserURL())
		require.NoError(c, err)
		defer func() { _ = conn.Close(context.WithoutCancel(p.t.Context())) }()
		var state string
		require.NoError(
			c,
			conn.QueryRow(p.t.Context(), "select sync_state from pg_stat_replication where application_name = $1", standbyName).
				Scan(&state),
		)
		require.Equal(c, "sync", state)
	}, patience, 10*time.Millisecond)
}

// fail kills the primary and, after a while, promotes the standby, as a supervisor would. Before that, the process
// that sends the log to the standby stands still for lag.
func (p *pair) fail(lag, after time.Duration) (dead *postgres.Server) {
	p.t.Helper()
	sender := 0
	if lag > 0 {
		require.EventuallyWithT(p.t, func(c *assert.CollectT) {
			conn, err := pgx.Connect(p.t.Context(), p.primary.SuperuserURL())
			require.NoError(c, err)
			defer func() { _ = conn.Close(context.WithoutCancel(p.t.Context())) }()
			require.NoError(
				c,
				conn.QueryRow(p.t.Context(), "select pid from pg_stat_replication where application_name = $1", standbyName).
					Scan(&sender),
			)
		}, patience, 10*time.Millisecond)
		require.NoError(p.t, syscall.Kill(sender, syscall.SIGSTOP))
		time.Sleep(lag)
	}
	dead = p.primary
	dead.Kill()
	if lag > 0 {
		require.NoError(p.t, syscall.Kill(sender, syscall.SIGKILL))
	}
	time.Sleep(after)
	p.superuser(p.standby, "select pg_promote()")
	p.primary, p.standby = p.standby, nil
	return dead
}

// failovers kills the primary again and again, under load, and returns the differences at the end. synchronous says
// whether commits wait for the standby. Every other time the standby is behind when the primary dies.
func failovers(t *testing.T, times int, synchronous bool) (acked int64, differences []string) {
	t.Helper()
	p := newPair(t)
	d := newDrillOn(
		t,
		"failover",
		func(destination string) *cluster { return newCluster(t, p.primary, p.url(), destination) },
	)
	d.cluster.startAll()
	if synchronous {
		p.waitFor()
	}
	stop := d.load(16)
	for n := range times {
		d.flows()
		d.history.note("failover", func() string {
			lag, after := time.Duration(n%2)*300*time.Millisecond, time.Duration(n%4)*500*time.Millisecond
			dead := p.fail(lag, after)
			promoted := time.Now()
			d.cluster.server = p.primary
			require.Eventually(
				t,
				func() bool { return len(d.cluster.unwell(d.senders.http)) == 0 },
				patience,
				5*time.Millisecond,
			)
			heard := time.Since(promoted)
			d.flows()
			acknowledged, _ := d.senders.firstAck(promoted)
			port := dead.Port()
			require.NoError(t, dead.Stop(t.Context()))
			p.follow(port)
			if synchronous {
				p.waitFor()
			}
			return fmt.Sprintf(
				"%.1f s behind, promoted after %.1f s; the first acknowledgement %.2f s later, all listeners back %.2f s later",
				lag.Seconds(),
				after.Seconds(),
				acknowledged.Sub(promoted).Seconds(),
				heard.Seconds(),
			)
		})
		t.Log(d.history.done[n].detail)
	}
	d.flows()
	stop()
	return d.senders.acked.Load(), d.differences()
}

// TestDrillFailover kills a primary SPINE_DRILLS times. It does so half as often while commits do not wait for the
// standby, and then the check finds what was lost.
func TestDrillFailover(t *testing.T) {
	times := drills(t)
	t.Run("commits wait for the standby", func(t *testing.T) {
		acked, differences := failovers(t, times, true)
		t.Logf("%d failovers, %d acknowledged, %d differences", times, acked, len(differences))
		require.Empty(t, differences)
	})
	t.Run("commits do not wait for it", func(t *testing.T) {
		acked, differences := failovers(t, max(times/2, 2), false)
		lost := 0
		for _, difference := range differences {
			if strings.HasSuffix(difference, "was acknowledged, and is lost") {
				lost++
				continue
			}
			// A lost event may have been delivered and sent again, and so have another history.
			require.NotContains(t, difference, "stored twice")
			require.NotContains(t, difference, "is stored with bytes")
			require.NotContains(t, difference, "verify")
			require.NotContains(t, difference, "nothing goes on")
			require.NotContains(t, difference, "not answered")
		}
		t.Logf("%d failovers, %d acknowledged, %d lost", max(times/2, 2), acked, lost)
		require.Positive(t, lost, "every other time the standby was behind")
	})
}
