package main

// What to give a VMM so that it plugs in at a door: lines to paste, printed when the daemon is up.

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// qemuLines are the arguments for QEMU. The version notes are from QEMU's qapi/net.json ("Since" of stream,
// reconnect and reconnect-ms) and docs/about/removed-features: reconnect went in 10.2.
func qemuLines(d *door) string {
	var b strings.Builder
	at, dialled := strings.CutPrefix(d.addr, "dial:")
	kind, addr, _ := strings.Cut(at, ":")
	var to, old string
	switch kind {
	case "unix":
		to = "addr.type=unix,addr.path=" + qemuEscape(addr)
	case "tcp":
		host, port, _ := net.SplitHostPort(addr)
		if a, err := netip.ParseAddr(host); err == nil && a.IsUnspecified() { // the VMM is on this machine as far as we know
			host = map[bool]string{true: "127.0.0.1", false: "::1"}[a.Is4()]
		}
		to = fmt.Sprintf("addr.type=inet,addr.host=%s,addr.port=%s", qemuEscape(host), port)
		old = fmt.Sprintf("QEMU up to 7.1:\n  -netdev socket,id=net0,connect=%s\n", net.JoinHostPort(host, port))
	case "vsock":
		return hyperkitLines(d)
	default:
		return fmt.Sprintf("guests plug in at %s\n", d.addr)
	}
	mtu := ""
	if d.mtu != 0 {
		mtu = fmt.Sprintf(",host_mtu=%d", d.mtu)
	}
	card := fmt.Sprintf("-device virtio-net-pci,netdev=net0,mac=%s%s\n", randomMAC(), mtu)
	if dialled {
		fmt.Fprintf(&b, "a guest is looked for at %s; for QEMU 7.2 and later:\n", at)
		fmt.Fprintf(&b, "  -netdev %s %s", shellQuote("stream,id=net0,server=on,"+to), card)
		return b.String()
	}
	fmt.Fprintf(&b, "guests plug in at %s; for QEMU 7.2 and later:\n", d.addr)
	fmt.Fprintf(&b, "  -netdev %s %s", shellQuote("stream,id=net0,server=off,"+to), card)
	b.WriteString("each guest with a MAC of its own; for guests that come back when vmnetd was restarted, add to -netdev:\n")
	b.WriteString("  ,reconnect-ms=1000   QEMU 9.2 and later\n  ,reconnect=1         QEMU 8.0 to 9.1 (7.2 cannot)\n")
	b.WriteString(old)
	return b.String()
}

// hyperkitLines are what gvforwarder and HyperKit are given.
func hyperkitLines(d *door) string {
	kind, addr, _ := strings.Cut(d.addr, ":")
	var with string
	switch kind {
	case "unix":
		with = fmt.Sprintf("  gvforwarder -url %s\n  hyperkit -s 2:0,virtio-vpnkit,path=%s\n", shellQuote("unix://"+addr), shellQuote(addr))
	case "vsock":
		if i := strings.LastIndexByte(addr, ':'); i >= 0 {
			with = fmt.Sprintf("in a guest of this machine:\n  gvforwarder -url vsock://2%s/connect\n", addr[i:])
		}
	}
	return fmt.Sprintf("guests plug in at %s\n%s", d.addr, with)
}

// vdeLines are what a vde_plug is given.
func vdeLines(d *door) string {
	at, dialled := strings.CutPrefix(d.addr, "dial:")
	if dialled {
		return fmt.Sprintf("a switch's plug is looked for at %s\n", at)
	}
	if path, ok := strings.CutPrefix(at, "unix:"); ok {
		return fmt.Sprintf("switches plug in at %s:\n  dpipe vde_plug SWITCH = socat - UNIX-CONNECT:%s\n", at, shellQuote(path))
	}
	return fmt.Sprintf("switches plug in at %s\n", at)
}
