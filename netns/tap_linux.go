package netns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/link"
)

const (
	// vnetLen is struct virtio_net_hdr, TUN's default (TUNSETVNETHDRSZ), in the machine's byte order.
	vnetLen = link.OffloadLen
	// longest is what a read must have room for. Linux's own limit for a packet is 64 KiB but for BIG TCP, which is off
	// unless somebody turns it on for the interface.
	longest = vnetLen + link.MaxFrame
	// minFrame is an Ethernet header.
	minFrame = 14
	// framesAtOnce bounds a batch of small frames, so that answers to the first do not wait for the last.
	framesAtOnce = 256
	// maxVec is IOV_MAX.
	maxVec = 1024
)

// TAP is an interface in a namespace, seen from outside: its wire.
type TAP struct {
	Name  string
	Index int
	MAC   net.HardwareAddr
	MTU   int

	file   *os.File
	rc     syscall.RawConn
	route  *netlink
	packet *os.File // packet socket for DHCP
	renew  chan struct{}
	closed chan struct{}
	gives  link.Offloads

	noDefault bool

	once sync.Once
	done error

	in  reader
	out writer
}

var (
	_ link.Polled     = (*TAP)(nil)
	_ link.Offloading = (*TAP)(nil)
	_ link.Prefixed   = (*TAP)(nil)
)

// newTAP takes over the descriptor of a TAP with IFF_VNET_HDR.
func newTAP(fd int, offloads bool) (*TAP, error) {
	t := &TAP{renew: make(chan struct{}, 1), closed: make(chan struct{})}
	if err := unix.SetNonblock(fd, true); err != nil { // else os.NewFile would not let Close wake a reader
		unix.Close(fd)
		return nil, err
	}
	t.file = os.NewFile(uintptr(fd), "tap")
	rc, err := t.file.SyscallConn()
	if err != nil {
		t.file.Close()
		return nil, err
	}
	t.rc = rc
	t.in.bound, t.out.bound = t.in.do, t.out.do
	t.gives = link.Told
	if offloads {
		t.gives, err = t.offload()
	}
	if err != nil {
		t.file.Close()
		return nil, err
	}
	return t, nil
}

// offload tells the kernel what it may leave to us.
func (t *TAP) offload() (gives link.Offloads, err error) {
	const base = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 // not TSO_ECN: those it cuts by itself
	cerr := t.rc.Control(func(fd uintptr) { err = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, base) })
	if err = errors.Join(cerr, err); err != nil {
		return 0, fmt.Errorf("TUNSETOFFLOAD: %w", err)
	}
	return link.Told | link.Checksums | link.Segments, nil
}

// Offloads implements link.Offloading. The kernel takes unfinished frames always.
func (t *TAP) Offloads() (gives, takes link.Offloads) {
	return t.gives, link.Told | link.Checksums | link.Segments
}

// Prefix implements link.Prefixed.
func (t *TAP) Prefix() int { return vnetLen }

// Poll implements link.Polled.
func (t *TAP) Poll(f func(fd int) error) (ok bool, err error) {
	if cerr := t.rc.Control(func(fd uintptr) { ok = true; err = f(int(fd)) }); cerr != nil {
		return false, net.ErrClosed
	}
	return ok, err
}

// reader reads frames, one a call, until there is none or its space is full.
type reader struct {
	iov   [][]byte
	room  int
	sizes []int
	total int
	errno unix.Errno
	vec   [8]unix.Iovec // a batch's pieces are five at most
	bound func(fd uintptr)
}

func (r *reader) do(fd uintptr) {
	for len(r.sizes) < framesAtOnce && r.room-r.total >= longest {
		vec, skip := r.vec[:0], r.total
		for _, p := range r.iov {
			if skip >= len(p) {
				skip -= len(p)
				continue
			}
			if len(vec) == len(r.vec) {
				break
			}
			v := unix.Iovec{Base: &p[skip]}
			v.SetLen(len(p) - skip)
			vec, skip = append(vec, v), 0
		}
		n, _, e := unix.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&vec[0])), uintptr(len(vec)))
		if e == unix.EINTR {
			continue
		}
		if e != 0 || n == 0 {
			r.errno = e
			return
		}
		r.sizes = append(r.sizes, int(n))
		r.total += int(n)
	}
}

// prepare makes the reader ready for a batch.
func (r *reader) prepare(b *link.Batch) {
	r.iov, r.room, r.total, r.errno = b.Space(longest), 0, 0, 0
	for _, p := range r.iov {
		r.room += len(p)
	}
	r.sizes = r.sizes[:0]
}

