package vfkit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/link"
)

// bed is a Listener and what its clients need.
type bed struct {
	*Listener
	dir  string
	mu   sync.Mutex
	said []string
}

func unixgram(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newBed(t testing.TB, again bool, o Options) *bed {
	t.Helper()
	b := &bed{dir: t.TempDir()}
	o.Refused = func(err error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.said = append(b.said, err.Error())
	}
	if again {
		o.Again = func() (Conn, error) {
			c := unixgram(t, filepath.Join(b.dir, "next"))
			return c, os.Rename(filepath.Join(b.dir, "next"), b.path())
		}
	}
	b.Listener = Listen(unixgram(t, b.path()), o)
	t.Cleanup(func() { b.Close() })
	return b
}

func (b *bed) path() string { return filepath.Join(b.dir, "s") }

func (b *bed) says() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.said, "\n")
}

// client is a VMM's socket: connected as vfkit's and libkrun's are, or not, as QEMU's.
func (b *bed) client(t testing.TB, name string, connected bool) *net.UnixConn {
	t.Helper()
	at := &net.UnixAddr{Net: "unixgram", Name: filepath.Join(b.dir, name)}
	os.Remove(at.Name)
	var c *net.UnixConn
	var err error
	if connected {
		c, err = net.DialUnix("unixgram", at, &net.UnixAddr{Net: "unixgram", Name: b.path()})
	} else {
		c, err = net.ListenUnixgram("unixgram", at)
	}
	if err != nil {
		t.Fatal(err)
	}
	setBuffers(c)
	t.Cleanup(func() { c.Close() })
	return c
}

// send sends from a client, however it is.
func (b *bed) send(t testing.TB, c *net.UnixConn, msg []byte) {
	t.Helper()
	var err error
	if c.RemoteAddr() != nil && c.RemoteAddr().(*net.UnixAddr) != nil && c.RemoteAddr().String() != "" {
		_, err = c.Write(msg)
	} else {
		_, err = c.WriteTo(msg, &net.UnixAddr{Net: "unixgram", Name: b.path()})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bed) accept(t testing.TB) (link.Link, string) {
	t.Helper()
	type guest struct {
		l    link.Link
		peer string
		err  error
	}
	got := make(chan guest, 1)
	go func() {
		l, peer, err := b.Accept()
		got <- guest{l, peer, err}
	}()
	select {
	case g := <-got:
		if g.err != nil {
			t.Fatal(g.err)
		}
		return g.l, g.peer
	case <-time.After(patience):
		t.Fatalf("no guest came; refused: %s", b.says())
	}
	return nil, ""
}

func receive(t testing.TB, c net.Conn) []byte {
	t.Helper()
	buf := make([]byte, longest)
	c.SetReadDeadline(time.Now().Add(patience))
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func write(t testing.TB, l link.Link, frames ...[]byte) {
	t.Helper()
	var all []link.Frame
	for i, f := range frames {
		all = append(all, cut(f, i%3))
	}
	if n, err := l.WriteFrames(all); n != len(all) || err != nil {
		t.Fatalf("%d of %d frames written, %v", n, len(all), err)
	}
}

// Any number of guests on one socket, each with its own frames.
func TestManyGuests(t *testing.T) {
	for _, connected := range []bool{false, true} {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprintf("connected %v again %v", connected, again), func(t *testing.T) {
				b := newBed(t, again, Options{})
				const guests = 20
				var clients, echoes sync.WaitGroup
				for i := range guests {
					c := b.client(t, fmt.Sprintf("c%d", i), connected)
					first := pattern(60, i)
					if i%2 == 0 {
						b.send(t, c, []byte(greeting))
					} else {
						b.send(t, c, first)
					}
					l, peer := b.accept(t)
					if want := fmt.Sprintf(" from %s/c%d", b.dir, i); peer != want {
						t.Fatalf("guest%s, want%s", peer, want)
					}
					if i%2 == 0 {
						b.send(t, c, first)
					}
					if got, _ := readAll(t, l.ReadFrames, 1); !bytes.Equal(got[0], first) {
						t.Fatalf("guest %d: another first frame", i)
					}
					echoes.Go(func() {
						var batch link.Batch
						for {
							batch.Next()
							if l.ReadFrames(&batch) != nil {
								return
							}
							for _, s := range batch.Frames {
								l.WriteFrames([]link.Frame{link.NewFrame(batch.AppendTo(nil, s))})
							}
						}
					})
					clients.Go(func() {
						for n := range 50 {
							f := pattern(sizes[n%len(sizes)], i*100+n)
							b.send(t, c, f)
							if got := receive(t, c); !bytes.Equal(got, f) {
								t.Errorf("guest %d, frame %d of %d bytes came back with %d", i, n, len(f), len(got))
								return
							}
						}
					})
				}
				clients.Wait()
				b.Close()
				echoes.Wait()
				if s := b.says(); s != "" {
					t.Error(s)
				}
			})
		}
	}
}

