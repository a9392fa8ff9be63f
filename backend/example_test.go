package backend_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/guest"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/portforward"
	"github.com/vmnetd/vmnetd/qemu"
)

// quiet is a network that does not log; the examples' output is theirs.
func quiet(c backend.Config) *backend.Network {
	c.Logger = slog.New(slog.DiscardHandler)
	n, err := backend.New(c)
	if err != nil {
		log.Fatal(err)
	}
	return n
}

// plugIn is a guest in this process, in place of a virtual machine.
func plugIn(n *backend.Network, name string) *guest.Guest {
	near, far := link.Pipe(256)
	go n.Serve(context.Background(), far, "pipe")
	g, err := guest.New(context.Background(), near, guest.Config{Name: name})
	if err != nil {
		log.Fatal(err)
	}
	return g
}

func hello(w http.ResponseWriter, r *http.Request) {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	fmt.Fprintf(w, "hello %s, I am %s", host, r.Host)
}

func get(h *http.Client, url string) {
	defer h.CloseIdleConnections()
	r, err := h.Get(url)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Body.Close()
	io.Copy(os.Stdout, r.Body)
	fmt.Println()
}

// How do I let a guest reach a service of my program? Listen on the gateway: it has no port on this host, so nobody else
// reaches it.
func ExampleNetwork_Listen() {
	n := quiet(backend.Config{})
	defer n.Close()
	l, err := n.Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(hello)}
	go srv.Serve(l)
	defer srv.Close()

	vm := plugIn(n, "vm")
	defer vm.Close()
	get(vm.HTTPClient(), "http://gateway.internal/")
	// Output: hello 10.0.2.15, I am gateway.internal
}

// How do I answer in place of a cloud's metadata service? Listen on its address: any address outside the guests' prefix
// is the program's to answer for.
func ExampleNetwork_Listen_metadata() {
	n := quiet(backend.Config{})
	defer n.Close()
	l, err := n.Listen("tcp", "169.254.169.254:80")
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(hello)}
	go srv.Serve(l)
	defer srv.Close()

	vm := plugIn(n, "vm")
	defer vm.Close()
	get(vm.HTTPClient(), "http://169.254.169.254/latest/meta-data/")
	// Output: hello 10.0.2.15, I am 169.254.169.254
}

// How do I answer guests' datagrams?
func ExampleNetwork_ListenPacket() {
	n := quiet(backend.Config{})
	defer n.Close()
	pc, err := n.ListenPacket("udp", ":7")
	if err != nil {
		log.Fatal(err)
	}
	defer pc.Close()
	go func() {
		b := make([]byte, 1500)
		for {
			k, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			pc.WriteTo(b[:k], from)
		}
	}()

	vm := plugIn(n, "vm")
	defer vm.Close()
	c, err := vm.DialContext(context.Background(), "udp6", "gateway.internal:7")
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "echo")
	b := make([]byte, 10)
	k, _ := c.Read(b)
	fmt.Printf("%s\n", b[:k])
	// Output: echo
}

// How do I dial a guest? By its name, address or MAC; it sees the gateway.
func ExampleNetwork_DialContext() {
	n := quiet(backend.Config{})
	defer n.Close()
	vm := plugIn(n, "web")
	defer vm.Close()
	l, err := vm.Listen("tcp", ":22")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprintf(c, "SSH-2.0-example for %s", c.RemoteAddr().(*net.TCPAddr).IP)
		c.Close()
	}()

	c, err := n.DialContext(context.Background(), "tcp", "web.internal:22")
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	b, _ := io.ReadAll(c)
	fmt.Printf("%s\n", b)
	// Output: SSH-2.0-example for 10.0.2.2
}

// How do I speak HTTP with a guest?
func ExampleNetwork_HTTPClient() {
	n := quiet(backend.Config{})
	defer n.Close()
	vm := plugIn(n, "web")
	defer vm.Close()
	l, err := vm.Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(hello)}
	go srv.Serve(l)
	defer srv.Close()

	get(n.HTTPClient(), "http://web/")
	// Output: hello 10.0.2.2, I am web
}

// How do I serve guests over TCP? Any net.Conn carries frames in QEMU's framing: what this listens on takes
// `-netdev stream,id=net0,server=off,addr.type=inet,…` as well as guests in other programs.
func ExampleNetwork_Serve() {
	n := quiet(backend.Config{})
	defer n.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go n.Serve(context.Background(), qemu.NewLink(c), "tcp")
		}
	}()

	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	vm, err := guest.New(context.Background(), qemu.NewLink(conn), guest.Config{Name: "vm"})
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()
	for _, g := range n.Guests() {
		fmt.Println(g.Name, g.Addrs[0], g.Link)
	}
	// Output: vm 10.0.2.15 tcp
}

// How do I let guests reach some addresses only? Routes are all there is, whatever else a guest tries.
func ExampleConfig_routes() {
	n := quiet(backend.Config{Routes: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}})
	defer n.Close()
	vm := plugIn(n, "vm")
	defer vm.Close()
	_, err := vm.DialContext(context.Background(), "tcp", "198.51.100.7:443")
	fmt.Println(err)
	fmt.Println(n.Flows().Counts()["outside-routes"])
	// Output:
	// dial tcp 198.51.100.7:443: prohibited by the network: its routes or its policy let no guest go there: permission denied
	// 1
}

// How do I give the host a port of a guest's?
func ExampleNetwork_Forwards() {
	n := quiet(backend.Config{})
	defer n.Close()
	vm := plugIn(n, "web")
	defer vm.Close()
	l, err := vm.Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(hello)}
	go srv.Serve(l)
	defer srv.Close()

	rules, err := portforward.ParseRule("127.0.0.1:0:web:80") // port 0: the system picks
	if err != nil {
		log.Fatal(err)
	}
	bound, err := n.Forwards().AddAll(context.Background(), rules)
	if err != nil {
		log.Fatal(err)
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", bound[0].HostPort))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.0\r\nHost: forwarded\r\n\r\n")
	b, _ := io.ReadAll(c)
	fmt.Printf("%s\n", b[len(b)-len("hello 10.0.2.2, I am forwarded"):])
	// Output: hello 10.0.2.2, I am forwarded
}

// How do I see what guests are doing? Every conversation is a flow, with its counters.
func ExampleNetwork_Flows() {
	n := quiet(backend.Config{})
	defer n.Close()
	l, err := n.Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	vm := plugIn(n, "vm")
	defer vm.Close()
	c, err := vm.DialContext(context.Background(), "tcp", "10.0.2.2:80")
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	fmt.Fprint(c, "12345")
	io.ReadFull(s, make([]byte, 5))
	for _, f := range n.Flows().List() {
		fmt.Println(f.Guest, f.Proto, f.Dir, f.Dst, f.State, f.UpBytes)
	}
	// Output: g1 tcp out 10.0.2.2:80 open 5
}
