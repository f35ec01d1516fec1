package oracles

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/go-playground/webhooks/v6/github" // its testdata
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	_ "github.com/stripe/stripe-mock/embedded" // its fixtures

	"github.com/webhookspine/spine/internal/ingest"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/source"
	"github.com/webhookspine/spine/internal/store"
)

var databases = postgrestest.Databases{Migrate: func(ctx context.Context, url string) error {
	_, err := store.Migrate(ctx, url, nil)
	return err
}}

func TestMain(m *testing.M) { os.Exit(databases.Main(m).Run()) }

// taking is a source as the intake meets it.
type taking struct{ *source.Source }

func (taking) Policy() ingest.Policy                  { return ingest.Policy{} }
func (t taking) Lookup(string) (ingest.Source, error) { return t, nil }
func (taking) Stray(string) ingest.Stray              { return ingest.Stray{} }

// intake takes in what one source sends, over HTTP and into PostgreSQL.
func intake(t *testing.T, s *source.Source) (address string, kept *store.Store) {
	t.Helper()
	kept, err := store.Open(t.Context(), store.Config{URL: databases.New(t), MaxConns: 4, AppName: "corpora"})
	require.NoError(t, err)
	t.Cleanup(kept.Close)
	m := ingest.NewMetrics(prometheus.NewRegistry())
	committer := ingest.NewCommitter(kept, ingest.DefaultCommitterConfig(), zerolog.Nop(), m)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- committer.Run(ctx) }()
	handler := ingest.NewHandler(ingest.HandlerConfig{
		MaxBody:     4 << 20,
		ReadTimeout: time.Minute,
		InFlight:    64 << 20,
	}, taking{s}, committer,
		ingest.NewRejections(
			kept, time.Now, zerolog.Nop(),
		), ingest.NewKeeper(kept, zerolog.Nop(), m), zerolog.Nop(), m).Around(http.NotFoundHandler())
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.Close()
		stop()
		require.NoError(t, <-ended)
	})
	return server.URL, kept
}

// folder is where a module's files are.
func folder(t *testing.T, module string) string {
	t.Helper()
	list := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", module) //nolint:gosec // no input
	out, err := list.Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}

// example is a body as a provider sends it, with what it should come to.
type example struct {
	body     []byte
	header   http.Header
	id, kind string
}

// takeIn posts all examples signed, twice, and looks at what is stored.
func takeIn(t *testing.T, preset string, examples []example) {
	t.Helper()
	s := compile(t, source.Config{Preset: preset}, plain)
	address, kept := intake(t, s)
	for _, want := range []string{"accepted", "deduplicated"} {
		for _, e := range examples {
			q := request(e.body, e.header.Clone())
			require.NoError(t, s.Sign(q, time.Now()))
			r, err := http.NewRequestWithContext(
				t.Context(), http.MethodPost, address+"/webhook/s", bytes.NewReader(e.body),
			)
			require.NoError(t, err)
			r.Header = q.Header
			answer, err := http.DefaultClient.Do(r)
			require.NoError(t, err)
			var said struct {
				Status  string
				Detail  string
				EventID string `json:"event_id"`
			}
			require.NoError(t, json.NewDecoder(answer.Body).Decode(&said))
			require.NoError(t, answer.Body.Close())
			require.Equal(t, want, said.Status, "%s: %s", e.id, said.Detail)
			require.Equal(t, e.id, said.EventID)
		}
	}
	for _, e := range examples {
		var kind string
		var body []byte
		require.NoError(
			t,
			kept.Pool().QueryRow(
				t.Context(),
				"select event_type, coalesce(raw_body, convert_to(payload::text, "+
					"'UTF8')) from spine.events where event_id = $1",
				e.id,
			).Scan(&kind, &body),
		)
		require.Equal(t, e.kind, kind)
		require.Equal(t, e.body, body)
	}
	t.Logf("%d examples", len(examples))
}

// Everything in the testdata of go-playground/webhooks, under the preset of its
// provider.
func TestExamplesOfForges(t *testing.T) {
	root := filepath.Join(folder(t, "github.com/go-playground/webhooks/v6"), "testdata")
	found := map[string][]example{}
	total := 0
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".json" {
			return err
		}
		body, err := os.ReadFile(path) //nolint:gosec // below the module's folder
		require.NoError(t, err)
		total++
		name, id := filepath.Base(filepath.Dir(path)), fmt.Sprintf("example-%d", total)
		kind := strings.TrimSuffix(filepath.Base(path), ".json")
		var says struct{ Action string }
		_ = json.Unmarshal(body, &says) // lists have none
		acting := kind
		if says.Action != "" {
			acting += "." + says.Action
		}
		header := http.Header{"Content-Type": {"application/json"}}
		e := example{body: body, header: header, id: id, kind: acting}
		switch name {
		case "github":
			header["X-Github-Delivery"], header["X-Github-Event"] = []string{id}, []string{kind}
		case "gitlab":
			header["Idempotency-Key"], header["X-Gitlab-Event"], e.kind = []string{id}, []string{kind}, kind
		case "gitea":
			header["X-Gitea-Delivery"], header["X-Gitea-Event"] = []string{id}, []string{kind}
		case "gogs":
			header["X-Gogs-Delivery"], header["X-Gogs-Event"] = []string{id}, []string{kind}
		case "bitbucket":
			header["X-Request-Uuid"], header["X-Event-Key"], e.kind = []string{id}, []string{kind}, kind
		case "bitbucket-server":
			name = "bitbucket"
			header["X-Request-Id"], header["X-Event-Key"], e.kind = []string{id}, []string{kind}, kind
		case "azuredevops", "docker": // the one sends a password, the other nothing
			name = "basic"
			e.kind = "s"
			e.id = ""
		default:
			require.Fail(t, "no preset for "+name)
		}
		found[name] = append(found[name], e)
		return nil
	}))
	require.GreaterOrEqual(t, total, 150)
	for preset, examples := range found {
		t.Run(preset, func(t *testing.T) {
			if preset != "basic" {
				takeIn(t, preset, examples)
				return
			}
			s := compile(t, source.Config{Preset: preset}, "user:password")
			for _, e := range examples {
				events, _, err := s.Read(request(e.body, e.header))
				require.NoError(t, err)
				require.True(t, events[0].IDDerived)
			}
		})
	}
}

// The fixtures of Stripe's own mock, each as the object of an event.
func TestStripeFixtures(t *testing.T) {
	text, err := os.ReadFile(
		filepath.Join(folder(t, "github.com/stripe/stripe-mock"), "embedded", "openapi", "fixtures3.json"),
	)
	require.NoError(t, err)
	var fixtures struct{ Resources map[string]json.RawMessage }
	require.NoError(t, json.Unmarshal(text, &fixtures))
	require.Greater(t, len(fixtures.Resources), 100)
	var examples []example
	for name, object := range fixtures.Resources {
		id, kind := "evt_"+name, name+".updated"
		if len(kind) > 100 {
			kind = kind[:100]
		}
		body := fmt.Appendf(
			nil, `{"id":%q,"object":"event","created":1706616000,"pending_webhooks":1,"type":%q,"data":{"object":%s}}`,
			id, kind, object,
		)
		examples = append(
			examples,
			example{body: body, header: http.Header{"Content-Type": {"application/json"}}, id: id, kind: kind},
		)
	}
	takeIn(t, "stripe", examples)
}
