package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

// change sends a POST.
func (s *system) change(target, body string) answer {
	s.t.Helper()
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(
		w,
		httptest.NewRequestWithContext(s.t.Context(), http.MethodPost, target, strings.NewReader(body)),
	)
	return answer{w.Code, w.Header(), w.Body.Bytes()}
}

// G16: all dead letters that a filter chooses are replayed, page by page, and nothing else is.
func TestDeadLettersAreReplayedByTheFiltersOfTheirList(t *testing.T) {
	s := newSystem(t)
	var batch []event.Event
	for i := range 7 {
		batch = append(batch, webhook("default", fmt.Sprint("a", i), "order.paid", `{}`))
	}
	s.ingest(
		append(batch, webhook("default", "b", "user.created", `{}`), webhook("default", "c", "order.paid", `{}`))...)
	s.exec("update spine.processing_state set status = 'dead' where event_id <> 'c'")
	s.exec("update spine.processing_state set status = 'completed' where event_id = 'c'")

	var answers []string
	for target := "/api/dead/replay?limit=3&type=order.paid"; target != ""; {
		a := s.change(target, "")
		require.Equal(t, http.StatusOK, a.code, string(a.body))
		answers, target = append(answers, strings.TrimSpace(string(a.body))), ""
		if link := a.header.Get("Link"); link != "" {
			target = parseLink(t, link).String()
		}
	}
	require.Equal(t, []string{`{"replayed":3}`, `{"replayed":3}`, `{"replayed":1}`}, answers)
	require.Len(t, s.get("/api/processing?status=pending").rows(t), 7)
	require.Len(t, s.get("/api/processing?status=dead").rows(t), 1)
	require.Len(t, s.get("/api/processing?status=completed").rows(t), 1)
	require.Len(t, s.get("/api/audit?action=event_replayed").rows(t), 7)
	require.JSONEq(t, `{"replayed":0}`, string(s.change("/api/dead/replay?type=order.paid", "").body), "none is left")

	requireProblem(
		t,
		s.change("/api/dead/replay?status=completed", ""),
		http.StatusBadRequest,
		"status is not known here",
	)
}

// G16: claims are paused with a reason, and resumed.
func TestADestinationIsPausedAndResumed(t *testing.T) {
	s := newSystem(t)
	paused := func() (reasons []string) {
		var overview struct{ Paused []struct{ Reason string } }
		require.NoError(t, json.Unmarshal(s.get("/api/overview").body, &overview))
		for _, p := range overview.Paused {
			reasons = append(reasons, p.Reason)
		}
		return reasons
	}
	for body, reason := range map[string]string{`{"reason":"deploying billing"}`: "deploying billing", ``: ""} {
		require.Equal(t, true, s.change("/api/destinations/default/pause", body).object(t)["changed"])
		require.Equal(t, false, s.change("/api/destinations/default/pause", body).object(t)["changed"], "it is already")
		require.Equal(t, []string{reason}, paused())
		require.Equal(t, true, s.change("/api/destinations/default/resume", "").object(t)["changed"])
		require.Empty(t, paused())
	}
	for _, verb := range []string{"pause", "resume"} {
		requireProblem(t, s.change("/api/destinations/nobody/"+verb, ""), http.StatusNotFound, "no such destination")
	}
	requireProblem(t, s.change("/api/destinations/default/pause", `"x"`), http.StatusUnprocessableEntity, "reason")
}

// G16: those who filter choose among the values that there are.
func TestNames(t *testing.T) {
	s := newSystem(t)
	s.ingest(webhook("default", "a", "user.created", `{}`), webhook("default", "b", "order.paid", `{}`))
	require.Equal(t, map[string]any{
		"sources":      []any{"default"},
		"destinations": []any{"default"},
		"types":        []any{"order.paid", "user.created"},
	}, s.get("/api/names").object(t))
}
