package vfkit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// pair is a socket of a kind and its far end.
func pair(t testing.TB, kind string) (near, far net.Conn) {
	t.Helper()
	if kind == "udp" {
		return udpPair(t)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, map[string]int{"unixgram": unix.SOCK_DGRAM, "unixpacket": unix.SOCK_SEQPACKET}[kind]|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		ends[i], err = Connected(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		setBuffers(ends[i])
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends[0], ends[1]
}

func udpPair(t testing.TB) (near, far net.Conn) {
	t.Helper()
	a, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	at := a.LocalAddr().(*net.UDPAddr)
	a.Close()
	far, err = net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, at)
	if err == nil {
		near, err = net.DialUDP("udp", at, far.LocalAddr().(*net.UDPAddr))
	}
	if err != nil {
		t.Fatal(err)
	}
	setBuffers(far)
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

var kinds = []string{"unixgram", "unixpacket", "udp"}

// pattern is a frame that no other is.
func pattern(n, seed int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(n), uint64(seed)))
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	if n > 0 {
		b[0] = 0x52 // no greeting
	}
	return b
}

// cut is a frame in pieces.
func cut(b []byte, pieces int) link.Frame {
	n := len(b) / (pieces + 1)
	f := link.NewFrame(b[:n])
	for i := 1; i <= pieces; i++ {
		end := (i + 1) * n
		if i == pieces {
			end = len(b)
		}
		f.Body = append(f.Body, b[i*n:end])
	}
	return f
}

var sizes = []int{14, 60, 1514, 66, 2047, 2048, 2049, 1514, 9014, 60, 65507, 42, 42, 69632, 15, 1514, 1514, 40000, 40000, 14}

// read gets want frames, by the means that get gives.
func readAll(t *testing.T, get func(*link.Batch) error, want int) (frames [][]byte, b *link.Batch) {
	t.Helper()
	b = &link.Batch{}
	for len(frames) < want {
		b.Next()
		if err := get(b); err != nil {
			t.Fatalf("after %d of %d frames: %v", len(frames), want, err)
		}
		for _, s := range b.Frames {
			frames = append(frames, b.AppendTo(nil, s))
		}
	}
	return frames, b
}

// polling is ReadFrames by way of TryReadFrames.
func polling(t *testing.T, l link.Link) func(*link.Batch) error {
	t.Helper()
	p := l.(link.Polled)
	var d int
	if ok, err := p.Poll(func(fd int) error { d = fd; return nil }); !ok || err != nil {
		t.Fatalf("poll: %v, %v", ok, err)
	}
	return func(b *link.Batch) error {
		for {
			err := p.TryReadFrames(b)
			if !errors.Is(err, link.ErrWait) {
				return err
			}
			fds := []unix.PollFd{{Fd: int32(d), Events: unix.POLLIN}}
			if n, err := unix.Poll(fds, int(patience/time.Millisecond)); n == 0 {
				return fmt.Errorf("nothing came (%v)", err)
			}
		}
	}
}

func TestRead(t *testing.T) {
	for _, kind := range kinds {
		for _, how := range []string{"wait", "poll"} {
			t.Run(kind+" "+how, func(t *testing.T) {
				near, far := pair(t, kind)
				l := NewLink(near, Options{})
				defer l.Close()
				get := l.ReadFrames
				if how == "poll" {
					get = polling(t, l)
				}
				near.SetReadDeadline(time.Now().Add(patience))
				var want [][]byte
				for round := range 5 {
					for i, n := range sizes {
						if kind == "udp" {
							n = min(n, maxUDP)
						}
						want = append(want, pattern(n, round*100+i))
					}
				}
				failed := make(chan error, 1)
				go func() {
					for i, b := range want {
						if _, err := far.Write(b); err != nil {
							failed <- fmt.Errorf("frame %d: %w", i, err)
							return
						}
						if kind == "udp" && i%10 == 9 {
							time.Sleep(time.Millisecond) // its buffer drops what does not fit
						}
					}
					failed <- nil
				}()
				got, b := readAll(t, get, len(want))
				if err := <-failed; err != nil {
					t.Fatal(err)
				}
				for i := range want {
					if !bytes.Equal(got[i], want[i]) {
						t.Fatalf("frame %d of %d bytes came with %d", i, len(want[i]), len(got[i]))
					}
				}
				if b.Malformed != 0 {
					t.Errorf("%d malformed", b.Malformed)
				}
			})
		}
	}
}

