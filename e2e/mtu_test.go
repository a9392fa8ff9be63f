//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/e2e/traffic"
	"github.com/vmnetd/vmnetd/e2e/vm"
)

const mtuNet6 = "fd12:3456:789a::/64"

var mtuGateway = gateway{gw4: netip.MustParseAddr("10.0.2.2"), gw6: netip.MustParseAddr("fd12:3456:789a::2")}

// interfaceMTU is what the guest's card has.
func (g *guest) interfaceMTU(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(g.run(t, "cat /sys/class/net/eth0/mtu"))
}

// large sends datagrams and pings that are longer than an Ethernet frame, and their answers.
func (b *bench) large(t *testing.T) {
	t.Helper()
	for _, a := range []string{world4, world6} {
		echo := b.world.echoUDP(t, b.behind(b.world, a))
		var r datagrams
		b.g.json(t, &r, "guest udp -size 8000 -count 5 %s", target(a, echo))
		if r.Answered != 5 || r.Wrong != 0 {
			t.Errorf("5 datagrams of 8000 bytes to %s: %+v", a, r)
		}
	}
	for _, a := range []netip.Addr{b.gw4, b.gw6} {
		b.g.run(t, "ping -c 1 -W 5 -s 8000 %s", a)
	}
}

// TestMTUOfCards: real drivers of many cards, each with the MTU that its card carries, by run and by serve.
func TestMTUOfCards(t *testing.T) {
	t.Parallel()
	needQEMU(t)
	kernel, initrd, err := vm.CardsImage(t.Context(), t.Logf, "e1000", "8139cp", "vmxnet3", "xhci_pci", "cdc_ether", "rndis_host")
	if err != nil {
		t.Fatal(err)
	}
	const most, some = 20_000_000, 1_000_000
	for _, tt := range []struct {
		name   string
		flags  string // of vmnetd
		device string // "" for what run adds by itself
		static bool   // the guest does not ask DHCP
		told   string // by DHCP
		has    string // the guest's card, then
		bytes  int64
	}{
		{"run virtio", "run", "", false, "65520", "65520", most},
		{"run e1000", "run", "e1000", false, "1500", "1500", most},
		{"run own virtio", "run", "virtio-net-pci", false, "65520", "65520", some},
		{"run virtio that ignores it", "run", "virtio-net-pci", true, "", "1500", some},
		{"run virtio that goes by its card alone", "run", "", true, "", "65520", some},
		{"run virtio with an MTU of the user's", "run", "virtio-net-pci,host_mtu=4000", false, "4000", "4000", some},
		{"run e1000 that is told 65520", "run --mtu 65520", "e1000", false, "65520", "1500", most},
		{"run virtio at 9000", "run --mtu 9000", "", false, "9000", "9000", some},
		{"serve virtio", "serve", "virtio-net-pci", false, "65520", "65520", most},
		{"serve virtio without mergeable buffers", "serve", "virtio-net-pci,mrg_rxbuf=off", false, "1500", "1500", some},
		{"serve e1000", "serve", "e1000", false, "1500", "1500", most},
		{"serve rtl8139", "serve", "rtl8139", false, "1500", "1500", some},
		{"serve vmxnet3", "serve", "vmxnet3", false, "65520", "1500", some}, // it hears what its driver then refuses
		{"serve usb-net", "serve", "usb-net,bus=usb.0", false, "1500", "1500", some},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			flags := append(strings.Fields(tt.flags), "--net6", mtuNet6)
			cfg := vm.Config{Name: "alpha", Kernel: kernel, Initrd: initrd, Memory: 256, Env: []string{"XDG_RUNTIME_DIR=" + l.path("run")}}
			if tt.static {
				cfg.Net = "none"
			}
			netdev := "vmnetd,id=n"
			if flags[0] == "run" {
				cfg.Wrap = append([]string{"unshare", "-m", "/bin/sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, l.resolvConf, l.self(t)}, append(flags, "--")...)
			} else {
				netdev = "stream,id=n,server=off,addr.type=unix,addr.path=" + l.serve(t, flags[1:]...).unix
			}
			if tt.device != "" {
				model, more, _ := strings.Cut(tt.device, ",")
				device := model + ",netdev=n,mac=" + vm.MAC("alpha", 0).String()
				if more != "" {
					device += "," + more
				}
				cfg.Args = []string{"-netdev", netdev}
				if model == "usb-net" {
					cfg.Args = append(cfg.Args, "-device", "qemu-xhci,id=usb")
				} else {
					device += ",romfile="
				}
				cfg.Args = append(cfg.Args, "-device", device)
			}
			g := &guest{Guest: startQEMU(t, l, cfg), name: "alpha"}
			if strings.HasPrefix(tt.device, "usb-net") { // it comes up when init is over, by the name of its bus
				g.run(t, "while [ ! -e /sys/class/net/usb0 ]; do sleep 0.05; done; ip link set usb0 name eth0")
				g.run(t, "%s", dhcpUp("alpha"))
			}
			if tt.static {
				g.run(t, "ip addr add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2")
			} else {
				wait(t, "a lease", func() error {
					lease := g.lease(t)
					if lease["ip"] == "" {
						return errors.New(g.run(t, "cat /run/udhcpc.log"))
					}
					if lease["mtu"] != tt.told {
						t.Errorf("DHCP tells an MTU of %s, want %s", lease["mtu"], tt.told)
					}
					return nil
				})
			}
			if got := g.interfaceMTU(t); got != tt.has {
				t.Errorf("the card has an MTU of %s, want %s", got, tt.has)
			}
			prefix6 := netip.MustParsePrefix(mtuNet6)
			wait(t, "an IPv6 address and route", func() error {
				if out := g.run(t, "ip -6 route show default"); !g.slaac(t, prefix6).IsValid() || !strings.Contains(out, "via fe80:") {
					return errors.New(g.run(t, "ip -6 addr; ip -6 route"))
				}
				return nil
			})
			b := &bench{lab: l, gateway: mtuGateway, g: g}
			b.bytes(t, world4, l.world, tt.bytes)
			b.bytes(t, world6, l.world, tt.bytes)
			b.large(t)
			if got := g.interfaceMTU(t); got != tt.has {
				t.Errorf("the card has an MTU of %s later, want %s", got, tt.has)
			}
			t.Logf("told %q, card %s, IPv6 %s", tt.told, tt.has, strings.TrimSpace(g.run(t, "cat /proc/sys/net/ipv6/conf/eth0/mtu")))
		})
	}
}

