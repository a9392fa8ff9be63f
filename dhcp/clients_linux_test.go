package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Clients that others wrote, against this server, over a wire:
//
//	namespace vmnetd-dhcp-s          namespace vmnetd-dhcp-c
//	  this process, a packet socket    dhclient -4, dhclient -6, busybox udhcpc
//	  s0 10.0.2.2 fd00:2::2  <-------> c0 (veth)
//
// The kernel answers ARP and neighbour solicitations for the gateway; all DHCP is ours.
type wire struct {
	*lab
	sock     *os.File
	mac      net.HardwareAddr
	ll       netip.Addr
	server   string // namespace
	client   string
	dir      string
	seen     chan string // what the server was sent and what it answered
	script   string
	scripted string // what the clients' script wrote
}

func needs(t *testing.T, tools ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes two network namespaces and a packet socket")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (Debian: iproute2, isc-dhcp-client, busybox)", tool)
		}
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func newWire(t *testing.T) *wire {
	t.Helper()
	w := &wire{lab: newLab(t, func(c *Config) { c.InUse = nil; c.Now = nil }), dir: t.TempDir(), seen: make(chan string, 1000)}
	w.server, w.client = fmt.Sprintf("vmnetd-dhcp-s%d", os.Getpid()), fmt.Sprintf("vmnetd-dhcp-c%d", os.Getpid())
	for _, ns := range []string{w.server, w.client} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Skipf("needs network namespaces: %v: %s", err, out)
		}
		t.Cleanup(func() { run(t, "ip", "netns", "del", ns) })
		// A link-local address that is usable at once: duplicates cannot be on a wire of two.
		run(t, "ip", "netns", "exec", ns, "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad; ip link set lo up")
	}
	run(t, "ip", "-n", w.server, "link", "add", "s0", "type", "veth", "peer", "name", "c0", "netns", w.client)
	run(t, "ip", "-n", w.server, "addr", "add", "10.0.2.2/24", "dev", "s0")
	run(t, "ip", "-n", w.server, "-6", "addr", "add", "fd00:2::2/64", "dev", "s0", "nodad")
	run(t, "ip", "-n", w.server, "link", "set", "s0", "up")
	run(t, "ip", "-n", w.client, "link", "set", "c0", "address", macA.String())
	run(t, "ip", "-n", w.client, "link", "set", "c0", "up")
	for ns, dev := range map[string]string{w.server: "s0", w.client: "c0"} { // the kernel sees to these when the carrier is there
		for deadline := time.Now().Add(5 * time.Second); !strings.Contains(run(t, "ip", "-n", ns, "-6", "addr", "show", "dev", dev, "-tentative"), "fe80:"); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Skipf("needs IPv6: %s has no link-local address after 5 s", dev)
			}
		}
	}
	w.listen()

	w.scripted = filepath.Join(w.dir, "script.log")
	w.script = filepath.Join(w.dir, "script")
	// One script for both: dhclient says $reason and new_ip_address, udhcpc says $1 and ip.
	text := `#!/bin/sh
exec >>` + w.scripted + ` 2>&1
echo "${reason:-$1} addr=$new_ip_address$new_ip6_address$ip mask=$new_subnet_mask$subnet router=$new_routers$router dns=$new_domain_name_servers$new_dhcp6_name_servers$dns domain=$new_domain_name$domain search=$new_domain_search$new_dhcp6_domain_search$search mtu=$new_interface_mtu$mtu lease=$new_dhcp_lease_time$lease"
case "${reason:-$1}" in
BOUND|REBOOT|RENEW|REBIND|bound|renew) ip addr replace $new_ip_address$ip/24 dev c0 ;;
BOUND6|REBOOT6|RENEW6|REBIND6) ip -6 addr replace $new_ip6_address/128 dev c0 ;;
RELEASE|EXPIRE|deconfig) ip -4 addr flush dev c0 ;;
esac
exit 0
`
	if err := os.WriteFile(w.script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return w
}

