package backend_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/qemu"
)

// FuzzGuest and FuzzGuestLoop give a network the whole life of a guest: it is plugged in, does what the input says, and
// its wire ends. Whatever it did, nobody met a bug, another guest is served, and of this one nothing is left.
//
// An input is a list of acts: a kind, a length, and that many bytes. What a mutation makes of it is as good a list, and
// acts that fill in checksums, lengths and sequence numbers let it get past what looks at these.
func FuzzGuest(f *testing.F) { fuzzGuest(f, false) }

// FuzzGuestLoop is FuzzGuest with a socket for a wire and host sockets in a loop.
func FuzzGuestLoop(f *testing.F) { fuzzGuest(f, true) }

func fuzzGuest(f *testing.F, loop bool) {
	for _, s := range conversations() {
		f.Add([]byte(s))
	}
	if flag.Lookup("test.fuzz").Value.String() != "" {
		was := Patience
		Patience = 6 * time.Second // the engine ends an input after ten, and does not say what it waited for
		f.Cleanup(func() { Patience = was })
	}
	w := newBesieged(f, loop)
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 16<<10 {
			return
		}
		w.live(t, in)
	})
}

// Each conversation that the fuzzer starts from does what its name says, both ways of carrying.
func TestFuzzedConversations(t *testing.T) {
	for name, loop := range map[string]bool{"plain": false, "loop": true} {
		t.Run(name, func(t *testing.T) {
			w := newBesieged(t, loop)
			w.patient = true
			for name, s := range conversations() {
				t.Run(name, func(t *testing.T) {
					w.live(t, s, expected[name]...)
				})
			}
		})
	}
}

// What some of the conversations must bring, so that they are known to get as far as they are meant to.
var expected = map[string][]Check{
	"DHCP":                      {IsUDP(67, 68)},
	"DHCPv6":                    {IsUDP(547, 546)},
	"router solicitation":       {IsICMP(134, 0)},
	"echo":                      {IsICMP(0, 0)},
	"echo6":                     {IsICMP(129, 0)},
	"TCP":                       {IsTCP("SA"), Carries([]byte("hello")), IsTCP("FA")},
	"TCP6":                      {IsTCP("SA"), Carries([]byte("hello"))},
	"TCP half open":             {IsTCP("R")},
	"TCP refused":               {IsTCP("RA")},
	"TCP the host speaks":       {Carries([]byte("from the host"))},
	"TCP the host resets":       {IsTCP("RA")},
	"TCP from the host":         {IsTCP("S"), Carries([]byte("out of the program"))},
	"UDP":                       {Carries([]byte("datagram"))},
	"UDP6":                      {Carries([]byte("datagram"))},
	"DNS":                       {IsUDP(53, 5353)},
	"DNS over TCP":              {IsTCP("SA")},
	"fragments":                 {IsICMP(0, 0)},
	"fragments6":                {IsICMP(129, 0)},
	"IPv4 options":              {Carries([]byte("datagram"))},
	"IPv6 headers":              {Carries([]byte("datagram"))},
	"a wire that comes again":   {IsTCP("SA")},
	"deaf while the host pours": {IsTCP("SA")},
}

// Acts.
const (
	actRaw     = iota // a frame as it is
	actFixed          // one to the gateway, lengths and checksums made right
	actAcross         // the same to the other guest
	actWait           // until all before has been dealt with
	actAgain          // the wire ends and another comes
	actHost           // the host writes to all conversations
	actHostEnd        // the host ends all conversations: 1 in good order, else with a reset
	actDeaf           // the guest reads no more: 1, or again: 0
	actSegment        // a segment in the conversation that was last heard of: see segment
	actQuote          // an ICMP error about the last frame that came: type and code
	actDialed         // the program dials the guest's port
	actBytes          // bytes as they are on a wire that is a stream
	actPause          // until something comes, for as many tenths of a millisecond at most
	acts
)

const (
	mostActs  = 48                   // of an input; a longer one says nothing new, and fewer inputs would be tried
	mostPause = 3 * time.Millisecond // what the host's answers take
)

var (
	insiderMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0x66}
	insider4   = ip("10.0.2.66")
	insider6   = EUI64(prefix6, insiderMAC)
	insiderLL  = LinkLocal(insiderMAC)
)

// script is an input.
type script []byte

func (s script) act(kind byte, b []byte) script {
	s = append(s, kind)
	s = binary.BigEndian.AppendUint16(s, uint16(len(b)))
	return append(s, b...)
}

func (s script) raw(frames ...[]byte) script {
	for _, f := range frames {
		s = s.act(actRaw, f)
	}
	return s
}

func (s script) fixed(layers ...Layer) script {
	return s.act(actFixed, Build(append([]Layer{Ethernet{Src: insiderMAC, Dst: gatewayMAC}}, layers...)...))
}

func (s script) wait() script { return s.act(actWait, nil) }

// segment: flags, how far from right the sequence and acknowledgement numbers are and by how many bits shifted, window,
// how many bytes of options, options, payload.
func (s script) segment(flags header.TCPFlags, payload string) script {
	return s.act(actSegment, append([]byte{byte(flags), 0, 0, 0, 0xff, 0xff, 0}, payload...))
}

func (s script) segmentWith(flags header.TCPFlags, seq, ack int8, shift byte, window uint16, options []byte, payload string) script {
	b := []byte{byte(flags), byte(seq), byte(ack), shift, byte(window >> 8), byte(window), byte(len(options))}
	return s.act(actSegment, append(append(b, options...), payload...))
}

// Ports of the world's: whatever the address, one of these is behind it.
const (
	portEcho   = 7
	portSilent = 9  // nobody listens
	portHole   = 81 // nobody answers
)

