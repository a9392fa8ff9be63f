//go:build linux

package qemu

// What a frame costs on the socket, in time, which nobody judges, and in allocations, which TestAllocs does.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/link"
)

// descriptor is what c stands on, for system calls that cost nothing beside.
func descriptor(t testing.TB, c net.Conn) int {
	t.Helper()
	rc, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var d int
	rc.Control(func(fd uintptr) { d = int(fd) })
	return d
}

// prefixLen is QEMU's.
const prefixLen = 4

// written are frames as the splitter makes them: headers one behind the other in an arena, long payload elsewhere.
func written(count, size int) []link.Frame {
	const hdr, inline = 66, 512
	arena := make([]byte, 0, count*(link.Headroom+hdr+inline))
	var frames []link.Frame
	for range count {
		n := hdr
		var body [][]byte
		if size <= inline {
			n += size
		} else {
			body = [][]byte{make([]byte, size)}
		}
		o := len(arena)
		if o > 0 { // only the length needs room
			o -= link.Headroom - prefixLen
		}
		arena = arena[:o+link.Headroom+n]
		frames = append(frames, link.Frame{Head: arena[o:len(arena):len(arena)], Body: body})
	}
	return frames
}

var hotWrites = []struct{ count, size int }{{64, 0}, {64, 200}, {1, 0}, {45, 1448}, {1, 65000}}

func BenchmarkTryWriteFrames(b *testing.B) {
	for _, tt := range hotWrites {
		b.Run(fmt.Sprintf("%d of %d", tt.count, tt.size), func(b *testing.B) {
			write := writes(b, tt.count, tt.size)
			b.SetBytes(int64(tt.count * (tt.size + 66)))
			b.ReportAllocs()
			for b.Loop() {
				write()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(tt.count), "ns/frame")
		})
	}
}

// writes returns a function that writes frames and has them read at the far end.
func writes(t testing.TB, count, size int) func() {
	l, far := socketpair(t, 0)
	frames := written(count, size)
	fd := descriptor(t, far)
	sink := make([]byte, 1<<20)
	return func() {
		if n, err := l.TryWriteFrames(frames); n != len(frames) || err != nil {
			t.Fatalf("%d frames, %v", n, err)
		}
		for left := count * (prefixLen + 66 + size); left > 0; {
			n, err := unix.Read(fd, sink)
			if err != nil {
				t.Fatal(err)
			}
			left -= n
		}
	}
}

// reads returns a function that has frames sent by the far end and reads them.
func reads(t testing.TB, count, size int) func() {
	l, far := socketpair(t, 0)
	var wire []byte
	for range count {
		wire = binary.BigEndian.AppendUint32(wire, uint32(size+66))
		wire = append(wire, make([]byte, size+66)...)
	}
	fd := descriptor(t, far)
	far.(*net.UnixConn).SetWriteBuffer(1 << 20)
	b := &link.Batch{}
	free := []link.Chunk{}
	b.Alloc = func() link.Chunk {
		if n := len(free); n > 0 {
			c := free[n-1]
			free = free[:n-1]
			return c
		}
		return link.Chunk{Mem: make([]byte, link.ChunkSize)}
	}
	b.Free = func(c link.Chunk) { free = append(free, c) }
	return func() {
		if n, err := unix.Write(fd, wire); n != len(wire) || err != nil {
			t.Fatalf("%d bytes written, %v", n, err)
		}
		for got := 0; got < count; {
			b.Next()
			if err := l.TryReadFrames(b); err != nil && !errors.Is(err, link.ErrWait) {
				t.Fatal(err)
			}
			got += len(b.Frames)
		}
	}
}

func BenchmarkTryReadFrames(b *testing.B) {
	for _, tt := range hotWrites {
		b.Run(fmt.Sprintf("%d of %d", tt.count, tt.size), func(b *testing.B) {
			read := reads(b, tt.count, tt.size)
			b.SetBytes(int64(tt.count * (tt.size + 66)))
			b.ReportAllocs()
			for b.Loop() {
				read()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(tt.count), "ns/frame")
		})
	}
}

// BenchmarkCut is the framing alone.
func BenchmarkCut(b *testing.B) {
	const count, size = 170, 1514
	var wire []byte
	for range count {
		wire = binary.BigEndian.AppendUint32(wire, size)
		wire = append(wire, make([]byte, size)...)
	}
	s := &stream{prefix: prefixLen}
	batch := &link.Batch{}
	batch.Append(wire)
	b.ReportAllocs()
	for b.Loop() {
		c := *batch
		if err := s.cut(&c); err != nil || len(c.Frames) != count {
			b.Fatalf("%d frames, %v", len(c.Frames), err)
		}
		batch.Frames = c.Frames[:0]
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(count), "ns/frame")
}

func TestAllocs(t *testing.T) {
	for _, tt := range hotWrites {
		for what, f := range map[string]func(testing.TB, int, int) func(){"read": reads, "write": writes} {
			t.Run(fmt.Sprintf("%s %d of %d", what, tt.count, tt.size), func(t *testing.T) {
				one := f(t, tt.count, tt.size)
				for range 20 {
					one()
				}
				if n := testing.AllocsPerRun(100, one); n != 0 {
					t.Errorf("%v allocations a batch", n)
				}
			})
		}
	}
	l, _ := socketpair(t, 0)
	b := &link.Batch{}
	if n := testing.AllocsPerRun(100, func() {
		if err := l.TryReadFrames(b); !errors.Is(err, link.ErrWait) {
			t.Errorf("an idle socket: %v", err)
		}
	}); n != 0 {
		t.Errorf("%v allocations to see that there is nothing", n)
	}
}
