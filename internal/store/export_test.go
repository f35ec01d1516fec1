package store

// VerifyInSteps is Verify with the greatest number of events that a step takes.
var VerifyInSteps = (*Store).verifyInSteps

// MigrateTo is Migrate with the files of another release.
var MigrateTo = migrate