// conversations are what the fuzzer begins with: what guests say.
func conversations() map[string]script {
	const ack, syn, fin, psh, rst = header.TCPFlagAck, header.TCPFlagSyn, header.TCPFlagFin, header.TCPFlagPsh, header.TCPFlagRst
	var s script
	v4, v6 := IPv4{Src: insider4, Dst: gateway4}, IPv6{Src: insider6, Dst: gateway6}
	begin := func(h Layer, port uint16, options ...byte) script {
		return s.fixed(h, TCP{SrcPort: 4000, DstPort: port, Seq: 1000, Flags: "S", Options: options}).wait()
	}
	open := func(h Layer) script { return begin(h, portEcho, 2, 4, 5, 180, 4, 2, 1, 3, 3, 7).segment(ack, "") }
	broadcast := func(l ...Layer) []byte { return Build(append([]Layer{Ethernet{Src: insiderMAC}}, l...)...) }
	to := func(group netip.Addr, l ...Layer) []byte {
		return Build(append([]Layer{Ethernet{Src: insiderMAC, Dst: MulticastMAC(group)}}, l...)...)
	}
	dhcp := func(m *dhcpv4.DHCPv4) []byte {
		return broadcast(IPv4{Src: netip.IPv4Unspecified(), Dst: ip("255.255.255.255")}, UDP{SrcPort: 68, DstPort: 67}, Payload(m.ToBytes()))
	}
	discover, _ := dhcpv4.NewDiscovery(insiderMAC, dhcpv4.WithOption(dhcpv4.OptHostName("insider")), dhcpv4.WithRequestedOptions(dhcpv4.OptionRouter, dhcpv4.OptionClasslessStaticRoute))
	request, _ := dhcpv4.New(dhcpv4.WithHwAddr(insiderMAC), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IP(insider4.AsSlice()))))
	inform, _ := dhcpv4.NewInform(insiderMAC, net.IP(insider4.AsSlice()))
	allDHCP := ip("ff02::1:2")
	dhcp6 := func(m *dhcpv6.Message) []byte {
		return to(allDHCP, IPv6{Src: insiderLL, Dst: allDHCP}, UDP{SrcPort: 546, DstPort: 547}, Payload(m.ToBytes()))
	}
	solicit, _ := dhcpv6.NewSolicit(insiderMAC, dhcpv6.WithRapidCommit)
	about, _ := dhcpv6.NewMessage(func(d dhcpv6.DHCPv6) { d.(*dhcpv6.Message).MessageType = dhcpv6.MessageTypeInformationRequest })
	ask := func(name string, kind uint16) []byte {
		q := new(dns.Msg)
		q.SetQuestion(name, kind)
		q.SetEdns0(1232, false)
		b, _ := q.Pack()
		return b
	}
	framed := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	echo4 := Build(Ethernet{Src: insiderMAC, Dst: gatewayMAC}, v4, Echo(gateway4, false, 3, 4), Payload(make([]byte, 3000)))
	echo6 := Build(Ethernet{Src: insiderMAC, Dst: gatewayMAC}, v6, Echo(gateway6, false, 3, 4), Payload(make([]byte, 3000)))
	routers, nodes := ip("ff02::2"), ip("ff02::1")
	solicited := SolicitedNode(gateway6)
	return map[string]script{
		"ARP":                       s.raw(broadcast(ARP{SenderMAC: insiderMAC, Sender: insider4, Target: gateway4}), broadcast(ARP{SenderMAC: insiderMAC, Sender: insider4, Target: insider4})),
		"DHCP":                      s.raw(dhcp(discover)).wait().raw(dhcp(request)).wait().raw(dhcp(inform)).wait(),
		"DHCPv6":                    s.raw(dhcp6(solicit)).wait().raw(dhcp6(about)).wait(),
		"router solicitation":       s.raw(to(routers, append([]Layer{IPv6{Src: insiderLL, Dst: routers}}, RouterSolicit(insiderMAC)...)...)).wait(),
		"neighbours":                s.raw(to(solicited, append([]Layer{IPv6{Src: insider6, Dst: solicited}}, NeighborSolicit(gateway6, insiderMAC)...)...), to(nodes, append([]Layer{IPv6{Src: insider6, Dst: nodes}}, NeighborAdvert(insider6, insiderMAC)...)...)).wait(),
		"duplicate address":         s.raw(to(solicited, append([]Layer{IPv6{Src: netip.IPv6Unspecified(), Dst: solicited}}, NeighborSolicit(gateway6, nil)...)...)).wait(),
		"listener report":           s.raw(to(ip("ff02::16"), IPv6{Src: insiderLL, Dst: ip("ff02::16"), HopLimit: 1}, Ext{Kind: ProtoHopByHop, Data: []byte{5, 2, 0, 0}}, ICMP{Type: 143, Rest: 1}, Payload(append([]byte{4, 0, 0, 0}, solicited.AsSlice()...)))),
		"echo":                      s.fixed(v4, Echo(gateway4, false, 1, 2), Payload("ping")).wait(),
		"echo6":                     s.fixed(v6, Echo(gateway6, false, 1, 2), Payload("ping")).wait(),
		"echo beyond":               s.fixed(IPv4{Src: insider4, Dst: world4}, Echo(world4, false, 1, 2), Payload("ping")).fixed(IPv6{Src: insider6, Dst: world6, HopLimit: 1}, Echo(world6, false, 1, 2)).wait(),
		"TCP":                       open(v4).segment(psh|ack, "hello").wait().segment(ack, "").segment(fin|ack, "").wait().segment(ack, "").wait(),
		"TCP6":                      open(v6).segment(psh|ack, "hello").wait().segment(ack, "").segment(fin|ack, "").wait().segment(ack, ""),
		"TCP refused":               begin(v4, portSilent).act(actPause, []byte{30}),
		"TCP into a hole":           begin(IPv4{Src: insider4, Dst: world4}, portHole).fixed(IPv4{Src: insider4, Dst: world4}, TCP{SrcPort: 4000, DstPort: portHole, Seq: 1001, Flags: "R"}),
		"TCP cut off":               open(v4).segment(psh|ack, "hello").segment(rst, ""),
		"TCP half open":             begin(v6, portEcho).act(actAgain, nil).fixed(v6, TCP{SrcPort: 4000, DstPort: portEcho, Seq: 1001, Ack: 77, Flags: "PA"}, Payload("hello")).wait(),
		"TCP the host speaks":       open(v4).act(actHost, []byte("from the host")).wait().segment(ack, "").wait(),
		"TCP the host ends":         open(v6).act(actHostEnd, []byte{1}).wait().segment(ack, "").segment(fin|ack, "").wait(),
		"TCP the host resets":       open(v4).act(actHostEnd, nil).wait(),
		"TCP from the host":         s.act(actDialed, []byte{0, 22}).segment(syn|ack, "").wait().segment(psh|ack, "in the guest").wait().segment(fin|ack, ""),
		"TCP from the host, no":     s.act(actDialed, []byte{0, 22}).segment(rst|ack, "").wait(),
		"TCP out of order":          open(v4).segmentWith(psh|ack, 5, 0, 0, 0xffff, nil, "world").segmentWith(psh|ack, 0, 0, 0, 0xffff, nil, "hello").wait().segmentWith(psh|ack, -5, 0, 0, 0xffff, nil, "again"),
		"TCP far out":               open(v4).segmentWith(psh|ack, 1, 0, 14, 0xffff, nil, "ahead").segmentWith(ack, 0, 1, 0xe0, 0xffff, nil, "").wait(),
		"TCP no window":             open(v4).act(actHost, make([]byte, 4000)).segmentWith(ack, 0, 0, 0, 0, nil, "").wait().segmentWith(ack, 0, 0, 0, 1, nil, "").wait().segment(ack, ""),
		"TCP selective":             open(v4).act(actHost, make([]byte, 8000)).segmentWith(ack, 0, 0, 0, 0xffff, []byte{1, 1, 5, 10, 0, 0, 8, 0, 0, 0, 9, 0}, "").wait().segment(ack, ""),
		"TCP timestamps":            begin(v4, portEcho, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1).segmentWith(ack, 0, 0, 0, 0xffff, []byte{1, 1, 8, 10, 0, 0, 0, 2, 0, 0, 0, 0}, "").segmentWith(psh|ack, 0, 0, 0, 0xffff, []byte{1, 1, 8, 10, 0, 0, 0, 3, 0, 0, 0, 0}, "late").wait(),
		"TCP urgent":                open(v4).segment(header.TCPFlagUrg|psh|ack, "urgent").wait(),
		"TCP opened at once":        s.act(actDialed, []byte{0, 22}).segment(syn, "").wait().segment(ack, "").wait(),
		"TCP with data in SYN":      s.fixed(v4, TCP{SrcPort: 4000, DstPort: portEcho, Seq: 1, Flags: "S"}, Payload("early")).wait().segment(ack, ""),
		"TCP SYN again":             open(v4).segment(fin|ack, "").wait().fixed(v4, TCP{SrcPort: 4000, DstPort: portEcho, Seq: 90000, Flags: "S"}).wait(),
		"UDP":                       s.fixed(v4, UDP{SrcPort: 5000, DstPort: portEcho}, Payload("datagram")).wait().act(actPause, []byte{20}).wait(),
		"UDP6":                      s.fixed(v6, UDP{SrcPort: 5000, DstPort: portEcho}, Payload("datagram")).wait().act(actPause, []byte{20}).wait(),
		"UDP refused":               s.fixed(v4, UDP{SrcPort: 5000, DstPort: portSilent}, Payload("datagram")).act(actPause, []byte{20}).wait(),
		"UDP, and that it failed":   s.fixed(v4, UDP{SrcPort: 5000, DstPort: portEcho}, Payload("datagram")).act(actPause, []byte{20}).wait().act(actQuote, []byte{3, 3}).wait(),
		"too big":                   open(v6).act(actHost, make([]byte, 3000)).wait().act(actQuote, []byte{2, 0, 0, 0, 5, 0}).wait(),
		"fragmentation needed":      open(v4).act(actHost, make([]byte, 3000)).wait().act(actQuote, []byte{3, 4, 0, 0, 2, 64}).wait(),
		"DNS":                       s.fixed(IPv4{Src: insider4, Dst: dns4}, UDP{SrcPort: 5353, DstPort: 53}, Payload(ask("gateway.internal.", dns.TypeA))).wait(),
		"DNS of the world":          s.fixed(IPv6{Src: insider6, Dst: dns6}, UDP{SrcPort: 5353, DstPort: 53}, Payload(ask("www.example.", dns.TypeHTTPS))).act(actPause, []byte{20}).wait(),
		"DNS over TCP":              s.fixed(IPv4{Src: insider4, Dst: dns4}, TCP{SrcPort: 4000, DstPort: 53, Seq: 1000, Flags: "S"}).wait().segment(ack, "").segment(psh|ack, string(framed(ask("gateway.internal.", dns.TypeAAAA)))).wait().segment(fin|ack, "").wait(),
		"fragments":                 s.raw(Fragment(echo4, 1480, 9)...).wait(),
		"fragments6":                s.raw(Fragment(echo6, 1400, 9)...).wait(),
		"fragments, reversed":       s.raw(reversed(Fragment(echo4, 800, 10))...).raw(reversed(Fragment(echo6, 800, 10))...).wait(),
		"fragments, overlapping":    s.raw(Fragment(echo4, 1480, 11)[0], Patch(Fragment(echo4, 1480, 11)[1], 20, 0x20, 50)).wait(),
		"fragments, unfinished":     s.raw(Fragment(echo6, 1400, 12)[1:]...).wait(),
		"IPv4 options":              s.fixed(IPv4{Src: insider4, Dst: gateway4, Options: []byte{7, 7, 4, 0, 0, 0, 0, 0}}, UDP{SrcPort: 5000, DstPort: portEcho}, Payload("datagram")).act(actPause, []byte{20}).wait(),
		"IPv6 headers":              s.fixed(v6, Ext{Kind: ProtoHopByHop, Data: make([]byte, 6)}, Ext{Kind: ProtoDestOpts, Data: make([]byte, 6)}, UDP{SrcPort: 5000, DstPort: portEcho}, Payload("datagram")).act(actPause, []byte{20}).wait(),
		"across":                    s.act(actAcross, Build(Ethernet{Src: insiderMAC, Dst: gatewayMAC}, IPv4{Src: insider4, Dst: ip("10.0.2.20")}, Echo(insider4, false, 5, 6))).act(actAcross, Build(Ethernet{Src: insiderMAC, Dst: gatewayMAC}, IPv6{Src: insider6, Dst: ip("fd00:1234::20")}, TCP{SrcPort: 1, DstPort: 2, Seq: 5, Flags: "S"})).wait(),
		"a wire that comes again":   open(v4).act(actAgain, nil).raw(broadcast(ARP{SenderMAC: insiderMAC, Sender: insider4, Target: gateway4})).act(actSegment, []byte{byte(syn), 0, 0, 0, 255, 255, 0}).wait(),
		"deaf while the host pours": open(v4).act(actDeaf, []byte{1}).act(actHost, make([]byte, 8000)).act(actHost, make([]byte, 8000)).act(actDeaf, []byte{0}).wait().segment(ack, "").wait(),
		"deaf to the end":           open(v6).act(actDeaf, []byte{1}).act(actHost, make([]byte, 8000)).act(actHostEnd, nil),
		"half a frame":              s.act(actBytes, []byte{0, 0, 4, 0, 1, 2, 3}),
		"a length of 4 GB":          s.act(actBytes, []byte{255, 255, 255, 255, 1, 2, 3}),
	}
}