// A guest that does not read stalls nobody, whatever its socket is.
func TestDeafGuest(t *testing.T) {
	for _, connected := range []bool{false, true} {
		t.Run(fmt.Sprintf("connected %v", connected), func(t *testing.T) {
			b := newBed(t, true, Options{})
			var deaf []link.Link
			var wrote sync.WaitGroup
			for i := range 5 {
				c := b.client(t, fmt.Sprintf("deaf%d", i), connected)
				b.send(t, c, []byte(greeting))
				l, _ := b.accept(t)
				deaf = append(deaf, l)
				wrote.Go(func() {
					for {
						if _, err := l.WriteFrames([]link.Frame{link.NewFrame(pattern(60000, i))}); err != nil {
							if !errors.Is(err, net.ErrClosed) {
								t.Errorf("deaf guest %d: %v", i, err)
							}
							return
						}
					}
				})
			}
			c := b.client(t, "good", connected)
			b.send(t, c, []byte(greeting))
			l, _ := b.accept(t)
			defer time.AfterFunc(patience, func() { l.Close() }).Stop()
			for n := range 500 {
				f := pattern(60000, n)
				write(t, l, f)
				if got := receive(t, c); !bytes.Equal(got, f) {
					t.Fatalf("frame %d is another", n)
				}
			}
			for _, l := range deaf {
				l.Close()
			}
			wrote.Wait()
		})
	}
}

// A guest served by a loop is the same guest: what it sends makes its descriptor readable, and so does room for what it
// is sent, once it has read.
func TestPolledGuest(t *testing.T) {
	for _, connected := range []bool{false, true} {
		t.Run(fmt.Sprintf("connected %v", connected), func(t *testing.T) {
			b := newBed(t, true, Options{})
			c := b.client(t, "c", connected)
			b.send(t, c, pattern(60, 0))
			l, _ := b.accept(t)
			get := polling(t, l) // finds what was there before
			if got, _ := readAll(t, get, 1); !bytes.Equal(got[0], pattern(60, 0)) {
				t.Fatal("another first frame")
			}
			if err := l.(link.Polled).TryReadFrames(&link.Batch{}); err != link.ErrWait {
				t.Errorf("nothing is there: %v", err)
			}
			go func() {
				for i, n := range sizes {
					c.SetWriteDeadline(time.Now().Add(patience))
					b.send(t, c, pattern(n, i))
				}
			}()
			got, _ := readAll(t, get, len(sizes))
			for i, n := range sizes {
				if !bytes.Equal(got[i], pattern(n, i)) {
					t.Fatalf("frame %d of %d bytes came with %d", i, n, len(got[i]))
				}
			}
			var frames []link.Frame
			for i := range 2000 {
				frames = append(frames, cut(pattern(1514, i), i%4))
			}
			rest, waits := frames, 0
			var d int
			l.(link.Polled).Poll(func(fd int) error { d = fd; return nil })
			for n := 0; n < len(frames); {
				k, err := l.(link.Polled).TryWriteFrames(rest)
				rest = rest[k:]
				if err != nil && err != link.ErrWait {
					t.Fatal(err)
				}
				if err == link.ErrWait {
					waits++
					fds := []unix.PollFd{{Fd: int32(d), Events: unix.POLLIN}}
					if k == 0 && waits%5 == 0 { // nothing has been read: it would not say so
						if ready, _ := unix.Poll(fds, 0); ready != 0 && !connected {
							t.Error("there is room, and there is none")
						}
					}
				}
				for range 1 + waits%7 {
					if n < len(frames)-len(rest) {
						if got := receive(t, c); !bytes.Equal(got, pattern(1514, n)) {
							t.Fatalf("frame %d is another", n)
						}
						n++
					}
				}
				if err == link.ErrWait {
					fds := []unix.PollFd{{Fd: int32(d), Events: unix.POLLIN}}
					ready, err := unix.Poll(fds, int(patience/time.Millisecond))
					for err == unix.EINTR { // Go's scheduler signals its threads
						ready, err = unix.Poll(fds, int(patience/time.Millisecond))
					}
					if ready != 1 {
						t.Fatalf("there is room, and it is not said (%v)", err)
					}
					if err := l.(link.Polled).TryReadFrames(&link.Batch{}); err != link.ErrWait {
						t.Fatal(err)
					}
				}
			}
			if waits == 0 {
				t.Error("it never had to wait")
			}
			c.Close()
			for range 2 {
				if _, err := l.(link.Polled).TryWriteFrames(frames[:1]); err != io.EOF && !errors.Is(err, net.ErrClosed) {
					t.Errorf("to who has gone: %v", err)
				}
			}
			if err := get(&link.Batch{}); err != io.EOF {
				t.Errorf("the end: %v", err)
			}
			l.Close()
			if ok, err := l.(link.Polled).Poll(func(int) error { return nil }); ok || !errors.Is(err, net.ErrClosed) {
				t.Errorf("after Close: %v, %v", ok, err)
			}
		})
	}
}