// listen opens the packet socket in the server's namespace and serves until the test ends.
func (w *wire) listen() {
	w.Helper()
	type opened struct {
		sock   *os.File
		ifi    *net.Interface
		addrs  []net.Addr
		closes []io.Closer
		err    error
	}
	ch := make(chan opened)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with its namespace
		var o opened
		defer func() { ch <- o }()
		ns, err := os.Open("/run/netns/" + w.server)
		if err != nil {
			o.err = err
			return
		}
		defer ns.Close()
		if o.err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); o.err != nil {
			return
		}
		if o.ifi, o.err = net.InterfaceByName("s0"); o.err != nil {
			return
		}
		if o.addrs, o.err = o.ifi.Addrs(); o.err != nil {
			return
		}
		// Nobody reads these: they keep the kernel from calling the ports unreachable.
		for _, a := range []string{"0.0.0.0:67", "[::]:547"} {
			c, err := net.ListenPacket("udp", a)
			if err != nil {
				o.err = err
				return
			}
			o.closes = append(o.closes, c)
		}
		all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) // network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all))
		if err != nil {
			o.err = err
			return
		}
		o.err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: o.ifi.Index})
		o.sock = os.NewFile(uintptr(fd), "s0")
	}()
	o := <-ch
	if o.err != nil {
		w.Fatal(o.err)
	}
	w.sock, w.mac = o.sock, o.ifi.HardwareAddr
	for _, a := range o.addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsLinkLocalUnicast() {
			w.ll = p.Addr()
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, err := o.sock.Read(buf)
			if err != nil {
				return // closed
			}
			w.frame(buf[:n])
		}
	})
	w.Cleanup(func() {
		o.sock.Close()
		wg.Wait()
		for _, c := range o.closes {
			c.Close()
		}
	})
}

// frame hands a DHCP message over and puts the answer into a frame.
func (w *wire) frame(f []byte) {
	if len(f) < 14 || string(f[6:12]) == string(w.mac) { // what we sent is seen too
		return
	}
	mac := MAC(f[6:12])
	p := f[14:]
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0800:
		if len(p) < 20 || p[9] != 17 || len(p) < int(p[0]&15)*4+8 {
			return
		}
		u := p[int(p[0]&15)*4:]
		if binary.BigEndian.Uint16(u[2:]) != 67 {
			return
		}
		n := min(len(u), int(binary.BigEndian.Uint16(u[4:])))
		r, err := w.s.Handle4(context.Background(), "veth", mac, u[8:n])
		w.note(fmt.Sprintf("v4 type % x ->", u[8+240:8+243]), r, err)
		if r != nil {
			w.send(r, 0x0800, ip("10.0.2.2"), 67)
		}
	case 0x86dd:
		if len(p) < 48 || p[6] != 17 || binary.BigEndian.Uint16(p[42:]) != 547 {
			return
		}
		src := netip.AddrFrom16([16]byte(p[8:24]))
		r, err := w.s.Handle6(context.Background(), "veth", mac, src, p[48:])
		w.note(fmt.Sprintf("v6 type %d ->", p[48]), r, err)
		if r != nil {
			w.send(r, 0x86dd, w.ll, 547)
		}
	}
}

func (w *wire) note(what string, r *Reply, err error) {
	switch {
	case err != nil:
		what += " " + err.Error()
	case r == nil:
		what += " silence"
	default:
		what += " " + r.Type
	}
	select {
	case w.seen <- what:
	default:
	}
}

func (w *wire) send(r *Reply, etherType uint16, src netip.Addr, port uint16) {
	u := make([]byte, 8, 8+len(r.Payload))
	binary.BigEndian.PutUint16(u[0:], port)
	binary.BigEndian.PutUint16(u[2:], r.Dst.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(8+len(r.Payload)))
	u = append(u, r.Payload...)
	dst := r.Dst.Addr()
	pseudo := append(append(append(src.AsSlice(), dst.AsSlice()...), 0, 17), u[4:6]...)
	binary.BigEndian.PutUint16(u[6:], ^sum(append(pseudo, u...)))
	var h []byte
	if etherType == 0x0800 {
		h = []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0}
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(u)))
		h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
		binary.BigEndian.PutUint16(h[10:], ^sum(h))
	} else {
		h = []byte{0x60, 0, 0, 0, 0, 0, 17, 64}
		binary.BigEndian.PutUint16(h[4:], uint16(len(u)))
		h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
	}
	f := append(append(append([]byte{}, r.MAC[:]...), w.mac...), byte(etherType>>8), byte(etherType))
	if _, err := w.sock.Write(append(append(f, h...), u...)); err != nil && !errors.Is(err, os.ErrClosed) {
		w.Errorf("send: %v", err)
	}
}

