package topology

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write golden files anew")

// TestGolden: pictures are what somebody has looked at.
func TestGolden(t *testing.T) {
	labs := []string{"testdata/shop.yaml", "testdata/large.yaml", "testdata/ring.yaml", "../examples/two-guests.yaml", "../examples/routed.yaml", "../examples/sandbox.yaml"}
	for _, file := range labs {
		l, err := Read(file, nil)
		if err != nil {
			t.Fatal(err)
		}
		checkPicture(t, l)
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		for ext, got := range map[string][]byte{".svg": l.SVG(nil), ".txt": []byte(l.Graph())} {
			if !strings.HasPrefix(file, "testdata") {
				continue // others may change their files
			}
			golden := filepath.Join("testdata", "golden", name+ext)
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, bytes.ReplaceAll(want, []byte("\r\n"), []byte("\n"))) {
				t.Errorf("%s is drawn otherwise than %s: look at it, and run with -update", file, golden)
			}
		}
	}
}

// checkPicture: no box is on another, none outside, and what it is made of is XML.
func checkPicture(t *testing.T, l *Lab) {
	t.Helper()
	p := l.picture()
	var all []*box
	for _, row := range p.rows {
		all = append(all, row...)
	}
	if len(all) != len(l.Nodes) {
		t.Fatalf("%d boxes for %d nodes", len(all), len(l.Nodes))
	}
	for i, a := range all {
		if a.x < 0 || a.y < 0 || a.x+a.w > p.width || a.y+boxHeight > p.height {
			t.Fatalf("%s is outside: %g, %g in %g, %g", a.node.Name, a.x, a.y, p.width, p.height)
		}
		for _, b := range all[:i] {
			if a.x < b.x+b.w && b.x < a.x+a.w && a.y < b.y+boxHeight && b.y < a.y+boxHeight {
				t.Fatalf("%s is on %s", a.node.Name, b.node.Name)
			}
		}
	}
	for i, ch := range p.channels {
		for j, a := range ch.bars {
			if i < len(p.rows) && len(p.rows[i]) > 0 && a.y > p.rows[i][0].y {
				t.Fatalf("the bar of %s is not above its row", a.n.Name)
			}
			for _, b := range ch.bars[:j] {
				if a.y == b.y && a.x0 < b.x1 && b.x0 < a.x1 {
					t.Fatalf("the bar of %s is on that of %s", a.n.Name, b.n.Name)
				}
			}
		}
	}
	for d := xml.NewDecoder(bytes.NewReader(l.SVG(nil))); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestPictures: of any lab, checkPicture holds.
func TestPictures(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		l := &Lab{Name: "random"}
		for i := range r.IntN(8) {
			kind := r.IntN(3)
			l.Networks = append(l.Networks, Network{Name: fmt.Sprintf("net%d", i), Uplink: kind == 0, Wire: kind == 1, Prefix4: netip.MustParsePrefix("10.0.0.0/24")})
		}
		for i := range r.IntN(40) {
			n := Node{Name: fmt.Sprintf("node%d", i) + strings.Repeat("x", r.IntN(20)), Kind: KindNetns}
			for range r.IntN(4) {
				if len(l.Networks) > 0 {
					n.Interfaces = append(n.Interfaces, Interface{Name: fmt.Sprintf("eth%d", len(n.Interfaces)), Network: l.Networks[r.IntN(len(l.Networks))].Name})
				}
			}
			l.Nodes = append(l.Nodes, n)
		}
		checkPicture(t, l)
		if l.Graph() == "" {
			t.Fatal("no text")
		}
	}
}

// TestHostile: whatever a name is, it stays a text.
func TestHostile(t *testing.T) {
	const evil = "</text><script>alert(1)</script>\x00\x1b[31m&\"'"
	l := &Lab{Name: evil, Networks: []Network{{Name: evil, Uplink: true, Forwards: []string{evil}, Policy: Policy{Preset: evil, Allow: []string{evil}}}},
		Nodes: []Node{{Name: evil, Kind: Kind(evil), Command: []string{evil}, Interfaces: []Interface{{Name: evil, Network: evil}}}}}
	svg := string(l.SVG(&Status{Nodes: []NodeStatus{{Name: evil, State: State(evil), Error: evil}}}))
	if strings.Contains(svg, "<script") || strings.ContainsAny(svg, "\x00\x1b") {
		t.Error(svg)
	}
	checkPicture(t, l)
}

// TestStates: a Status colours nodes, and shows addresses that were given by DHCP.
func TestStates(t *testing.T) {
	l := &Lab{Name: "s", Networks: []Network{{Name: "lan", Uplink: true}}, Nodes: []Node{{Name: "a", Kind: KindNetns, Interfaces: []Interface{{Name: "eth0", Network: "lan"}}}, {Name: "b", Kind: KindQEMU}}}
	plain := string(l.SVG(nil))
	st := &Status{Nodes: []NodeStatus{
		{Name: "a", State: StateReady, Interfaces: []InterfaceStatus{{Name: "eth0", Addrs: []netip.Addr{netip.MustParseAddr("10.0.2.15"), netip.MustParseAddr("fe80::1")}}}},
		{Name: "b", State: StateFailed, Error: "no disk"}}}
	got := string(l.SVG(st))
	for _, want := range []string{">10.0.2.15<", "stroke: var(--ready)", "stroke: var(--fail)", "b, qemu, failed: no disk"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s", want)
		}
		if strings.Contains(plain, want) {
			t.Errorf("%s without a status", want)
		}
	}
	if strings.Contains(got, "fe80") || l.Nodes[0].Interfaces[0].Addrs != nil {
		t.Error("a link-local address is shown, or the lab was changed")
	}
}
