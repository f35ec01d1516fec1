// Package schema carries Spine's SQL inside the binary. Migrations make the
// tables. Functions, triggers and views are put in place as a whole after them.
// The package holds files and no logic: internal/store applies them.
//
// A release that changes a function also adds a migration, if only an empty
// one. Its number tells an older binary beside it to leave the functions alone.
// README.md says how to change the SQL, and what else to do then.
package schema

import "embed"

// Migrations holds migrations/NNNN_*.sql for goose, forward only.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Functions holds functions/*.sql, applied in the order of their names in one transaction.
//
//go:embed functions/*.sql
var Functions embed.FS
