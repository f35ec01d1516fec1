package command

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/source"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
)

// sourceFlags are the settings of a source that have a flag of their own.
type sourceFlags struct {
	file                       string
	preset, url, format        string
	conflicts, verifyToken     string
	secrets, ids, types, times []string
	volatile                   []string
	rate, addressRate          float64
	burst, addressBurst        int
}

// register gives cmd its flags.
func (f *sourceFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.preset, "preset", "", "`PRESET` of the provider: see spine source presets")
	flags.StringArrayVar(&f.secrets, "secret", nil,
		"`REFERENCE` to the secret: env:NAME or file:NAME; several may be valid at once")
	flags.StringVar(&f.verifyToken, "verify-token", "", "`REFERENCE` to the token that Meta asks for")
	flags.StringVar(&f.url, "public-url", "",
		"`URL` as the provider knows it, if the provider signs it (Twilio, Square)")
	flags.StringVar(&f.format, "format", "", "`FORMAT`: envelope, body or cloudevents")
	flags.StringArrayVar(&f.ids, "id", nil,
		"`TEMPLATE` of ids, such as {header:X-Request-Id} or {body:/data/id}; the first that fits counts")
	flags.StringArrayVar(&f.types, "type", nil, "`TEMPLATE` of types")
	flags.StringArrayVar(&f.times, "time", nil, "`TEMPLATE` of times")
	flags.StringArrayVar(&f.volatile, "volatile", nil,
		"JSON `POINTER` to a value that changes with each attempt of the provider")
	flags.StringVar(&f.conflicts, "conflicts", "",
		"answer to another payload under a known id: keep is 200, refuse is 409")
	flags.Float64Var(&f.rate, "rate", 0, "most verified requests a second, a `NUMBER`")
	flags.IntVar(&f.burst, "burst", 0, "most of them at once, a `NUMBER`")
	flags.Float64Var(&f.addressRate, "address-rate", 0, "most requests a second of one client address, a `NUMBER`")
	flags.IntVar(&f.addressBurst, "address-burst", 0, "most of them at once, a `NUMBER`")
	flags.StringVar(&f.file, "settings", "",
		"read all settings from `FILE`, a JSON object; - is the standard input; other flags change them")
	completeFlag(cmd, "preset", fixedValues(source.Presets()))
	completeFlag(cmd, "conflicts", fixedValues([]string{"keep", "refuse"}))
	completeFlag(cmd, "format", fixedValues([]string{"envelope", "body", "cloudevents"}))
	completeFiles(cmd, "settings")
}

// applyTo lays the flags that were given over the settings c.
func (f *sourceFlags) applyTo(
	cmd *cobra.Command, c source.Config, secrets source.Secrets,
) (source.Config, error) {
	given := cmd.Flags().Changed
	if given("secret") {
		c.Secrets = nil
		for _, ref := range listValues(f.secrets) {
			if err := checkReference("--secret", ref, secrets); err != nil {
				return c, err
			}
			c.Secrets = append(c.Secrets, source.Secret{Ref: ref})
		}
	}
	if given("verify-token") && f.verifyToken != "" {
		if err := checkReference("--verify-token", f.verifyToken, secrets); err != nil {
			return c, err
		}
	}
	for name, text := range map[string]struct{ to, from *string }{
		"preset":       {&c.Preset, &f.preset},
		"public-url":   {&c.URL, &f.url},
		"format":       {&c.Format, &f.format},
		"conflicts":    {&c.Conflicts, &f.conflicts},
		"verify-token": {&c.VerifyToken, &f.verifyToken},
	} {
		if given(name) {
			*text.to = *text.from
		}
	}
	for name, list := range map[string]struct{ to, from *[]string }{
		"id":       {&c.ID, &f.ids},
		"type":     {&c.Type, &f.types},
		"time":     {&c.Time, &f.times},
		"volatile": {&c.Volatile, &f.volatile},
	} {
		if given(name) {
			*list.to = listValues(*list.from)
		}
	}
	if given("rate") {
		c.Limits.Rate = f.rate
	}
	if given("burst") {
		c.Limits.Burst = f.burst
	}
	if given("address-rate") {
		c.Limits.AddressRate = f.addressRate
	}
	if given("address-burst") {
		c.Limits.AddressBurst = f.addressBurst
	}
	return c, nil
}

// checkReference rejects a secret that is given by value, and one that may not be named. Its error does not repeat the
// secret.
func checkReference(flag, ref string, secrets source.Secrets) error {
	if _, ok := secret.ParseReference(ref); !ok {
		return misuse("%s: must be %s: name the secret, never give it", flag, secret.Form)
	}
	if err := secrets.Check(ref); err != nil {
		return misuse("%s: %w", flag, err)
	}
	return nil
}

// sourceSetCommand is add or set, as verb says.
func sourceSetCommand(env environ, verb string) *cobra.Command {
	var f sourceFlags
	var asJSON bool
	var allowed service.SecretSettings
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Add a source",
		Long: `Add adds a source. It waits for up to 3 s until every server has read it, and prints
what they make of it: whether they can read its secrets. Then it prints what to enter
at the provider. It exits with 0 once the settings are stored, also where no server can
use the source yet: many providers show their secret only after you have given them the
address.`,
		Example: `  spine source add github --preset github --secret file:github
  spine source add billing --preset hmac --secret file:billing --settings billing.json
  spine source add internal --preset bearer --secret env:SPINE_SECRET_INTERNAL --id '{body:/id}' --type '{body:/kind}'`,
	}
	if verb == "set" {
		cmd.Use, cmd.Short = "set NAME", "Change the settings of a source"
		cmd.Long = `Set changes the settings that you give and leaves the others as they are. With
--settings it replaces all of them. An empty setting, as in --volatile '', is
removed, so that the preset's own holds again. Set waits for up to 3 s and prints
what the servers make of it.`
		cmd.Example = `  spine source set default --preset standard-webhooks --format envelope --secret file:sender
  spine source set github --rate 100 --conflicts refuse`
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return onSource(env, cmd, func(cmd *cobra.Command, s *store.Store, name string) error {
		current, err := s.Source(cmd.Context(), name)
		_, missing := errors.AsType[*event.NoSourceError](err)
		switch {
		case verb == "add" && err == nil:
			return fmt.Errorf("the source %s exists already: spine source set changes it", name)
		case err != nil && (verb == "set" || !missing):
			return err
		}
		settings := []byte(current.Settings)
		if f.file != "" {
			if settings, err = readFile(f.file, cmd.InOrStdin()); err != nil {
				return err
			}
		}
		var c source.Config
		if settings != nil {
			if c, err = source.ParseConfig(settings); err != nil {
				return misuseError{err}
			}
		}
		secrets := allowed.Resolver(env.lookup)
		if c, err = f.applyTo(cmd, c, secrets); err != nil {
			return err
		}
		if _, err = c.Resolve(); err == nil {
			err = c.CheckSecrets(secrets)
		}
		if err != nil {
			return misuseError{err}
		}
		text, err := json.Marshal(c)
		if err != nil {
			return fmt.Errorf("writing the settings: %w", err)
		}
		change, err := s.PutSource(cmd.Context(), name, text, auditCaller(cmd))
		if err != nil {
			return err
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), change)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n\n", name, change.Change)
		if current, err = s.Source(cmd.Context(), name); err != nil {
			return err
		}
		return describeSource(cmd.OutOrStdout(), current, awaitServers(cmd, s, current), secrets)
	}, &allowed)
}
