package backend_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
)

// quicPacket is a client's Initial packet (RFC 9001 §5.2, §5.4): version 1, with a part of the ClientHello. first is the
// connection ID that its keys are made of, to the one that it is sent to.
func quicPacket(t testing.TB, first, to string, number byte, at int, part []byte) []byte {
	t.Helper()
	label := func(secret []byte, label string, n int) []byte {
		b, err := hkdf.Expand(sha256.New, secret, "\x00"+string(rune(n))+string(rune(6+len(label)))+"tls13 "+label+"\x00", n)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	salt := []byte{0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a}
	initial, err := hkdf.Extract(sha256.New, []byte(first), salt)
	if err != nil {
		t.Fatal(err)
	}
	client := label(initial, "client in", 32)
	block, _ := aes.NewCipher(label(client, "quic key", 16))
	aead, _ := cipher.NewGCM(block)
	hp, _ := aes.NewCipher(label(client, "quic hp", 16))
	nonce := label(client, "quic iv", 12)
	nonce[11] ^= number

	frames := binary.BigEndian.AppendUint16([]byte{6}, 0x4000|uint16(at)) // CRYPTO
	frames = append(binary.BigEndian.AppendUint16(frames, 0x4000|uint16(len(part))), part...)
	b := append([]byte{0xc0, 0, 0, 0, 1, byte(len(to))}, to...)
	b = append(b, 0, 0) // no source ID, no token
	frames = append(frames, make([]byte, max(0, 1200-len(b)-3-len(frames)-16))...)
	b = binary.BigEndian.AppendUint16(b, 0x4000|uint16(1+len(frames)+16))
	pn := len(b)
	b = append(b, number)
	b = aead.Seal(b, nonce, frames, b)
	var mask [16]byte
	hp.Encrypt(mask[:], b[pn+4:pn+20])
	b[0] ^= mask[0] & 0x0f
	b[pn] ^= mask[1]
	return b
}

// quicHello is a connection's first datagrams: one, or more if the ClientHello is cut.
func quicHello(t testing.TB, id, name string, cut int) (list [][]byte) {
	t.Helper()
	m := clientHello(t, name, 0)[5:]
	for at := 0; at < len(m); at += cut {
		list = append(list, quicPacket(t, id, id, byte(len(list)), at, m[at:min(at+cut, len(m))]))
	}
	return list
}

// quicLab is a guest that speaks QUIC with a host that notes what it gets.
type quicLab struct {
	t    *testing.T
	n    *backend.Network
	g    *Guest
	f    family
	host *net.UDPConn
	port uint16
	p    *listens
}

func newQUICLab(t *testing.T, c carrier, f family, p *listens) *quicLab {
	n, g := c.up(t, backend.Config{Policy: p})
	host, dst := f.udp(t)
	return &quicLab{t, n, g, f, host, dst.Port(), p}
}

func (l *quicLab) send(datagrams ...[]byte) {
	for _, b := range datagrams {
		l.g.Send(l.g.IP(l.t, l.f.gateway, UDP{SrcPort: 4000, DstPort: l.port}, Payload(b)))
	}
	l.g.Sync(l.t)
}

func (l *quicLab) arrive(want ...[]byte) {
	l.t.Helper()
	for _, w := range want {
		if b, _ := readHost(l.t, l.host); !bytes.Equal(b, w) {
			l.t.Fatalf("host read %d bytes %.8x, want %d %.8x", len(b), b, len(w), w)
		}
	}
}

// quiet checks that nothing else has reached the host.
func (l *quicLab) quiet() {
	l.t.Helper()
	last := fmt.Appendf(nil, "last word")
	l.n.SetPolicy(policyFunc(func(flows.Query) flows.Verdict { return flows.Verdict{Allow: true} }), false)
	l.g.Send(l.g.IP(l.t, l.f.gateway, UDP{SrcPort: 4999, DstPort: l.port}, Payload(last)))
	l.arrive(last)
}

func (l *quicLab) heard(want ...flows.Hello) {
	l.t.Helper()
	if got := l.p.all(); fmt.Sprint(got) != fmt.Sprint(want) {
		l.t.Errorf("the policy heard %v, want %v", got, want)
	}
}

var (
	quicGood = flows.Hello{How: flows.HelloQUIC, Name: "good.example"}
	quicEvil = flows.Hello{How: flows.HelloQUIC, Name: "evil.example"}
	shortOne = append([]byte{0x40}, make([]byte, 40)...)
)

func TestInspectQUIC(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		admin := IsICMP(f.unreachable, f.admin)
		for _, tt := range []struct {
			name string
			none bool
			run  func(*quicLab)
		}{
			{"in one datagram", false, func(l *quicLab) {
				b := quicHello(l.t, "12345678", "good.example", 1000)
				l.send(b...)
				l.send(shortOne)
				l.arrive(b[0], shortOne)
				l.heard(quicGood)
				if s, _ := flow(l.n, func(flows.Snapshot) bool { return true }); s.Name != "good.example" || s.Hello != "quic" || s.UpPkts != 2 {
					l.t.Errorf("shown as %+v", s)
				}
			}},
			{"in many, out of order, with something before its time", false, func(l *quicLab) {
				b := quicHello(l.t, "12345678", "good.example", 20)
				l.send(b[2:]...)
				l.send(b[1], b[0])
				l.arrive(append(append([][]byte(nil), b[2:]...), b[1], b[0])...)
				l.heard(quicGood)
			}},
			{"refused", false, func(l *quicLab) {
				w := l.g.Watch(admin)
				b := quicHello(l.t, "12345678", "evil.example", 60)
				l.send(b[0])
				w.None(l.t)
				l.send(b[1:]...)
				w.Expect(l.t)
				noFlows(l.t, l.n)
				l.heard(quicEvil)
				if got := dropped(l.n, l.g, flows.ReasonHello); got != 1 || l.n.Flows().Counts()["other-name"] != 1 {
					l.t.Errorf("%d counted, want 1: %v", got, l.n.Flows().Counts())
				}
				l.quiet()
			}},
			{"of no protocol, strictly", false, func(l *quicLab) {
				w := l.g.Watch(admin)
				l.send([]byte("anything"))
				w.Expect(l.t)
				l.heard(flows.Hello{})
				l.quiet()
			}},
			{"of no protocol", true, func(l *quicLab) {
				l.send([]byte("anything"), []byte("more"))
				l.arrive([]byte("anything"), []byte("more"))
				l.heard(flows.Hello{})
			}},
			{"behind something else", true, func(l *quicLab) {
				b := quicHello(l.t, "12345678", "evil.example", 1000)
				l.send([]byte("anything"), b[0], []byte("after"))
				l.arrive([]byte("anything"), []byte("after"))
				l.heard(flows.Hello{}, quicEvil, flows.Hello{})
				l.quiet()
			}},
			{"a second connection, with another name", false, func(l *quicLab) {
				good := quicHello(l.t, "12345678", "good.example", 1000)
				l.send(good[0], shortOne)
				l.arrive(good[0], shortOne)
				l.send(quicHello(l.t, "87654321", "evil.example", 1000)...)
				l.heard(quicGood, quicEvil)
				noFlows(l.t, l.n)
				l.quiet()
			}},
			{"a second connection, with the same name", false, func(l *quicLab) {
				one := quicHello(l.t, "12345678", "good.example", 1000)
				two := quicHello(l.t, "87654321", "good.example", 50)
				l.send(one...)
				l.send(two...)
				l.send(shortOne)
				l.arrive(append(append(one, two...), shortOne)...)
				l.heard(quicGood, quicGood)
			}},
			{"the same one again, and going on", false, func(l *quicLab) {
				b := quicHello(l.t, "12345678", "good.example", 60)
				l.send(b...)
				l.send(b[0]) // retransmitted
				on := quicPacket(l.t, "12345678", "serverid", 9, 0, []byte("x"))
				l.send(on)
				l.arrive(append(b, b[0], on)...)
				l.heard(quicGood)
			}},
			{"without end", false, func(l *quicLab) {
				m := clientHello(l.t, "good.example", 0)[5:]
				w := l.g.Watch(admin)
				for i := range 20 {
					l.send(quicPacket(l.t, "12345678", "12345678", byte(i), 0, m[:10+i%2]))
				}
				w.Expect(l.t)
				if h := l.p.all(); len(h) == 0 || h[0] != (flows.Hello{How: flows.HelloPart}) {
					l.t.Errorf("the policy heard %v", h)
				}
				l.quiet()
			}},
			{"a guest that holds much", false, func(l *quicLab) {
				m := clientHello(l.t, "good.example", 0)[5:]
				for i := range 500 {
					l.g.Send(l.g.IP(l.t, l.f.gateway, UDP{SrcPort: uint16(5000 + i), DstPort: l.port},
						Payload(quicPacket(l.t, "12345678", "12345678", 0, 0, m[:10]))))
				}
				l.g.Sync(l.t)
				if got := dropped(l.n, l.g, flows.ReasonQueueFull); got < 250 || got > 400 {
					l.t.Errorf("%d of 500 dropped", got)
				}
				l.n.Flows().EndAll(flows.ReasonClosed) // as much can be held again
				b := quicHello(l.t, "12345678", "good.example", 60)
				l.send(b...)
				l.arrive(b...)
			}},
		} {
			t.Run(tt.name, func(t *testing.T) { tt.run(newQUICLab(t, c, f, &listens{none: tt.none})) })
		}
	})
}

