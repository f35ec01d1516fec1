//go:build race

package systemtest

// raceDetector says that the race detector is built in, which multiplies the memory of a process.
const raceDetector = true
