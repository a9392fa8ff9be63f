package backend_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/portforward"
)

func rules(t testing.TB, texts ...string) (list []portforward.Rule) {
	t.Helper()
	for _, s := range texts {
		r, err := portforward.ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r...)
	}
	return list
}

func forwardsOf(n *backend.Network) (list []string) {
	for _, r := range n.Forwards().List() {
		list = append(list, r.Text)
	}
	return list
}

// What was added while it ran is there again, on the ports that the system picked; what the configuration had is the
// configuration's affair.
func TestKeep(t *testing.T) {
	for _, how := range []string{"closed", "killed"} {
		t.Run(how, func(t *testing.T) {
			c := backend.Config{StateDir: t.TempDir()}
			record := backend.DNSRecord{Name: "db.internal.", Type: "A", Value: "10.0.2.77", TTL: 60, Source: "admin"}
			open := func() *backend.Network {
				n := start(t, c)
				if _, err := n.Forwards().AddAll(patience(t), rules(t, "127.0.0.1::22/tcp")); err != nil {
					t.Fatal(err)
				}
				if err := n.Keep(patience(t)); err != nil {
					t.Fatal(err)
				}
				return n
			}
			n := open()
			added, err := n.Forwards().AddAll(patience(t), rules(t, "127.0.0.1::web:80/tcp", "[::1]::53/udp"))
			if err != nil {
				t.Fatal(err)
			}
			if err := n.AddDNS(record); err != nil {
				t.Fatal(err)
			}
			if how == "killed" { // what a killed one had is what the file has a second later
				file := filepath.Join(c.StateDir, "added-default.json")
				eventually(t, "it is written", func() bool {
					b, err := os.ReadFile(file)
					return err == nil && strings.Contains(string(b), added[1].String()) && strings.Contains(string(b), "db.internal")
				})
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				n.Close()
				if err := os.WriteFile(file, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n.Close()
			n = open()
			got := forwardsOf(n)
			for _, r := range added {
				if !slices.Contains(got, r.String()) {
					t.Errorf("forwards %q, want %s again", got, r)
				}
			}
			if len(got) != 3 {
				t.Errorf("forwards %q, want 3: one is given anew each time", got)
			}
			if !slices.Contains(n.DNSRecords(), record) {
				t.Errorf("records %+v, want %+v again", n.DNSRecords(), record)
			}
			if _, err := n.Forwards().Remove(added[0].ID(), false); err != nil {
				t.Fatal(err)
			}
			if err := n.RemoveDNS("db.internal.", "", ""); err != nil {
				t.Fatal(err)
			}
			n.Close()
			n = open()
			if got := forwardsOf(n); len(got) != 2 || slices.Contains(n.DNSRecords(), record) {
				t.Errorf("what was removed is there again: %q, %+v", got, n.DNSRecords())
			}
		})
	}
}

// A forward whose port another program has meanwhile is not lost.
func TestKeepWaits(t *testing.T) {
	c := backend.Config{StateDir: t.TempDir()}
	n := start(t, c)
	if err := n.Keep(patience(t)); err != nil {
		t.Fatal(err)
	}
	added, err := n.Forwards().AddAll(patience(t), rules(t, "127.0.0.1::22/tcp"))
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
	other := start(t, backend.Config{Name: "other"})
	if _, err := other.Forwards().AddAll(patience(t), added); err != nil {
		t.Fatal(err)
	}
	for range 2 { // over one more restart too
		n = start(t, c)
		if err := n.Keep(patience(t)); err != nil {
			t.Fatal(err)
		}
		if got := n.Status().Warnings; len(got) != 1 || !strings.Contains(got[0], added[0].String()) {
			t.Errorf("warnings %q", got)
		}
		n.Close()
	}
	other.Close()
	n = start(t, c)
	if err := n.Keep(patience(t)); err != nil {
		t.Fatal(err)
	}
	if got := forwardsOf(n); len(got) != 1 || got[0] != added[0].String() {
		t.Errorf("forwards %q, want %s", got, added[0])
	}
}

func TestKeepDamaged(t *testing.T) {
	for name, content := range map[string]string{
		"not JSON": "{", "another version": `{"version":9,"forwards":["2222:22"]}`, "another type": `{"version":1,"forwards":7}`,
	} {
		t.Run(name, func(t *testing.T) {
			c := backend.Config{StateDir: t.TempDir()}
			file := filepath.Join(c.StateDir, "added-default.json")
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			n := start(t, c)
			if err := n.Keep(patience(t)); err != nil {
				t.Fatal(err)
			}
			if w := n.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], ".damaged") {
				t.Errorf("warnings %q", w)
			}
			if b, err := os.ReadFile(file + ".damaged"); err != nil || string(b) != content {
				t.Errorf("set aside: %q, %v", b, err)
			}
			if len(forwardsOf(n)) > 0 {
				t.Error("forwards came of it")
			}
		})
	}
}

// A folder that takes no file any more, say of a full disk, is said so, and that it does again.
func TestStateFolderFails(t *testing.T) {
	c := backend.Config{StateDir: t.TempDir()}
	n := start(t, c)
	if err := n.Keep(patience(t)); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"leases-default.json.new", "added-default.json.new"} { // in the way of root's writes too
		if err := os.Mkdir(filepath.Join(c.StateDir, f), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	Plug(t, n, Config{}).Up(t)
	if err := n.AddDNS(backend.DNSRecord{Name: "a.internal", Type: "A", Value: netip.MustParseAddr("10.0.2.9").String()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are said", func() bool { return len(n.Status().Warnings) == 2 })
	for _, f := range []string{"leases-default.json.new", "added-default.json.new"} {
		if err := os.Remove(filepath.Join(c.StateDir, f)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both are over", func() bool { return len(n.Status().Warnings) == 0 })
	for _, f := range []string{"leases-default.json", "added-default.json"} {
		if b, err := os.ReadFile(filepath.Join(c.StateDir, f)); err != nil || !strings.Contains(string(b), "10.0.2.") {
			t.Errorf("%s: %s, %v", f, b, err)
		}
	}
}
