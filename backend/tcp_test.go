package backend_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/egress"
	"github.com/vmnetd/vmnetd/flows"
)

// Dial first, then answer: who refuses is never seen to have accepted.
func TestTCPRefused(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{})
		accepted := g.Watch(IsTCP("SA"))
		_, err := g.Dial(patience(t), "tcp", f.closed(t))
		wantErr(t, "dial", err, syscall.ECONNREFUSED)
		accepted.None(t)
		if got := n.Flows().Counts()["refused"]; got != 1 {
			t.Errorf("%d counted as refused, want 1: %v", got, n.Flows().Counts())
		}
		eventually(t, "the flow is over", func() bool { return n.Flows().Len() == 0 })
	})
}

// What the egress says of a destination is what the guest hears.
func TestTCPUnreachable(t *testing.T) {
	both(t, func(t *testing.T, f family) {
		for _, tt := range []struct {
			name string
			err  error
			want Check // nil: silence
			why  string
		}{
			{"host unreachable", syscall.EHOSTUNREACH, IsICMP(f.unreachable, f.host), "unreachable"},
			{"network unreachable", syscall.ENETUNREACH, IsICMP(f.unreachable, f.network), "unreachable"},
			{"prohibited", &egress.UnreachableError{Kind: egress.Prohibited}, IsICMP(f.unreachable, f.admin), "unreachable"},
			{"refused", syscall.ECONNREFUSED, IsTCP("RA"), "refused"},
			{"timeout", os.ErrDeadlineExceeded, nil, "timeout"},
			{"no descriptor left", syscall.EMFILE, nil, "exhausted"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				e := &Egress{Dial: func(context.Context, netip.AddrPort) (net.Conn, error, bool) { return nil, tt.err, true }}
				n, g := up(t, backend.Config{Egress: e})
				syn := g.IP(t, f.world, TCP{SrcPort: 4000, DstPort: 80, Seq: 77, Flags: "S"})
				any := g.Watch(func(p *Packet) error { return expectIP(p) })
				g.Send(syn)
				eventually(t, "counted: "+tt.why, func() bool { return n.Flows().Counts()[tt.why] == 1 })
				if tt.want == nil {
					any.None(t)
					return
				}
				p := any.Expect(t)
				if err := All(Good(), tt.want, To(f.of(g)))(p); err != nil {
					t.Fatalf("%s: %v", p, err)
				}
				if p.TCP != nil {
					if p.TCP.Ack != 78 || p.IPSrc != f.world {
						t.Errorf("reset %s acknowledges %d, want 78, from %s", p, p.TCP.Ack, f.world)
					}
					return
				}
				if err := All(From(f.gateway), Quotes(From(f.of(g)), To(f.world), ToPort(80)))(p); err != nil {
					t.Errorf("%s: %v", p, err)
				}
			})
		}
	})
}

func expectIP(p *Packet) error {
	if p.IPSrc.IsValid() && (p.ICMP == nil || p.ICMP.Type < 133 || p.ICMP.Type > 137) {
		return nil
	}
	return errors.New("not IP, or neighbour discovery")
}

// A SYN that comes again while its dial is under way is the same SYN.
func TestTCPRetransmittedSYN(t *testing.T) {
	both(t, func(t *testing.T, f family) {
		e := &Egress{Dial: hang}
		n, g := up(t, backend.Config{Egress: e})
		syn := g.IP(t, f.world, TCP{SrcPort: 4000, DstPort: 80, Seq: 77, Flags: "S"})
		g.Send(syn, syn, syn, syn)
		g.Sync(t)
		eventually(t, "one dial", func() bool { return len(e.Dials()) == 1 })
		if got := n.Flows().Len(); got != 1 {
			t.Errorf("%d flows, want 1", got)
		}
	})
}

// hang is a black hole.
func hang(ctx context.Context, _ netip.AddrPort) (net.Conn, error, bool) {
	<-ctx.Done()
	return nil, ctx.Err(), true
}

