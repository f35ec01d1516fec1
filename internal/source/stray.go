package source

import "time"

// Stray is what is known of a source that takes no requests now.
type Stray struct {
	Redactor
	Config Config
	Source *Source // verifies its requests; nil where it is broken, or takes requests from anyone
}

// Stray returns what is known of a source that takes no requests now, since it is disabled, closed or broken. The
// caller verifies its requests with it, and keeps secrets out of what is kept of them. ok is false where no source has
// this name. It is also false where its settings cannot be read: nobody can tell then which headers hold its secrets.
func (r *Registry) Stray(name string) (stray Stray, ok bool) {
	known := r.current.Load()
	if known == nil {
		return Stray{}, false
	}
	e := (*known)[name]
	switch {
	case e == nil:
		return Stray{}, false
	case e.source != nil:
		stray = Stray{Redactor: e.source.Redactor, Config: e.source.config}
		if !e.source.isOpen() && !e.source.expired(time.Now()) {
			stray.Source = e.source
		}
		return stray, true
	}
	c, err := ParseConfig(e.settings.Settings)
	if err != nil {
		return Stray{}, false
	}
	if c, err = c.Resolve(); err != nil {
		return Stray{}, false
	}
	stray = Stray{Redactor: NewRedactor(c), Config: c}
	stray.known = &r.hidden
	return stray, true
}

// DefaultBudget is what is kept of rejected requests where the settings do not say it.
func DefaultBudget() Budget { return Budget{Rows: defaultRows, Bytes: defaultBytes, Age: defaultAge} }
