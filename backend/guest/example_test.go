package guest_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/guest"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/qemu"
)

// farSide is a machine with an intranet that only it reaches, and one address open for us: it serves whoever connects
// there, as far as its routes go.
func farSide(routes ...netip.Prefix) (address string, stop func()) {
	n, err := backend.New(backend.Config{Routes: routes, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		log.Fatal(err)
	}
	intranet, err := n.Listen("tcp", "192.168.7.1:80") // stands for a host there
	if err != nil {
		log.Fatal(err)
	}
	go http.Serve(intranet, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the intranet") }))
	n.AddDNS(backend.DNSRecord{Name: "intranet.example", Type: "A", Value: "192.168.7.1"})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go n.Serve(context.Background(), qemu.NewLink(c), "entrance")
		}
	}()
	return l.Addr().String(), func() { l.Close(); n.Close() }
}

// How do I come out on another machine's network? That machine runs a backend.Network with Routes and serves the
// connection that both have; here a guest in this process is the entrance.
func Example() {
	address, stop := farSide(netip.MustParsePrefix("192.168.7.0/24"))
	defer stop()

	conn, err := net.Dial("tcp", address) // any net.Conn: TLS, an ssh channel, a stream of libp2p
	if err != nil {
		log.Fatal(err)
	}
	g, err := guest.New(context.Background(), qemu.NewLink(conn), guest.Config{Name: "laptop"})
	if err != nil {
		log.Fatal(err)
	}
	defer g.Close()

	h := g.HTTPClient()
	defer h.CloseIdleConnections()
	r, err := h.Get("http://intranet.example/") // resolved there, dialled there
	if err != nil {
		log.Fatal(err)
	}
	b, _ := io.ReadAll(r.Body)
	r.Body.Close()
	fmt.Printf("%s\n", b)

	_, err = g.DialContext(context.Background(), "tcp", "198.51.100.7:443") // not in its routes
	fmt.Println(err)
	// Output:
	// the intranet
	// dial tcp 198.51.100.7:443: prohibited by the network: its routes or its policy let no guest go there: permission denied
}

// How do virtual machines here come out on another machine's network? Their network leaves by a guest of that one.
func ExampleGuest_Egress() {
	address, stop := farSide(netip.MustParsePrefix("192.168.7.0/24"))
	defer stop()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	entrance, err := guest.New(context.Background(), qemu.NewLink(conn), guest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer entrance.Close()
	n, err := backend.New(backend.Config{
		Prefix4: netip.MustParsePrefix("10.1.0.0/24"), Egress: entrance.Egress(), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer n.Close()

	near, far := link.Pipe(256) // in place of a virtual machine's socket
	go n.Serve(context.Background(), far, "pipe")
	vm, err := guest.New(context.Background(), near, guest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()
	h := vm.HTTPClient()
	defer h.CloseIdleConnections()
	r, err := h.Get("http://192.168.7.1/")
	if err != nil {
		log.Fatal(err)
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	fmt.Printf("%s\n", b)
	// Output: the intranet
}

// How do other guests reach a service of my program, as if it were one of them?
func ExampleGuest_Listen() {
	n, err := backend.New(backend.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		log.Fatal(err)
	}
	defer n.Close()
	plug := func(name string) *guest.Guest {
		near, far := link.Pipe(256)
		go n.Serve(context.Background(), far, "pipe")
		g, err := guest.New(context.Background(), near, guest.Config{Name: name})
		if err != nil {
			log.Fatal(err)
		}
		return g
	}
	db, vm := plug("db"), plug("vm")
	defer db.Close()
	defer vm.Close()
	l, err := db.Listen("tcp", ":5432")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			fmt.Fprintf(c, "ready for %s", c.RemoteAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}()

	c, err := vm.DialContext(context.Background(), "tcp4", "db:5432")
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	b, _ := io.ReadAll(c)
	fmt.Printf("%s\n", b)
	// Output: ready for 10.0.2.16
}