// Ten thousand black-holed SYNs neither hold nor delay the next good conversation.
func TestTCPBlackHoles(t *testing.T) {
	t.Parallel() // beside the tests that wait
	const syns = 10_000
	flood := func(t *testing.T, n *backend.Network, g *Guest, f family, hole netip.AddrPort, limit int) {
		good := f.listen(t, echo)
		hop := g.GatewayMAC(t)
		for i := range syns {
			src := uint16(1024 + i)
			g.Send(g.Via(hop, hole.Addr(), TCP{SrcPort: src, DstPort: hole.Port(), Seq: uint32(i), Flags: "S"}))
		}
		g.Sync(t)
		c, err := g.DialFrom(patience(t), "tcp", at(f.of(g), 20_000), good)
		if err != nil {
			t.Fatalf("good conversation behind %d black holes: %v", syns, err)
		}
		defer c.Close()
		roundTrip(t, c, "through")
		dialing := 0
		for _, s := range n.Flows().List() {
			if s.State == "dialing" {
				dialing++
			}
		}
		if dialing > limit || dialing < limit-1 {
			t.Errorf("%d dials wait, want the limit of %d", dialing, limit)
		}
		if got := n.Flows().Counts()["evicted"]; got != uint64(syns-dialing) && got != uint64(syns-dialing+1) {
			t.Errorf("%d of %d made room, %d wait", got, syns, dialing)
		}
	}
	for _, f := range families {
		t.Run("plain/"+f.name, func(t *testing.T) {
			e := &Egress{}
			e.Dial = func(ctx context.Context, dst netip.AddrPort) (net.Conn, error, bool) {
				if dst.Addr() == f.world {
					return hang(ctx, dst)
				}
				return nil, nil, false
			}
			n, g := up(t, backend.Config{Egress: e})
			flood(t, n, g, f, at(f.world, 80), 1024)
		})
		t.Run("loop/"+f.name, func(t *testing.T) {
			n, g := carriers[1].up(t, backend.Config{})
			flood(t, n, g, f, f.blackHole(t), 1024)
		})
	}
}

func roundTrip(t testing.TB, c net.Conn, s string) {
	t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		t.Error(err)
	}
	b := make([]byte, len(s))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != s {
		t.Errorf("echo of %q: %q, %v", s, b, err)
	}
}

// The oldest waiting dial makes room, and its guest may try again.
func TestTCPPendingEvictsTheOldest(t *testing.T) {
	e := &Egress{Dial: hang}
	n, g := up(t, backend.Config{Egress: e, Limits: flows.Limits{Dials: 3}})
	hop := g.GatewayMAC(t)
	for i := range uint16(5) {
		g.Send(g.Via(hop, world4, TCP{SrcPort: 4000 + i, DstPort: 80, Flags: "S"}))
	}
	g.Sync(t)
	var ports []uint16
	for _, s := range n.Flows().List() {
		ports = append(ports, s.Src.Port())
	}
	if fmt.Sprint(ports) != "[4002 4003 4004]" {
		t.Errorf("dials of ports %v wait, want the three youngest", ports)
	}
	eventually(t, "the evicted are forgotten, and may come again", func() bool {
		g.Send(g.Via(hop, world4, TCP{SrcPort: 4000, DstPort: 80, Flags: "S"}))
		g.Sync(t)
		_, ok := flow(n, func(s flows.Snapshot) bool { return s.Src.Port() == 4000 })
		return ok
	})
}

func TestTCPHalfClose(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		t.Run("by the guest", func(t *testing.T) {
			_, g := c.up(t, backend.Config{})
			late := make(chan struct{})
			dst := f.listen(t, func(h *net.TCPConn) {
				b, err := io.ReadAll(h)
				if err != nil || string(b) != "question" {
					t.Errorf("host read %q, %v", b, err)
				}
				<-late // the guest's half is over; ours is not
				h.Write([]byte("answer"))
			})
			conn, err := g.Dial(patience(t), "tcp", dst)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.Write([]byte("question"))
			conn.CloseWrite()
			close(late)
			if b, err := io.ReadAll(conn); err != nil || string(b) != "answer" {
				t.Errorf("guest read %q, %v", b, err)
			}
		})
		t.Run("by the host", func(t *testing.T) {
			n, g := c.up(t, backend.Config{})
			heard := make(chan string, 1)
			dst := f.listen(t, func(h *net.TCPConn) {
				h.Write([]byte("hello"))
				h.CloseWrite()
				b, err := io.ReadAll(h)
				heard <- fmt.Sprintf("%s %v", b, err)
			})
			conn, err := g.Dial(patience(t), "tcp", dst)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
				t.Errorf("guest read %q, %v", b, err)
			}
			s, ok := flow(n, func(flows.Snapshot) bool { return true })
			if !ok || s.State != "closing" {
				t.Errorf("the flow is %q, want closing", s.State)
			}
			conn.Write([]byte("late"))
			conn.Close()
			if got := <-heard; got != "late <nil>" {
				t.Errorf("host read %q", got)
			}
			eventually(t, "the flow is over", func() bool { return n.Flows().Len() == 0 })
			if got := n.Flows().Counts()["closed"]; got != 1 {
				t.Errorf("ended as %v, want closed", n.Flows().Counts())
			}
		})
	})
}

