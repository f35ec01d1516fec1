package source

import "slices"

// idIsSigned reports whether the id of a request is signed. If it is, nobody who has seen a request can send its body
// under another id. Every rule that may apply must then be made of the body or of headers that the signature covers. A
// source that verifies nothing counts as signed. With a token, which signs nothing, an id must be made of the body. A
// CloudEvent may have its id in headers, whatever its settings say.
func idIsSigned(c Config, methods []Method) bool {
	for _, m := range methods {
		isCloud := c.Format == "cloudevents" && m.usesSignature()
		switch {
		case m.Scheme == schemeNone:
		case !signsID(m, c.ID), isCloud && !signsHeaders(m, "Ce-Id", "Ce-Source"):
			return false
		}
	}
	return true
}

// signsHeaders reports whether a method signs all of some headers.
func signsHeaders(m Method, names ...string) bool {
	signed := signedHeaders(m)
	return !slices.ContainsFunc(names, func(name string) bool {
		return !slices.ContainsFunc(signed, func(group []string) bool { return len(group) == 1 && group[0] == name })
	})
}

// signsID reports whether a method signs the id. It takes the rules in their order, since anybody can add a header that
// comes before the signed one.
func signsID(m Method, rules []string) bool {
	signed := signedHeaders(m)
	tried := map[string]bool{} // headers that alone make a rule before this one
	for _, rule := range rules {
		t, err := parseTemplate(rule)
		if err != nil {
			return false // cannot be: it was checked
		}
		alwaysFits := true
		needed := t.placeholders()
		for _, at := range needed {
			switch name := t[at].name; t[at].kind {
			case ruleHeader:
				group := alternativesOf(signed, name)
				if group == nil {
					return false
				}
				for _, before := range group[:slices.Index(group, name)] {
					if !tried[before] {
						return false
					}
				}
				tried[name] = tried[name] || len(needed) == 1
				alwaysFits = alwaysFits && len(group) == 1
			case ruleQuery:
				if m.Scheme != schemeTwilio {
					return false
				}
				alwaysFits = false
			default:
				alwaysFits = false
			}
		}
		if alwaysFits {
			return true // no rule after this one ever applies
		}
	}
	return true
}

// alternativesOf is the list of alternatives that holds a header. The name is canonical.
func alternativesOf(groups [][]string, name string) []string {
	for _, group := range groups {
		if slices.Contains(group, name) {
			return group
		}
	}
	return nil
}
