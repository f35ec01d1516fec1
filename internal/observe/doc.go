// Package observe shows a process to the people who run it: logging, health answers and metrics. It also holds the HTTP
// server itself (server.go), since stopping that server and answering /readyz are one protocol: Health says "draining"
// while the Server still serves.
//
// It promises that a process that must stop says so on /readyz before it stops accepting requests. It cuts no request
// in hand before the time limit. An outage of the database costs one log line a second at most (outage.go).
//
// It must not know any stage: checks are handed in, and each stage defines its own metrics. It is no command line. It
// uses package terminal for one thing: whether log lines go to a terminal.
package observe
