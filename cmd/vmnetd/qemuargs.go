package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vmnetd/vmnetd/backend"
)

// How 'run' gives a QEMU command its network, in one rule: what is missing is added. A wire is missing unless a
// -netdev has the id vmnetd; a network card is missing unless a -device names the wire. "-netdev vmnetd,id=x" and
// "-nic vmnetd,model=e1000,mac=…" stand where the user wants to say more, and become the real thing.

// netID is the wire's id where the command gives it none.
const netID = "vmnetd"

// wire is how a command comes by its end.
type wire struct {
	fd  int  // the descriptor
	old bool // QEMU up to 7.1 knows no -netdev stream
	mac string
	mtu int // of a virtio card that we add; 0: its own
}

// card is what is known of the network card at our wire. The zero card is one of which nothing is.
type card struct {
	driver string
	mtu    int  // what the guest's driver is told by the card itself (host_mtu); 0: nothing
	small  bool // as virtio, and its buffers may hold no more than an Ethernet frame each
}

// virtio says whether it is virtio-net, on whatever bus.
func (c card) virtio() bool { return strings.HasPrefix(c.driver, "virtio-net") }

// set narrows down what --mtu auto is for a card. A virtio card of which nothing more is said carries the largest,
// since QEMU's puts a frame into as many of the guest's buffers as it takes (mrg_rxbuf); without that, a driver that
// was not told a large MTU as it started has small buffers. Of every other card nobody knows what its driver does with
// an MTU that the card cannot carry, so its guest is not tempted.
func (c card) set(cfg *backend.Config) {
	switch {
	case c.driver == "" || c.virtio() && c.mtu == 0 && c.small:
	case !c.virtio():
		cfg.LargeMTU = 0
	case c.mtu == 0:
		cfg.LargeNICs = true
	case c.mtu > ethernetMTU:
		cfg.LargeMTU, cfg.LargeNICs = min(c.mtu, backend.MaxMTU), true
	default:
		cfg.MTU, cfg.LargeMTU = max(c.mtu, backend.MinMTU), 0
	}
}

func (w wire) netdev(id string) string {
	if w.old {
		return fmt.Sprintf("socket,id=%s,fd=%d", qemuEscape(id), w.fd)
	}
	return fmt.Sprintf("stream,id=%s,addr.type=fd,addr.str=%d", qemuEscape(id), w.fd)
}

// option is one option of QEMU's with a value: "-netdev user,id=n0", or JSON where QEMU takes it.
type option struct {
	at   int    // of the value, in the arguments
	kind string // "user"
	keys [][2]string
}

func (o option) get(key string) string {
	for _, kv := range o.keys {
		if kv[0] == key {
			return kv[1]
		}
	}
	return ""
}

// options finds what stands behind an option's name, which QEMU takes with one dash or two.
func options(args []string, name, kindKey string) (list []option) {
	for i := 0; i+1 < len(args); i++ {
		if args[i] == "-"+name || args[i] == "--"+name {
			list = append(list, parseOption(args[i+1], i+1, kindKey))
			i++
		}
	}
	return list
}

func parseOption(s string, at int, kindKey string) option {
	o := option{at: at}
	if strings.HasPrefix(s, "{") {
		var m map[string]any
		if json.Unmarshal([]byte(s), &m) == nil {
			for k, v := range m {
				if k == kindKey {
					o.kind = fmt.Sprint(v)
				} else {
					o.keys = append(o.keys, [2]string{k, fmt.Sprint(v)})
				}
			}
		}
		return o
	}
	const comma = "\x00" // no argument has it
	for i, part := range strings.Split(strings.ReplaceAll(s, ",,", comma), ",") {
		part = strings.ReplaceAll(part, comma, ",")
		k, v, ok := strings.Cut(part, "=")
		switch {
		case i == 0 && !ok:
			o.kind = part
		case k == kindKey:
			o.kind = v
		default:
			o.keys = append(o.keys, [2]string{k, v})
		}
	}
	return o
}

// isQEMU goes by the program's name: qemu-system-x86_64, qemu-kvm, and Debian's kvm.
func isQEMU(program string) bool {
	b := strings.TrimSuffix(filepath.Base(program), ".exe")
	return strings.HasPrefix(b, "qemu") || b == "kvm"
}

// wantsNetwork says whether a command is one that arguments can be added to: QEMU, or a script around it that has
// one of our words among its arguments.
func wantsNetwork(program string, args []string) bool {
	if isQEMU(program) {
		return true
	}
	for _, name := range []string{"netdev", "nic"} {
		for _, o := range options(args, name, "type") {
			if o.kind == netID {
				return true
			}
		}
	}
	return false
}

