package deliver

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/proxy"
)

// unreachedError says that an attempt ended before its request could be sent: there was no connection.
type unreachedError struct{ error }

func (e unreachedError) Unwrap() error { return e.error }

// proxyError says that it was the proxy that failed, and not the destination.
type proxyError struct{ error }

func (e proxyError) Unwrap() error { return e.error }

// relay is a proxy between Spine and the destination.
type relay struct {
	scheme  string      // http, https or socks5
	address string      // HOST:PORT to dial
	tls     *tls.Config // nil unless the connection to the proxy is encrypted
	auth    string      // value of Proxy-Authorization; empty without
	socks   *proxy.Auth // nil without
}

// newRelay reads the URL of a proxy.
func newRelay(u *url.URL) (*relay, error) {
	r := &relay{scheme: u.Scheme}
	ports := map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}
	if ports[u.Scheme] == "" || u.Hostname() == "" {
		return nil, errors.New("must be http://, https:// or socks5:// with a host")
	}
	if u.Scheme == "https" {
		r.tls = &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	}
	r.scheme = strings.TrimSuffix(u.Scheme, "h") // the proxy looks names up in both
	r.address = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), ports[u.Scheme]))
	if user := u.User; user != nil {
		password, _ := user.Password()
		r.auth = basicAuth(user)
		r.socks = &proxy.Auth{User: user.Username(), Password: password}
	}
	return r, nil
}

// basicAuth is the value of an Authorization header (HTTP Basic).
func basicAuth(user *url.Userinfo) string {
	password, _ := user.Password()
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password))
}

// forwards reports whether a relay reads requests of a scheme and sends requests of its own. Otherwise it passes bytes
// on.
func (r *relay) forwards(scheme string) bool { return r.scheme != "socks5" && scheme == "http" }

// dial opens a connection to the destination, through the relay where there is one. Its error is an unreachedError.
func (t *transport) dial(ctx context.Context, deadline time.Time) (*connection, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	c, err := t.connect(ctx, deadline)
	if err != nil {
		return nil, unreachedError{err}
	}
	c.opened = time.Now()
	return c, nil
}

func (t *transport) connect(ctx context.Context, deadline time.Time) (*connection, error) {
	if t.relay == nil {
		conn, err := t.dialer.DialContext(ctx, "tcp", t.address)
		if err != nil {
			return nil, err //nolint:wrapcheck // explained by Client.explain
		}
		return newConnection(conn).secure(ctx, t.tls)
	}
	c, err := t.connectRelay(ctx, deadline)
	if err != nil {
		return nil, proxyError{err}
	}
	return c.secure(ctx, t.tls)
}

// connectRelay opens a connection to the relay and, unless the relay forwards requests, has it opened to the
// destination. The relay looks up the destination's name.
func (t *transport) connectRelay(ctx context.Context, deadline time.Time) (*connection, error) {
	if t.relay.scheme == "socks5" {
		var tcp net.Conn // below what the dialer returns
		dialer, err := proxy.SOCKS5("tcp", t.relay.address, t.relay.socks, dialerFunc(
			func(ctx context.Context, network, address string) (conn net.Conn, err error) {
				conn, err = t.dialer.DialContext(ctx, network, address)
				tcp = conn
				return conn, err //nolint:wrapcheck // explained by Client.explain
			},
		))
		if err != nil {
			return nil, err //nolint:wrapcheck // explained by Client.explain
		}
		//nolint:forcetypeassert // SOCKS5 promises it in its documentation
		if _, err := dialer.(proxy.ContextDialer).DialContext(ctx, "tcp", t.address); err != nil {
			return nil, err //nolint:wrapcheck // explained by Client.explain
		}
		return newConnection(tcp), nil
	}
	conn, err := t.dialer.DialContext(ctx, "tcp", t.relay.address)
	if err != nil {
		return nil, err //nolint:wrapcheck // explained by Client.explain
	}
	c, err := newConnection(conn).secure(ctx, t.relay.tls)
	if err != nil || t.tls == nil { // it forwards plain requests
		return c, err
	}
	_ = c.SetDeadline(deadline) // fails only on a closed connection, which tunnel finds out
	release := context.AfterFunc(ctx, func() { _ = c.SetDeadline(past) })
	err = c.tunnel(t.address, t.relay.auth)
	if !release() {
		err = cmp.Or(err, context.Cause(ctx))
	}
	if err != nil {
		c.abandon()
		return nil, err
	}
	return c, nil
}

// tunnel asks a relay for a connection to address.
func (c *connection) tunnel(address, auth string) error {
	request := "CONNECT " + address + " HTTP/1.1\r\nHost: " + address + "\r\n"
	if auth != "" {
		request += "Proxy-Authorization: " + auth + "\r\n"
	}
	if _, err := io.WriteString(c, request+"\r\n"); err != nil {
		return err //nolint:wrapcheck // explained by Client.explain
	}
	c.allowed = maxAnswerHeader
	a := &c.answer
	switch err := c.readAnswer(a); {
	case err != nil:
		return err
	case a.status < 200 || a.status > 299:
		return errors.New("it answered " + statusText(a.status))
	case a.broken || c.reader.Buffered() > 0: // nothing of the destination's can be there before we speak
		return errors.New("its answer is malformed")
	}
	return nil
}

// statusText is a status in words, such as "HTTP 503 Service Unavailable".
func statusText(status int) string {
	return strings.TrimSpace("HTTP " + strconv.Itoa(status) + " " + http.StatusText(status))
}

// dialerFunc is a dialer, as package proxy wants it.
type dialerFunc func(ctx context.Context, network, address string) (net.Conn, error)

func (f dialerFunc) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return f(ctx, network, address)
}

func (f dialerFunc) Dial(network, address string) (net.Conn, error) {
	return nil, fmt.Errorf("dialling %s %s without a context", network, address)
}

func newConnection(conn net.Conn) *connection {
	c := &connection{Conn: conn, tcp: conn}
	if tcp, ok := conn.(syscall.Conn); ok {
		c.raw, _ = tcp.SyscallConn() // fails only on a closed connection
	}
	c.reader = bufio.NewReader(c)
	return c
}

// secure encrypts a connection, unless config is nil. It closes the connection where that fails.
func (c *connection) secure(ctx context.Context, config *tls.Config) (*connection, error) {
	if config == nil {
		return c, nil
	}
	encrypted := tls.Client(c.Conn, config)
	if err := encrypted.HandshakeContext(ctx); err != nil {
		c.abandon()
		return nil, err //nolint:wrapcheck // explained by Client.explain
	}
	c.Conn = encrypted
	return c, nil
}
