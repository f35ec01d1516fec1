package ingest

import (
	"container/list"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Uploads that hardly go on give way where others need their memory. Otherwise a few clients could hold all of it with
// bodies that they do not send. They would connect again as soon as these time out.
const (
	// uploadPace is how many bytes a second an upload has to bring, to keep its memory when that is short.
	uploadPace = 64 << 10
	// uploadGrace is how long it may bring none, however much came before.
	uploadGrace = time.Second
	// freedPatience limits the wait for the memory of an upload that gives way. It takes no time.
	freedPatience = time.Second
)

// progress is how an upload goes on.
type progress struct {
	network string // its client's; as in shares
	began   time.Time
	slow    atomic.Int64  // how long after began it is slow unless more arrives, in nanoseconds
	stop    func()        // ends the reading, as if the time for the body were over
	freed   chan struct{} // closed when its memory is free
	place   *list.Element // in uploads; nil once it is read to its end, or gives way
}

func newProgress(network string, stop func()) *progress {
	p := &progress{network: network, began: time.Now(), stop: stop, freed: make(chan struct{})}
	p.slow.Store(int64(uploadGrace))
	return p
}

// arrived notes that n more bytes are here. It must not be called concurrently.
func (p *progress) arrived(n int) {
	earned := time.Duration(n) * time.Second / uploadPace
	p.slow.Store(min(p.slow.Load()+int64(earned), int64(time.Since(p.began)+uploadGrace)))
}

// watch has an upload give way where it is slow and others need its memory.
func (g *gate) watch(a *arrival) {
	controller := http.NewResponseController(a.upload)
	a.progress = newProgress(network(a.remote), func() { _ = controller.SetReadDeadline(time.Unix(1, 0)) })
	g.uploads.add(a.progress)
}

// uploads are those that are being read, the oldest first, but for small ones that come at once. It is safe for
// concurrent use.
type uploads struct {
	mu  sync.Mutex
	all list.List // of *progress
}

func (us *uploads) add(p *progress) {
	us.mu.Lock()
	defer us.mu.Unlock()
	p.place = us.all.PushBack(p)
}

// remove takes an upload out that is not read any more. It reports whether the upload was left alone until now.
func (us *uploads) remove(p *progress) bool {
	us.mu.Lock()
	defer us.mu.Unlock()
	if p.place == nil {
		return false
	}
	us.all.Remove(p.place)
	p.place = nil
	return true
}

// giveWay ends the oldest slow upload of a network, or of all where that is empty, and waits until its memory is free.
// It reports whether there was one. own is the upload for whose sake it is, and may be nil.
func (us *uploads) giveWay(network string, own *progress) bool {
	slow := us.stopSlow(network, own)
	if slow == nil {
		return false
	}
	select {
	case <-slow.freed:
	case <-time.After(freedPatience):
	}
	return true
}

func (us *uploads) stopSlow(network string, own *progress) *progress {
	us.mu.Lock()
	defer us.mu.Unlock()
	for place := us.all.Front(); place != nil; place = place.Next() {
		p := place.Value.(*progress) //nolint:forcetypeassert // it holds nothing else
		if took := time.Since(p.began); took < uploadGrace {
			return nil // and so are all that follow
		} else if p != own && (network == "" || p.network == network) && int64(took) >= p.slow.Load() {
			us.all.Remove(place)
			p.place = nil
			p.stop() // with the lock: the request of an upload that is in the list has no answer yet
			return p
		}
	}
	return nil
}
