package source

import (
	"fmt"
	"slices"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
)

// SecretResolver reads the secret that a reference names. Its error names the reference and what is wrong.
type SecretResolver func(ref string) (secret.Value, error)

// Secrets are the secrets of a process, as *secret.Resolver has them.
type Secrets interface {
	// Check says why a reference may not be named. It reads nothing.
	Check(ref string) error
	// Resolve is a SecretResolver.
	Resolve(ref string) (secret.Value, error)
	// File is the path of the file that a reference names; ok is false where it names none.
	File(ref string) (path string, ok bool)
}

// references are all references of settings, by the paths of their settings.
func (c Config) references() (paths, refs []string) {
	for i, s := range c.Secrets {
		paths, refs = append(paths, fmt.Sprintf("secrets[%d].ref", i)), append(refs, s.Ref)
	}
	if c.VerifyToken != "" {
		paths, refs = append(paths, "verify_token"), append(refs, c.VerifyToken)
	}
	return paths, refs
}

// CheckSecrets checks that a process may read the secrets that the settings name. It reads none. The error is an
// *event.BadSettingsError.
func (c Config) CheckSecrets(secrets Secrets) error {
	p := settingsParser{}
	paths, refs := c.references()
	for i, ref := range refs {
		if err := secrets.Check(ref); err != nil {
			p.add(paths[i], err.Error())
		}
	}
	if p.problems != nil {
		return &event.BadSettingsError{Problems: p.problems}
	}
	return nil
}

// warnUnread keeps what is wrong with a secret of a source that works all the same.
func (s *Source) warnUnread(path, problem string) {
	s.unread = append(s.unread, event.Problem{Field: path, Detail: problem})
}

// Unread lists the secrets that cannot be read while others serve in their place.
func (s *Source) Unread() []event.Problem { return slices.Clone(s.unread) }
