package portforward

import (
	"container/list"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	// udpQueue is how many datagrams wait for a guest being dialled or slow:
	// a first flight (a QUIC handshake, a file's first window), no more.
	udpQueue = 16
	// udpErrors is how many errors in a row, each for a datagram of the
	// client's to a closed port, a conversation outlives before it starts
	// anew: a conn that fails for ever must not spin.
	udpErrors = 64
)

// datagramSocket is the host end of a UDP rule's port.
type datagramSocket struct {
	*net.UDPConn
	raw  syscall.RawConn
	port uint16 // the guest's
	// wild: bound to 0.0.0.0 or ::, so that each datagram's own destination
	// has to be asked for, and set as the answer's source.
	wild bool
	v6   bool
}

func (s *datagramSocket) close() { s.UDPConn.Close() }

// watchDst asks the system for each datagram's destination.
func (s *datagramSocket) watchDst() error {
	if s.v6 {
		return ipv6.NewPacketConn(s.UDPConn).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	}
	return ipv4.NewPacketConn(s.UDPConn).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
}

// localEnd is the host address a client wrote to; the zero value where the
// socket is bound to one.
type localEnd struct {
	addr netip.Addr
	ifi  int // of a link-local address
}

func (s *datagramSocket) parseDst(oob []byte) localEnd {
	var (
		dst net.IP
		ifi int
	)
	if s.v6 {
		var cm ipv6.ControlMessage
		if cm.Parse(oob) != nil {
			return localEnd{}
		}
		dst, ifi = cm.Dst, cm.IfIndex
	} else {
		var cm ipv4.ControlMessage
		if cm.Parse(oob) != nil {
			return localEnd{}
		}
		dst, ifi = cm.Dst, cm.IfIndex
	}
	a, ok := netip.AddrFromSlice(dst)
	if a = a.Unmap(); !ok || a.IsMulticast() {
		return localEnd{} // nothing can be sent from there
	}
	if !a.IsLinkLocalUnicast() {
		ifi = 0 // the answer may take another way out
	}
	return localEnd{a, ifi}
}

// source is the control message that makes a datagram leave from l.
func (s *datagramSocket) source(l localEnd) []byte {
	switch {
	case !l.addr.IsValid():
		return nil
	case s.v6:
		return (&ipv6.ControlMessage{Src: l.addr.AsSlice(), IfIndex: l.ifi}).Marshal()
	}
	return (&ipv4.ControlMessage{Src: l.addr.AsSlice(), IfIndex: l.ifi}).Marshal()
}

// serve receives until the socket is closed.
func (s *datagramSocket) serve(e *entry) {
	buf := largePool.Get().(*[largeBuf]byte)
	defer largePool.Put(buf)
	oob := make([]byte, 128) // one in6_pktinfo with its header is 40
	pause := firstPause
	for {
		n, oobn, _, client, err := s.ReadMsgUDPAddrPort(buf[:], oob)
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
		key := sessionKey{sock: s, client: client}
		if s.wild {
			key.local = s.parseDst(oob[:oobn])
		}
		e.udp.receive(e, key, buf[:n])
	}
}

type sessionKey struct {
	sock   *datagramSocket
	client netip.AddrPort
	local  localEnd
}

// Prompt is what a guest's UDP conn may be beside: one whose Write never waits.
// Its conversations need nobody who reads, and their clients' datagrams are
// written by whoever received them.
type Prompt interface {
	// Receive has what Read would return given to f instead, from then on,
	// on any goroutine: datagrams, which are borrowed for the call, and
	// refusals. The last call is the conn's end, net.ErrClosed. f does not
	// wait. False: the conn cannot, and Read goes on.
	Receive(f func(p []byte, err error)) bool
}

// sessions are the UDP conversations of a rule, over all its ports.
type sessions struct {
	max int

	mu    sync.Mutex
	byKey map[sessionKey]*session
	lru   list.List // of *session, the last used in front
	over  bool      // the rule has gone
}

// session is the conversation with one client address. One goroutine dials and
// sees to the end. Where the guest's conn is not Prompt it writes to it as
// well, and another reads from it.
type session struct {
	key    sessionKey
	queue  chan datagram
	ctx    context.Context
	cancel context.CancelFunc
	source []byte   // control message of the answers
	to     sockaddr // the client
	failed atomic.Int32

	// guarded by sessions.mu
	elem  *list.Element // nil once ended
	used  time.Time
	guest net.Conn
	// open: guest is Prompt and has all that was queued, so the next goes
	// straight to it.
	open bool
}

// datagram is a pooled copy of one.
type datagram struct {
	small *[smallBuf]byte
	large *[largeBuf]byte
	n     int
}

