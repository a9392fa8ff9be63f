package dhcp

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestStateSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.json")
	l := newLab(t)
	for _, st := range []step{
		leases(alice.called("vm").as("\xffid"), "10.0.2.15"), leases6(alice.called("vm"), "fd00:2::1000"),
		waits(time.Minute),
		leases(bob.called("vm"), "10.0.2.16"), leases(carol, "10.0.2.17"), releases(carol, "10.0.2.17"),
		leases6(carol.iface(200), "fd00:2::1001"), declines6(carol.iface(200), "fd00:2::1001"),
		discovers(who{guest: "d", mac: MAC{2, 0, 0, 0, 0, 1}}, offered("10.0.2.18")),
	} {
		st(l)
	}
	before := l.s.Leases()
	save := func(l *lab) {
		t.Helper()
		if err := l.s.Save(path); err != nil {
			t.Fatal(err)
		}
	}
	save(l)
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}

	// The daemon is gone for an hour.
	l2 := newLab(t)
	waits(l.clock().Sub(l2.clock()) + time.Hour)(l2)
	if n, err := l2.s.Load(path); n != 4 || err != nil {
		t.Fatalf("%d leases, %v, want 4: neither the offer nor the quarantine, which is over", n, err)
	}
	l2.consistent()
	told("bound 10.0.2.15 vm", "bound fd00:2::1000 vm", "bound 10.0.2.16 vm-2")(l2)
	var want []Lease
	for _, le := range before {
		if le.State == Offered || le.State == Declined { // one hour is more than a quarantine
			continue
		}
		le.Away = true // until they are heard of
		want = append(want, le)
	}
	if n := len(l2.s.Leases()); n != len(want) {
		t.Errorf("%d leases, want %d", n, len(want))
	}
	if got := l2.s.Leases(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for _, st := range []step{
		renews(alice.as("\xffid").through("new link"), "10.0.2.15", acked("10.0.2.15")),
		renews6(alice, "fd00:2::1000", replied("fd00:2::1000")),
		leases(who{guest: "d", mac: MAC{2, 0, 0, 0, 0, 1}}, "10.0.2.18"),
		leases(carol, "10.0.2.17"),
		reboots(bob, "10.0.2.15", naked("another client")),
	} {
		st(l2)
		l2.consistent()
	}

	// Nothing new, nothing written.
	save(l2)
	os.Remove(path)
	save(l2)
	if _, err := os.Stat(path); err == nil {
		t.Error("written though nothing changed")
	}
	releases(carol, "10.0.2.17")(l2)
	save(l2)
	if _, err := os.Stat(path); err != nil {
		t.Errorf("not written though a lease was released: %v", err)
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestConfigurationWinsOverTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.json")
	l := newLab(t)
	leases(alice.called("web"), "10.0.2.15")(l)
	leases(bob, "10.0.2.16")(l)
	leases(carol, "10.0.2.17")(l)
	leases6(bob, "fd00:2::1000")(l)
	if err := l.s.Save(path); err != nil {
		t.Fatal(err)
	}
	l = newLab(t, func(c *Config) {
		c.Static = map[MAC]Reservation{macA: {Addr: ip("10.0.2.16"), Hostname: "db"}}
		c.Reserved = []netip.Addr{ip("10.0.2.17")}
		c.Prefix6, c.Gateway6, c.DNS6 = netip.MustParsePrefix("fd00:3::/64"), ip("fd00:3::2"), nil
		c.LeaseTime = time.Hour
	})
	if n, err := l.s.Load(path); n != 1 || err != nil {
		t.Fatalf("%d, %v, want alice's alone", n, err)
	}
	told("bound 10.0.2.15 db")(l)
	if le, _ := l.s.Lookup(ip("10.0.2.15")); le.Expires != l.clock().Add(time.Hour) {
		t.Errorf("ends %v, want no later than a lease given now", le.Expires)
	}
	renews(alice, "10.0.2.15", naked("static lease is 10.0.2.16"))(l)
	l.consistent()
}

func TestDamagedState(t *testing.T) {
	good := func(f func(*Lease)) string {
		le := Lease{Addr: ip("10.0.2.15"), MAC: macA, State: Bound, Expires: time.Now()}
		f(&le)
		b, err := json.Marshal(file{1, []Lease{le}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, c := range []struct{ content, want string }{
		{"", "EOF"},
		{"\x00\x00\x00\x00", "invalid character"},
		{`{"version":1,"leases":[{"addr":"10.0.`, "unexpected EOF"},
		{`{"version":1}{}`, "more after"},
		{`{"version":2}`, "version 2, want 1"},
		{`{}`, "version 0"},
		{good(func(l *Lease) { l.ClientID = "xyz" }), "hexadecimal"},
		{good(func(l *Lease) { l.ClientID = strings.Repeat("00", 256) }), "256 bytes"},
		{good(func(l *Lease) { l.MAC = Broadcast }), "MAC"},
		{good(func(l *Lease) { l.Addr = netip.Addr{} }), "address"},
		{good(func(l *Lease) { l.Addr = ip("fe80::1%eth0") }), "address"},
		{good(func(l *Lease) { l.Addr = ip("fd00:2::1000") }), "DUID"},
		{good(func(l *Lease) { l.Hostname = "a.b" }), "DNS labels"},
		{good(func(l *Lease) { l.Name = "A" }), "DNS labels"},
		{good(func(l *Lease) { l.State = Offered }), "state"},
		{good(func(l *Lease) { l.Guest = strings.Repeat("x", 2000) }), "guest"},
		{strings.Replace(good(func(*Lease) {}), "]", `,{"addr":"10.0.2.15","mac":"52:54:00:00:00:0b","state":"bound","expires":"2026-01-01T00:00:00Z"}]`, 1), "there twice"},
	} {
		path := filepath.Join(t.TempDir(), "leases.json")
		if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		l := newLab(t)
		n, err := l.s.Load(path)
		if n != 0 || err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "set aside as "+path+".damaged") || len(err.Error()) > 600 {
			t.Errorf("%.60q: %d, %v, want %q", c.content, n, err, c.want)
		}
		if b, err := os.ReadFile(path + ".damaged"); err != nil || string(b) != c.content {
			t.Errorf("%.60q was not set aside: %v", c.content, err)
		}
		leases(alice, "10.0.2.15")(l) // life goes on
		if err := l.s.Save(path); err != nil {
			t.Error(err)
		}
		if n, err := newLab(t).s.Load(path); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
}

func TestStateFileErrors(t *testing.T) {
	dir := t.TempDir()
	l := newLab(t)
	if n, err := l.s.Load(filepath.Join(dir, "none")); n != 0 || err != nil {
		t.Errorf("a first start: %d, %v", n, err)
	}
	if _, err := l.s.Load(dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a folder: %v", err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("the folder was moved: %v", err)
	}
	if err := l.s.Save(filepath.Join(dir, "no", "folder")); err == nil {
		t.Error("saved into a folder that is not there")
	}
	if err := l.s.Save(dir); err == nil {
		t.Error("saved over a folder")
	}
	if _, err := os.Stat(dir + ".new"); err == nil {
		t.Error("a failed save left its file")
	}
	big := filepath.Join(dir, "big")
	f, err := os.Create(big)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(maxState + 1); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := l.s.Load(big); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Error(err)
	}
}

// A table as full as it gets is far below the bound on the file, and comes back whole.
func TestFullStateRoundTrip(t *testing.T) {
	wide := func(c *Config) { c.Prefix, c.PerGuest = netip.MustParsePrefix("10.0.0.0/8"), maxRecords }
	l := newLab(t, wide)
	for i := range maxRecords + 5 {
		w := who{guest: "a", mac: MAC{2, 0, 0, 1, byte(i >> 8), byte(i)}, id: strings.Repeat("i", 255-5) + fmt.Sprint(i), name: strings.Repeat("n", 63)}
		l.hear4(w, msg4(w, 1, option(80)).ToBytes())
		if l.m4 == nil {
			t.Fatal(l.err)
		}
	}
	l.consistent()
	path := filepath.Join(t.TempDir(), "leases.json")
	if err := l.s.Save(path); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Size() > maxState/2 {
		t.Errorf("%v bytes, %v", fi.Size(), err)
	}
	l2 := newLab(t, wide)
	if n, err := l2.s.Load(path); n != maxRecords || err != nil {
		t.Errorf("%d, %v, want %d", n, err, maxRecords)
	}
	l2.consistent()
}
