package backend

// A stream is a TCP conversation on the loop: a host socket that never blocks, and a gVisor endpoint. Bytes pass
// between them without a buffer of ours: from the guest by writev of the endpoint's own views, to the guest by a read
// into views that the endpoint then owns.

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/hello"
)

// turnBytes is how much one stream may move before the others have their turn.
const turnBytes = 1 << 20

// maxPieces is how many views one writev takes: half of IOV_MAX is 45 segments of 1448 bytes eleven times over.
const maxPieces = 512

type streamState int

const (
	streamAsking  streamState = iota // somebody is asked whether it may be
	streamDialing                    // the far side has not answered
	streamShaking                    // it has; the guest's handshake is going on
	streamOpen
	streamLeaving // both sides have ended; the guest has not taken everything yet
	streamClosed
)

const (
	// longRoundTrip tells such guests: below it the half of tcpBuffer is well over 1 Gbit/s, and on the same machine a
	// handshake seldom takes as long, behind a full queue at MTU 1500. One that does has only more room.
	longRoundTrip = 10 * time.Millisecond
)

type stream struct {
	l     *loop
	flow  *flows.Flow
	state streamState
	began time.Time

	// Of the dial:
	id   stack.TransportEndpointID
	syn  *stack.PacketBuffer
	dial *dial
	elem *list.Element      // in the loop's dialing or saying
	stop context.CancelFunc // of the asking

	fd      int
	index   int32 // in the loop's watched
	in, out bool  // the host socket may have bytes, may take bytes
	hup     bool  // its peer sends no more
	broken  bool  // it has an error

	ep    tcpip.Endpoint
	wq    *waiter.Queue
	entry waiter.Entry
	rings bool // entry is registered
	mem   *held

	first *firstBytes // of the guest, held until they are judged and written; else nil

	upDone, downDone bool
	toGuest, toHost  *atomic.Int64 // a port forward's own counters, or nil
	over             func(error)   // told how a port forward's stream ended, or nil
	queued           atomic.Bool   // on the loop's ready or woken list
	held             bool          // on the loop's held list
	crumbs           bool          // on the loop's crumbs list
}

// openStream begins a conversation whose SYN was let in. It takes a reference on pkt. It runs on the loop.
func (l *loop) openStream(id stack.TransportEndpointID, pkt *stack.PacketBuffer, q flows.Query) (*flows.Flow, flows.Verdict) {
	p, n := l.p, l.p.net
	s := &stream{l: l, id: id, fd: -1, index: -1}
	f, v := n.admit(p, q, func(r flows.Reason) { l.post(func() { s.abort(r) }) })
	if f == nil {
		return nil, v
	}
	s.flow = f
	s.syn = pkt.IncRef()
	s.dial = &dial{accept: s.accepted, fail: func() { l.post(func() { s.abort(flows.ReasonTimeout) }) }}
	p.tcp.hold(id, s.dial)
	if v.Pending == nil {
		s.connect()
		return f, v
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(p.ctx)
	l.asking[s] = struct{}{}
	p.goes("ask", func() {
		v := p.settle(ctx, f, v)
		l.post(func() { s.answered(v) })
	})
	return f, v
}

// answered lets a conversation go on about which somebody was asked, or refuses it.
func (s *stream) answered(v flows.Verdict) {
	if s.state != streamAsking {
		return
	}
	delete(s.l.asking, s)
	if v.Allow {
		s.connect()
		return
	}
	s.l.p.tcp.release(s.id) // before the guest hears of it: it may come again at once
	s.l.p.tcp.refuse(s.syn, s.id, v)
	s.abort(v.Reason)
}

// connect goes to the far side.
func (s *stream) connect() {
	l := s.l
	s.state, s.began = streamDialing, time.Now()
	to := l.p.net.translate(s.flow.Dst)
	fd, err := l.hosts.Connect(egress.TCPNetwork(to.Addr()), to)
	if err == nil {
		err = s.watch(fd)
	}
	s.elem = l.dialing.PushBack(s) // expire sets the timer, in this turn
	if err != nil {
		s.failed(err)
	}
}

// carry moves the bytes of a conversation that the host opened: guest is its end in the stack, fd the host's socket,
// which it takes over. over is told how it ended. Nobody else may touch guest from then on, since bytes are written
// from where they lie in it: stop ends the conversation. Anybody may call both. nil says that the loop has ended.
func (l *loop) carry(fd int, guest *tcpConn, f *flows.Flow, toGuest, toHost *atomic.Int64, over func(error)) (stop func(flows.Reason)) {
	s := &stream{l: l, flow: f, state: streamShaking, fd: -1, index: -1, ep: guest.ep, wq: guest.wq, mem: guest.mem,
		toGuest: toGuest, toHost: toHost, over: over}
	if !l.post(func() {
		if err := s.watch(fd); err != nil {
			s.state = streamOpen
			s.abort(flows.ReasonExhausted)
			return
		}
		s.start()
	}) {
		unix.Close(fd)
		return nil
	}
	return func(r flows.Reason) { l.post(func() { s.abort(r) }) }
}

// watch has the loop wait for the host socket, which the stream takes over.
func (s *stream) watch(fd int) (err error) {
	s.fd = fd
	// Urgent data stay where they are in the stream (RFC 6093 §6): reading would stop at them.
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	s.index, err = s.l.watch(fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET, s.event)
	return err
}

// event is told what the host socket is ready for.
func (s *stream) event(events uint32) {
	if events == watchedEnds {
		s.abort(flows.ReasonGuestGone)
		return
	}
	if s.state == streamDialing {
		if events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) == 0 {
			return
		}
		if errno, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
			if err == nil {
				err = os.NewSyscallError("connect", syscall.Errno(errno))
			}
			s.failed(err)
			return
		}
		s.connected()
	}
	s.in = s.in || events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLERR|unix.EPOLLHUP) != 0
	s.out = s.out || events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) != 0
	s.hup = s.hup || events&(unix.EPOLLRDHUP|unix.EPOLLHUP) != 0
	s.broken = s.broken || events&unix.EPOLLERR != 0
	if s.state == streamOpen && !s.queued.Swap(true) {
		s.l.ready = append(s.l.ready, s)
	}
}