// A reset arrives as a reset, never as a clean end.
func TestTCPReset(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		t.Run("by the guest", func(t *testing.T) {
			n, g := c.up(t, backend.Config{})
			got := make(chan error, 1)
			dst := f.listen(t, func(h *net.TCPConn) {
				h.Write([]byte("x"))
				_, err := io.Copy(io.Discard, h)
				got <- err
			})
			conn, err := g.Dial(patience(t), "tcp", dst)
			if err != nil {
				t.Fatal(err)
			}
			io.ReadFull(conn, make([]byte, 1))
			conn.Abort()
			wantErr(t, "host read", <-got, syscall.ECONNRESET)
			eventually(t, "counted as reset", func() bool { return n.Flows().Counts()["reset"] == 1 && n.Flows().Len() == 0 })
		})
		t.Run("by the host", func(t *testing.T) {
			n, g := c.up(t, backend.Config{})
			dst := f.listen(t, func(h *net.TCPConn) {
				io.ReadFull(h, make([]byte, 1))
				h.SetLinger(0)
			})
			conn, err := g.Dial(patience(t), "tcp", dst)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.Write([]byte("x"))
			_, err = io.Copy(io.Discard, conn)
			wantErr(t, "guest read", err, syscall.ECONNRESET)
			eventually(t, "counted as reset", func() bool { return n.Flows().Counts()["reset"] == 1 && n.Flows().Len() == 0 })
		})
		t.Run("by the host, after the guest's half is over", func(t *testing.T) {
			_, g := c.up(t, backend.Config{})
			dst := f.listen(t, func(h *net.TCPConn) {
				io.Copy(io.Discard, h)
				h.SetLinger(0)
			})
			conn, err := g.Dial(patience(t), "tcp", dst)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.CloseWrite()
			_, err = io.Copy(io.Discard, conn)
			wantErr(t, "guest read", err, syscall.ECONNRESET)
		})
	})
}

// After a restart no segment of before is known; a reset lets the guest begin anew at once.
func TestTCPUnknownSegment(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		_, g := c.up(t, backend.Config{})
		for _, tt := range []struct {
			name  string
			seg   TCP
			flags string // of the answer; empty: none (RFC 9293 §3.10.7.1)
			seq   uint32
		}{
			{"data", TCP{Seq: 1000, Ack: 555, Flags: "PA"}, "R", 555},
			{"ack", TCP{Seq: 1000, Ack: 556, Flags: "A"}, "R", 556},
			{"fin", TCP{Seq: 1000, Ack: 557, Flags: "FA"}, "R", 557},
			{"syn and ack", TCP{Seq: 1000, Ack: 558, Flags: "SA"}, "R", 558},
			{"no flags", TCP{Seq: 1000}, "RA", 0},
			{"reset", TCP{Seq: 1000, Ack: 559, Flags: "RA"}, "", 0},
		} {
			t.Run(tt.name, func(t *testing.T) {
				w := g.Watch(func(p *Packet) error {
					if p.TCP == nil {
						return errors.New("not tcp")
					}
					return nil
				})
				defer w.Stop()
				tt.seg.SrcPort, tt.seg.DstPort = 4000, 80
				g.Send(g.IP(t, f.world, tt.seg, Payload("old")))
				if tt.flags == "" {
					w.None(t)
					return
				}
				p := w.Expect(t)
				if err := All(Good(), IsTCP(tt.flags), From(f.world), To(f.of(g)), ToPort(4000))(p); err != nil || p.TCP.Seq != tt.seq {
					t.Errorf("%s: %v; sequence number %d, want %d", p, err, p.TCP.Seq, tt.seq)
				}
			})
		}
	})
}

