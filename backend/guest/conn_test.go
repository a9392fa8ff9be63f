package guest_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/guest"
	"github.com/vmnetd/vmnetd/qemu"
)

// Any connection that carries bytes carries a guest: one without a buffer, one without a descriptor, one that cuts
// writes as it likes.
func TestOverAnyConn(t *testing.T) {
	loopback := func(t *testing.T) (net.Conn, net.Conn) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		a, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return a, b
	}
	for name, pair := range map[string]func(*testing.T) (net.Conn, net.Conn){
		"net.Pipe": func(*testing.T) (net.Conn, net.Conn) { return net.Pipe() },
		"tls": func(t *testing.T) (net.Conn, net.Conn) {
			a, b := loopback(t)
			c := certificate(t)
			return tls.Client(a, &tls.Config{InsecureSkipVerify: true}), tls.Server(b, &tls.Config{Certificates: []tls.Certificate{c}})
		},
		"a byte at a time": func(t *testing.T) (net.Conn, net.Conn) {
			a, b := loopback(t)
			return crumbs{a}, crumbs{b}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := backend.New(backend.Config{Prefix6: prefix6, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			near, far := pair(t)
			var served sync.WaitGroup
			served.Go(func() { n.Serve(context.Background(), qemu.NewLink(far), name) })
			defer served.Wait()
			g, err := guest.New(within(t), qemu.NewLink(near), guest.Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			l, err := n.Listen("tcp", ":7")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				io.Copy(c, c)
				c.(interface{ CloseWrite() error }).CloseWrite()
			}()
			c, err := g.DialContext(within(t), "tcp", "gateway.internal:7")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			sent := make([]byte, 300<<10)
			rand.Read(sent)
			go func() {
				c.Write(sent)
				c.(interface{ CloseWrite() error }).CloseWrite()
			}()
			if got, err := io.ReadAll(c); !bytes.Equal(got, sent) || err != nil {
				t.Errorf("%d of %d bytes came back: %v", len(got), len(sent), err)
			}
		})
	}
}

// crumbs reads a little at a time.
type crumbs struct{ net.Conn }

func (c crumbs) Read(b []byte) (int, error) { return c.Conn.Read(b[:min(len(b), 7)]) }

func certificate(t *testing.T) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)},
		&x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
