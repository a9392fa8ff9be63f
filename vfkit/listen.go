package vfkit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmnetd/vmnetd/backend/link"
)

const (
	// peersMost is how many guests one socket may have: more than any machine runs, and what strangers can make of a
	// socket that they can reach is bounded with it.
	peersMost = 1024
	// New guests come that fast at most, peersBurst of them at once: each is a network stack, which strangers' datagrams
	// from ever other addresses are not to make by the thousand.
	peersRate  = 32
	peersBurst = 128

	// sweepTime is how often those are looked for that have gone without a word.
	sweepTime = 10 * time.Second
	// Where there is nothing to look at, as with UDP, a guest is taken for gone that has said nothing for an hour: its
	// idle conversations are older than any that keeps alive. It only comes back as another: what it says next makes it
	// a guest again.
	silentMost = time.Hour
	// Its MAC from another port is the same VM started again if the one before has been silent for as long as no VM needs
	// less to start. Two that are there with one MAC do not take it from each other by turns.
	restartLeast = time.Second
	// When there is no place for a new guest, who has said nothing for a minute gives way, or who has never said more
	// than a word or two, for ten seconds: a guest that boots asks for its lease again and again.
	silentFull  = time.Minute
	silentWords = 10 * time.Second
	fewWords    = 3

	// inMost is how many bytes of a guest wait for it to be served before its frames are dropped: one read of the socket
	// may bring half of it if they are libkrun's segments of 64 KiB.
	inMost = 4 << 20
	// inKeep is how much memory a guest keeps for that whose last inCalm reads fit in it.
	inKeep = 16 << 10
	inCalm = 64

	// refusedTime is how long after a guest's wire has failed nobody new is made of its address.
	refusedTime = time.Second
)

// Conn is a socket that is not connected: a *net.UnixConn of unixgram, or a *net.UDPConn.
type Conn interface {
	net.PacketConn
	net.Conn
}

// Listener takes guests at a socket: each address that a frame or a greeting comes from is one.
//
// What a guest does not read waits in the kernel, and on Linux counts as the sender's until it is read. So that nobody
// can fill the socket for the others, frames leave from a socket of each guest's own where the guest takes them so. One
// whose socket is connected, as vfkit's is, hears nobody but the socket that it is connected to; where Options has Again,
// it keeps that socket for itself, and those who come later find the next.
type Listener struct {
	o    Options
	addr net.Addr
	udp  bool
	come chan *peer
	done chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	mu      sync.Mutex
	sockets []*socket // the last is where new ones come
	peers   map[string]*peer
	closed  bool
	failed  error // why the last socket is over
	tokens  float64
	at      time.Time // when tokens was right
}

// Listen takes guests at c, which must not be used otherwise. Close closes it.
func Listen(c Conn, o Options) *Listener {
	_, udp := c.LocalAddr().(*net.UDPAddr)
	l := &Listener{
		o: o, addr: c.LocalAddr(), udp: udp, come: make(chan *peer, peersBurst), done: make(chan struct{}),
		peers: map[string]*peer{}, tokens: peersBurst, at: time.Now(),
	}
	l.add(c)
	l.wg.Go(l.sweep)
	return l
}

// Accept waits for the next guest. peer tells it from others, as in " from 127.0.0.1:4000".
func (l *Listener) Accept() (guest link.Link, peer string, err error) {
	select {
	case p := <-l.come:
		return p.link(), " from " + p.says, nil
	case <-l.done:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return nil, "", l.failed
	}
	return nil, "", net.ErrClosed
}

// Close closes the socket, and with it the guests' wires.
func (l *Listener) Close() error {
	l.end(nil)
	l.wg.Wait()
	return nil
}

// Addr is the socket's address.
func (l *Listener) Addr() net.Addr { return l.addr }

