package link

// Impairment: a Link around a Link that plays a bad line (package impair), changed at any time. While nothing is set it
// hands calls through. While something is, frames of either way are copied into an impair.Line and come out when they
// have arrived: one clock, one heap and one timer a way.
//
// Who uses it by Poll's descriptor is told by OnDue's functions that something has come due, and calls TryReadFrames and
// TryWriteFrames then, the latter with no frames. Else a goroutine reads the wire, and one writes to it.

import (
	"crypto/rand"
	"encoding/binary"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vmnetd/vmnetd/impair"
)

const (
	// As many frames and bytes leave the line at once: what a batch of a stream has, and a socket's buffer.
	impairFrames = 256
	impairBytes  = 256 << 10
	// Who has just been given frames is not woken for the next before this time is over: at 2 Gbit/s a frame comes due
	// every 6 µs, and one wakeup each costs more than carrying them. A frame that comes by itself is not late for it, and
	// no frame more than timers are anyway.
	impairRest = 100 * time.Microsecond
)

// Impaired is a wire with faults.
type Impaired struct {
	inner        Link
	polled       Polled // inner, or nil
	gives, takes Offloads
	limited      bool // the wire has no room for all that IP has
	began        time.Time
	looped       atomic.Bool // used by Poll's descriptor
	readDue      func()
	writeDue     func()
	watch        func(c syscall.RawConn, fire, failed func())
	dropped      func(uint64)
	broken       func(r any, stack []byte)
	tally        *atomic.Pointer[impair.Tally] // or nil

	set    sync.Mutex // held while Set works
	force  impair.Settings
	ends   sync.Mutex // held while closed is set, and while a goroutine is started
	closed atomic.Bool
	done   chan struct{}
	wg     sync.WaitGroup

	up, down way

	// Of the reader only:
	reading bool // through the line: what the wire has said is in in
	// in is the wire's while reading: of the reading goroutine, if there is one.
	in   Batch
	bufs [][]byte
	// Under up.mu, of the reading goroutine:
	err                error
	ended              bool
	malformed, overrun int

	// Of the writer only, under write:
	write  sync.Mutex // the wire's writing side, while nobody polls
	out    [][]byte   // have arrived
	frames []Frame    // of these
	at     int        // the first that the wire has not taken
	bodies [][]byte   // of frames
	joint  joint
	kept   bool // the wire has not sent all that it took
	pump   sync.Once

	counted []impair.Counted // of the frames that are being written
}

// way is one direction.
type way struct {
	on    atomic.Bool // frames go through line
	due   chan struct{}
	mu    sync.Mutex
	line  *impair.Line
	timer dueTimer
	armed time.Duration // when timer fires; 0: it does not
	given time.Duration // when frames were taken out last
}