func sum(b []byte) uint16 {
	var s uint32
	for i, c := range b {
		if i%2 == 0 {
			s += uint32(c) << 8
		} else {
			s += uint32(c)
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// expect waits until the server has said what is wanted, in this order, whatever else comes between.
func (w *wire) expect(wants ...string) {
	w.Helper()
	late := time.After(40 * time.Second) // dhclient -6 alone waits up to 20 s in places; nothing here takes half of this
	var got []string
	for _, want := range wants {
		for ok := false; !ok; {
			select {
			case s := <-w.seen:
				got = append(got, s)
				ok = strings.Contains(s, want)
			case <-late:
				script, _ := os.ReadFile(w.scripted)
				w.Fatalf("waited for %q of %q; saw %q; script:\n%s", want, wants, got, script)
			}
		}
	}
	w.Logf("on the wire: %q", got)
}

// configured waits until the clients' script was told so.
func (w *wire) configured(want string) {
	w.Helper()
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, _ := os.ReadFile(w.scripted)
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, want) {
				w.Logf("client: %s", strings.TrimSpace(line))
				if err := os.Truncate(w.scripted, 0); err != nil {
					w.Fatal(err)
				}
				return
			}
		}
		if time.Now().After(deadline) {
			w.Fatalf("no %q in what the script was told:\n%s", want, b)
		}
	}
}

// written waits until a client's file says so.
func (w *wire) written(file, want string) {
	w.Helper()
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, _ := os.ReadFile(file)
		if strings.Contains(string(b), want) {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("no %q in %s:\n%s", want, file, b)
		}
	}
}

// start runs a client in its namespace; the function returned ends it and gives back what it printed.
func (w *wire) start(name string, args ...string) (signal func(os.Signal), end func() string) {
	w.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", w.client, name}, args...)...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	once := sync.OnceValue(func() string {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		w.Logf("%s %s:\n%s", name, strings.Join(args, " "), out.String())
		return out.String()
	})
	w.Cleanup(func() { once() })
	return func(s os.Signal) {
			w.Helper()
			if err := cmd.Process.Signal(s); err != nil { // ip becomes the client by exec
				w.Error(err)
			}
		}, func() string {
			w.Helper()
			return once()
		}
}

func TestUdhcpc(t *testing.T) {
	needs(t, "ip", "busybox")
	w := newWire(t)
	args := []string{"udhcpc", "-i", "c0", "-f", "-s", w.script, "-x", "hostname:tiny", "-O", "search", "-O", "mtu"}
	signal, end := w.start("busybox", args...)
	w.expect("35 01 01 -> OFFER", "35 01 03 -> ACK")
	w.configured("bound addr=10.0.2.15 mask=255.255.255.0 router=10.0.2.2 dns=10.0.2.3 domain=internal search=vm.internal internal mtu=1500 lease=86400")
	signal(syscall.SIGUSR1)
	w.expect("35 01 03 -> ACK")
	w.configured("renew addr=10.0.2.15")
	if ls := w.s.ByName("tiny"); len(ls) != 1 || ls[0].Addr != ip("10.0.2.15") || ls[0].MAC != macA {
		t.Errorf("leases %+v", ls)
	}

	// The address goes to somebody else: the renewal is refused, and the client starts over.
	if err := w.s.Release(ip("10.0.2.15")); err != nil {
		t.Fatal(err)
	}
	reboots(bob, "10.0.2.15", acked("10.0.2.15"))(w.lab)
	signal(syscall.SIGUSR1)
	w.expect("35 01 03 -> NAK", "35 01 01 -> OFFER", "35 01 03 -> ACK")
	w.configured("bound addr=10.0.2.16")

	signal(syscall.SIGUSR2)
	w.expect("35 01 07 -> silence")
	known("10.0.2.16", Released, who{guest: "veth", mac: macA})(w.lab)
	if out := end(); !strings.Contains(out, "lease of 10.0.2.15 obtained") || !strings.Contains(out, "received DHCP NAK") {
		t.Error("udhcpc does not say so")
	}

	// A new process asks for nothing in particular and has its address back.
	_, end = w.start("busybox", append(args, "-n", "-q")...)
	w.expect("35 01 03 -> ACK")
	w.configured("bound addr=10.0.2.16")
	end()
	w.consistent()
}

