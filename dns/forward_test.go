package dns

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	wire "github.com/miekg/dns"
)

func TestFallback(t *testing.T) {
	for _, c := range []struct {
		name      string
		upstreams string // in their order, "; " between; see behave
		want      string // an address, or the code
		asked     string // how often each was; +: once or again
	}{
		{"the only one answers", "192.0.2.1", "192.0.2.1", "1"},
		{"the first one answers", "192.0.2.1; 192.0.2.2", "192.0.2.1", "1 0"},
		{"the first is silent", "silent; 192.0.2.2", "192.0.2.2", "+ +"},
		{"two are silent", "silent; silent; 192.0.2.3", "192.0.2.3", "+ + +"},
		{"the first is slow and the second silent", "slow 192.0.2.1; silent", "192.0.2.1", "+ +"},
		{"nobody listens at the first", "closed; 192.0.2.2", "192.0.2.2", "0 1"},
		{"the first fails", "SERVFAIL; 192.0.2.2", "192.0.2.2", "1 1"},
		{"the first refuses", "REFUSED; 192.0.2.2", "192.0.2.2", "1 1"},
		{"the first does not do that", "NOTIMP; 192.0.2.2", "192.0.2.2", "1 1"},
		{"the first refers elsewhere", "lame; 192.0.2.2", "192.0.2.2", "1 1"},
		{"no such name is an answer", "NXDOMAIN; 192.0.2.2", "NXDOMAIN", "1 0"},
		{"bad form is an answer", "FORMERR; 192.0.2.2", "FORMERR", "1 0"},
		{"all fail: the first's code", "SERVFAIL; REFUSED", "SERVFAIL", "1 1"},
		{"all refuse: the first's code", "REFUSED; SERVFAIL", "REFUSED", "1 1"},
		{"a silent one and one that refuses", "silent; REFUSED", "REFUSED", "+ +"},
		{"one that refuses and a silent one", "REFUSED; silent", "REFUSED", "+ +"},
		{"one that refuses and nobody", "closed; REFUSED", "REFUSED", "0 1"},
		{"nobody anywhere", "closed; closed", "SERVFAIL", "0 0"},
		{"all are silent", "silent; silent", "SERVFAIL", "2 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var us []*upstream
			conf := Config{Limits: patient}
			if strings.Contains(c.upstreams, "silent") {
				conf.Limits = quick
			}
			if strings.Contains(c.upstreams, "silent") && !strings.ContainsAny(c.want, "0123456789") {
				conf.Limits.Total = 20 * quick.Try // the silent one is waited for
			}
			for w := range strings.SplitSeq(c.upstreams, "; ") {
				u := behave(t, w)
				us = append(us, u)
				conf.Resolvers = append(conf.Resolvers, u.addr)
			}
			s := start(t, conf)
			got := overUDP(t, s, question("Www.Example.COM A", edns(1232)))
			if addr, err := netip.ParseAddr(c.want); err == nil {
				if want := "Www.Example.COM. A " + addr.String(); short(got.Answer) != want {
					t.Errorf("answer %q (%s); want %q", short(got.Answer), wire.RcodeToString[got.Rcode], want)
				}
			} else if wire.RcodeToString[got.Rcode] != c.want {
				t.Errorf("answer is %s %q; want %s", wire.RcodeToString[got.Rcode], short(got.Answer), c.want)
			}
			for i, want := range strings.Fields(c.asked) {
				until(t, fmt.Sprintf("upstream %d was asked %s times", i, want), func() bool {
					n := us[i].count() // a silent one may hear late
					return want == fmt.Sprint(n) || want == "+" && n > 0
				})
			}
			st := s.Status()
			if st.Queries != 1 || st.Forwarded != 1 || st.Local != 0 || (st.ServFail == 1) != (c.want == "SERVFAIL") {
				t.Errorf("counts: %+v", st)
			}
		})
	}
}

// deaf is a resolver's connection that takes all and says nothing.
func deaf(context.Context, string, netip.AddrPort) (net.Conn, error) {
	near, far := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, far); far.Close() }()
	return near, nil
}