// Impair returns a wire around l that s impairs, nil for not yet. It takes l over.
func Impair(l Link, s *impair.Settings) (*Impaired, error) {
	w := &Impaired{inner: l, began: time.Now(), done: make(chan struct{})}
	w.polled, _ = l.(Polled)
	w.gives, w.takes = OffloadsOf(l)
	w.limited = w.MaxFrame() > 0
	w.up.due, w.down.due = make(chan struct{}, 1), make(chan struct{}, 1)
	if s != nil {
		if err := w.Set(s); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// OnDue has read and write called when TryReadFrames or TryWriteFrames has something to do that the descriptor does not
// tell, and dropped for frames that the line has dropped. They must not wait, nor call the wire. It is called before use.
func (w *Impaired) OnDue(read, write func(), dropped func(frames uint64)) {
	w.readDue, w.writeDue, w.dropped = read, write, dropped
}

// OnTimer has watch called with a timer's descriptor, which is readable once something is due: fire is to be called then,
// each time; or failed if it cannot be waited for. watch may be called by anybody, must not wait, and calls neither itself.
// OnTimer is called before use, by who uses Poll's descriptor; without it, timers are Go's, which may be a millisecond late.
func (w *Impaired) OnTimer(watch func(c syscall.RawConn, fire, failed func())) { w.watch = watch }

// OnPanic has broken called with what a goroutine of the wire's own met, which ends. Without it the program does. It is
// called before use.
func (w *Impaired) OnPanic(broken func(r any, stack []byte)) { w.broken = broken }

// Set changes the settings; nil takes them off. What waits and is under way is not lost. Without a seed, the one in force
// stays, or one is made.
func (w *Impaired) Set(s *impair.Settings) error {
	if s == nil {
		s = &impair.Settings{}
	}
	if err := s.Check(); err != nil {
		return err
	}
	w.set.Lock()
	defer w.set.Unlock()
	seed := w.force.Seed
	w.force = *s
	if w.force.Seed == 0 {
		w.force.Seed = seed
	}
	if w.force.Seed == 0 && !s.None() {
		w.force.Seed = newSeed()
	}
	for _, d := range []*way{&w.up, &w.down} {
		if w.setWay(d, *s) {
			w.fire(d)
		}
	}
	return nil
}

func (w *Impaired) setWay(d *way, s impair.Settings) bool {
	d.mu.Lock()
	defer d.mu.Unlock() // whatever is met: who asks for the settings must not wait for ever
	if d.line == nil {
		if s.None() || w.closed.Load() {
			return false
		}
		d.line = impair.NewLine(d == &w.up)
		d.line.Skip, d.line.Whole = Headroom, w.whole(d == &w.up)
		s.Seed = w.force.Seed
		d.timer = w.timerOf(d)
	}
	d.line.Set(w.now(), &s)
	if !d.line.None() {
		d.on.Store(true)
	}
	w.arm(d)
	return true
}

func (w *Impaired) timerOf(d *way) dueTimer {
	fire := func() { w.fire(d) }
	if w.watch == nil {
		return newGoTimer(fire)
	}
	return newTimer(fire, func(c syscall.RawConn) {
		w.watch(c, fire, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.timer.end()
			d.timer, d.armed = newGoTimer(fire), 0
			w.arm(d)
		})
	})
}

func newSeed() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])>>12 | 1 // as JSON's numbers hold it (RFC 8259 §6)
}

// Settings returns what is in force, with its seed.
func (w *Impaired) Settings() impair.Settings {
	w.set.Lock()
	defer w.set.Unlock()
	return w.force
}

// ImpairStats is what became of frames.
type ImpairStats struct {
	Up   []impair.ClassStats `json:"up"`
	Down []impair.ClassStats `json:"down"`
}

// Stats returns what became of frames since the settings were first put in force.
func (w *Impaired) Stats() (s ImpairStats) {
	for _, x := range []struct {
		d    *way
		list *[]impair.ClassStats
	}{{&w.up, &s.Up}, {&w.down, &s.Down}} {
		x.d.mu.Lock()
		if *x.list = []impair.ClassStats{}; x.d.line != nil {
			*x.list = x.d.line.Stats(w.now())
		}
		x.d.mu.Unlock()
	}
	return s
}

// Held is how many bytes are waiting and under way, both ways.
func (w *Impaired) Held() (n int64) {
	for _, d := range []*way{&w.up, &w.down} {
		d.mu.Lock()
		if d.line != nil {
			n += d.line.Held()
		}
		d.mu.Unlock()
	}
	return n
}

// Bound has no more than n bytes each way wait and be under way, whatever the settings allow, until it is called again; 0 is
// as the settings say. What is too much already is not dropped for it.
func (w *Impaired) Bound(n int64) {
	for _, d := range []*way{&w.up, &w.down} {
		d.mu.Lock()
		if d.line != nil {
			d.line.Most = n
		}
		d.mu.Unlock()
	}
}

func (w *Impaired) now() time.Duration { return time.Since(w.began) }

