package devenv

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// proxyMode is what a Proxy does with connections and bytes.
type proxyMode int

const (
	passing proxyMode = iota
	refusing
	stalling
	droppingReplies
)

// Proxy stands between a client and a server and makes the faults of a
// network. Unlike the proxies one can import, it can hold a request and deliver
// it later, when its sender has long given up: the delayed command that every
// lease must survive.
//
// Its methods may be called from any goroutine.
type Proxy struct {
	upstream string
	addr     string
	pumps    sync.WaitGroup // accept loop and links

	mu       sync.Mutex // guards all below
	changed  *sync.Cond // broadcast when mode changes or a link is cut
	mode     proxyMode
	closed   bool
	listener net.Listener // nil while refusing
	links    map[*link]struct{}
	rate     int       // of replies, in bytes a second; 0 for no limit
	sent     time.Time // when the last reply has passed at that rate
}

// link is one client's connection and its counterpart.
type link struct {
	client, server *net.TCPConn
	cut            bool // guarded by Proxy.mu
	lostReply      bool // guarded by Proxy.mu; such a link can only be cut
}

// NewProxy starts a proxy on a free loopback port.
func NewProxy(upstream string) (*Proxy, error) { return NewProxyAt("127.0.0.1", upstream) }

// NewProxyAt starts a proxy on a free port of an address of this machine.
func NewProxyAt(host, upstream string) (*Proxy, error) {
	p := &Proxy{upstream: upstream, links: make(map[*link]struct{})}
	p.changed = sync.NewCond(&p.mu)
	p.mu.Lock()
	defer p.mu.Unlock()
	const tries = 10
	var err error
	for range tries {
		var port int
		if port, err = FreePort(); err != nil {
			return nil, err
		}
		p.addr = net.JoinHostPort(host, strconv.Itoa(port))
		// Another process may have taken the port since it was found free.
		if err = p.listen(); !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Addr returns the host and port that clients connect to.
func (p *Proxy) Addr() string { return p.addr }

// URL returns a server's URL with the proxy in the server's place.
func (p *Proxy) URL(server string) (string, error) {
	u, err := url.Parse(server)
	if err != nil {
		return "", fmt.Errorf("parse server URL: %w", withoutURL(err))
	}
	u.Host = p.addr
	return u.String(), nil
}

// Refuse cuts all connections and refuses new ones: a server that is down.
func (p *Proxy) Refuse() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.turn(refusing)
}

// Stall accepts connections and holds every byte in both directions: a black
// hole. Held bytes continue at Resume, requests even when their sender is gone.
func (p *Proxy) Stall() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.turn(stalling)
}

// DropReplies passes requests on and throws replies away: what was asked for
// happens and the reply is lost. Resume cuts the connections that lost any.
func (p *Proxy) DropReplies() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.turn(droppingReplies)
}

// Throttle passes replies on at this many bytes a second over all connections; 0
// ends it.
func (p *Proxy) Throttle(bytesPerSecond int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate = bytesPerSecond
}

// delay waits for a reply's turn on a throttled link.
func (p *Proxy) delay(n int) {
	p.mu.Lock()
	if p.rate == 0 {
		p.mu.Unlock()
		return
	}
	now := time.Now()
	if p.sent.Before(now) {
		p.sent = now
	}
	p.sent = p.sent.Add(time.Duration(n) * time.Second / time.Duration(p.rate))
	wait := p.sent.Sub(now)
	p.mu.Unlock()
	<-time.After(wait) // short: a piece of a reply
}

// Resume ends the fault.
func (p *Proxy) Resume() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.turn(passing)
}

// Cut resets all connections and drops what they hold; new ones are served as
// the current fault has it.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutLinks(func(*link) bool { return true })
}

// Close cuts all connections and stops the proxy.
func (p *Proxy) Close() error {
	p.mu.Lock()
	err := p.turn(refusing)
	p.closed = true
	p.mu.Unlock()
	p.pumps.Wait()
	return err
}

// turn changes the mode; the caller holds mu.
func (p *Proxy) turn(mode proxyMode) error {
	if p.closed {
		return nil
	}
	var err error
	switch {
	case mode == refusing && p.listener != nil:
		err = p.listener.Close()
		p.listener = nil
	case mode != refusing && p.listener == nil:
		err = p.listen()
	}
	p.mode = mode
	p.cutLinks(func(l *link) bool { return mode == refusing || mode == passing && l.lostReply })
	p.changed.Broadcast()
	return err
}

// listen starts to accept; the caller holds mu.
func (p *Proxy) listen() error {
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		return fmt.Errorf("listen for the proxy: %w", err)
	}
	p.listener = l
	p.pumps.Go(func() { p.accept(l) })
	return nil
}

// cutLinks resets the chosen links; the caller holds mu.
func (p *Proxy) cutLinks(chosen func(*link) bool) {
	for l := range p.links {
		if chosen(l) {
			l.cut = true
			for _, conn := range []*net.TCPConn{l.client, l.server} {
				_ = conn.SetLinger(0) // a reset, not an orderly end
				_ = conn.Close()
			}
		}
	}
	p.changed.Broadcast()
}

func (p *Proxy) accept(l net.Listener) {
	for {
		client, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			p.pumps.Go(func() { p.serve(client.(*net.TCPConn)) })
		}
	}
}

func (p *Proxy) serve(client *net.TCPConn) {
	server, err := net.Dial("tcp", p.upstream)
	if err != nil { // as dead as it is, so are we
		_ = client.Close()
		return
	}
	l := &link{client: client, server: server.(*net.TCPConn)}
	p.mu.Lock()
	p.links[l] = struct{}{}
	if p.listener == nil { // accepted just before the door closed
		p.cutLinks(func(other *link) bool { return other == l })
	}
	p.mu.Unlock()

	var both sync.WaitGroup
	both.Go(func() { p.pump(l, l.server, l.client, false) })
	both.Go(func() { p.pump(l, l.client, l.server, true) })
	both.Wait()
	_ = client.Close()
	_ = server.Close()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// pump copies one direction until its source ends, then passes the end on. A
// client that left does not end it: the server's replies are read and lost.
func (p *Proxy) pump(l *link, to, from *net.TCPConn, replies bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && p.gate(l, replies) {
			if replies {
				p.delay(n)
			}
			_, _ = to.Write(buf[:n])
		}
		if err != nil {
			p.gate(l, replies) // the end waits its turn like any byte
			_ = to.CloseWrite()
			return
		}
	}
}

// gate waits out a stall and reports whether bytes may pass.
func (p *Proxy) gate(l *link, reply bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.mode == stalling && !l.cut {
		p.changed.Wait()
	}
	if reply && p.mode == droppingReplies {
		l.lostReply = true
		return false
	}
	return !l.cut
}
