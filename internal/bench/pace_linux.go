package bench

import (
	"syscall"
	"time"
)

// fineSleep sleeps for milliseconds, about 60 µs too long. The runtime's timers wait in whole
// milliseconds, and half of one would be counted as the system's latency.
func fineSleep(d time.Duration) {
	if d <= 0 {
		return
	}
	rest := syscall.NsecToTimespec(d.Nanoseconds())
	for syscall.Nanosleep(&rest, &rest) == syscall.EINTR {
	}
}
