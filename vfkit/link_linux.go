package vfkit

import (
	"io"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/link"
)

// longReads is how many reads without a long frame make a wire look for short ones again, several at a time.
const longReads = 64

// polled is a wire over a descriptor.
type polled struct {
	*wire
	rc syscall.RawConn

	// Of the one reader:
	in    call
	vecs  [atOnce][2]unix.Iovec
	at    [atOnce]int // where the slots are
	long  int         // reads to be done as if the next frame were long
	one   []unix.Iovec
	sizes []int
	moved []byte // long frames and what follows, on their way to where they belong
	hung  struct {
		yes   bool
		bound func(fd uintptr)
	}

	// Of the one writer:
	out   call
	iov   []unix.Iovec
	parts [atOnce]int // pieces of each frame
}

var _ link.Polled = (*polled)(nil)

func newLink(w *wire) link.Link {
	sc, ok := w.c.(syscall.Conn)
	if !ok {
		return w
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return w
	}
	p := &polled{wire: w, rc: rc}
	p.in.init(unix.SYS_RECVMMSG)
	p.out.init(unix.SYS_SENDMMSG)
	p.in.msgs = make([]mmsg, atOnce)
	p.out.msgs = make([]mmsg, atOnce)
	p.hung.bound = p.lookHung
	return p
}

func (p *polled) Poll(f func(fd int) error) (ok bool, err error) {
	if cerr := p.rc.Control(func(fd uintptr) { ok = true; err = f(int(fd)) }); cerr != nil {
		return false, net.ErrClosed
	}
	return ok, err
}

func (p *polled) ReadFrames(b *link.Batch) (err error) {
	rerr := p.rc.Read(func(uintptr) bool {
		for {
			b.Next() // there is no frame: a peer that sends only what is passed over must not make it grow
			before := b.Malformed
			err = p.TryReadFrames(b)
			if err != link.ErrWait || b.Malformed == before {
				return err != link.ErrWait
			}
		}
	})
	if rerr != nil {
		return p.end(rerr)
	}
	return err
}

func (p *polled) TryReadFrames(b *link.Batch) error {
	b.Overrun += int(p.lost.Swap(0))
	var err error
	if p.long > 0 {
		err = p.readLong(b)
	} else {
		err = p.readShort(b)
	}
	if len(b.Frames) > 0 { // what else there is, the next call finds
		return nil
	}
	if err == nil {
		err = link.ErrWait
	}
	return err
}

// receive makes the call for the first n messages.
func (p *polled) receive(n int) (int, error) {
	c := &p.in
	c.msgs = c.msgs[:n]
	if err := p.rc.Control(c.bound); err != nil {
		return 0, net.ErrClosed
	}
	if c.errno == unix.ECONNREFUSED && p.stays { // of what was written; what is there to be read stands behind it
		if err := p.rc.Control(c.bound); err != nil {
			return 0, net.ErrClosed
		}
	}
	switch c.errno {
	case 0:
		return c.n, nil
	case unix.EAGAIN:
		return 0, link.ErrWait
	case unix.ECONNREFUSED:
		if p.stays {
			return 0, link.ErrWait
		}
	}
	return 0, p.end(c.errno)
}

// readShort reads several messages, each to a slot of its own in b's memory.
func (p *polled) readShort(b *link.Batch) error {
	k, at := 0, 0
	t := spareTails.Get().(*tails)
	defer spareTails.Put(t)
	for _, s := range b.Space(slot) {
		for ; len(s) >= slot && k < atOnce; k++ {
			p.at[k] = at
			p.vecs[k] = [2]unix.Iovec{iovec(s[:slot]), iovec(t[k][:])}
			h := &p.in.msgs[:atOnce][k].hdr
			h.Iov = &p.vecs[k][0]
			h.SetIovlen(2)
			s, at = s[slot:], at+slot
		}
		at += len(s)
	}
	n, err := p.receive(k)
	for i := range k { // what is lent is not kept
		p.vecs[i][1] = unix.Iovec{}
	}
	if err != nil {
		return err
	}
	short := 0 // messages before the first long one
	for ; short < n && p.in.msgs[short].n <= slot; short++ {
		if p.in.msgs[short].n == 0 && p.ended() {
			n, err = short, io.EOF
			break
		}
	}
	// The rest is moved to lie without gaps, since long ones do not fit between them.
	p.moved, p.sizes = p.moved[:0], p.sizes[:0]
	for i := short; i < n; i++ {
		size := int(p.in.msgs[i].n)
		p.moved = append(p.moved, unsafe.Slice(p.vecs[i][0].Base, min(size, slot))...)
		p.moved = append(p.moved, t[i][:max(size-slot, 0)]...)
		p.sizes = append(p.sizes, size)
	}
	if short > 0 {
		b.Wrote(p.at[short-1] + int(p.in.msgs[short-1].n))
	}
	end := 0
	for i := range short {
		size := int(p.in.msgs[i].n)
		gap := p.at[i] - end
		end = p.at[i] + size
		if size >= minFrame {
			b.Take(gap, size)
			continue
		}
		var head [len(greeting)]byte
		b.Take(gap, 0)
		if size != len(head) || !b.Peek(head[:]) || string(head[:]) != greeting {
			b.Malformed++
		}
		b.Take(size, 0)
	}
	for m := p.moved; len(p.sizes) > 0; p.sizes = p.sizes[1:] {
		size := p.sizes[0]
		p.long = longReads
		if size < minFrame || size > link.MaxFrame {
			if string(m[:size]) != greeting {
				b.Malformed++
			}
		} else {
			b.Append(m[:size])
			b.Take(0, size)
		}
		m = m[size:]
	}
	return err
}

