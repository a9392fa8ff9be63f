package netns

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/vmnetd/vmnetd/backend/link"
)

// server is a DHCP server at the wire's far end. answer makes the reply, or none.
type server struct {
	mu     sync.Mutex
	heard  []dhcpv4.MessageType
	answer func(q *dhcpv4.DHCPv4, nth int) *dhcpv4.DHCPv4
}

var serverMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}

func (s *server) serve(tap *TAP, done chan<- struct{}) {
	defer close(done)
	var b link.Batch
	for {
		b.Next()
		if tap.ReadFrames(&b) != nil {
			return
		}
		for _, f := range b.Frames {
			frame := b.AppendTo(nil, f)
			if len(frame) < 42 || frame[12] != 8 || frame[13] != 0 || frame[23] != 17 || binary.BigEndian.Uint16(frame[36:]) != 67 {
				continue
			}
			q, err := dhcpv4.FromBytes(frame[42:])
			if err != nil {
				continue
			}
			s.mu.Lock()
			s.heard = append(s.heard, q.MessageType())
			n := len(s.heard)
			s.mu.Unlock()
			if a := s.answer(q, n); a != nil {
				tap.WriteFrames([]link.Frame{link.NewFrame(reply(a, tap.MAC))})
			}
		}
	}
}

// reply puts a server's message into a frame.
func reply(m *dhcpv4.DHCPv4, to net.HardwareAddr) []byte {
	c := &client{t: &TAP{MAC: serverMAC}}
	f := c.frame(m, netip.AddrPort{})
	copy(f, to)
	copy(f[26:], []byte{192, 0, 2, 1})
	f[24], f[25] = 0, 0
	binary.BigEndian.PutUint16(f[24:], sum(f[14:34]))
	binary.BigEndian.PutUint16(f[34:], 67)
	binary.BigEndian.PutUint16(f[36:], 68)
	return f
}

func grant(q *dhcpv4.DHCPv4, kind dhcpv4.MessageType, addr net.IP, secs time.Duration) *dhcpv4.DHCPv4 {
	a, err := dhcpv4.NewReplyFromRequest(q, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(addr),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IP{192, 0, 2, 1})),
		dhcpv4.WithOption(dhcpv4.OptSubnetMask(net.CIDRMask(26, 32))),
		dhcpv4.WithOption(dhcpv4.OptRouter(net.IP{192, 0, 2, 1})),
		dhcpv4.WithOption(dhcpv4.OptDNS(net.IP{192, 0, 2, 3})),
		dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{0x23, 0x28})),
		dhcpv4.WithOption(dhcpv4.OptIPAddressLeaseTime(secs)))
	if err != nil {
		panic(err)
	}
	return a
}

// serve attaches an interface to a server.
func (s *server) attach(t *testing.T) *TAP {
	t.Helper()
	cmd, _ := held(t, Options{}, "true")
	tap, err := Attach(t.Context(), Config{PID: cmd.Process.Pid})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go s.serve(tap, done)
	t.Cleanup(func() { tap.Close(); <-done })
	return tap
}

