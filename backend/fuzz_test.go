package backend_test

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/miekg/dns"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
)

// hostile is a frame, or several, of each group of what a guest may send to do harm.
func hostile() map[string][][]byte {
	src := net.HardwareAddr{2, 0, 0, 0, 0, 0x66}
	me4, me6, ll := ip("10.0.2.66"), ip("fd00:1234::66"), LinkLocal(src)
	gw := Ethernet{Src: src, Dst: gatewayMAC}
	v4, v6 := IPv4{Src: me4, Dst: gateway4}, IPv6{Src: me6, Dst: gateway6}
	all := ip("ff02::1")
	join := func(l []Layer, more ...Layer) []byte { return Build(append(append([]Layer{}, l...), more...)...) }
	dhcp := func(opts ...byte) []byte {
		m, _ := dhcpv4.NewDiscovery(src)
		b := m.ToBytes()
		b = append(b[:240:240], opts...)
		return Build(Ethernet{Src: src}, IPv4{Src: netip.IPv4Unspecified(), Dst: ip("255.255.255.255")}, UDP{SrcPort: 68, DstPort: 67}, Payload(b))
	}
	question := func(change func([]byte) []byte) []byte {
		q := new(dns.Msg)
		q.SetQuestion("gateway.internal.", dns.TypeA)
		q.SetEdns0(65535, true)
		b, _ := q.Pack()
		return Build(gw, IPv4{Src: me4, Dst: dns4}, UDP{SrcPort: 5353, DstPort: 53}, Payload(change(b)))
	}
	set := func(off int, with ...byte) func([]byte) []byte {
		return func(b []byte) []byte { return Patch(b, off, with...) }
	}
	big4 := Build(gw, v4, UDP{SrcPort: 7, DstPort: 8}, Payload(make([]byte, 60_000)))
	big6 := Build(gw, v6, UDP{SrcPort: 7, DstPort: 8}, Payload(make([]byte, 60_000)))
	return map[string][][]byte{
		"1 a link's shortest":              {make([]byte, 14)},
		"1 a link's longest":               {make([]byte, link.MaxFrame)},
		"1 a runt":                         {append(append([]byte{}, gatewayMAC...), 2, 0, 0, 0, 0, 1, 8, 0)},
		"2 announcement (RARP)":            {Build(Ethernet{Src: src, Type: 0x8035}, Payload(make([]byte, 46)))},
		"2 NC-SI":                          {Build(Ethernet{Src: src, Type: 0x88f8}, Payload(make([]byte, 4)))},
		"2 VLAN":                           {Build(gw, VLAN{ID: 7}, v4, UDP{SrcPort: 1, DstPort: 2}), Build(gw, VLAN{})},
		"2 from a group":                   {Build(Ethernet{Src: Broadcast}, v4, UDP{SrcPort: 1, DstPort: 2})},
		"2 from the gateway":               {Build(Ethernet{Src: gatewayMAC, Dst: gatewayMAC}, v4, UDP{SrcPort: 1, DstPort: 2})},
		"3 ARP, cut":                       {Build(Ethernet{Src: src}, ARP{Sender: me4, Target: gateway4})[:30]},
		"3 ARP for the gateway":            {Build(Ethernet{Src: src}, ARP{Op: ARPReply, Sender: gateway4, SenderMAC: src, Target: gateway4})},
		"3 ARP of another kind":            {Patch(Build(gw, ARP{Sender: me4, SenderMAC: src, Target: gateway4}), 18, 200, 200)},
		"3 advertisement and redirect":     {join([]Layer{Ethernet{Src: src, Dst: MulticastMAC(all)}, IPv6{Src: ll, Dst: all}}, RouterAdvert(src, 1800, prefix6)...), join([]Layer{gw, IPv6{Src: ll, Dst: gateway6}}, ICMP{Type: 137}, Payload(make([]byte, 32)))},
		"3 solicitation, cut":              {join([]Layer{gw, IPv6{Src: ll, Dst: gateway6}}, ICMP{Type: 135}, Payload(make([]byte, 3)))},
		"3 solicitation, option of none":   {join([]Layer{gw, IPv6{Src: ll, Dst: gateway6}}, ICMP{Type: 135}, Payload(append(gateway6.AsSlice(), 1, 0, 0, 0, 0, 0, 0, 0)))},
		"3 neighbours' MACs":               {join([]Layer{gw, IPv6{Src: ll, Dst: all}}, NeighborAdvert(ll, gatewayMAC)...), join([]Layer{gw, IPv6{Src: ll, Dst: all}}, ICMP{Type: 135}, Payload(append(all.AsSlice(), append([]byte{14, 30}, make([]byte, 238)...)...)))},
		"3 neighbours' options, cut":       {join([]Layer{gw, IPv6{Src: ll, Dst: all, PayloadLength: 60000}}, ICMP{Type: 136}, Payload(append(all.AsSlice(), 14, 1, 0, 0, 0, 0, 0, 0, 2, 1)))},
		"3 ARP of another's MAC":           {Build(gw, ARP{Sender: me4, SenderMAC: gatewayMAC, Target: me4})},
		"4 header of 4 words":              {Build(gw, IPv4{Src: me4, Dst: gateway4, HeaderWords: 4}, UDP{SrcPort: 1, DstPort: 2})},
		"4 header of 15 words":             {Build(gw, IPv4{Src: me4, Dst: gateway4, HeaderWords: 15}, UDP{SrcPort: 1, DstPort: 2})},
		"4 longer than it is":              {Build(gw, IPv4{Src: me4, Dst: gateway4, TotalLength: 65535}, ICMP{Type: 8}), Build(gw, IPv6{Src: me6, Dst: gateway6, PayloadLength: 65535}, ICMP{Type: 128})},
		"4 shorter than it is":             {Build(gw, IPv4{Src: me4, Dst: gateway4, TotalLength: 3}, ICMP{Type: 8}), Build(gw, IPv6{Src: me6, Dst: gateway6, PayloadLength: 3}, ICMP{Type: 128})},
		"4 extension headers":              {Build(gw, v6, Ext{Kind: ProtoHopByHop}, Ext{Kind: ProtoRouting, Data: make([]byte, 250)}, Ext{Kind: ProtoDestOpts}, UDP{SrcPort: 1, DstPort: 2})},
		"4 jumbo":                          {Build(gw, v6, Ext{Kind: ProtoHopByHop, Data: []byte{0xc2, 4, 0, 1, 0, 0}}, Payload(make([]byte, 9)))},
		"4 odd sources":                    {Build(gw, IPv4{Src: ip("127.0.0.1"), Dst: gateway4}, TCP{Flags: "S", SrcPort: 1, DstPort: 1}), Build(gw, IPv6{Src: ip("::1"), Dst: gateway6}, TCP{Flags: "S", SrcPort: 1, DstPort: 1})},
		"4 odd destinations":               {Build(gw, IPv4{Src: me4, Dst: ip("127.0.0.1")}, TCP{Flags: "S", SrcPort: 1, DstPort: 1}), Build(gw, IPv6{Src: me6, Dst: ip("::ffff:127.0.0.1")}, TCP{Flags: "S", SrcPort: 1, DstPort: 1})},
		"5 fragments in reverse":           reversed(Fragment(big4, 1480, 1)),
		"5 IPv6 fragments, one lost":       Fragment(big6, 1400, 2)[1:],
		"5 overlapping":                    {Fragment(big4, 800, 3)[0], Patch(Fragment(big4, 800, 3)[1], 20, 0x20, 50)},
		"5 beyond 64 KiB":                  {Build(gw, IPv4{Src: me4, Dst: gateway4, Proto: 17, Offset: 65528, ID: 4}, Payload(make([]byte, 1400)))},
		"5 tiny first":                     {Build(gw, IPv4{Src: me4, Dst: gateway4, Proto: 6, More: true, ID: 5}, Payload(make([]byte, 8)))},
		"6 UDP longer than it is":          {Build(gw, v4, UDP{SrcPort: 1, DstPort: 9, Length: 9000}, Payload("x"))},
		"6 UDP shorter than it is":         {Build(gw, v6, UDP{SrcPort: 1, DstPort: 9, Length: 3}, Payload("x"))},
		"6 UDP without ports":              {Build(gw, v4, UDP{}, Payload("x"))},
		"7 TCP options of no length":       {Build(gw, v4, TCP{SrcPort: 1, DstPort: 9, Flags: "S", Options: []byte{2, 0, 0, 0}}), Build(gw, v4, TCP{SrcPort: 2, DstPort: 9, Flags: "S", Options: []byte{8, 1, 3, 0}})},
		"7 TCP header of 4 words":          {Build(gw, v6, TCP{SrcPort: 1, DstPort: 9, Flags: "S", DataOffset: 4})},
		"7 TCP header beyond its end":      {Build(gw, v6, TCP{SrcPort: 1, DstPort: 9, Flags: "S", DataOffset: 15})},
		"7 TCP with all flags":             {Build(gw, v4, TCP{SrcPort: 1, DstPort: 9, Flags: "FSRPAU", Urgent: 65535}, Payload("x"))},
		"7 TCP segments that follow":       {Build(gw, v4, TCP{SrcPort: 1, DstPort: 9, Flags: "A", Seq: 1, Ack: 1}, Payload(make([]byte, 1448))), Build(gw, v4, TCP{SrcPort: 1, DstPort: 9, Flags: "PA", Seq: 1449, Ack: 1}, Payload(make([]byte, 1448)))},
		"8 DHCP without an end":            {dhcp(53, 1, 1)},
		"8 DHCP with a length behind 255":  {dhcp(255, 200, 1, 2)},
		"8 DHCP without a type":            {dhcp(12, 3, 'a', 'b', 'c', 255)},
		"8 DHCP name of control bytes":     {dhcp(53, 1, 1, 12, 4, 0, '\n', 27, '`', 255)},
		"8 DHCP with an option cut":        {dhcp(53, 1, 1, 61, 250, 1)},
		"8 DHCPv6 options that nest badly": {Build(Ethernet{Src: src, Dst: MulticastMAC(ip("ff02::1:2"))}, IPv6{Src: ll, Dst: ip("ff02::1:2")}, UDP{SrcPort: 546, DstPort: 547}, Payload([]byte{1, 1, 2, 3, 0, 3, 0, 200, 0, 0, 0, 1}))},
		"9 DNS pointer loop":               {question(set(12, 0xc0, 0x0c))},
		"9 DNS without a question":         {question(set(4, 0, 0))},
		"9 DNS with 65535 questions":       {question(set(4, 0xff, 0xff))},
		"9 DNS response":                   {question(set(2, 0x80))},
		"9 DNS, cut":                       {question(func(b []byte) []byte { return b[:11] })},
	}
}

