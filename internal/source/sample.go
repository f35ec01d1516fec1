package source

import (
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// Sample makes a request as the provider sends it, signed for a time.
func (s *Source) Sample(now time.Time) (*event.Request, error) { return nil, errNoKey }
