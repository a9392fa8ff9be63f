package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestAddMessageNetwork(t *testing.T) {
	w := wire{fd: 3, mac: "52:54:00:01:02:03"}
	const own, krun = "--device|virtio-net,fd=3,mac=52:54:00:01:02:03", "--device|virtio-net,type=unixgram,fd=3,mac=52:54:00:01:02:03"
	for _, c := range []struct {
		program, args, want string
		offload             bool
	}{
		{"/opt/homebrew/bin/vfkit", "", own, false},
		{"vfkit", "--cpus|2|--memory|2048", "--cpus|2|--memory|2048|" + own, false},
		// The user's own networks stay beside ours.
		{"vfkit", "--device|virtio-net,nat", "--device|virtio-net,nat|" + own, false},
		{"vfkit", "--device|virtio-net,unixSocketPath=/vmnetd,mac=52:54:00:0a:0b:0c", "--device|virtio-net,unixSocketPath=/vmnetd,mac=52:54:00:0a:0b:0c|" + own, false},
		{"vfkit", "--device|virtio-blk,path=vmnetd", "--device|virtio-blk,path=vmnetd|" + own, false},
		// Our word is replaced where it stands.
		{"vfkit", "--device|virtio-net,vmnetd|--device|virtio-rng", own + "|--device|virtio-rng", false},
		{"vfkit", "--device|virtio-net,vmnetd,mac=52:54:00:0a:0b:0c", "--device|virtio-net,fd=3,mac=52:54:00:0a:0b:0c", false},
		{"vfkit", "--device=virtio-net,mac=52:54:00:0a:0b:0c,vmnetd", "--device=virtio-net,fd=3,mac=52:54:00:0a:0b:0c", false},
		{"krunkit", "--cpus|2", "--cpus|2|" + krun + ",offloading=on", true},
		{"krunkit", "--device|virtio-net,vmnetd", krun, false},
		{"krunkit", "--device|virtio-net,vmnetd,offloading=on", krun + ",offloading=on", true},
		{"krunkit", "--device|virtio-net,vmnetd,offloading=off,mac=52:54:00:0a:0b:0c", "--device|virtio-net,type=unixgram,fd=3,mac=52:54:00:0a:0b:0c,offloading=off", false},
		// An option that has no value.
		{"vfkit", "--device", "--device|" + own, false},
	} {
		v, ok := messageVMMOf(c.program)
		if !ok {
			t.Errorf("%s is not known", c.program)
			continue
		}
		given := split(c.args)
		before := slices.Clone(given)
		got, o, err := v.addNetwork(given, w)
		if err != nil || strings.Join(got, "|") != c.want || o.Offload != c.offload {
			t.Errorf("%s %s\n got %s, offload %v (%v)\nwant %s, %v", c.program, c.args, strings.Join(got, "|"), o.Offload, err, c.want, c.offload)
		}
		if !slices.Equal(given, before) {
			t.Errorf("the caller's arguments became %q", given)
		}
	}
	for _, bad := range []string{
		"vfkit|--device|virtio-net,vmnetd|--device|virtio-net,vmnetd", "vfkit|--device|virtio-net,vmnetd,nat", "vfkit|--device|virtio-net,vmnetd,offloading=on",
		"krunkit|--device|virtio-net,vmnetd,offloading=yes", "krunkit|--device=virtio-net,vmnetd,path=/x",
	} {
		words := split(bad)
		v, _ := messageVMMOf(words[0])
		var usage usageError
		if got, _, err := v.addNetwork(words[1:], w); !errors.As(err, &usage) {
			t.Errorf("%s: %v, %v", bad, got, err)
		}
	}
	for _, other := range []string{"qemu-system-x86_64", "vfkit-wrapper", "sh"} {
		if _, ok := messageVMMOf(other); ok {
			t.Errorf("%s is none", other)
		}
	}
}

// FuzzAddMessageNetwork: nothing of the user's is lost, our word is never left to the command, and one device is ours.
func FuzzAddMessageNetwork(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string, krun bool) {
		v := messageVMMs[0]
		if krun {
			v = messageVMMs[1]
		}
		in := strings.Split(s, "\n")
		out, _, err := v.addNetwork(in, wire{fd: 3, mac: "52:54:00:01:02:03"})
		if err != nil {
			return
		}
		if len(out) != len(in) && len(out) != len(in)+2 {
			t.Fatalf("%q became %q", in, out)
		}
		changed := 0
		for i := range in {
			if in[i] != out[i] {
				changed++
			}
		}
		if added := len(out) > len(in); added && changed != 0 || !added && changed != 1 {
			t.Fatalf("%q became %q", in, out)
		}
	})
}
