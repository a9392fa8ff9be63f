package backend

// The loop: on Linux one goroutine is a guest's reader, its writer and the carrier of its TCP, for as long as its
// wire lives. It waits for the guest's socket and for all host sockets of its conversations in one epoll, reads a
// batch, lets the stack's goroutines work on it, moves what became ready, and writes what came of it at once. A
// conversation so costs no goroutine and no buffer, and a segment no hand-over between threads.
//
// What the loop owns has no lock. Others reach it by post and by the queue, which wake it.

import (
	"container/list"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

const (
	// eventsAtOnce is how many descriptors one wait tells of: with more ready, the rest wait one turn.
	eventsAtOnce = 128
	// flushMost is how many bytes are written to the guest in one turn, after which its own frames are read again: other
	// guests could else keep the loop writing. Twice what is cut at once, so that batches stay whole.
	flushMost = 2 * mostAtOnce

	// spinTime is how long the loop looks for the next event before it sleeps. An answer from the same machine comes
	// within it, by way of up to four other processes, and being woken costs as much again: with half of it every other
	// answer came too late. Only small exchanges are worth it (spinBelow), and a guest that is idle costs nothing: it
	// is done once after each event.
	spinTime = 100 * time.Microsecond
	// spinBelow is how many bytes may have moved lately for the loop to spin: more is a bulk transfer, whose other ends
	// are better left the processor. What moved counts half after each pace, so that a burst of a megabyte is remembered
	// for the milliseconds that a guest takes to digest it.
	spinBelow = 16 << 10
	pace      = time.Millisecond

	// A stream of small frames is read in larger batches if the reader waits a moment, and costs half. pauseTime is
	// about what a VMM takes for a batch; pauseFrame tells small frames from large ones, which a pause only slows;
	// between pauseMin and pauseMax bytes the socket was neither idle nor already full. Frames for another guest cost so
	// little that a stream of them comes in twos and threes, more than one frame of 1500.
	pauseTime   = 50 * time.Microsecond
	pauseFrame  = 4 << 10
	pauseMin    = 8 << 10
	pauseMax    = 128 << 10
	pauseOnward = 3000 // as pauseMin, where all that was read goes to other guests
)

type loop struct {
	p     *port
	link  link.Polled
	hosts egress.Descriptors

	ep     int // epoll
	file   *os.File
	poll   syscall.RawConn // ep in Go's own poller
	wakeup int             // eventfd

	events  [eventsAtOnce]unix.EpollEvent
	watched []watched // by the events' index
	unused  []int32
	wantOut bool // the guest's socket is full

	tx     sync.Mutex // the wire's writing side: the loop's while it flushes, else whose TryLock gets it (sendNow)
	behind bool       // under tx: the wire has not taken all that was written before

	ready              []*stream            // to be moved
	held               []*stream            // not read, since the guest's queue is long
	dialing            list.List            // streams that wait for the far side, oldest first
	saying             list.List            // streams whose guest has begun to say whom it wants, likewise
	scratch            []byte               // for what a guest says first
	asking             map[*stream]struct{} // about which somebody is asked
	leaving            map[*stream]struct{}
	crumbs             []*stream   // whose far side trickles, and the guest takes nothing
	later              *time.Timer // moves them on
	deaf               bool        // the wire is left unread: the guest has sent more than its rate
	slow               bool        // and got more than that
	upTimer, downTimer *time.Timer // for when that is over
	timer              *time.Timer // wakes the loop when the first of them has waited long enough

	taken     []item // from the queue
	spare     []item // the slice before it, for the queue to fill
	at        int    // the first of taken that is not cut to frames
	flushed   int    // bytes of them in this turn
	batch     []item // of them, those that the splitter's frames were cut from
	next      int    // the first of its frames that is not written
	writing   bool   // there are such frames
	acks      ackHold
	ackTimer  *time.Timer // sends those that have waited long enough
	ackArmed  bool
	cut, pass func(*stack.PacketBuffer) // the port's, and through acks to it: bound once, not for each packet
	pieces    pieces                    // of the stream that is being moved
	datagrams oneBuffer

	moved  int       // bytes from and to the guest lately
	paceOf time.Time // when that was halved last
	pause  bool      // the next read is to wait a moment
	passed bool      // whoever answers what was read last does not answer this loop

	due   atomic.Bool // the wire has frames that its descriptor does not tell of
	again func()      // has the wire written to though there is nothing new

	asleep atomic.Bool
	mu     sync.Mutex
	posted []func() // to be run by the loop
	woken  []*stream
	over   bool
}

// watched is a descriptor in the epoll. gen tells a late event from one of the index's next owner.
type watched struct {
	gen int32
	on  func(events uint32)
}

// newLoop returns a loop for the port, or nil where its wire or the egress has no descriptors.
func newLoop(p *port) (*loop, error) {
	hosts, ok := p.net.cfg.Egress.(egress.Descriptors)
	if !ok || p.net.cfg.Plain {
		return nil, nil
	}
	pl, ok := p.link.(link.Polled)
	if !ok {
		return nil, nil
	}
	l := &loop{p: p, link: pl, hosts: hosts, ep: -1, wakeup: -1, asking: make(map[*stream]struct{}), leaving: make(map[*stream]struct{})}
	l.timer = time.AfterFunc(dialTime, func() { l.post(func() {}) }) // not wake, which says nothing to a loop that is about to sleep
	l.timer.Stop()
	l.ackTimer = time.AfterFunc(ackDelay, func() { l.post(l.acksDue) })
	l.ackTimer.Stop()
	l.later = time.AfterFunc(crumbTime, func() { l.post(l.moveCrumbs) })
	l.later.Stop()
	l.upTimer = time.AfterFunc(paceWait, func() { l.post(func() { l.rein(0) }) })
	l.upTimer.Stop()
	l.downTimer = time.AfterFunc(paceWait, func() { l.post(func() {}) }) // the loop flushes each time that it runs
	l.downTimer.Stop()
	l.again = l.writeAgain
	l.cut = p.cut
	l.pass = func(pkt *stack.PacketBuffer) { l.acks.pass(pkt, l.cut) }
	var err error
	if l.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if l.wakeup, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		l.close()
		return nil, os.NewSyscallError("eventfd", err)
	}
	if err := unix.SetNonblock(l.ep, true); err != nil { // so that os.NewFile gives it to Go's poller
		l.close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	l.file = os.NewFile(uintptr(l.ep), "epoll")
	if l.poll, err = l.file.SyscallConn(); err != nil {
		l.close()
		return nil, err
	}
	if _, err := l.watch(l.wakeup, unix.EPOLLIN|unix.EPOLLET, func(uint32) {}); err != nil {
		l.close()
		return nil, err
	}
	ok, err = pl.Poll(func(fd int) error {
		_, err := l.watch(fd, unix.EPOLLIN, func(uint32) {})
		return err
	})
	if err != nil || !ok {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *loop) close() {
	if l.wakeup >= 0 {
		unix.Close(l.wakeup)
	}
	if l.file != nil {
		l.file.Close()
	} else if l.ep >= 0 {
		unix.Close(l.ep)
	}
}

// watch adds a descriptor and returns its index.
func (l *loop) watch(fd int, events uint32, on func(uint32)) (int32, error) {
	var i int32
	if n := len(l.unused); n > 0 {
		i = l.unused[n-1]
		l.unused = l.unused[:n-1]
	} else {
		i = int32(len(l.watched))
		l.watched = append(l.watched, watched{})
	}
	w := &l.watched[i]
	w.on = on
	ev := unix.EpollEvent{Events: events, Fd: i, Pad: w.gen}
	if err := unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		l.forget(i)
		return -1, os.NewSyscallError("epoll_ctl", err)
	}
	return i, nil
}

// forget frees an index. The descriptor leaves the epoll when it is closed.
func (l *loop) forget(i int32) {
	l.watched[i].on = nil
	l.watched[i].gen++
	l.unused = append(l.unused, i)
}

// watchLink changes what the guest's socket is watched for.
func (l *loop) watchLink(out bool) {
	if l.wantOut == out {
		return
	}
	l.wantOut = out
	l.watchLinkAs()
}

func (l *loop) watchLinkAs() {
	ev := unix.EpollEvent{Fd: linkIndex}
	if !l.deaf {
		ev.Events |= unix.EPOLLIN
	}
	if l.wantOut {
		ev.Events |= unix.EPOLLOUT
	}
	l.link.Poll(func(fd int) error { return unix.EpollCtl(l.ep, unix.EPOLL_CTL_MOD, fd, &ev) })
}

// rein leaves the wire unread for as long as the guest has sent more than its rate, and listens again when it has not.
func (l *loop) rein(n int) {
	d := l.p.up.take(n)
	if deaf := d > 0; deaf != l.deaf {
		l.deaf = deaf
		l.watchLinkAs()
	}
	if d > 0 {
		l.upTimer.Reset(d)
	}
}

// slows says whether the guest has got more than its rate. Then it looks again when it has not.
func (l *loop) slows() bool {
	d := l.p.down.take(0)
	if l.slow = d > 0; l.slow {
		l.downTimer.Reset(d)
	}
	return l.slow
}

// linkIndex is the guest's socket's: the second that is watched.
const linkIndex = 1

// wake lets the loop run if it sleeps. Anybody may call it.
func (l *loop) wake() {
	if !l.asleep.CompareAndSwap(true, false) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over { // else the descriptor may be another's by now
		one := uint64(1)
		unix.RawSyscall(unix.SYS_WRITE, uintptr(l.wakeup), uintptr(unsafe.Pointer(&one)), 8)
	}
}

// post has f run by the loop, and reports false if the loop is over.
func (l *loop) post(f func()) bool {
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		return false
	}
	l.posted = append(l.posted, f)
	l.mu.Unlock()
	l.wake()
	return true
}