// A running conversation by QUIC is judged by what it said; one that nobody looked at goes on, but for what it begins anew.
func TestSetPolicyQUIC(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		l := newQUICLab(t, c, f, &listens{})
		b := quicHello(t, "12345678", "good.example", 1000)
		l.send(b...)
		l.arrive(b...)
		for _, now := range []bool{false, true} {
			l.p = &listens{}
			if ended := l.n.SetPolicy(l.p, now); ended != 0 {
				t.Errorf("%d ended", ended)
			}
			l.send(shortOne)
			l.arrive(shortOne)
			l.heard(quicGood)
		}

		l = newQUICLab(t, c, f, &listens{})
		l.n.SetPolicy(policyFunc(func(flows.Query) flows.Verdict { return flows.Verdict{Allow: true} }), true)
		l.send(b...)
		l.arrive(b...)
		l.n.SetPolicy(l.p, false)
		l.send(shortOne)
		l.arrive(shortOne)
		l.heard()
		l.send(quicHello(t, "87654321", "evil.example", 1000)...)
		l.heard(quicEvil)
		noFlows(t, l.n)
		l.quiet()
	})
}

// Who was shut out is not heard any more, though others of the same port are.
func TestSetPolicyShutsPeers(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{})
		kept, keptAt := f.udp(t)
		shut, shutAt := f.udp(t)
		guest, err := g.ListenUDP(at(f.of(g), 4000))
		if err != nil {
			t.Fatal(err)
		}
		defer guest.Close()
		guest.WriteTo([]byte("hello"), keptAt)
		guest.WriteTo([]byte("hello"), shutAt)
		_, mapped := readHost(t, kept)
		readHost(t, shut)
		if ended := n.SetPolicy(policyFunc(func(q flows.Query) flows.Verdict {
			return flows.Verdict{Allow: q.Dst == keptAt, Reason: flows.ReasonPolicy}
		}), true); ended != 1 {
			t.Errorf("%d ended, want 1", ended)
		}
		shut.WriteToUDPAddrPort([]byte("no more"), mapped)
		kept.WriteToUDPAddrPort([]byte("more"), mapped)
		if b, from := readGuest(t, guest); string(b) != "more" || from != keptAt {
			t.Errorf("guest read %q from %v", b, from)
		}
		n.SetPolicy(nil, true)
		guest.WriteTo([]byte("again"), shutAt)
		readHost(t, shut)
		shut.WriteToUDPAddrPort([]byte("more"), mapped)
		if b, from := readGuest(t, guest); string(b) != "more" || from != shutAt {
			t.Errorf("guest read %q from %v", b, from)
		}
	})
}
