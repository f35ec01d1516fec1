package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/source"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/view"
)

func applyCommand(env environ) *cobra.Command {
	var file string
	var dryRun, prune, asJSON bool
	var allowed service.SecretSettings
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make the sources as a file says",
		Long: `Apply gives each source the settings that a file has for it, and adds sources that
are missing. It leaves other sources alone, or removes them with --prune. All of it
is one transaction, which changes only what differs. Then apply waits for up to 3 s
and prints what the servers make of each source that it changed. The file is YAML or
JSON:

  sources:
    github:
      preset: github
      secrets: [env:GITHUB_WEBHOOK_SECRET]
    billing:
      preset: hmac
      secrets: [file:billing]
      verify: [{scheme: hmac, header: X-Signature}]
      id: "{body:/id}"
      limits: {rate: 100}`,
		Example: `  spine apply -f spine.yaml --dry-run
  spine apply -f spine.yaml --prune`,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&file, "file", "f", "", "read the sources from `FILE`; - is the standard input (required)")
	flags.BoolVar(&dryRun, "dry-run", false, "only say what would change")
	flags.BoolVar(&prune, "prune", false, "remove sources that the file lacks, except default; their events stay")
	flags.BoolVar(&asJSON, "json", false, "print one JSON array of the changes")
	completeFiles(cmd, "file")
	if err := cmd.MarkFlagRequired("file"); err != nil {
		panic(err) // the flag is defined above
	}
	bindDatabase(env, cmd, func(cmd *cobra.Command, s *store.Store, _ []string) error {
		text, err := readFile(file, cmd.InOrStdin())
		if err != nil {
			return err
		}
		puts, err := parseSourceFile(text, allowed.Resolver(env.lookup))
		if err != nil {
			return misuseError{err}
		}
		return applySources(cmd, s, puts, prune, dryRun, asJSON)
	}, &allowed)
	return cmd
}

// applySources makes the sources as puts says. It prints what that changes, and what the servers make of it.
func applySources(
	cmd *cobra.Command, s *store.Store, puts map[string]json.RawMessage, prune, dryRun, asJSON bool,
) error {
	changes, err := s.ApplySources(cmd.Context(), puts, prune, dryRun, auditCaller(cmd))
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if asJSON {
		return terminal.WriteJSON(out, changes)
	}
	if _, err = io.WriteString(out, describeChanges(changes, dryRun)); err != nil || dryRun {
		return err
	}
	all, err := s.Sources(cmd.Context())
	if err != nil {
		return err
	}
	var changed []event.SourceSettings
	for _, settings := range all {
		if slices.ContainsFunc(changes, func(c view.SourceChange) bool {
			return c.Source == settings.Source && (c.Change == "added" || c.Change == "changed")
		}) {
			changed = append(changed, settings)
		}
	}
	if len(changed) == 0 {
		return nil
	}
	return describeServers(out, changed, awaitServers(cmd, s, changed...))
}