func (l *Listener) end(err error) {
	l.once.Do(func() {
		l.mu.Lock()
		l.closed, l.failed = true, err
		var all []*peer
		for _, p := range l.peers {
			all = append(all, p)
		}
		sockets := l.sockets
		l.mu.Unlock()
		close(l.done)
		for _, p := range all {
			p.finish(net.ErrClosed)
		}
		for _, s := range sockets {
			s.c.Close()
		}
	})
}

// add has a socket read.
func (l *Listener) add(c Conn) {
	setBuffers(c)
	s := newSocket(l, c)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		c.Close()
		return
	}
	l.sockets = append(l.sockets, s)
	l.wg.Go(func() {
		err := s.read()
		l.mu.Lock()
		last := l.sockets[len(l.sockets)-1] == s
		l.mu.Unlock()
		if last {
			l.end(err)
		}
	})
}

// refuse tells of a datagram that makes no guest.
func (l *Listener) refuse(format string, args ...any) {
	if l.o.Refused != nil {
		l.o.Refused(fmt.Errorf(format, args...))
	}
}

var errUnnamed = errors.New("vfkit: a frame came from a socket without a name, which cannot be answered: a VMM must bind its own")

// deliver takes a message of two pieces from a socket's reader. name is its sender's address, as the system has it.
func (s *socket) deliver(name, a, b []byte) {
	l := s.l
	size := len(a) + len(b)
	if len(name) == 0 {
		if l.o.Refused != nil {
			l.o.Refused(errUnnamed)
		}
		return
	}
	greets := size == len(greeting) && string(a) == greeting
	frame := size >= minFrame && size <= link.MaxFrame
	l.mu.Lock()
	p := l.peers[string(name)]
	if p != nil && p.tx == nil && time.Since(p.refused) >= refusedTime {
		delete(l.peers, string(name))
		p = nil
	}
	if p != nil && greets && p.heard.Load() > 0 { // it greets once, when it starts
		l.mu.Unlock()
		p.finish(io.EOF)
		l.mu.Lock()
		p = l.peers[string(name)]
	}
	if p == nil {
		if !frame && !greets {
			l.mu.Unlock()
			return
		}
		if p = l.admit(s, name); p == nil { // unlocks
			return
		}
	} else {
		l.mu.Unlock()
	}
	if frame {
		if p.heard.Load() == 0 {
			l.replaced(p, [6]byte(a[6:12]), s.now)
		}
		p.push(a, b, s.now)
	} else if !greets {
		p.malformed()
	}
}

// replaced ends those who had the MAC of p's first frame and are gone: the VM was started again, and its VMM has another
// address. now is when the frame came.
func (l *Listener) replaced(p *peer, mac [6]byte, now int64) {
	var before []*peer
	l.mu.Lock()
	p.mac = mac
	if mac[0]&1 == 0 { // a station's
		for _, q := range l.peers {
			if q != p && q.mac == mac && q.tx != nil {
				before = append(before, q)
			}
		}
	}
	l.mu.Unlock()
	for _, q := range before {
		if l.udp && now-q.spoke.Load() >= int64(restartLeast) || !q.s.there(q.name) {
			q.finish(io.EOF)
		}
	}
}

// admit makes a guest of an address, or says why not. It is called with mu held and unlocks it.
func (l *Listener) admit(s *socket, name []byte) *peer {
	now := time.Now()
	l.tokens = min(peersBurst, l.tokens+peersRate*now.Sub(l.at).Seconds())
	l.at = now
	if l.closed || l.tokens < 1 {
		closed := l.closed
		l.mu.Unlock()
		if !closed {
			l.refuse("vfkit: more new guests than %d a second, the last from %s", peersRate, describe(name))
		}
		return nil
	}
	l.tokens--
	if len(l.peers) >= peersMost && !l.makeRoom(now) {
		l.mu.Unlock()
		l.refuse("vfkit: no place for a guest from %s: %d are here", describe(name), peersMost)
		return nil
	}
	p := &peer{l: l, s: s, name: append([]byte(nil), name...), says: describe(name), done: make(chan struct{})}
	p.wake.L = &p.mu
	p.spoke.Store(now.UnixNano())
	var err error
	if p.tx, err = s.sender(p); err != nil {
		p.over, p.refused = err, now
		l.peers[string(p.name)] = p // so that it is not tried for each of its frames
		l.mu.Unlock()
		l.refuse("vfkit: a guest from %s cannot be answered: %w", p.says, err)
		return nil
	}
	l.peers[string(p.name)] = p
	again := p.tx.shares() && l.o.Again != nil && s == l.sockets[len(l.sockets)-1]
	l.mu.Unlock()
	select {
	case l.come <- p:
	default:
		p.finish(io.EOF) // nobody takes guests
		return nil
	}
	if again {
		if c, err := l.o.Again(); err != nil {
			l.refuse("vfkit: guests that come share a socket with %s: %w", p.says, err)
		} else {
			l.add(c)
		}
	}
	return p
}

