package mockapi

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"
	"github.com/rs/zerolog"
)

// maxBody bounds how much of a request's body is read, in bytes: an event of
// 1 MiB with its payload both as text and in base64 fits in. What lies beyond
// is left unread, which costs the client its connection, not the answer.
const maxBody = 4 << 20

// answerTime is how long the client may take to read the answer after a delay.
const answerTime = 30 * time.Second

// Config is how a Server is set up. The zero Config always succeeds.
type Config struct {
	Behaviour // towards requests whose query does not say otherwise

	// MaxIDs is how many ids are told apart in the statistics; 0 stands for a
	// million. MOCK_API_MAX_IDS.
	MaxIDs int

	// Stop, once closed, ends every delay and hang by cutting the connection, so
	// that a graceful stop need not wait for them. May be nil.
	Stop <-chan struct{}
	// Random returns numbers in [0,1), which decide what fails and how. It is
	// called concurrently. Nil stands for math/rand/v2.
	Random func() float64
	// Log gets one debug line a request. The zero Logger is silent.
	Log zerolog.Logger
}

// Server is the mock API:
//
//	POST   /third_party/mock  answered as Behaviour says
//	GET    /stats             Stats
//	GET    /stats/{id}        IDStats; 404 for an id that is not among the recent ones
//	DELETE /stats             starts counting anew, 204
//	GET    /healthz           200
//
// A request's id is its webhook-id header as it stands, or else the event_id of
// its JSON body. Refusals are problem+json (RFC 9457).
type Server struct {
	config Config
	routes http.Handler
	tally  atomic.Pointer[tally]
}

// New returns a Server, or an error that names the setting that makes no sense.
func New(config Config) (*Server, error) {
	if fault := config.check(); fault != nil {
		return nil, fault.setting()
	}
	if config.MaxIDs < 0 {
		return nil, fmt.Errorf("MOCK_API_MAX_IDS must not be negative, not %d", config.MaxIDs)
	}
	if config.MaxIDs == 0 {
		config.MaxIDs = defaultMaxIDs
	}
	if config.Random == nil {
		config.Random = rand.Float64
	}
	s := &Server{config: config}
	s.reset()

	// SkipClean: a redirect would turn a POST into a GET.
	r := mux.NewRouter().SkipClean(true)
	r.Handle("/third_party/mock", methods{http.MethodPost: s.receive})
	r.Handle("/stats", methods{http.MethodGet: s.showStats, http.MethodDelete: s.deleteStats})
	r.Handle("/stats/{id:.+}", methods{http.MethodGet: s.showID})
	r.Handle("/healthz", methods{http.MethodGet: showHealth})
	r.NotFoundHandler = http.HandlerFunc(notFound)
	s.routes = r
	return s, nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.routes.ServeHTTP(w, r) }

// Stats returns what was counted so far.
func (s *Server) Stats() Stats { return s.tally.Load().snapshot() }

// reset gives later requests a new tally; those in hand finish on the old one,
// so that neither counts an answer without its request.
func (s *Server) reset() { s.tally.Store(newTally(s.config.MaxIDs)) }

