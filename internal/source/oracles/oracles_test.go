// Package oracles compares the signatures of package source with those of the providers' own libraries, both ways, on
// random bodies. It is a module of its own, so that the libraries stay out of Spine's go.mod.
package oracles

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	paddle "github.com/PaddleHQ/paddle-go-sdk/v4"
	"github.com/bwmarrin/discordgo"
	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/google/go-github/v74/github"
	"github.com/slack-go/slack"
	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"
	"github.com/stripe/stripe-go/v83/webhook"
	svix "github.com/svix/svix-webhooks/go"
	twilio "github.com/twilio/twilio-go/client"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
	"github.com/webhookspine/spine/internal/source"
)

const times = 300 // bodies for each provider

// random makes bodies. The log of the test has its seed.
func random(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any number will do
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // as above
}

// body is JSON of up to 4 kB, with any bytes that may stand in strings.
func body(r *rand.Rand) []byte {
	b := []byte(`{"id":"`)
	b = strconv.AppendUint(b, r.Uint64(), 36)
	b = append(b, `","text":"`...)
	for range r.IntN(4000) {
		if c := byte(r.IntN(256)); c >= 0x20 && c != '"' && c != '\\' { //nolint:gosec // below 256
			b = append(b, c)
		}
	}
	return append(b, '"', '}')
}

// compile makes a source of a preset.
func compile(t *testing.T, c source.Config, text string) *source.Source {
	t.Helper()
	c.Secrets = []source.Secret{{Ref: "env:SECRET"}}
	s, err := source.Compile("s", c, func(string) (secret.Value, error) { return secret.New(text), nil })
	require.NoError(t, err)
	return s
}

func request(wire []byte, header http.Header) *event.Request {
	if header == nil {
		header = http.Header{}
	}
	return &event.Request{
		Method: http.MethodPost,
		URL:    &url.URL{Path: "/webhook/s"},
		Header: header,
		Wire:   wire,
		Body:   wire,
		At:     time.Now(),
	}
}

// provider is a library that verifies, and one that signs where it does.
type provider struct {
	preset, secret string
	config         source.Config
	header         func(r *rand.Rand) http.Header // that is signed as well
	verify         func(wire []byte, header http.Header) bool
	sign           func(t *testing.T, wire []byte, header http.Header)
}

const (
	whsec = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	plain = "a secret of 24 characters"
)

func providers(t *testing.T) []provider {
	t.Helper()
	sw, err := standard.NewWebhook(whsec)
	require.NoError(t, err)
	sx, err := svix.NewWebhook(whsec)
	require.NoError(t, err)
	verifier := paddle.NewWebhookVerifier(plain)
	ids := func(name string) func(r *rand.Rand) http.Header {
		return func(r *rand.Rand) http.Header { return http.Header{name: {fmt.Sprintf("msg_%x", r.Uint64())}} }
	}
	return []provider{
		{
			preset: "standard-webhooks", secret: whsec, header: ids("Webhook-Id"),
			verify: func(wire []byte, h http.Header) bool { return sw.Verify(wire, h) == nil },
			sign: func(t *testing.T, wire []byte, h http.Header) {
				now := time.Now()
				signature, err := sw.Sign(h.Get("Webhook-Id"), now, wire)
				require.NoError(t, err)
				h.Set("Webhook-Timestamp", strconv.FormatInt(now.Unix(), 10))
				h.Set("Webhook-Signature", "v1,AAAA "+signature)
			},
		},
		{
			preset: "svix", secret: whsec, header: ids("Svix-Id"),
			verify: func(wire []byte, h http.Header) bool { return sx.Verify(wire, h) == nil },
			sign: func(t *testing.T, wire []byte, h http.Header) {
				now := time.Now()
				signature, err := sx.Sign(h.Get("Svix-Id"), now, wire)
				require.NoError(t, err)
				h.Set("Svix-Timestamp", strconv.FormatInt(now.Unix(), 10))
				h.Set("Svix-Signature", signature)
			},
		},
		{
			preset: "stripe", secret: "whsec_" + plain,
			verify: func(wire []byte, h http.Header) bool {
				return webhook.ValidatePayload(wire, h.Get("Stripe-Signature"), "whsec_"+plain) == nil
			},
			sign: func(_ *testing.T, wire []byte, h http.Header) {
				h.Set(
					"Stripe-Signature",
					webhook.GenerateTestSignedPayload(
						&webhook.UnsignedPayload{Payload: wire, Secret: "whsec_" + plain},
					).Header,
				)
			},
		},
		{
			preset: "github", secret: plain,
			verify: func(wire []byte, h http.Header) bool {
				return github.ValidateSignature(h.Get("X-Hub-Signature-256"), wire, []byte(plain)) == nil
			},
		},
		{
			preset: "slack", secret: plain,
			verify: func(wire []byte, h http.Header) bool {
				v, err := slack.NewSecretsVerifier(h, plain)
				if err != nil {
					return false
				}
				_, _ = v.Write(wire)
				return v.Ensure() == nil
			},
		},
		{
			preset: "paddle", secret: plain,
			verify: func(wire []byte, h http.Header) bool {
				r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "/", bytes.NewReader(wire))
				if err != nil {
					return false
				}
				r.Header = h
				ok, err := verifier.Verify(r)
				return ok && err == nil
			},
		},
	}
}

