package command

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/service"
)

// warnMisspelt names the variables that look like a setting and are none. Without that, DESTINATION_SECRT would leave
// deliveries unsigned in silence. It shows no values.
func (e environ) warnMisspelt(log zerolog.Logger) {
	if names := e.misspelt(); len(names) > 0 {
		log.Warn().Strs("variables", names).Msg("these variables look like settings but are none: they have no effect")
	}
}

// ourPrefixes begin the names of settings, and hardly of anything else.
var ourPrefixes = []string{
	"ADMIN_", "DESTINATION_", "DELIVERY_", "MAX_RETRY_", "MOCK_API_", "RETENTION_", "SHUTDOWN_",
}

// otherVariables are those of others that begin or sound like ours. Kubernetes and Docker describe services in them,
// and sources name their secrets.
var otherVariables = regexp.MustCompile(
	`(_SERVICE_HOST|_SERVICE_PORT|_PORT|_PORT_\d+_(TCP|UDP)|_(TCP|UDP)_(PORT|PROTO|ADDR)|_(WEBHOOK|SIGNING)_SECRET)$` +
		`|^SPINE_(SECRET_|TEST_|URL$|ADMIN_TOKEN$|MOCK_URL$)`)

// misspelt lists the variables that look like settings, sorted, each with the setting that may be meant.
func (e environ) misspelt() (found []string) {
	settings := map[string]bool{}
	for _, group := range service.Groups(&service.Settings{}) {
		for _, f := range service.Fields(group) {
			settings[f.Name] = true
		}
	}
	sorted := slices.Sorted(maps.Keys(settings))
	for _, name := range slices.Sorted(maps.Keys(e)) {
		if settings[name] || otherVariables.MatchString(name) {
			continue
		}
		plain := strings.TrimPrefix(strings.ToUpper(strings.ReplaceAll(name, "-", "_")), "SPINE_")
		meant, least := "", 0
		for _, setting := range sorted {
			if d := editDistance(plain, setting); d <= tolerance(setting) && (meant == "" || d < least) {
				meant, least = setting, d
			}
		}
		ours := func(prefix string) bool { return strings.HasPrefix(plain, prefix) }
		switch {
		case meant != "":
			found = append(found, fmt.Sprintf("%s (%s?)", name, meant))
		case slices.ContainsFunc(ourPrefixes, ours):
			found = append(found, name)
		}
	}
	return found
}

// tolerance is how many letters of a setting may be wrong. Short names are one letter away from other people's.
func tolerance(setting string) int {
	if len(setting) < 8 {
		return 1
	}
	return 2
}

// editDistance is how many letters must be added, left out, replaced, or swapped with the next to make b of a.
func editDistance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replaced := last[j-1]
			if a[i-1] != b[j-1] {
				replaced++
			}
			row[j] = min(replaced, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
