package lab

// Station 5: what a guest with cloud-init reads as it boots, as its NoCloud data source over HTTP. It is served at the
// addresses of clouds' metadata in each network with an uplink that such a node is in, by the network itself: no socket of
// this machine's listens, and a policy that shuts everything else does not shut it. A node gets its own data, and nobody else
// does: who asks is known by the wire that the question came over. The path cannot be guessed, either, so that a program in
// the node that may use the network, and no more, does not have what is meant for its system.

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmnetd/vmnetd/lab/topology"
)

// seedAddrs are where NoCloud data is: where EC2, and who goes by it, has a machine's metadata. Guests look for nothing else
// there. The gateway's own address is not among them: its ports are the host's.
var seedAddrs = []netip.AddrPort{netip.MustParseAddrPort("169.254.169.254:80"), netip.MustParseAddrPort("[fd00:ec2::254]:80")}

const (
	// seedTime bounds a request, from its first byte to the last of the answer: cloud-init gives up on a read after 10 s of
	// silence (its url_helper), and what is sent is some kilobytes.
	seedTime = 30 * time.Second
	// seedHeader bounds its header: cloud-init's has some two hundred bytes.
	seedHeader = 8 << 10
)

// seeds are the NoCloud data of a lab's nodes, served over HTTP in the networks that they are in.
type seeds struct {
	token string

	mu    sync.Mutex
	lab   *topology.Lab
	nodes map[string]*topology.Node // those with cloud-init
}

// newSeeds makes a place for a lab's, with a path of its own that nobody guesses.
func newSeeds() *seeds { return &seeds{token: strings.ToLower(rand.Text())} }