// besieged is a network with a bystander, for one insider after the other.
type besieged struct {
	loop    bool
	patient bool // a test: what is to come is waited for
	n       *backend.Network
	world   *fuzzWorld
	said    *logged
	g       *Guest
	tcp     [2]*TCPConn // the bystander's standing conversations, by family
	names   *UDPConn
	query   []byte
	ears    net.Listener // where insiders' wires come in, if they are sockets
	lives   int
	idle    census
	heap    uint64
	awaited uint32
}

// census is what is there while no insider is.
type census struct{ goroutines, descriptors int }

func (b *besieged) count(t testing.TB) census {
	return census{runtime.NumGoroutine(), descriptors(t)}
}

func newBesieged(t testing.TB, loop bool) *besieged {
	b := &besieged{loop: loop, said: &logged{}, world: newFuzzWorld(t)}
	c := backend.Config{Egress: b.world, Logger: slog.New(slog.NewTextHandler(b.said, nil))}
	b.n = start(t, c)
	b.g = Plug(t, b.n, Config{Gateway4: gateway4, Gateway6: gateway6, Addrs: []netip.Prefix{
		netip.MustParsePrefix("10.0.2.20/24"), netip.MustParsePrefix("fd00:1234::20/64")}})
	for i, a := range []netip.Addr{gateway4, gateway6} {
		c, err := b.g.Dial(patience(t), "tcp", at(a, portEcho+1))
		if err != nil {
			t.Fatal(err)
		}
		b.tcp[i] = c
		t.Cleanup(func() { c.Close() })
	}
	var err error
	if b.names, err = b.g.DialUDP(at(dns4, 53)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.names.Close() })
	q := new(dns.Msg)
	q.SetQuestion("gateway.internal.", dns.TypeA)
	b.query, _ = q.Pack()
	if loop {
		if b.ears, err = net.Listen("unix", filepath.Join(t.TempDir(), "s")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.ears.Close() })
	}
	b.served(t)
	// What is there for good is so once a guest has been: pools, the poller's descriptors.
	b.idle = census{1 << 30, 1 << 30}
	for range 3 {
		b.live(t, conversations()["TCP"])
	}
	b.idle = census{} // the next counts anew: what runs inputs has goroutines of its own
	b.heap = heapInUse()
	return b
}

