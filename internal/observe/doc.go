// Package observe is how a process shows itself to those who run it: log
// lines, health answers, metrics, and the HTTP server that carries them.
//
// It promises that a process that is told to stop says so on /readyz before it
// stops taking requests, and that no request in hand is cut before the limit.
// It must not know any stage: what is checked is handed in, and each stage
// defines its own metrics.
package observe
