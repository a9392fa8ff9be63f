package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/impair"
	"github.com/vmnetd/vmnetd/lab/topology"
)

// read is a lab of a text.
func readLab(t *testing.T, text string) *topology.Lab {
	t.Helper()
	l, err := topology.Parse("test", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// startNetwork is one of its networks, that ends with the test.
func startNetwork(t *testing.T, l *topology.Lab, name string, s *seeds) *network {
	t.Helper()
	if s == nil {
		s = newSeeds()
	}
	s.set(l)
	n, err := newNetwork(l, name, s, slog.New(slog.DiscardHandler), func(c *backend.Config) {
		if !c.NoUplink { // no test asks the world
			c.Egress, c.Resolvers = &backendtest.Egress{}, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// interfaceIn is a node's first in a network.
func interfaceIn(t *testing.T, l *topology.Lab, node, network string) *topology.Interface {
	t.Helper()
	for i := range l.Nodes {
		for j := range l.Nodes[i].Interfaces {
			if f := &l.Nodes[i].Interfaces[j]; l.Nodes[i].Name == node && f.Network == network {
				return f
			}
		}
	}
	t.Fatalf("node %s is not in %s", node, network)
	return nil
}

// plugIn puts a guest where a node's interface is.
func plugIn(t *testing.T, n *network, l *topology.Lab, node string, addrs ...netip.Prefix) *backendtest.Guest {
	t.Helper()
	f := interfaceIn(t, l, node, n.name)
	near, far := link.Pipe(backendtest.PipeDepth)
	g, err := backendtest.New(near, backendtest.Config{MAC: f.MAC, Name: "not-" + node, Addrs: addrs})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := n.plug(t.Context(), node, f, far); err != nil && t.Context().Err() == nil {
			t.Errorf("%s was not plugged in: %v", node, err)
		}
	}()
	t.Cleanup(func() { g.Close(); <-served })
	within(t, node+" is plugged in", func() bool { return n.guest(node, f.Name) != "" })
	return g
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(backendtest.Patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

// patient ends when a test has waited for too long.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), backendtest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// get asks for a file as a guest.
func get(t *testing.T, g *backendtest.Guest, method, url string) (status int, body string, err error) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		a, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, err
		}
		return g.Dial(ctx, "tcp", a)
	}}
	defer tr.CloseIdleConnections()
	r, err := http.NewRequestWithContext(patient(t), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := (&http.Client{Transport: tr}).Do(r)
	if err != nil {
		return 0, "", err
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	return a.StatusCode, string(b), err
}

const seedLab = `
networks:
  lan: {net: 10.5.0.0/24, net6: "fd05::/64", mtu: 1400, policy: {preset: offline}}
  back: {uplink: false, net: 10.6.0.0/24, net6: "fd06::/64"}
  other: {net: 10.7.0.0/24}
nodes:
  vm:
    disk: disk.qcow2
    mac: 52:54:00:00:05:01
    interfaces:
      - {net: lan, mac: "52:54:00:00:05:01", address: [10.5.0.20, "fd05::20"]}
      - {net: back, mac: "52:54:00:00:05:02", address: [10.6.0.1, "fd06::1"]}
      - {net: other, mac: "52:54:00:00:05:03"}
    cloud-init:
      user-data: |
        #cloud-config
        hostname: "ünïcode: yes"
      vendor-data: "vendor"
      meta-data: {"a: b": "c # d"}
    routes: ["10.9.0.0/16 via 10.6.0.9", "fd09::/64 via fd06::9"]
  own:
    disk: disk.qcow2
    interfaces: [lan]
    cloud-init: {network-config: "version: 1\n"}
  none: {kind: external, interfaces: [lan]}
`

// A node reads its own NoCloud data, whatever it may reach otherwise, and nobody else does.
func TestSeeds(t *testing.T) {
	l := readLab(t, strings.Replace(seedLab, "    mac: 52:54:00:00:05:01\n", "", 1))
	s := newSeeds()
	lan, other := startNetwork(t, l, "lan", s), startNetwork(t, l, "other", s)
	back := startNetwork(t, l, "back", s)
	if len(back.serving) > 0 {
		t.Error("data are served in a network without an uplink")
	}
	base := s.url(l, "vm")
	if s.url(l, "none") != "" || !strings.HasPrefix(base, "http://169.254.169.254/") || !strings.HasSuffix(base, "/vm/") || len(base) < len("http://169.254.169.254//vm/")+26 {
		t.Fatalf("%q", base)
	}
	base6 := strings.Replace(base, "169.254.169.254", "[fd00:ec2::254]", 1)
	vm, own, none := plugIn(t, lan, l, "vm").Up(t), plugIn(t, lan, l, "own").Up(t), plugIn(t, lan, l, "none").Up(t)
	vmOther := plugIn(t, other, l, "vm").Up(t)
	if vm.Addr4() != netip.MustParseAddr("10.5.0.20") {
		t.Errorf("its lease is %s", vm.Addr4())
	}
	want := map[string]string{
		"meta-data": "local-hostname: \"vm\"\n\"a: b\": \"c # d\"\n", "user-data": "#cloud-config\nhostname: \"ünïcode: yes\"\n", "vendor-data": "vendor",
		"network-config": `version: 2
ethernets:
  "eth0":
    match: {macaddress: "52:54:00:00:05:01"}
    set-name: "eth0"
    dhcp4: true
    dhcp6: false
    mtu: 1400
    addresses: ["fd05::20/64"]
  "eth1":
    match: {macaddress: "52:54:00:00:05:02"}
    set-name: "eth1"
    dhcp4: false
    dhcp6: false
    addresses: ["10.6.0.1/24", "fd06::1/64"]
    routes:
      - {to: "10.9.0.0/16", via: "10.6.0.9"}
      - {to: "fd09::/64", via: "fd06::9"}
  "eth2":
    match: {macaddress: "52:54:00:00:05:03"}
    set-name: "eth2"
    dhcp4: true
    dhcp6: false
    dhcp4-overrides: {route-metric: 300}
`}
	for file, text := range want {
		for _, from := range []struct {
			g   *backendtest.Guest
			url string
		}{{vm, base}, {vm, base6}, {vmOther, base}} {
			status, body, err := get(t, from.g, "GET", from.url+file)
			if err != nil || status != 200 || !strings.HasSuffix(body, text) || file != "meta-data" && body != text {
				t.Errorf("%s%s: %d %v\n%s", from.url, file, status, err, body)
			}
			if file == "meta-data" && !strings.HasPrefix(body, `instance-id: "test-vm-`) {
				t.Errorf("%s", body)
			}
		}
	}
	if status, body, err := get(t, own, "GET", s.url(l, "own")+"network-config"); status != 200 || body != "version: 1\n" || err != nil {
		t.Errorf("%d %q %v", status, body, err)
	}
	for _, tt := range []struct {
		name   string
		g      *backendtest.Guest
		url    string
		method string
		status int
	}{
		{"another node", own, base + "user-data", "GET", 404},
		{"a node without data", none, base + "user-data", "GET", 404},
		{"without the path", vm, "http://169.254.169.254/vm/user-data", "GET", 404},
		{"a cloud's", vm, "http://169.254.169.254/latest/meta-data/", "GET", 404},
		{"no file", vm, base, "GET", 404},
		{"another file", vm, base + "../own/user-data", "GET", 404},
		{"out of it", vm, base + "%2e%2e/etc/passwd", "GET", 404},
		{"to write", vm, base + "user-data", "PUT", 405},
		{"a head", vm, base + "user-data", "HEAD", 200},
	} {
		if status, body, err := get(t, tt.g, tt.method, tt.url); status != tt.status || err != nil || strings.Contains(body, "hostname") {
			t.Errorf("%s: %d %q %v", tt.name, status, body, err)
		}
	}
	// It opens nothing else: no other port there, not the gateway, not the world.
	for _, to := range []string{"169.254.169.254:443", "10.5.0.2:80", "198.51.100.1:80"} {
		if c, err := vm.Dial(patient(t), "tcp", netip.MustParseAddrPort(to)); err == nil {
			t.Errorf("%s is open", to)
			c.Close()
		}
	}
	// Another file's data are other ones, of another instance.
	_, before, _ := get(t, vm, "GET", base+"meta-data")
	for i := range l.Nodes {
		if l.Nodes[i].CloudInit != nil {
			c := *l.Nodes[i].CloudInit
			c.UserData = "#cloud-config\n{}\n"
			l.Nodes[i].CloudInit = &c
		}
	}
	s.set(l)
	if _, body, _ := get(t, vm, "GET", base+"user-data"); body != "#cloud-config\n{}\n" {
		t.Errorf("%q", body)
	}
	if _, after, _ := get(t, vm, "GET", base+"meta-data"); after == before {
		t.Errorf("the instance is the same: %s", after)
	}
}

// A cloud-init that reads no network configuration from a URL sets what DHCP does not by a hook.
func TestBootHook(t *testing.T) {
	l := readLab(t, strings.Replace(seedLab, "    mac: 52:54:00:00:05:01\n", "", 1))
	s := newSeeds()
	s.set(l)
	if v, ok := s.file("vm", "vendor-data"); !ok || v != "vendor" {
		t.Errorf("%q", v)
	}
	if v, ok := s.file("own", "vendor-data"); !ok || v != "" {
		t.Errorf("%q", v)
	}
	c := *s.nodes["vm"].CloudInit
	c.VendorData = ""
	s.nodes["vm"].CloudInit = &c
	const want = `#cloud-boothook
#!/bin/sh
for dev in $(grep -lix 52:54:00:00:05:01 /sys/class/net/*/address); do
	dev=${dev%/address} dev=${dev##*/}
	ip link set dev "$dev" up
	ip address replace fd05::20/64 dev "$dev"
done
for dev in $(grep -lix 52:54:00:00:05:02 /sys/class/net/*/address); do
	dev=${dev%/address} dev=${dev##*/}
	ip link set dev "$dev" up
	ip address replace 10.6.0.1/24 dev "$dev"
	ip address replace fd06::1/64 dev "$dev"
	ip route replace 10.9.0.0/16 via 10.6.0.9 dev "$dev"
	ip route replace fd09::/64 via fd06::9 dev "$dev"
done
exit 0
`
	if v, _ := s.file("vm", "vendor-data"); v != want {
		t.Errorf("%s", v)
	}
}

// FuzzSeeds: whatever a guest asks, and by whatever name, it gets a node's own data or none.
func FuzzSeeds(f *testing.F) {
	l, err := topology.Parse("test", []byte("networks: {lan: {net: 10.5.0.0/24}}\nnodes:\n  vm: {disk: d, interfaces: [lan], cloud-init: {user-data: secret}}\n  own: {disk: d, interfaces: [lan], cloud-init: {user-data: mine}}\n"), nil)
	if err != nil {
		f.Fatal(err)
	}
	n := &network{name: "lan", seeds: newSeeds(), lab: l, byGuest: map[string]socket{"g1": {"own", "eth0"}}}
	n.seeds.token = "token"
	n.seeds.set(l)
	for _, p := range []string{"/token/vm/user-data", "/token/own/user-data", "/token/own/../vm/user-data", "//token/own//user-data", "", "*", "/token/own/user-data?x", "/TOKEN/own/user-data"} {
		f.Add(p, "GET")
	}
	f.Fuzz(func(t *testing.T, path, method string) {
		r := &http.Request{Method: method}
		r.URL = mustURL(path)
		r = r.WithContext(context.WithValue(context.Background(), guestKey{}, "g1"))
		w := &recorded{header: http.Header{}}
		n.seed(w, r)
		if strings.Contains(w.body.String(), "secret") || strings.Contains(w.body.String(), "mine") && path != "/token/own/user-data" {
			t.Fatalf("%s %q: %s", method, path, w.body.String())
		}
	})
}

// The lab's words become the network's, and what changes of them changes in place.
func TestNetworkChanges(t *testing.T) {
	file := func(more string) *topology.Lab {
		return readLab(t, `
networks:
  lan: {net: 10.5.0.0/24, net6: "fd05::/64", domain: shop.example, limits: {flows: 100}, dns-record: ["www CNAME web"], policy: {preset: open}`+more)
	}
	first := file(`}
nodes:
  web: {kind: external, interfaces: [{net: lan, address: [10.5.0.20, "fd05::20"]}]}
  a: {kind: external, interfaces: [{net: lan, address: [10.5.0.21]}, {net: lan}]}
`)
	n := startNetwork(t, first, "lan", nil)
	c := n.Config()
	if c.Prefix4.String() != "10.5.0.0/24" || c.Domain != "shop.example" || c.LargeMTU != backend.MaxMTU || c.MTU != 1500 || c.Limits.Flows != 100 || len(c.Records) != 1 || n.policy == nil {
		t.Errorf("%+v", c)
	}
	web, a := plugIn(t, n, first, "web").Up(t), plugIn(t, n, first, "a").Up(t)
	if web.Addr4().String() != "10.5.0.20" || a.Addr4().String() != "10.5.0.21" {
		t.Errorf("leases %s and %s", web.Addr4(), a.Addr4())
	}
	names := func() map[string][]string {
		m := map[string][]string{}
		for _, r := range n.DNSRecords() {
			m[r.Name] = append(m[r.Name], r.Value)
		}
		return m
	}
	if got := names()["web.shop.example."]; !slices.Contains(got, "10.5.0.20") || !slices.Contains(got, "fd05::20") {
		t.Errorf("web is %v", got)
	}
	id := n.guest("web", "eth0")
	if g := n.GuestName(id); g != "web" || n.node(id) != "web" || n.guest("web", "eth1") != "" {
		t.Errorf("%s is %q", id, g)
	}
	second := file(`, forward: ["127.0.0.1:0:web:80"], impair: "loss=1%"}
nodes:
  web: {kind: external, interfaces: [{net: lan, address: [10.5.0.30], impair: "loss=100%"}]}
  a: {kind: external, interfaces: [{net: lan, address: [10.5.0.21]}, {net: lan}]}
`)
	second.Networks[0].Policy = topology.Policy{Preset: "offline"}
	second.Networks[0].DNS = []string{"x A 10.5.0.77"}
	n.seeds.set(second)
	if err := n.change(patient(t), second); err != nil {
		t.Fatal(err)
	}
	if n.guest("web", "eth0") != id || len(n.Forwards().List()) != 1 {
		t.Error("it is another, or has no forward")
	}
	if i, err := n.Impairment(id); err != nil || i.Settings.Up.Loss != 1 {
		t.Errorf("%+v %v", i, err)
	}
	if i, err := n.Impairment(n.guest("a", "eth0")); err != nil || i.Settings.Up.Loss != 0.01 {
		t.Errorf("%+v %v", i, err)
	}
	if d := names(); d["x.shop.example."] == nil || d["www.shop.example."] != nil || !slices.Contains(d["web.shop.example."], "10.5.0.30") {
		t.Errorf("%v", d)
	}
	if d := n.policy.Document(); d.Preset.String() != "offline" {
		t.Errorf("policy %v", d)
	}
	// After an error nothing has changed.
	third := file(`}
nodes:
  web: {kind: external, interfaces: [{net: lan, address: [10.5.0.40]}]}
`)
	third.Networks[0].DNS = []string{"gateway.internal. A 10.5.0.77"}
	if err := n.change(patient(t), third); err == nil {
		t.Error("the gateway's name was taken")
	}
	if d := names(); d["x.shop.example."] == nil || slices.Contains(d["web.shop.example."], "10.5.0.40") || len(n.Forwards().List()) != 1 {
		t.Errorf("%v", d)
	}
}

// Interfaces of a wire, and of a switch without an uplink, talk; one that is plugged in again takes its own place.
func TestNetworkPlain(t *testing.T) {
	l := readLab(t, `
networks:
  sw: {uplink: false, net: 10.1.0.0/24, isolate: true, mtu: 9000}
links:
  line: {net: 10.2.0.0/30, impair: "loss=0.5%"}
nodes:
  a: {kind: external, interfaces: [{net: sw, address: [10.1.0.1]}, {link: line, address: [10.2.0.1], impair: "latency=1ms"}]}
  b: {kind: external, interfaces: [{net: sw, address: [10.1.0.2]}, {link: line, address: [10.2.0.2]}]}
  tap: {kind: external, interfaces: [{net: sw, mirror: true}]}
  ids: {kind: external, interfaces: [{net: sw, promiscuous: true, address: [10.1.0.9]}]}
`)
	line := startNetwork(t, l, "line", nil)
	p := netip.MustParsePrefix
	a, b := plugIn(t, line, l, "a", p("10.2.0.1/30")), plugIn(t, line, l, "b", p("10.2.0.2/30"))
	if i, err := line.Impairment(line.guest("a", "eth1")); err != nil || i.Settings.Up.Latency != time.Millisecond || i.Settings.Up.Loss != 0 {
		t.Errorf("%+v %v", i, err)
	}
	if i, err := line.Impairment(line.guest("b", "eth1")); err != nil || i.Settings.Up.Loss != 0.005 {
		t.Errorf("%+v %v", i, err)
	}
	line.Impair("", &impair.Settings{}) // what is lost is for others' tests
	if err := a.Ping(patient(t), b.Addr4(), 1, 1, nil); err != nil {
		t.Error(err)
	}
	for range 3 { // without a word of the one before
		again := plugIn(t, line, l, "b", p("10.2.0.2/30"))
		within(t, "the one before has gone", func() bool { return len(line.Guests()) == 2 && line.guest("b", "eth1") != "" })
		within(t, "it answers", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return again.Ping(ctx, a.Addr4(), 1, 1, nil) == nil
		})
	}
	if c := line.Config(); !c.Wire || line.policy != nil {
		t.Errorf("%+v", c)
	}
	sw := startNetwork(t, l, "sw", nil)
	sa, ids := plugIn(t, sw, l, "a", p("10.1.0.1/24")), plugIn(t, sw, l, "ids", p("10.1.0.9/24"))
	plugIn(t, sw, l, "tap")
	if err := sa.Ping(patient(t), ids.Addr4(), 1, 1, nil); err != nil {
		t.Error(err)
	}
	var ports []string
	for _, g := range sw.Guests() {
		ports = append(ports, g.Port)
	}
	slices.Sort(ports)
	if c := sw.Config(); fmt.Sprint(ports) != "[ mirror promiscuous]" || !c.Isolate || c.MTU != 9000 || !c.NoUplink {
		t.Errorf("ports %v, %+v", ports, c)
	}
}

// Whatever a node is called and has, its network configuration is right YAML of what was meant.
func TestNetworkConfigQuotes(t *testing.T) {
	for _, s := range []string{"a: b", `"`, "\\", "\n", "é", "{x}", "# y", "\u2028", "yes"} {
		var back string
		if err := json.Unmarshal([]byte(quoted(s)), &back); err != nil || back != s {
			t.Errorf("%q became %s", s, quoted(s))
		}
	}
}

func mustURL(path string) *url.URL { return &url.URL{Path: path} }

// recorded is an answer that a test looks at.
type recorded struct {
	header http.Header
	status int
	body   strings.Builder
}

func (r *recorded) Header() http.Header         { return r.header }
func (r *recorded) WriteHeader(status int)      { r.status = status }
func (r *recorded) Write(b []byte) (int, error) { return r.body.Write(b) }
