package store

import (
	"context"
	"io/fs"
)

// VerifySpans is Verify with the greatest number of events that a step takes.
var VerifySpans = (*Store).verifySpans

// Release is what another version of Spine brings to a database.
type Release = release

// NewRelease makes one.
func NewRelease(migrations, functions fs.FS, compatibleFrom int64) Release {
	return release{migrations, functions, compatibleFrom}
}

// MigrateTo is Migrate to another release.
var MigrateTo = migrate

// NeededRights are the rights on tables that a process needs, by name.
var NeededRights = neededRights

// ReadOne, ReadList and ReadCollect read one text in the three ways in which this package reads for operators.
func ReadOne(s *Store, ctx context.Context, sql string) (text string, err error) {
	err = s.readOne(ctx, sql, nil, &text)
	return text, err
}

func ReadList(s *Store, ctx context.Context, sql string) (string, error) {
	rows, err := list[struct{ Text string }](ctx, s, "reading", sql)
	if err != nil {
		return "", err
	}
	return rows[0].Text, nil
}

func ReadCollect(s *Store, ctx context.Context, sql string) (string, error) {
	rows, err := collect[struct{ Text string }](ctx, s, "reading", sql)
	if err != nil {
		return "", err
	}
	return rows[0].Text, nil
}

// Commit is commit.
var Commit = (*Store).commit

// ForgetServer makes the next new connection one to a server that is not known.
func ForgetServer(s *Store) { s.noted.Store(nil) }