func TestProvidersLibrariesAgree(t *testing.T) {
	for _, p := range providers(t) {
		t.Run(p.preset, func(t *testing.T) {
			r := random(t)
			s := compile(t, source.Config{Preset: p.preset}, p.secret)
			for range times {
				wire := body(r)
				header := http.Header{}
				if p.header != nil {
					header = p.header(r)
				}
				q := request(wire, header.Clone())
				require.NoError(t, s.Sign(q, time.Now()))
				require.True(t, p.verify(wire, q.Header), "theirs takes what ours signed: %v", q.Header)
				require.NoError(t, s.Verify(q))
				other := bytes.Clone(wire)
				other[r.IntN(len(other))] ^= 1 << r.IntN(8)
				require.False(t, p.verify(other, q.Header), "theirs rejects a change")
				q.Wire = other
				require.Error(t, s.Verify(q), "ours rejects a change")

				if p.sign == nil {
					continue
				}
				p.sign(t, wire, header)
				require.NoError(t, s.Verify(request(wire, header)), "ours takes what theirs signed: %v", header)
				require.Error(t, s.Verify(request(other, header)))
			}
		})
	}
}

// Twilio signs the address and the fields of a form, or the address of a body
// that has its hash there.
func TestTwilio(t *testing.T) {
	const address = "https://hooks.example.com/webhook/s?foo=1&bar=2"
	r := random(t)
	s := compile(t, source.Config{Preset: "twilio", URL: address}, plain)
	theirs := twilio.NewRequestValidator(plain)
	for range times {
		form, fields := url.Values{}, map[string]string{}
		for range 1 + r.IntN(10) {
			name, text := fmt.Sprintf("F%d", r.IntN(1000)), fmt.Sprintf(
				"%x +é&=%%\n%c", r.Uint64(), rune(0x4e00+r.IntN(1000)),
			)
			form.Set(name, text)
			fields[name] = text
		}
		q := request([]byte(form.Encode()), http.Header{"Content-Type": {"application/x-www-form-urlencoded"}})
		require.NoError(t, s.Sign(q, time.Now()))
		signature := q.Header.Get("X-Twilio-Signature")
		require.True(t, theirs.Validate(address, fields, signature))
		require.NoError(t, s.Verify(q))
		fields["F1001"] = "x"
		require.False(t, theirs.Validate(address, fields, signature))
		q.Wire = append(q.Wire, "&F1001=x"...)
		require.Error(t, s.Verify(q))

		wire := body(r)
		q = request(wire, http.Header{"Content-Type": {"application/json"}})
		require.NoError(t, s.Sign(q, time.Now()))
		// What is signed is the address that was asked for, with its query.
		base, _, _ := strings.Cut(address, "?")
		require.True(
			t, theirs.ValidateBody(base+"?"+q.URL.RawQuery, wire, q.Header.Get("X-Twilio-Signature")), "%s", q.URL,
		)
		require.NoError(t, s.Verify(q))
	}
}

