package event

import "slices"

// The statuses of an event with a destination: the values of spine.processing_state.status.
const (
	StatusPending    = "pending"    // waits for its first attempt, or was queued anew
	StatusProcessing = "processing" // a worker has claimed it
	StatusCompleted  = "completed"  // delivered
	StatusFailed     = "failed"     // an attempt failed; the next is scheduled
	StatusDead       = "dead"       // a dead letter: not tried again
)

// Statuses are all statuses, in the order in which an event may come to them.
func Statuses() []string {
	return []string{StatusPending, StatusProcessing, StatusCompleted, StatusFailed, StatusDead}
}

// UnfinishedStatuses are the statuses of events that were not delivered: those that Spine counts.
func UnfinishedStatuses() []string {
	return []string{StatusPending, StatusProcessing, StatusFailed, StatusDead}
}

// ValidStatus reports whether s is a status.
func ValidStatus(s string) bool { return slices.Contains(Statuses(), s) }
