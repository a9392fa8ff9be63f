package backend_test

// What policies cost: nothing for each segment, little for each conversation. Time is shown, and judged by nobody.

import (
	"io"
	"net"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/flows"
)

var policies = []struct {
	name string
	p    flows.Policy
}{
	{"none", nil},
	{"address", policyFunc(func(flows.Query) flows.Verdict { return flows.Verdict{Allow: true, Rule: "all"} })},
	{"name", policyFunc(func(flows.Query) flows.Verdict {
		return flows.Verdict{Allow: true, Rule: "all", Inspect: func(h flows.Hello) flows.Verdict {
			return flows.Verdict{Allow: h.Name == "good.example"}
		}}
	})},
}

// BenchmarkPolicyStream is one conversation's bytes from the guest to the host.
func BenchmarkPolicyStream(b *testing.B) {
	for _, c := range carriers {
		for _, tt := range policies {
			b.Run(c.name+"/"+tt.name, func(b *testing.B) {
				_, g := c.up(b, backend.Config{Policy: tt.p})
				guest, host := meet(b, g, families[0])
				hello := clientHello(b, "good.example", 0)
				guest.Write(hello)
				if _, err := io.ReadFull(host, make([]byte, len(hello))); err != nil {
					b.Fatal(err)
				}
				buf, sink := make([]byte, 1<<20), make([]byte, 1<<20)
				b.SetBytes(1 << 20)
				for b.Loop() {
					go guest.Write(buf)
					if _, err := io.ReadFull(host, sink); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkPolicyConversation is a conversation that begins, says hello, gets it back and ends.
func BenchmarkPolicyConversation(b *testing.B) {
	for _, c := range carriers {
		for _, tt := range policies {
			b.Run(c.name+"/"+tt.name, func(b *testing.B) {
				_, g := c.up(b, backend.Config{Policy: tt.p})
				hello := clientHello(b, "good.example", 0)
				dst := families[0].listen(b, func(c *net.TCPConn) {
					buf := make([]byte, len(hello))
					io.ReadFull(c, buf)
					c.Write(buf)
				})
				ctx, buf := patience(b), make([]byte, len(hello))
				b.ReportAllocs()
				for b.Loop() {
					conn, err := g.Dial(ctx, "tcp", dst)
					if err != nil {
						b.Fatal(err)
					}
					conn.Write(hello)
					if _, err := io.ReadFull(conn, buf); err != nil {
						b.Fatal(err)
					}
					conn.Close()
				}
			})
		}
	}
}

// BenchmarkPolicyDatagram is a datagram to a peer that was judged.
func BenchmarkPolicyDatagram(b *testing.B) {
	for _, tt := range policies[:2] {
		b.Run(tt.name, func(b *testing.B) {
			_, g := carriers[1].up(b, backend.Config{Policy: tt.p})
			host, dst := families[0].udp(b)
			guest, err := g.DialUDP(dst)
			if err != nil {
				b.Fatal(err)
			}
			defer guest.Close()
			buf := make([]byte, 1200)
			for b.Loop() {
				guest.Write(buf)
				if _, err := host.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
