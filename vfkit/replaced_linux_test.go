package vfkit

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/link"
)

// from is a frame of a MAC's.
func from(last byte) []byte {
	f := make([]byte, 60)
	copy(f[6:], []byte{0x52, 0x54, 0, 1, 2, last})
	return f
}

// ended waits for the end of a wire.
func ended(t *testing.T, l link.Link) {
	t.Helper()
	end := make(chan error, 1)
	go func() {
		for {
			if err := l.ReadFrames(&link.Batch{}); err != nil {
				end <- err
				return
			}
		}
	}()
	select {
	case err := <-end:
		if !errors.Is(err, io.EOF) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
}

// A VM that was started again at another path takes the place of the one that has gone, and of no other.
func TestRestartElsewhere(t *testing.T) {
	for _, connected := range []bool{false, true} {
		b := newBed(t, true, Options{})
		was, other := b.client(t, "was", connected), b.client(t, "other", connected)
		b.send(t, was, from(1))
		old, _ := b.accept(t)
		b.send(t, other, from(2))
		stays, _ := b.accept(t)
		was.Close()
		now := b.client(t, "now", connected)
		if connected {
			b.send(t, now, []byte(greeting))
		}
		b.send(t, now, from(1))
		b.accept(t)
		ended(t, old)
		// Who is there with the same MAC stays.
		twin := b.client(t, "twin", connected)
		b.send(t, twin, from(2))
		b.accept(t)
		write(t, stays, from(9))
		if got := receive(t, other); len(got) != 60 {
			t.Errorf("%d bytes", len(got))
		}
	}
}

// Over UDP nobody tells who has gone: silence does.
func TestRestartAtAnotherPort(t *testing.T) {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	l := Listen(c, Options{})
	defer l.Close()
	come := func(frame []byte) link.Link {
		t.Helper()
		u, err := net.DialUDP("udp", nil, c.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close() }) // open to the end: no ICMP tells
		if _, err := u.Write(frame); err != nil {
			t.Fatal(err)
		}
		g, _, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		// It is given away before what it said is noted, as of when.
		for end := time.Now().Add(patience); g.(*polledPeer).heard.Load() == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("it was not heard")
			}
		}
		return g
	}
	age := func(g link.Link, by time.Duration) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, p := range l.peers {
			if p == g.(*polledPeer).peer {
				p.spoke.Add(-int64(by))
			}
		}
	}
	old := come(from(1))
	twin := come(from(1)) // at the same time: both stay
	l.mu.Lock()
	if len(l.peers) != 2 {
		t.Errorf("%d guests, want 2", len(l.peers))
	}
	l.mu.Unlock()
	age(old, restartLeast)
	age(twin, restartLeast)
	come(from(1))
	ended(t, old)
	ended(t, twin)
}