// arm sets the timer for what is due next, under d.mu.
func (w *Impaired) arm(d *way) {
	if n := d.line.Dropped(); n > 0 && w.dropped != nil {
		w.dropped(n)
	}
	next, ok := d.line.Next()
	if !ok || w.closed.Load() {
		if d.armed != 0 {
			d.timer.Stop()
			d.armed = 0
		}
		return
	}
	now := w.now()
	if next > now {
		next = max(next, d.given+impairRest)
	}
	if next != d.armed || next <= now { // the latter: it may have fired already
		d.armed = next
		d.timer.Reset(max(next-now, 0))
	}
}

// fire says that something of d has come due.
func (w *Impaired) fire(d *way) {
	if w.looped.Load() {
		f := w.readDue
		if d == &w.down {
			f = w.writeDue
		}
		if f != nil {
			f()
		}
		return
	}
	select {
	case d.due <- struct{}{}:
	default:
	}
}

// goes starts a goroutine that Close waits for, unless it is too late for any.
func (w *Impaired) goes(f func()) bool {
	w.ends.Lock()
	defer w.ends.Unlock()
	if w.closed.Load() {
		return false
	}
	w.wg.Go(func() {
		if w.broken != nil {
			defer func() {
				if r := recover(); r != nil {
					w.broken(r, debug.Stack())
				}
			}()
		}
		f()
	})
	return true
}

// Close implements Link. What was under way is dropped.
func (w *Impaired) Close() error {
	w.ends.Lock()
	if !w.closed.Swap(true) {
		close(w.done)
	}
	w.ends.Unlock()
	each := func(f func(d *way)) {
		for _, d := range []*way{&w.up, &w.down} {
			d.mu.Lock()
			if d.line != nil {
				f(d)
			}
			d.mu.Unlock()
		}
	}
	each(func(d *way) { d.timer.end() })
	err := w.inner.Close()
	w.wg.Wait()
	each(func(d *way) { d.line.Clear() })
	return err
}

// ReadFrames implements Link.
func (w *Impaired) ReadFrames(b *Batch) error {
	err := w.readFrames(b)
	w.countRead(b)
	return err
}

func (w *Impaired) readFrames(b *Batch) error {
	for {
		if !w.reading {
			if !w.up.on.Load() {
				err := w.inner.ReadFrames(b)
				if err != nil || !w.up.on.Load() {
					return err
				}
				w.sendUp(b) // it was set while we waited, so it holds for these
				b.Frames, b.Offloads = b.Frames[:0], b.Offloads[:0]
			}
			b.moveUnparsed(&w.in)
			w.reading, w.ended, w.err = true, false, nil
			if !w.goes(w.read) {
				return net.ErrClosed
			}
		}
		over, err := w.giveRead(b)
		switch {
		case len(b.Frames) > 0:
			if over && err == nil {
				w.handBack(b)
			}
			return nil
		case err != nil:
			return err
		case over:
			w.handBack(b)
			continue
		}
		select {
		case <-w.up.due:
		case <-w.done:
			return net.ErrClosed
		}
	}
}

// giveRead takes out what has arrived, and says whether the line is over, or the wire.
func (w *Impaired) giveRead(b *Batch) (over bool, err error) {
	w.up.mu.Lock()
	defer w.up.mu.Unlock()
	w.give(b)
	over, err = w.ended && w.up.line.None(), w.err
	switch {
	case err != nil:
	case over:
		w.up.on.Store(false)
	case w.ended && !w.up.line.Idle(): // it was set again
		w.ended = false
		if !w.goes(w.read) {
			err = net.ErrClosed
		}
	}
	w.arm(&w.up)
	return over, err
}

// read is the goroutine that reads the wire into the line, until nothing is set any more.
func (w *Impaired) read() {
	for {
		w.in.Next()
		err := w.inner.ReadFrames(&w.in)
		ended := w.wasRead(err)
		w.fire(&w.up)
		if ended {
			return
		}
	}
}

