package source

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// readReadme is the text of README.md in this folder.
func readReadme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	return string(text)
}

// The table of presets is made of the presets.
func TestReadmeListsEveryPreset(t *testing.T) {
	var rows strings.Builder
	for _, name := range Presets() {
		p, ok := PresetOf(name)
		require.True(t, ok)
		rows.WriteString(presetRow(p))
	}
	const head = "| preset | whose | proof of a request | id |\n|---|---|---|---|\n"
	require.Contains(t, readReadme(t), head+rows.String()+"\n", "README.md needs these rows:\n%s", rows.String())
}

// G4: so is the table of what the providers do after a failure.
func TestReadmeSaysWhoTriesAgain(t *testing.T) {
	var rows strings.Builder
	for _, p := range AllPresets() {
		rows.WriteString("| `" + p.Name + "` | " + p.Retries + " |\n")
	}
	const head = "| preset | what fails is sent again |\n|---|---|\n"
	require.Contains(t, readReadme(t), head+rows.String()+"\n", "README.md needs these rows:\n%s", rows.String())
}

// presetRow is a preset as README.md has it: name, whose it is, what proves a request, and the first rule of its id.
func presetRow(p Preset) string {
	var proofs []string
	for _, m := range p.Config.Verify {
		proof := m.Scheme
		if len(m.Header) > 0 {
			proof += " in `" + m.Header[0] + "`"
		}
		proofs = append(proofs, proof)
	}
	id := "made of the body"
	switch {
	case p.Config.Format == "envelope":
		id = "`event_id`"
	case p.Config.Format == "cloudevents":
		id = "source and id"
	case len(p.Config.ID) > 0:
		id = "`" + strings.NewReplacer("{header:", "{", "{body:", "{").Replace(p.Config.ID[0]) + "`"
	}
	return "| `" + p.Name + "` | " + p.Title + " | " + strings.Join(proofs, ", or ") + " | " + id + " |\n"
}

// Each setting has a row under the heading of its object, and each row is a setting.
func TestReadmeListsEverySetting(t *testing.T) {
	for heading, place := range map[string]interface{ members() members }{
		"## Settings":           &Config{},
		"### Secrets":           &Secret{},
		"### Methods":           &Method{},
		"### Limits":            &Limits{},
		"### Rejected requests": &Budget{},
	} {
		_, section, found := strings.Cut(readReadme(t), "\n"+heading+"\n")
		require.True(t, found, heading)
		section, _, _ = strings.Cut(section, "\n#")
		var rows []string
		for line := range strings.Lines(section) {
			if name, isRow := strings.CutPrefix(line, "| `"); isRow {
				name, _, _ = strings.Cut(name, "`")
				rows = append(rows, name)
			}
		}
		require.ElementsMatch(t, slices.Collect(maps.Keys(place.members())), rows, heading)
	}
}

// The file of sources is one that can be applied.
func TestReadmeSources(t *testing.T) {
	_, text, found := strings.Cut(readReadme(t), "```yaml\n")
	require.True(t, found)
	text, _, _ = strings.Cut(text, "```")
	var file struct {
		Sources map[string]any `yaml:"sources"`
	}
	decoder := yaml.NewDecoder(strings.NewReader(text))
	decoder.KnownFields(true)
	require.NoError(t, decoder.Decode(&file))
	require.Len(t, file.Sources, 3)
	for name, source := range file.Sources {
		settings, err := json.Marshal(source)
		require.NoError(t, err)
		c, err := ParseConfig(settings)
		require.NoError(t, err, name)
		_, err = c.Resolve()
		require.NoError(t, err, name)
	}
}

// Each file of the package is in the table of files.
func TestReadmeListsEveryFile(t *testing.T) {
	_, section, found := strings.Cut(readReadme(t), "\n## The files of this package\n")
	require.True(t, found)
	entries, err := os.ReadDir(".")
	require.NoError(t, err)
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") && name != "doc.go" {
			require.Contains(t, section, "`"+name+"`")
		}
	}
}
