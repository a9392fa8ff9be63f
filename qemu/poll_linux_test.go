package qemu

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/link"
)

// socketpair is a guest's socket, as the loop uses it, and its far end.
func socketpair(t testing.TB, buffer int) (*polled, net.Conn) {
	t.Helper()
	return socketpairOf(t, buffer, NewLink)
}

func socketpairOf(t testing.TB, buffer int, make func(net.Conn) link.Link) (*polled, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ends[i] = c
	}
	l := make(ends[0]).(*polled)
	if buffer > 0 {
		ends[0].(*net.UnixConn).SetWriteBuffer(buffer)
	}
	if ok, err := l.Poll(func(int) error { return nil }); !ok || err != nil {
		t.Fatalf("poll: %v, %v", ok, err)
	}
	return l, ends[1]
}

// Whatever the socket takes at a time, its far end reads whole frames in order: those that were taken, and no other.
func FuzzTryWriteFrames(f *testing.F) {
	f.Fuzz(func(t *testing.T, seed uint64, buffer uint16, sizes []byte) {
		if len(sizes) > 200 {
			sizes = sizes[:200]
		}
		r := rand.New(rand.NewPCG(seed, 1))
		framing := every[seed%uint64(len(every))]
		l, far := socketpairOf(t, max(int(buffer), 1), framing.make)
		var frames []link.Frame
		var want []byte
		for i, s := range sizes {
			n := min(minFrame+int(s)*int(s)%link.MaxFrame, framing.most)
			b := pattern(n, i)
			frames = append(frames, cutAnywhere(b, r))
			want = framing.length(want, n)
			want = append(want, b...)
		}
		far.SetReadDeadline(time.Now().Add(20 * time.Second))
		var got []byte
		buf := make([]byte, 1<<16)
		read := func() {
			n, err := far.Read(buf[:1+r.IntN(len(buf))])
			if err != nil {
				t.Fatalf("after %d of %d bytes: %v", len(got), len(want), err)
			}
			got = append(got, buf[:n]...)
		}
		for rest := frames; ; {
			most := min(len(rest), 1+r.IntN(40))
			n, err := l.TryWriteFrames(rest[:most])
			if n < most && !errors.Is(err, link.ErrWait) || err != nil && !errors.Is(err, link.ErrWait) {
				t.Fatalf("%d of %d frames taken: %v", n, most, err)
			}
			for i := range rest[:n] { // taken: their memory is ours again
				clear(rest[i].Head)
				for j, p := range rest[i].Body {
					rest[i].Body[j] = bytes.Repeat([]byte{0xee}, len(p))
				}
			}
			rest = rest[n:]
			if errors.Is(err, link.ErrWait) {
				read()
				continue
			}
			if len(rest) == 0 {
				break
			}
		}
		l.Close()
		far.SetReadDeadline(time.Now().Add(20 * time.Second))
		more, err := io.ReadAll(far)
		if got = append(got, more...); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes came, %v, want %d; the first that differs is at %d", len(got), err, len(want), differ(got, want))
		}
	})
}

// A frame in more pieces than one system call takes is a frame like any other.
func TestTryWriteFramesOfManyPieces(t *testing.T) {
	for _, pieces := range []int{maxVec - 2, maxVec - 1, maxVec, 5000} {
		l, far := socketpair(t, 0)
		want := pattern(14+pieces, pieces)
		f := link.NewFrame(want[:14])
		for i := range pieces {
			f.Body = append(f.Body, want[14+i:15+i])
		}
		small := link.NewFrame(pattern(60, 1))
		if n, err := l.TryWriteFrames([]link.Frame{small, f, small}); n != 3 || err != nil {
			t.Fatalf("%d pieces: %d of 3 frames taken, %v", pieces, n, err)
		}
		b := &link.Batch{}
		if err := NewLink(far).ReadFrames(b); err != nil || len(b.Frames) != 3 {
			t.Fatalf("%d pieces: %d frames came, %v", pieces, len(b.Frames), err)
		}
		if got := b.AppendTo(nil, b.Frames[1]); !bytes.Equal(got, want) {
			t.Errorf("%d pieces: other bytes came, from %d on", pieces, differ(got, want))
		}
	}
}

// Frames that lie in one piece of memory but for their lengths' room leave as one piece, whole.
func TestTryWriteFramesOfNeighbours(t *testing.T) {
	l, far := socketpair(t, 0)
	const room = link.Headroom - prefixLen // of each frame's headroom, the end of the one before
	if n := l.Prefix(); n != prefixLen {
		t.Fatalf("a prefix of %d bytes, want %d", n, prefixLen)
	}
	arena := make([]byte, room, 1<<16)
	var frames []link.Frame
	var want [][]byte
	for i := range 300 {
		want = append(want, pattern(60+i%90, i))
		o := len(arena) - room
		arena = append(arena, 0xee, 0xee, 0xee, 0xee)
		arena = append(arena, want[i]...)
		frames = append(frames, link.Frame{Head: arena[o:len(arena):len(arena)]})
	}
	if n, err := l.TryWriteFrames(frames); n != len(frames) || err != nil {
		t.Fatalf("%d of %d frames taken, %v", n, len(frames), err)
	}
	if n := len(l.out.vec); n != 1 {
		t.Errorf("they left in %d pieces, want 1", n)
	}
	l.Close()
	got, err := all(NewLink(far))
	if err != io.EOF || len(got) != len(want) {
		t.Fatalf("%d frames came, %v; want %d", len(got), err, len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("frame %d is another, from %d on", i, differ(got[i], want[i]))
		}
	}
}

// all reads until the wire ends.
func all(l link.Link) (frames [][]byte, err error) {
	var b link.Batch
	for {
		b.Next()
		if err := l.ReadFrames(&b); err != nil {
			return frames, err
		}
		for _, s := range b.Frames {
			frames = append(frames, b.AppendTo(nil, s))
		}
	}
}
