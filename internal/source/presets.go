package source

import (
	"slices"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// Preset is what a provider does, as settings, so that a source of it needs only
// its secrets.
type Preset struct {
	Name   string   `json:"name"`
	Title  string   `json:"title"`
	Config Config   `json:"config"`
	Docs   string   `json:"docs,omitempty"` // page of the provider that says what it sends
	Steps  []string `json:"steps"`          // what to enter at the provider; see StepsFor

	sample sample
}

// sample is a request as the provider sends it, but for the signature.
// {{id}} stands for a fresh UUID, {{seconds}}, {{milliseconds}} and {{time}}
// (RFC 3339) for the time.
type sample struct {
	header [][2]string
	body   string
}

// StepsFor are the steps for a source of this name and these settings: they
// name the path and the references of its secrets, and leave the host open.
func (p Preset) StepsFor(name string, c Config) []string {
	address := c.URL
	if address == "" {
		address = "https://YOUR-HOST" + pathOf(name)
	}
	secret := "its secret"
	if len(c.Secrets) > 0 {
		secret = c.Secrets[0].Ref
	}
	word := "its verify token"
	if c.VerifyToken != "" {
		word = c.VerifyToken
	}
	fill := strings.NewReplacer("{address}", address, "{secret}", secret, "{word}", word)
	var steps []string
	for _, step := range p.Steps {
		steps = append(steps, fill.Replace(step))
	}
	return steps
}

// pathOf is the path that feeds a source.
func pathOf(name string) string {
	if name == event.DefaultSource {
		return "/webhook"
	}
	return "/webhook/" + name
}

// Presets returns the names of the presets, sorted.
func Presets() []string {
	var names []string
	for _, p := range presets() {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return names
}

// PresetOf returns the preset of a name. The caller may change it.
func PresetOf(name string) (Preset, bool) {
	for _, p := range presets() {
		if p.Name == name {
			p.Config.Preset = p.Name
			return p, true
		}
	}
	return Preset{}, false
}

const (
	fiveMinutes = 5 * time.Minute // what the libraries of most providers allow
	jsonType    = "application/json"
)

// contentType is that of every sample but Twilio's.
var contentType = [2]string{"Content-Type", jsonType}

// standard are the methods of Standard Webhooks (https://www.standardwebhooks.com),
// for headers with one of these prefixes. The order of the prefixes is the same
// for the three headers, or somebody could add an id that is not the signed one.
func standard(prefixes ...string) []Method {
	var signature, timestamp, ids []string
	for _, prefix := range prefixes {
		signature = append(signature, prefix+"-Signature")
		timestamp = append(timestamp, "header:"+prefix+"-Timestamp")
		ids = append(ids, prefix+"-Id")
	}
	signed := "{header:" + strings.Join(ids, "|") + "}.{timestamp}.{body}"
	return []Method{
		{
			Scheme: "hmac", Header: signature, Separator: " ", Assign: ",", Key: "v1",
			Signed: signed, Hash: "sha256", Encoding: "base64",
			SecretPrefix: []string{"whsec_", ""}, SecretNot: []string{"whsk_", "whpk_"}, Secret: "base64",
			Timestamp: timestamp, Unit: "seconds", Tolerance: fiveMinutes,
		},
		{
			Scheme: "ed25519", Header: signature, Separator: " ", Assign: ",", Key: "v1a",
			Signed: signed, Encoding: "base64",
			SecretPrefix: []string{"whsk_", "whpk_"}, Secret: "base64",
			Timestamp: timestamp, Unit: "seconds", Tolerance: fiveMinutes,
		},
	}
}

// gitlabMethods are Standard Webhooks where the hook has a signing token, which
// then decides whatever else is there, and a plain token where it has not.
func gitlabMethods() []Method {
	signed := standard("Webhook")[0]
	signed.Final = true
	signed.SecretPrefix = []string{"whsec_"}
	return []Method{
		signed,
		{Scheme: "token", Header: []string{"X-Gitlab-Token"}, SecretNot: []string{"whsec_"}},
	}
}

// ofBody is a method that signs the body alone, with a secret that is text.
func ofBody(header, encoding string) Method {
	return Method{Scheme: "hmac", Header: []string{header}, Signed: "{body}", Hash: "sha256", Encoding: encoding, Secret: "text"}
}

// presets is the table of what is known of providers. What a field says that
// the provider's documentation does not is explained beside it.
func presets() []Preset {
	github := ofBody("X-Hub-Signature-256", "hex")
	github.Assign, github.Key = "=", "sha256"
	bitbucket := github
	bitbucket.Header = []string{"X-Hub-Signature"}

	timed := func(header string, m Method) Method {
		m.Scheme, m.Header, m.Hash, m.Secret = "hmac", []string{header}, "sha256", "text"
		m.Tolerance = fiveMinutes
		return m
	}
	stripe := timed("Stripe-Signature", Method{
		Separator: ",", Assign: "=", Key: "v1", Signed: "{timestamp}.{body}", Encoding: "hex",
		Timestamp: []string{"key:t"}, Unit: "seconds", PastOnly: true,
	})
	mux := stripe
	mux.Header, mux.PastOnly = []string{"Mux-Signature"}, false
	slack := timed("X-Slack-Signature", Method{
		Assign: "=", Key: "v0", Signed: "v0:{timestamp}:{body}", Encoding: "hex",
		Timestamp: []string{"header:X-Slack-Request-Timestamp"}, Unit: "seconds",
	})
	paddle := timed("Paddle-Signature", Method{
		Separator: ";", Assign: "=", Key: "h1", Signed: "{timestamp}:{body}", Encoding: "hex",
		Timestamp: []string{"key:ts"}, Unit: "seconds",
	})
	zendesk := timed("X-Zendesk-Webhook-Signature", Method{
		Signed: "{timestamp}{body}", Encoding: "base64",
		Timestamp: []string{"header:X-Zendesk-Webhook-Signature-Timestamp"}, Unit: "rfc3339",
	})
	linear := timed("Linear-Signature", Method{
		Signed: "{body}", Encoding: "hex",
		Timestamp: []string{"body:/webhookTimestamp"}, Unit: "milliseconds",
	})
	linear.Tolerance = time.Minute
	square := ofBody("X-Square-Hmacsha256-Signature", "base64")
	square.Signed = "{url}{body}"

	return []Preset{
		{
			Name:   "envelope",
			Title:  "Spine's own envelope, from anyone",
			Config: Config{Verify: []Method{{Scheme: "none"}}, Format: "envelope"},
			Steps: []string{
				"POST to {address} an object with event_id, event_type, occurred_at and payload.",
			},
		},
		{
			Name:   "none",
			Title:  "Any request, from anyone",
			Config: Config{Verify: []Method{{Scheme: "none"}}, Format: "body"},
			Steps: []string{
				"POST to {address}. Anybody who knows the address can send: set verify as soon as the sender can sign.",
			},
			sample: sample{header: [][2]string{contentType}, body: `{"id":"{{id}}","type":"sample","created_at":"{{time}}"}`},
		},
		{
			Name:   "hmac",
			Title:  "Any request with an HMAC over its body",
			Config: Config{Verify: []Method{{Scheme: "hmac"}}, Format: "body"},
			Steps: []string{
				"Enter the address {address} at the sender.",
				"Enter the secret that {secret} holds as its signing secret.",
				"Say in verify which header holds the signature, and what is signed.",
			},
			sample: sample{header: [][2]string{contentType}, body: `{"id":"{{id}}","type":"sample","created_at":"{{time}}"}`},
		},
		{
			Name:   "token",
			Title:  "Any request with a secret in a header of its own",
			Config: Config{Verify: []Method{{Scheme: "token"}}, Format: "body"},
			Steps: []string{
				"Enter the address {address} at the sender.",
				"Have it send the secret that {secret} holds in the header that verify names.",
			},
			sample: sample{header: [][2]string{contentType}, body: `{"id":"{{id}}","type":"sample","created_at":"{{time}}"}`},
		},
		{
			Name:   "bearer",
			Title:  "Any request with a bearer token",
			Config: Config{Verify: []Method{{Scheme: "bearer"}}, Format: "body"},
			Steps: []string{
				"Enter the address {address} at the sender.",
				"Have it send the header Authorization: Bearer, followed by the secret that {secret} holds.",
			},
			sample: sample{header: [][2]string{contentType}, body: `{"id":"{{id}}","type":"sample","created_at":"{{time}}"}`},
		},
		{
			Name:   "basic",
			Title:  "Any request with a user and a password",
			Config: Config{Verify: []Method{{Scheme: "basic"}}, Format: "body"},
			Steps: []string{
				"Enter the address {address} at the sender.",
				"Enter the user and the password for HTTP Basic; {secret} holds them as user:password.",
			},
			sample: sample{header: [][2]string{contentType}, body: `{"id":"{{id}}","type":"sample","created_at":"{{time}}"}`},
		},
		{
			Name:  "standard-webhooks",
			Title: "Standard Webhooks, v1 and v1a",
			Config: Config{
				Verify: standard("Webhook"), Format: "body",
				ID: []string{"{header:Webhook-Id}"}, Type: []string{"{body:/type}"},
				Time: []string{"{body:/timestamp}", "{header:Webhook-Timestamp}"},
			},
			Docs: "https://www.standardwebhooks.com",
			Steps: []string{
				"Enter the address {address} at the sender.",
				"Copy its signing secret (whsec_…), or its public key (whpk_…), to where {secret} says.",
			},
			sample: sample{
				header: [][2]string{contentType, {"Webhook-Id", "msg_{{id}}"}},
				body:   `{"type":"user.created","timestamp":"{{time}}","data":{"id":"{{id}}"}}`,
			},
		},
		{
			Name:  "svix",
			Title: "Svix, and all who send with it",
			Config: Config{
				Verify: standard("Svix", "Webhook"), Format: "body",
				ID: []string{"{header:Svix-Id}", "{header:Webhook-Id}"}, Type: []string{"{body:/type}", "{body:/event_type}"},
				Time: []string{"{body:/timestamp}", "{header:Svix-Timestamp}", "{header:Webhook-Timestamp}"},
			},
			Docs: "https://docs.svix.com/receiving/verifying-payloads/how-manual",
			Steps: []string{
				"Add an endpoint with the address {address}.",
				"Copy its signing secret (whsec_…) to where {secret} says.",
			},
			sample: sample{
				header: [][2]string{contentType, {"Svix-Id", "msg_{{id}}"}},
				body:   `{"type":"invoice.paid","timestamp":"{{time}}","data":{"id":"{{id}}"}}`,
			},
		},
		{
			Name:  "github",
			Title: "GitHub",
			Config: Config{
				Verify: []Method{github}, Format: "body",
				// All hooks that are subscribed to an event send the same delivery: an
				// organisation's and a repository's are two events.
				ID:   []string{"{header:X-GitHub-Delivery}/{header:X-GitHub-Hook-ID}", "{header:X-GitHub-Delivery}"},
				Type: []string{"{header:X-GitHub-Event}.{body:/action}", "{header:X-GitHub-Event}"},
			},
			Docs: "https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries",
			Steps: []string{
				"In the repository or organisation: Settings, Webhooks, Add webhook.",
				"Payload URL: {address}",
				"Content type: application/json",
				"Secret: the one that {secret} holds",
				"Choose the events, leave SSL verification on, and add the webhook; GitHub sends a ping at once.",
			},
			sample: sample{
				header: [][2]string{
					contentType,
					{"User-Agent", "GitHub-Hookshot/0000000"},
					{"X-GitHub-Event", "issues"},
					{"X-GitHub-Delivery", "{{id}}"},
					{"X-GitHub-Hook-ID", "1"},
					{"X-GitHub-Hook-Installation-Target-ID", "1"},
					{"X-GitHub-Hook-Installation-Target-Type", "repository"},
				},
				body: `{"action":"opened","issue":{"id":1,"number":1,"title":"Sample {{id}}","created_at":"{{time}}"},` +
					`"repository":{"id":1,"full_name":"octocat/hello-world"},"sender":{"login":"octocat","id":1}}`,
			},
		},
		{
			Name:  "stripe",
			Title: "Stripe",
			Config: Config{
				Verify: []Method{stripe}, Format: "body",
				ID: []string{"{body:/id}"}, Type: []string{"{body:/type}"}, Time: []string{"{body:/created}"},
				// How many endpoints have not answered yet: another number in each attempt.
				Volatile: []string{"/pending_webhooks"},
			},
			Docs: "https://docs.stripe.com/webhooks",
			Steps: []string{
				"In the dashboard: Developers, Webhooks, Add endpoint.",
				"Endpoint URL: {address}",
				"Choose the events and add the endpoint.",
				"Reveal the signing secret (whsec_…) and copy all of it to where {secret} says.",
			},
			sample: sample{
				header: [][2]string{contentType, {"User-Agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)"}},
				body: `{"id":"evt_{{id}}","object":"event","api_version":"2024-06-20","created":{{seconds}},` +
					`"data":{"object":{"id":"pi_1","object":"payment_intent","amount":2000,"currency":"usd"}},` +
					`"livemode":false,"pending_webhooks":1,"request":{"id":null,"idempotency_key":null},"type":"payment_intent.succeeded"}`,
			},
		},
		{
			Name:  "shopify",
			Title: "Shopify",
			Config: Config{
				Verify: []Method{ofBody("X-Shopify-Hmac-Sha256", "base64")}, Format: "body",
				// An event id is that of one merchant's action, which several topics tell of.
				ID: []string{
					"{header:X-Shopify-Shop-Domain}/{header:X-Shopify-Topic}/{header:X-Shopify-Event-Id}",
					"{header:X-Shopify-Webhook-Id}",
				},
				Type: []string{"{header:X-Shopify-Topic}"}, Time: []string{"{header:X-Shopify-Triggered-At}"},
			},
			Docs: "https://shopify.dev/docs/apps/build/webhooks",
			Steps: []string{
				"In the app's settings, or in the shop: Settings, Notifications, Webhooks, Create webhook.",
				"URL: {address}",
				"Format: JSON",
				"Copy the app's client secret, or the shop's signing key, to where {secret} says.",
			},
			sample: sample{
				header: [][2]string{
					contentType,
					{"X-Shopify-Topic", "orders/create"},
					{"X-Shopify-Shop-Domain", "sample.myshopify.com"},
					{"X-Shopify-Webhook-Id", "{{id}}"},
					{"X-Shopify-Event-Id", "{{id}}"},
					{"X-Shopify-Triggered-At", "{{time}}"},
					{"X-Shopify-Api-Version", "2024-10"},
				},
				body: `{"id":1,"name":"#1001","note":"{{id}}","created_at":"{{time}}","total_price":"19.90","currency":"EUR"}`,
			},
		},
		{
			Name:  "slack",
			Title: "Slack",
			Config: Config{
				Verify: []Method{slack}, Format: "body",
				// Slash commands and buttons come as forms and have a trigger instead.
				ID:   []string{"{body:/event_id}", "{form:trigger_id}"},
				Type: []string{"{body:/event/type}", "{body:/type}", "{form:command}"}, Time: []string{"{body:/event_time}"},
				Handshake: "slack",
			},
			Docs: "https://api.slack.com/authentication/verifying-requests-from-slack",
			Steps: []string{
				"In the app's settings: Basic Information; copy the signing secret to where {secret} says.",
				"Event Subscriptions, Enable Events.",
				"Request URL: {address}; Slack asks at once whether it is answered.",
				"Subscribe to events and save.",
			},
			sample: sample{
				header: [][2]string{contentType},
				body: `{"token":"","team_id":"T1","api_app_id":"A1","event":{"type":"app_mention","user":"U1","text":"Hello","ts":"{{seconds}}.000100",` +
					`"channel":"C1"},"type":"event_callback","event_id":"Ev{{id}}","event_time":{{seconds}}}`,
			},
		},
		{
			Name:  "gitlab",
			Title: "GitLab",
			Config: Config{
				Verify: gitlabMethods(), Format: "body",
				// The id of a signed request is its Idempotency-Key too, but only webhook-id is
				// signed. X-Gitlab-Webhook-UUID is another one in each attempt.
				ID: []string{"{header:Webhook-Id}", "{header:Idempotency-Key}"}, Type: []string{"{header:X-Gitlab-Event}"},
			},
			Docs: "https://docs.gitlab.com/user/project/integrations/webhooks/",
			Steps: []string{
				"In the project or group: Settings, Webhooks, Add new webhook.",
				"URL: {address}",
				"Signing token (whsec_…), or else secret token: the one that {secret} holds",
				"Choose the triggers, leave SSL verification on, and add the webhook.",
			},
			sample: sample{
				header: [][2]string{
					contentType,
					{"User-Agent", "GitLab/17.0"},
					{"X-Gitlab-Event", "Push Hook"},
					{"X-Gitlab-Webhook-UUID", "{{id}}"},
					{"Idempotency-Key", "{{id}}"},
				},
				body: `{"object_kind":"push","event_name":"push","ref":"refs/heads/main","checkout_sha":"{{id}}",` +
					`"project":{"id":1,"path_with_namespace":"sample/sample"},"commits":[],"total_commits_count":0}`,
			},
		},
		{
			Name:  "square",
			Title: "Square",
			Config: Config{
				Verify: []Method{square}, Format: "body",
				ID: []string{"{body:/event_id}"}, Type: []string{"{body:/type}"}, Time: []string{"{body:/created_at}"},
			},
			Docs: "https://developer.squareup.com/docs/webhooks/step3validate",
			Steps: []string{
				"In the developer console: the application, Webhooks, Subscriptions, Add subscription.",
				"URL: {address}, exactly as url says in this source's settings: Square signs it.",
				"Copy the signature key to where {secret} says.",
			},
			sample: sample{
				header: [][2]string{contentType},
				body: `{"merchant_id":"M1","type":"payment.created","event_id":"{{id}}","created_at":"{{time}}",` +
					`"data":{"type":"payment","id":"P1","object":{"payment":{"id":"P1","amount_money":{"amount":100,"currency":"USD"}}}}}`,
			},
		},
		{
			Name:  "linear",
			Title: "Linear",
			Config: Config{
				Verify: []Method{linear}, Format: "body",
				ID: []string{"{header:Linear-Delivery}"}, Type: []string{"{header:Linear-Event}"},
				Time: []string{"{body:/createdAt}", "{body:/webhookTimestamp}"},
				// When it was sent: another time in each attempt.
				Volatile: []string{"/webhookTimestamp"},
			},
			Docs: "https://linear.app/developers/webhooks",
			Steps: []string{
				"In Linear: Settings, API, New webhook.",
				"URL: {address}",
				"Copy the signing secret to where {secret} says.",
			},
			sample: sample{
				header: [][2]string{contentType, {"User-Agent", "Linear-Webhook"}, {"Linear-Delivery", "{{id}}"}, {"Linear-Event", "Issue"}},
				body: `{"action":"create","type":"Issue","createdAt":"{{time}}","data":{"id":"{{id}}","title":"Sample"},` +
					`"url":"https://linear.app/sample/issue/S-1","webhookTimestamp":{{milliseconds}},"webhookId":"{{id}}"}`,
			},
		},
		{
			Name:  "sentry",
			Title: "Sentry",
			Config: Config{
				Verify: []Method{ofBody("Sentry-Hook-Signature", "hex")}, Format: "body",
				ID:   []string{"{header:Request-ID}"},
				Type: []string{"{header:Sentry-Hook-Resource}.{body:/action}", "{header:Sentry-Hook-Resource}"},
				Time: []string{"{header:Sentry-Hook-Timestamp}"},
			},
			Docs: "https://docs.sentry.io/organization/integrations/integration-platform/webhooks/",
			Steps: []string{
				"In Sentry: Settings, Custom Integrations, Create New Integration.",
				"Webhook URL: {address}",
				"Copy the client secret to where {secret} says.",
			},
			sample: sample{
				header: [][2]string{
					contentType, {"Request-ID", "{{id}}"}, {"Sentry-Hook-Resource", "issue"}, {"Sentry-Hook-Timestamp", "{{seconds}}"},
				},
				body: `{"action":"created","installation":{"uuid":"{{id}}"},"data":{"issue":{"id":"1","title":"Sample"}},"actor":{"type":"application","id":"sentry","name":"Sentry"}}`,
			},
		},
		{
			Name:  "paddle",
			Title: "Paddle",
			Config: Config{
				Verify: []Method{paddle}, Format: "body",
				ID: []string{"{body:/event_id}"}, Type: []string{"{body:/event_type}"}, Time: []string{"{body:/occurred_at}"},
				// The same event sent again by hand, or to another destination, has another one.
				Volatile: []string{"/notification_id"},
			},
			Docs: "https://developer.paddle.com/webhooks/signature-verification",
			Steps: []string{
				"In Paddle: Developer tools, Notifications, New destination.",
				"URL: {address}",
				"Copy the secret key (pdl_ntfset_…) to where {secret} says.",
			},
			sample: sample{
				header: [][2]string{contentType},
				body: `{"event_id":"evt_{{id}}","event_type":"transaction.completed","occurred_at":"{{time}}",` +
					`"notification_id":"ntf_{{id}}","data":{"id":"txn_1","status":"completed"}}`,
			},
		},
		{
			Name:  "zendesk",
			Title: "Zendesk",
			Config: Config{
				Verify: []Method{zendesk}, Format: "body",
				ID: []string{"{header:X-Zendesk-Webhook-Invocation-Id}"}, Type: []string{"{body:/type}"}, Time: []string{"{body:/time}"},
			},
			Docs: "https://developer.zendesk.com/documentation/webhooks/verifying/",
			Steps: []string{
				"In the Admin Center: Apps and integrations, Webhooks, Create webhook.",
				"Endpoint URL: {address}; request method POST, request format JSON.",
				"Reveal the signing secret and copy it to where {secret} says.",
			},
			sample: sample{
				header: [][2]string{contentType, {"X-Zendesk-Webhook-Id", "01SAMPLE"}, {"X-Zendesk-Webhook-Invocation-Id", "{{id}}"}},
				body: `{"type":"zen:event-type:ticket.created","id":"{{id}}","time":"{{time}}","account_id":1,` +
					`"subject":"zen:ticket:1","detail":{"id":"1","subject":"Sample"}}`,
			},
		},
		{
			Name:  "twilio",
			Title: "Twilio",
			Config: Config{
				Verify: []Method{{Scheme: "twilio", Header: []string{"X-Twilio-Signature"}}}, Format: "body",
				// A message or call sends one request for each of its states, and a call any
				// number of others.
				ID: []string{
					"{form:MessageSid}/{form:MessageStatus}",
					"{form:MessageSid}/{form:SmsStatus}",
					"{form:MessageSid}",
					"{form:CallSid}/{form:RecordingSid}/{form:RecordingStatus}",
					"{form:CallSid}/{form:CallStatus}/{form:SequenceNumber}",
					"{form:CallSid}/{hash}",
				},
				Type: []string{
					"message.{form:MessageStatus}", "message.{form:SmsStatus}",
					"recording.{form:RecordingStatus}", "call.{form:CallStatus}",
				},
				Time: []string{"{form:Timestamp}"},
			},
			Docs: "https://www.twilio.com/docs/usage/webhooks/webhooks-security",
			Steps: []string{
				"In the console: the phone number or messaging service, its webhook with HTTP POST.",
				"URL: {address}, exactly as url says in this source's settings: Twilio signs it.",
				"Copy the account's auth token to where {secret} says.",
			},
			sample: sample{
				header: [][2]string{{"Content-Type", "application/x-www-form-urlencoded"}},
				body:   "AccountSid=AC1&ApiVersion=2010-04-01&Body=Hello&From=%2B15005550006&MessageSid=SM{{id}}&SmsStatus=received&To=%2B15005550001",
			},
		},
		{
			Name:  "meta",
			Title: "Meta: WhatsApp, Messenger, Instagram",
			Config: Config{
				Verify: []Method{github}, Format: "body",
				// There is no id: it is made of the body.
				Type: []string{"{body:/object}"}, Time: []string{"{body:/entry/0/time}"},
				Handshake: "meta",
			},
			Docs: "https://developers.facebook.com/docs/graph-api/webhooks/getting-started",
			Steps: []string{
				"Copy the app secret (App settings, Basic) to where {secret} says.",
				"In the app: Webhooks, choose the object, Subscribe.",
				"Callback URL: {address}",
				"Verify token: the word that {word} holds; Meta asks for it at once.",
			},
			sample: sample{
				header: [][2]string{contentType},
				body: `{"object":"whatsapp_business_account","entry":[{"id":"1","time":{{seconds}},"changes":[{"field":"messages",` +
					`"value":{"messaging_product":"whatsapp","messages":[{"id":"wamid.{{id}}","type":"text","text":{"body":"Hello"}}]}}]}]}`,
			},
		},
		{
			Name:  "discord",
			Title: "Discord",
			Config: Config{
				Verify: []Method{{
					Scheme: "ed25519", Header: []string{"X-Signature-Ed25519"}, Signed: "{timestamp}{body}", Encoding: "hex", Secret: "hex",
					Timestamp: []string{"header:X-Signature-Timestamp"}, Unit: "seconds", Tolerance: fiveMinutes,
				}},
				Format: "body",
				// Events have no id, interactions have.
				ID: []string{"{body:/id}"}, Type: []string{"{body:/event/type}", "interaction.{body:/type}"}, Time: []string{"{body:/event/timestamp}"},
				Handshake: "discord",
			},
			Docs: "https://discord.com/developers/docs/events/webhook-events",
			Steps: []string{
				"In the developer portal: the application, General Information; copy the public key to where {secret} says.",
				"Webhooks, Endpoint URL (or General Information, Interactions Endpoint URL): {address}; Discord asks at once whether it is answered.",
			},
			sample: sample{
				header: [][2]string{contentType},
				body: `{"id":"{{id}}","application_id":"1","type":2,"token":"","version":1,` +
					`"data":{"id":"1","name":"sample","type":1},"user":{"id":"1","username":"sample"}}`,
			},
		},
		{
			Name:  "gitea",
			Title: "Gitea, Forgejo",
			Config: Config{
				Verify: []Method{ofBody("X-Gitea-Signature", "hex")}, Format: "body",
				ID: []string{"{header:X-Gitea-Delivery}"}, Type: []string{"{header:X-Gitea-Event}.{body:/action}", "{header:X-Gitea-Event}"},
			},
			Docs: "https://docs.gitea.com/usage/webhooks",
			Steps: []string{
				"In the repository or organisation: Settings, Webhooks, Add Webhook, Gitea.",
				"Target URL: {address}; HTTP method POST; content type application/json",
				"Secret: the one that {secret} holds",
			},
			sample: sample{
				header: [][2]string{contentType, {"X-Gitea-Event", "push"}, {"X-Gitea-Delivery", "{{id}}"}},
				body:   `{"ref":"refs/heads/main","before":"0","after":"{{id}}","commits":[],"repository":{"id":1,"full_name":"sample/sample"}}`,
			},
		},
		{
			Name:  "gogs",
			Title: "Gogs",
			Config: Config{
				Verify: []Method{ofBody("X-Gogs-Signature", "hex")}, Format: "body",
				ID: []string{"{header:X-Gogs-Delivery}"}, Type: []string{"{header:X-Gogs-Event}.{body:/action}", "{header:X-Gogs-Event}"},
			},
			Docs: "https://gogs.io/docs/features/webhook",
			Steps: []string{
				"In the repository: Settings, Webhooks, Add a new webhook, Gogs.",
				"Payload URL: {address}; content type application/json",
				"Secret: the one that {secret} holds",
			},
			sample: sample{
				header: [][2]string{contentType, {"X-Gogs-Event", "push"}, {"X-Gogs-Delivery", "{{id}}"}},
				body:   `{"ref":"refs/heads/main","before":"0","after":"{{id}}","commits":[],"repository":{"id":1,"full_name":"sample/sample"}}`,
			},
		},
		{
			Name:  "bitbucket",
			Title: "Bitbucket, Cloud and Data Center",
			Config: Config{
				Verify: []Method{bitbucket}, Format: "body",
				// The request's id is that of an event, and Cloud says which hook sends it.
				ID:   []string{"{header:X-Request-UUID}/{header:X-Hook-UUID}", "{header:X-Request-UUID}", "{header:X-Request-Id}"},
				Type: []string{"{header:X-Event-Key}"},
			},
			Docs: "https://support.atlassian.com/bitbucket-cloud/docs/manage-webhooks/",
			Steps: []string{
				"In the repository or workspace: Settings, Webhooks, Add webhook.",
				"URL: {address}",
				"Secret: the one that {secret} holds",
			},
			sample: sample{
				header: [][2]string{contentType, {"X-Event-Key", "repo:push"}, {"X-Request-UUID", "{{id}}"}, {"X-Hook-UUID", "1"}},
				body:   `{"push":{"changes":[]},"repository":{"uuid":"{{id}}","full_name":"sample/sample"},"actor":{"display_name":"Sample"}}`,
			},
		},
		{
			Name:  "mux",
			Title: "Mux",
			Config: Config{
				Verify: []Method{mux}, Format: "body",
				ID: []string{"{body:/id}"}, Type: []string{"{body:/type}"}, Time: []string{"{body:/created_at}"},
				// The attempts so far: one more in each.
				Volatile: []string{"/attempts"},
			},
			Docs: "https://www.mux.com/docs/core/verify-webhook-signatures",
			Steps: []string{
				"In the dashboard: Settings, Webhooks, Create new webhook.",
				"URL: {address}",
				"Copy the signing secret to where {secret} says.",
			},
			sample: sample{
				header: [][2]string{contentType},
				body: `{"type":"video.asset.ready","id":"{{id}}","created_at":"{{time}}","object":{"type":"asset","id":"A1"},` +
					`"attempts":[],"data":{"id":"A1","status":"ready"}}`,
			},
		},
		{
			Name:  "cloudevents",
			Title: "CloudEvents 1.0 over HTTP, with a bearer token",
			// The CloudEvents webhook specification (HTTP 1.1 Web Hooks, section 3) has the
			// sender authorise itself by a token.
			Config: Config{
				Verify: []Method{{Scheme: "bearer"}}, Format: "cloudevents", Handshake: "cloudevents",
			},
			Docs: "https://github.com/cloudevents/spec/blob/main/cloudevents/http-webhook.md",
			Steps: []string{
				"Enter the address {address} at the sender as its webhook.",
				"Have it send the header Authorization: Bearer, followed by the secret that {secret} holds.",
			},
			sample: sample{
				header: [][2]string{
					contentType,
					{"Ce-Specversion", "1.0"},
					{"Ce-Id", "{{id}}"},
					{"Ce-Source", "/sample"},
					{"Ce-Type", "com.example.sample"},
					{"Ce-Time", "{{time}}"},
				},
				body: `{"hello":"world"}`,
			},
		},
	}
}