// makeRoom has somebody give way who is probably not there. It is called with mu held.
func (l *Listener) makeRoom(now time.Time) bool {
	var oldest *peer
	for _, p := range l.peers {
		silent := now.Sub(time.Unix(0, p.spoke.Load()))
		if silent < silentFull && (silent < silentWords || p.heard.Load() >= fewWords) {
			continue
		}
		if oldest == nil || p.spoke.Load() < oldest.spoke.Load() {
			oldest = p
		}
	}
	if oldest == nil {
		return false
	}
	delete(l.peers, string(oldest.name))
	l.wg.Go(func() { oldest.finish(io.EOF) })
	return true
}

// sweep ends guests that have gone without a word, and sockets that have no guest any more.
func (l *Listener) sweep() {
	t := time.NewTicker(sweepTime)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			l.sweepNow(time.Now())
		case <-l.done:
			return
		}
	}
}

func (l *Listener) sweepNow(now time.Time) {
	var quiet []*peer
	var idle []*socket
	l.mu.Lock()
	used := map[*socket]bool{}
	for key, p := range l.peers {
		if p.tx == nil && now.Sub(p.refused) >= refusedTime {
			delete(l.peers, key)
			continue
		}
		used[p.s] = true
		if now.Sub(time.Unix(0, p.spoke.Load())) >= sweepTime {
			quiet = append(quiet, p)
		}
	}
	kept := l.sockets[:0:0]
	for i, s := range l.sockets {
		// Who has connected to a socket but not spoken yet does so at once.
		if i < len(l.sockets)-1 && !used[s] && now.Sub(s.since) >= sweepTime {
			idle = append(idle, s)
		} else {
			kept = append(kept, s)
		}
	}
	l.sockets = kept
	l.mu.Unlock()
	for _, s := range idle {
		s.c.Close()
	}
	for _, p := range quiet {
		silent := now.Sub(time.Unix(0, p.spoke.Load()))
		if !p.s.there(p.name) || l.udp && silent >= silentMost {
			p.finish(io.EOF)
		}
	}
}

// peer is one guest of a Listener.
type peer struct {
	l       *Listener
	s       *socket // where it is heard
	name    []byte
	says    string
	tx      sender    // nil if it cannot be answered
	refused time.Time // under Listener.mu: when it was found that it cannot be answered
	mac     [6]byte   // under Listener.mu: the source of its first frame

	spoke atomic.Int64 // when, in Unix nanoseconds
	heard atomic.Int64 // how many frames

	mu    sync.Mutex
	wake  sync.Cond // on mu
	in    []byte    // frames behind their lengths in 32 bits
	wrong int       // malformed ones
	lost  int       // that found no room
	over  error     // what reads and writes end with
	done  chan struct{}

	notify func() // under mu: wakes a reader that polls

	// Of the one reader:
	spare []byte // to be in next
	calm  int    // reads in a row that were short
}

var (
	_ link.Limited    = (*peer)(nil)
	_ link.Prefixed   = (*peer)(nil)
	_ link.Offloading = (*peer)(nil)
)