// A guest that has gone is ended by what is sent to it, and comes back, at the same path or another.
func TestGuestComesBack(t *testing.T) {
	for _, connected := range []bool{false, true} {
		t.Run(fmt.Sprintf("connected %v", connected), func(t *testing.T) {
			b := newBed(t, true, Options{})
			for round := range 4 {
				c := b.client(t, fmt.Sprintf("c%d", round/2), connected)
				b.send(t, c, pattern(60, round))
				l, _ := b.accept(t)
				write(t, l, pattern(61, round))
				if got := receive(t, c); !bytes.Equal(got, pattern(61, round)) {
					t.Fatal("another frame")
				}
				readAll(t, l.ReadFrames, 1)
				c.Close()
				if round%2 == 1 {
					os.Remove(filepath.Join(b.dir, fmt.Sprintf("c%d", round/2)))
				}
				if _, err := l.WriteFrames([]link.Frame{link.NewFrame(pattern(60, 1))}); err != io.EOF {
					t.Errorf("write to who has gone: %v", err)
				}
				if err := l.ReadFrames(&link.Batch{}); err != io.EOF {
					t.Errorf("read from who has gone: %v", err)
				}
				l.Close()
			}
		})
	}
}

// A greeting behind frames is a VM that has been started anew.
func TestGreetingAgain(t *testing.T) {
	b := newBed(t, false, Options{})
	c := b.client(t, "c", true)
	b.send(t, c, []byte(greeting))
	b.send(t, c, []byte(greeting)) // twice at the start is once
	b.send(t, c, pattern(60, 1))
	one, _ := b.accept(t)
	readAll(t, one.ReadFrames, 1)
	b.send(t, c, []byte(greeting))
	b.send(t, c, pattern(60, 2))
	two, _ := b.accept(t)
	if err := one.ReadFrames(&link.Batch{}); err != io.EOF {
		t.Errorf("the guest before: %v", err)
	}
	if got, _ := readAll(t, two.ReadFrames, 1); !bytes.Equal(got[0], pattern(60, 2)) {
		t.Error("another frame")
	}
	write(t, two, pattern(62, 3))
	if got := receive(t, c); !bytes.Equal(got, pattern(62, 3)) {
		t.Error("another frame")
	}
}