func copyDatagram(p []byte) datagram {
	d := datagram{n: len(p)}
	if len(p) <= smallBuf {
		d.small = smallPool.Get().(*[smallBuf]byte)
		copy(d.small[:], p)
	} else {
		d.large = largePool.Get().(*[largeBuf]byte)
		copy(d.large[:], p)
	}
	return d
}

func (d datagram) bytes() []byte {
	if d.small != nil {
		return d.small[:d.n]
	}
	return d.large[:d.n]
}

func (d datagram) free() {
	if d.small != nil {
		smallPool.Put(d.small)
	} else {
		largePool.Put(d.large)
	}
}

func newSessions(limit int) *sessions {
	return &sessions{max: limit, byKey: make(map[sessionKey]*session)}
}

// receive hands a client's datagram to its conversation, which it opens if
// need be.
func (ss *sessions) receive(e *entry, key sessionKey, p []byte) {
	ss.mu.Lock()
	s := ss.byKey[key]
	if s == nil {
		if s = ss.open(e, key); s == nil {
			ss.mu.Unlock()
			return
		}
	}
	ss.touch(s)
	if s.open {
		ss.mu.Unlock()
		s.write(e, p)
		return
	}
	d := copyDatagram(p)
	select {
	case s.queue <- d: // under the lock, so that none comes behind open
	default:
		d.free()
		e.count(ReasonQueue)
	}
	ss.mu.Unlock()
}

// write sends the guest a datagram, and reports whether there may be more.
func (s *session) write(e *entry, p []byte) bool {
	n, err := s.guest.Write(p)
	if isRefused(err) {
		// What the guest said to the datagram before: this one has not been
		// sent.
		e.count(ReasonUnreachable)
		n, err = s.guest.Write(p)
	}
	e.toGuest.Add(int64(n))
	if err == nil || s.ctx.Err() != nil {
		return true
	}
	e.count(ReasonSend)
	e.note(err)
	return !errors.Is(err, net.ErrClosed)
}

// open starts a conversation, in place of the least recently used one where
// the rule or the table has no room. Called with mu held.
func (ss *sessions) open(e *entry, key sessionKey) *session {
	if ss.over {
		return nil
	}
	e.accepted.Add(1)
	if len(ss.byKey) >= ss.max {
		ss.end(e, ss.lru.Back().Value.(*session), ReasonEvicted)
	}
	reason, ok := e.admit()
	if !ok && reason == ReasonActive && ss.lru.Len() > 0 {
		ss.end(e, ss.lru.Back().Value.(*session), ReasonEvicted)
		reason, ok = e.admit()
	}
	if !ok {
		e.refuse(reason, nil)
		return nil
	}
	s := &session{key: key, queue: make(chan datagram, udpQueue), source: key.sock.source(key.local)}
	s.to = sockaddrOf(key.client)
	s.ctx, s.cancel = context.WithCancel(e.t.ctx)
	s.elem = ss.lru.PushFront(s)
	ss.byKey[key] = s
	e.t.wg.Add(1)
	go ss.converse(e, s)
	return s
}

// touch makes s the last used. Called with mu held.
func (ss *sessions) touch(s *session) {
	s.used = time.Now()
	if s.elem != nil {
		ss.lru.MoveToFront(s.elem)
	}
}

// end takes a conversation out of the table and stops its goroutines. reason
// is "" for an end in the ordinary way. Called with mu held.
func (ss *sessions) end(e *entry, s *session, reason Reason) {
	if s.elem == nil {
		return
	}
	ss.lru.Remove(s.elem)
	s.elem = nil
	delete(ss.byKey, s.key)
	s.cancel()
	if s.guest != nil {
		s.guest.Close() // unblocks both goroutines
	}
	e.release()
	if reason != "" {
		e.count(reason)
	}
}

func (ss *sessions) finish(e *entry, s *session) {
	ss.mu.Lock()
	ss.end(e, s, "")
	ss.mu.Unlock()
}

// endAll ends every conversation and lets no new one begin.
func (ss *sessions) endAll(e *entry) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.over = true
	for _, s := range ss.byKey {
		ss.end(e, s, ReasonCut)
	}
}

// expire ends the conversations not used since.
func (ss *sessions) expire(e *entry, since time.Time) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for back := ss.lru.Back(); back != nil && back.Value.(*session).used.Before(since); back = ss.lru.Back() {
		ss.end(e, back.Value.(*session), "")
	}
}

