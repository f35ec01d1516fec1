package mockapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/respond"
)

// maxBody is how many bytes of a request's body are read. An event of 1 MiB fits, with its payload
// both as text and in base64. Anything beyond stays unread, which costs the client its connection,
// but not the answer.
const maxBody = 4 << 20

// answerTime limits how long the client may take to read the answer after a delay.
const answerTime = 30 * time.Second

// Config sets up a Server. With the zero Config every request succeeds.
type Config struct {
	Behaviour // for requests whose query does not say otherwise

	// MaxIDs is how many ids the statistics tell apart. 0 means a million.
	MaxIDs int

	// Stop, once closed, ends every delay and hang by cutting the connection, so that a graceful
	// stop need not wait for them. It may be nil.
	Stop <-chan struct{}
	// Random returns numbers in [0,1), which decide what fails and how. It is called concurrently.
	// nil means math/rand/v2.
	Random func() float64
	// Log gets one debug line for each request. The zero Logger is silent.
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
// A request's id is its webhook-id header as it stands, or else the event_id of its JSON body. A
// body may say how to answer a request that has no query. The member mock_api of its payload is a
// list of queries, one for each attempt. The member attempt, from 1, selects one. So the sender of
// an event can make its delivery fail. Rejections are problem+json (RFC 9457).
type Server struct {
	config Config
	routes http.Handler
	tally  atomic.Pointer[tally]
}

// New returns a Server, or an error that names the setting that is wrong.
func New(config Config) (*Server, error) {
	if fault := config.check(); fault != nil {
		return nil, fault.setting()
	}
	if config.MaxIDs < 0 {
		return nil, fmt.Errorf("MaxIDs must not be negative, not %d", config.MaxIDs)
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
	r.Path("/third_party/mock").Methods(http.MethodPost).HandlerFunc(s.receive)
	r.Path("/stats").Methods(http.MethodGet, http.MethodHead).HandlerFunc(s.showStats)
	r.Path("/stats").Methods(http.MethodDelete).HandlerFunc(s.deleteStats)
	r.Path("/stats/{id:.+}").Methods(http.MethodGet, http.MethodHead).HandlerFunc(s.showID)
	r.Path("/healthz").Methods(http.MethodGet, http.MethodHead).HandlerFunc(showHealth)
	r.NotFoundHandler = respond.NotFound()
	r.MethodNotAllowedHandler = respond.MethodNotAllowed(r)
	s.routes = r
	return s, nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.routes.ServeHTTP(w, r) }

// Stats returns the counts so far.
func (s *Server) Stats() Stats { return s.tally.Load().snapshot() }

// reset gives later requests a new tally. Requests under way finish on the old one, so neither
// counts an answer without its request.
func (s *Server) reset() { s.tally.Store(newTally(s.config.MaxIDs)) }

func (s *Server) receive(w http.ResponseWriter, r *http.Request) {
	id, query, err := readRequest(r)
	if err != nil {
		respond.Reject(w, respond.Problem{Status: http.StatusBadRequest, Detail: "The body cannot be read."})
		return
	}
	behaviour, fault := s.config.with(query)
	if fault != nil {
		respond.Reject(w, respond.Problem{Status: http.StatusBadRequest, Detail: fault.Error()})
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

	// Count before sending, so that a client that has the answer finds it counted.
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
		_ = respond.JSON(w, status, map[string]string{"status": "error", "error": http.StatusText(status)})
		return
	}
	_ = respond.JSON(w, status, map[string]string{"status": "ok", "id": id}) // this always encodes
}

// wait waits for d. It returns false if the client or the server went away before.
func (s *Server) wait(w http.ResponseWriter, r *http.Request, d time.Duration) bool {
	if d == 0 {
		return true
	}
	// The server's own time-outs would end the wait: a read deadline that passes while the handler
	// runs cancels the request's context. A writer without deadlines needs none lifted.
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

// readRequest reads the whole body, so that the connection can be used again, and returns the
// request's id and query.
func readRequest(r *http.Request) (id, query string, err error) {
	text, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return "", "", err
	}
	id, query = r.Header.Get("webhook-id"), r.URL.RawQuery
	asks := query == "" && bytes.Contains(text, []byte(`"mock_api"`))
	if id != "" && !asks {
		return id, query, nil
	}
	var envelope struct {
		EventID string          `json:"event_id"`
		Attempt int             `json:"attempt"`
		Payload json.RawMessage `json:"payload"`
	}
	if json.Unmarshal(text, &envelope) != nil {
		return id, query, nil // every body is accepted, also one without an id
	}
	if id == "" {
		id = envelope.EventID
	}
	var payload struct {
		MockAPI []string `json:"mock_api"`
	}
	if asks && json.Unmarshal(envelope.Payload, &payload) == nil &&
		envelope.Attempt >= 1 && envelope.Attempt <= len(payload.MockAPI) {
		query = payload.MockAPI[envelope.Attempt-1]
	}
	return id, query, nil
}

// writeHalf sends the head of a success and half of its announced body.
func writeHalf(w http.ResponseWriter) {
	body := `{"status":"ok","id":""}`
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	_, _ = io.WriteString(w, body[:len(body)/2])
	_ = http.NewResponseController(w).Flush()
}

func (s *Server) showStats(w http.ResponseWriter, _ *http.Request) {
	_ = respond.JSON(w, http.StatusOK, s.Stats())
}

func (s *Server) showID(w http.ResponseWriter, r *http.Request) {
	seen, ok := s.tally.Load().of(mux.Vars(r)["id"])
	if !ok {
		respond.Reject(w, respond.Problem{Status: http.StatusNotFound, Detail: "This id is not among the recent ones."})
		return
	}
	_ = respond.JSON(w, http.StatusOK, seen)
}

func (s *Server) deleteStats(w http.ResponseWriter, _ *http.Request) {
	s.reset()
	w.WriteHeader(http.StatusNoContent)
}

func showHealth(w http.ResponseWriter, _ *http.Request) {
	_ = respond.JSON(w, http.StatusOK, map[string]string{"status": "ok"})
}