// Configure outlives a server that refuses at first, and does what the lease says.
func TestConfigure(t *testing.T) {
	addr := net.IP{192, 0, 2, 7}
	s := &server{answer: func(q *dhcpv4.DHCPv4, nth int) *dhcpv4.DHCPv4 {
		switch q.MessageType() {
		case dhcpv4.MessageTypeDiscover:
			if q.HostName() != "web" {
				return nil
			}
			return grant(q, dhcpv4.MessageTypeOffer, addr, time.Hour)
		case dhcpv4.MessageTypeRequest:
			if nth == 2 {
				return grant(q, dhcpv4.MessageTypeNak, nil, 0)
			}
			if !q.RequestedIPAddress().Equal(addr) || !q.ServerIdentifier().Equal(net.IP{192, 0, 2, 1}) {
				return nil
			}
			return grant(q, dhcpv4.MessageTypeAck, addr, time.Hour)
		}
		return nil
	}}
	tap := s.attach(t)
	l, err := tap.Configure(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	want := netip.MustParsePrefix("192.0.2.7/26")
	if l.Addr != want || l.MTU != 9000 || l.Expire != time.Hour || l.Renew != 30*time.Minute || len(l.Routers) != 1 || len(l.DNS) != 1 || tap.MTU != 9000 {
		t.Errorf("%+v", l)
	}
	if list, err := tap.Addrs(); err != nil || !slices.Contains(list, want) {
		t.Errorf("%v, %v", list, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d, r := dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest
	if !slices.Equal(s.heard, []dhcpv4.MessageType{d, r, d, r}) {
		t.Errorf("it said %v", s.heard)
	}
}

// Keep asks again when it is told to: a server that still knows gives the same, one that does not, another address.
func TestKeep(t *testing.T) {
	addrs := []net.IP{{192, 0, 2, 7}, {192, 0, 2, 7}, {192, 0, 2, 8}}
	acks, forgot := 0, false
	s := &server{answer: func(q *dhcpv4.DHCPv4, nth int) *dhcpv4.DHCPv4 {
		if q.MessageType() == dhcpv4.MessageTypeDiscover {
			return grant(q, dhcpv4.MessageTypeOffer, addrs[acks], time.Hour)
		}
		if acks == 2 && !forgot {
			forgot = true
			return grant(q, dhcpv4.MessageTypeNak, nil, 0)
		}
		acks++
		return grant(q, dhcpv4.MessageTypeAck, addrs[acks-1], time.Hour)
	}}
	tap := s.attach(t)
	got, kept := make(chan Lease), make(chan error)
	go func() { kept <- tap.Keep(t.Context(), "", func(l Lease) { got <- l }) }()
	for i, a := range addrs {
		if i > 0 {
			tap.Renew()
		}
		select {
		case l := <-got:
			if !net.IP(l.Addr.Addr().AsSlice()).Equal(a) {
				t.Errorf("lease %d is %s, want %s", i, l.Addr, a)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no lease %d", i)
		}
	}
	if list, err := tap.Addrs(); err != nil || len(list) != 1 || list[0].Addr().String() != "192.0.2.8" {
		t.Errorf("%v, %v", list, err)
	}
	tap.Close()
	if err := <-kept; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// FuzzParseReply: no frame of a server's breaks the client, and what it takes is within the frame.
func FuzzParseReply(f *testing.F) {
	q, err := dhcpv4.New(dhcpv4.WithHwAddr(net.HardwareAddr{2, 0, 0, 0, 0, 1}), dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
	if err != nil {
		f.Fatal(err)
	}
	whole := reply(grant(q, dhcpv4.MessageTypeAck, net.IP{192, 0, 2, 7}, time.Hour), net.HardwareAddr{2, 0, 0, 0, 0, 1})
	f.Add(whole)
	f.Add(whole[:100])
	f.Add(append(slices.Clone(whole), make([]byte, 60000)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, peer, err := parseReply(b)
		if err != nil {
			return
		}
		l, err := leaseOf(m)
		if len(peer) != 6 || err == nil && (!l.Addr.IsValid() || l.Renew > l.Rebind || l.Rebind > l.Expire || l.MTU != 0 && l.MTU < 1280) {
			t.Fatalf("%s: %+v", peer, l)
		}
	})
}

// FuzzNetlink: no answer of the kernel's breaks who reads it.
func FuzzNetlink(f *testing.F) {
	r := newRequest(1, 0, []byte{1, 2, 3, 4})
	r.attr(1, []byte("abc"))
	f.Add([]byte(r))
	f.Fuzz(func(t *testing.T, b []byte) {
		attrs(b, func(_ uint16, data []byte) {
			if len(data) > len(b) {
				t.Fatal("more than there is")
			}
		})
	})
}