// run is the loop. It ends when the wire does.
func (l *loop) run() error {
	defer l.end()
	p := l.p
	var linkErr error
	l.watched[linkIndex].on = func(events uint32) {
		if events&^unix.EPOLLOUT != 0 && linkErr == nil {
			linkErr = l.readLink()
		}
	}
	for {
		n, err := l.wait()
		if err != nil {
			return err
		}
		for i := range l.events[:n] {
			ev := &l.events[i]
			if w := &l.watched[ev.Fd]; w.gen == ev.Pad && w.on != nil {
				w.on(ev.Events)
			}
		}
		if linkErr == nil && !l.deaf && l.due.Load() {
			l.due.Store(false)
			linkErr = l.readLink()
		}
		if linkErr != nil {
			return linkErr
		}
		if p.ctx.Err() != nil {
			return nil
		}
		runtime.Gosched() // the stack's goroutines take what was delivered, and put segments in the queue
		l.runPosted()
		l.moveReady()
		l.expire()
		if err := l.flush(); err != nil {
			return err
		}
		if l.acks.turn() {
			if err := l.sendACKs(); err != nil {
				return err
			}
		}
		if len(l.held) > 0 && !p.queue.long() {
			for _, s := range l.held {
				s.held = false
				if !s.queued.Swap(true) {
					l.ready = append(l.ready, s)
				}
			}
			clear(l.held)
			l.held = l.held[:0]
		}
	}
}

