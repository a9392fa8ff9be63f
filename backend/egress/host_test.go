package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// patience bounds what must happen; it is not a time that anything takes.
const patience = 20 * time.Second

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// both runs a test on the loopback of each family.
func both(t *testing.T, f func(t *testing.T, lo netip.Addr)) {
	for _, lo := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		t.Run(TCPNetwork(lo)[3:], func(t *testing.T) { f(t, lo) })
	}
}

func listenTCP(t *testing.T, lo netip.Addr, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	ln, err := net.ListenTCP(TCPNetwork(lo), net.TCPAddrFromAddrPort(netip.AddrPortFrom(lo, 0)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			serve(c)
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// closedTCP is a port that nobody listens on, nor can begin to: a connection
// has it.
func closedTCP(t *testing.T, lo netip.Addr) netip.AddrPort {
	t.Helper()
	dst := listenTCP(t, lo, func(c *net.TCPConn) { c.Close() })
	// Bound, the port is nobody's else: a port that the system picks at a connect may be picked again by the next, which then
	// meets itself.
	c, err := net.DialTCP(TCPNetwork(lo), &net.TCPAddr{IP: lo.AsSlice()}, net.TCPAddrFromAddrPort(dst))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.LocalAddr().(*net.TCPAddr).AddrPort()
}

func TestDialHalfClose(t *testing.T) {
	both(t, func(t *testing.T, lo netip.Addr) {
		dst := listenTCP(t, lo, func(c *net.TCPConn) {
			defer c.Close()
			all, _ := io.ReadAll(c) // ends with the client's half-close only
			fmt.Fprintf(c, "%d octets", len(all))
		})
		c, err := new(Host).DialContext(soon(t), TCPNetwork(lo), dst)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "hello")
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if string(got) != "5 octets" || err != nil {
			t.Errorf("after the half-close: %q, %v", got, err)
		}
	})
}

func TestDialReset(t *testing.T) {
	both(t, func(t *testing.T, lo netip.Addr) {
		dst := listenTCP(t, lo, func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
			c.Close()
		})
		c, err := new(Host).DialContext(soon(t), TCPNetwork(lo), dst)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte{1})
		if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read %d, %v: a reset must not look like an end", n, err)
		}
	})
}

func TestDialRefused(t *testing.T) {
	both(t, func(t *testing.T, lo netip.Addr) {
		_, err := new(Host).DialContext(soon(t), TCPNetwork(lo), closedTCP(t, lo))
		if k := Classify(err); k != Refused {
			t.Errorf("%v: %v, want refused", err, k)
		}
	})
}

func TestDialCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := new(Host).DialContext(ctx, "tcp4", netip.MustParseAddrPort("127.0.0.1:9"))
	if !errors.Is(err, context.Canceled) || Classify(err) != Other {
		t.Errorf("%v: %v", err, Classify(err))
	}
}

func TestBadDestination(t *testing.T) {
	h := new(Host)
	ctx := soon(t)
	for _, s := range []string{
		"0.0.0.0", "0.1.2.3", "::",
		"::ffff:127.0.0.1", "::ffff:10.0.0.1",
		"fe80::1", "fe80::1%lo", "fd00::1%lo",
		"224.0.0.1", "239.255.255.255", "ff02::1", "255.255.255.255",
	} {
		a := netip.MustParseAddr(s)
		if err := CheckDestination(a); !errors.Is(err, ErrBadDestination) {
			t.Errorf("CheckDestination %s: %v", s, err)
		}
		for _, n := range []string{"tcp4", "tcp6"} {
			if c, err := h.DialContext(ctx, n, netip.AddrPortFrom(a, 80)); Classify(err) != Prohibited {
				t.Errorf("dial %s %s: %v %v", n, s, c, err)
			}
		}
		for _, n := range []string{"udp4", "udp6"} {
			pc := listenUDP(t, h, n, netip.AddrPort{})
			if _, err := pc.WriteTo(nil, netip.AddrPortFrom(a, 80)); Classify(err) != Prohibited {
				t.Errorf("%s to %s: %v", n, s, err)
			}
		}
		if err := h.Ping(ctx, a, 1, nil); Classify(err) != Prohibited {
			t.Errorf("ping %s: %v", s, err)
		}
	}
	if err := CheckDestination(netip.Addr{}); !errors.Is(err, ErrBadDestination) {
		t.Errorf("no address: %v", err)
	}
	for _, s := range []string{"127.0.0.1", "10.0.2.2", "240.0.0.1", "::1", "fd00::1", "2001:db8::1"} {
		if err := CheckDestination(netip.MustParseAddr(s)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, tt := range []struct{ network, dst string }{
		{"tcp4", "[::1]:80"}, {"tcp6", "127.0.0.1:80"}, {"tcp", "127.0.0.1:80"}, {"udp4", "127.0.0.1:80"}, {"", "127.0.0.1:80"},
		{"tcp4", "127.0.0.1:0"}, {"tcp6", "[::1]:0"},
	} {
		if c, err := h.DialContext(ctx, tt.network, netip.MustParseAddrPort(tt.dst)); err == nil {
			c.Close()
			t.Errorf("dialled %s by %q", tt.dst, tt.network)
		}
	}
	for _, tt := range []struct{ network, from string }{
		{"udp4", "[::1]:0"}, {"udp6", "127.0.0.1:0"}, {"udp6", "[::ffff:127.0.0.1]:0"}, {"tcp4", "127.0.0.1:0"},
		{"udp", "127.0.0.1:0"}, {"udp4", "224.0.0.1:0"},
	} {
		if c, err := h.ListenPacket(ctx, tt.network, netip.MustParseAddrPort(tt.from)); err == nil {
			c.Close()
			t.Errorf("listened on %s by %q", tt.from, tt.network)
		}
	}
}

func TestPingTooLong(t *testing.T) {
	for addr, limit := range map[string]int{"127.0.0.1": MaxPayload4, "::1": MaxPayload6} {
		err := new(Host).Ping(soon(t), netip.MustParseAddr(addr), 1, make([]byte, limit+1))
		if Classify(err) != TooBig {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// Only the first two bytes and the sequence number tell an echo reply from
// anything else that a peer may send.
func FuzzEchoReply(f *testing.F) {
	payload := []byte("payload")
	reply4 := append([]byte{0, 0, 0xaa, 0xbb, 0xcc, 0xdd, 0x12, 0x34}, payload...)
	reply6 := append([]byte{129, 0, 0xaa, 0xbb, 0xcc, 0xdd, 0x12, 0x34}, payload...)
	f.Add(reply4, false)
	f.Add(reply6, true)
	f.Add(reply4, true)                                       // the other family's
	f.Add(reply4[:8], false)                                  // payload cut off
	f.Add(append(reply4[:len(reply4):len(reply4)], 0), false) // payload grown
	f.Add([]byte{}, true)
	f.Add([]byte{8, 0, 0, 0, 0, 0, 0x12}, false) // cut within the header
	f.Fuzz(func(t *testing.T, msg []byte, v6 bool) {
		typ := byte(0)
		if v6 {
			typ = 129
		}
		want := len(msg) == 15 && msg[0] == typ && msg[1] == 0 && string(msg[6:]) == "\x12\x34payload"
		if got := answers(msg, v6, 0x1234, payload); got != want {
			t.Errorf("%x: %v", msg, got)
		}
	})
}