// set has the nodes' data as l has it from now on.
func (s *seeds) set(l *topology.Lab) {
	nodes := map[string]*topology.Node{}
	for i := range l.Nodes {
		if n := &l.Nodes[i]; n.CloudInit != nil {
			nodes[n.Name] = n
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lab, s.nodes = l, nodes
}

// url is where the node's data is, "" if it has none: it ends in a slash, for ds=nocloud;s=URL.
func (s *seeds) url(l *topology.Lab, node string) string {
	for i := range l.Nodes {
		if n := &l.Nodes[i]; n.Name == node && n.CloudInit != nil {
			return "http://" + seedAddrs[0].Addr().String() + s.path(node)
		}
	}
	return ""
}

func (s *seeds) path(node string) string { return "/" + s.token + "/" + node + "/" }

// server serves them in one network, at one address.
type server struct {
	http http.Server
	done chan struct{}
}

func (s *server) close() {
	s.http.Close()
	<-s.done
}

// serveSeeds begins to serve them, if there are any and they are not being served. Without an address of one family they are
// served at the other's.
func (n *network) serveSeeds(l *topology.Lab) error {
	if !slices.ContainsFunc(l.Nodes, func(node topology.Node) bool {
		return node.CloudInit != nil && slices.ContainsFunc(node.Interfaces, func(f topology.Interface) bool { return f.Network == n.name })
	}) {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.serving) > 0 {
		return nil
	}
	var errs []error
	for _, at := range seedAddrs {
		ln, err := n.ListenUnjudged("tcp", at.String())
		if errors.Is(err, syscall.EADDRNOTAVAIL) { // the network's prefix has it
			errs = append(errs, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("cloud-init's data cannot be served: %w", err)
		}
		s := &server{done: make(chan struct{})}
		s.http = http.Server{
			Handler: http.HandlerFunc(n.seed), ReadTimeout: seedTime, WriteTimeout: seedTime, IdleTimeout: seedTime, MaxHeaderBytes: seedHeader,
			ConnContext: func(ctx context.Context, c net.Conn) context.Context {
				if g, ok := c.(interface{ Guest() string }); ok {
					ctx = context.WithValue(ctx, guestKey{}, g.Guest())
				}
				return ctx
			},
			ErrorLog: log.New(io.Discard, "", 0), // guests cause its lines
		}
		go func() { defer close(s.done); s.http.Serve(ln) }()
		n.serving = append(n.serving, s)
	}
	if len(n.serving) == 0 {
		return fmt.Errorf("cloud-init's data cannot be served: %w", errors.Join(errs...))
	}
	return nil
}

// guestKey is under which a request has its guest's id.
type guestKey struct{}

// seed answers a request.
func (n *network) seed(w http.ResponseWriter, r *http.Request) {
	guest, _ := r.Context().Value(guestKey{}).(string)
	name := n.node(guest)
	file, ok := strings.CutPrefix(r.URL.Path, n.seeds.path(name))
	if name == "" || !ok { // who is not the node hears no more than who asks for anything else
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "want GET", http.StatusMethodNotAllowed)
		return
	}
	text, ok := n.seeds.file(name, file)
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(text))
}

// file is one of a node's.
func (s *seeds) file(node, name string) (text string, ok bool) {
	s.mu.Lock()
	l, n := s.lab, s.nodes[node]
	s.mu.Unlock()
	if n == nil {
		return "", false
	}
	switch name {
	case "meta-data":
		return metaData(l, n), true
	case "user-data":
		return n.CloudInit.UserData, true
	case "vendor-data":
		if n.CloudInit.VendorData == "" && n.CloudInit.NetworkConfig == "" {
			return bootHook(l, n), true
		}
		return n.CloudInit.VendorData, true
	case "network-config":
		if n.CloudInit.NetworkConfig != "" {
			return n.CloudInit.NetworkConfig, true
		}
		return networkConfig(l, n), true
	}
	return "", false
}

// quoted is a string as YAML has it, which JSON's strings are (YAML 1.2, 1.2).
func quoted(s string) string {
	b, err := json.Marshal(s)
	if err != nil { // a string always can be
		panic(err)
	}
	return string(b)
}

// metaData is what the node's instance is. Its id is another one when another file has other data for it, so that a disk
// that is kept takes them up.
func metaData(l *topology.Lab, n *topology.Node) string {
	h := sha256.New()
	for _, part := range []string{n.CloudInit.UserData, n.CloudInit.VendorData, n.CloudInit.NetworkConfig} {
		fmt.Fprintf(h, "%d %s", len(part), part)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "instance-id: %s\n", quoted(fmt.Sprintf("%s-%s-%x", l.Name, n.Name, h.Sum(nil)[:4])))
	fmt.Fprintf(&b, "local-hostname: %s\n", quoted(n.Name))
	for _, key := range slices.Sorted(maps.Keys(n.CloudInit.MetaData)) {
		fmt.Fprintf(&b, "%s: %s\n", quoted(key), quoted(n.CloudInit.MetaData[key]))
	}
	return b.String()
}

// networkConfig is the node's interfaces as cloud-init's network configuration, version 2. In a network with an uplink DHCP
// says the rest, a fixed IPv4 address among it; a fixed IPv6 address is said here, since guests ask DHCPv6 for none where
// they are told to make their own (RFC 4861, 4.2: M). The first interface's default route is preferred.
func networkConfig(l *topology.Lab, n *topology.Node) string {
	var b strings.Builder
	b.WriteString("version: 2\nethernets:\n")
	routes := slices.Clone(n.Routes)
	for i := range n.Interfaces {
		f := &n.Interfaces[i]
		t := networkOf(l, f.Network)
		if t == nil {
			continue
		}
		fmt.Fprintf(&b, "  %s:\n    match: {macaddress: %s}\n    set-name: %[1]s\n", quoted(f.Name), quoted(f.MAC.String()))
		fmt.Fprintf(&b, "    dhcp4: %v\n    dhcp6: %v\n", t.Uplink, t.Uplink && t.StrictLeases)
		if t.Uplink && i > 0 {
			fmt.Fprintf(&b, "    dhcp4-overrides: {route-metric: %d}\n", 100*(i+1))
		}
		if t.MTU > 0 {
			fmt.Fprintf(&b, "    mtu: %d\n", t.MTU)
		}
		var addrs []string
		for _, a := range setAddrs(f, t.Uplink) {
			addrs = append(addrs, quoted(a.String()))
		}
		if addrs != nil {
			fmt.Fprintf(&b, "    addresses: [%s]\n", strings.Join(addrs, ", "))
		}
		first := true
		routes = slices.DeleteFunc(routes, func(r topology.Route) bool {
			if !reaches(t, f, r.Via) {
				return false
			}
			if first {
				b.WriteString("    routes:\n")
				first = false
			}
			fmt.Fprintf(&b, "      - {to: %s, via: %s}\n", quoted(r.To.String()), quoted(r.Via.String()))
			return true
		})
	}
	return b.String()
}

// bootHook sets at each boot what networkConfig says and DHCP does not, by MAC, as vendor-data: many a cloud-init (Debian 12's
// and RHEL 9's among them) reads no network configuration from a URL, and asks DHCP on one interface alone. Where it has been
// taken up, nothing changes. "" if there is nothing to set.
func bootHook(l *topology.Lab, n *topology.Node) string {
	var b strings.Builder
	routes := slices.Clone(n.Routes)
	for i := range n.Interfaces {
		f := &n.Interfaces[i]
		t := networkOf(l, f.Network)
		if t == nil {
			continue
		}
		var lines []string
		if t.MTU > 0 && !t.Uplink {
			lines = append(lines, fmt.Sprintf("ip link set dev \"$dev\" mtu %d", t.MTU))
		}
		for _, a := range setAddrs(f, t.Uplink) {
			lines = append(lines, fmt.Sprintf("ip address replace %s dev \"$dev\"", a))
		}
		routes = slices.DeleteFunc(routes, func(r topology.Route) bool {
			if !reaches(t, f, r.Via) {
				return false
			}
			lines = append(lines, fmt.Sprintf("ip route replace %s via %s dev \"$dev\"", r.To, r.Via))
			return true
		})
		if lines == nil && t.Uplink {
			continue
		}
		fmt.Fprintf(&b, "for dev in $(grep -lix %s /sys/class/net/*/address); do\n\tdev=${dev%%/address} dev=${dev##*/}\n\tip link set dev \"$dev\" up\n", f.MAC)
		for _, line := range lines {
			b.WriteString("\t" + line + "\n")
		}
		b.WriteString("done\n")
	}
	if b.Len() == 0 {
		return ""
	}
	return "#cloud-boothook\n#!/bin/sh\n" + b.String() + "exit 0\n"
}

// reaches says whether a neighbour of this address is behind an interface.
func reaches(t *topology.Network, f *topology.Interface, via netip.Addr) bool {
	return t.Prefix4.Contains(via) || t.Prefix6.Contains(via) ||
		slices.ContainsFunc(f.Addrs, func(p netip.Prefix) bool { return p.Masked().Contains(via) })
}
