package systemtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// completions are offered to a shell after a command line whose last word is begun.
func completions(t *testing.T, environment []string, words ...string) []string {
	t.Helper()
	code, stdout, stderr := spine(t, environment, append([]string{"__complete"}, words...)...)
	require.Zero(t, code, stderr)
	require.Regexp(t, `\A(Completion ended with directive: .+\n)?\z`, stderr)
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	require.Regexp(t, `^:\d+$`, lines[len(lines)-1])
	return lines[:len(lines)-1]
}

// offered waits until a shell is offered the right completions. On a busy machine an answer may come too late at
// first.
func offered(t *testing.T, want, environment []string, words ...string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Equal(c, want, completions(t, environment, words...))
	}, patience, time.Millisecond)
}

func TestCompletions(t *testing.T) {
	t.Parallel()
	database := databases.New(t)
	db, env := open(t, database, nil), []string{"DATABASE_URL=" + database}
	execute(t, db, "insert into spine.sources (name) values ('github'), ('billing')")
	execute(t, db, "insert into spine.destinations (name) values ('billing')")
	ingested(t, db, "default", "done", "dead", "waits", "order:7")
	ingested(t, db, "github", "waits", "72d3162e-cc78")
	// Ids that a shell would take apart or obey.
	ingested(
		t,
		db,
		"default",
		"%self",
		"50%",
		`$(touch /tmp/x)`,
		"a b",
		`"`,
		"'",
		"`id`",
		"--dead",
		"a;b",
		"ünï",
		"a=b",
		`back\slash`,
	)
	execute(t, db, "select spine.ingest('typed', 'order.paid', '{}')")
	execute(t, db, "select spine.ingest('odd', 'a b', '{}')")
	execute(t, db, `update spine.processing_state set status = 'completed' where event_id = 'done'`)
	execute(t, db, `update spine.processing_state set status = 'dead', attempt_count = 5 where event_id = 'dead'`)

	inFlight := []string{
		"odd\tpending, 0 attempts",
		"typed\tpending, 0 attempts",
		"72d3162e-cc78\tpending, 0 attempts",
		"waits\tpending, 0 attempts",
		"order:7\tpending, 0 attempts",
		"dead\tdead, 5 attempts",
	}
	offered(t, inFlight, env, "trace", "")
	offered(t, inFlight, env, "replay", "")
	offered(t, inFlight, env, "tail", "--event", "")
	offered(t, inFlight, nil, "trace", "--database-url", database, "")
	offered(t, inFlight[4:5], env, "trace", "order:")
	offered(t, inFlight[2:4], env, "trace", "--source", "github", "")
	require.Empty(t, completions(t, env, "trace", "waits", ""), "there is one argument")
	require.Empty(t, completions(t, env, "trace", "%"), "fish would expand it")

	offered(t, []string{"billing", "default", "github"}, env, "tail", "--source", "")
	offered(t, []string{"github"}, env, "replay", "--source", "g")
	offered(t, []string{"billing", "default"}, env, "pause", "--destination", "")
	offered(t, []string{"order.paid", "user.created"}, env, "tail", "--type", "")
	offered(t, []string{"pending", "processing", "completed", "failed", "dead"}, nil, "tail", "--status", "")
	offered(
		t,
		[]string{
			"processing_attempt_started",
			"processing_attempt_failed",
			"processing_succeeded",
			"processing_failed_permanently",
		},
		nil,
		"tail",
		"--action",
		"processing_",
	)

	execute(
		t,
		db,
		`select spine.ingest_events(
			array_agg('e' || 100 + n), array_agg('t'::text), array_agg(now()), array_agg('{}'::text))
		from generate_series(1, 60) n`,
	)
	var newest []string
	for n := range 50 {
		newest = append(newest, fmt.Sprintf("e%d\tpending, 0 attempts", 160-n))
	}
	offered(t, newest, env, "trace", "e")
	offered(t, inFlight[2:4], env, "trace", "--source", "github", "") // however many of other sources are newer
}

// A shell gets an answer soon, and no error.
func TestCompletionsWithoutADatabase(t *testing.T) {
	t.Parallel()
	silent, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0") // accepts, and never says anything
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, silent.Close()) })
	for _, env := range [][]string{
		nil,
		{"DATABASE_URL=nonsense"},
		{"DATABASE_URL=postgres://spine@127.0.0.1:1/spine"},
		{"DATABASE_URL=postgres://spine@" + silent.Addr().String() + "/spine"},
		{"DATABASE_URL=" + databases.Empty(t)},
	} {
		require.Empty(t, completions(t, env, "trace", ""))
		require.Empty(t, completions(t, env, "tail", "--type", ""))
	}
}

func TestCompletionScripts(t *testing.T) {
	t.Parallel()
	_, stdout, _ := spine(t, nil, "help")
	require.Contains(t, stdout, "source <(spine completion bash)")
	require.Regexp(t, `\n  completion +Make the shell`, stdout)
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		code, stdout, stderr := spine(t, nil, "completion", shell)
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, "spine")
		require.Empty(t, stderr)
	}
	code, _, stderr := spine(t, nil, "completion", "csh")
	require.Equal(t, 2, code, stderr)
}

// In bash itself a colon does not break an id.
func TestBashCompletesIDs(t *testing.T) {
	t.Parallel()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("there is no bash")
	}
	database := databases.New(t)
	ingested(t, open(t, database, nil), "default", "order:7", "order:8", "other", "$(exit)")
	script := `
# of bash-completion, as COMP_WORDBREAKS without a colon has it
_get_comp_words_by_ref() { cur=$CUR prev=trace words=(spine trace "$CUR") cword=2; }
source <(spine completion bash)
for CUR in '' order: ot; do
	COMPREPLY=() tries=0
	until [[ ${COMPREPLY[*]} ]] || ((tries++ == 20)); do # on a busy machine an answer may come too late
	COMPREPLY=() COMP_TYPE=9 COMP_LINE="spine trace $CUR" COMP_POINT=${#COMP_LINE}
	COMP_WORDS=(spine trace "$CUR") COMP_CWORD=2
	__start_spine spine "$CUR" trace 2>/dev/null
	done
	echo "$CUR>" "${COMPREPLY[@]%% *}"
done`
	//nolint:gosec // bash, with the script above
	cmd := exec.CommandContext(
		context.WithoutCancel(t.Context()),
		bash,
		"--norc",
		"-c",
		script,
	)
	cmd.Env = append(cmd.Environ(), "DATABASE_URL="+database)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	require.Equal(t, "> other order:8 order:7\norder:> 8 7\not> other\n", string(out))
}