func (w *Impaired) wasRead(err error) (ended bool) {
	w.up.mu.Lock()
	defer w.up.mu.Unlock()
	w.send(&w.in)
	w.err = err
	w.ended = err != nil || w.up.line.Idle()
	w.arm(&w.up)
	return w.ended
}

func (w *Impaired) sendUp(b *Batch) {
	w.up.mu.Lock()
	defer w.up.mu.Unlock()
	w.send(b)
}

// handBack has the caller read the wire itself again.
func (w *Impaired) handBack(b *Batch) {
	w.in.moveUnparsed(b)
	w.in.Release()
	w.reading = false
}

// send puts what a batch has into the line, under up.mu.
func (w *Impaired) send(b *Batch) {
	w.malformed, b.Malformed = w.malformed+b.Malformed, 0
	w.overrun, b.Overrun = w.overrun+b.Overrun, 0
	for i, s := range b.Frames {
		var o Offload
		if i < len(b.Offloads) {
			o = b.Offloads[i]
		}
		w.flatUp(b, s, o)
	}
}

func (w *Impaired) flatUp(b *Batch, s Span, o Offload) {
	l := w.up.line
	if s.Len() < etherLen || s.Len() > MaxFrame {
		return
	}
	buf := l.Buffer(Headroom + s.Len())
	o.put(buf[Headroom-OffloadLen : Headroom])
	b.copy(buf[Headroom:], s.off)
	w.enter(&w.up, buf, o, w.gives)
}

// give takes what has arrived out of the line, under up.mu, and makes frames of b's of it.
func (w *Impaired) give(b *Batch) {
	b.Malformed, w.malformed = b.Malformed+w.malformed, 0
	b.Overrun, w.overrun = b.Overrun+w.overrun, 0
	l := w.up.line
	now := w.now()
	w.bufs = l.Take(now, w.bufs[:0], impairFrames, impairBytes)
	if len(w.bufs) > 0 {
		w.up.given = now
	}
	for i, buf := range w.bufs {
		b.Append(buf[Headroom:])
		if w.gives&Told != 0 {
			b.TakeUnfinished(0, len(buf)-Headroom, ParseOffload(buf[Headroom-OffloadLen:]))
		} else {
			b.Take(0, len(buf)-Headroom)
		}
		l.Free(buf)
		w.bufs[i] = nil
	}
}

// WriteFrames implements Link. While something is set it never waits.
func (w *Impaired) WriteFrames(frames []Frame) (int, error) {
	if !w.down.on.Load() {
		w.write.Lock()
		defer w.write.Unlock()
		if !w.down.on.Load() { // the pump has not begun
			return w.writeInner(frames)
		}
	}
	if w.closed.Load() {
		return 0, net.ErrClosed
	}
	w.pump.Do(func() { w.goes(w.writeAll) })
	w.sendDown(frames)
	w.fire(&w.down)
	return len(frames), nil
}

// sendDown puts frames into the line. Who takes out what has arrived is to look next, and arms the timer then.
func (w *Impaired) sendDown(frames []Frame) {
	w.down.mu.Lock()
	defer w.down.mu.Unlock()
	w.down.on.Store(true) // the pump may just have found the line empty: what is written next must not get ahead of these
	l := w.down.line
	for i := range frames {
		f := &frames[i]
		var o Offload
		buf := l.Buffer(Headroom + f.Len())
		if w.takes != 0 {
			o = f.Offload()
		}
		o.put(buf[Headroom-OffloadLen : Headroom])
		f.AppendTo(buf[:Headroom])
		w.enter(&w.down, buf, o, w.takes)
	}
}

// writeAll is the goroutine that writes to the wire what has arrived, while nobody polls.
func (w *Impaired) writeAll() {
	for {
		select {
		case <-w.down.due:
		case <-w.done:
			return
		}
		if w.writeDown() != nil {
			return // the reader's end says why
		}
	}
}