// take makes frames of what was read.
func (r *reader) take(b *link.Batch) error {
	clear(r.iov)
	b.Wrote(r.total)
	for _, n := range r.sizes {
		var h [vnetLen]byte
		if n < vnetLen+minFrame || n > longest {
			b.Malformed++
			b.Take(n, 0)
			continue
		}
		b.Peek(h[:])
		o := link.ParseOffload(h[:])
		if !o.Fits(n - vnetLen) {
			b.Malformed++
			b.Take(n, 0)
			continue
		}
		b.TakeUnfinished(vnetLen, n-vnetLen, o)
	}
	switch {
	case len(b.Frames) > 0:
		return nil
	case r.errno == 0, r.errno == unix.EAGAIN:
		return link.ErrWait
	case r.errno == unix.EBADFD: // the interface is gone, by ip(8) or with its namespace
		return io.EOF
	}
	return fmt.Errorf("netns: read: %w", r.errno)
}

// TryReadFrames implements link.Polled.
func (t *TAP) TryReadFrames(b *link.Batch) error {
	t.in.prepare(b)
	if err := t.rc.Control(t.in.bound); err != nil {
		return net.ErrClosed
	}
	return t.in.take(b)
}

// ReadFrames implements link.Link.
func (t *TAP) ReadFrames(b *link.Batch) error {
	for {
		b.Next()
		t.in.prepare(b)
		err := t.rc.Read(func(fd uintptr) bool {
			t.in.errno = 0
			t.in.do(fd)
			return t.in.total > 0 || t.in.errno != unix.EAGAIN
		})
		if err != nil {
			return net.ErrClosed
		}
		if err := t.in.take(b); !errors.Is(err, link.ErrWait) {
			return err
		}
		if b.Malformed > 0 {
			return nil
		}
	}
}

// writer writes frames, one a call.
type writer struct {
	frames []link.Frame
	n      int // that were taken
	lost   int // of them, that the kernel did not want
	errno  unix.Errno
	vec    []unix.Iovec
	joined []byte
	bound  func(fd uintptr)
}

func (w *writer) do(fd uintptr) {
	for w.n < len(w.frames) {
		f := &w.frames[w.n]
		head := f.Head[link.Headroom-vnetLen:] // its Offload lies there, as the kernel wants it
		vec := append(w.vec[:0], iovec(head))
		if len(f.Body) < maxVec {
			for _, p := range f.Body {
				if len(p) > 0 {
					vec = append(vec, iovec(p))
				}
			}
		} else {
			w.joined = append(w.joined[:0], head...)
			for _, p := range f.Body {
				w.joined = append(w.joined, p...)
			}
			vec[0] = iovec(w.joined)
		}
		w.vec = vec
		_, _, e := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&vec[0])), uintptr(len(vec)))
		switch e {
		case 0:
		case unix.EINTR:
			continue
		case unix.EIO, unix.EINVAL, unix.ENOMEM, unix.ENOBUFS, unix.EMSGSIZE: // the interface is down, or has no memory
			w.lost++
		default:
			w.errno = e
			return
		}
		w.n++
	}
}

func (w *writer) result() (int, error) {
	switch w.errno {
	case 0:
		return w.n, nil
	case unix.EAGAIN:
		return w.n, link.ErrWait
	case unix.EBADFD:
		return w.n, io.ErrClosedPipe
	}
	return w.n, fmt.Errorf("netns: write: %w", w.errno)
}

func iovec(b []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

// TryWriteFrames implements link.Polled. A TAP has the kernel work on each frame at once and never makes wait.
func (t *TAP) TryWriteFrames(frames []link.Frame) (int, error) {
	t.out.frames, t.out.n, t.out.errno = frames, 0, 0
	if err := t.rc.Control(t.out.bound); err != nil {
		return 0, net.ErrClosed
	}
	t.out.frames = nil
	return t.out.result()
}

// WriteFrames implements link.Link.
func (t *TAP) WriteFrames(frames []link.Frame) (int, error) {
	t.out.frames, t.out.n = frames, 0
	err := t.rc.Write(func(fd uintptr) bool {
		t.out.errno = 0
		t.out.do(fd)
		return t.out.errno != unix.EAGAIN
	})
	t.out.frames = nil
	if err != nil {
		return t.out.n, net.ErrClosed
	}
	return t.out.result()
}

// Close takes the interface away and ends the wire.
func (t *TAP) Close() error {
	t.once.Do(func() {
		close(t.closed)
		t.done = t.file.Close()
		if t.route != nil {
			t.route.close()
		}
		if t.packet != nil {
			t.packet.Close()
		}
	})
	return t.done
}