func stacks() []byte {
	buf := make([]byte, 1<<20)
	return buf[:runtime.Stack(buf, true)]
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// served fails if the bystander is not.
func (b *besieged) served(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	for _, a := range []netip.Addr{gateway4, gateway6} {
		if err := b.g.Ping(ctx, a, 1, 1, []byte("still served")); err != nil {
			t.Fatalf("the bystander's ping: %v", err)
		}
	}
	for _, c := range b.tcp {
		c.SetDeadline(time.Now().Add(Patience))
		var got [12]byte
		if _, err := c.Write([]byte("still served")); err != nil {
			t.Fatalf("the bystander's conversation: %v", err)
		}
		if _, err := io.ReadFull(c, got[:]); err != nil || string(got[:]) != "still served" {
			t.Fatalf("the bystander's conversation: %q, %v", got[:], err)
		}
	}
	b.names.SetDeadline(time.Now().Add(Patience))
	if _, err := b.names.Write(b.query); err != nil {
		t.Fatalf("the bystander's names: %v", err)
	}
	buf := make([]byte, 1500)
	n, _, err := b.names.ReadFrom(buf)
	m := new(dns.Msg)
	if err != nil || m.Unpack(buf[:n]) != nil || len(m.Answer) != 1 {
		t.Fatalf("the bystander's names: %v, %v", m, err)
	}
}

// soon is how long something is waited for that an input may have no right to.
func (b *besieged) soon() time.Duration {
	if b.patient {
		return Patience
	}
	return mostPause
}

// live has an insider live by in, and waits for what is to come to it.
func (b *besieged) live(t testing.TB, in script, want ...Check) {
	t.Helper()
	if b.idle == (census{}) {
		b.idle = b.count(t)
	}
	i := &insider{b: b, in: in}
	i.plug(t)
	i.act(t)
	i.expect(t, want)
	i.unplug(t)
	i.dialed.Wait()
	b.served(t)
	if n := b.said.count("a bug was met") + b.said.count("panic"); n > 0 {
		b.said.mu.Lock()
		defer b.said.mu.Unlock()
		t.Fatalf("a bug was met: %s", b.said.b.String())
	}
	b.said.mu.Lock()
	lines := bytes.Count([]byte(b.said.b.String()), []byte("\n"))
	b.said.b.Reset()
	b.said.mu.Unlock()
	// Two a wire say that it came and went; what a host lacks is said once.
	if most := 2*i.wires + 8; lines > most {
		t.Fatalf("%d lines in the log, want %d at most", lines, most)
	}
	eventually(t, "its flows are over", func() bool {
		for _, f := range b.n.Flows().List() {
			if i.was(f.Guest) {
				return false
			}
		}
		return true
	})
	for end := time.Now().Add(Patience); ; time.Sleep(time.Millisecond) {
		now := b.count(t)
		if now.goroutines <= b.idle.goroutines && now.descriptors <= b.idle.descriptors {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%+v are left, %+v were there before\n%s", now, b.idle, stacks())
		}
	}
	if b.lives++; b.lives%512 == 0 {
		// Half of it is for the fuzzing engine, whose buffer of 100 MB comes and goes. A worker sees a hundred thousand
		// lives, and then it is 1 KB for each.
		if now := heapInUse(); now > b.heap+200<<20 {
			t.Fatalf("%d MB in use, %d at first", now>>20, b.heap>>20)
		}
	}
}

func (i *insider) expect(t testing.TB, checks []Check) {
	t.Helper()
	for _, want := range checks {
		came := func() bool {
			return slices.ContainsFunc(i.got, func(p *Packet) bool { return want(p) == nil })
		}
		if !i.wait(Patience, came) {
			var why error
			for _, p := range i.got {
				why = errors.Join(why, fmt.Errorf("%s: %w", p, want(p)))
			}
			t.Errorf("nothing came that should have: %v", why)
		}
	}
}

// insider is the guest that does what an input says.
type insider struct {
	b      *besieged
	in     script
	near   link.Link
	conn   net.Conn // under near, if it is a socket
	served chan struct{}
	read   chan struct{}
	ids    []string
	wires  int
	dialed sync.WaitGroup
	ctx    context.Context
	stop   context.CancelFunc
	spoilt bool // bytes that are no frames are on the wire: there may be no answer any more

	mu    sync.Mutex
	heard *sync.Cond
	deaf  bool
	over  bool
	mark  uint32
	got   []*Packet
	last  []byte    // frame that came
	talk  *talkWith // the conversation last heard of
	came  int       // frames
	seen  int       // of them, before the last act that is answered
}

// talkWith is a TCP conversation as its guest's end would know it.
type talkWith struct {
	src, dst netip.AddrPort // the guest's
	seq, ack uint32
}

func (i *insider) was(guest string) bool { return slices.Contains(i.ids, guest) }

func (i *insider) plug(t testing.TB) {
	t.Helper()
	b := i.b
	if i.heard == nil {
		i.heard = sync.NewCond(&i.mu)
	}
	var far link.Link
	if b.loop {
		c, err := net.Dial("unix", b.ears.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		d, err := b.ears.Accept()
		if err != nil {
			t.Fatal(err)
		}
		i.conn, i.near, far = c, qemu.NewLink(c), qemu.NewLink(d)
	} else {
		i.near, far = link.Pipe(PipeDepth)
	}
	i.ctx, i.stop = context.WithCancel(context.Background())
	i.served, i.read = make(chan struct{}), make(chan struct{})
	i.over, i.deaf, i.spoilt = false, false, false
	served, read, near := i.served, i.read, i.near
	go func() {
		defer close(served)
		b.n.Serve(context.Background(), far, "insider") // its error is the wire's, and a bug is in the log
	}()
	go func() {
		defer close(read)
		var batch link.Batch
		for {
			i.mu.Lock()
			for i.deaf && !i.over {
				i.heard.Wait()
			}
			i.mu.Unlock()
			if near.ReadFrames(&batch) != nil {
				break
			}
			var scratch []byte
			for _, s := range batch.Frames {
				i.hear(batch.Whole(s, &scratch))
			}
			batch.Next()
		}
		batch.Release()
		i.mu.Lock()
		i.over = true
		i.heard.Broadcast()
		i.mu.Unlock()
	}()
	i.wires++
	// Who it is. Its answer says that it is plugged in.
	i.sync(t)
	i.send(Build(append([]Layer{Ethernet{Src: insiderMAC, Dst: gatewayMAC}, IPv6{Src: insider6, Dst: gateway6}}, NeighborSolicit(gateway6, insiderMAC)...)...))
	for _, g := range b.n.Guests() {
		if g.Link == "insider" && !i.was(g.ID) {
			i.ids = append(i.ids, g.ID)
		}
	}
}

func (i *insider) unplug(t testing.TB) {
	t.Helper()
	i.mu.Lock()
	i.over = true
	i.heard.Broadcast()
	i.mu.Unlock()
	i.stop()
	i.near.Close()
	for _, ended := range []chan struct{}{i.served, i.read} {
		select {
		case <-ended:
		case <-time.After(Patience):
			t.Fatalf("the insider's wire does not end\n%s", stacks())
		}
	}
	i.b.world.drop()
}

// hear takes a frame that came.
func (i *insider) hear(f []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := Parse(bytes.Clone(f))
	if p.ARP != nil && p.ARP.Op == ARPReply && len(p.Dst) == 6 && p.Dst[1] == 'S' {
		i.mark = binary.BigEndian.Uint32(p.Dst[2:])
		i.heard.Broadcast()
		return
	}
	const kept = 256
	if len(i.got) < kept {
		i.got = append(i.got, p)
	}
	i.last = p.Frame
	i.came++
	i.heard.Broadcast()
	if h := p.TCP; h != nil && p.IPDst.IsValid() {
		src, dst := netip.AddrPortFrom(p.IPDst, h.DstPort), netip.AddrPortFrom(p.IPSrc, h.SrcPort)
		if i.talk == nil || i.talk.src != src || i.talk.dst != dst {
			i.talk = &talkWith{src: src, dst: dst, seq: h.Ack}
		}
		next := h.Seq + uint32(len(p.Payload))
		for _, r := range h.Flags {
			if r == 'S' || r == 'F' {
				next++
			}
		}
		if int32(next-i.talk.ack) > 0 || i.talk.ack == 0 || slices.Contains([]byte(h.Flags), 'S') {
			i.talk.ack = next
		}
	}
}

func (i *insider) send(frames ...[]byte) {
	for _, f := range frames {
		if len(f) < 14 || len(f) > link.MaxFrame {
			continue // the framing's to refuse
		}
		i.near.WriteFrames([]link.Frame{link.NewFrame(f)}) // a wire that has ended is no matter
	}
}

// wait waits for ok, under i.mu, as long as there is a wire, and reports it.
func (i *insider) wait(most time.Duration, ok func() bool) bool {
	end := time.Now().Add(most) // before the timer's, which is then not too early
	timer := time.AfterFunc(most, func() { i.mu.Lock(); i.heard.Broadcast(); i.mu.Unlock() })
	defer timer.Stop()
	i.mu.Lock()
	defer i.mu.Unlock()
	for !ok() {
		if i.over || !time.Now().Before(end) {
			return false
		}
		i.heard.Wait()
	}
	return true
}

// sync returns when all that was sent before has been dealt with. See Guest.Sync.
func (i *insider) sync(t testing.TB) {
	t.Helper()
	i.mu.Lock()
	mute := i.deaf || i.over || i.spoilt
	i.mu.Unlock()
	if mute {
		return
	}
	i.b.awaited++
	n := i.b.awaited
	mark := binary.BigEndian.AppendUint32([]byte{2, 'S'}, n)
	i.send(Build(Ethernet{Src: insiderMAC}, ARP{SenderMAC: mark, Sender: insider4, Target: gateway4}))
	if !i.wait(Patience, func() bool { return i.mark == n }) {
		i.mu.Lock()
		over := i.over
		i.mu.Unlock()
		if !over {
			t.Fatalf("the insider itself is not served any more\n%s", stacks())
		}
	}
}

func (i *insider) act(t testing.TB) {
	t.Helper()
	for n := 0; n < mostActs && len(i.in) >= 3; n++ {
		kind, size := i.in[0]%acts, int(binary.BigEndian.Uint16(i.in[1:]))
		b := i.in[3:]
		b = b[:min(size, len(b))]
		i.in = i.in[3+len(b):]
		first := byte(0)
		if len(b) > 0 {
			first = b[0]
		}
		if kind != actPause && kind != actWait {
			i.mu.Lock()
			i.seen = i.came
			i.mu.Unlock()
		}
		switch kind {
		case actRaw:
			i.send(b)
		case actFixed:
			i.send(rightly(b, gatewayMAC))
		case actAcross:
			i.send(rightly(b, i.b.g.MAC()))
		case actWait:
			i.sync(t)
		case actAgain:
			if i.wires < 3 {
				i.unplug(t)
				i.plug(t)
			}
		case actHost:
			i.b.world.present(i.b.soon())
			i.b.world.write(b)
		case actHostEnd:
			i.b.world.present(i.b.soon())
			i.b.world.end(first == 1)
		case actDeaf:
			i.mu.Lock()
			i.deaf = first == 1
			i.heard.Broadcast()
			i.mu.Unlock()
		case actSegment:
			i.segment(b)
		case actQuote:
			i.quote(b)
		case actDialed:
			port := uint16(22)
			if len(b) > 1 {
				port = binary.BigEndian.Uint16(b)
			}
			i.dial(port)
		case actBytes:
			if i.conn != nil {
				i.sync(t) // what came before is not to be lost with the wire
				i.spoilt = true
				i.conn.SetWriteDeadline(time.Now().Add(mostPause)) // who does not read such bytes may end the wire
				i.conn.Write(b)
			}
		case actPause:
			most := min(mostPause, time.Duration(first)*100*time.Microsecond)
			if i.b.patient {
				most = Patience
			}
			i.wait(most, func() bool { return i.deaf || i.came > i.seen })
		}
	}
	i.sync(t)
}

// dial has the program talk with the guest.
func (i *insider) dial(port uint16) {
	ctx := i.ctx
	i.dialed.Go(func() {
		c, err := i.b.n.DialContext(ctx, "tcp", at(insider4, max(port, 1)).String())
		if err != nil {
			return
		}
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		if _, err := c.Write([]byte("out of the program")); err == nil {
			io.Copy(io.Discard, c)
		}
	})
	i.wait(i.b.soon(), func() bool { return i.talk != nil })
}

// segment sends the next one of the conversation that was last heard of.
func (i *insider) segment(b []byte) {
	if len(b) < 7 {
		return
	}
	i.wait(i.b.soon(), func() bool { return i.talk != nil })
	i.mu.Lock()
	if i.talk == nil {
		i.mu.Unlock()
		return
	}
	k := *i.talk
	flags, seqOff, ackOff, shift := b[0], int32(int8(b[1])), int32(int8(b[2])), b[3]
	n := min(int(b[6]), 40, len(b)-7)
	options, payload := b[7:7+n], b[7+n:]
	if seqOff == 0 {
		i.talk.seq += uint32(len(payload))
		if flags&byte(header.TCPFlagSyn|header.TCPFlagFin) != 0 {
			i.talk.seq++
		}
	}
	i.mu.Unlock()
	var ip Layer = IPv4{Src: k.src.Addr(), Dst: k.dst.Addr()}
	if k.src.Addr().Is6() {
		ip = IPv6{Src: k.src.Addr(), Dst: k.dst.Addr()}
	}
	seq, ack := k.seq+uint32(seqOff<<(shift&15)), k.ack+uint32(ackOff<<(shift>>4))
	window := binary.BigEndian.Uint16(b[4:])
	h := TCP{SrcPort: k.src.Port(), DstPort: k.dst.Port(), Seq: seq, Ack: ack, Window: window, ZeroWindow: window == 0, Options: options}
	for bit, letter := range "FSRPAU" {
		if flags&(1<<bit) != 0 {
			h.Flags += string(letter)
		}
	}
	i.send(Build(Ethernet{Src: insiderMAC, Dst: gatewayMAC}, ip, h, Payload(payload)))
}

// quote sends an ICMP error about what came last.
func (i *insider) quote(b []byte) {
	i.mu.Lock()
	last := i.last
	i.mu.Unlock()
	if len(b) < 2 || len(last) < 14+20 {
		return
	}
	m := ICMP{Type: b[0], Code: b[1]}
	if len(b) >= 6 {
		m.Rest = binary.BigEndian.Uint32(b[2:])
	}
	body := Payload(last[14:min(len(last), 14+576)])
	switch binary.BigEndian.Uint16(last[12:]) {
	case EtherIPv4:
		i.send(Build(Ethernet{Src: insiderMAC, Dst: gatewayMAC}, IPv4{Src: insider4, Dst: gateway4}, m, body))
	case EtherIPv6:
		i.send(Build(Ethernet{Src: insiderMAC, Dst: gatewayMAC}, IPv6{Src: insider6, Dst: gateway6}, m, body))
	}
}

// rightly makes a frame's addresses, lengths and checksums what they have to be, as far as it can be told what they are.
func rightly(b []byte, to net.HardwareAddr) []byte {
	if len(b) < 14 {
		return nil
	}
	f := bytes.Clone(b)
	if f[0]&1 == 0 {
		copy(f, to)
	}
	copy(f[6:], insiderMAC)
	p := f[14:]
	var proto uint8
	var body []byte
	var src, dst []byte
	switch {
	case binary.BigEndian.Uint16(f[12:]) == EtherIPv4 && len(p) >= 20 && p[0]>>4 == 4:
		hl := int(p[0]&15) * 4
		if hl < 20 || hl > len(p) || len(p) > 0xffff {
			return f
		}
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], ^checksum.Checksum(p[:hl], 0))
		if binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
			return f // a fragment: the sum is of all
		}
		proto, body, src, dst = p[9], p[hl:], p[12:16], p[16:20]
	case binary.BigEndian.Uint16(f[12:]) == EtherIPv6 && len(p) >= 40 && p[0]>>4 == 6:
		if len(p)-40 > 0xffff {
			return f
		}
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		proto, body, src, dst = p[6], p[40:], p[8:24], p[24:40]
		for proto == ProtoHopByHop || proto == ProtoDestOpts || proto == ProtoRouting {
			if len(body) < 8 || len(body) < 8+int(body[1])*8 {
				return f
			}
			proto, body = body[0], body[8+int(body[1])*8:]
		}
	default:
		return f
	}
	off := map[uint8]int{ProtoTCP: 16, ProtoUDP: 6, ProtoICMP: 2, ProtoICMPv6: 2}[proto]
	if off == 0 || len(body) < off+2 {
		return f
	}
	if proto == ProtoUDP {
		binary.BigEndian.PutUint16(body[4:], uint16(len(body)))
	}
	body[off], body[off+1] = 0, 0
	start := uint16(0)
	if proto != ProtoICMP {
		start = header.PseudoHeaderChecksum(tcpip.TransportProtocolNumber(proto), tcpip.AddrFromSlice(src), tcpip.AddrFromSlice(dst), uint16(len(body)))
	}
	s := ^checksum.Checksum(body, start)
	if s == 0 && proto == ProtoUDP {
		s = 0xffff
	}
	binary.BigEndian.PutUint16(body[off:], s)
	return f
}

