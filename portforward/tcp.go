package portforward

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// streamSocket is a listening TCP or unix socket and the guest port behind it.
type streamSocket struct {
	net.Listener
	port    uint16 // the guest's
	cleanup func() // removes the socket file; nil for TCP
}

func (s *streamSocket) close() {
	s.Listener.Close()
	if s.cleanup != nil {
		s.cleanup()
	}
}

// Accept errors: a first pause short enough that a burst which ran out of
// descriptors goes on at once, doubled up to one that costs nothing however
// long it lasts. (net/http's numbers.)
const (
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
)

// serve accepts until the socket is closed. No other error ends it: a host out
// of descriptors or memory has them again some time.
func (s *streamSocket) serve(e *entry) {
	pause := firstPause
	for {
		c, err := s.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			e.acceptFailed(err, pause)
			select {
			case <-time.After(pause):
			case <-e.ctx.Done():
			}
			pause = min(pause*2, lastPause)
			continue
		}
		pause = firstPause
		e.backoffUntil.Store(0)
		e.accepted.Add(1)
		reason, ok := e.admit()
		if !ok {
			e.refuse(reason, nil)
			abort(c)
			continue
		}
		v, ctx := e.t.newConv(e, c) // here, so that who waits for this loop can cut it
		e.t.wg.Add(1)
		go v.converse(ctx, c, s.port)
	}
}

func (e *entry) acceptFailed(err error, pause time.Duration) {
	e.note(err)
	// The next try follows the pause; with as much again, List does not
	// flicker between the tries.
	now := time.Now()
	was := e.backoffUntil.Swap(now.Add(2*pause + lastPause/4).UnixNano())
	if e.acceptErrors.Add(1); was < now.UnixNano() {
		e.t.log.Warn("port forward: accept fails, backing off", "rule", e.text, "err", err)
	}
}

// conv is one TCP conversation, from its accept to its end.
type conv struct {
	e *entry

	mu     sync.Mutex
	host   net.Conn           // nil once the guest's conn carries it
	cancel context.CancelFunc // of the dial; nil once that is over
	guest  net.Conn           // nil while dialling
	cut    bool
	gone   bool // the client has reset, seen by one sweep
}

// newConv returns a conversation and the context of its dial.
func (t *Table) newConv(e *entry, host net.Conn) (*conv, context.Context) {
	c := &conv{e: e, host: host}
	ctx, cancel := context.WithTimeout(t.ctx, t.cfg.DialTimeout)
	c.cancel = cancel
	t.convMu.Lock()
	t.convs[c] = struct{}{}
	t.convMu.Unlock()
	return c, ctx
}

// forget frees the conversation's place in the table.
func (t *Table) forget(c *conv) {
	c.e.release()
	t.convMu.Lock()
	delete(t.convs, c)
	if len(t.convs) == 0 && t.drain != nil {
		close(t.drain)
		t.drain = nil
	}
	t.convMu.Unlock()
}

// converse is the life of a TCP conversation, or its beginning where the
// guest's conn carries it from there.
func (c *conv) converse(ctx context.Context, host net.Conn, port uint16) {
	e, t := c.e, c.e.t
	var once sync.Once
	over := func(err error) { once.Do(func() { c.over(err) }) }
	dialled := sync.OnceFunc(func() { e.pending.Add(-1) })
	defer e.guard("conversation", func() {
		dialled()
		c.mu.Lock()
		guest := c.guest
		c.mu.Unlock()
		if guest != nil {
			abort(guest)
		}
		abort(host)
		over(syscall.ECONNRESET)
	})
	var client netip.AddrPort
	if a, ok := host.RemoteAddr().(*net.TCPAddr); ok {
		client = a.AddrPort()
	}
	guest, err := t.cfg.Guest.DialGuest(ctx, "tcp", e.rule.Guest, port, shownAs(e.rule.Source, client), e.text)
	if err == nil && guest == nil {
		err = errors.New("DialGuest returned neither a connection nor an error")
	}
	dialled()
	c.mu.Lock()
	cut, gone := c.cut, c.gone
	c.guest = guest
	c.cancel() // nothing of the dial is to live as long as the conversation
	c.cancel = nil
	c.mu.Unlock()
	if cut || gone || err != nil {
		reason := whyDial(err)
		if cut {
			reason = ReasonCut
		} else if gone {
			reason = ReasonGone
		}
		e.refuse(reason, err)
		if guest != nil {
			abort(guest)
		}
		abort(host)
		over(nil)
		return
	}
	e.saw(Present)
	if g, ok := guest.(Carrier); ok && g.Carry(host, &e.toGuest, &e.toClient, over) {
		c.mu.Lock()
		c.host = nil
		c.mu.Unlock()
		return
	}
	over(relay(host, guest, &e.toGuest, &e.toClient))
}

// over is what remains to be done for a conversation that has ended.
func (c *conv) over(err error) {
	e, t := c.e, c.e.t
	if b := (*Bug)(nil); errors.As(err, &b) {
		e.met("relay", b.Value, b.Stack)
	}
	if err != nil {
		c.mu.Lock()
		cut := c.cut
		c.mu.Unlock()
		if cut {
			e.count(ReasonCut)
		} else {
			e.count(ReasonReset)
		}
	}
	t.forget(c)
	t.wg.Done()
}

// end resets both sides, or gives up the dial.
func (c *conv) end() {
	c.mu.Lock()
	guest, host := c.guest, c.host
	if c.cancel != nil {
		c.cancel()
	}
	c.mu.Unlock()
	if guest == nil {
		return // converse sees to the host side after a given-up dial
	}
	abort(guest)
	if host != nil {
		abort(host)
	}
}

// cutConvs ends the conversations of a rule, or all for nil.
func (t *Table) cutConvs(e *entry) {
	for _, c := range t.conversations() {
		if e == nil || c.e == e {
			c.mu.Lock()
			c.cut = true
			c.mu.Unlock()
			c.end()
		}
	}
}

func (t *Table) conversations() []*conv {
	t.convMu.Lock()
	defer t.convMu.Unlock()
	list := make([]*conv, 0, len(t.convs))
	for c := range t.convs {
		list = append(list, c)
	}
	return list
}

// sweepConvs ends conversations whose client has reset unnoticed: while the
// guest is being dialled, or takes nothing so that nobody reads on. One sweep
// notes it, the next acts, so that the relay normally comes first and passes
// on in order what came before the reset.
func (t *Table) sweepConvs() {
	for _, c := range t.conversations() {
		c.mu.Lock()
		host := c.host
		c.mu.Unlock()
		if host == nil || !hasReset(host) {
			continue
		}
		c.mu.Lock()
		again := c.gone
		c.gone = true
		c.mu.Unlock()
		if again {
			c.end()
		}
	}
}
