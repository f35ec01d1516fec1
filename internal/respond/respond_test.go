package respond_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/gorilla/mux"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/respond"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// requireWhole checks what package respond promises of every answer.
func requireWhole(t *testing.T, w *httptest.ResponseRecorder, status int, contentType, body string) {
	t.Helper()
	require.Equal(t, status, w.Code)
	require.Equal(t, contentType, w.Header().Get("Content-Type"))
	require.Equal(t, strconv.Itoa(w.Body.Len()), w.Header().Get("Content-Length"))
	require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	require.Equal(t, body, w.Body.String())
}

func TestWhatCannotBeEncodedIsNotBegun(t *testing.T) {
	w := httptest.NewRecorder()
	require.ErrorContains(
		t,
		respond.JSON(w, http.StatusOK, []any{"begun", json.RawMessage("{")}),
		"encoding an answer: ",
	)
	require.Equal(t, http.StatusInternalServerError, w.Code)
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	require.Empty(t, w.Body.String())
}

func TestJSON(t *testing.T) {
	w := httptest.NewRecorder()
	require.NoError(
		t,
		respond.JSON(w, http.StatusAccepted, []any{"<&>", json.RawMessage(`{ "a": "\u003c", "a": 1.0 }`)}),
	)
	requireWhole(t, w, http.StatusAccepted, "application/json", `["<&>",{"a":"\u003c","a":1.0}]`+"\n")
}

func TestReject(t *testing.T) {
	w := httptest.NewRecorder()
	respond.Reject(w, respond.Problem{
		Status:  http.StatusUnprocessableEntity,
		Detail:  "No.",
		Sources: []string{"a"},
		Errors: []respond.Fault{
			{Field: "f", Detail: "is bad"},
			{Parameter: "p", Detail: "is worse"},
			{Detail: "all of it"},
		},
	})
	requireWhole(t, w, http.StatusUnprocessableEntity, "application/problem+json",
		`{"type":"about:blank","title":"Unprocessable Entity","status":422,"detail":"No.",`+
			`"errors":[{"field":"f","detail":"is bad"},{"parameter":"p","detail":"is worse"},{"detail":"all of it"}],`+
			`"sources":["a"]}`+"\n")
	require.Empty(t, w.Header().Values("Retry-After"))

	w = httptest.NewRecorder()
	respond.Reject(w, respond.Problem{Status: http.StatusServiceUnavailable, Detail: "Later."})
	requireWhole(t, w, http.StatusServiceUnavailable, "application/problem+json",
		`{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"Later."}`+"\n")
	require.Equal(t, []string{respond.RetryAfter}, w.Header().Values("Retry-After"))
}

func TestRouter(t *testing.T) {
	router := mux.NewRouter()
	router.NotFoundHandler = respond.NotFound()
	router.MethodNotAllowedHandler = respond.MethodNotAllowed(router)
	reached := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	router.Path("/a").Methods(http.MethodGet, http.MethodHead).Handler(reached)
	router.Path("/a").Methods(http.MethodDelete).Handler(reached)
	router.Path("/b").Methods(http.MethodPost).Handler(reached)
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{http.MethodDelete, "/a", http.StatusOK, ""},
		{http.MethodPost, "/a", http.StatusMethodNotAllowed, "DELETE, GET, HEAD"},
		{"BREW", "/b", http.StatusMethodNotAllowed, "POST"},
		{http.MethodGet, "/c", http.StatusNotFound, ""},
	} {
		w := httptest.NewRecorder()
		router.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), c.method, c.path, nil))
		require.Equal(t, c.status, w.Code, "%s %s", c.method, c.path)
		require.Equal(t, c.allow, w.Header().Get("Allow"), "%s %s", c.method, c.path)
		if c.status != http.StatusOK {
			require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
		}
	}
}
