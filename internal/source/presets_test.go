package source

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// wholePreset is the file of a complete preset.
const wholePreset = `
title: Example
steps: ["Enter {address}."]
retries: twice
settings: {format: body, verify: [{scheme: bearer}]}
sample: {headers: {X-Id: "{{id}}"}, body: "{}"}
`

func TestPresetFilesAreStrict(t *testing.T) {
	p, err := parsePreset("example", []byte(wholePreset))
	require.NoError(t, err)
	require.Equal(t, Preset{
		Name: "example", Title: "Example", Steps: []string{"Enter {address}."}, Retries: "twice",
		Config: Config{Preset: "example", Format: "body", Verify: []Method{{Scheme: "bearer"}}},
		sample: sample{headers: map[string]string{"X-Id": "{{id}}"}, body: "{}"},
	}, p)

	for text, want := range map[string]string{
		"":                                        "EOF",
		wholePreset + "homepage: x\n":             "field homepage not found",
		wholePreset + "title: twice\n":            "already defined",
		wholePreset + "---\n{}\n":                 "more than one document",
		"sample: {trailer: x}":                    "field trailer not found",
		"settings: {verfy: []}":                   "settings.verfy: a preset may have format, handshake, id",
		"settings: {secrets: [env:S]}":            "settings.secrets: a preset may have",
		"settings: {verify: [{algorithm: hmac}]}": "verify[0].algorithm is no setting",
		"settings: {format: body}":                "are required",
		"title: Example":                          "must be an object, found null",
	} {
		_, err := parsePreset("example", []byte(text))
		require.ErrorContains(t, err, want, text)
	}
}

// A file may break the body of a sample into lines. The provider sends one line.
func TestSampleBodyIsOneLine(t *testing.T) {
	p, err := parsePreset("example", []byte(`
title: Example
steps: []
retries: It tries again.
settings: {format: body, verify: [{scheme: none}]}
sample:
  body: |
    a=1&
    b=c d
`))
	require.NoError(t, err)
	require.Equal(t, "a=1&b=c d", p.sample.body)
}

// A caller may change a preset, and the next caller gets it unchanged.
func TestPresetsAreNotShared(t *testing.T) {
	for _, name := range Presets() {
		changed, _ := PresetOf(name)
		for i := range changed.Config.Verify {
			m := &changed.Config.Verify[i]
			m.Scheme = "changed"
			for _, list := range [][]string{m.Header, m.SecretPrefix, m.SecretNot, m.Timestamp} {
				clear(list)
			}
		}
		for _, list := range [][]string{
			changed.Config.ID,
			changed.Config.Type,
			changed.Config.Time,
			changed.Config.Volatile,
			changed.Steps,
		} {
			clear(list)
		}
		original, err := presetFiles.ReadFile("presets/" + name + ".yaml")
		require.NoError(t, err)
		want, err := parsePreset(name, original)
		require.NoError(t, err)
		got, _ := PresetOf(name)
		require.Equal(t, want, got)
	}
}

// unseen says of no secret how to see it.
func unseen(string) string { return "" }

// A secret that goes to the provider can be seen; one that comes from there is put where the reference says.
func TestStepsSayHowToSeeASecret(t *testing.T) {
	see := func(ref string) string { return "to see it: cat " + ref }
	for preset, want := range map[string]string{
		"github": "Secret: the one that file:s holds (to see it: cat file:s)",
		"hmac":   "Enter the secret that file:s holds as its signing secret (to see it: cat file:s).",
		"stripe": "Reveal the signing secret (whsec_…) and copy all of it to where file:s says.",
	} {
		p, _ := PresetOf(preset)
		require.Contains(t, p.StepsFor("mine", Config{Secrets: []Secret{{Ref: "file:s"}}}, see), want)
		require.NotContains(t, strings.Join(p.StepsFor("mine", Config{}, see), "\n"), "to see")
	}
}

// G4: each preset says whether its provider tries again, and source add says it with the other steps.
func TestPresetsSayWhetherTheProviderTriesAgain(t *testing.T) {
	for _, p := range AllPresets() {
		steps := p.StepsFor("name", p.Config, unseen)
		require.Equal(t, "What fails is sent again: "+p.Retries+".", steps[len(steps)-1])
		require.Regexp(
			t,
			`^(never|not documented|as (the|your) sender|once|\d+ times|less and less|a few times|Cloud|events)`,
			p.Retries,
			"%s begins with how often",
			p.Name,
		)
		require.NotRegexp(t, `\.$`, p.Retries, p.Name)
	}
	github, _ := PresetOf("github")
	require.Contains(t, github.Retries, "never by itself")
	stripe, _ := PresetOf("stripe")
	require.Contains(t, stripe.Retries, "for 3 days")
}
