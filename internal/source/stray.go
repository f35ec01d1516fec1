package source

// Stray is what is known of a source that takes no requests now.
type Stray struct {
	Redactor
	Config Config
}

// Stray returns what is known of a source that takes no requests now, since it is disabled, closed or broken. It serves
// to keep secrets out of what is kept of them. ok is false where there is no such source, or where its settings cannot
// be read, so that nobody can tell which headers hold its secrets.
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
		return Stray{e.source.Redactor, e.source.config}, true
	}
	c, err := ParseConfig(e.settings.Settings)
	if err != nil {
		return Stray{}, false
	}
	if c, err = c.Resolve(); err != nil {
		return Stray{}, false
	}
	return Stray{NewRedactor(c), c}, true
}

// DefaultBudget is what is kept of rejected requests where the settings do not say it.
func DefaultBudget() Budget { return Budget{Rows: defaultRows, Bytes: defaultBytes, Age: defaultAge} }
