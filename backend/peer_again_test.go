package backend_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
)

// byHello lets in whom first bytes name by one name.
type byHello string

func (n byHello) Judge(flows.Query) flows.Verdict {
	return flows.Verdict{Allow: true, Inspect: func(h flows.Hello) flows.Verdict {
		return flows.Verdict{Allow: h.Name == string(n), Reason: flows.ReasonHello}
	}}
}

// quicInitial is the datagram with which a QUIC client begins (RFC 9001 §5), for a server name.
func quicInitial(t testing.TB, id string, number byte, name string) []byte {
	t.Helper()
	vec := func(size int, parts ...[]byte) []byte {
		b := bytes.Join(parts, nil)
		head := binary.BigEndian.AppendUint32(nil, uint32(len(b)))
		return append(head[4-size:], b...)
	}
	sni := append([]byte{0, 0}, vec(2, vec(2, []byte{0}, vec(2, []byte(name))))...)
	hello := append([]byte{1}, vec(3, []byte{3, 3}, make([]byte, 32), vec(1), vec(2, []byte{0x13, 1}), vec(1, []byte{0}), vec(2, sni))...)
	frames := append([]byte{6, 0, 0x40 | byte(len(hello)>>8), byte(len(hello))}, hello...)
	frames = append(frames, make([]byte, 1150-len(frames))...)

	expand := func(secret []byte, label string, n int) []byte {
		info := append([]byte{0, byte(n), byte(len("tls13 ") + len(label))}, "tls13 "+label+"\x00"...)
		b, err := hkdf.Expand(sha256.New, secret, string(info), n)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	salt := []byte{0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a}
	secret, err := hkdf.Extract(sha256.New, []byte(id), salt)
	if err != nil {
		t.Fatal(err)
	}
	secret = expand(secret, "client in", 32)
	block, _ := aes.NewCipher(expand(secret, "quic key", 16))
	aead, _ := cipher.NewGCM(block)
	hp, _ := aes.NewCipher(expand(secret, "quic hp", 16))
	nonce := expand(secret, "quic iv", 12)
	nonce[11] ^= number

	b := append([]byte{0xc0, 0, 0, 0, 1, byte(len(id))}, id...)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(0x4000|1+len(frames)+16))
	at := len(b)
	b = append(b, number)
	b = aead.Seal(b, nonce, frames, b)
	var mask [16]byte
	hp.Encrypt(mask[:], b[at+4:at+20])
	b[0] ^= mask[0] & 0x0f
	b[at] ^= mask[1]
	return append(b, make([]byte, max(0, 1200-len(b)))...)
}

// A QUIC client that was let in by the name in its hello may send it again, and may not send another one, be it under the
// ID of the first or under another: a server that has forgotten the first connection would take it.
func TestQUICHelloIsOfOneName(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		for name, second := range map[string]struct {
			id, name string
			passes   bool
		}{
			"again":                      {"clientid", "good.example", true},
			"another connection":         {"anotherc", "good.example", true},
			"another name":               {"anotherc", "evil.example", false},
			"another name under same ID": {"clientid", "evil.example", false},
		} {
			t.Run(name, func(t *testing.T) {
				n, g := c.up(t, backend.Config{Policy: byHello("good.example")})
				host, dst := f.udp(t)
				u, err := g.DialUDP(dst)
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
				read := func(patience time.Duration) []byte {
					b := make([]byte, 2000)
					host.SetReadDeadline(time.Now().Add(patience))
					k, _, err := host.ReadFromUDPAddrPort(b)
					if err != nil {
						return nil
					}
					return b[:k]
				}
				first := quicInitial(t, "clientid", 0, "good.example")
				u.Write(first)
				if !bytes.Equal(read(Patience), first) {
					t.Fatal("the first hello did not come through")
				}
				again := quicInitial(t, second.id, 1, second.name)
				u.Write(again)
				if second.passes {
					if !bytes.Equal(read(Patience), again) {
						t.Error("it did not come through")
					}
					return
				}
				eventually(t, "it is refused", func() bool { return dropped(n, g, flows.ReasonHello) == 1 })
				if b := read(50 * time.Millisecond); b != nil { // refused, so on no way any more
					t.Errorf("%d bytes came through", len(b))
				}
			})
		}
	})
}
