package main

import (
	"slices"
	"strings"
	"testing"
)

// FuzzAddNetwork: nothing of the user's is lost, and what was added once is not added again.
func FuzzAddNetwork(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		w := wire{fd: 3, mac: "52:54:00:01:02:03"}
		in := strings.Split(s, "\n")
		out, _, err := addNetwork("qemu-system-x86_64", in, w)
		if err != nil {
			return
		}
		if len(out) < len(in) || len(out) > len(in)+4 {
			t.Fatalf("%q became %q", in, out)
		}
		changed := 0
		for i := range in {
			if in[i] != out[i] {
				changed++
			}
		}
		if changed > 2 {
			t.Fatalf("%q became %q", in, out)
		}
		// An option without its value, or one for a value, is not QEMU's syntax: ours may then be read as its value.
		odd := slices.ContainsFunc(in, func(s string) bool { return strings.HasPrefix(s, "-") && s != "-m" && s != "-M" })
		if again, _, err := addNetwork("qemu-system-x86_64", out, w); changed == 0 && !odd && (err != nil || !slices.Equal(again, out)) {
			t.Fatalf("%q, and once more %q", out, again)
		}
	})
}

// FuzzNetworkFlags: what is read from a flag has what a network needs.
func FuzzNetworkFlags(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := parsePrefix(s); err == nil && !p.IsValid() {
			t.Fatalf("%q: prefix %v", s, p)
		}
		mac, addrs, err := parseStatic(s)
		if err != nil {
			return
		}
		if len(mac) != 17 || len(addrs) == 0 {
			t.Fatalf("%q: %q %v", s, mac, addrs)
		}
		for _, a := range addrs {
			if !a.IsValid() || a.Zone() != "" {
				t.Fatalf("%q: %v", s, a)
			}
		}
	})
}