func reversed(f [][]byte) [][]byte {
	var r [][]byte
	for i := len(f) - 1; i >= 0; i-- {
		r = append(r, f[i])
	}
	return r
}

// world is a network with a bystander who must be served whatever somebody else sends.
type fuzzed struct {
	n         *backend.Network
	bystander *Guest
	attacker  link.Link
	said      *logged
}

func newFuzzed(t testing.TB) *fuzzed {
	f := &fuzzed{said: &logged{}}
	f.n = start(t, backend.Config{Egress: &Egress{Dial: hang}, Logger: slog.New(slog.NewTextHandler(io.MultiWriter(f.said), nil))})
	f.bystander = Plug(t, f.n, Config{Gateway4: gateway4, Gateway6: gateway6, Addrs: []netip.Prefix{
		netip.MustParsePrefix("10.0.2.20/24"), netip.MustParsePrefix("fd00:1234::20/64")}})
	near, far := link.Pipe(PipeDepth)
	serve(t, f.n, far, "attacker")
	t.Cleanup(func() { near.Close() })
	f.attacker = near
	eventually(t, "the attacker is plugged in", func() bool { return len(f.n.Guests()) == 2 })
	go func() { // it reads, so that it is not its queue that protects
		var b link.Batch
		for near.ReadFrames(&b) == nil {
			b.Next()
		}
	}()
	f.bystander.Sync(t)
	return f
}

