package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// envelope is an event, as senders post it and as the sink gets it.
type envelope struct {
	EventID    string          `json:"event_id"`
	EventType  string          `json:"event_type"`
	OccurredAt time.Time       `json:"occurred_at"`
	Payload    json.RawMessage `json:"payload"`
}

// Answers of the front.
const (
	accepted     = "accepted"
	deduplicated = "deduplicated"
	conflict     = "conflict"
)

// storeFunc stores an event once, queues it if it is new, and returns the answer once that is
// committed.
type storeFunc func(ctx context.Context, e envelope) (answer string, err error)

const maxBody = 1 << 20

// serve takes events at POST /webhook of address until ctx is done. It uses the standard library's
// server as most teams would. GET /readyz says that it is ready.
func serve(ctx context.Context, address string, store storeFunc) error {
	routes := http.NewServeMux()
	routes.HandleFunc("GET /readyz", func(http.ResponseWriter, *http.Request) {})
	routes.HandleFunc("POST /webhook", func(w http.ResponseWriter, r *http.Request) {
		var e envelope
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&e); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if e.EventID == "" || e.EventType == "" || e.OccurredAt.IsZero() || len(e.Payload) == 0 || e.Payload[0] != '{' {
			http.Error(w, "event_id, event_type, occurred_at and payload are needed", http.StatusUnprocessableEntity)
			return
		}
		answer, err := store(r.Context(), e)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		body := map[string]string{"status": answer, "event_id": e.EventID}
		_ = json.NewEncoder(w).Encode(body) // the client may be gone
	})
	return serveHTTP(ctx, address, routes)
}

// serveHTTP serves until ctx is done and then lets requests under way finish.
func serveHTTP(ctx context.Context, address string, handler http.Handler) error {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("taking events in: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	stopped := make(chan error, 1)
	context.AfterFunc(ctx, func() {
		limit, done := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer done()
		stopped <- server.Shutdown(limit)
	})
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("taking events in: %w", err)
	}
	return <-stopped
}

// eventsTable is the same for both peers. Spine's own has more columns.
const eventsTable = `
	create table if not exists events (
		id bigint generated always as identity primary key,
		event_id text not null unique,
		event_type text not null,
		occurred_at timestamptz not null,
		payload json not null,
		payload_hash bytea not null,
		created_at timestamptz not null default now()
	)`

// hashOf returns a hash of the payload's bytes, without Spine's canonical form.
func hashOf(payload json.RawMessage) []byte {
	sum := sha256.Sum256(payload)
	return sum[:]
}

// readEvent reads an event to deliver.
func readEvent(ctx context.Context, pool *pgxpool.Pool, id int64) (e envelope, err error) {
	err = pool.QueryRow(ctx, "select event_id, event_type, occurred_at, payload from events where id = $1", id).
		Scan(&e.EventID, &e.EventType, &e.OccurredAt, &e.Payload)
	if err != nil {
		return e, fmt.Errorf("reading the event: %w", err)
	}
	return e, nil
}

// judgeRepeat returns the answer to an event that was stored before.
func judgeRepeat(ctx context.Context, db interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, e envelope,
) (string, error) {
	var same bool
	const query = "select payload_hash = $2 from events where event_id = $1"
	err := db.QueryRow(ctx, query, e.EventID, hashOf(e.Payload)).Scan(&same)
	if err != nil {
		return "", fmt.Errorf("comparing with the stored event: %w", err)
	}
	if same {
		return deduplicated, nil
	}
	return conflict, nil
}

// openPool opens a pool of conns connections.
func openPool(ctx context.Context, url string, conns int32) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	config.MaxConns = conns
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	return pool, nil
}

// deliverer POSTs events to the sink on kept connections.
type deliverer struct {
	url    string
	client *http.Client
}

func newDeliverer(url string, connections int) deliverer {
	return deliverer{url, &http.Client{
		Timeout: deliveryTimeout,
		Transport: &http.Transport{
			MaxIdleConns:        connections,
			MaxIdleConnsPerHost: connections,
			DisableCompression:  true,
		},
	}}
}

// deliver makes one attempt; any 2xx is success.
func (d deliverer) deliver(ctx context.Context, e envelope) error {
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encoding a delivery: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("making a delivery: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Webhook-Id", e.EventID)
	answer, err := d.client.Do(r)
	if err != nil {
		return fmt.Errorf("delivering: %w", err)
	}
	defer func() { _ = answer.Body.Close() }()
	_, _ = io.Copy(io.Discard, answer.Body) // or the connection could not be used again
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return fmt.Errorf("delivering: the sink answered %s", answer.Status)
	}
	return nil
}