// connected lets the guest's handshake go on: the forwarder runs it on a goroutine, which ends in accepted or abort.
func (s *stream) connected() {
	s.state = streamShaking
	s.undial()
	if !s.l.p.tcp.shake(s.id, s.dial, s.syn) {
		s.l.p.tcp.release(s.id)
		s.abort(flows.ReasonReset)
	}
	s.dropSYN()
}

func (s *stream) undial() {
	if s.elem != nil {
		s.l.dialing.Remove(s.elem)
		s.elem = nil
	}
}

func (s *stream) dropSYN() {
	if s.syn != nil {
		s.syn.DecRef()
		s.syn = nil
	}
}

// failed answers the guest for a far side that could not be reached.
func (s *stream) failed(err error) {
	p := s.l.p
	p.tcp.release(s.id)
	k := egress.Classify(err)
	if k == egress.Exhausted {
		p.net.complain("no sockets left for guests' conversations", err)
	}
	p.tcp.answer(s.syn, s.id, k)
	s.abort(reasonOf(k))
}

// accepted takes the guest's side over. It runs on the forwarder's goroutine.
func (s *stream) accepted(c *tcpConn) {
	s.wq, s.ep = c.wq, c.ep
	if !s.l.post(s.start) {
		s.ep.Abort()
		s.ep.Close()
	}
}

// start begins to move bytes.
func (s *stream) start() {
	if s.state != streamShaking {
		s.ep.Abort()
		s.ep.Close()
		return
	}
	s.state = streamOpen
	s.flow.SetState(flows.Open)
	if s.dial != nil && s.flow.Verdict().Inspect != nil { // nil: the host opened it
		s.first = &firstBytes{}
	}
	s.entry = waiter.NewFunctionEntry(waiter.EventIn|waiter.EventOut|waiter.EventErr|waiter.EventHUp|waiter.EventRdHUp, s.ring)
	s.wq.EventRegister(&s.entry)
	s.rings = true
	if s.mem == nil {
		s.mem = s.l.p.buffers.join(s.ep, bufferFor(s.ep), s.flow)
	} else {
		s.mem.wants(bufferFor(s.ep))
	}
	s.mem.hosts(s.hostBuffers)
	s.in = true
	if !s.queued.Swap(true) {
		s.l.ready = append(s.l.ready, s)
	}
}