// addNetwork returns a QEMU command's arguments with what its network misses, and the card that is at our wire.
func addNetwork(program string, args []string, w wire) ([]string, card, error) {
	for _, a := range args {
		if a == "-daemonize" || a == "--daemonize" {
			return nil, card{}, usagef("-daemonize: the network ends with the command that 'run' waits for; use 'vmnetd serve', or & without -daemonize")
		}
	}
	out := append([]string(nil), args...)
	id, placed, model := netID, 0, ""
	for _, o := range options(args, "netdev", "type") {
		switch {
		case o.kind == netID:
			placed++
			if v := o.get("id"); v != "" {
				id = v
			}
			for _, kv := range o.keys {
				if kv[0] != "id" {
					return nil, card{}, usagef("-netdev vmnetd has no option %q: it knows id", kv[0])
				}
			}
			out[o.at] = w.netdev(id)
		case o.get("id") == netID:
			placed++ // their own words: nothing to say here
		}
	}
	for _, o := range options(args, "nic", "type") {
		if o.kind != netID {
			continue
		}
		placed++
		for _, kv := range o.keys {
			switch kv[0] {
			case "id":
				id = kv[1]
			case "model":
				model = kv[1]
			case "mac":
				w.mac = kv[1]
			default:
				return nil, card{}, usagef("-nic vmnetd has no option %q: it knows id, model and mac", kv[0])
			}
		}
		if model == "" || model == "virtio" {
			model = virtio(program, args)
		}
		out[o.at-1], out[o.at] = "-netdev", w.netdev(id)
	}
	if placed > 1 {
		return nil, card{}, usagef("%d of the command's networks are vmnetd: 'run' has one wire; use 'vmnetd serve' for more", placed)
	}
	if placed == 0 {
		out = append(out, "-netdev", w.netdev(id))
	}
	if model == "" {
		for _, o := range options(args, "device", "driver") {
			if o.get("netdev") == id {
				return out, cardOf(o, args), nil
			}
		}
		model = virtio(program, args)
	}
	device := fmt.Sprintf("%s,netdev=%s,mac=%s", model, qemuEscape(id), w.mac)
	if w.mtu != 0 && (card{driver: model}).virtio() {
		device += fmt.Sprintf(",host_mtu=%d", w.mtu)
	}
	return append(out, "-device", device), cardOf(parseOption(device, 0, "driver"), args), nil
}

// cardOf is what a -device says of a card, and -global of all of its kind.
func cardOf(device option, args []string) card {
	c := card{driver: device.kind}
	c.mtu, _ = strconv.Atoi(device.get("host_mtu")) // what is no number is QEMU's to refuse
	switch device.get("mrg_rxbuf") {
	case "", "on", "yes", "true", "y":
	default:
		c.small = true
	}
	for i := 0; i+1 < len(args); i++ {
		if (args[i] == "-global" || args[i] == "--global") && (strings.Contains(args[i+1], "mrg_rxbuf") || strings.Contains(args[i+1], "host_mtu")) {
			c.small = true // or not: the guest will show
		}
	}
	return c
}

// virtio is the card for a machine.
func virtio(program string, args []string) string {
	machines := append(options(args, "machine", "type"), options(args, "M", "type")...)
	for _, o := range machines {
		if o.kind == "microvm" { // has no PCI bus unless asked to
			return "virtio-net-device"
		}
	}
	for _, arch := range []string{"s390x", "m68k"} {
		if strings.HasSuffix(filepath.Base(program), "-"+arch) {
			return "virtio-net" // QEMU's own alias: ccw for one, mmio for the other (softmmu/qdev-monitor.c)
		}
	}
	return "virtio-net-pci"
}

// vmMAC is a MAC of the VM's own, the same each time: guests pin their configuration to it (netplan's match, udev's
// names). It comes from -uuid, else -name, else the folder that the command is started in.
func vmMAC(args []string, dir string) string {
	seed := "dir " + dir
	for _, name := range []string{"name", "uuid"} {
		for i := 0; i+1 < len(args); i++ {
			if args[i] == "-"+name || args[i] == "--"+name {
				seed = name + " " + args[i+1]
			}
		}
	}
	h := sha256.Sum256([]byte("vmnetd mac " + seed))
	return net.HardwareAddr{0x52, 0x54, 0, h[0], h[1], h[2]}.String() // QEMU's own block, locally administered
}

var versionRE = regexp.MustCompile(`version (\d+)\.(\d+)`)

// qemuVersion is a QEMU's version, as 702 for 7.2.
func qemuVersion(ctx context.Context, program string) (version int, told bool) {
	// A loaded machine links QEMU's hundred libraries in a second or two.
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	m := versionRE.FindSubmatch(out)
	if err != nil || m == nil {
		return 0, false
	}
	major, _ := strconv.Atoi(string(m[1]))
	minor, _ := strconv.Atoi(string(m[2]))
	return 100*major + minor, true
}
