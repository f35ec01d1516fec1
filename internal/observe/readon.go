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
		if r.ContentLength >= 0 && r.ContentLength < netReadsOn {
			next.ServeHTTP(w, r)
			return
		}
		body := &noted{ReadCloser: r.Body}
		own := r.WithContext(r.Context()) // a copy: net/http looks at the body of r
		own.Body = body
		next.ServeHTTP(w, own)
		// A sender that waits for 100 Continue sends nothing until somebody reads.
		if r.Header.Get("Expect") != "" && !body.asked {
			return
		}
		// Without this deadline, the one of the whole request still ends the reading.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readOnTime))
		_, _ = io.CopyN(io.Discard, body.ReadCloser, readOnBytes) // whatever comes
	})
}

// noted is a body that notes whether somebody has asked for it.
type noted struct {
	io.ReadCloser
	asked bool
}

func (b *noted) Read(p []byte) (int, error) {
	b.asked = true
	return b.ReadCloser.Read(p) //nolint:wrapcheck // it is the same body
}
