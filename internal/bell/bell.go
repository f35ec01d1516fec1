// Package bell wakes a loop. It imports only the standard library.
package bell

// Bell wakes the one loop that waits for it. A ring that the loop has not heard yet stands for all that follow, so
// the loop must look at everything there is to do when it wakes. It promises that a ring is never lost.
type Bell struct{ rung chan struct{} }

// New returns a bell that was not rung.
func New() *Bell { return &Bell{rung: make(chan struct{}, 1)} }

// Ring wakes the loop, now or when it next waits. It never blocks. It is safe for concurrent use.
func (b *Bell) Ring() {
	select {
	case b.rung <- struct{}{}:
	default: // the ring before was not heard yet
	}
}

// C returns the channel on which the loop waits. A value received is a ring heard.
func (b *Bell) C() <-chan struct{} { return b.rung }