// fuzzWorld is an egress that leaves for nowhere but this test's own servers, whatever a guest asks for.
type fuzzWorld struct {
	host   egress.Host
	tcp    [2]netip.AddrPort // echo, by family
	quiet  [2]netip.AddrPort // the bystander's
	closed [2]netip.AddrPort
	udp    [2]netip.AddrPort

	mu    sync.Mutex
	conns map[*net.TCPConn]bool // the host's ends of insiders' conversations
}

var (
	_ egress.Egress      = (*fuzzWorld)(nil)
	_ egress.Descriptors = (*fuzzWorld)(nil)
)

func newFuzzWorld(t testing.TB) *fuzzWorld {
	w := &fuzzWorld{conns: map[*net.TCPConn]bool{}}
	for i, f := range families {
		w.tcp[i] = at(f.loopback, f.listen(t, func(c *net.TCPConn) {
			w.mu.Lock()
			w.conns[c] = true
			w.mu.Unlock()
			unspliced(c)
			w.mu.Lock()
			delete(w.conns, c)
			w.mu.Unlock()
		}).Port())
		w.quiet[i] = at(f.loopback, f.listen(t, unspliced).Port())
		w.closed[i] = at(f.loopback, f.closed(t).Port())
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at(f.loopback, 0)))
		if err != nil {
			t.Fatal(err)
		}
		w.udp[i] = at(f.loopback, uint16(c.LocalAddr().(*net.UDPAddr).Port))
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 65536)
			for {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					c.WriteToUDPAddrPort(buf[:n], from)
				}
			}
		}()
		t.Cleanup(func() { c.Close(); <-done })
	}
	return w
}