// wait collects events, and sleeps until there are some unless there is work without.
func (l *loop) wait() (int, error) {
	if len(l.ready) > 0 || l.flushed >= flushMost {
		return l.epollNow()
	}
	runtime.Gosched() // what the stack has still to do is cheaper done now than by being woken for it
	if n, err := l.spin(); n != 0 || err != nil {
		return n, err
	}
	if l.acks.n > 0 {
		if l.acks.many() {
			if err := l.sendACKs(); err != nil {
				return 0, err
			}
		} else if !l.ackArmed {
			l.ackArmed = true
			l.ackTimer.Reset(ackDelay)
		}
	}
	l.asleep.Store(true)
	defer l.asleep.Store(false)
	if l.pending() {
		return l.epollNow()
	}
	l.p.hasCome()
	var n int
	var err error
	if rerr := l.poll.Read(func(uintptr) bool {
		n, err = l.epollNow()
		return n != 0 || err != nil
	}); rerr != nil {
		return 0, rerr
	}
	return n, err
}

// oneProcessor: who would answer could not run while the loop looks for the answer.
var oneProcessor = runtime.NumCPU() == 1

// spin looks for events for a short time if small exchanges are going on.
func (l *loop) spin() (int, error) {
	if oneProcessor || l.passed || l.wantOut { // the last: the guest does not keep up
		return 0, nil
	}
	now := time.Now()
	if paces := now.Sub(l.paceOf) / pace; paces > 0 {
		l.moved >>= min(paces, 62)
		l.paceOf = now
	}
	if l.moved >= spinBelow || now.UnixNano()-l.p.dialed.Load() < int64(pace) {
		return 0, nil
	}
	for {
		if n, err := l.epollNow(); n != 0 || err != nil {
			return n, err
		}
		if l.pending() || time.Since(now) > spinTime {
			return 0, nil
		}
		runtime.Gosched()
	}
}

// pending says whether somebody has given the loop work since it last looked.
func (l *loop) pending() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.posted) > 0 || len(l.woken) > 0 || l.due.Load() && !l.deaf || !l.wantOut && !l.slow && l.p.queue.waiting() || l.p.ctx.Err() != nil
}

func (l *loop) epollNow() (int, error) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.ep), uintptr(unsafe.Pointer(&l.events[0])), eventsAtOnce, 0, 0, 0)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, os.NewSyscallError("epoll_pwait", e)
		}
	}
}