func TestDiscord(t *testing.T) {
	r := random(t)
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	s := compile(t, source.Config{Preset: "discord"}, hex.EncodeToString(public))
	for range times {
		wire := body(r)
		stamp := strconv.FormatInt(time.Now().Unix(), 10)
		header := http.Header{"X-Signature-Timestamp": {stamp}}
		header.Set("X-Signature-Ed25519", hex.EncodeToString(ed25519.Sign(private, append([]byte(stamp), wire...))))
		theirs := func(wire []byte) bool {
			q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(wire))
			require.NoError(t, err)
			q.Header = header
			return discordgo.VerifyInteraction(q, public)
		}
		require.True(t, theirs(wire))
		require.NoError(t, s.Verify(request(wire, header)))
		wire[0] ^= 1
		require.False(t, theirs(wire))
		require.Error(t, s.Verify(request(wire, header)))
	}
}

// The attributes that the SDK writes are those that ours reads, in each mode, and
// the other way round.
func TestCloudEvents(t *testing.T) {
	r := random(t)
	s := compile(t, source.Config{Preset: "cloudevents"}, plain)
	for n := range times {
		e := cloudevents.NewEvent()
		e.SetID(fmt.Sprintf("%x \"é %c", r.Uint64(), rune(0x4e00+r.IntN(1000))))
		e.SetSource(fmt.Sprintf("/source/%x", r.Uint64()))
		if n%2 == 0 {
			// In a header the SDK does not encode a %, as the binding asks for.
			e.SetID(e.ID() + "%20")
			e.SetSource(e.Source() + "%20")
		}
		e.SetType("com.example.type")
		at := time.Unix(1_700_000_000+r.Int64N(1e8), 0).UTC()
		e.SetTime(at)
		require.NoError(t, e.SetData(cloudevents.ApplicationJSON, map[string]any{"n": n, "x": r.Uint64()}))
		e.SetSubject(fmt.Sprintf("subject é/%x", r.Uint64()))
		e.SetExtension("sequence", n)
		modes := []context.Context{binding.WithForceStructured(t.Context())}
		if n%2 == 1 {
			modes = append(modes, binding.WithForceBinary(t.Context()))
		}
		var seen []event.Event
		for _, ctx := range modes {
			q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://x/", nil)
			require.NoError(t, err)
			require.NoError(t, cehttp.WriteRequest(ctx, binding.ToMessage(&e), q))
			var wire bytes.Buffer
			_, err = wire.ReadFrom(q.Body)
			require.NoError(t, err)
			events, batch, err := s.Read(request(wire.Bytes(), q.Header))
			require.NoError(t, err, "%v %s", q.Header, wire.Bytes())
			require.False(t, batch)
			require.Len(t, events, 1)
			require.Equal(t, strings.ReplaceAll(e.Source(), " ", "%20")+" "+e.ID(), events[0].ID)
			require.Equal(t, e.Type(), events[0].Type)
			require.True(t, at.Equal(events[0].OccurredAt))
			require.Contains(t, string(events[0].Payload), e.Subject())
			seen = append(seen, events[0])
		}
		require.Equal(t, seen[0].Hash, seen[len(seen)-1].Hash, "%s\n%s", seen[0].Payload, seen[len(seen)-1].Payload)

		sample, err := s.Sample(time.Now())
		require.NoError(t, err)
		q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://x/", bytes.NewReader(sample.Wire))
		require.NoError(t, err)
		q.Header = sample.Header
		theirs, err := cloudevents.NewEventFromHTTPRequest(q)
		require.NoError(t, err)
		require.NoError(t, theirs.Validate())
	}
}