// hostBuffers bounds what the kernel holds for the host socket; 0 leaves it to the kernel again.
func (s *stream) hostBuffers(n int) {
	if s.fd < 0 {
		return
	}
	if n == 0 {
		unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0) // since Linux 5.14; before, it stays small
		return
	}
	unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, n)
	unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, n)
}

// bufferFor is how much a conversation may hold each way, by the round trip that its handshake took.
func bufferFor(ep tcpip.Endpoint) int {
	var info tcpip.TCPInfoOption
	if err := ep.GetSockOpt(&info); err == nil && info.RTT >= longRoundTrip {
		return longBuffer
	}
	return tcpBuffer
}

// ring says that the guest's side changed. It runs on the stack's goroutines, under locks of theirs.
func (s *stream) ring(waiter.EventMask) {
	if s.queued.Swap(true) {
		return
	}
	l := s.l
	l.mu.Lock()
	l.woken = append(l.woken, s)
	l.mu.Unlock()
	l.wake()
}

// move carries what can be carried both ways, and ends what is over.
func (s *stream) move() {
	s.queued.Store(false)
	if s.state == streamLeaving {
		s.leave()
		return
	}
	if s.state != streamOpen {
		return
	}
	again := false
	if !s.upDone {
		more, err := s.moveUp()
		if err != nil {
			s.abort(flows.ReasonReset)
			return
		}
		again = more
	}
	if !s.downDone && s.in {
		more, err := s.moveDown()
		if err != nil {
			s.abort(flows.ReasonReset)
			return
		}
		again = again || more
	}
	if s.upDone && s.downDone {
		s.finish()
		return
	}
	if s.cutOff() {
		s.abort(flows.ReasonReset)
		return
	}
	if again && !s.queued.Swap(true) {
		s.l.ready = append(s.l.ready, s)
	}
}

// cutOff says whether a side has broken off where nothing would be read that tells so: it had ended its half before, or
// the far side takes nothing.
func (s *stream) cutOff() bool {
	if s.downDone && s.broken {
		return true
	}
	if s.out && !s.upDone {
		return false // moveUp reads on
	}
	st := tcp.EndpointState(s.ep.State())
	return st == tcp.StateError || st == tcp.StateClose && !s.downDone // the latter after a FIN, where ours was to come
}

// moveUp carries bytes from the guest. It reports whether there may be more at once.
func (s *stream) moveUp() (more bool, err error) {
	if s.first != nil {
		if err := s.moveFirst(); err != nil || s.first != nil {
			return false, err
		}
	}
	for moved := 0; moved < turnBytes; {
		if !s.out {
			return false, nil
		}
		pieces := &s.l.pieces
		pieces.vec, pieces.size = pieces.vec[:0], 0
		_, terr := s.ep.Read(pieces, tcpip.ReadOptions{Peek: true})
		if pieces.size == 0 {
			switch terr.(type) {
			case nil, *tcpip.ErrWouldBlock:
				return false, nil
			case *tcpip.ErrClosedForReceive:
				s.upDone = true
				s.flow.SetState(flows.Closing)
				unix.Shutdown(s.fd, unix.SHUT_WR) // its error is the next read's to tell
				return false, nil
			}
			return false, stackError{terr}
		}
		n, _, e := unix.RawSyscall(unix.SYS_WRITEV, uintptr(s.fd), uintptr(unsafe.Pointer(&pieces.vec[0])), uintptr(len(pieces.vec)))
		switch e {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			s.out = false
			return false, nil
		default:
			return false, e
		}
		s.ep.Read(&discard{int(n)}, tcpip.ReadOptions{})
		s.flow.Up.Add(int(n))
		s.flow.Touch()
		if s.toHost != nil {
			s.toHost.Add(int64(n))
		}
		moved += int(n)
		if int(n) < pieces.size {
			s.out = false
			return false, nil
		}
	}
	return true, nil
}