// Five hundred at once, each with bytes of its own, each counted to the byte.
func TestTCPManyAndCounted(t *testing.T) {
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			const conns = 500
			n, g := c.up(t, backend.Config{})
			release := make(chan struct{})
			hold := func(h *net.TCPConn) { io.Copy(h, h); <-release }
			dsts := []netip.AddrPort{families[0].listen(t, hold), families[1].listen(t, hold)}
			ctx := patience(t)
			var wg sync.WaitGroup
			for i := range conns {
				wg.Add(1)
				go func() {
					defer wg.Done()
					conn, err := g.Dial(ctx, "tcp", dsts[i%2])
					if err != nil {
						t.Errorf("conversation %d: %v", i, err)
						return
					}
					defer conn.Close()
					msg := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 50+i)
					conn.Write(msg)
					conn.CloseWrite()
					got := make([]byte, len(msg))
					if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, msg) {
						t.Errorf("conversation %d: other bytes came back: %v", i, err)
					}
				}()
			}
			wg.Wait()
			// All are still in the table: the host has not closed. A transfer is counted when it was written, which the
			// reader may see first.
			const want = conns*100 + conns*(conns-1)
			eventually(t, "all bytes are counted, both ways and of each", func() bool {
				var up, down uint64
				list := n.Flows().List()
				for _, s := range list {
					if s.UpBytes != s.DownBytes || s.UpBytes == 0 {
						return false
					}
					up, down = up+s.UpBytes, down+s.DownBytes
				}
				return len(list) == conns && up == want && down == want
			})
			close(release)
			eventually(t, "all are over", func() bool { return n.Flows().Len() == 0 })
		})
	}
}

// Both ways at once, more than any buffer, at the default and at the largest MTU; no frame is longer than the MTU.
func TestTCPBulk(t *testing.T) {
	t.Parallel() // beside the tests that wait
	for _, mtu := range []int{1500, 65520} {
		t.Run(fmt.Sprint("mtu ", mtu), func(t *testing.T) {
			every(t, func(t *testing.T, c carrier, f family) {
				const size = 6 << 20 // more than a conversation's buffer
				cfg := backend.Config{MTU: mtu}
				var n *backend.Network
				var g *Guest
				if c.name == "loop" {
					cfg.Egress = &egress.Host{}
					n = start(t, cfg)
					g = plugSocket(t, n, Config{MTU: mtu}).Up(t)
				} else {
					n = start(t, cfg)
					g = Plug(t, n, Config{MTU: mtu}).Up(t)
				}
				data := make([]byte, size)
				for i := range data {
					data[i] = byte(i ^ i>>8 ^ i>>16)
				}
				want := sha256.Sum256(data)
				read := func(who string, r io.Reader) {
					h := sha256.New()
					if m, err := io.Copy(h, r); err != nil || m != size || !bytes.Equal(h.Sum(nil), want[:]) {
						t.Errorf("%s read %d bytes, %v, or other bytes", who, m, err)
					}
				}
				heard := make(chan struct{})
				dst := f.listen(t, func(h *net.TCPConn) {
					defer close(heard)
					done := make(chan struct{})
					go func() { defer close(done); h.Write(data); h.CloseWrite() }()
					read("host", h)
					<-done
				})
				conn, err := g.Dial(patience(t), "tcp", dst)
				if err != nil {
					t.Fatal(err)
				}
				done := make(chan struct{})
				go func() { defer close(done); conn.Write(data); conn.CloseWrite() }()
				read("guest", conn)
				<-done
				<-heard
				conn.Close()
				if _, longest := g.Received(); longest > mtu+14 {
					t.Errorf("a frame of %d bytes came, more than the MTU of %d and its header", longest, mtu)
				}
				_ = n
			})
		})
	}
}

// SYN, SYN+ACK, RST, many times over: nothing is left of it.
func TestTCPResetInTheHandshake(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{})
		dst := f.listen(t, echo)
		hop := g.GatewayMAC(t)
		for i := range uint16(50) {
			w := g.Watch(IsTCP("SA"), ToPort(4000+i))
			g.Send(g.Via(hop, dst.Addr(), TCP{SrcPort: 4000 + i, DstPort: dst.Port(), Seq: 100, Flags: "S"}))
			w.Expect(t)
			w.Stop()
			g.Send(g.Via(hop, dst.Addr(), TCP{SrcPort: 4000 + i, DstPort: dst.Port(), Seq: 101, Flags: "R"}))
		}
		eventually(t, "no flow is left", func() bool { return n.Flows().Len() == 0 })
		conn, err := g.Dial(patience(t), "tcp", dst)
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, conn, "still here")
		conn.Close()
	})
}

