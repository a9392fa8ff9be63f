//go:build linux

package lab

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/lab/topology"
)

// User Mode Linux with two interfaces: names, addresses, agent, console.
func TestUML(t *testing.T) {
	if _, err := exec.LookPath(umlProgram); err != nil {
		t.Skip(err) // e2e has it in CI
	}
	needQEMU(t)
	iface := func(name, mac, addr string) topology.Interface {
		hw, err := net.ParseMAC(mac)
		if err != nil {
			t.Fatal(err)
		}
		return topology.Interface{Name: name, Network: "inner", MAC: hw, Addrs: []netip.Prefix{netip.MustParsePrefix(addr)}}
	}
	// The second is called as the first's driver would have it: they are told apart by MAC.
	b := standalone(t, &topology.Node{Name: "um", Kind: topology.KindUML, Forwarding: true, Interfaces: []topology.Interface{
		iface("eth1", "52:54:00:00:00:01", "10.9.0.1/24"), iface("vec0", "52:54:00:00:00:02", "fd09::2/64")}}, topology.Network{Name: "inner"})
	m, err := newUML(b)
	if err != nil {
		t.Fatal(err)
	}
	startAlone(t, m)
	awaitAgent(t, m)
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	code, err := m.exec(ctx, Command{Args: []string{"sh", "-c", "hostname; ip -o addr; cat /proc/sys/net/ipv4/ip_forward; cat >/dev/console"},
		Stdin: strings.NewReader("said on the console\n"), Stdout: &out, Stderr: &out})
	if err != nil || code != 0 {
		t.Fatalf("status %d, %v: %s", code, err, &out)
	}
	for _, want := range []string{"um\n", "eth1    inet 10.9.0.1/24", "vec0    inet6 fd09::2/64", "\n1\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	awaitText(t, b.console, "said on the console")
	if len(m.pids()) != 1 {
		t.Errorf("pids %v", m.pids())
	}
}
