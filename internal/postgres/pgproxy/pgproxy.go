// Package pgproxy stands between a client and PostgreSQL, and breaks the connection at a chosen
// message. Tests use it to see what happens when a statement never arrives, when its answer is
// lost, or when a connection hangs.
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
// It reads the frames of the protocol's messages and decodes only what names a statement. It
// declines TLS.
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

// Action says what the proxy does with a message, and with its connection.
type Action int

const (
	// Pass passes the message on.
	Pass Action = iota
	// CutBefore closes both sides instead of passing the message on.
	CutBefore
	// CutAfter passes the message on, and then closes both sides.
	CutAfter
	// DropAnswer passes a client's message on, but nothing more of the server's. When the server
	// has answered ReadyForQuery, and so has certainly executed the statement, the proxy closes
	// both sides. For a server's message, the proxy drops it and everything after it.
	DropAnswer
	// StallHere passes neither the message nor anything after it, in either direction. Both sides
	// stay open until Resume, which passes on what waited, or until Close.
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
	// Type is the protocol's type byte. Clients send 'P' for Parse, 'B' for Bind, 'E' for Execute,
	// 'S' for Sync, 'Q' for Query. Servers send 'C' for CommandComplete, 'Z' for ReadyForQuery, 'E'
	// for ErrorResponse.
	Type byte
	// SQL is the statement that a client's message is about. Sync has that of the message before. A
	// server's message has the SQL of the message that it answers.
	SQL string
	// Tag is the tag of CommandComplete, such as "INSERT 0 1".
	Tag string
}

// Rule says what to do with a message. The proxy calls rules one at a time.
type Rule func(m Message) Action

// Proxy passes connections on to one server. Its methods may be called at any time, also by rules;
// only Close may not be called by a rule.
type Proxy struct {
	address         *url.URL
	network, server string // where upstream is, for net.Dial
	listener        net.Listener
	ctx             context.Context // ends with Close
	cancel          context.CancelFunc
	running         sync.WaitGroup
	delay           atomic.Int64
	rules           atomic.Pointer[[]Rule]
	asking          sync.Mutex // held while rules are called

	mutex    sync.Mutex // guards all below, and what connections say of it
	conns    map[*conn]struct{}
	lastID   int64
	refusing bool
	stalled  chan struct{} // nil, or closed by Resume
}

// New listens on 127.0.0.1 and passes every connection on to the server of the connection URL
// upstream. Close ends it.
func New(upstream string) (*Proxy, error) {
	config, err := pgconn.ParseConfig(upstream)
	if err != nil {
		return nil, fmt.Errorf("the server of the proxy: %w", err)
	}
	address, err := url.Parse(upstream)
	if err != nil || address.Scheme == "" {
		return nil, errors.New("the proxy needs its server as a URL")
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

// URL returns upstream with the host and port of the proxy.
func (p *Proxy) URL() string { return p.address.String() }

// Close closes the listener and every connection, and waits until they have ended.
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

// Cut resets every open connection, and returns how many there were.
func (p *Proxy) Cut() int {
	conns := p.take(-1)
	for _, c := range conns {
		c.end(reset, reset)
	}
	return len(conns)
}

// CutOne resets one connection, chosen at random. It returns false if there is none.
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

// Stall keeps every connection open, and new ones too, but passes nothing on in either direction
// until Resume.
func (p *Proxy) Stall() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.stalled == nil {
		p.stalled = make(chan struct{})
	}
}

// Refuse resets every connection, and each new one at once, until Resume.
func (p *Proxy) Refuse() {
	p.mutex.Lock()
	p.refusing = true
	p.mutex.Unlock()
	p.Cut()
}

// Resume ends Stall, Refuse and StallHere. What waited goes on.
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

// Delay makes everything that a client sends wait for d before the proxy passes it on. 0 ends that.
func (p *Proxy) Delay(d time.Duration) { p.delay.Store(int64(d)) }

// OnMessage adds a rule. The proxy asks every rule about every message of every connection, and the
// first answer other than Pass counts.
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

// Connections returns how many connections are open.
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

// closing says how to close a side of a connection.
type closing bool

const (
	// gently sends first what was written.
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

// conn is one connection: two sides, and what the proxy knows of the messages that passed between
// them.
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
	asked    int    // number of ReadyForQuery that the server owes in all
	ready    int    // number that it has sent
	dropping int    // 0, or the number of the ReadyForQuery that ends a DropAnswer
}

// asked is a message of the client that waits for an answer.
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

// wait waits while the connection is stalled. It returns false if the connection ended.
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

// pump passes on the data of one side.
type pump struct {
	*conn
	from, to net.Conn
	client   bool // from is the client
	starting bool // the message that begins a connection is still to come
}

// firstRead is the first size of the buffer, in bytes. It grows for longer messages.
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
		// A stall also hides that the other end is gone.
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

// pass passes on the whole messages in data, together as far as the rules allow, and returns their
// length. ok is false if the connection ended.
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
		// Read the rules now: a message that waited in a stall may come after Forget.
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

// declined is the type that frame returns for a request for encryption.
const declined = 2

// Codes that stand in place of a protocol version.
const (
	codeCancel = 80877102
	codeTLS    = 80877103
	codeGSS    = 80877104
)

// frame finds the first message in data. size is 0 if data holds only part of it.
func (p *pump) frame(data []byte) (kind byte, body []byte, size int) {
	// A length counts itself, but not the type byte before it.
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

// passage says whether the proxy passes on what the server sends.
type passage int

const (
	passing  passage = iota
	withheld         // it does not
	finished         // it does not, and this was the last message
)

// follow records a message, and completes m.
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
		c.dropping = c.asked + 1 // the answer to the Sync that is still to come
	}
	return withheld
}

// question records a client's message.
func (c *conn) question(m *Message, body []byte) {
	awaited := true
	switch m.Type {
	case 'Q':
		c.last, _ = cutString(body)
	case 'P':
		name, rest := cutString(body)
		c.last, _ = cutString(rest)
		c.prepared[name] = c.last
	case 'B':
		portal, rest := cutString(body)
		name, _ := cutString(rest)
		c.last = c.prepared[name]
		c.portals[portal] = c.last
	case 'E':
		portal, _ := cutString(body)
		c.last = c.portals[portal]
	case 'D', 'C':
		if len(body) > 0 {
			names := c.portals
			if body[0] == 'S' {
				names = c.prepared
			}
			name, _ := cutString(body[1:])
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

// owesReady reports whether the server answers such a message with ReadyForQuery.
func owesReady(kind byte) bool {
	return kind == 'S' || kind == 'Q' || kind == 'F' || kind == Startup
}

// answer records a server's message.
func (c *conn) answer(m *Message, body []byte) {
	if m.Type == 'C' {
		m.Tag, _ = cutString(body)
	}
	if m.Type == 'Z' {
		c.ready++
		// After an error the server skips everything up to the Sync.
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
	var last bool // the answer ends with this message
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

// cutString splits off a string that ends with a zero byte.
func cutString(body []byte) (string, []byte) {
	for i, b := range body {
		if b == 0 {
			return string(body[:i]), body[i+1:]
		}
	}
	return string(body), nil
}
