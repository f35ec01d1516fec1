package source

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
)

// maxChallenge bounds what an answer echoes, in bytes.
const maxChallenge = 4096

// handshake answers requests by which a provider asks whether it may send.
type handshake struct {
	kind  string
	token secret.Value // Meta's word; none where it cannot be read
	rate  float64      // requests a second that the source takes; 0 for no limit
}

// newHandshake reads Meta's word now, so that a source whose word cannot be read says so. The source takes requests
// without it.
func (s *Source) newHandshake(resolve SecretResolver) *handshake {
	h := &handshake{kind: s.config.Handshake, rate: s.config.Limits.Rate}
	if s.config.VerifyToken == "" {
		return h
	}
	token, err := resolve(s.config.VerifyToken)
	if err != nil {
		s.warnUnread("verify_token", err.Error())
		return h
	}
	h.token = token
	s.learn(token.Reveal())
	return h
}

// methods are the HTTP methods of the handshake, besides POST.
func (h *handshake) methods() []string {
	switch h.kind {
	case "meta":
		return []string{http.MethodGet}
	case "cloudevents":
		return []string{http.MethodOptions}
	}
	return nil
}

// answer answers a handshake. Of any other request ok is false. A request that comes as a POST must have been verified
// before.
func (h *handshake) answer(r *event.Request) (a event.Answer, ok bool) {
	switch {
	case h.kind == "meta" && r.Method == http.MethodGet:
		return h.answerMeta(r.URL.Query()), true
	case h.kind == "cloudevents" && r.Method == http.MethodOptions:
		return h.answerCloudEvents(r.Header), true
	case h.kind == "slack" && r.Method == http.MethodPost:
		var ask struct {
			Type      string `json:"type"`
			Challenge string `json:"challenge"`
		}
		if len(r.Body) > maxChallenge || json.Unmarshal(r.Body, &ask) != nil || ask.Type != "url_verification" {
			return event.Answer{}, false
		}
		body, err := json.Marshal(struct {
			Challenge string `json:"challenge"`
		}{ask.Challenge})
		return plainAnswer(http.StatusOK, "application/json", body), err == nil
	case h.kind == "discord" && r.Method == http.MethodPost:
		var ask struct {
			Type  *int            `json:"type"`
			Event json.RawMessage `json:"event"`
		}
		if len(r.Body) > maxChallenge || json.Unmarshal(r.Body, &ask) != nil || ask.Type == nil || ask.Event != nil {
			return event.Answer{}, false
		}
		switch *ask.Type {
		case 1: // of interactions
			return plainAnswer(http.StatusOK, "application/json", []byte(`{"type":1}`)), true
		case 0: // of webhook events
			return plainAnswer(http.StatusNoContent, "", nil), true
		}
	}
	return event.Answer{}, false
}

// answerMeta answers Meta, which proves itself by a word that both sides know.
func (h *handshake) answerMeta(query url.Values) event.Answer {
	challenge := query.Get("hub.challenge")
	if query.Get("hub.mode") != "subscribe" || challenge == "" || len(challenge) > maxChallenge {
		return textAnswer(http.StatusBadRequest, "This is where webhooks are posted to.\n")
	}
	if h.token.IsZero() { // our fault
		return textAnswer(http.StatusServiceUnavailable, "The verify token cannot be checked now.\n")
	}
	if !h.token.Equal(secret.New(query.Get("hub.verify_token"))) {
		return textAnswer(http.StatusForbidden, "The verify token is another one.\n")
	}
	return textAnswer(http.StatusOK, challenge)
}

// answerCloudEvents answers a sender that asks whether and how fast it may send (CloudEvents HTTP 1.1 Web Hooks,
// section 4).
func (h *handshake) answerCloudEvents(header http.Header) event.Answer {
	origin := header.Get("Webhook-Request-Origin")
	if origin == "" || len(origin) > maxChallenge {
		return textAnswer(http.StatusBadRequest, "The header WebHook-Request-Origin is missing.\n")
	}
	a := plainAnswer(http.StatusOK, "", nil)
	a.Header["WebHook-Allowed-Origin"] = origin
	a.Header["Allow"] = http.MethodPost
	a.Header["WebHook-Allowed-Rate"] = "*"
	if h.rate > 0 {
		a.Header["WebHook-Allowed-Rate"] = strconv.Itoa(max(1, int(h.rate*time.Minute.Seconds())))
	}
	return a
}

func textAnswer(status int, text string) event.Answer {
	return plainAnswer(status, "text/plain; charset=utf-8", []byte(text))
}

// plainAnswer is an answer without a Content-Type where that is empty.
func plainAnswer(status int, contentType string, body []byte) event.Answer {
	a := event.Answer{Status: status, Header: map[string]string{"X-Content-Type-Options": "nosniff"}, Body: body}
	if contentType != "" {
		a.Header["Content-Type"] = contentType
	}
	return a
}