// converse dials the guest and writes the client's datagrams to it.
func (ss *sessions) converse(e *entry, s *session) {
	t := e.t
	defer t.wg.Done()
	defer s.drop()
	defer ss.finish(e, s)
	dialled := sync.OnceFunc(func() { e.pending.Add(-1) })
	defer e.guard("datagrams", dialled)

	ctx, cancel := context.WithTimeout(s.ctx, t.cfg.DialTimeout)
	guest, err := t.cfg.Guest.DialGuest(ctx, "udp", e.rule.Guest, s.key.sock.port, shownAs(e.rule.Source, s.key.client), e.text)
	cancel()
	dialled()
	if err == nil && guest == nil {
		err = errors.New("DialGuest returned neither a connection nor an error")
	}
	if err != nil {
		if s.ctx.Err() == nil { // else ended meanwhile, and counted then
			e.refuse(whyDial(err), err)
		}
		return
	}
	defer guest.Close()
	ss.mu.Lock()
	ended := s.elem == nil
	s.guest = guest
	ss.mu.Unlock()
	if ended {
		return
	}
	e.saw(Present)
	if over, ok := ss.receiveFrom(e, s, guest); ok {
		ss.catchUp(e, s)
		select {
		case <-s.ctx.Done():
		case <-over:
		}
		return
	}
	t.wg.Add(1)
	go ss.answer(e, s, guest)

	for {
		select {
		case <-s.ctx.Done():
			return
		case d := <-s.queue:
			more := s.write(e, d.bytes())
			d.free()
			if !more {
				return
			}
		}
	}
}

// receiveFrom has the guest's datagrams sent to the client as they come, if
// that can be. over is closed when no more can come.
func (ss *sessions) receiveFrom(e *entry, s *session, guest net.Conn) (over chan struct{}, ok bool) {
	g, ok := guest.(Prompt)
	if !ok || !sendsNow {
		return nil, false
	}
	over = make(chan struct{})
	end := sync.OnceFunc(func() { close(over) })
	return over, g.Receive(func(p []byte, err error) {
		if s.ctx.Err() != nil {
			return // and whoever ended it may hold ss.mu
		}
		switch {
		case isRefused(err):
			e.count(ReasonUnreachable)
			if s.failed.Add(1) > udpErrors {
				end()
			}
			return
		case err != nil:
			e.note(err)
			end()
			return
		}
		s.failed.Store(0)
		ss.mu.Lock()
		ss.touch(s)
		ss.mu.Unlock()
		err = s.key.sock.sendNow(p, s.source, s.to)
		if s.source != nil && errors.Is(err, syscall.EINVAL) {
			err = s.key.sock.sendNow(p, nil, s.to) // as in send
		}
		switch {
		case err == nil:
			e.toClient.Add(int64(len(p)))
		case errors.Is(err, net.ErrClosed):
			end()
		default:
			e.count(ReasonSend)
			e.note(err)
		}
	})
}

// catchUp writes what came while the guest was dialled, and opens the session
// to what follows.
func (ss *sessions) catchUp(e *entry, s *session) {
	for {
		ss.mu.Lock()
		select {
		case d := <-s.queue:
			ss.mu.Unlock()
			s.write(e, d.bytes())
			d.free()
			continue
		default:
			s.open = true
		}
		ss.mu.Unlock()
		return
	}
}

// drop frees the datagrams that came too late.
func (s *session) drop() {
	for {
		select {
		case d := <-s.queue:
			d.free()
		default:
			return
		}
	}
}

// answer sends the guest's datagrams to the client, from the address the
// client wrote to.
func (ss *sessions) answer(e *entry, s *session, guest net.Conn) {
	defer e.t.wg.Done()
	defer ss.finish(e, s)
	defer e.guard("datagrams", func() {})
	buf := largePool.Get().(*[largeBuf]byte)
	defer largePool.Put(buf)
	for failed := 0; ; {
		n, err := guest.Read(buf[:])
		switch {
		case s.ctx.Err() != nil:
			return
		case isRefused(err) && failed < udpErrors:
			failed++
			e.count(ReasonUnreachable)
			continue
		case err != nil:
			e.note(err)
			return
		}
		failed = 0
		ss.mu.Lock()
		ss.touch(s)
		ss.mu.Unlock()
		if err := s.send(buf[:n]); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			e.count(ReasonSend)
			e.note(err)
			continue
		}
		e.toClient.Add(int64(n))
	}
}

func (s *session) send(p []byte) error {
	_, _, err := s.key.sock.WriteMsgUDPAddrPort(p, s.source, s.key.client)
	if s.source != nil && errors.Is(err, syscall.EINVAL) {
		// Not an address to send from: the client wrote to a broadcast
		// address. Any of ours is then the right one.
		_, _, err = s.key.sock.WriteMsgUDPAddrPort(p, nil, s.key.client)
	}
	return err
}
