package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmnetd/vmnetd/vfkit"
)

// How 'run' gives a vfkit or krunkit command its network: as QEMU's, what is missing is added. The wire is an end of a
// datagram socketpair, which both take as a descriptor. "--device virtio-net,vmnetd[,mac=MAC][,offloading=on]" stands
// where the user wants to say more; other virtio-net devices are the user's own and stay.

// messageVMM is a VMM whose wire is a datagram socket.
type messageVMM struct {
	name string
	// device is the value of --device for a descriptor and a MAC. The rest are options that follow.
	device func(fd int, mac string) string
	// more are the options that our word may have beside mac.
	more []string
	// offloads says that its guests may leave frames unfinished if they are told to.
	offloads bool
}

// vfkit's options are those of its pkg/config/virtio.go (VirtioNet.FromOptions), krunkit's those of its docs/usage.md. In
// krunkit's type=unixgram offloading and vfkitMagic are off unless they are said; a socketpair needs no greeting.
var messageVMMs = []messageVMM{
	{name: "vfkit", device: func(fd int, mac string) string { return fmt.Sprintf("virtio-net,fd=%d,mac=%s", fd, mac) }},
	{name: "krunkit", more: []string{"offloading"}, offloads: true, device: func(fd int, mac string) string {
		return fmt.Sprintf("virtio-net,type=unixgram,fd=%d,mac=%s", fd, mac)
	}},
}

// wireMessages hands an end of a datagram socketpair on to the command.
func wireMessages(program string, fd int, o vfkit.Options) (*way, error) {
	ours, theirs, err := messagePair()
	if err != nil {
		return nil, err
	}
	d := &door{framing: &vfkitFraming, addr: "run:" + filepath.Base(program), remove: func() {}}
	d.only = d.message(ours, o)
	return handOver(d, theirs, fd), nil
}

// messageVMMOf goes by the program's name, as isQEMU does.
func messageVMMOf(program string) (messageVMM, bool) {
	i := slices.IndexFunc(messageVMMs, func(v messageVMM) bool { return v.name == filepath.Base(program) })
	if i < 0 {
		return messageVMM{}, false
	}
	return messageVMMs[i], true
}

// addNetwork returns the command's arguments with what its network misses, and what its wire is like.
func (v messageVMM) addNetwork(args []string, w wire) ([]string, vfkit.Options, error) {
	out := slices.Clone(args)
	var o vfkit.Options
	placed := 0
	for i := range out {
		value, at := out[i], i
		switch {
		case value == "--device" && i+1 < len(out):
			value, at = out[i+1], i+1
		case strings.HasPrefix(value, "--device="):
			value = strings.TrimPrefix(value, "--device=")
		default:
			continue
		}
		words := strings.Split(value, ",")
		if words[0] != "virtio-net" || !slices.Contains(words, netID) {
			continue
		}
		placed++
		mac, more := w.mac, ""
		for _, word := range words[1:] {
			key, val, has := strings.Cut(word, "=")
			switch {
			case word == netID:
			case key == "mac" && has:
				mac = val
			case has && slices.Contains(v.more, key):
				more += "," + word
				if key == "offloading" {
					switch val {
					case "on":
						o.Offload = true
					case "off":
					default:
						return nil, o, usagef("--device %s: offloading=%s: want on or off", value, val)
					}
				}
			default:
				return nil, o, usagef("--device %s: virtio-net,vmnetd has no option %q: it knows %s", value, word,
					strings.Join(append([]string{"mac"}, v.more...), " and "))
			}
		}
		device := v.device(w.fd, mac) + more
		if at == i {
			device = "--device=" + device
		}
		out[at] = device
	}
	switch {
	case placed > 1:
		return nil, o, usagef("%d of the command's devices are vmnetd's: 'run' has one wire; use 'vmnetd serve' for more", placed)
	case placed == 0:
		device := v.device(w.fd, w.mac)
		if v.offloads { // several times as fast, and what their frames lack is made up for
			device += ",offloading=on"
			o.Offload = true
		}
		out = append(out, "--device", device)
	}
	return out, o, nil
}
