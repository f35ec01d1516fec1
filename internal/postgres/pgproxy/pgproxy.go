// Package pgproxy stands between a client and PostgreSQL, and breaks the
// connection at a chosen message: for tests of what happens when a statement
// never arrives, when its answer is lost, or when nothing moves any more.
//
//	proxy, err := pgproxy.New(databases.New(t))
//	…
//	proxy.OnMessage(func(m pgproxy.Message) pgproxy.Action {
//		if m.FromClient && m.Type == 'E' && strings.Contains(m.SQL, "insert") {
//			return pgproxy.DropAnswer
//		}
//		return pgproxy.Pass
//	})
//	pool, err := pgxpool.New(ctx, proxy.URL())
//
// It reads the frames of the protocol's messages and decodes only what names
// a statement. TLS is declined.
package pgproxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Action is what becomes of a message, and of its connection.
type Action int

const (
	// Pass passes the message on.
	Pass Action = iota
	// CutBefore closes both sides instead of passing the message on.
	CutBefore
	// CutAfter passes the message on, and closes both sides then.
	CutAfter
	// DropAnswer passes a client's message on, but nothing of the server's any
	// more. When the server has answered ReadyForQuery, and so has certainly
	// done the statement, both sides are closed. A server's message is dropped
	// with all that follow it.
	DropAnswer
	// StallHere passes neither the message nor anything after it, in either
	// direction. Both sides stay open until Resume, which passes on what
	// waited, or Close.
	StallHere
)

// Types of the two messages that have no type byte.
const (
	Startup       byte = 0
	CancelRequest byte = 1
)

// Message is one message of a connection.
type Message struct {
	// Conn tells the connections of a proxy apart.
	Conn       int64
	FromClient bool
	// Type is the protocol's type byte, such as 'P' for Parse, 'B' for Bind,
	// 'E' for Execute, 'S' for Sync, 'Q' for Query, and of the server 'C' for
	// CommandComplete, 'Z' for ReadyForQuery, 'E' for ErrorResponse.
	Type byte
	// SQL is the statement that a client's message is about; Sync is about that
	// of the message before. A server's message has the SQL of the message that
	// it answers.
	SQL string
	// Tag is that of CommandComplete, such as "INSERT 0 1".
	Tag string
}

// Rule says what becomes of a message. Rules are called one at a time.
type Rule func(m Message) Action

// Proxy passes connections on to one server. Its methods may be called at any
// time, by rules as well except for Close.
type Proxy struct {
	address         *url.URL
	network, server string // of upstream, for net.Dial
	listener        net.Listener
	ctx             context.Context // ends with Close
	cancel          context.CancelFunc
	running         sync.WaitGroup
	delay           atomic.Int64
	rules           atomic.Pointer[[]Rule]
	asking          sync.Mutex // is held while rules are called

	mutex    sync.Mutex // guards all below, and what connections say of it
	conns    map[*conn]struct{}
	lastID   int64
	refusing bool
	stalled  chan struct{} // nil, or closed by Resume
}

// New listens on 127.0.0.1 and passes every connection on to the server of
// the connection URL upstream. Close ends it.
func New(upstream string) (*Proxy, error) {
	config, err := pgconn.ParseConfig(upstream)
	if err != nil {
		return nil, fmt.Errorf("the server of the proxy: %w", err)
	}
	address, err := url.Parse(upstream)
	if err != nil || address.Scheme == "" {
		return nil, errors.New("the server of the proxy must be given as a URL")
	}
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	address.Host = listener.Addr().String()
	query := address.Query()
	for _, name := range []string{"host", "port", "hostaddr"} {
		query.Del(name)
	}
	query.Set("sslmode", "disable")
	address.RawQuery = query.Encode()

	p := &Proxy{address: address, listener: listener, conns: map[*conn]struct{}{}}
	p.network, p.server = pgconn.NetworkAddress(config.Host, config.Port)
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.rules.Store(new([]Rule))
	p.running.Go(p.accept)
	return p, nil
}

// URL is upstream with the host and port of the proxy.
func (p *Proxy) URL() string { return p.address.String() }

