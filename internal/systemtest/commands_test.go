package systemtest

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// shellCommand is a command of a document, with what the document says that it prints.
type shellCommand struct {
	text   string
	output string // empty where the document shows none
}

// shellCommands returns the commands of a document's console fences. A command goes on while its quotes are open.
func shellCommands(document string) (commands []shellCommand) {
	for _, fence := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(document, -1) {
		for _, part := range strings.Split("\n"+fence[1], "\n$ ")[1:] {
			text, output, more := strings.Cut(part, "\n")
			for more && strings.Count(text, "'")%2 == 1 {
				var line string
				line, output, more = strings.Cut(output, "\n")
				text += "\n" + line
			}
			commands = append(commands, shellCommand{text, strings.TrimSpace(output)})
		}
	}
	return commands
}

// changeable are the parts of an output that differ from run to run.
var changeable = regexp.MustCompile(strings.Join([]string{
	`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]*(?:Z|\+00)`,         // times
	` *\+?\b\d[\d.]* ?(?:µs|ms|s|m)\b`,                          // durations
	`\bstarted by \S+`,                                          // workers
	`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]+`, // ids that Spine has made up
}, "|"))

func comparableOutput(output string) string {
	return changeable.ReplaceAllString(strings.TrimSpace(output), "…")
}

// README's commands print what README says, from a fresh `make run` on.
func TestReadmeCommands(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"bash", "curl", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("README's commands are NOT run: there is no %s on this machine", program)
		}
	}
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	commands := shellCommands(string(readme))
	require.Greater(t, len(commands), 10)

	folder := t.TempDir()
	secrets := filepath.Join(folder, ".spine", "secrets")
	d := startDev(t, "--ephemeral", "--secret-dir", secrets)
	spine, err := exec.LookPath("spine")
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(folder, "bin"), 0o755)) //nolint:gosec // the test's own
	require.NoError(t, os.MkdirAll(secrets, 0o700))                   // TestFolderForSecrets: a clone has it
	require.NoError(t, os.Symlink(spine, filepath.Join(folder, "bin", "spine")))
	path := os.Getenv("PATH") + string(filepath.ListSeparator) + os.Getenv("POSTGRES_BIN")

	for _, command := range commands {
		// The documents name the ports of `make run`; this one has taken free ports.
		text := strings.ReplaceAll(command.text, "http://127.0.0.1:8000", d.spine.url)
		if strings.HasPrefix(text, "bin/spine send ") {
			text += " --url " + d.spine.url
		}
		shell := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", text) //nolint:gosec // README's own
		shell.Dir = folder
		shell.Env = []string{
			"PATH=" + path, "DATABASE_URL=" + d.spine.db.Config().ConnString(), "SECRET_DIR=" + secrets,
		}
		var complaints strings.Builder
		shell.Stderr = &complaints
		output, err := shell.Output()
		require.NoError(t, err, "%s\n%s", command.text, complaints.String())
		if command.output != "" {
			require.Equal(t, comparableOutput(command.output), comparableOutput(string(output)), command.text)
		}
		// A reader is slower than a test: by the time of the next command nothing is under way.
		await(
			t,
			d.spine.db,
			int64(0),
			"select count(*) from processing_state where status not in ('completed', 'dead')",
		)
	}
}

// deploy/README.md lists every metric of Spine with its kind and labels, and no other.
func TestReadmeListsEveryMetric(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../deploy/README.md")
	require.NoError(t, err)
	listed := map[string]string{}
	row := regexp.MustCompile("(?m)^\\| `(spine_\\w+)` \\| (\\w+) \\| ?([^|]*?) ?\\|")
	for _, found := range row.FindAllStringSubmatch(string(readme), -1) {
		listed[found[1]] = strings.TrimSpace(found[2] + " " + strings.NewReplacer("`", "", ",", "").Replace(found[3]))
	}
	require.Greater(t, len(listed), 20)

	// One of everything that has labels: an event, a rejected request, a delivery, a viewer.
	s, _ := startWithDestination(t)
	watching, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/api/stream", nil)
	require.NoError(t, err)
	stream, err := s.http.Do(watching)
	require.NoError(t, err)
	defer func() { _ = stream.Body.Close() }()
	require.Equal(t, http.StatusUnprocessableEntity, s.post(t, `{}`).code)

	require.EventuallyWithT(t, func(c *assert.CollectT) {
		s.accept(t, newID("metric"), `{}`) // again, since the viewer joins at a time that nobody tells
		r, err := s.do(t.Context(), http.MethodGet, "/metrics", nil)
		require.NoError(c, err)
		require.Equal(c, listed, metricsOf(string(r.body)))
	}, patience, 100*time.Millisecond)
}

// metricsOf are the metrics of Spine in Prometheus' text: by name the kind and the labels.
func metricsOf(text string) map[string]string {
	label := regexp.MustCompile(`[{,](\w+)="`)
	metrics := map[string]string{}
	for _, kind := range regexp.MustCompile(`(?m)^# TYPE (spine_\w+) (\w+)$`).FindAllStringSubmatch(text, -1) {
		metrics[kind[1]] = kind[2]
		sample := regexp.MustCompile(`(?m)^` + kind[1] + `(?:_bucket)?(\{.*\}) `).FindStringSubmatch(text)
		if sample == nil {
			continue
		}
		for _, name := range label.FindAllStringSubmatch(sample[1], -1) {
			if name[1] != "le" {
				metrics[kind[1]] += " " + name[1]
			}
		}
	}
	return metrics
}
