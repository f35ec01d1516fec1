package trail

import (
	"encoding/json"

	"github.com/webhookspine/spine/internal/event"
)

// Step is one row of the audit log: a step of an event, or something else worth recording, which has no event_id then.
type Step struct {
	Timestamp event.Timestamp `json:"timestamp"`
	ID        int64           `json:"id"`
	EventID   *string         `json:"event_id"`
	Source    *string         `json:"source"`
	Action    Action          `json:"action"`
	Success   string          `json:"success"` // success, failure or pending
	Details   json.RawMessage `json:"details"` // an object
}