// push queues a frame. It never waits.
func (p *peer) push(a, b []byte, now int64) {
	p.spoke.Store(now)
	p.heard.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	size := len(a) + len(b)
	if p.over != nil {
		return
	}
	if len(p.in)+4+size > inMost {
		p.lost++
		return
	}
	first := len(p.in) == 0
	p.in = binary.NativeEndian.AppendUint32(p.in, uint32(size))
	p.in = append(append(p.in, a...), b...)
	if first {
		p.tell()
	}
}

// tell wakes the reader. It is called with mu held.
func (p *peer) tell() {
	p.wake.Broadcast()
	if p.notify != nil {
		p.notify()
	}
}

func (p *peer) malformed() {
	p.mu.Lock()
	p.wrong++
	p.mu.Unlock()
}

// overrun counts a frame that could not be sent.
func (p *peer) overrun() {
	p.mu.Lock()
	p.lost++
	p.mu.Unlock()
}

func (p *peer) ReadFrames(b *link.Batch) error {
	p.mu.Lock()
	for len(p.in) == 0 && p.over == nil {
		p.wake.Wait()
	}
	return p.take(b)
}

// take makes frames of what is queued. It is called with mu held, when there is something or the wire is over, and
// unlocks it.
func (p *peer) take(b *link.Batch) error {
	if len(p.in) == 0 || errors.Is(p.over, net.ErrClosed) {
		err := p.over
		p.mu.Unlock()
		return err
	}
	in := p.in
	if p.calm++; len(in) > inKeep {
		p.calm = 0
	}
	p.in = p.spare[:0]
	b.Malformed += p.wrong
	b.Overrun += p.lost
	p.wrong, p.lost = 0, 0
	p.mu.Unlock()
	for rest := in; len(rest) > 0; {
		n := int(binary.NativeEndian.Uint32(rest))
		b.Append(rest[4 : 4+n])
		b.Take(0, n)
		rest = rest[4+n:]
	}
	p.spare = in
	if p.calm >= inCalm && cap(in) > 2*inKeep { // twice: append makes a little more than it was asked for
		p.spare = nil
	}
	return nil
}

func (p *peer) WriteFrames(frames []link.Frame) (int, error) {
	n, err := p.tx.send(frames, p.done)
	return n, p.wrote(err)
}

// wrote is what an error of sending is to the wire.
func (p *peer) wrote(err error) error {
	switch {
	case err == nil, err == link.ErrWait:
		return err
	case errors.Is(err, net.ErrClosed):
		return net.ErrClosed
	case gone(err):
		p.finish(io.EOF)
		return io.EOF
	}
	err = fmt.Errorf("vfkit: write to %s: %w", p.says, err)
	p.finish(err)
	return err
}

// finish ends the wire of a guest that was admitted, and forgets the address.
func (p *peer) finish(err error) {
	p.mu.Lock()
	first := p.over == nil
	if first {
		p.over = err
		close(p.done)
		p.tell()
	}
	p.mu.Unlock()
	if !first {
		return
	}
	p.l.mu.Lock()
	if p.l.peers[string(p.name)] == p {
		delete(p.l.peers, string(p.name))
	}
	p.l.mu.Unlock()
	p.tx.close()
}

// Close ends the guest's wire. What its address sends next makes a new guest.
func (p *peer) Close() error {
	p.finish(net.ErrClosed)
	return nil
}

// MaxFrame implements link.Limited.
func (p *peer) MaxFrame() int { return p.l.o.mostOf(p.l.udp) }

// Prefix implements link.Prefixed: nothing stands before a frame.
func (p *peer) Prefix() int { return 0 }

// Offloads implements link.Offloading.
func (p *peer) Offloads() (gives, takes link.Offloads) { return p.l.o.gives(), 0 }

// sender is how frames leave for one guest.
type sender interface {
	// send sends frames, and waits until done is closed for the guest to read. It returns how many it has sent.
	send(frames []link.Frame, done <-chan struct{}) (int, error)
	// shares says that others' frames leave by the same socket.
	shares() bool
	close()
}