func (w *Impaired) writeDown() error {
	w.write.Lock()
	defer w.write.Unlock()
	for w.takeDown() {
		if _, err := w.writeInner(w.frames); err != nil {
			return err
		}
		w.at = len(w.frames)
	}
	return nil
}

func (w *Impaired) writeInner(frames []Frame) (int, error) {
	w.writing(frames)
	n, err := w.inner.WriteFrames(frames)
	w.wrote(n)
	return n, err
}

func (w *Impaired) tryWriteInner(frames []Frame) (int, error) {
	w.writing(frames)
	n, err := w.polled.TryWriteFrames(frames)
	w.wrote(n)
	return n, err
}

// takeDown takes the next that have arrived out of the line, and reports whether there are any.
func (w *Impaired) takeDown() bool {
	d := &w.down
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, buf := range w.out {
		d.line.Free(buf)
		w.out[i] = nil
	}
	clear(w.frames)
	clear(w.bodies)
	now := w.now()
	w.out = d.line.Take(now, w.out[:0], impairFrames, impairBytes)
	if len(w.out) > 0 {
		d.given = now
	}
	w.at, w.frames, w.bodies, w.joint = 0, w.frames[:0], w.bodies[:0], joint{}
	for _, buf := range w.out {
		w.join(buf)
	}
	if len(w.out) == 0 && d.line.None() && !w.kept {
		d.on.Store(false)
	}
	w.arm(d)
	return len(w.out) > 0
}

// Poll implements Polled.
func (w *Impaired) Poll(f func(fd int) error) (bool, error) {
	if w.polled == nil {
		return false, nil
	}
	ok, err := w.polled.Poll(f)
	if ok && err == nil {
		w.looped.Store(true)
	}
	return ok, err
}

// TryReadFrames implements Polled.
func (w *Impaired) TryReadFrames(b *Batch) error {
	err := w.tryReadFrames(b)
	w.countRead(b)
	return err
}

func (w *Impaired) tryReadFrames(b *Batch) error {
	if !w.reading {
		if !w.up.on.Load() {
			return w.polled.TryReadFrames(b)
		}
		b.moveUnparsed(&w.in)
		w.reading = true
	}
	w.in.Next()
	err := w.polled.TryReadFrames(&w.in)
	if w.tryGive(b) {
		w.in.Next()
		w.handBack(b)
	}
	if len(b.Frames) > 0 {
		return nil // an error comes again
	}
	if err == nil {
		err = ErrWait
	}
	return err
}

// tryGive sends what was read, takes out what has arrived, and says whether the line is over.
func (w *Impaired) tryGive(b *Batch) (over bool) {
	w.up.mu.Lock()
	defer w.up.mu.Unlock()
	w.send(&w.in)
	w.give(b)
	if over = w.up.line.None(); over {
		w.up.on.Store(false)
	}
	w.arm(&w.up)
	return over
}

// TryWriteFrames implements Polled. While something is set it takes all frames.
func (w *Impaired) TryWriteFrames(frames []Frame) (int, error) {
	if !w.down.on.Load() {
		return w.tryWriteInner(frames)
	}
	if w.closed.Load() {
		return 0, net.ErrClosed
	}
	if len(frames) > 0 {
		w.sendDown(frames)
	}
	for {
		if w.at == len(w.frames) && !w.takeDown() && !w.kept {
			return len(frames), nil
		}
		n, err := w.tryWriteInner(w.frames[w.at:])
		w.at += n
		if w.kept = err == ErrWait; err != nil {
			return len(frames), err
		}
	}
}

// Prefix implements Prefixed.
func (w *Impaired) Prefix() int {
	if p, ok := w.inner.(Prefixed); ok {
		return p.Prefix()
	}
	return Headroom
}

// MaxFrame implements Limited.
func (w *Impaired) MaxFrame() int {
	if x, ok := w.inner.(Limited); ok {
		return x.MaxFrame()
	}
	return 0
}

// Offloads implements Offloading.
func (w *Impaired) Offloads() (gives, takes Offloads) { return w.gives, w.takes }
