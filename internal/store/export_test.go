package store

// VerifySpans is Verify with the greatest number of events that a step takes.
var VerifySpans = (*Store).verifySpans

// MigrateTo is Migrate with the files of another release.
var MigrateTo = migrate