// readLink carries one batch.
func (l *loop) readLink() error {
	p := l.p
	if l.pause {
		l.rest()
	}
	p.batch.Next()
	err := l.link.TryReadFrames(p.batch)
	if errors.Is(err, link.ErrWait) {
		return nil
	}
	if err != nil {
		return err
	}
	size := 0
	for _, f := range p.batch.Frames {
		size += f.Len()
	}
	l.moved += size
	p.elsewhere = 0
	l.acks.read += size
	l.acks.few = 2 * (p.mtu() + header.EthernetMinimumSize)
	p.carry()
	l.rein(size)
	l.passed = p.elsewhere == len(p.batch.Frames)
	least := pauseMin
	if l.passed {
		least = pauseOnward
	}
	l.pause = size >= least && size < pauseMax && size < len(p.batch.Frames)*pauseFrame
	return nil
}

// rest waits for the next batch to grow. It does not tell Go's scheduler: handing the processor over costs more than
// the moment is long.
func (l *loop) rest() {
	l.pause = false
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // of this thread, which is not always the last one; else 50 µs more
	ts := unix.NsecToTimespec(int64(pauseTime))
	unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
}

func (l *loop) runPosted() {
	l.mu.Lock()
	fs := l.posted
	l.posted = nil
	l.ready = append(l.ready, l.woken...)
	clear(l.woken) // what is over need not be kept
	l.woken = l.woken[:0]
	l.mu.Unlock()
	for _, f := range fs {
		f()
	}
}

// crumbTime is how long what a far side trickles is left to the host's kernel, to be put together, once too many pieces
// wait for the guest. A guest that takes anything notices less than a retransmission.
const crumbTime = 10 * time.Millisecond

// pauseCrumbs leaves s unread for a time, or until much is there.
func (l *loop) pauseCrumbs(s *stream) {
	if s.crumbs {
		return
	}
	s.crumbs = true
	if l.crumbs = append(l.crumbs, s); len(l.crumbs) == 1 {
		l.later.Reset(crumbTime)
	}
}

// moveCrumbs lets those go on that were paused.
func (l *loop) moveCrumbs() {
	for _, s := range l.crumbs {
		if s.crumbs = false; !s.queued.Swap(true) {
			l.ready = append(l.ready, s)
		}
	}
	clear(l.crumbs)
	l.crumbs = l.crumbs[:0]
}

// moveReady gives each stream that became ready one turn.
func (l *loop) moveReady() {
	turn := l.ready
	l.ready = nil
	for _, s := range turn {
		s.move()
	}
	clear(turn)
	if l.ready == nil {
		l.ready = turn[:0]
	}
}

// flush writes what waits for the guest, until nothing does, its socket is full, or the others have their turn.
func (l *loop) flush() error {
	p := l.p
	l.tx.Lock()
	defer func() {
		l.behind = l.writing || l.at < len(l.taken)
		l.tx.Unlock()
	}()
	for l.flushed = 0; l.flushed < flushMost; {
		if l.slows() {
			return nil
		}
		if !l.writing {
			if l.at == len(l.taken) {
				if l.taken != nil {
					l.spare = l.taken
				}
				if l.taken, l.at = p.queue.grab(l.spare), 0; l.taken == nil {
					l.watchLink(false)
					return nil
				}
			}
			l.compose()
		}
		if err := l.write(); err != nil || l.wantOut {
			return err
		}
	}
	return nil
}

// write writes the splitter's frames, as far as the guest's socket takes them.
func (l *loop) write() error {
	p := l.p
	frames := p.split.frames[l.next:]
	n, err := l.link.TryWriteFrames(frames)
	size := 0
	for i := range frames[:n] {
		size += frames[i].Len()
	}
	l.moved += size
	l.passed = l.passed && n == 0
	p.txBytes.Add(uint64(size))
	p.txFrames.Add(uint64(n))
	p.down.take(size)
	l.next += n
	switch {
	case errors.Is(err, link.ErrWait):
		l.watchLink(true)
		return nil
	case err != nil:
		return err
	}
	l.watchLink(false)
	p.queue.done(l.batch)
	l.batch, l.writing = nil, false
	return nil
}

// compose is the port's, with pure ACKs held back.
func (l *loop) compose() {
	rest := l.taken[l.at:]
	n, size := l.p.compose(rest, l.pass)
	l.batch, l.next, l.writing = rest[:n], 0, true
	l.at += n
	l.flushed += size
}