// unspliced is echo without the pipe that Go keeps for the next one until memory is collected: descriptors are counted.
func unspliced(c *net.TCPConn) {
	io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	c.CloseWrite()
}

func index(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// where is what stands behind an address: nothing for most.
func (w *fuzzWorld) where(dst netip.AddrPort) (netip.AddrPort, error) {
	switch i := index(dst.Addr()); dst.Port() {
	case portEcho:
		return w.tcp[i], nil
	case portEcho + 1:
		return w.quiet[i], nil
	case portSilent:
		return w.closed[i], nil
	}
	return netip.AddrPort{}, &egress.UnreachableError{Kind: egress.HostUnreachable}
}

func (w *fuzzWorld) DialContext(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
	if dst.Port() == portHole {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	to, err := w.where(dst)
	if err != nil {
		return nil, err
	}
	return w.host.DialContext(ctx, network, to)
}

// Connect implements egress.Descriptors.
func (w *fuzzWorld) Connect(network string, dst netip.AddrPort) (int, error) {
	to, err := w.where(dst)
	if err != nil {
		return -1, err
	}
	return any(&w.host).(egress.Descriptors).Connect(network, to)
}

func (w *fuzzWorld) ListenPacket(ctx context.Context, network string, _ netip.AddrPort) (egress.PacketConn, error) {
	c, err := w.host.ListenPacket(ctx, network, netip.AddrPort{})
	if err != nil {
		return nil, err
	}
	if p, ok := c.(egress.PolledPacket); ok {
		return fuzzPolled{p, w}, nil
	}
	return fuzzPacket{c, w}, nil
}

// Ping answers for even addresses.
func (w *fuzzWorld) Ping(_ context.Context, dst netip.Addr, _ uint16, _ []byte) error {
	if b := dst.AsSlice(); b[len(b)-1]%2 == 0 {
		return nil
	}
	return &egress.UnreachableError{Kind: egress.HostUnreachable}
}

func (w *fuzzWorld) HasRoute4() bool { return true }
func (w *fuzzWorld) HasRoute6() bool { return true }

func (w *fuzzWorld) each(f func(*net.TCPConn)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		f(c)
	}
}

// present waits for a conversation: the one that an act before began may be here in a moment.
func (w *fuzzWorld) present(most time.Duration) {
	for end := time.Now().Add(most); time.Now().Before(end); time.Sleep(50 * time.Microsecond) {
		w.mu.Lock()
		n := len(w.conns)
		w.mu.Unlock()
		if n > 0 {
			return
		}
	}
}

// write writes to all conversations, as far as they take it at once: a guest may be deaf.
func (w *fuzzWorld) write(b []byte) {
	w.each(func(c *net.TCPConn) {
		c.SetWriteDeadline(time.Now().Add(time.Millisecond))
		c.Write(b)
		c.SetWriteDeadline(time.Time{})
	})
}

func (w *fuzzWorld) end(inOrder bool) {
	w.each(func(c *net.TCPConn) {
		if inOrder {
			c.CloseWrite()
			return
		}
		c.SetLinger(0)
		c.Close()
	})
}

// drop ends what is left when the insider has gone.
func (w *fuzzWorld) drop() { w.end(false) }

type fuzzPacket struct {
	egress.PacketConn
	w *fuzzWorld
}

func (c fuzzPacket) WriteTo(b []byte, to netip.AddrPort) (int, error) {
	return c.w.datagram(c.PacketConn, b, to)
}

type fuzzPolled struct {
	egress.PolledPacket
	w *fuzzWorld
}

func (c fuzzPolled) WriteTo(b []byte, to netip.AddrPort) (int, error) {
	return c.w.datagram(c.PolledPacket, b, to)
}

func (w *fuzzWorld) datagram(c egress.PacketConn, b []byte, to netip.AddrPort) (int, error) {
	i := index(to.Addr())
	switch to.Port() {
	case portEcho:
		return c.WriteTo(b, w.udp[i])
	case portSilent:
		return c.WriteTo(b, w.closed[i])
	}
	return 0, &egress.UnreachableError{Kind: egress.NetUnreachable, Dst: to}
}
