//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/e2e/stream"
	"github.com/vmnetd/vmnetd/e2e/traffic"
	"github.com/vmnetd/vmnetd/e2e/vm"
)

// TestVsock: guests come by AF_VSOCK, which takes a kernel that has it: all of it runs in a QEMU guest, vmnetd as its
// user nobody, and guests of that guest, which come to it over vsock_loopback. One port takes all that tell themselves
// apart.
func TestVsock(t *testing.T) {
	t.Parallel()
	needQEMU(t)
	program := filepath.Join(base, "vmnetd-static")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, "github.com/vmnetd/vmnetd/cmd/vmnetd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building vmnetd: %v: %s", err, said)
	}
	body, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	kernel, initrd, err := vm.ImageWith(t.Context(), t.Logf, map[string][]byte{"bin/vmnetd": body}, "vsock_loopback", "tun")
	if err != nil {
		t.Fatal(err)
	}
	g := vm.Boot(t, vm.Config{Name: "host", Kernel: kernel, Initrd: initrd, Memory: 512})
	g.Must(t, "echo nobody:x:65534:65534:nobody:/:/bin/sh >>/etc/passwd; mkdir -p /run/v && chown 65534 /run/v && chmod 700 /run/v")
	g.MustStart(t, `exec su nobody -c 'exec env XDG_RUNTIME_DIR=/run/v vmnetd serve --vde vsock:local:1025 --qemu vsock:local:1024 -p 8080:80' >/run/v/out 2>&1`)
	wait(t, "vmnetd serve in the guest", func() error {
		out := g.Must(t, "cat /run/v/out || true")
		if !strings.Contains(out, "\ncontrol ") {
			return fmt.Errorf("it says %q", out)
		}
		return nil
	})
	tap := func(f stream.Framing, port int) string {
		return fmt.Sprintf("guest tap -framing %s -iface eth0 vsock:1:%d", f.Name, port)
	}
	for name, client := range map[string]string{
		"qemu": tap(stream.QEMU, 1024), "connect": tap(stream.Forwarder, 1024), "hyperkit": tap(stream.HyperKit, 1024),
		"vde": tap(stream.VDE, 1025), "vmnetd guest": "vmnetd guest --to vsock:1:1024 --ifname eth0",
	} {
		t.Run(name, func(t *testing.T) {
			p := g.MustStart(t, "exec %s >/run/client 2>&1", client)
			wait(t, "the interface", func() error {
				_, code, err := g.Run(t.Context(), "ip link set eth0 up")
				if err == nil && code != 0 {
					err = fmt.Errorf("exit status %d: %s", code, g.Must(t, "cat /run/client"))
				}
				return err
			})
			if name == "vmnetd guest" {
				wait(t, "its lease", func() error {
					if out := g.Must(t, "ip -4 addr show eth0"); !strings.Contains(out, "inet 10.0.2.") {
						return fmt.Errorf("%s%s", out, g.Must(t, "cat /run/client"))
					}
					return nil
				})
			} else {
				g.Must(t, "udhcpc -i eth0 -f -q -n -t 8 -T 1 -s /etc/udhcpc >/run/udhcpc.log 2>&1 || { cat /run/udhcpc.log; false; }")
			}
			if got := g.Must(t, "vmnetd vm ls -o wide --control /run/v/vmnetd/control.sock"); !strings.Contains(got, "vsock:local:") {
				t.Errorf("vm ls: %s", got)
			}
			g.Must(t, "ping -c 1 -W 5 10.0.2.2")
			if got := g.Must(t, "nslookup gateway.internal 10.0.2.3"); !strings.Contains(got, "10.0.2.2") {
				t.Errorf("nslookup: %s", got)
			}
			if got := g.Must(t, "wget -q -O - http://127.0.0.1:8080/"); got != "hello from host\n" {
				t.Errorf("forward: %q", got)
			}
			const size = 5_000_000
			l := g.MustStart(t, "exec guest listen echo 127.0.0.1:0")
			defer l.Kill()
			var at struct{ Listening netip.AddrPort }
			(&job{l, bufio.NewScanner(l.Stdout)}).next(t, &at)
			var r traffic.Report
			g.JSON(t, &r, "guest tcp -send %d -seed 7 10.0.2.2:%d", size, at.Listening.Port())
			if r.End != "eof" || r.Received != size || r.ReceivedHash != traffic.Hash(7, size) {
				t.Errorf("there and back: %d of %d bytes, hash right: %v, end %q (%s)", r.Received, size, r.ReceivedHash == traffic.Hash(7, size), r.End, r.Error)
			}
			p.Kill()
			wait(t, "the guest has gone", func() error {
				if out := g.Must(t, "vmnetd vm ls -o wide --control /run/v/vmnetd/control.sock"); strings.Count(out, "\n") > 1 {
					return fmt.Errorf("%s", out)
				}
				return nil
			})
		})
	}
}
