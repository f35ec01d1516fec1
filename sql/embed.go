// Package schema carries Spine's SQL inside the binary: the migrations, and the functions, triggers and views that are put in
// place as a whole after them. It holds files and no logic; internal/store applies them.
//
// A release that changes a function also adds a migration, if only an empty one: its number is how an older binary, started
// beside the newer one, knows to leave the functions alone.
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
