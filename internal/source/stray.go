package source

// Stray returns what is known of a source that takes no requests now, since it is disabled or broken. It serves to keep
// secrets out of what is kept of them, and for its Config: secrets that cannot be read are known by their headers alone.
// It is nil where there is no such source, or where nobody can tell which headers hold its secrets.
func (r *Registry) Stray(name string) *Source {
	known := r.current.Load()
	if known == nil {
		return nil
	}
	e := (*known)[name]
	switch {
	case e == nil:
		return nil
	case e.source != nil:
		return e.source
	}
	c, err := ParseConfig(e.settings.Settings)
	if err != nil {
		return nil
	}
	if c, err = c.Resolve(); err != nil {
		return nil
	}
	s := &Source{name: name, config: c}
	for _, m := range c.Verify {
		compiled, err := newMethod(m, c.URL)
		if err != nil {
			return nil
		}
		if compiled.usesSignature() {
			s.proofs = append(s.proofs, compiled.headers...)
		} else {
			s.hidden = append(s.hidden, compiled.headers...)
		}
	}
	return s
}

// DefaultBudget is what is kept of rejected requests where the settings do not say it.
func DefaultBudget() Budget { return Budget{Rows: defaultRows, Bytes: defaultBytes, Age: defaultAge} }
