package backend_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/impair"
	"github.com/vmnetd/vmnetd/portforward"
)

func record(t testing.TB, s string) backend.DNSRecord {
	t.Helper()
	r, err := backend.ParseDNSRecord(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func addedNames(n *backend.Network) (list []string) {
	for _, r := range n.DNSRecords() {
		if r.Source == "admin" {
			list = append(list, r.Name+" "+r.Type+" "+r.Value)
		}
	}
	return list
}

func limitOf(t testing.TB, n *backend.Network, name string) string {
	t.Helper()
	list, err := n.Limits("")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if l.Name == name {
			return l.Text
		}
	}
	t.Fatalf("no limit %s", name)
	return ""
}

// Each thing that a running network takes over from another configuration, beside what people added meanwhile, under a
// conversation that goes on.
func TestReload(t *testing.T) {
	c := backend.Config{StateDir: t.TempDir(), Forwards: rules(t, "0:80", "0:81", "0:82"),
		Records: []backend.DNSRecord{record(t, "db A 10.0.2.77"), record(t, "www CNAME db"), record(t, "old 60 A 10.0.2.78")},
		Limits:  flows.Limits{Flows: 1000, DNS: 100}, GuestLimits: map[string]flows.Limits{"52:54:00:00:00:09": {Flows: 7}}}
	n := start(t, c)
	if err := n.Keep(patience(t)); err != nil {
		t.Fatal(err)
	}
	g := Plug(t, n, Config{Name: "web"}).Up(t)
	l, err := g.Listen(netip.AddrPortFrom(netip.MustParseAddr("10.0.2.15"), 80))
	if err != nil {
		t.Fatal(err)
	}
	go l.Echo()
	bound := n.Bound()
	var conns []net.Conn
	dial := func(r portforward.Rule) net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", netip.AddrPortFrom(r.Host, r.HostPort).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	alive := func(conn net.Conn) {
		t.Helper()
		if _, err := io.WriteString(conn, "here"); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4)
		if _, err := io.ReadFull(conn, b); err != nil || string(b) != "here" {
			t.Fatalf("%q, %v", b, err)
		}
	}
	conns = append(conns, dial(bound[0]))
	added, err := n.Forwards().AddAll(patience(t), rules(t, "0:90", "0:91"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.AddDNS(record(t, "mine A 10.0.2.79")); err != nil {
		t.Fatal(err)
	}
	if err := n.ChangeLimits("", map[string]string{"dns": "50", "udp": "60"}); err != nil {
		t.Fatal(err)
	}
	alive(conns[0])

	// 0:81 goes, and somebody has removed 0:82 meanwhile; 0:80 moves to a port of its own, which is the one that it has; one is
	// added that people have already; db changes, old goes.
	if _, err := n.Forwards().Remove(bound[2].ID(), false); err != nil {
		t.Fatal(err)
	}
	if err := n.RemoveDNS("www", "", ""); err != nil {
		t.Fatal(err)
	}
	d := c
	d.Forwards = append(slices.Clone(c.Forwards[:1]), c.Forwards[2], added[1], rules(t, "0:83")[0])
	d.Records = []backend.DNSRecord{record(t, "db A 10.0.2.80"), record(t, "www CNAME db"), record(t, "new AAAA fd00::80")}
	d.Static = map[string][]netip.Addr{"52:54:00:00:00:09": {netip.MustParseAddr("10.0.2.99")}}
	d.Limits = flows.Limits{Flows: 2000, DNS: 100}
	d.GuestLimits = nil
	line, err := impair.ParseSettings("latency=1ms", nil)
	if err != nil {
		t.Fatal(err)
	}
	d.GuestImpair = map[string]impair.Settings{"web": line}
	d.Doors = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:7777")}
	done, err := n.Reload(patience(t), d)
	if err != nil {
		t.Fatal(err)
	}
	alive(conns[0])
	if len(done.Again) != 1 || done.Again[0].GuestPort != 82 || fmt.Sprint(done.AgainRecords) != "[www CNAME db]" {
		t.Errorf("again: %v %v", done.Again, done.AgainRecords)
	}
	after := n.Bound()
	if len(after) != 4 || after[0] != bound[0] || after[2] != added[1] {
		t.Errorf("bound: %v, before %v, added %v", after, bound, added)
	}
	want := []string{bound[0].String(), added[0].String(), added[1].String(), after[1].String(), after[3].String()}
	if got := forwardsOf(n); !slices.Equal(got, want) {
		t.Errorf("forwards %q, want %q", got, want)
	}
	if got, want := addedNames(n), []string{"db.internal. A 10.0.2.80", "mine.internal. A 10.0.2.79", "new.internal. AAAA fd00::80", "www.internal. CNAME db.internal."}; !slices.Equal(got, want) {
		t.Errorf("records %q, want %q", got, want)
	}
	for name, want := range map[string]string{"flows": "2000", "dns": "50", "udp": "60"} { // who set what was not changed keeps it
		if got := limitOf(t, n, name); got != want {
			t.Errorf("limit %s is %s, want %s", name, got, want)
		}
	}
	if got := n.Config(); len(got.Forwards) != 4 || len(got.Records) != 3 || got.Limits.Flows != 2000 || len(got.Static) != 1 || len(got.Doors) != 1 {
		t.Errorf("the configuration in force: %+v", got)
	}
	other := Plug(t, n, Config{MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 9}})
	if ack, err := other.Lease(patience(t)); err != nil || ack.YourIPAddr.String() != "10.0.2.99" {
		t.Errorf("the static lease: %v, %v", ack, err)
	}

	impaired := func() bool {
		for _, g := range n.Guests() {
			if i, err := n.Impairment(g.ID); err == nil && g.Name == "web" {
				return i.Own
			}
		}
		return false
	}
	if !impaired() {
		t.Error("the guest's line is as good as before")
	}

	// What people added is what is kept.
	kept := func() string {
		b, err := os.ReadFile(filepath.Join(c.StateDir, "added-default.json"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	eventually(t, "what was added is written", func() bool {
		s := kept()
		return strings.Contains(s, added[0].String()) && strings.Contains(s, "mine.internal.") && !strings.Contains(s, added[1].String()) &&
			!strings.Contains(s, "new.internal.") && !strings.Contains(s, after[3].String())
	})

	// It can be taken back, once it is known that something else cannot be done.
	if err := done.Undo(); err != nil {
		t.Fatal(err)
	}
	alive(conns[0])
	got := forwardsOf(n)
	slices.Sort(got)
	want = []string{bound[0].String(), bound[1].String(), added[0].String(), added[1].String()}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("taken back: %q, want %q", got, want)
	}
	if got := addedNames(n); !slices.Contains(got, "old.internal. A 10.0.2.78") || !slices.Contains(got, "db.internal. A 10.0.2.77") || slices.Contains(got, "new.internal. AAAA fd00::80") {
		t.Errorf("taken back: %q", got)
	}
	if impaired() {
		t.Error("taken back: the guest's line is bad")
	}
	if limitOf(t, n, "flows") != "1000" || limitOf(t, n, "dns") != "50" || len(n.Config().Static) != 0 {
		t.Errorf("taken back: %+v", n.Config())
	}
}

// What is taken back is what was in force, where people had set that, too.
func TestReloadUndo(t *testing.T) {
	const mac = "52:54:00:00:00:09"
	line := func(s string) impair.Settings {
		t.Helper()
		set, err := impair.ParseSettings(s, nil)
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	c := backend.Config{Limits: flows.Limits{Flows: 1000}}
	n := start(t, c)
	Plug(t, n, Config{MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 9}}).Up(t)
	id := n.Guests()[0].ID
	all, own := line("down=latency=1ms"), line("up=latency=1ms")
	if err := errors.Join(n.ChangeLimits("", map[string]string{"flows": "1500"}), n.ChangeLimits(id, map[string]string{"udp": "70"}),
		n.Impair("", &all), n.Impair(id, &own)); err != nil {
		t.Fatal(err)
	}
	state := func() string {
		i, err := n.Impairment(id)
		list, err2 := n.Limits(id)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		s := fmt.Sprint(limitOf(t, n, "flows"), n.ImpairedAll(), i.Settings.Down, i.Settings.Up)
		for _, l := range list {
			s += fmt.Sprint(" ", l.Name, l.Value, l.Own)
		}
		return s
	}
	before := state()
	d := c
	d.Limits.Flows, d.GuestLimits = 2000, map[string]flows.Limits{mac: {UDP: 7}}
	d.Impair, d.GuestImpair = new(impair.Settings), map[string]impair.Settings{mac: line("down=latency=2ms"), "other": line("3g")}
	*d.Impair = line("up=latency=3ms")
	done, err := n.Reload(patience(t), d)
	if err != nil {
		t.Fatal(err)
	}
	if got := state(); got == before || limitOf(t, n, "flows") != "2000" {
		t.Errorf("read again, it is %s", got)
	}
	if err := done.Undo(); err != nil {
		t.Fatal(err)
	}
	if got := state(); got != before {
		t.Errorf("taken back: %s\nwas %s", got, before)
	}
}

// A configuration that cannot be changes nothing.
func TestReloadRefused(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c := backend.Config{Forwards: rules(t, "0:80"), Records: []backend.DNSRecord{record(t, "db A 10.0.2.77")}, Limits: flows.Limits{Flows: 1000}}
	n := start(t, c)
	state := func() string {
		return fmt.Sprint(forwardsOf(n), addedNames(n), limitOf(t, n, "flows"), n.Config().Static, n.Bound())
	}
	before := state()
	for _, tt := range []struct {
		name string
		set  func(*backend.Config)
		want string
	}{
		{"Forward", func(c *backend.Config) {
			c.Forwards = append(slices.Clone(c.Forwards), rules(t, fmt.Sprintf("%d:80", taken.Addr().(*net.TCPAddr).Port))...)
		}, "in use"},
		{"Record", func(c *backend.Config) {
			c.Records = append(slices.Clone(c.Records), record(t, "db CNAME x"))
		}, "alias"},
		{"RecordOfItsOwn", func(c *backend.Config) { c.Records = []backend.DNSRecord{record(t, "gateway A 10.0.2.9")} }, "vmnetd's own"},
		{"Static", func(c *backend.Config) {
			c.Static = map[string][]netip.Addr{"52:54:00:00:00:09": {netip.MustParseAddr("10.9.0.1")}}
		}, "is not in"},
		{"StaticMAC", func(c *backend.Config) { c.Static = map[string][]netip.Addr{"x": nil} }, "want a MAC"},
		{"Limit", func(c *backend.Config) { c.Limits.Queue = 1 }, "limit queue"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := c
			d.Limits.Flows = 2000
			d.Records = []backend.DNSRecord{record(t, "db A 10.0.2.77"), record(t, "other A 10.0.2.77")}
			tt.set(&d)
			if _, err := n.Reload(patience(t), d); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%v, want %q", err, tt.want)
			}
			if got := state(); got != before {
				t.Errorf("now %s\nwas %s", got, before)
			}
		})
	}
	n.Close()
	if _, err := n.Reload(patience(t), c); !errors.Is(err, backend.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}
