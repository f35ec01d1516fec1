package command

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/source"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
)

const (
	serverPatience = 3 * time.Second       // for all servers to tell what they make of a change
	serverInterval = 50 * time.Millisecond // between two looks
)

// serverViews are what the servers make of sources, as they have told in the database. A command knows the secrets of
// its own environment alone.
type serverViews struct {
	event.SourceReports
	waited time.Duration // for a change; 0 where nobody waited
	failed bool          // they could not be read
}

// readServers reads what the servers make of the sources with these names, or of all where names is nil. Where that
// fails, it says so and nothing is known of them: the command has done what it was asked to do.
func readServers(cmd *cobra.Command, s *store.Store, names []string) serverViews {
	reports, err := s.SourceReports(cmd.Context(), names)
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "spine: what the servers know is not known: %s\n", terminal.OneLine(err.Error()))
	}
	return serverViews{SourceReports: reports, failed: err != nil}
}

// awaitServers waits until all servers have told what they make of the sources as these are now, for serverPatience at
// most. Then it returns what they have told.
func awaitServers(cmd *cobra.Command, s *store.Store, changed ...event.SourceSettings) serverViews {
	names := make([]string, len(changed))
	for i, settings := range changed {
		names[i] = settings.Source
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), serverPatience)
	defer cancel()
	look := time.NewTicker(serverInterval)
	defer look.Stop()
	for {
		views := readServers(cmd, s, names)
		views.waited = serverPatience
		all := len(views.Processes) > 0 && !slices.ContainsFunc(changed, func(settings event.SourceSettings) bool {
			return len(views.silent(settings)) > 0
		})
		if all || views.failed {
			return views
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return views
		}
	}
}

// of are the reports about a source as its settings are now.
func (v serverViews) of(settings event.SourceSettings) (reports []event.SourceReport) {
	for _, r := range v.Reports {
		if r.Source == settings.Source && r.SettingsAt.UnixMicro() >= settings.UpdatedAt.UnixMicro() {
			reports = append(reports, r)
		}
	}
	return reports
}

// silent are the servers that have told nothing about a source as its settings are now.
func (v serverViews) silent(settings event.SourceSettings) (processes []string) {
	reports := v.of(settings)
	for _, process := range v.Processes {
		if !slices.ContainsFunc(reports, func(r event.SourceReport) bool { return r.Process == process }) {
			processes = append(processes, process)
		}
	}
	return processes
}

// serverGroup is what several servers make of a source alike.
type serverGroup struct {
	state     string
	problems  []string
	processes []string
}

// groups puts the servers together that make the same of a source. The largest group comes first.
func (v serverViews) groups(settings event.SourceSettings) (groups []serverGroup) {
	for _, r := range v.of(settings) {
		i := slices.IndexFunc(groups, func(g serverGroup) bool {
			return g.state == r.State && slices.Equal(g.problems, r.Problems)
		})
		if i < 0 {
			groups = append(groups, serverGroup{r.State, r.Problems, []string{r.Process}})
		} else {
			groups[i].processes = append(groups[i].processes, r.Process)
		}
	}
	slices.SortStableFunc(groups, func(a, b serverGroup) int { return len(b.processes) - len(a.processes) })
	return groups
}

// known reports whether a server has told something about a source as its settings are now.
func (v serverViews) known(settings event.SourceSettings) bool { return len(v.of(settings)) > 0 }

// cell says in a few words what the servers make of a source that is known: a word where they all agree.
func (v serverViews) cell(settings event.SourceSettings) string {
	by := map[string][]string{}
	var states []string
	for _, r := range v.of(settings) {
		if by[r.State] == nil {
			states = append(states, r.State)
		}
		by[r.State] = append(by[r.State], r.Process)
	}
	silent := v.silent(settings)
	if len(states) == 1 && len(silent) == 0 {
		return states[0]
	}
	var parts []string
	for _, state := range states {
		parts = append(parts, state+" at "+strings.Join(by[state], ", "))
	}
	if len(silent) > 0 {
		parts = append(parts, "not known yet at "+strings.Join(silent, ", "))
	}
	return terminal.Printable(strings.Join(parts, "; "))
}

// lines say what the servers make of a source, each line for those that make the same of it.
func (v serverViews) lines(settings event.SourceSettings) (lines []string) {
	for _, g := range v.groups(settings) {
		line := g.state + " at " + strings.Join(g.processes, ", ")
		switch problems := strings.Join(g.problems, "; "); {
		case problems == "":
		case g.state == "broken", g.state == "closed":
			line += ": " + problems
		default:
			line += ", but " + problems
		}
		lines = append(lines, terminal.Printable(line))
	}
	silent := strings.Join(v.silent(settings), ", ")
	switch within := fmt.Sprintf("within %d s", int(v.waited.Seconds())); {
	case v.failed:
		lines = append(lines, "not known here")
	case len(v.Processes) == 0 && v.waited > 0:
		lines = append(lines, "not known here: no server has answered "+within+": is one running?")
	case len(v.Processes) == 0:
		lines = append(lines, "not known here: is a server running?")
	case silent != "" && v.waited > 0:
		lines = append(lines, terminal.Printable("not known yet at "+silent+", which has not answered "+within+
			": without notifications a server reads the sources every 30 s"))
	case silent != "":
		lines = append(lines, terminal.Printable("not known yet at "+silent))
	}
	return lines
}

// isBroken reports whether a server cannot use a source.
func (v serverViews) isBroken(settings event.SourceSettings) bool {
	return settings.DisabledAt == nil && slices.ContainsFunc(v.groups(settings), func(g serverGroup) bool {
		return g.state == "broken"
	})
}

// storedAnyway goes before whatToDo where something was changed.
const storedAnyway = "The settings are stored all the same.\n"

// whatToDo says what it means that a server cannot use some sources as they were changed, and what mends that. broken
// are the settings of these.
func whatToDo(broken ...event.SourceSettings) string {
	names, wait := make([]string, len(broken)), map[string]bool{}
	for i, settings := range broken {
		names[i] = settings.Source
		c, err := source.ParseConfig(settings.Settings)
		if err != nil {
			continue // its state says what is wrong
		}
		for _, ref := range append(secretRefs(c), c.VerifyToken) {
			kind, _, _ := strings.Cut(ref, ":")
			wait[kind] = true
		}
	}
	be := "is"
	if len(names) > 1 {
		be = "are"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s not usable yet: the state says where and why.\n"+
		"Until that is mended, a server where it is broken answers 503 and keeps the requests.\n",
		strings.Join(names, ", "), be)
	if wait["file"] {
		b.WriteString("A server looks at the files of secrets every second, and uses a new one without a restart.\n")
	}
	if wait["env"] {
		b.WriteString("A server reads its variables as it starts: after you have set one, start it again.\n")
	}
	for _, name := range names {
		fmt.Fprintf(&b, "spine source show %s then says verified, and spine rejected replay --all --source %[1]s "+
			"takes what came before.\n", name)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// secretRefs are the references of a source's secrets.
func secretRefs(c source.Config) []string {
	refs := make([]string, len(c.Secrets), len(c.Secrets)+1)
	for i, s := range c.Secrets {
		refs[i] = s.Ref
	}
	return refs
}