// Who cannot be answered is no guest, and nobody's memory.
func TestRefused(t *testing.T) {
	b := newBed(t, false, Options{})
	unnamed, err := net.Dial("unixgram", b.path())
	if err != nil {
		t.Fatal(err)
	}
	defer unnamed.Close()
	for range 1000 {
		unnamed.Write(pattern(60, 1))
	}
	b.send(t, b.client(t, "short", false), []byte("VFKS"))
	b.send(t, b.client(t, "none", false), nil)
	gone := b.client(t, "gone", false)
	os.Remove(filepath.Join(b.dir, "gone"))
	for range 100 {
		b.send(t, gone, pattern(60, 1))
	}
	c := b.client(t, "c", false)
	b.send(t, c, pattern(60, 1))
	if _, peer := b.accept(t); !strings.HasSuffix(peer, "/c") {
		t.Errorf("a guest%s", peer)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	names, answers := 0, 0
	for _, s := range b.said {
		switch {
		case strings.Contains(s, "without a name"):
			names++
		case strings.Contains(s, "/gone cannot be answered") && strings.Contains(s, "whole path"):
			answers++
		default:
			t.Error(s)
		}
	}
	if names != 1000 || answers != 1 {
		t.Errorf("%d and %d refused, want 1000 and 1", names, answers)
	}
}

// Ever other addresses make no more guests than there are places, and those who are there stay.
func TestFloodOfAddresses(t *testing.T) {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	l := Listen(c, Options{Refused: func(error) { refused++ }})
	defer l.Close()
	s := l.sockets[0]
	name := func(i int) []byte {
		return []byte{unix.AF_INET, 0, byte(i >> 8), byte(i), 127, 0, byte(i >> 16), 1, 0, 0, 0, 0, 0, 0, 0, 0}
	}
	take := func() (n int) {
		for {
			select {
			case <-l.come:
				n++
			default:
				return n
			}
		}
	}
	frame := pattern(60, 1)
	now := time.Now()
	s.now = now.UnixNano()
	for range fewWords {
		s.deliver(name(0), frame, nil)
	}
	for i := 1; i < 100_000; i++ {
		s.deliver(name(i), frame, nil)
	}
	if n := take(); n < peersBurst || n > 3*peersBurst {
		t.Errorf("%d guests at once", n)
	}
	if len(l.peers) > 3*peersBurst || refused < 90_000 {
		t.Errorf("%d guests, %d refused", len(l.peers), refused)
	}
	// With time all places are taken, and the last who spoke a word gives way, who is there never.
	for i := 100_000; i < 102_000; i++ {
		l.tokens = 1
		s.deliver(name(i), frame, nil)
		take()
	}
	if len(l.peers) != peersMost {
		t.Errorf("%d guests, want %d", len(l.peers), peersMost)
	}
	for _, p := range l.peers {
		p.spoke.Store(now.Add(-silentWords - time.Second).UnixNano())
	}
	for i := 200_000; i < 202_000; i++ {
		l.tokens = 1
		s.deliver(name(i), frame, nil)
		take()
	}
	if l.peers[string(name(0))] == nil {
		t.Error("a guest that had spoken gave way to who had not")
	}
	if len(l.peers) != peersMost {
		t.Errorf("%d guests, want %d", len(l.peers), peersMost)
	}
}

// Who has gone without a word is found.
func TestSweep(t *testing.T) {
	b := newBed(t, true, Options{})
	var guests []link.Link
	for i, connected := range []bool{false, true, false, true, true} {
		c := b.client(t, fmt.Sprintf("c%d", i), connected)
		b.send(t, c, pattern(60, i))
		l, _ := b.accept(t)
		readAll(t, l.ReadFrames, 1)
		guests = append(guests, l)
		if i < 2 {
			c.Close()
		}
	}
	if n := len(b.sockets); n != 4 { // one for each that is connected, and one for who comes
		t.Errorf("%d sockets, want 4", n)
	}
	b.sweepNow(time.Now())
	if len(b.peers) != 5 {
		t.Errorf("%d guests, want 5: nobody was silent for long", len(b.peers))
	}
	b.sweepNow(time.Now().Add(2 * sweepTime))
	for i, l := range guests {
		b.Listener.mu.Lock()
		_, there := b.peers[string(l.(*polledPeer).name)]
		b.Listener.mu.Unlock()
		if there != (i >= 2) {
			t.Errorf("guest %d is there: %v", i, there)
		}
	}
	if err := guests[0].ReadFrames(&link.Batch{}); err != io.EOF {
		t.Error(err)
	}
	b.sweepNow(time.Now().Add(4 * sweepTime))
	if n := len(b.sockets); n != 3 {
		t.Errorf("%d sockets are left, want 3", n)
	}
	c := b.client(t, "again", true)
	b.send(t, c, pattern(60, 9))
	b.accept(t)
}

// UDP guests are their ports; a port that is closed ends its guest, and no other.
func TestUDPGuests(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(host)})
			if err != nil {
				t.Skip(err)
			}
			l := Listen(c, Options{})
			defer l.Close()
			b := &bed{Listener: l}
			var clients []net.Conn
			var guests []link.Link
			for i := range 3 {
				u, err := net.Dial("udp", c.LocalAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
				u.Write(pattern(1514, i))
				g, peer := b.accept(t)
				if want := " from " + u.LocalAddr().String(); peer != want {
					t.Errorf("guest%s, want%s", peer, want)
				}
				if got, _ := readAll(t, g.ReadFrames, 1); !bytes.Equal(got[0], pattern(1514, i)) {
					t.Error("another frame")
				}
				clients, guests = append(clients, u), append(guests, g)
			}
			clients[1].Close()
			over := make(chan error, 1)
			go func() {
				for {
					if err := guests[1].ReadFrames(&link.Batch{}); err != nil {
						over <- err
						return
					}
				}
			}()
			for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
				for _, g := range guests {
					g.WriteFrames([]link.Frame{link.NewFrame(pattern(60, 1))})
				}
				select {
				case err := <-over:
					if !errors.Is(err, net.ErrClosed) && err != io.EOF {
						t.Error(err)
					}
				default:
					if time.Now().After(end) {
						t.Fatal("a guest with a closed port goes on")
					}
					continue
				}
				break
			}
			for _, i := range []int{0, 2} {
				write(t, guests[i], pattern(maxUDP, i))
				for {
					if got := receive(t, clients[i]); len(got) == maxUDP {
						break
					}
				}
			}
		})
	}
}