// A dead resolver is SERVFAIL within Limits.Total to the nanosecond: the
// clock is the bubble's.
func TestDeadResolversBounded(t *testing.T) {
	for n := range 4 {
		for _, way := range []string{"udp", "tcp"} {
			t.Run(fmt.Sprintf("%d resolvers, %s", n, way), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					conf := Config{Dial: deaf, Resolvers: []netip.AddrPort{}}
					for i := range n {
						conf.Resolvers = append(conf.Resolvers, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 53))
					}
					s := start(t, conf)
					begun := time.Now()
					m := question("example.com A", edns(1232))
					var got *wire.Msg
					if way == "udp" {
						got = overUDP(t, s, m)
					} else {
						got = overTCP(t, s, m)
					}
					want, ede := 4*time.Second, uint16(wire.ExtendedErrorCodeNoReachableAuthority)
					if n == 0 {
						want, ede = 0, wire.ExtendedErrorCodeNetworkError
					}
					if took := time.Since(begun); took != want || got.Rcode != wire.RcodeServerFailure {
						t.Errorf("%s after %v; want SERVFAIL after %v", wire.RcodeToString[got.Rcode], took, want)
					}
					opt := got.IsEdns0()
					if opt == nil || len(opt.Option) != 1 || opt.Option[0].(*wire.EDNS0_EDE).InfoCode != ede {
						t.Errorf("OPT is %v; want extended error %d", opt, ede)
					}
					st := s.Status()
					if st.ServFail != 1 || st.LastError == "" {
						t.Errorf("status: %+v", st)
					}
					if n == 0 && (st.Problem == "" || len(st.Resolvers) != 0) {
						t.Errorf("status does not say that there is no resolver: %+v", st)
					}
					s.Close()
					if st := s.Status(); st.InFlight != 0 || st.Conns != 0 {
						t.Errorf("after Close: %+v", st)
					}
				})
			})
		}
	}
}

// The same with a real socket that nobody reads.
func TestDeadSocket(t *testing.T) {
	pc, err := net.ListenPacket("udp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 loopback:", err)
	}
	defer pc.Close()
	s := start(t, Config{
		Resolvers: []netip.AddrPort{netip.MustParseAddrPort(pc.LocalAddr().String())},
		Limits:    Limits{Try: 20 * time.Millisecond, Total: 60 * time.Millisecond},
	})
	begun := time.Now()
	got := overUDP(t, s, question("example.com A"))
	if took := time.Since(begun); took < 60*time.Millisecond || got.Rcode != wire.RcodeServerFailure {
		t.Errorf("%s after %v; want SERVFAIL, and not before 60ms", wire.RcodeToString[got.Rcode], took)
	}
}

func TestResolvConfOptions(t *testing.T) {
	for _, c := range []struct{ options, first, second string }{
		{"", "udp 192.0.2.1 0s, udp fe80::1%eth0 1.5s, udp 192.0.2.1 3s", ""},
		{"timeout:1", "udp 192.0.2.1 0s, udp fe80::1%eth0 1s, udp 192.0.2.1 2s, udp fe80::1%eth0 3s", ""},
		{"timeout:9", "udp 192.0.2.1 0s, udp fe80::1%eth0 1.5s, udp 192.0.2.1 3s", ""},
		{"attempts:1", "udp 192.0.2.1 0s, udp fe80::1%eth0 1.5s", ""},
		{"use-vc attempts:1", "tcp 192.0.2.1 0s, tcp fe80::1%eth0 1.5s", ""},
		{"rotate attempts:1", "udp fe80::1%eth0 0s, udp 192.0.2.1 1.5s", "udp 192.0.2.1 0s, udp fe80::1%eth0 1.5s"},
	} {
		t.Run(c.options, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var log []string
				var begun time.Time
				s := start(t, Config{Resolvers: []netip.AddrPort{}, Dial: func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
					mu.Lock()
					log = append(log, fmt.Sprint(network, " ", dst.Addr(), " ", time.Since(begun)))
					mu.Unlock()
					return deaf(ctx, network, dst)
				}})
				s.use(parseResolvConf("nameserver 192.0.2.1\nnameserver fe80::1%eth0\noptions "+c.options, nil))
				for _, want := range []string{c.first, c.second} {
					if want == "" {
						continue
					}
					mu.Lock()
					log, begun = nil, time.Now()
					mu.Unlock()
					overUDP(t, s, question("example.com A"))
					mu.Lock()
					if got := strings.Join(log, ", "); got != want {
						t.Errorf("asked %s; want %s", got, want)
					}
					mu.Unlock()
				}
				s.Close()
			})
		})
	}
}

