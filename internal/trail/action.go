package trail

// Action says what a step records. A test holds these equal to the enum spine.audit_action, in which they are stored,
// and to the actions that the dashboard puts in words.
type Action string

// The actions, in the order of the enum. Beside each stands the transition of processing_state.status that the step
// makes, or the event that it records.
const (
	EventReceived               Action = "event_received"                // the next step says as what
	EventInserted               Action = "event_inserted"                // (new) → pending: stored and queued
	EventDeduped                Action = "event_deduped"                 // known id, same payload
	ConflictDetected            Action = "conflict_detected"             // known id, other payload: kept as evidence
	EventQueued                 Action = "event_queued"                  // (new) → any: by hand, in psql
	ProcessingAttemptStarted    Action = "processing_attempt_started"    // pending, failed → processing
	ProcessingAttemptFailed     Action = "processing_attempt_failed"     // the next step says what follows
	RetryScheduled              Action = "retry_scheduled"               // processing → failed
	ProcessingSucceeded         Action = "processing_succeeded"          // processing → completed
	ProcessingFailedPermanently Action = "processing_failed_permanently" // processing → dead
	LeaseExpired                Action = "lease_expired"                 // no report came; the next step says what follows
	LeaseReturned               Action = "lease_returned"                // processing → pending, failed: not started
	LeaseLost                   Action = "lease_lost"                    // a result came too late and changed nothing
	StatusChanged               Action = "status_changed"                // any → any: by hand, in psql
	EventReplayed               Action = "event_replayed"                // completed, failed, dead → pending
	RequestRejected             Action = "request_rejected"              // a summary of requests that were rejected
	ClaimsPaused                Action = "claims_paused"                 // claims of a destination stop
	ClaimsResumed               Action = "claims_resumed"                // claims of a destination go on
	EventsExpired               Action = "events_expired"                // a summary of events that retention deleted
	AuditExpired                Action = "audit_expired"                 // what retention deleted of the audit log
	SourceAdded                 Action = "source_added"                  // settings of a new source
	SourceChanged               Action = "source_changed"                // new settings of a known source
	SourceDisabled              Action = "source_disabled"               // its requests are rejected from now on
	SourceEnabled               Action = "source_enabled"                // its requests are taken again
	SourceRemoved               Action = "source_removed"                // its settings are gone
	RequestReplayed             Action = "request_replayed"              // a rejected request is to be checked again
	ConflictAccepted            Action = "conflict_accepted"             // another payload is an event of its own now
	DeliveryDeferred            Action = "delivery_deferred"             // processing → failed: not reached, not counted
)

// Actions returns all actions, in the order of the enum.
func Actions() []Action {
	return []Action{
		EventReceived,
		EventInserted,
		EventDeduped,
		ConflictDetected,
		EventQueued,
		ProcessingAttemptStarted,
		ProcessingAttemptFailed,
		RetryScheduled,
		ProcessingSucceeded,
		ProcessingFailedPermanently,
		LeaseExpired,
		LeaseReturned,
		LeaseLost,
		StatusChanged,
		EventReplayed,
		RequestRejected,
		ClaimsPaused,
		ClaimsResumed,
		EventsExpired,
		AuditExpired,
		SourceAdded,
		SourceChanged,
		SourceDisabled,
		SourceEnabled,
		SourceRemoved,
		RequestReplayed,
		ConflictAccepted,
		DeliveryDeferred,
	}
}

// Values of Step.Success, which the view spine.audit_log derives from the action. A test holds them equal.
const (
	Success = "success"
	Failure = "failure"
	Pending = "pending"
)
