package guest_test

import (
	"io"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/guest"
)

// What a program gets of an entrance over TCP, up and down, with both halves, the network and the far service in this
// one process.
func BenchmarkOverTCP(b *testing.B) {
	n, at := network(b, backend.Config{LargeMTU: backend.MaxMTU})
	l, err := n.Listen("tcp", ":80")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for _, tt := range []struct {
		name string
		mtu  int
	}{{"1500", 1500}, {"65520", backend.MaxMTU}} {
		g := plug(b, at, guest.Config{MTU: tt.mtu})
		for _, up := range []bool{true, false} {
			way := map[bool]string{true: "up", false: "down"}[up]
			b.Run("mtu "+tt.name+"/"+way, func(b *testing.B) {
				c, err := g.DialContext(within(b), "tcp", "10.0.2.2:80")
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				s, err := l.Accept()
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				from, to := c, s
				if !up {
					from, to = s, c
				}
				const block = 1 << 20
				b.SetBytes(block)
				go func() {
					p := make([]byte, block)
					for range b.N {
						if _, err := from.Write(p); err != nil {
							return
						}
					}
					from.(interface{ CloseWrite() error }).CloseWrite()
				}()
				if k, err := io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{to}); err != nil || k != int64(b.N)*block {
					b.Errorf("%d bytes, %v", k, err)
				}
			})
		}
		g.Close()
	}
}