// sendACKs writes the pure ACKs that found no company.
func (l *loop) sendACKs() error {
	if l.acks.n == 0 || l.writing { // or the guest's socket is full, and what is on its way acknowledges
		return nil
	}
	l.tx.Lock()
	defer func() {
		l.behind = l.writing || l.at < len(l.taken)
		l.tx.Unlock()
	}()
	l.p.split.reset()
	l.acks.releaseAll(l.cut)
	if to := l.p.net.seg.copies.Load(); to != nil {
		l.p.copyDown(*to, l.p.split.frames)
	}
	l.next, l.writing = 0, true
	return l.write()
}

// acksDue sends the pure ACKs that were held when the loop went to sleep, if they still are.
func (l *loop) acksDue() {
	l.ackArmed = false
	if l.acks.n > 0 {
		l.sendACKs() // its error is the next read's too
	}
}

// sendNow writes frames to the guest for somebody else, without the loop, where nothing is before them. It never
// waits, and returns how many were taken: the others belong into the queue. The frames are borrowed for the call.
func (l *loop) sendNow(frames []link.Frame) int {
	if !l.tx.TryLock() {
		return 0
	}
	defer l.tx.Unlock()
	defer l.p.guard("wire") // the caller may be another guest's
	if l.behind || l.p.down.rate.Load() > 0 || l.p.queue.waiting() {
		return 0
	}
	n, err := l.link.TryWriteFrames(frames)
	for i := range frames[:n] {
		l.p.txBytes.Add(uint64(frames[i].Len()))
	}
	l.p.txFrames.Add(uint64(n))
	if err != nil { // the wire is full, perhaps within a frame, or over: the loop goes on with it, or finds out
		l.behind = true
		l.post(l.again)
	}
	return n
}

// writeAgain has the next flush write what the wire has kept.
func (l *loop) writeAgain() {
	if !l.writing {
		l.p.split.reset()
		l.batch, l.next, l.writing = nil, 0, true
	}
}

// readDue and writeDue are told by the wire, from anywhere, that frames have come due that its descriptor does not tell
// of (impair.go).
func (l *loop) readDue() {
	l.due.Store(true)
	l.wake()
}

func (l *loop) writeDue() { l.post(l.again) }

// watchTimer has fire called each time that a timer of the wire's has come to its end. It is for any goroutine.
func (l *loop) watchTimer(c syscall.RawConn, fire, failed func()) {
	l.post(func() {
		var err error
		c.Control(func(fd uintptr) { // unless it has ended meanwhile
			_, err = l.watch(int(fd), unix.EPOLLIN|unix.EPOLLET, func(events uint32) {
				if events != watchedEnds {
					fire()
				}
			})
		})
		if err != nil { // the kernel has no memory for it
			failed()
		}
	})
}

// end closes what the loop owns.
func (l *loop) end() {
	l.mu.Lock()
	l.over = true
	fs := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, f := range fs {
		f()
	}
	for i := range l.watched {
		if on := l.watched[i].on; on != nil && i > linkIndex {
			on(watchedEnds)
		}
	}
	for s := range l.asking {
		s.abort(flows.ReasonGuestGone)
	}
	for s := range l.leaving {
		s.abort(flows.ReasonGuestGone)
	}
	l.p.queue.done(l.batch)
	l.p.queue.done(l.taken[l.at:])
	l.acks.releaseAll(func(*stack.PacketBuffer) {})
	l.timer.Stop()
	l.ackTimer.Stop()
	l.later.Stop()
	l.upTimer.Stop()
	l.downTimer.Stop()
	l.close()
}

// watchedEnds is given to whoever has a descriptor when the loop ends; no epoll event has this bit.
const watchedEnds = 1 << 27

// dialTime is how long the far side's answer is waited for: egress.Host's own bound.
const dialTime = egress.DefaultDialTimeout

// expire fails the conversations that the far side has not answered, and judges those whose guest began to say whom it
// wants and went no further. All of a kind have the same time, so the oldest is first. It sets the timer for the next.
func (l *loop) expire() {
	next := time.Duration(-1)
	for e := l.dialing.Front(); e != nil; e = l.dialing.Front() {
		s := e.Value.(*stream)
		if next = dialTime - time.Since(s.began); next > 0 {
			break
		}
		s.failed(fmt.Errorf("no answer in %v: %w", dialTime, os.ErrDeadlineExceeded))
	}
	for e := l.saying.Front(); e != nil; e = l.saying.Front() {
		s := e.Value.(*stream)
		if left := helloTime - time.Since(s.first.since); left > 0 {
			if next <= 0 || left < next {
				next = left
			}
			break
		}
		s.move()
		s.unsay()
	}
	if next > 0 {
		l.timer.Reset(next)
	}
}
