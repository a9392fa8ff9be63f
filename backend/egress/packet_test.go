package egress

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

func listenUDP(t *testing.T, h *Host, network string, from netip.AddrPort) PacketConn {
	t.Helper()
	pc, err := h.ListenPacket(context.Background(), network, from)
	if err != nil {
		t.Fatal(err)
	}
	// A read that nothing ends fails then, rather than waits for ever.
	late := time.AfterFunc(patience, func() { pc.Close() })
	t.Cleanup(func() { late.Stop(); pc.Close() })
	return pc
}

// closedUDP is a port that nobody receives on, nor can begin to: a socket that
// is connected elsewhere has it.
func closedUDP(t *testing.T, lo netip.Addr) netip.AddrPort {
	t.Helper()
	c, err := net.DialUDP(UDPNetwork(lo), nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(lo, 9)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// echoUDP answers each datagram with itself.
func echoUDP(t *testing.T, lo netip.Addr) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP(UDPNetwork(lo), net.UDPAddrFromAddrPort(netip.AddrPortFrom(lo, 0)))
	if err != nil {
		t.Fatal(err)
	}
	c.SetWriteBuffer(1 << 20)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			c.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestUDPSizes(t *testing.T) {
	both(t, func(t *testing.T, lo netip.Addr) {
		dst := echoUDP(t, lo)
		pc := listenUDP(t, new(Host), UDPNetwork(lo), netip.AddrPort{})
		if pc.LocalAddr().Port() == 0 {
			t.Fatal("no local port")
		}
		most := MaxPayload4
		if lo.Is6() {
			most = MaxPayload6
		}
		buf := make([]byte, 65536)
		for i, size := range []int{0, 1, 1472, 1473, 65507, most} {
			msg := bytes.Repeat([]byte{byte(i + 1)}, size)
			if n, err := pc.WriteTo(msg, dst); n != size || err != nil {
				t.Fatalf("write %d: %d, %v", size, n, err)
			}
			n, from, err := pc.ReadFrom(buf)
			if err != nil || from != dst || !bytes.Equal(buf[:n], msg) {
				t.Fatalf("size %d: got %d from %v, %v", size, n, from, err)
			}
			pc.WriteTo(msg, dst)
			b, from, err := pc.ReadBorrowed(DatagramBuffers)
			if err != nil || from != dst || !bytes.Equal(b, msg) {
				t.Fatalf("size %d, borrowed: got %d from %v, %v", size, len(b), from, err)
			}
			DatagramBuffers.Put(b)
		}
		if _, err := pc.WriteTo(make([]byte, most+1), dst); Classify(err) != TooBig {
			t.Errorf("%d octets: %v", most+1, err)
		}
		pc.WriteTo([]byte("too long for four"), dst)
		if n, _, err := pc.ReadFrom(buf[:4]); n != 4 || !errors.Is(err, io.ErrShortBuffer) {
			t.Errorf("short buffer: %d, %v", n, err)
		}
	})
}

// A datagram comes in from a peer that was never written to.
func TestUDPEndpointIndependent(t *testing.T) {
	both(t, func(t *testing.T, lo netip.Addr) {
		pc := listenUDP(t, new(Host), UDPNetwork(lo), netip.AddrPortFrom(lo, 0))
		stranger := listenUDP(t, new(Host), UDPNetwork(lo), netip.AddrPortFrom(lo, 0))
		if pc.LocalAddr().Addr() != lo {
			t.Fatalf("bound to %v", pc.LocalAddr())
		}
		if _, err := stranger.WriteTo([]byte("hi"), pc.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		n, from, err := pc.ReadFrom(buf)
		if string(buf[:n]) != "hi" || from != stranger.LocalAddr() || err != nil {
			t.Errorf("%q from %v, %v", buf[:n], from, err)
		}
	})
}