func TestDhclient4(t *testing.T) {
	needs(t, "ip", "dhclient")
	w := newWire(t)
	conf := filepath.Join(w.dir, "conf")
	// A renewal after 2 s instead of the 12 hours that it is told.
	if err := os.WriteFile(conf, []byte("supersede dhcp-renewal-time 2;\nsend host-name \"isc\";\nrequest subnet-mask, broadcast-address, routers, domain-name, domain-name-servers, domain-search, host-name, interface-mtu;\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	lf := filepath.Join(w.dir, "leases")
	args := []string{"-4", "-d", "-v", "-cf", conf, "-lf", lf, "-pf", filepath.Join(w.dir, "pid"), "-sf", w.script, "c0"}
	_, end := w.start("dhclient", args...)
	w.expect("35 01 01 -> OFFER", "35 01 03 -> ACK")
	w.configured("BOUND addr=10.0.2.15 mask=255.255.255.0 router=10.0.2.2 dns=10.0.2.3 domain=internal search=vm.internal. internal. mtu=1500 lease=86400")
	w.expect("35 01 03 -> ACK")
	w.configured("RENEW addr=10.0.2.15")
	if out := end(); !strings.Contains(out, "bound to 10.0.2.15") || !strings.Contains(out, "DHCPREQUEST for 10.0.2.15 on c0 to 10.0.2.2") {
		t.Error("dhclient does not say so")
	}
	if ls := w.s.ByName("isc"); len(ls) != 1 {
		t.Errorf("leases %+v", ls)
	}

	// It restarts with its lease file: INIT-REBOOT.
	_, end = w.start("dhclient", args...)
	w.expect("35 01 03 -> ACK")
	w.configured("REBOOT addr=10.0.2.15")
	end()

	// The daemon restarts too, and has forgotten everything: the guest keeps its address.
	if err := w.s.Release(ip("10.0.2.15")); err != nil {
		t.Fatal(err)
	}
	_, end = w.start("dhclient", args...)
	w.expect("35 01 03 -> ACK")
	w.configured("REBOOT addr=10.0.2.15")
	end()

	// Meanwhile somebody else has it.
	if err := w.s.Release(ip("10.0.2.15")); err != nil {
		t.Fatal(err)
	}
	reboots(bob, "10.0.2.15", acked("10.0.2.15"))(w.lab)
	_, end = w.start("dhclient", args...)
	w.expect("35 01 03 -> NAK", "35 01 01 -> OFFER", "35 01 03 -> ACK")
	w.configured("BOUND addr=10.0.2.16")
	w.written(lf, "10.0.2.16") // it tells the script first
	if out := end(); !strings.Contains(out, "DHCPNAK") {
		t.Error("dhclient does not say so")
	}

	// -r gives it back.
	_, end = w.start("dhclient", append([]string{"-r"}, args...)...)
	w.expect("35 01 07 -> silence")
	known("10.0.2.16", Released, who{guest: "veth", mac: macA})(w.lab)
	end()
	w.consistent()
}

func TestDhclient6(t *testing.T) {
	needs(t, "ip", "dhclient")
	w := newWire(t)
	w.s.cfg.LeaseTime = 6 * time.Second // below what New allows: renewals after 3 s
	conf := filepath.Join(w.dir, "conf")
	if err := os.WriteFile(conf, []byte("request dhcp6.name-servers, dhcp6.domain-search;\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-6", "-d", "-v", "-cf", conf, "-lf", filepath.Join(w.dir, "leases"), "-pf", filepath.Join(w.dir, "pid"), "-sf", w.script, "c0"}
	const solicit, request, confirm, renew, release, inform = "v6 type 1 -> ADVERTISE", "v6 type 3 -> REPLY", "v6 type 4 -> REPLY", "v6 type 5 -> REPLY", "v6 type 8 -> REPLY", "v6 type 11 -> REPLY"
	_, end := w.start("dhclient", args...)
	w.expect(solicit, request)
	w.configured("BOUND6 addr=fd00:2::1000 mask= router= dns=fd00:2::3 domain= search=vm.internal. internal.")
	w.expect(renew)
	w.configured("RENEW6 addr=fd00:2::1000")
	end()

	_, end = w.start("dhclient", args...) // with its lease file
	w.expect(confirm)
	w.configured("BOUND6 addr=fd00:2::1000")
	end()

	_, end = w.start("dhclient", append([]string{"-r"}, args...)...)
	w.expect(release)
	known("fd00:2::1000", Released, who{guest: "veth", mac: macA})(w.lab)
	end()

	_, end = w.start("dhclient", append([]string{"-S"}, args...)...) // stateless
	w.expect(inform)
	w.configured("RENEW6 addr= mask= router= dns=fd00:2::3 domain= search=vm.internal. internal.")
	end()
	w.consistent()
}