// moveFirst takes the guest's first bytes until they can be judged, and then lets go of them: first is nil once the host
// socket has them.
func (s *stream) moveFirst() error {
	x := s.first
	for !x.judged {
		if s.l.scratch == nil {
			s.l.scratch = make([]byte, hello.Most)
		}
		w := into{s.l.scratch[:x.room()], 0}
		_, terr := s.ep.Read(&w, tcpip.ReadOptions{})
		over := false
		switch terr.(type) {
		case nil, *tcpip.ErrWouldBlock:
			over = len(x.b) > 0 && time.Since(x.since) >= helloTime
		case *tcpip.ErrClosedForReceive:
			over = true
		default:
			return stackError{terr}
		}
		if len(x.b) == 0 && w.n > 0 {
			s.elem = s.l.saying.PushBack(s)
		}
		over = !s.l.p.tcp.add(x, w.b[:w.n]) || over
		h, more := x.says(over)
		if more {
			if w.n > 0 {
				continue
			}
			return nil
		}
		s.unsay()
		if !s.l.p.heard(s.flow, h) {
			s.abort(flows.ReasonHello)
			return errRefused
		}
		x.judged = true
	}
	for len(x.b) > 0 {
		if !s.out {
			return nil
		}
		n, err := unix.Write(s.fd, x.b)
		switch err {
		case nil:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			s.out = false
			return nil
		default:
			return err
		}
		s.flow.Up.Add(n)
		s.flow.Touch()
		x.b = x.b[n:]
	}
	s.l.p.tcp.free(x)
	s.first = nil
	return nil
}

// unsay stops waiting for the rest of the first bytes.
func (s *stream) unsay() {
	if s.first != nil && s.elem != nil {
		s.l.saying.Remove(s.elem)
		s.elem = nil
	}
}

// into takes bytes off the endpoint, as many as there is room for.
type into struct {
	b []byte
	n int
}

func (w *into) Write(b []byte) (int, error) {
	n := copy(w.b[w.n:], b)
	w.n += n
	if n < len(b) {
		return n, errEnough
	}
	return n, nil
}

// moveDown carries bytes to the guest. It reports whether there may be more at once.
func (s *stream) moveDown() (more bool, err error) {
	l := s.l
	for moved := 0; moved < turnBytes; {
		if l.p.queue.long() {
			if !s.held {
				s.held = true
				l.held = append(l.held, s)
			}
			return false, nil
		}
		var n int32
		if _, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(s.fd), unix.TIOCINQ, uintptr(unsafe.Pointer(&n))); e != 0 {
			return false, e
		}
		if s.crumbs {
			if n < crumbBelow && !s.hup && !s.broken {
				return false, nil // until more has come, or the time
			}
			s.crumbs = false
		}
		if n == 0 {
			if s.broken {
				errno, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
				if err == nil && errno != 0 {
					err = syscall.Errno(errno)
				}
				s.broken = false
				if err != nil {
					return false, err
				}
			}
			if !s.hup {
				s.in = false
				return false, nil
			}
			// A FIN and a reset both look like the end; only a read tells which.
			var b [1]byte
			switch m, _, err := unix.Recvfrom(s.fd, b[:], unix.MSG_PEEK); {
			case m == 0 && err == nil:
				s.downDone = true
				s.flow.SetState(flows.Closing)
				s.ep.Shutdown(tcpip.ShutdownWrite)
				return false, nil
			case err == unix.EAGAIN:
				s.in = false
				return false, nil
			case err != nil:
				return false, err
			default:
				n = 1 // behind a mark of urgent data, which TIOCINQ counts up to
			}
		}
		w, terr := s.ep.Write(&hostBytes{fd: s.fd, left: min(int(n), turnBytes-moved)}, tcpip.WriteOptions{Atomic: true})
		if terr != nil {
			if _, full := terr.(*tcpip.ErrWouldBlock); full {
				return false, nil // the endpoint rings when it has room
			}
			return false, stackError{terr}
		}
		s.flow.Down.Add(int(w))
		s.flow.Touch()
		if s.toGuest != nil {
			s.toGuest.Add(w)
		}
		moved += int(w)
		l.p.buffers.grew(int(w))
		if s.mem.crumb(int(w)) {
			l.pauseCrumbs(s)
			return false, nil
		}
		if int(w) == int(n) && !s.hup && !s.broken { // that was all; what comes after it is told anew
			s.in = false
			return false, nil
		}
	}
	return true, nil
}