// Close closes the listener and every connection, and waits for their ends.
func (p *Proxy) Close() error {
	p.cancel()
	err := p.listener.Close()
	p.Cut()
	p.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Cut resets every connection that there is, and returns how many.
func (p *Proxy) Cut() int {
	conns := p.take(-1)
	for _, c := range conns {
		c.end(reset, reset)
	}
	return len(conns)
}

// CutOne resets one connection, chosen at random, if there is one.
func (p *Proxy) CutOne() bool {
	conns := p.take(1)
	for _, c := range conns {
		c.end(reset, reset)
	}
	return len(conns) > 0
}

// take removes n connections, or all if n is negative.
func (p *Proxy) take(n int) []*conn {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	conns := make([]*conn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	if n >= 0 && len(conns) > n {
		rand.Shuffle(len(conns), func(i, j int) { conns[i], conns[j] = conns[j], conns[i] }) //nolint:gosec // no secret
		conns = conns[:n]
	}
	for _, c := range conns {
		delete(p.conns, c)
	}
	return conns
}

// Stall keeps every connection open, and new ones too, but passes nothing on
// in either direction until Resume.
func (p *Proxy) Stall() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.stalled == nil {
		p.stalled = make(chan struct{})
	}
}

// Refuse resets every connection, and new ones at once, until Resume.
func (p *Proxy) Refuse() {
	p.mutex.Lock()
	p.refusing = true
	p.mutex.Unlock()
	p.Cut()
}

// Resume ends Stall, Refuse and what StallHere began. What waited goes on.
func (p *Proxy) Resume() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.refusing = false
	if p.stalled != nil {
		close(p.stalled)
		p.stalled = nil
	}
	for c := range p.conns {
		if c.stalled != nil {
			close(c.stalled)
			c.stalled = nil
		}
	}
}

// Delay has whatever is read from a client wait for d before it is passed on;
// 0 ends that.
func (p *Proxy) Delay(d time.Duration) { p.delay.Store(int64(d)) }

// OnMessage adds a rule. Every rule is asked about every message of every
// connection, and the first answer other than Pass counts.
func (p *Proxy) OnMessage(rule Rule) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	rules := append([]Rule{}, *p.rules.Load()...)
	rules = append(rules, rule)
	p.rules.Store(&rules)
}

// Forget removes all rules.
func (p *Proxy) Forget() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.rules.Store(new([]Rule))
}

// Connections is how many there are.
func (p *Proxy) Connections() int {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return len(p.conns)
}

func (p *Proxy) ask(rules []Rule, m Message) Action {
	p.asking.Lock()
	defer p.asking.Unlock()
	action := Pass
	for _, rule := range rules {
		if a := rule(m); action == Pass {
			action = a
		}
	}
	return action
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			if p.ctx.Err() != nil {
				return
			}
			continue
		}
		c := &conn{
			proxy: p, client: client, done: make(chan struct{}),
			prepared: map[string]string{}, portals: map[string]string{},
		}
		p.mutex.Lock()
		// Close cancels before it looks for connections.
		welcome := !p.refusing && p.ctx.Err() == nil
		if welcome {
			p.lastID++
			c.id = p.lastID
			p.conns[c] = struct{}{}
		}
		p.mutex.Unlock()
		if !welcome {
			c.end(reset, reset)
			continue
		}
		p.running.Go(c.run)
	}
}

// closing is how a side of a connection is closed.
type closing bool

const (
	// gently sends what was written first.
	gently closing = false
	// reset sends RST.
	reset closing = true
)

func (how closing) close(side net.Conn) {
	if tcp, ok := side.(*net.TCPConn); ok && how == reset {
		_ = tcp.SetLinger(0)
	}
	_ = side.Close()
}

// conn is one connection: two sides, and what is known of the messages that
// passed between them.
type conn struct {
	proxy   *Proxy
	id      int64
	client  net.Conn
	done    chan struct{} // closed by end
	stalled chan struct{} // guarded by the proxy's mutex: nil, or closed by Resume

	mutex    sync.Mutex // guards all below
	server   net.Conn   // nil until dialled
	ended    bool
	prepared map[string]string // SQL of prepared statements
	portals  map[string]string
	last     string // SQL of the last message of the client
	waiting  []asked
	answered string // SQL of the last message answered
	asked    int    // how many ReadyForQuery the server owes in all
	ready    int    // and how many it has sent
	dropping int    // 0, or the number of the ReadyForQuery that ends a DropAnswer
}

// asked is a message of the client that awaits an answer.
type asked struct {
	kind byte
	sql  string
}

