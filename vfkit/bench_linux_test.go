package vfkit

// What a frame costs on the socket, in time, which nobody judges, and in allocations, which TestAllocs does.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/link"
)

// hot are batches as they come: ACKs, usual frames, large ones.
var hot = []struct{ count, size int }{{1, 66}, {10, 66}, {10, 1514}, {10, 9014}, {4, 65534}}

// batch is a Batch with a memory that goes round.
func batch() *link.Batch {
	b := &link.Batch{}
	var free []link.Chunk
	b.Alloc = func() link.Chunk {
		if n := len(free); n > 0 {
			c := free[n-1]
			free = free[:n-1]
			return c
		}
		return link.Chunk{Mem: make([]byte, link.ChunkSize)}
	}
	b.Free = func(c link.Chunk) { free = append(free, c) }
	return b
}

// peerOf is a call that sends or receives count messages at the far end, without allocating.
func peerOf(t testing.TB, c net.Conn, trap uintptr, count, size int) func(int) int {
	rc, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var to []byte
	if a, ok := c.(addressed); ok && trap == unix.SYS_SENDMMSG {
		to = a.to
	}
	var x call
	x.init(trap)
	msgs := make([]mmsg, count)
	vecs := make([]unix.Iovec, count)
	for i := range msgs {
		vecs[i] = iovec(pattern(max(size, longest), i)[:size])
		msgs[i].hdr.Iov = &vecs[i]
		msgs[i].hdr.SetIovlen(1)
		if to != nil {
			msgs[i].hdr.Name, msgs[i].hdr.Namelen = &to[0], uint32(len(to))
		}
	}
	return func(n int) int {
		x.msgs = msgs[:n]
		if err := rc.Control(x.bound); err != nil {
			t.Fatal(err)
		}
		if x.errno == unix.EAGAIN {
			return 0
		}
		if x.errno != 0 {
			t.Fatal(x.errno)
		}
		return x.n
	}
}

// wire is a guest's wire, as who serves it uses it, and the VMM's socket.
type hotWire struct {
	name string
	make func(testing.TB) (link.Link, net.Conn)
}

var hotWires = []hotWire{
	{"own", func(t testing.TB) (link.Link, net.Conn) {
		near, far := pair(t, "unixgram")
		l := NewLink(near, Options{})
		t.Cleanup(func() { l.Close() })
		return l, far
	}},
	{"vfkit", func(t testing.TB) (link.Link, net.Conn) { return guestOf(t, true) }},
	{"qemu", func(t testing.TB) (link.Link, net.Conn) { return guestOf(t, false) }},
	{"vfkit plain", func(t testing.TB) (link.Link, net.Conn) {
		l, c := guestOf(t, true)
		return l.(*polledPeer).peer, c
	}},
	{"qemu plain", func(t testing.TB) (link.Link, net.Conn) {
		l, c := guestOf(t, false)
		return l.(*polledPeer).peer, c
	}},
}

// addressed is a socket that is not connected, and the sockaddr that it sends to.
type addressed struct {
	*net.UnixConn
	to []byte
}

func guestOf(t testing.TB, connected bool) (link.Link, net.Conn) {
	b := newBed(t, false, Options{})
	c := b.client(t, "c", connected)
	b.send(t, c, []byte(greeting))
	l, _ := b.accept(t)
	if ok, err := l.(link.Polled).Poll(func(int) error { return nil }); !ok || err != nil {
		t.Fatal(err)
	}
	if !connected {
		family := binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX)
		return l, addressed{c, append(append(family, b.path()...), 0)}
	}
	return l, c
}

// reads returns a function that has frames sent by the far end and reads them.
func reads(t testing.TB, w hotWire, count, size int) func() {
	l, far := w.make(t)
	setBuffers(far)
	send := peerOf(t, far, unix.SYS_SENDMMSG, count, size)
	b := batch()
	read := l.ReadFrames
	if p, ok := l.(link.Polled); ok {
		// Waiting as a loop does: who looks again and again keeps Go's poller, and with it a shared socket's reader, waiting.
		wait := []unix.PollFd{{Events: unix.POLLIN}}
		if ok, err := p.Poll(func(fd int) error { wait[0].Fd = int32(fd); return nil }); !ok || err != nil {
			t.Fatal(ok, err)
		}
		read = func(b *link.Batch) error {
			err := p.TryReadFrames(b)
			if err == link.ErrWait {
				unix.Poll(wait, int(patience/time.Millisecond))
			}
			return err
		}
	}
	return func() {
		for sent, got := 0, 0; got < count; {
			sent += send(count - sent)
			b.Next()
			if err := read(b); err != nil && !errors.Is(err, link.ErrWait) {
				t.Fatal(err)
			}
			got += len(b.Frames)
		}
	}
}

// writes returns a function that writes frames and has them read at the far end.
func writes(t testing.TB, w hotWire, count, size int) func() {
	l, far := w.make(t)
	receive := peerOf(t, far, unix.SYS_RECVMMSG, count, longest)
	frames := make([]link.Frame, count)
	for i := range frames {
		frames[i] = cut(pattern(size, i), 1)
	}
	write := l.WriteFrames
	if p, ok := l.(link.Polled); ok {
		write = p.TryWriteFrames
	}
	return func() {
		for rest := frames; len(rest) > 0; {
			n, err := write(rest)
			if err != nil && !errors.Is(err, link.ErrWait) {
				t.Fatal(err)
			}
			rest = rest[n:]
			for n > 0 {
				n -= receive(n)
			}
		}
	}
}

func benchmark(b *testing.B, what func(testing.TB, hotWire, int, int) func()) {
	for _, w := range hotWires {
		for _, c := range hot {
			b.Run(fmt.Sprintf("%s/%d of %d", w.name, c.count, c.size), func(b *testing.B) {
				one := what(b, w, c.count, c.size)
				b.SetBytes(int64(c.count * c.size))
				b.ReportAllocs()
				for b.Loop() {
					one()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(c.count), "ns/frame")
			})
		}
	}
}

func BenchmarkRead(b *testing.B)  { benchmark(b, reads) }
func BenchmarkWrite(b *testing.B) { benchmark(b, writes) }

func TestAllocs(t *testing.T) {
	for _, w := range hotWires {
		for _, c := range hot {
			for what, f := range map[string]func(testing.TB, hotWire, int, int) func(){"read": reads, "write": writes} {
				t.Run(fmt.Sprintf("%s %s %d of %d", w.name, what, c.count, c.size), func(t *testing.T) {
					one := f(t, w, c.count, c.size)
					for range 100 {
						one()
					}
					// A collection empties sync.Pool, so one in a hundred is none.
					n := testing.AllocsPerRun(200, one)
					for try := 0; n > 0.5 && try < 5; try++ { // what other goroutines of the process allocate is counted too
						n = testing.AllocsPerRun(200, one)
					}
					if n > 0.5 {
						t.Errorf("%v allocations a batch", n)
					}
				})
			}
		}
	}
}