// finish closes both sides, which have both ended. What the guest has not taken yet it still gets; until then the
// conversation counts as one, else a guest that takes nothing could have any number of them.
func (s *stream) finish() {
	s.state = streamLeaving
	s.l.leaving[s] = struct{}{}
	s.dropHost()
	s.ep.Close()
	s.leave()
}

// leave ends the conversation once the guest has everything. The endpoint rings when it comes to that.
func (s *stream) leave() {
	switch tcp.EndpointState(s.ep.State()) {
	case tcp.StateFinWait1, tcp.StateClosing, tcp.StateLastAck:
		return
	case tcp.StateError:
		s.abort(flows.ReasonReset)
		return
	}
	s.state = streamClosed
	s.unhook()
	s.flow.End(flows.ReasonClosed)
	if s.over != nil {
		s.over(nil)
	}
}

// abort ends both sides with a reset.
func (s *stream) abort(r flows.Reason) {
	if s.state == streamClosed {
		return
	}
	was := s.state
	s.state = streamClosed
	if s.fd >= 0 && was > streamDialing {
		unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	switch was {
	case streamAsking:
		delete(s.l.asking, s)
		s.l.p.tcp.release(s.id)
	case streamDialing:
		s.undial()
		s.l.p.tcp.release(s.id)
	case streamShaking:
		if s.dial != nil { // else the host opened it
			s.l.p.tcp.giveUp(s.id, s.dial)
		}
	}
	s.dropSYN()
	s.unhook()
	if was == streamOpen || was == streamLeaving {
		s.ep.Abort()
		s.ep.Close()
	}
	s.flow.End(r)
	if s.stop != nil {
		s.stop() // now that why is known
	}
	if s.over != nil {
		s.over(fmt.Errorf("conversation ended: %s", r))
	}
}

// dropHost closes the host socket.
func (s *stream) dropHost() {
	if s.index >= 0 {
		s.l.forget(s.index)
		s.index = -1
	}
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// unhook lets go of the host socket and of the endpoint's events.
func (s *stream) unhook() {
	s.dropHost()
	s.unsay()
	s.l.p.tcp.free(s.first)
	s.first = nil
	delete(s.l.leaving, s)
	if s.rings {
		s.wq.EventUnregister(&s.entry)
		s.rings = false
		s.mem.leave()
	}
}

// pieces collects where the endpoint's bytes lie.
type pieces struct {
	vec  []unix.Iovec
	size int
}

var errEnough = errors.New("enough")

func (p *pieces) Write(b []byte) (int, error) {
	if len(p.vec) == maxPieces || p.size >= turnBytes {
		return 0, errEnough
	}
	if len(b) > 0 {
		v := unix.Iovec{Base: unsafe.SliceData(b)}
		v.SetLen(len(b))
		p.vec = append(p.vec, v)
		p.size += len(b)
	}
	return len(b), nil
}

// discard takes n bytes off the endpoint.
type discard struct{ n int }

func (d *discard) Write(b []byte) (int, error) {
	if d.n == 0 {
		return 0, errEnough
	}
	n := min(d.n, len(b))
	d.n -= n
	if n < len(b) {
		return n, errEnough
	}
	return n, nil
}

// hostBytes is what a host socket is known to hold. It must give exactly Len bytes: gVisor loses what it has read if
// the last read fails.
type hostBytes struct {
	fd, left int
}

func (h *hostBytes) Len() int { return h.left }

func (h *hostBytes) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if len(b) > h.left {
		b = b[:h.left]
	}
	for {
		n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(h.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch {
		case e == unix.EINTR:
			continue
		case e != 0:
			return 0, e
		case n == 0:
			return 0, io.ErrUnexpectedEOF
		}
		h.left -= int(n)
		return int(n), nil
	}
}

// takeDescriptor returns a descriptor of c's own socket for the loop, which does not block.
func takeDescriptor(c net.Conn) (fd int, ok bool) {
	sc, is := c.(syscall.Conn)
	if !is {
		return -1, false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return -1, false
	}
	fd = -1
	rc.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, fd >= 0 && err == nil
}