// end closes both sides, once.
func (c *conn) end(client, server closing) {
	c.mutex.Lock()
	if c.ended {
		c.mutex.Unlock()
		return
	}
	c.ended = true
	upstream := c.server
	c.mutex.Unlock()
	close(c.done)
	client.close(c.client)
	if upstream != nil {
		server.close(upstream)
	}
	c.proxy.mutex.Lock()
	delete(c.proxy.conns, c)
	c.proxy.mutex.Unlock()
}

func (c *conn) run() {
	defer c.end(reset, reset)
	if !c.wait() {
		return
	}
	var dialer net.Dialer
	server, err := dialer.DialContext(c.proxy.ctx, c.proxy.network, c.proxy.server)
	if err != nil {
		return
	}
	c.mutex.Lock()
	c.server = server
	ended := c.ended
	c.mutex.Unlock()
	if ended {
		reset.close(server)
		return
	}
	c.proxy.running.Go(func() {
		(&pump{conn: c, from: server, to: c.client}).run()
	})
	(&pump{conn: c, from: c.client, to: server, client: true, starting: true}).run()
}

// wait waits while the connection is stalled. It is false of one that ended.
func (c *conn) wait() bool {
	for {
		c.proxy.mutex.Lock()
		stalled := c.proxy.stalled
		if stalled == nil {
			stalled = c.stalled
		}
		c.proxy.mutex.Unlock()
		if stalled == nil {
			break
		}
		select {
		case <-stalled:
		case <-c.done:
			return false
		}
	}
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

func (c *conn) stall() {
	c.proxy.mutex.Lock()
	defer c.proxy.mutex.Unlock()
	if c.stalled == nil {
		c.stalled = make(chan struct{})
	}
}

// pump passes on what one side sends.
type pump struct {
	*conn
	from, to net.Conn
	client   bool // from is the client
	starting bool // the message that begins a connection has not been seen
}

// firstRead is room for many small messages; longer ones get more.
const firstRead = 64 << 10

func (p *pump) run() {
	defer p.end(gently, gently)
	buffer, filled := make([]byte, firstRead), 0
	for {
		n, err := p.from.Read(buffer[filled:])
		filled += n
		if d := p.proxy.delay.Load(); d > 0 && p.client && n > 0 {
			select {
			case <-time.After(time.Duration(d)):
			case <-p.done:
			}
		}
		// That the other end is gone does not pass through a stall either.
		if !p.wait() {
			return
		}
		used, ok := p.pass(buffer[:filled])
		if !ok || err != nil {
			return
		}
		copy(buffer, buffer[used:filled])
		filled -= used
		if filled == len(buffer) {
			buffer = append(buffer, make([]byte, len(buffer))...)
		}
	}
}

// pass passes the whole messages in data on, together as far as the rules
// allow, and returns their length. It is false of a connection that ended.
func (p *pump) pass(data []byte) (used int, ok bool) {
	sent := 0
	flush := func(until int) bool {
		if until > sent {
			if _, err := p.to.Write(data[sent:until]); err != nil {
				return false
			}
		}
		sent = until
		return true
	}
	for {
		kind, body, size := p.frame(data[used:])
		if size == 0 {
			return used, flush(used)
		}
		begin, end := used, used+size
		used = end
		if kind == declined {
			sent = end
			if _, err := p.from.Write([]byte{'N'}); err != nil {
				return used, false
			}
			continue
		}
		m := Message{Conn: p.id, FromClient: p.client, Type: kind}
		through := p.follow(&m, body)
		// As they are by now: what waited in a stall may come after Forget.
		if rules := *p.proxy.rules.Load(); through == passing && len(rules) > 0 {
			action := p.proxy.ask(rules, m)
			switch action {
			case Pass:
			case CutBefore:
				flush(begin)
				p.end(reset, reset)
				return used, false
			case CutAfter:
				// A reset could overtake the message.
				flush(end)
				if p.client {
					p.end(reset, gently)
				} else {
					p.end(gently, reset)
				}
				return used, false
			case DropAnswer:
				through = p.drop(m)
			case StallHere:
				if !flush(begin) {
					return used, false
				}
				p.stall()
				if !p.wait() {
					return used, false
				}
			}
		}
		if p.client || through == passing {
			continue
		}
		if !flush(begin) || through == finished {
			p.end(reset, reset)
			return used, false
		}
		sent = end
	}
}

// declined is the type that frame gives to a request for encryption.
const declined = 2

// Codes that stand in place of a protocol version.
const (
	codeCancel = 80877102
	codeTLS    = 80877103
	codeGSS    = 80877104
)

// frame finds the first message in data. Its size is 0 if it is not all there.
func (p *pump) frame(data []byte) (kind byte, body []byte, size int) {
	// A length counts itself, but no type byte, which comes before it.
	header, before := 5, 1
	if p.starting {
		header, before = 8, 0
	}
	if len(data) < header {
		return 0, nil, 0
	}
	size = before + max(int(binary.BigEndian.Uint32(data[before:])), header-before)
	if size > len(data) {
		return 0, nil, 0
	}
	if !p.starting {
		return data[0], data[5:size], size
	}
	switch binary.BigEndian.Uint32(data[4:]) {
	case codeTLS, codeGSS:
		return declined, nil, size
	case codeCancel:
		kind = CancelRequest
	default:
		kind = Startup
	}
	p.starting = false
	return kind, data[8:size], size
}

// Whether what the server sends is passed on.
type passage int

const (
	passing  passage = iota
	withheld         // it is not
	finished         // it is not, and this was the last of it
)

// follow keeps account of a message, and completes m.
func (c *conn) follow(m *Message, body []byte) passage {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if m.FromClient {
		c.question(m, body)
		return passing
	}
	c.answer(m, body)
	switch {
	case c.dropping == 0:
		return passing
	case m.Type == 'Z' && c.ready >= c.dropping:
		return finished
	default:
		return withheld
	}
}

// drop begins a DropAnswer at m.
func (c *conn) drop(m Message) passage {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	switch {
	case !m.FromClient:
		c.dropping = c.ready + 1
		if m.Type == 'Z' {
			return finished
		}
	case owesReady(m.Type):
		c.dropping = c.asked
	default:
		c.dropping = c.asked + 1 // by the Sync that is to come
	}
	return withheld
}

// question keeps account of a client's message.
func (c *conn) question(m *Message, body []byte) {
	awaited := true
	switch m.Type {
	case 'Q':
		c.last, _ = text(body)
	case 'P':
		name, rest := text(body)
		c.last, _ = text(rest)
		c.prepared[name] = c.last
	case 'B':
		portal, rest := text(body)
		name, _ := text(rest)
		c.last = c.prepared[name]
		c.portals[portal] = c.last
	case 'E':
		portal, _ := text(body)
		c.last = c.portals[portal]
	case 'D', 'C':
		if len(body) > 0 {
			names := c.portals
			if body[0] == 'S' {
				names = c.prepared
			}
			name, _ := text(body[1:])
			c.last = names[name]
			if m.Type == 'C' {
				delete(names, name)
			}
		}
	case 'S', 'F', Startup:
	default:
		awaited = false
	}
	m.SQL = c.last
	if !awaited {
		return
	}
	c.waiting = append(c.waiting, asked{m.Type, m.SQL})
	if owesReady(m.Type) {
		c.asked++
	}
}

// owesReady is true of the client's messages that ReadyForQuery answers.
func owesReady(kind byte) bool {
	return kind == 'S' || kind == 'Q' || kind == 'F' || kind == Startup
}

// answer keeps account of a server's message.
func (c *conn) answer(m *Message, body []byte) {
	if m.Type == 'C' {
		m.Tag, _ = text(body)
	}
	if m.Type == 'Z' {
		c.ready++
		// After an error the server skips all up to the Sync.
		for len(c.waiting) > 0 {
			first := c.waiting[0]
			c.waiting = c.waiting[1:]
			c.answered = first.sql
			if owesReady(first.kind) {
				break
			}
		}
		m.SQL = c.answered
		return
	}
	m.SQL = c.answered
	if len(c.waiting) == 0 {
		return
	}
	first := c.waiting[0]
	m.SQL = first.sql
	var last bool // no more of the answer comes
	switch first.kind {
	case 'P':
		last = m.Type == '1'
	case 'B':
		last = m.Type == '2'
	case 'C':
		last = m.Type == '3'
	case 'D':
		last = m.Type == 'T' || m.Type == 'n'
	case 'E':
		last = m.Type == 'C' || m.Type == 'I' || m.Type == 's'
	}
	if last {
		c.answered = first.sql
		c.waiting = c.waiting[1:]
	}
}

// text splits a string off, which a zero byte ends.
func text(body []byte) (string, []byte) {
	for i, b := range body {
		if b == 0 {
			return string(body[:i]), body[i+1:]
		}
	}
	return string(body), nil
}