// TestMTUOfTwoGuests: two guests of one network with an MTU each, and what they say to each other.
func TestMTUOfTwoGuests(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	d := l.serve(t)
	at := attach{unix: d.unix}
	large := kernelUnix.boot(t, d, at, "large")
	// A TAP takes whatever comes; a card of the old kind drops what is longer than its MTU.
	small := &guest{name: "small", mac: vm.MAC("small", 0), row: kernelUnix, d: d}
	k := startKernelGuest(t, small.name, small.mac)
	small.Guest = k
	k.plug(t, l, at)
	k.br.most.Store(1514)
	small.run(t, "%s", dhcpUp(small.name))
	small.configured(t)
	for g, want := range map[*guest]string{large: "65520", small: "1500"} {
		if got := g.interfaceMTU(t); got != want || g.lease(t)["mtu"] != want {
			t.Fatalf("guest %s has an MTU of %s and was told %s, want %s", g.name, got, g.lease(t)["mtu"], want)
		}
	}
	for _, g := range []*guest{large, small} {
		b := &bench{lab: l, daemon: d, gateway: d.gateway(t), g: g}
		for _, a := range []string{world4, world6} {
			b.bytes(t, a, l.world, 20_000_000)
		}
		b.large(t)
	}
	for g, want := range map[*guest]int{large: 65520, small: 1500} {
		if i, ok := g.info(t); !ok || i.MTU != want {
			t.Errorf("guest %s is shown to take %d, want %d", g.name, i.MTU, want)
		}
	}
	if r := large.router(t); r.MTU != 65520 {
		t.Errorf("the large guest is advertised %d", r.MTU)
	}
	if r := small.router(t); r.MTU != 1500 {
		t.Errorf("the small guest is advertised %d", r.MTU)
	}
	for _, x := range []struct{ from, to *guest }{{large, small}, {small, large}} {
		for _, a := range []netip.Addr{x.to.addr4, x.to.addr6} {
			// The first that is too long is answered with what is not, and from then on they are cut.
			wait(t, fmt.Sprintf("a long ping from %s to %s", x.from.name, a), func() error {
				out, errs, code, err := x.from.try(t, "ping -c 1 -W 1 -s 8000 %s", a)
				if err != nil || code != 0 {
					return fmt.Errorf("%v %s%s", err, out, errs)
				}
				return nil
			})
			port, sink := x.to.listen(t, "guest listen sink %s", net.JoinHostPort(a.String(), "0"))
			var tcp traffic.Report
			x.from.json(t, &tcp, "guest tcp -send 20000000 -seed 3 %s", netip.AddrPortFrom(a, port))
			var got traffic.Report
			if sink.next(t, &got); tcp.End != "eof" || got.Received != 20_000_000 || got.ReceivedHash != traffic.Hash(3, 20_000_000) {
				t.Errorf("TCP from %s to %s: %+v, %+v", x.from.name, a, tcp, got)
			}
			port, _ = x.to.listen(t, "guest udp-echo %s", net.JoinHostPort(a.String(), "0"))
			var r datagrams
			x.from.json(t, &r, "guest udp -size 8000 -count 5 %s", netip.AddrPortFrom(a, port))
			if r.Answered != 5 || r.Wrong != 0 {
				t.Errorf("datagrams from %s to %s: %+v", x.from.name, a, r)
			}
		}
	}
}
