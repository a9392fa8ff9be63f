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

	"github.com/vmnetd/vmnetd/e2e/traffic"
	"github.com/vmnetd/vmnetd/e2e/vm"
)

// TestGuestAgent: 'vmnetd guest' inside a QEMU guest, whose kernel has AF_VSOCK, attaches to a daemon over
// vsock_loopback; the daemon is in the same guest, since no host here has vhost_vsock.
func TestGuestAgent(t *testing.T) {
	needQEMU(t)
	program := filepath.Join(t.TempDir(), "vmnetd")
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
	g.Must(t, "mkdir -p /run/v && chmod 700 /run/v && echo before >/run/resolv")
	const control = "--control /run/v/control.sock"
	serve := func() (end func()) {
		p := g.MustStart(t, "exec env XDG_RUNTIME_DIR=/run/v vmnetd serve --qemu vsock:local:1024 -p 8080:80 "+control+" >/run/v/out 2>&1")
		wait(t, "vmnetd serve in the guest", func() error {
			if out := g.Must(t, "cat /run/v/out || true"); !strings.Contains(out, "\ncontrol ") {
				return fmt.Errorf("it says %q", out)
			}
			return nil
		})
		return func() {
			p.Kill()
			g.Must(t, "rm -f /run/v/out")
		}
	}
	end := serve()
	agent := g.MustStart(t, "echo $$ >/run/agent; exec vmnetd guest --to vsock:1:1024 --ifname eth0 --hostname box --resolv-conf /run/resolv >/run/agent.log 2>&1")
	defer agent.Kill()
	attached := func() {
		t.Helper()
		wait(t, "the agent's lease", func() error {
			out := g.Must(t, "vmnetd leases ls "+control)
			if !strings.Contains(out, "box") || !strings.Contains(out, "bound") {
				return fmt.Errorf("%s; %s", out, g.Must(t, "cat /run/agent.log"))
			}
			return nil
		})
		wait(t, "a ping and an IPv6 address", func() error {
			out, code, err := g.Run(t.Context(), "ping -c 1 -W 2 10.0.2.2 && ip -6 addr show dev eth0 scope global | grep -q inet6")
			if err == nil && code != 0 {
				err = fmt.Errorf("exit status %d: %s", code, out)
			}
			return err
		})
	}
	attached()
	if got := g.Must(t, "cat /run/resolv"); got != "search internal\nnameserver 10.0.2.3\n" {
		t.Errorf("resolv.conf is %q", got)
	}
	if got := g.Must(t, "vmnetd vm ls -o wide "+control); !strings.Contains(got, "vsock:local:") {
		t.Errorf("vm ls: %s", got)
	}
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
	end()
	end = serve() // another, which knows of no leases
	attached()
	g.Must(t, "kill $(cat /run/agent)")
	wait(t, "the agent's end", func() error {
		out, code, err := g.Run(t.Context(), "! ip link show eth0 2>/dev/null")
		if err == nil && code != 0 {
			err = fmt.Errorf("the interface is there: %s", out)
		}
		return err
	})
	wait(t, "resolv.conf as it was", func() error {
		if got := g.Must(t, "cat /run/resolv"); got != "before\n" {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
	end()
}