// What is no frame is passed over, and counted but for the greeting.
func TestReadPassesOver(t *testing.T) {
	for _, kind := range kinds {
		for _, before := range []int{60, 5000} { // short and long frames are read in different ways
			t.Run(fmt.Sprintf("%s behind %d", kind, before), func(t *testing.T) {
				near, far := pair(t, kind)
				l := NewLink(near, Options{})
				defer l.Close()
				near.SetReadDeadline(time.Now().Add(patience))
				send := [][]byte{pattern(before, 1), []byte(greeting), {}, {0}, []byte("VFKS"), pattern(13, 1), pattern(60, 2), []byte(greeting), pattern(1514, 3)}
				wrong := 4
				if kind != "udp" {
					send = append(send, pattern(link.MaxFrame+1, 1), pattern(link.MaxFrame+1000, 1), pattern(61, 4))
					wrong += 2
				}
				send = append(send, pattern(62, 5))
				var want [][]byte
				for _, b := range send {
					if len(b) >= 14 && len(b) <= link.MaxFrame {
						want = append(want, b)
					}
				}
				go func() {
					for _, b := range send {
						far.Write(b)
					}
				}()
				var got [][]byte
				malformed := 0
				for len(got) < len(want) {
					var b link.Batch
					if err := l.ReadFrames(&b); err != nil {
						t.Fatal(err)
					}
					for _, s := range b.Frames {
						got = append(got, b.AppendTo(nil, s))
					}
					malformed += b.Malformed
				}
				for i := range want {
					if !bytes.Equal(got[i], want[i]) {
						t.Errorf("frame %d of %d bytes came with %d", i, len(want[i]), len(got[i]))
					}
				}
				if malformed != wrong {
					t.Errorf("%d malformed, want %d", malformed, wrong)
				}
			})
		}
	}
}

