package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend"
)

// plansOf is what a command line's flags make of its networks.
func plansOf(t *testing.T, line ...string) ([]plan, error) {
	t.Helper()
	var n networkFlags
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	n.add(fs, slog.LevelInfo)
	more := fs.StringArray("network", nil, "")
	if err := fs.Parse(line); err != nil {
		t.Fatal(err)
	}
	cfg, err := n.config(io.Discard)
	if err != nil {
		return nil, err
	}
	plans, err := others(*more, fs, cfg, io.Discard, nil)
	return append([]plan{{cfg: cfg}}, plans...), err
}

func TestNetworks(t *testing.T) {
	plans, err := plansOf(t, "--net", "10.1.0.0/24", "--no-host-loopback", "--resolver", "192.0.2.53", "-p", "2222:22", "--mtu", "1400", "--static", "52:54:00:00:00:01=10.1.0.20",
		"--network", "lab,net=10.7.0.0/24,isolate,forward=127.0.0.1:2223:22,,source=client,forward=2224:80",
		"--network", "open,no-host-loopback=false,mtu=auto,resolver=192.0.2.54,search=a,search=b,route=198.51.100.0/24,route=2001:db8::7,strict-leases")
	if err != nil {
		t.Fatal(err)
	}
	if got := names(plans); !slices.Equal(got, []string{"default", "lab", "open"}) {
		t.Fatalf("networks %q", got)
	}
	first, lab, open := plans[0].cfg, plans[1].cfg, plans[2].cfg
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"first: prefix", first.Prefix4, netip.MustParsePrefix("10.1.0.0/24")},
		{"first: forwards", len(plans[0].cfg.Forwards), 1},
		{"lab: prefix", lab.Prefix4, netip.MustParsePrefix("10.7.0.0/24")},
		{"lab: isolated", lab.Isolate, true},
		{"lab: as the first", lab.NoHostLoopback, true},
		{"lab: MTU as the first", lab.MTU, 1400},
		{"lab: resolvers as the first", lab.Resolvers[0], netip.MustParseAddrPort("192.0.2.53:53")},
		{"lab: forwards of its own", len(plans[1].cfg.Forwards), 2},
		{"lab: static leases of its own", len(lab.Static), 0},
		{"open: prefix is not the first's", open.Prefix4.IsValid(), false},
		{"open: not isolated", open.Isolate, false},
		{"open: says otherwise", open.NoHostLoopback, false},
		{"open: MTU", open.MTU == 0 && open.LargeMTU == backend.MaxMTU, true},
		{"open: one resolver", len(open.Resolvers) == 1 && open.Resolvers[0] == netip.MustParseAddrPort("192.0.2.54:53"), true},
		{"open: search", strings.Join(open.Search, " "), "a b"},
		{"open: forwards", len(plans[2].cfg.Forwards), 0},
		{"open: routes", fmt.Sprint(open.Routes), "[198.51.100.0/24 2001:db8::7/128]"},
		{"lab: no routes", lab.Routes == nil, true},
		{"open: strict leases", open.StrictLeases, true},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
}

func TestNetworksRefused(t *testing.T) {
	for _, c := range []struct {
		line []string
		want string
	}{
		{[]string{"--network", "default"}, "there is a network default already"},
		{[]string{"--name", "x", "--network", "x"}, "there is a network x already"},
		{[]string{"--network", "a", "--network", "a"}, "there is a network a already"},
		{[]string{"--network", "net=10.7.0.0/24"}, "want a name first"},
		{[]string{"--network", "../x"}, "a network's name"},
		{[]string{"--name", "../x"}, "a network's name"},
		{[]string{"--network", ""}, "a network's name"},
		{[]string{"--network", "a,nett=10.7.0.0/24"}, `no flag of a network is called "nett"`},
		{[]string{"--network", "a,net"}, "net needs a value"},
		{[]string{"--network", "a,net=x"}, "10.0.2.0/24"},
		{[]string{"--network", "a,net=10.7.0.0/24,net=10.8.0.0/24"}, "net is there twice"},
		{[]string{"--network", "a,log-level=debug"}, "log-level is the whole daemon's"},
		{[]string{"--network", "a,name=b"}, "its name stands first"},
		{[]string{"--network", "a,static=x"}, "x"},
		{[]string{"--network", "a,route=x"}, "--route x"},
	} {
		if _, err := plansOf(t, c.line...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want one with %q", c.line, err, c.want)
		}
	}
}

// Every framing's address may say which network it is for.
func TestDoorOfNetwork(t *testing.T) {
	plans, err := plansOf(t, "--network", "lab")
	if err != nil {
		t.Fatal(err)
	}
	if err := checkNetwork("unix:/x,network=lab", plans); err != nil {
		t.Error(err)
	}
	if err := checkNetwork("unix:/x,network=lob", plans); err == nil || !strings.Contains(err.Error(), "there is default, lab") {
		t.Errorf("a network that is not there: %v", err)
	}
	for _, f := range framings {
		if _, ok := f.form("tcp"); !ok {
			continue
		}
		d, err := openDoor(f, "tcp:127.0.0.1:0,network=lab", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Errorf("%s: %v", f.name, err)
			continue
		}
		if d.network != "lab" {
			t.Errorf("%s: its network is %q", f.name, d.network)
		}
		d.close()
	}
}

// What --network says makes a network that has a name of its own, or is refused with a reason. Seeds are in testdata.
func FuzzParseNetwork(f *testing.F) {
	f.Fuzz(func(t *testing.T, spec string) {
		base := pflag.NewFlagSet("serve", pflag.ContinueOnError)
		var n networkFlags
		n.add(base, slog.LevelInfo)
		if err := base.Parse([]string{"--no-host-loopback", "--search", "a.example"}); err != nil {
			t.Fatal(err)
		}
		plans, err := others([]string{spec}, base, backend.Config{}, io.Discard, nil)
		if err != nil {
			if !strings.Contains(err.Error(), "--network") {
				t.Errorf("%q: %v does not say where", spec, err)
			}
			return
		}
		c := plans[0].cfg
		if c.Name == "default" || checkName(c.Name) != nil || !strings.HasPrefix(spec, c.Name) {
			t.Errorf("%q is network %q", spec, c.Name)
		}
		if !c.NoHostLoopback && !strings.Contains(spec, "loopback") || len(c.Search) == 0 {
			t.Errorf("%q has not what the first network has: %+v", spec, c)
		}
	})
}
