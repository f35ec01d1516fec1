// Package postgres runs a private PostgreSQL server. `spine dev` uses it, so that there is nothing
// to install or configure. Tests use it, so that they meet the real thing.
//
// It finds the server's binaries on the machine or downloads them, makes a cluster in a folder,
// starts it on a loopback port, and stops it. The cluster holds a database and the role that owns
// it. The role is no superuser, as in a database that an operator hands to Spine.
//
// It promises three things. Committed data survives any crash of ours, of the server or of the
// machine, unless Options.Settings gives that up. The next Start repairs a folder that a crash left
// in any state. Two servers never serve one folder.
//
// It knows nothing of schemas, migrations or events.
package postgres