// Each question leaves from a fresh port under a fresh ID.
func TestUpstreamIDsAndPorts(t *testing.T) {
	u := behave(t, "192.0.2.1")
	s := start(t, Config{Resolvers: []netip.AddrPort{u.addr}, Limits: patient})
	const n = 64
	for range n {
		overUDP(t, s, question("example.com A", func(m *wire.Msg) { m.Id = 7 }))
	}
	// Two of 64 may meet by chance; four will not.
	if len(u.ids) < n-4 || len(u.ports) < n-4 {
		t.Errorf("%d IDs and %d ports in %d questions", len(u.ids), len(u.ports), n)
	}
}

// What is not the answer to the question is passed over; the true answer
// after it counts.
func TestForgedAnswers(t *testing.T) {
	for _, c := range []struct {
		name  string
		forge func(r *wire.Msg)
	}{
		{"another ID", func(r *wire.Msg) { r.Id++ }},
		{"another name", func(r *wire.Msg) { r.Question[0].Name = "evil.com." }},
		{"another name of the same length", func(r *wire.Msg) { r.Question[0].Name = "example.org." }},
		{"another type", func(r *wire.Msg) { r.Question[0].Qtype = wire.TypeAAAA }},
		{"another class", func(r *wire.Msg) { r.Question[0].Qclass = wire.ClassCHAOS }},
		{"no question", func(r *wire.Msg) { r.Question = nil }},
		{"a query", func(r *wire.Msg) { r.Response = false }},
		{"another opcode", func(r *wire.Msg) { r.Opcode = wire.OpcodeNotify }},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := startUpstream(t, "127.0.0.1", func(w wire.ResponseWriter, m *wire.Msg) {
				good := new(wire.Msg)
				good.SetReply(m)
				good.RecursionAvailable = true
				bad := good.Copy()
				good.Answer = []wire.RR{rr(t, "example.com. A 192.0.2.1")}
				bad.Answer = []wire.RR{rr(t, "example.com. A 203.0.113.66")}
				c.forge(bad)
				_, _ = w.Write([]byte{1, 2, 3})
				_ = w.WriteMsg(bad)
				_ = w.WriteMsg(good)
			})
			s := start(t, Config{Resolvers: []netip.AddrPort{u.addr}, Limits: patient})
			if got := short(overUDP(t, s, question("example.com A")).Answer); got != "example.com. A 192.0.2.1" {
				t.Errorf("believed %q", got)
			}
			if u.count() != 1 {
				t.Errorf("asked %d times", u.count())
			}
		})
	}
}

// The guest's spelling reaches the resolver and comes back, also from one
// that folds case.
func TestSpelling(t *testing.T) {
	var heard string
	u := startUpstream(t, "127.0.0.1", func(w wire.ResponseWriter, m *wire.Msg) {
		heard = m.Question[0].Name
		r := new(wire.Msg)
		r.SetReply(m)
		r.RecursionAvailable = true
		r.Question[0].Name = strings.ToLower(heard)
		r.Compress = true
		r.Answer = []wire.RR{rr(t, r.Question[0].Name+" A 192.0.2.1")}
		_ = w.WriteMsg(r)
	})
	s := start(t, Config{Resolvers: []netip.AddrPort{u.addr}, Limits: patient})
	got := overUDP(t, s, question("wWw.eXample-1.COM A"))
	if heard != "wWw.eXample-1.COM." || got.Question[0].Name != heard || short(got.Answer) != "wWw.eXample-1.COM. A 192.0.2.1" {
		t.Errorf("upstream heard %q, the guest got %q, %q", heard, got.Question[0].Name, short(got.Answer))
	}
}

