// Package capture writes down what crosses guests' wires, as pcapng, while they run.
//
//	filter, err := capture.ParseFilter("tcp port 443")
//	if err != nil {
//		return err
//	}
//	s := capture.Start(file, capture.Options{Filter: filter})
//	wire := capture.Around(l)                          // a link.Link around a link.Link
//	tap := s.Add(wire, vm1) // at any time; vm1 says what it is called
//	go network.Serve(ctx, wire, "vm1")
//	…
//	s.Stop()
//	err = s.Wait()
//
// A wire without a capture on it costs an atomic load a batch. One with a capture copies its frames into a bounded queue,
// and waits for nobody: what writes them runs in a goroutine of its own, and frames that find the queue full are missing
// from the capture and counted there. Frames are written as they cross, unfinished where the wire's ends leave work to one
// another: segments of 64 KiB, and checksums that are not yet made.
//
// In what is written each wire is an interface, frames from the guest are inbound and those to it outbound, and times are
// nanoseconds. Whole blocks are written only, so that whatever becomes of the writer, what it has can be read.
//
// It does not know whose frames they are: who does may say of a packet what is to stand with it, and whether it is wanted
// ([Options].Judge).
package capture

import (
	"net"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/backend/link"
)

const (
	// queueBlock is the piece in which frames are handed over: what one write takes, and three of the longest frames.
	queueBlock = 256 << 10
	// queueBlocks of them a capture may have: 8 MiB, four times what dumpcap asks of a kernel. That is 60 ms of a wire at
	// 1 Gbit/s, longer than a disk or a pager looks away when there is nothing wrong.
	queueBlocks = 32
	// gather is how long a frame may wait for others to be written with it. Nobody who watches sees it, and by then
	// whoever is asked for comments knows the conversation that it opened.
	gather = 10 * time.Millisecond
)

// Options say what a capture is of, and how much of it. The zero Options are all frames, whole, for ever.
type Options struct {
	Filter  *Filter
	Snaplen int // most bytes of a frame; 0: all

	MaxBytes   int64         // of the file; 0: any. A file never has more
	MaxPackets int64         // 0: any
	MaxTime    time.Duration // 0: for ever

	// Judge, if not nil, is asked about each frame that passes the filter before it is written: whether it is wanted, and for
	// a comment. It is asked in the order in which they crossed, by one goroutine that no guest waits for.
	Judge func(t *Tap, p Packet) (comment string, wanted bool)

	Application, OS, Note string // for the file's head
}

// Interface is how a wire stands in the file.
type Interface struct {
	Name, Description string
	MAC               net.HardwareAddr // of the guest; nil if it is not known
}

// Ending is why a capture is over.
type Ending string

const (
	Running      Ending = ""
	Stopped      Ending = "stopped"
	FullBytes    Ending = "size"    // MaxBytes was reached
	FullPackets  Ending = "packets" // MaxPackets
	TimeOver     Ending = "time"    // MaxTime
	WriterFailed Ending = "failed"  // Wait says how
	WireGone     Ending = "gone"    // of the one guest that it was of; said by who knows that
)

// Figures are how much a capture has.
type Figures struct {
	Seen    uint64 `json:"seen"`    // frames that crossed
	Packets uint64 `json:"packets"` // of them, in the file
	Dropped uint64 `json:"dropped"` // of them, missing from the file since its writer was too slow
	Bytes   int64  `json:"bytes"`   // of the file
}

// Writer is what a capture is written to: whole blocks at a time. It may wait.
type Writer interface {
	Write(blocks []byte) (int, error)
}

// Session is a capture. Its methods may be called by anybody.
type Session struct {
	o       Options
	w       Writer
	snaplen int
	began   uint64

	wake, hurry, stop chan struct{} // something waits to be written; much does; it is to end
	stopOnce          sync.Once
	done              chan struct{}

	mu      sync.Mutex
	figures Figures
	ending  Ending
	err     error
	over    bool // nothing more is taken
	taps    map[uint32]*Tap
	nextTap uint32
	changed []*Tap // that came or went since the writer looked
	cur     []byte // the block that is filled
	full    [][]byte
	free    [][]byte
	blocks  int
	asleep  bool // the writer waits for the first frame
	packet  packet
	scratch []byte
}

// Tap is a session's place on a wire.
type Tap struct {
	s    *Session
	id   uint32
	wire *Wire
	look func() Interface

	// Guarded by s.mu.
	gone                    bool
	seen, accepted, dropped uint64
	missing                 uint64 // dropped since the last that was not

	met, left bool // of the writer only
}

// Start begins a capture, which writes to w until Stop is called, it has what it was to have, or w fails.
func Start(w Writer, o Options) *Session {
	s := &Session{o: o, w: w, snaplen: link.MaxFrame, began: now(), asleep: true,
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		taps: make(map[uint32]*Tap)}
	if o.Snaplen > 0 {
		s.snaplen = min(o.Snaplen, link.MaxFrame)
	}
	if o.Filter != nil {
		s.scratch = make([]byte, o.Filter.depth)
	}
	go s.run()
	return s
}

func now() uint64 { return uint64(time.Now().UnixNano()) }

// Stop ends the capture, unless it is over. What has crossed by now is still written.
func (s *Session) Stop() { s.end(Stopped, nil) }

