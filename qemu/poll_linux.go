package qemu

import (
	"fmt"
	"io"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/link"
)

// polled is a stream over a descriptor.
type polled struct {
	*stream
	rc syscall.RawConn

	// Of the one writer:
	out  call
	rest []byte // what is left of a frame that was cut

	// Of the one reader:
	in call
}

var _ link.Polled = (*polled)(nil)

func newLink(s *stream) link.Link {
	sc, ok := s.c.(syscall.Conn)
	if !ok {
		return s
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return s
	}
	p := &polled{stream: s, rc: rc, out: call{trap: unix.SYS_WRITEV}, in: call{trap: unix.SYS_READV}}
	p.out.bound, p.in.bound = p.out.do, p.in.do
	return p
}

func (p *polled) Poll(f func(fd int) error) (ok bool, err error) {
	if cerr := p.rc.Control(func(fd uintptr) { ok = true; err = f(int(fd)) }); cerr != nil {
		return false, net.ErrClosed
	}
	return ok, err
}

func (p *polled) TryReadFrames(b *link.Batch) error {
	if err := p.cut(b); err != nil || len(b.Frames) > 0 {
		return err
	}
	p.in.vec = p.in.vec[:0]
	for _, s := range b.Space(0) {
		p.in.vec = append(p.in.vec, iovec(s))
	}
	n, err := p.vector(&p.in)
	if err != nil {
		return err
	}
	if n == 0 {
		return io.EOF
	}
	b.Wrote(n)
	if err := p.cut(b); err != nil {
		return err
	}
	if len(b.Frames) == 0 {
		return link.ErrWait
	}
	return nil
}

func (p *polled) TryWriteFrames(frames []link.Frame) (int, error) {
	if err := p.fit(frames); err != nil {
		return 0, err
	}
	for done := 0; ; {
		vec := p.out.vec[:0]
		want := 0
		add := func(b []byte) {
			if len(b) == 0 {
				return
			}
			want += len(b)
			if l := len(vec) - 1; l >= 0 && follows(vec[l], b) {
				vec[l].SetLen(int(vec[l].Len) + len(b)) // neighbours in the builder's memory: fewer pieces to walk
				return
			}
			vec = append(vec, iovec(b))
		}
		add(p.rest)
		last := done
		for ; last < len(frames) && len(vec)+1+len(frames[last].Body) <= maxVec; last++ {
			f := &frames[last]
			head := f.Head[link.Headroom-p.prefix:]
			p.put(head, f.Len())
			add(head)
			for _, b := range f.Body {
				add(b)
			}
		}
		if want == 0 {
			if done == len(frames) {
				return done, nil
			}
			p.rest = p.appendFrom(p.rest[:0], &frames[done], 0) // more pieces than one call takes: in one
			done++
			continue
		}
		p.out.vec = vec
		n, err := p.vector(&p.out)
		if err != nil {
			return done, err
		}
		full := n == want
		if n < len(p.rest) {
			p.rest = p.rest[n:]
			return done, link.ErrWait
		}
		n -= len(p.rest)
		p.rest = p.rest[:0]
		for ; done < last; done++ {
			size := p.prefix + frames[done].Len()
			if n < size {
				if n > 0 { // cut: the peer has its beginning, so the rest must follow
					p.rest = p.appendFrom(p.rest[:0], &frames[done], n)
					done++
				}
				break
			}
			n -= size
		}
		if !full {
			return done, link.ErrWait
		}
	}
}

// maxVec is IOV_MAX.
const maxVec = 1024

func iovec(b []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

func follows(v unix.Iovec, b []byte) bool {
	return uintptr(unsafe.Pointer(v.Base))+uintptr(v.Len) == uintptr(unsafe.Pointer(unsafe.SliceData(b)))
}

// appendFrom appends the bytes of a frame and its length that follow the first n.
func (s *stream) appendFrom(to []byte, f *link.Frame, n int) []byte {
	add := func(b []byte) {
		if n < len(b) {
			to = append(to, b[n:]...)
			n = 0
		} else {
			n -= len(b)
		}
	}
	add(s.announce(f))
	for _, b := range f.Body {
		add(b)
	}
	return to
}

// call is a system call on pieces of memory, made once and again: what RawConn is given escapes to the heap.
type call struct {
	trap  uintptr // readv(2) or writev(2)
	vec   []unix.Iovec
	n     int
	errno unix.Errno
	bound func(fd uintptr) // do
}

func (c *call) do(fd uintptr) {
	for {
		n, _, e := unix.RawSyscall(c.trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(c.vec))), uintptr(len(c.vec)))
		if e != unix.EINTR {
			c.n, c.errno = int(n), e
			return
		}
	}
}

// vector makes a call that does not wait. The scheduler is not told: there is nothing to wait for, and telling it costs
// as much as a small call.
func (p *polled) vector(c *call) (int, error) {
	if err := p.rc.Control(c.bound); err != nil {
		return 0, net.ErrClosed
	}
	switch {
	case c.errno == 0:
		return c.n, nil
	case c.errno == unix.EAGAIN:
		return 0, link.ErrWait
	case c.trap == unix.SYS_READV:
		return 0, fmt.Errorf("qemu: read: %w", c.errno)
	}
	return 0, fmt.Errorf("qemu: write: %w", c.errno)
}