// What a resolver without EDNS says to a query with it is not lost.
func TestFormErrWithoutQuestion(t *testing.T) {
	u := startUpstream(t, "127.0.0.1", func(w wire.ResponseWriter, m *wire.Msg) {
		_ = w.WriteMsg(&wire.Msg{MsgHdr: wire.MsgHdr{Id: m.Id, Response: true, Rcode: wire.RcodeFormatError}})
	})
	s := start(t, Config{Resolvers: []netip.AddrPort{u.addr}, Limits: patient})
	if got := overUDP(t, s, question("example.com A", edns(1232))); got.Rcode != wire.RcodeFormatError {
		t.Errorf("%v; want FORMERR", got)
	}
}

// big answers with about n bytes of TXT; over UDP it heeds the size it was
// offered, or, when deaf to it, sends all.
func big(t *testing.T, n int, heeds bool) *upstream {
	return startUpstream(t, "127.0.0.1", func(w wire.ResponseWriter, m *wire.Msg) {
		r := new(wire.Msg)
		r.SetReply(m)
		r.RecursionAvailable = true
		size := wire.MinMsgSize
		if opt := m.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
			r.SetEdns0(4096, opt.Do())
		}
		for i := range n / 64 {
			r.Answer = append(r.Answer, &wire.TXT{
				Hdr: wire.RR_Header{Name: m.Question[0].Name, Rrtype: wire.TypeTXT, Class: wire.ClassINET, Ttl: 60},
				Txt: []string{fmt.Sprintf("%050d", i)},
			})
		}
		r.Compress = true
		if heeds && w.LocalAddr().Network() == "udp" {
			r.Truncate(size)
		}
		_ = w.WriteMsg(r)
	})
}

func TestSizes(t *testing.T) {
	for _, c := range []struct {
		name    string
		bytes   int
		offer   int // EDNS size; -1: no OPT
		heeds   bool
		limit   int
		tc      bool
		offered int // upstream saw
	}{
		{"fits without EDNS", 256, -1, true, 512, false, 0},
		{"no EDNS", 2000, -1, true, 512, true, 0},
		{"no EDNS, upstream sends all", 2000, -1, false, 512, true, 0},
		{"512 offered", 2000, 512, true, 512, true, 512},
		{"1 offered is 512", 2000, 1, false, 512, true, 1},
		{"0 offered is 512", 300, 0, false, 512, false, 0},
		{"1232 offered", 1024, 1232, true, 1232, false, 1232},
		{"1232 offered and not enough", 2000, 1232, true, 1232, true, 1232},
		{"4096 offered is 1232", 2000, 4096, true, 1232, true, 1232},
		{"4096 offered, upstream sends all", 2000, 4096, false, 1232, true, 1232},
		{"65535 offered, upstream sends more than is read", 9000, 65535, false, 1232, true, 1232},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := big(t, c.bytes, c.heeds)
			s := start(t, Config{Resolvers: []netip.AddrPort{u.addr}, Limits: patient})
			m := question("example.com TXT")
			if c.offer >= 0 {
				m.SetEdns0(uint16(c.offer), true)
			}
			got := make(chan []byte, 1)
			s.HandleUDP(t.Context(), "web", packed(t, m), func(b []byte) { got <- b })
			raw := <-got
			a := unpacked(t, m, raw)
			if len(raw) > c.limit || a.Truncated != c.tc {
				t.Errorf("%d bytes, TC %v; want at most %d, TC %v", len(raw), a.Truncated, c.limit, c.tc)
			}
			if !c.tc && len(a.Answer) != c.bytes/64 {
				t.Errorf("%d records; want %d", len(a.Answer), c.bytes/64)
			}
			if n := s.Status().Truncated; (n == 1) != c.tc {
				t.Errorf("%d counted as truncated", n)
			}
			opt := u.seen().IsEdns0()
			switch {
			case c.offer < 0 && opt != nil:
				t.Errorf("upstream saw an OPT record that the guest did not send")
			case c.offer >= 0 && (opt == nil || int(opt.UDPSize()) != c.offered || !opt.Do()):
				t.Errorf("upstream saw %v; want size %d and DO", opt, c.offered)
			}
			if c.bytes < 9000 && (a.IsEdns0() != nil) != (c.offer >= 0) {
				t.Errorf("guest got OPT %v", a.IsEdns0())
			}
			// The same over TCP is whole, whatever was offered.
			if a := overTCP(t, s, m); a.Truncated || len(a.Answer) != c.bytes/64 {
				t.Errorf("tcp: %d records, TC %v; want %d", len(a.Answer), a.Truncated, c.bytes/64)
			}
		})
	}
}