func TestWrite(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			near, far := pair(t, kind)
			l := NewLink(near, Options{})
			defer l.Close()
			var frames []link.Frame
			var want [][]byte
			for i, n := range sizes {
				if kind == "udp" {
					n = min(n, maxUDP)
				}
				b := pattern(n, i)
				want = append(want, b)
				frames = append(frames, cut(b, i%4))
			}
			many := pattern(1500, 99) // in more pieces than a message may have
			want = append(want, many)
			frames = append(frames, cut(many, 1400))
			wrote := make(chan error, 1)
			go func() {
				n, err := l.WriteFrames(frames)
				if n != len(frames) && err == nil {
					err = fmt.Errorf("%d of %d frames", n, len(frames))
				}
				wrote <- err
			}()
			buf := make([]byte, 1<<17)
			far.SetReadDeadline(time.Now().Add(patience))
			for i := range want {
				n, err := far.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(buf[:n], want[i]) {
					t.Fatalf("frame %d of %d bytes came with %d", i, len(want[i]), n)
				}
			}
			if err := <-wrote; err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A seqpacket socket's end is the wire's; a message of no bytes is not. A datagram socket's end is seen by who sends.
func TestEnds(t *testing.T) {
	near, far := pair(t, "unixpacket")
	l := NewLink(near, Options{})
	far.Write(nil)
	far.Write(pattern(60, 1))
	if got, b := readAll(t, l.ReadFrames, 1); len(got[0]) != 60 || b.Malformed != 1 {
		t.Errorf("%d bytes, %d malformed", len(got[0]), b.Malformed)
	}
	far.Write(pattern(61, 1))
	far.Close()
	if got, _ := readAll(t, l.ReadFrames, 1); len(got[0]) != 61 {
		t.Errorf("before the end: %d bytes", len(got[0]))
	}
	if err := l.ReadFrames(&link.Batch{}); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	if err := l.(link.Polled).TryReadFrames(&link.Batch{}); err != io.EOF {
		t.Errorf("at the end, polled: %v", err)
	}
	if _, err := l.WriteFrames([]link.Frame{link.NewFrame(pattern(60, 1))}); err != io.EOF {
		t.Errorf("written behind the end: %v", err)
	}
	l.Close()

	near, far = pair(t, "unixgram")
	l = NewLink(near, Options{})
	far.Close()
	if _, err := l.WriteFrames([]link.Frame{link.NewFrame(pattern(60, 1))}); err != io.EOF {
		t.Errorf("to a datagram socket that is gone: %v", err)
	}
	l.Close()
	if err := l.ReadFrames(&link.Batch{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}

	near, far = pair(t, "udp") // GNS3's node may be started later
	l = NewLink(near, Options{})
	defer l.Close()
	at := far.LocalAddr().(*net.UDPAddr)
	far.Close()
	for range 5 {
		if n, err := l.WriteFrames([]link.Frame{link.NewFrame(pattern(60, 1))}); n != 1 || err != nil {
			t.Fatalf("to a closed port: %d, %v", n, err)
		}
	}
	far, err := net.DialUDP("udp", at, near.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	far.Write(pattern(60, 2))
	near.SetReadDeadline(time.Now().Add(patience))
	if _, b := readAll(t, l.ReadFrames, 1); b.Overrun == 0 {
		t.Error("what could not be sent is not counted")
	}
}

// A peer that does not read makes its writer wait, and nobody else; Close wakes it.
func TestDeafPeer(t *testing.T) {
	for _, kind := range []string{"unixgram", "unixpacket"} {
		t.Run(kind, func(t *testing.T) {
			near, _ := pair(t, kind)
			l := NewLink(near, Options{})
			frames := make([]link.Frame, 5000)
			for i := range frames {
				frames[i] = link.NewFrame(pattern(1514, 1))
			}
			n, err := l.(link.Polled).TryWriteFrames(frames)
			if n == 0 || n == len(frames) || err != link.ErrWait {
				t.Errorf("%d of %d frames taken, %v", n, len(frames), err)
			}
			wrote := make(chan error, 1)
			go func() {
				_, err := l.WriteFrames(frames)
				wrote <- err
			}()
			select {
			case err := <-wrote:
				t.Fatalf("written to nobody: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			l.Close()
			select {
			case err := <-wrote:
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Fatal("Close does not wake it")
			}
		})
	}
}

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		kind      string
		mtu, want int
	}{{"unixgram", 0, 0}, {"unixgram", 1500, 1518}, {"udp", 0, 65507}, {"udp", 1500, 1518}, {"udp", 65520, 65507}} {
		near, _ := pair(t, c.kind)
		l := NewLink(near, Options{MTU: c.mtu})
		if got := l.(link.Limited).MaxFrame(); got != c.want {
			t.Errorf("%s, MTU %d: frames to %d bytes, want %d", c.kind, c.mtu, got, c.want)
		}
		if gives, takes := link.OffloadsOf(l); gives != 0 || takes != 0 {
			t.Errorf("unasked offloads: %v, %v", gives, takes)
		}
		l.Close()
	}
	near, _ := pair(t, "unixgram")
	l := NewLink(near, Options{Offload: true})
	defer l.Close()
	if gives, takes := link.OffloadsOf(l); gives != link.Checksums|link.Segments || takes != 0 {
		t.Errorf("offloads %v, %v", gives, takes)
	}
}

func TestAcceptDescriptor(t *testing.T) {
	dir := t.TempDir()
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	hand := func(fds ...int) (link.Link, error) {
		c, err := net.Dial("unix", filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		c.(*net.UnixConn).WriteMsgUnix([]byte{0}, rights, nil)
		c.Close()
		s, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return AcceptDescriptor(s, Options{})
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := hand(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fds[0])
	unix.Write(fds[1], pattern(60, 1))
	if got, _ := readAll(t, l.ReadFrames, 1); !bytes.Equal(got[0], pattern(60, 1)) {
		t.Error("another frame came")
	}
	l.Close()
	stream, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, wrong := range map[string][]int{"none": {}, "two": {fds[1], fds[1]}, "a stream": {stream[0]}, "no socket": {0}, "thirty": make([]int, 30)} {
		if l, err := hand(wrong...); err == nil {
			l.Close()
			t.Errorf("%s: taken", name)
		}
	}
	for _, fd := range []int{fds[1], stream[0], stream[1]} {
		unix.Close(fd)
	}
}

// Any messages, in any order and any sizes, come as they were or not at all.
func FuzzRead(f *testing.F) {
	f.Add([]byte{0}, byte(0))                                 // nothing at all
	f.Add([]byte{60, 60, 60, 60}, byte(1))                    // small ones, one a read
	f.Add([]byte{255, 60, 255, 60, 255}, byte(9))             // long and short
	f.Add([]byte{120, 4, 4, 5}, byte(9))                      // greetings behind a long one
	f.Add([]byte{4, 0, 1, 13, 14, 15}, byte(2))               // around the shortest
	f.Add(bytes.Repeat([]byte{90, 91, 3, 200}, 20), byte(40)) // many, in long bursts
	f.Fuzz(func(t *testing.T, script []byte, burst byte) {
		if len(script) > 100 {
			script = script[:100]
		}
		near, far := pair(t, "unixgram")
		defer far.Close()
		l := NewLink(near, Options{}).(link.Polled)
		defer l.Close()
		b := &link.Batch{}
		defer b.Release()
		var want [][]byte
		wrong := 0
		check := func() {
			for {
				b.Next()
				err := l.TryReadFrames(b)
				for _, s := range b.Frames {
					got := b.AppendTo(nil, s)
					if len(want) == 0 || !bytes.Equal(got, want[0]) {
						t.Fatalf("a frame of %d bytes came that is not the next", len(got))
					}
					want = want[1:]
				}
				wrong -= b.Malformed
				b.Malformed = 0
				if errors.Is(err, link.ErrWait) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if len(want) != 0 || wrong != 0 {
				t.Fatalf("%d frames have not come; %d malformed ones too few counted", len(want), wrong)
			}
		}
		left := int(burst)%9 + 1 // what a socket holds is 10
		for i, s := range script {
			n := int(s)
			if s >= 100 {
				n = int(s) * int(s) * 69700 / 65025
			}
			m := pattern(n, i)
			if s == 4 {
				copy(m, greeting)
			}
			if _, err := far.Write(m); err != nil {
				t.Fatal(err)
			}
			switch {
			case n >= minFrame && n <= link.MaxFrame:
				want = append(want, m)
			case s != 4:
				wrong++
			}
			if left--; left == 0 {
				check()
				left = int(burst)%9 + 1
			}
		}
		check()
	})
}