// StopAs is Stop for another reason.
func (s *Session) StopAs(why Ending) { s.end(why, nil) }

func (s *Session) end(why Ending, err error) {
	s.mu.Lock()
	// What waited when it was stopped may not fit any more: then the file lacks it, whoever was first.
	if s.ending == Running || err != nil && s.err == nil {
		s.ending, s.err = why, err
	}
	s.over = true
	s.mu.Unlock()
	s.stopOnce.Do(func() { close(s.stop) })
}

// Ending is closed when nothing more is taken: what there is is being written.
func (s *Session) Ending() <-chan struct{} { return s.stop }

// Done is closed when all is written and no wire is held.
func (s *Session) Done() <-chan struct{} { return s.done }

// Wait waits for that, and says what the writer failed by.
func (s *Session) Wait() error {
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Figures are how much there is by now, and whether and why that is all.
func (s *Session) Figures() (Figures, Ending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.figures, s.ending
}

// Taps is how many wires it is on.
func (s *Session) Taps() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.taps)
}

// Add puts the capture on a wire. What it is called is asked when it is written: at once if a MAC is known by then, else with
// its first frame. One that is over is put on nothing.
func (s *Session) Add(w *Wire, look func() Interface) *Tap {
	t := &Tap{s: s, wire: w, look: look}
	s.mu.Lock()
	if s.over {
		t.gone = true
		s.mu.Unlock()
		return t
	}
	t.id = s.nextTap
	s.nextTap++
	s.taps[t.id] = t
	s.changed = append(s.changed, t)
	s.nudge()
	s.mu.Unlock()
	w.add(t)
	s.mu.Lock()
	gone := t.gone // it ended meanwhile
	s.mu.Unlock()
	if gone {
		w.remove(t)
	}
	return t
}

// Remove takes the capture from the wire.
func (t *Tap) Remove() {
	t.wire.remove(t)
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if !t.gone {
		t.gone = true
		t.s.changed = append(t.s.changed, t)
		t.s.nudge()
	}
}

// nudge wakes the writer. Under s.mu.
func (s *Session) nudge() {
	if s.asleep {
		s.asleep = false
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// read takes frames from the guest.
func (t *Tap) read(b *link.Batch, frames []link.Span) {
	s := t.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || t.gone {
		return
	}
	at := uint64(0) // a batch crosses at a time
	for _, f := range frames {
		t.seen++
		s.figures.Seen++
		if s.o.Filter != nil {
			n := min(f.Len(), len(s.scratch))
			if !s.passes(b.Head(f, n, s.scratch[:n]), f.Len(), false) {
				continue
			}
		}
		if dst := s.room(t, &at, f.Len(), flagInbound); dst != nil {
			b.AppendTo(dst[:0], f.Upto(len(dst)))
		}
	}
}

// wrote takes frames to the guest.
func (t *Tap) wrote(frames []link.Frame) {
	s := t.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || t.gone {
		return
	}
	at := uint64(0)
	for i := range frames {
		f := &frames[i]
		t.seen++
		s.figures.Seen++
		n := f.Len()
		if s.o.Filter != nil {
			head := f.Head[link.Headroom:]
			if want := min(n, len(s.scratch)); len(head) < want {
				head = s.scratch[:gatherFrame(s.scratch[:want], f)]
			} else {
				head = head[:want]
			}
			if !s.passes(head, n, true) {
				continue
			}
		}
		if dst := s.room(t, &at, n, flagOutbound); dst != nil {
			gatherFrame(dst, f)
		}
	}
}

// gatherFrame copies as much of f to dst as it holds.
func gatherFrame(dst []byte, f *link.Frame) int {
	n := copy(dst, f.Head[link.Headroom:])
	for _, p := range f.Body {
		if n == len(dst) {
			break
		}
		n += copy(dst[n:], p)
	}
	return n
}

func (s *Session) passes(head []byte, n int, out bool) bool {
	s.packet.b, s.packet.n, s.packet.out = head, n, out
	ok := s.o.Filter.run(&s.packet)
	s.packet.b = nil
	return ok
}

// room makes the block of a frame in the queue and returns where its bytes go, or counts it as dropped.
func (s *Session) room(t *Tap, at *uint64, n int, flags uint32) []byte {
	t.accepted++
	if *at == 0 {
		*at = now()
	}
	size := min(n, s.snaplen)
	need := packetHead + pad(size) + packetTail
	if t.missing > 0 {
		need += packetGap
	}
	if cap(s.cur)-len(s.cur) < need && !s.turn() {
		t.dropped++
		t.missing++
		s.figures.Dropped++
		return nil
	}
	from := len(s.cur)
	s.cur = s.cur[:from+need]
	dst := packetBlock(s.cur[from:], t.id, *at, size, n, flags, t.missing)
	t.missing = 0
	s.nudge()
	return dst
}

// turn begins another block, if there may be one.
func (s *Session) turn() bool {
	var next []byte
	switch {
	case len(s.free) > 0:
		next = s.free[len(s.free)-1]
		s.free = s.free[:len(s.free)-1]
	case s.blocks < queueBlocks:
		s.blocks++
		next = make([]byte, 0, queueBlock)
	default:
		return false
	}
	if len(s.cur) > 0 {
		s.full = append(s.full, s.cur)
		select {
		case s.hurry <- struct{}{}:
		default:
		}
	}
	s.cur = next
	return true
}