// Options and flags pass through as they are, both ways.
func TestTransparency(t *testing.T) {
	u := startUpstream(t, "127.0.0.1", func(w wire.ResponseWriter, m *wire.Msg) {
		r := new(wire.Msg)
		r.SetReply(m)
		r.RecursionAvailable, r.AuthenticatedData = true, true
		r.SetEdns0(1400, true)
		opt := r.IsEdns0()
		opt.Option = append(opt.Option, &wire.EDNS0_EDE{InfoCode: 3, ExtraText: "stale"})
		r.Answer = []wire.RR{rr(t, `example.com. TYPE65281 \# 3 abcdef`)}
		r.Ns = []wire.RR{rr(t, "example.com. NS ns.example.com.")}
		_ = w.WriteMsg(r)
	})
	s := start(t, Config{Resolvers: []netip.AddrPort{u.addr}, Limits: patient})
	got := overUDP(t, s, question("example.com TYPE65281", edns(1000), func(m *wire.Msg) {
		m.CheckingDisabled, m.AuthenticatedData = true, true
		m.IsEdns0().Option = append(m.IsEdns0().Option, &wire.EDNS0_COOKIE{Code: wire.EDNS0COOKIE, Cookie: "0123456789abcdef"})
	}))
	saw := u.seen()
	if opt := saw.IsEdns0(); !saw.CheckingDisabled || !saw.AuthenticatedData || !saw.RecursionDesired || opt == nil || opt.UDPSize() != 1000 || len(opt.Option) != 1 {
		t.Errorf("upstream saw %v", saw)
	}
	opt := got.IsEdns0()
	if !got.AuthenticatedData || opt == nil || opt.UDPSize() != 1400 || len(opt.Option) != 1 ||
		short(got.Answer) != `example.com. TYPE65281 \# 3 abcdef` || short(got.Ns) != "example.com. NS ns.example.com." {
		t.Errorf("guest got %v", got)
	}
}

// A question too long for a datagram goes by TCP.
func TestLongQuestion(t *testing.T) {
	u := behave(t, "192.0.2.1")
	s := start(t, Config{Resolvers: []netip.AddrPort{u.addr}, Limits: patient})
	overTCP(t, s, question("example.com A", edns(1232), func(m *wire.Msg) {
		m.IsEdns0().Option = append(m.IsEdns0().Option, &wire.EDNS0_PADDING{Padding: make([]byte, 1500)})
	}))
	if want := []string{"tcp example.com. A"}; !slices.Equal(u.asked, want) {
		t.Errorf("asked %q; want %q", u.asked, want)
	}
}

// IPv6 upstreams are upstreams.
func TestIPv6Upstream(t *testing.T) {
	if pc, err := net.ListenPacket("udp", "[::1]:0"); err != nil {
		t.Skip("no IPv6 loopback:", err)
	} else {
		pc.Close()
	}
	u := startUpstream(t, "::1", func(w wire.ResponseWriter, m *wire.Msg) {
		r := new(wire.Msg)
		r.SetReply(m)
		r.RecursionAvailable = true
		r.Answer = []wire.RR{rr(t, "example.com. AAAA 2001:db8::1")}
		_ = w.WriteMsg(r)
	})
	s := start(t, Config{Resolvers: []netip.AddrPort{u.addr}, Limits: patient})
	for way, got := range map[string]*wire.Msg{"udp": overUDP(t, s, question("example.com AAAA")), "tcp": overTCP(t, s, question("example.com AAAA"))} {
		if short(got.Answer) != "example.com. AAAA 2001:db8::1" {
			t.Errorf("%s: %v", way, got)
		}
	}
}
