package source

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"github.com/webhookspine/spine/internal/event"
)

// Preset is what Spine knows of a provider, as settings. A source with a preset
// needs only its secrets. Each preset is a file in presets/, named after it.
type Preset struct {
	Name   string   `json:"name"`
	Title  string   `json:"title"`
	Config Config   `json:"config"`
	Docs   string   `json:"docs,omitempty"` // page of the provider that says what it sends
	Steps  []string `json:"steps"`          // what to enter at the provider; see StepsFor

	// Retries says whether, how often and for how long the provider sends again what Spine has not taken.
	Retries string `json:"retries"`

	sample sample
}

// sample is a request as the provider sends it, without its signature. {{id}} stands for a fresh UUID. The time is
// {{seconds}}, {{milliseconds}}, or {{time}} in RFC 3339.
type sample struct {
	headers map[string]string
	body    string
}

// StepsFor returns the steps for a source of this name and these settings. They
// name its path and the references of its secrets. They leave the host open
// where the settings have no URL. The last one says what to expect of the
// provider after a failure. The step that takes a secret to the provider also
// says what see says of its reference, where that is not empty.
func (p Preset) StepsFor(name string, c Config, see func(ref string) string) []string {
	address := c.URL
	if address == "" {
		address = "https://YOUR-HOST" + pathOf(name)
	}
	secret, seen := "its secret", ""
	if len(c.Secrets) > 0 {
		secret = c.Secrets[0].Ref
		if seen = see(secret); seen != "" {
			seen = " (" + seen + ")"
		}
	}
	word := "its verify token"
	if c.VerifyToken != "" {
		word = c.VerifyToken
	}
	fill := strings.NewReplacer("{address}", address, "{secret}", secret, "{word}", word)
	var steps []string
	for _, step := range p.Steps {
		taken := strings.Contains(step, "{secret} holds") // from the file to the provider, and not back
		step = fill.Replace(step)
		if taken {
			sentence, stop := strings.CutSuffix(step, ".")
			step = sentence + seen
			if stop {
				step += "."
			}
		}
		steps = append(steps, step)
	}
	return append(steps, "What fails is sent again: "+p.Retries+".")
}

// pathOf is the path that feeds a source.
func pathOf(name string) string {
	if name == event.DefaultSource {
		return "/webhook"
	}
	return "/webhook/" + name
}

// Presets returns the names of the presets, sorted.
func Presets() []string { return slices.Sorted(maps.Keys(presetsByName())) }

// AllPresets returns the presets, sorted by their names. The caller may change
// them.
func AllPresets() []Preset {
	var all []Preset
	for _, name := range Presets() {
		preset, _ := PresetOf(name)
		all = append(all, preset)
	}
	return all
}

// PresetOf returns the preset of a name. The caller may change it.
func PresetOf(name string) (Preset, bool) {
	p, known := presetsByName()[name]
	p.Config = p.Config.clone()
	p.Steps = slices.Clone(p.Steps)
	return p, known
}

//go:embed presets/*.yaml
var presetFiles embed.FS

// presetsByName returns the presets by name, from files that are read once.
// Nobody may change them. It panics where a file is wrong: the files are part
// of the binary, and a test reads them all.
var presetsByName = sync.OnceValue(func() map[string]Preset {
	entries, err := presetFiles.ReadDir("presets")
	if err != nil {
		panic(err)
	}
	presets := make(map[string]Preset, len(entries))
	for _, entry := range entries {
		text, err := presetFiles.ReadFile("presets/" + entry.Name())
		if err != nil {
			panic(err)
		}
		name := strings.TrimSuffix(entry.Name(), path.Ext(entry.Name()))
		if presets[name], err = parsePreset(name, text); err != nil {
			panic(fmt.Errorf("reading presets/%s: %w", entry.Name(), err))
		}
	}
	return presets
})

// presetSettings are the settings that a preset may have. The others belong to
// one source alone, and a preset's would count for nothing: see Config.overlay.
var presetSettings = []string{"format", "handshake", "id", "time", "type", "verify", "volatile"}

// parsePreset reads the file of a preset. It accepts no field that it does not
// know, neither in the file nor in the settings.
func parsePreset(name string, text []byte) (Preset, error) {
	var file struct {
		Title    string         `yaml:"title"`
		Docs     string         `yaml:"docs"`
		Steps    []string       `yaml:"steps"`
		Retries  string         `yaml:"retries"`
		Settings map[string]any `yaml:"settings"`
		Sample   struct {
			Headers map[string]string `yaml:"headers"`
			Body    string            `yaml:"body"`
		} `yaml:"sample"`
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		return Preset{}, err
	}
	if err := decoder.Decode(&struct{}{}); !errors.Is(err, io.EOF) {
		return Preset{}, errors.New("the file has more than one document")
	}
	for setting := range file.Settings {
		if !slices.Contains(presetSettings, setting) {
			return Preset{}, fmt.Errorf("settings.%s: a preset may have %s",
				setting, strings.Join(presetSettings, ", "))
		}
	}
	settings, err := json.Marshal(file.Settings)
	if err != nil {
		return Preset{}, err
	}
	c, err := ParseConfig(settings)
	if err != nil {
		return Preset{}, err
	}
	if file.Title == "" || file.Steps == nil || file.Retries == "" || c.Verify == nil || c.Format == "" ||
		file.Sample.Body == "" {
		return Preset{}, errors.New(
			"title, steps, retries, settings.verify, settings.format and sample.body are required")
	}
	c.Preset = name
	return Preset{
		Name: name, Title: file.Title, Config: c, Docs: file.Docs, Steps: file.Steps, Retries: file.Retries,
		sample: sample{headers: file.Sample.Headers, body: joinLines(file.Sample.Body)},
	}, nil
}

// joinLines makes one line of a body that its file breaks for its readers.
func joinLines(text string) string { return strings.ReplaceAll(strings.TrimSpace(text), "\n", "") }

// clone returns settings that share no list with c.
func (c Config) clone() Config {
	c.Secrets = slices.Clone(c.Secrets)
	c.Verify = slices.Clone(c.Verify)
	for i := range c.Verify {
		m := &c.Verify[i]
		for _, list := range []*[]string{&m.Header, &m.SecretPrefix, &m.SecretNot, &m.Timestamp} {
			*list = slices.Clone(*list)
		}
	}
	for _, list := range []*[]string{&c.ID, &c.Type, &c.Time, &c.Volatile} {
		*list = slices.Clone(*list)
	}
	return c
}
