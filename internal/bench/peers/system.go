package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// system is one of the compared systems. The environment tells its processes where to work
// (DATABASE_URL, DESTINATION_URL, LISTEN). They make their tables themselves, answer GET /readyz
// once they can work, and take events at POST /webhook. They keep the events in a table
// events(event_id, payload).
type system struct {
	name       string
	processes  func(layout) []program
	unfinished string // SQL: how many events are not yet recorded as delivered
	settings   string // what a reader must know of its settings
	module     string // the report tells its version; may be empty
}

// layout says which processes a system has.
type layout int

const (
	together  layout = iota // one process ingests and delivers
	apart                   // one ingests, one delivers
	threeEach               // three ingest, three deliver
)

// program is a process to start.
type program struct {
	name  string // the subcommand
	front bool   // ingests events
}

const (
	// storeOnly is the destination of a system that must not deliver.
	storeOnly = "none"
	// deliveryTimeout is the same for all systems. A drain holds deliveries for as long as it takes
	// to build its backlog.
	deliveryTimeout = 20 * time.Second

	startPatience = 30 * time.Second
	stopPatience  = 30 * time.Second
)

// process is a running program.
type process struct {
	program
	url     string // where it serves
	command *exec.Cmd
	log     string        // file
	exited  chan struct{} // closed when it is gone
	failure error         // once it is gone: its error, if any
}

// startProgram starts a program and returns when it is ready.
func startProgram(ctx context.Context, binary string, p program, dir, database, destination string) (*process, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	log, err := os.CreateTemp(dir, p.name+"-*.log")
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.name, err)
	}
	defer func() { _ = log.Close() }()
	command := exec.Command(binary, p.name) //nolint:gosec,noctx // running these is the purpose; stop ends them
	command.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "LOG_LEVEL=WARN",
		"DELIVERY_CONCURRENCY=" + strconv.Itoa(spineConcurrency), "DELIVERY_TIMEOUT=" + deliveryTimeout.String(),
		"DATABASE_URL=" + database, "DESTINATION_URL=" + destination, "LISTEN=" + address,
		// An older Spine knows these in part, and ignores the others.
		"ADMIN_LISTEN=" + address, "ADMIN_AUTH=none", "DEFAULT_SOURCE=open",
	}
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.name, err)
	}
	s := &process{program: p, url: "http://" + address, command: command, log: log.Name(), exited: make(chan struct{})}
	go func() {
		s.failure = command.Wait()
		close(s.exited)
	}()
	if err := s.awaitReady(ctx); err != nil {
		s.kill()
		return nil, err
	}
	return s, nil
}

func (p *process) awaitReady(ctx context.Context) error {
	limit := time.NewTimer(startPatience)
	defer limit.Stop()
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/readyz", nil)
		if err != nil {
			return fmt.Errorf("asking whether %s is ready: %w", p.name, err)
		}
		answer, err := http.DefaultClient.Do(r)
		if err == nil {
			_ = answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-p.exited:
			return p.ended()
		case <-limit.C:
			return fmt.Errorf("%s was not ready after %v:\n%s", p.name, startPatience, p.lastWords())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (p *process) ended() error { return fmt.Errorf("%s ended by itself:\n%s", p.name, p.lastWords()) }

// lastWords returns the end of the process's log.
func (p *process) lastWords() string {
	text, _ := os.ReadFile(p.log)
	return string(bytes.TrimSpace(text[max(0, len(text)-2000):]))
}

// stop tells the process to stop and waits until it has.
func (p *process) stop() error {
	select {
	case <-p.exited:
		return p.ended()
	default:
	}
	_ = p.command.Process.Signal(syscall.SIGTERM) // it fails only if the process is gone
	select {
	case <-p.exited:
		if p.failure != nil {
			return fmt.Errorf("%s failed at its end: %w:\n%s", p.name, p.failure, p.lastWords())
		}
		return nil
	case <-time.After(stopPatience):
		p.kill()
		return fmt.Errorf("%s had to be killed", p.name)
	}
}

// kill ends the process as a crash would.
func (p *process) kill() {
	_ = p.command.Process.Kill() // as in stop
	<-p.exited
}

func freeAddress(ctx context.Context) (string, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("looking for a free port: %w", err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String(), nil
}

// deployment is the processes of one system on one database.
type deployment struct {
	processes []*process
}

// deploy starts all processes of a layout, one after the other, because the first makes the tables.
func (l *lab) deploy(ctx context.Context, s system, how layout, database, destination string) (*deployment, error) {
	binary := l.self
	switch s.name {
	case "spine":
		binary = l.options.spine
	case baseName:
		binary = l.options.base
	}
	d := &deployment{}
	for _, program := range s.processes(how) {
		p, err := startProgram(ctx, binary, program, l.dir, database, destination)
		if err != nil {
			return nil, errors.Join(err, d.stop())
		}
		d.processes = append(d.processes, p)
	}
	return d, nil
}

// fronts returns the base URLs of the processes that ingest.
func (d *deployment) fronts() []string {
	var urls []string
	for _, p := range d.processes {
		if p.front {
			urls = append(urls, p.url)
		}
	}
	return urls
}

func (d *deployment) stop() error {
	var all error
	for _, p := range d.processes {
		all = errors.Join(all, p.stop())
	}
	return all
}

func (d *deployment) kill() {
	for _, p := range d.processes {
		p.kill()
	}
}