// Whatever comes from whomever, what is a frame reaches its sender's guest, and nothing else does.
func FuzzDeliver(f *testing.F) {
	f.Add([]byte("\x01\x3c\x01\x3d\x02\x3c"))         // two guests
	f.Add([]byte("\x01\x04\x01\x3c\x01\x04\x01\x3c")) // greetings
	f.Add([]byte("\x00\x3c\x00\x00\x01\x00\x01\x01")) // no name, no bytes
	f.Add([]byte("\x01\x0d\x01\x0e\x01\xff\x01\xfe")) // around the limits
	f.Fuzz(func(t *testing.T, script []byte) {
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		l := Listen(c, Options{})
		defer l.Close()
		s := l.sockets[0]
		guests := map[byte]link.Link{}
		came := 0
		for len(script) >= 2 {
			from, size := script[0], int(script[1])
			script = script[2:]
			switch size {
			case 0xfe:
				size = link.MaxFrame
			case 0xff:
				size = link.MaxFrame + 1
			}
			msg := pattern(size, int(from))
			if size == 4 {
				copy(msg, greeting)
			}
			var name []byte
			if from != 0 {
				name = []byte{unix.AF_INET, 0, from, from, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}
			}
			s.deliver(name, msg[:min(size, slot)], msg[min(size, slot):])
			select {
			case p := <-l.come:
				guests[from] = p
				came++
			default:
			}
			if came >= peersBurst { // who comes after so many may have to wait
				return
			}
			isFrame := size >= minFrame && size <= link.MaxFrame
			g := guests[from]
			if from == 0 && g != nil || g == nil && isFrame && from != 0 && len(guests) < peersBurst {
				t.Fatalf("from %d, %d bytes: guest %v", from, size, g)
			}
			if isFrame && g != nil {
				var b link.Batch
				if err := g.ReadFrames(&b); err != nil || len(b.Frames) != 1 || !bytes.Equal(b.AppendTo(nil, b.Frames[0]), msg) {
					t.Fatalf("from %d, %d bytes: %d frames, %v", from, size, len(b.Frames), err)
				}
			}
		}
	})
}

func FuzzDescribe(f *testing.F) {
	f.Add([]byte("\x01\x00/run/x\x00"))
	f.Add([]byte("\x01\x00\x00abstract"))
	f.Add([]byte("\x02\x00\x1f\x90\x7f\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x0a\x00\x1f\x90"))
	f.Fuzz(func(t *testing.T, name []byte) {
		if len(name) > 2 && len(name) <= 112 && describe(name) == "" && name[2] != 0 {
			t.Error("no name")
		}
	})
}