func (s *Server) receive(w http.ResponseWriter, r *http.Request) {
	behaviour, fault := s.config.with(r.URL.RawQuery)
	if fault != nil {
		problem(w, http.StatusBadRequest, fault.Error())
		return
	}
	id, err := readID(r)
	if err != nil {
		problem(w, http.StatusBadRequest, "the body cannot be read")
		return
	}
	tally := s.tally.Load()
	tally.received(id)

	fails := s.config.Random() < behaviour.chance()
	status := http.StatusOK
	switch {
	case fails && (behaviour.Hang || behaviour.cuts()):
		status = 0
	case fails && behaviour.Status != 0:
		status = behaviour.Status
	case fails:
		mix := [...]int{http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable}
		status = mix[int(s.config.Random()*float64(len(mix)))]
	}
	wait := behaviour.Delay
	if fails && behaviour.Hang {
		wait = MaxDelay
	}
	if !s.wait(w, r, wait) {
		status = 0
		behaviour.Cut = CutBefore
	}

	// Counted before it is sent: whoever has the answer finds it counted.
	tally.answered(id, status)
	s.config.Log.Debug().Str("id", id).Int("status", status).Msg("answered")

	if status == 0 && behaviour.Cut == CutBody {
		writeHalf(w)
	}
	if status == 0 {
		panic(http.ErrAbortHandler) // net/http's way to drop a connection
	}
	if status < 200 || status > 299 {
		if after, _ := retryAfter(behaviour.RetryAfter, time.Now()); after != "" {
			w.Header().Set("Retry-After", after)
		}
		writeJSON(w, status, map[string]string{"status": "error", "error": http.StatusText(status)})
		return
	}
	writeJSON(w, status, map[string]string{"status": "ok", "id": id})
}

// wait reports whether d went by with the client and the server still there.
func (s *Server) wait(w http.ResponseWriter, r *http.Request, d time.Duration) bool {
	if d == 0 {
		return true
	}
	// The server's own time-outs would end the wait: a read deadline that
	// passes while the handler runs cancels the request's context. A writer
	// that has no deadlines needs none lifted.
	deadlines := http.NewResponseController(w)
	_ = deadlines.SetReadDeadline(time.Time{})
	_ = deadlines.SetWriteDeadline(time.Now().Add(d + answerTime))

	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
	case <-s.config.Stop:
	}
	return false
}

// readID reads the whole body, so that the connection can be used again.
func readID(r *http.Request) (string, error) {
	body := io.LimitReader(r.Body, maxBody)
	if id := r.Header.Get("webhook-id"); id != "" {
		_, err := io.Copy(io.Discard, body)
		return id, err
	}
	text, err := io.ReadAll(body)
	if err != nil {
		return "", err
	}
	var envelope struct {
		EventID string `json:"event_id"`
	}
	if json.Unmarshal(text, &envelope) != nil {
		return "", nil // anything is accepted, also without an id
	}
	return envelope.EventID, nil
}

// writeHalf sends the head of a success and half of the body it announces.
func writeHalf(w http.ResponseWriter) {
	body := `{"status":"ok","id":""}`
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	_, _ = io.WriteString(w, body[:len(body)/2])
	_ = http.NewResponseController(w).Flush()
}

func (s *Server) showStats(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.Stats())
}

func (s *Server) showID(w http.ResponseWriter, r *http.Request) {
	seen, ok := s.tally.Load().of(mux.Vars(r)["id"])
	if !ok {
		problem(w, http.StatusNotFound, "this id is not among the recent ones")
		return
	}
	writeJSON(w, http.StatusOK, seen)
}

func (s *Server) deleteStats(w http.ResponseWriter, _ *http.Request) {
	s.reset()
	w.WriteHeader(http.StatusNoContent)
}

func showHealth(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

func notFound(w http.ResponseWriter, _ *http.Request) {
	problem(w, http.StatusNotFound, "there is nothing here")
}

// methods is a path's handlers by method. HEAD is answered like GET.
type methods map[string]http.HandlerFunc

func (m methods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if handle := m[method]; handle != nil {
		handle(w, r)
		return
	}
	w.Header().Set("Allow", strings.Join(slices.Sorted(maps.Keys(m)), ", "))
	problem(w, http.StatusMethodNotAllowed, r.Method+" is not allowed here")
}

// problem refuses a request with an RFC 9457 problem.
func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	writeJSON(w, status, map[string]any{
		"type": "about:blank", "title": http.StatusText(status), "status": status, "detail": detail,
	})
}

// writeJSON answers with value, as application/json unless told otherwise. A
// client that has gone is no error worth telling anyone.
func writeJSON(w http.ResponseWriter, status int, value any) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value)
}