func (f *fuzzed) check(t testing.TB) {
	t.Helper()
	for _, a := range []netip.Addr{gateway4, gateway6} {
		if err := f.bystander.Ping(patience(t), a, 1, 1, []byte("still served")); err != nil {
			t.Fatalf("the bystander is not served: %v", err)
		}
	}
	if m, err := f.bystander.Resolve(patience(t), gateway4); err != nil || m.String() != gatewayMAC.String() {
		t.Fatalf("the bystander's gateway is at %s, %v", m, err)
	}
	if len(f.n.Guests()) != 2 {
		t.Fatal("the attacker was ended, so a bug was met")
	}
	if f.said.count("a bug was met") > 0 {
		t.Fatal("a bug was met")
	}
}

func (f *fuzzed) send(t testing.TB, frames ...[]byte) {
	t.Helper()
	for _, b := range frames {
		if _, err := f.attacker.WriteFrames([]link.Frame{link.NewFrame(b)}); err != nil {
			t.Fatalf("the attacker was ended: %v", err)
		}
	}
}

func TestHostileFrames(t *testing.T) {
	f := newFuzzed(t)
	for name, frames := range hostile() {
		t.Run(name, func(t *testing.T) {
			f.send(t, frames...)
			for _, b := range frames { // and to everybody else, and to the bystander
				if len(b) >= 14 {
					f.send(t, Patch(b, 0, Broadcast...), Patch(b, 0, f.bystander.MAC()...))
				}
			}
			f.check(t)
		})
	}
}

// No frame stops the network, or another guest.
func FuzzFrames(f *testing.F) {
	for _, frames := range hostile() {
		for _, b := range frames {
			if len(b) <= 4096 {
				f.Add(b)
			}
		}
	}
	w := newFuzzed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 14 || len(b) > link.MaxFrame {
			return // the framing's to refuse
		}
		// As it is; and with what makes it get further: to the gateway and to another guest, from a MAC of its own.
		w.send(t, b, Patch(b, 0, append(append([]byte{}, gatewayMAC...), 2, 0, 0, 0, 0, 0x66)...),
			Patch(b, 0, append(w.bystander.MAC(), 2, 0, 0, 0, 0, 0x66)...))
		w.check(t)
	})
}
