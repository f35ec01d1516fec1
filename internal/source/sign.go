package source

import (
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// Sign signs a request in place, as the provider would at a time.
func (s *Source) Sign(r *event.Request, now time.Time) error { return errNoKey }
