package api_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/api"
)

// README.md lists every route with its parameters, and no other.
func TestReadmeListsEveryRoute(t *testing.T) {
	router := mux.NewRouter().SkipClean(true).UseEncodedPath()
	api.NewHandler(nil, nil, time.Second, zerolog.Nop()).Register(router)
	api.NewSourceHandler(nil, nil, nil, time.Second, zerolog.Nop()).Register(router)
	api.NewStream(nil, api.DefaultStreamConfig(), zerolog.Nop(), prometheus.NewRegistry()).Register(router)

	served := map[string][]string{}
	require.NoError(t, router.Walk(func(route *mux.Route, _ *mux.Router, _ []*mux.Route) error {
		path, err := route.GetPathTemplate()
		require.NoError(t, err)
		methods, err := route.GetMethods()
		require.NoError(t, err)
		served[methods[0]+" "+path] = knownParameters(t, router, methods[0], path)
		return nil
	}))

	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	listed := map[string][]string{}
	rows := regexp.MustCompile("(?m)^\\| `([A-Z]+ /api/[^`]*)` \\|([^|]*)\\|")
	for _, row := range rows.FindAllStringSubmatch(string(readme), -1) {
		parameters := []string{}
		for _, name := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(row[2], -1) {
			parameters = append(parameters, name[1])
		}
		slices.Sort(parameters)
		listed[row[1]] = parameters
	}
	require.Equal(t, served, listed)
}

// knownParameters asks a route for a parameter that it does not know. The answer names those that it knows; limit and
// cursor, which all lists have, are left out.
func knownParameters(t *testing.T, router http.Handler, method, path string) []string {
	t.Helper()
	path = regexp.MustCompile(`\{\w+\}`).ReplaceAllString(path, "1")
	w := httptest.NewRecorder()
	router.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path+"?nothing=1", nil))
	require.Equal(t, http.StatusBadRequest, w.Code, path)
	known := regexp.MustCompile(`known are ([\w, ]*)`).FindStringSubmatch(w.Body.String())
	require.NotNil(t, known, "%s", w.Body)
	names := []string{}
	for name := range strings.SplitSeq(known[1], ", ") {
		if name != "" && name != "limit" && name != "cursor" {
			names = append(names, name)
		}
	}
	return names
}
