package api_test

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOverview(t *testing.T) {
	s := newSystem(t)
	for path, seconds := range map[string]int{
		"/api/overview":           900,
		"/api/overview?range=15m": 900,
		"/api/overview?range=1h":  3600,
		"/api/overview?range=6h":  21600,
		"/api/overview?range=24h": 86400, "/api/overview?range=7d": 604800,
	} {
		a := s.get(path)
		require.Equal(t, http.StatusOK, a.code, path)
		var raw map[string]any
		require.NoError(t, json.Unmarshal(a.body, &raw))
		require.InDelta(t, seconds, raw["range_seconds"], 0)
		require.IsType(t, "", raw["covered_from"])
		require.Nil(t, raw["depth"].(map[string]any)["at"])
		require.Equal(t, []any{}, raw["depth"].(map[string]any)["rows"])
		require.Equal(t, []any{}, raw["paused"])
		require.Nil(t, raw["oldest_ready_seconds"])
		require.Equal(
			t,
			[]any{map[string]any{"source": "default", "last_arrival_at": nil, "state": nil}},
			raw["sources"],
		)
		steps := seconds / int(raw["step_seconds"].(float64))
		series := raw["series"].(map[string]any)
		require.Len(t, series, 18)
		for name, column := range series {
			require.Len(t, column, steps, name)
		}
		received := series["received"].([]any)
		if seconds > 3600 { // what was before the hour in which the database was made is not known
			require.Nil(t, received[0])
		}
		require.InDelta(t, 0, received[steps-1], 0)
	}
}

func TestOverviewOfAnUnknownRange(t *testing.T) {
	h := broken(func(context.Context) error { return nil }).serve(time.Minute)
	for _, query := range []string{"?range=15", "?range=15m0s", "?range=8d", "?range=-1h"} {
		requireProblem(
			t,
			ask(t, h, http.MethodGet, "/api/overview"+query),
			http.StatusBadRequest,
			"range must be one of 15m, 1h, 6h, 24h, 7d",
		)
	}
	requireProblem(t, ask(t, h, http.MethodGet, "/api/overview?range="), http.StatusBadRequest, "must not be empty")
	requireProblem(
		t,
		ask(t, h, http.MethodGet, "/api/overview?since=x"),
		http.StatusBadRequest,
		"since is not known here",
	)
}