// readLong reads messages one by one, each behind the one before.
func (p *polled) readLong(b *link.Batch) error {
	space := b.Space(longest)
	room := 0
	for _, s := range space {
		room += len(s)
	}
	p.sizes = p.sizes[:0]
	end, passed, small := 0, 0, true
	var err error
	for room-end >= longest {
		p.one = p.one[:0]
		skip, want := end, longest
		for _, s := range space {
			if skip >= len(s) {
				skip -= len(s)
				continue
			}
			s = s[skip:]
			skip = 0
			s = s[:min(len(s), want)]
			want -= len(s)
			p.one = append(p.one, iovec(s))
			if want == 0 {
				break
			}
		}
		h := &p.in.msgs[:1][0].hdr
		h.Iov = unsafe.SliceData(p.one)
		h.SetIovlen(len(p.one))
		if _, err = p.receive(1); err != nil {
			break
		}
		size := int(p.in.msgs[0].n)
		if size == 0 && p.ended() {
			err = io.EOF
			break
		}
		small = small && size <= slot
		if size < minFrame || size > link.MaxFrame {
			if passed++; !p.greets(size) {
				b.Malformed++
			}
			if passed == maxPassed {
				break
			}
			continue
		}
		p.sizes = append(p.sizes, size)
		end += size
	}
	b.Wrote(end)
	for _, size := range p.sizes {
		b.Take(0, size)
	}
	if small {
		p.long--
	} else {
		p.long = longReads
	}
	if err == nil && len(p.sizes) == 0 { // nothing but what was passed over
		return link.ErrWait
	}
	return err
}

// maxPassed is how many messages one read passes over, so that who sends nothing else does not keep the reader from what
// it has to do beside.
const maxPassed = 256

// greets says whether the message of size bytes that lies in p.one is the greeting.
func (p *polled) greets(size int) bool {
	if size != len(greeting) {
		return false
	}
	var m [len(greeting)]byte
	n := 0
	for _, v := range p.one {
		n += copy(m[n:], unsafe.Slice(v.Base, int(v.Len)))
	}
	return string(m[:]) == greeting
}

// ended says whether a message of no bytes was the end: a seqpacket socket reads so once its peer has closed.
func (p *polled) ended() bool {
	if !p.ends {
		return false
	}
	return p.rc.Control(p.hung.bound) != nil || p.hung.yes
}

func (p *polled) lookHung(fd uintptr) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(fds, 0)
	p.hung.yes = err != nil || n > 0 && fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}

func (p *polled) WriteFrames(frames []link.Frame) (done int, err error) {
	werr := p.rc.Write(func(uintptr) bool {
		var n int
		n, err = p.TryWriteFrames(frames[done:])
		done += n
		return err != link.ErrWait
	})
	if werr != nil {
		return done, p.end(werr)
	}
	return done, err
}

func (p *polled) TryWriteFrames(frames []link.Frame) (int, error) {
	for done := 0; done < len(frames); {
		n := p.out.compose(frames[done:], &p.iov, &p.parts, nil)
		if err := p.rc.Control(p.out.bound); err != nil {
			return done, net.ErrClosed
		}
		switch p.out.errno {
		case 0:
			done += p.out.n
			if p.out.n < n {
				continue // the next call tells why
			}
		case unix.EAGAIN, unix.ENOBUFS:
			return done, link.ErrWait
		default:
			if err := p.failed(p.out.errno); err != nil {
				return done, err
			}
			done++
		}
	}
	return len(frames), nil
}

// compose makes messages of the first frames, to an address or to none, in pieces that iov holds, and returns of how many.
func (c *call) compose(frames []link.Frame, iov *[]unix.Iovec, parts *[atOnce]int, to []byte) int {
	v := (*iov)[:0]
	n := 0
	for ; n < len(frames) && n < atOnce; n++ {
		f := &frames[n]
		before := len(v)
		if len(f.Body) < maxVec {
			if head := f.Head[link.Headroom:]; len(head) > 0 {
				v = append(v, iovec(head))
			}
			for _, b := range f.Body {
				if len(b) > 0 {
					v = append(v, iovec(b))
				}
			}
		} else { // more pieces than a message may have
			v = append(v, iovec(f.AppendTo(nil)))
		}
		parts[n] = len(v) - before
	}
	*iov = v
	c.msgs = c.msgs[:n]
	at := 0
	for i := range c.msgs {
		h := &c.msgs[i].hdr
		h.Name, h.Namelen = nil, 0
		if to != nil {
			h.Name, h.Namelen = unsafe.SliceData(to), uint32(len(to))
		}
		h.Iov = nil
		if parts[i] > 0 {
			h.Iov = &v[at]
		}
		h.SetIovlen(parts[i])
		at += parts[i]
	}
	return n
}
