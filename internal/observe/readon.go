package observe

import (
	"io"
	"net/http"
	"time"
)

// Limits on what is read of a body that nobody wants.
const (
	readOnBytes = 16 << 20
	readOnTime  = 2 * time.Second
	// netReadsOn is how much of such a body net/http reads by itself.
	netReadsOn = 256 << 10
)

// readOn reads what a handler has left of a large body, before the answer goes out. A sender that is still writing when
// its connection is closed may never see the answer: nginx then tells its client 502.
func readOn(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := r.Body // a handler may set another one
		next.ServeHTTP(w, r)
		isSmall := r.ContentLength >= 0 && r.ContentLength < netReadsOn
		// A sender that waits for 100 Continue sends nothing until it is asked.
		if isSmall || r.Header.Get("Expect") != "" {
			return
		}
		// Without this deadline, the one of the whole request still ends the reading.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readOnTime))
		_, _ = io.CopyN(io.Discard, body, readOnBytes) // whatever comes
	})
}
