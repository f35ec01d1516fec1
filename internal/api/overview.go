package api

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/respond"
	"github.com/webhookspine/spine/internal/view"
)

// overviewRange is how far back an overview may reach, and its name in a query.
type overviewRange struct {
	name string
	over time.Duration
}

// overviewRanges are the ranges for which the store has rollups. The first one is the default.
var overviewRanges = []overviewRange{
	{"15m", 15 * time.Minute},
	{"1h", time.Hour},
	{"6h", 6 * time.Hour},
	{"24h", 24 * time.Hour},
	{"7d", 7 * 24 * time.Hour},
}

func (h *Handler) overview(w http.ResponseWriter, r *http.Request) {
	query, faults := parameters(r, "range")
	chosen := 0
	if name, ok := query["range"]; ok {
		chosen = slices.IndexFunc(overviewRanges, func(o overviewRange) bool { return o.name == name })
		if chosen < 0 {
			names := make([]string, len(overviewRanges))
			for i, o := range overviewRanges {
				names[i] = o.name
			}
			faults = append(
				faults,
				respond.Fault{Parameter: "range", Detail: "must be one of " + strings.Join(names, ", ")},
			)
		}
	}
	if rejectQuery(w, faults) {
		return
	}
	overview, err := h.reader.Overview(r.Context(), overviewRanges[chosen].over)
	h.answer(w, r, overview, view.Next{}, err)
}