// describeServers prints what the servers make of sources that were changed.
func describeServers(out io.Writer, changed []event.SourceSettings, views serverViews) error {
	var b strings.Builder
	var broken []event.SourceSettings
	b.WriteString("\n")
	if len(views.Processes) == 0 && !views.failed { // a line is enough for all of them
		fmt.Fprintf(&b, "the servers: %s\n", strings.Join(views.lines(changed[0]), "; "))
		changed = nil
	}
	for _, settings := range changed {
		lines := views.lines(settings)
		if settings.DisabledAt != nil {
			lines = []string{"disabled"}
		}
		for _, line := range lines {
			fmt.Fprintf(&b, "%s: %s\n", settings.Source, line)
		}
		if views.isBroken(settings) {
			broken = append(broken, settings)
		}
	}
	if len(broken) > 0 {
		fmt.Fprintf(&b, "\n%s%s\n", storedAnyway, whatToDo(broken...))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// parseSourceFile reads the settings of sources from YAML, and so from JSON too. The settings of each source must make
// sense, and name secrets that may be named.
func parseSourceFile(text []byte, secrets source.Secrets) (map[string]json.RawMessage, error) {
	var file struct {
		Sources map[string]any `yaml:"sources"`
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the file is empty: it must have sources")
		}
		return nil, fmt.Errorf("reading the file: %w", yamlError(err))
	}
	if err := decoder.Decode(&struct{}{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("the file has more than one document")
	}
	if file.Sources == nil {
		return nil, errors.New("the file has no sources")
	}
	puts := map[string]json.RawMessage{}
	var problems []event.Problem
	for _, name := range slices.Sorted(maps.Keys(file.Sources)) {
		settings, err := json.Marshal(file.Sources[name])
		if err != nil {
			return nil, fmt.Errorf("sources.%s: %w", name, err)
		}
		c, err := source.ParseConfig(settings)
		if err == nil {
			_, err = c.Resolve()
		}
		if err == nil {
			err = c.CheckSecrets(secrets)
		}
		var bad *event.BadSettingsError
		switch {
		case errors.As(err, &bad):
			for _, p := range bad.Problems {
				problems = append(problems,
					event.Problem{Field: strings.TrimSuffix("sources."+name+"."+p.Field, "."), Detail: p.Detail})
			}
			continue
		case err != nil:
			return nil, fmt.Errorf("sources.%s: %w", name, err)
		}
		// Written as everywhere else, so that equal settings compare as equal.
		if puts[name], err = json.Marshal(c); err != nil {
			return nil, fmt.Errorf("sources.%s: %w", name, err)
		}
	}
	if problems != nil {
		return nil, &event.BadSettingsError{Problems: problems}
	}
	return puts, nil
}

// yamlError says where a file is wrong. It quotes nothing of the file, because somebody may have written a secret
// there.
func yamlError(err error) error {
	text := err.Error()
	var several *yaml.TypeError
	if errors.As(err, &several) && len(several.Errors) > 0 {
		text = several.Errors[0]
	}
	what := "this is not YAML"
	for _, of := range []struct{ part, say string }{
		{"unknown anchor", "a value that begins with * must be quoted: else it names an anchor, and there is none"},
		{"already defined", "a key comes twice"},
		{"not found in type", "only sources may stand at the top"},
		{"cannot unmarshal", "sources must be an object of names and their settings"},
		{"did not find expected", "something is left open above, or a line is indented wrongly"},
		{"could not find expected", "a key lacks its colon, or a quote is not closed"},
		{"cannot start any token", "a value that begins with a special character must be quoted"},
		{"mapping values", "a value that holds a colon and a space must be quoted"},
		{"control characters", "there are control characters"},
		{"invalid leading UTF-8", "this is not UTF-8"},
		{"contains excessive aliasi", "there are too many aliases"},
	} {
		if strings.Contains(text, of.part) {
			what = of.say
			break
		}
	}
	return errors.New(regexp.MustCompile(`line \d+: `).FindString(text) + what)
}

// describeChanges tells which sources change, and for each setting what it was and what it is.
func describeChanges(changes []view.SourceChange, dryRun bool) string {
	var b strings.Builder
	changed := 0
	for _, c := range changes {
		sign := map[string]string{"added": "+", "removed": "-", "changed": "~"}[c.Change]
		if sign == "" {
			continue
		}
		changed++
		fmt.Fprintf(&b, "%s %s\n", sign, c.Source)
		var from, to map[string]json.RawMessage
		_ = json.Unmarshal(c.From, &from) // null where it was added or removed
		_ = json.Unmarshal(c.To, &to)
		names := slices.Collect(maps.Keys(from))
		names = slices.AppendSeq(names, maps.Keys(to))
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			was, is := canonicalJSON(from[name]), canonicalJSON(to[name])
			if was == is {
				continue
			}
			if was != "" {
				fmt.Fprintf(&b, "    - %s: %s\n", name, terminal.Printable(was))
			}
			if is != "" {
				fmt.Fprintf(&b, "    + %s: %s\n", name, terminal.Printable(is))
			}
		}
	}
	if dryRun {
		fmt.Fprintf(&b, "%s would change, %d unchanged\n", terminal.Plural(int64(changed), "source"),
			len(changes)-changed)
	} else {
		fmt.Fprintf(&b, "%s changed, %d unchanged\n", terminal.Plural(int64(changed), "source"), len(changes)-changed)
	}
	return b.String()
}

// canonicalJSON is a JSON text in one form, whoever wrote it.
func canonicalJSON(text json.RawMessage) string {
	if len(text) == 0 {
		return ""
	}
	var v any
	if json.Unmarshal(text, &v) != nil {
		return string(text)
	}
	canonical, err := json.Marshal(v)
	if err != nil {
		return string(text)
	}
	return string(canonical)
}
