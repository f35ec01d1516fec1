// Package postgres runs a private PostgreSQL server: for `spine dev`, so that
// there is nothing to install or configure, and for tests, so that they meet
// the real thing.
//
// It finds the server's binaries on the machine or downloads them, makes a
// cluster in a folder, starts it on a loopback port, and stops it. The cluster
// holds a database and a role that owns it and is no superuser, just as a
// production database would be handed to Spine.
//
// Its promises: what was committed is there after any crash of ours, of the
// server or of the machine (unless Options.Settings gives that up); a folder
// that a crash left behind in any state is put right by the next Start; one
// folder is never served by two servers.
//
// It knows nothing of schemas, migrations or events.
package postgres
