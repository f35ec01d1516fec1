// Package schema carries Spine's SQL inside the binary. Migrations make the
// tables. Functions, triggers and views are put in place as a whole after them.
// The package holds files and one number, and no logic: internal/store applies
// them.
//
// A release that changes a function also adds a migration, if only an empty
// one. Its number tells an older binary beside it to leave the functions alone.
// README.md says how to change the SQL, and what else to do then.
package schema

import "embed"

// CompatibleFrom is the oldest schema version whose binaries still work on a database of the newest migration. It is
// the newest migration of the release before: one version back is served. spine migrate writes it to the database.
// There a binary of a version between the two starts and changes nothing, and an older one is rejected. A function that
// was retired in this version or earlier is dropped. Set it in the first migration of each release.
const CompatibleFrom = 5

// Migrations holds migrations/NNNN_*.sql for goose, forward only.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Functions holds functions/*.sql, applied in the order of their names in one transaction.
//
//go:embed functions/*.sql
var Functions embed.FS
