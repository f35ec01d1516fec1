package command

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/source"
)

// sendTimeout is longer than a server tries to store an event before it answers that it cannot.
const sendTimeout = 30 * time.Second

// envelope is what send posts, without the payload, whose bytes are sent as given.
type envelope struct {
	ID         string `json:"event_id"`
	Type       string `json:"event_type"`
	OccurredAt string `json:"occurred_at"`
}

func sendCommand(env environ) *cobra.Command {
	var database service.DatabaseSettings
	var allowed service.SecretSettings
	var e envelope
	var payload, file, url, from, preset string
	var secrets []string
	var asJSON, sign bool
	cmd := &cobra.Command{
		Use:   "send",
		Short: "Post one webhook to a running spine",
		Long: `Send posts one event to /webhook and prints the server's answer. It exits with 0
if the server stored the event or knows it already, else with 1.

With --source it posts to /webhook/SOURCE as the source's provider would: a small
sample, or the body that you give. With --sign it signs the request with the
secrets that the source names, which it reads from this environment. The source's
settings come from the database at DATABASE_URL. Without that variable the name is
taken for that of a preset, and --secret names the secret.`,
		Example: `  spine send --source github --sign
  spine send --source github --sign --secret env:GITHUB_WEBHOOK_SECRET --url https://hooks.example.com
  spine send --source stripe --sign --file event.json
  spine send --type user.created --payload '{"user_id":1}'
  spine send --type user.created --id test-001 --payload '{"user_id":1}' --json
  spine send --type order.paid --file order.json
  jq .order dump.json | spine send --type order.paid --file -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" && (sign || preset != "" || len(secrets) > 0) {
				return misuse("--sign, --preset and --secret go with --source")
			}
			if from == "" && e.Type == "" {
				return misuse("--type: must be given, such as user.created")
			}
			body := []byte(payload)
			if file != "" {
				var err error
				if body, err = readFile(file, cmd.InOrStdin()); err != nil {
					return err
				}
			}
			if from != "" {
				if file == "" && !cmd.Flags().Changed("payload") {
					body = nil // the sample's
				}
				compiled, err := compiledSource(
					cmd.Context(), database, from, preset, secrets, sign, allowed.Resolver(env.lookup),
					func(c source.Config) string { return folderHint(env, c) },
				)
				if err != nil {
					return err
				}
				return postSample(cmd.Context(), url, compiled, body, cmd.OutOrStdout(), asJSON)
			}
			if !json.Valid(body) {
				return misuse("the payload is not JSON")
			}
			e.ID = cmp.Or(e.ID, uuid.NewString())
			e.OccurredAt = cmp.Or(e.OccurredAt, time.Now().UTC().Format(time.RFC3339Nano))
			return postEnvelope(cmd.Context(), url, e, body, cmd.OutOrStdout(), asJSON)
		},
	}
	env.bind(cmd, needs{groups: []any{&database, &allowed}})
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&e.Type, "type", "", "`TYPE` of the event, such as user.created (required without --source)")
	flags.StringVar(&payload, "payload", "{}", "`JSON` object that the event carries")
	flags.StringVar(&file, "file", "", "read the payload from `FILE`; - is the standard input")
	flags.StringVar(&e.ID, "id", "", "`ID` of the event (default a new one)")
	flags.StringVar(&e.OccurredAt, "occurred-at", "", "RFC 3339 `TIME` of the event (default now)")
	flags.StringVar(&url, "url", "http://127.0.0.1:8000", "base `URL` of the server")
	flags.BoolVar(&asJSON, "json", false, "print the server's answer as it came")
	flags.StringVar(&from, "source", "", "post as this `SOURCE` does")
	flags.BoolVar(&sign, "sign", false, "sign the request, as the source's provider does")
	flags.StringVar(&preset, "preset", "", "`PRESET` of the source, whatever the database says")
	flags.StringArrayVar(&secrets, "secret", nil,
		"`REFERENCE` to the secret to sign with: env:NAME or file:NAME (default the source's)")
	completeFiles(cmd, "file")
	completeFlag(cmd, "source", sourceNames(&database))
	completeFlag(cmd, "preset", fixedValues(source.Presets()))
	cmd.MarkFlagsMutuallyExclusive("payload", "file")
	for _, flag := range []string{"type", "id", "occurred-at"} {
		cmd.MarkFlagsMutuallyExclusive("source", flag)
	}
	return cmd
}

// postEnvelope posts an event and prints the server's answer.
func postEnvelope(ctx context.Context, url string, e envelope, payload []byte, out io.Writer, asJSON bool) error {
	head, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("writing the envelope: %w", err)
	}
	body := bytes.Join([][]byte{bytes.TrimSuffix(head, []byte("}")), []byte(`,"payload":`), payload, []byte("}")}, nil)

	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(url, "/")+"/webhook",
		bytes.NewReader(body))
	if err != nil {
		return misuse("--url: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	return postRequest(req, out, asJSON)
}

// postSample posts what a source's provider would send: its sample, with body instead of the sample's own if body is
// not nil. The request is signed if the source's requests are.
func postSample(ctx context.Context, url string, s *source.Source, body []byte, out io.Writer, asJSON bool) error {
	now := time.Now()
	sample, err := s.Sample(now)
	if err != nil {
		return err
	}
	if body != nil {
		sample.Wire, sample.Body = body, body
		if err := s.Sign(sample, now); err != nil {
			return err
		}
	}
	path := "/webhook/" + s.Name()
	if sample.URL != nil && sample.URL.RawQuery != "" {
		path += "?" + sample.URL.RawQuery
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(url, "/")+path,
		bytes.NewReader(sample.Wire))
	if err != nil {
		return misuse("--url: %w", err)
	}
	req.Header = sample.Header
	return postRequest(req, out, asJSON)
}

// compiledSource is a source from the database, or one that a preset makes if no database or a preset is given. It has
// the secrets of this environment, but none if nothing is to be signed.
func compiledSource(
	ctx context.Context, database service.DatabaseSettings, name, preset string, secrets []string, sign bool,
	allowed source.Secrets, hint func(source.Config) string,
) (*source.Source, error) {
	c := source.Config{Preset: preset}
	if database.URL != "" && preset == "" {
		s, err := openDatabase(ctx, database)
		if err != nil {
			return nil, err
		}
		defer s.Close()
		settings, err := s.Source(ctx, name)
		if err != nil {
			return nil, err
		}
		if c, err = source.ParseConfig(settings.Settings); err != nil {
			return nil, err
		}
	} else if preset == "" {
		c.Preset = name
	}
	if len(secrets) > 0 {
		c.Secrets = nil
		for _, ref := range secrets {
			if err := checkReference("--secret", ref, allowed); err != nil {
				return nil, err
			}
			c.Secrets = append(c.Secrets, source.Secret{Ref: ref})
		}
	}
	if !sign { // without a secret
		c.Secrets, c.VerifyToken, c.Handshake, c.Verify = nil, "", "none", []source.Method{{Scheme: "none"}}
	}
	compiled, err := source.Compile(name, c, allowed.Resolve)
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, hint(c))
	}
	return compiled, nil
}