// A guest that opens conversations and never completes one holds no more host sockets than its limits say, and can
// still open a good one.
func TestTCPHandshakesNeverCompleted(t *testing.T) {
	t.Parallel() // beside the tests that wait
	every(t, func(t *testing.T, c carrier, f family) {
		const limit, syns = 16, 1500 // more than the forwarder takes at once
		n, g := c.up(t, backend.Config{Limits: flows.Limits{Dials: limit, Flows: 64}})
		var open sync.Map
		dst := f.listen(t, func(h *net.TCPConn) {
			open.Store(h, true)
			io.Copy(h, h)
			open.Delete(h)
		})
		hop := g.GatewayMAC(t)
		// The guest's own stack would reset what it did not open: frames go from an address that it does not have.
		src := ip("10.0.2.77")
		if f.gateway.Is6() {
			src = ip("fd00:1234::77")
		}
		var h Layer = IPv4{Src: src, Dst: dst.Addr()}
		if f.gateway.Is6() {
			h = IPv6{Src: src, Dst: dst.Addr()}
		}
		w := g.Watch(IsTCP("SA"))
		for i := range syns {
			g.Send(Build(Ethernet{Src: g.MAC(), Dst: hop}, h, TCP{SrcPort: uint16(1024 + i), DstPort: dst.Port(), Flags: "S"}))
			for w.Expect(t).TCP.DstPort != uint16(1024+i) { // others are being sent again
			}
		}
		w.Stop()
		eventually(t, "the host sees no more connections than may be pending", func() bool {
			k := 0
			open.Range(func(any, any) bool { k++; return true })
			return k <= limit && n.Flows().Len() <= limit
		})
		conn, err := g.Dial(patience(t), "tcp", dst)
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, conn, "good")
		conn.Close()
	})
}

// The hostile guest's group 7: none of these does harm, or opens anything.
func TestTCPOddSegments(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{})
		dst := f.listen(t, echo)
		hop := g.GatewayMAC(t)
		seg := func(s TCP, p string) []byte {
			s.SrcPort = 4000
			if s.DstPort == 0 {
				s.DstPort = dst.Port()
			}
			return g.Via(hop, dst.Addr(), s, Payload(p))
		}
		g.Send(
			seg(TCP{Flags: "S", DataOffset: 4}, ""),
			seg(TCP{Flags: "S", DataOffset: 15}, ""),
			seg(TCP{Flags: "SF"}, ""),
			seg(TCP{Flags: "SR"}, ""),
			seg(TCP{Flags: "SFRPAU"}, ""),
			seg(TCP{Flags: "AU", Urgent: 65535, Ack: 1}, "x"),
			seg(TCP{Flags: "S", Options: []byte{2, 0, 0, 0}}, ""),
			seg(TCP{Flags: "S", Options: []byte{2, 1, 3, 0}}, ""),
			seg(TCP{Flags: "S", Options: []byte{2, 4, 0, 0}}, ""),   // MSS 0
			seg(TCP{Flags: "S", Options: []byte{3, 3, 255, 1}}, ""), // window scale 255
		)
		zero := g.Via(hop, dst.Addr(), TCP{SrcPort: 4001, Flags: "S"})
		g.Send(zero, Patch(zero, len(zero)-20, 0, 0, 0, 80))
		g.Sync(t)
		conn, err := g.Dial(patience(t), "tcp", dst)
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, conn, "unharmed")
		conn.Close()
		if len(n.Guests()) != 1 {
			t.Error("the guest was ended")
		}
	})
}

// Urgent data beyond what there is (CVE-2026-9539 of libslirp): the stream goes on as it is.
func TestTCPUrgentPointer(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		_, g := c.up(t, backend.Config{})
		got := make(chan string, 1)
		dst := f.listen(t, func(h *net.TCPConn) { b, _ := io.ReadAll(h); got <- string(b) })
		hop := g.GatewayMAC(t)
		src := ip("10.0.2.77")
		var head Layer = IPv4{Src: src, Dst: dst.Addr()}
		if f.gateway.Is6() {
			head = IPv6{Src: ip("fd00:1234::77"), Dst: dst.Addr()}
		}
		send := func(s TCP, p string) {
			s.SrcPort, s.DstPort = 4000, dst.Port()
			g.Send(Build(Ethernet{Src: g.MAC(), Dst: hop}, head, s, Payload(p)))
		}
		w := g.Watch(IsTCP("SA"))
		send(TCP{Seq: 1, Flags: "S"}, "")
		ack := w.Expect(t).TCP.Seq + 1
		send(TCP{Seq: 2, Ack: ack, Flags: "A"}, "")
		send(TCP{Seq: 2, Ack: ack, Flags: "PAU", Urgent: 60000}, "one")
		send(TCP{Seq: 5, Ack: ack, Flags: "FPAU", Urgent: 1}, "two")
		if s := <-got; s != "onetwo" {
			t.Errorf("host read %q", s)
		}
	})
}
