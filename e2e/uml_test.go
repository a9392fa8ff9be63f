//go:build linux

package e2e

import (
	"context"
	"net"
	"testing"

	"github.com/vmnetd/vmnetd/e2e/vm"
)

// umlRows are guests whose kernel is a process: User Mode Linux.
var umlRows = []transport{
	{name: "uml-bess", brief: true, needs: umlNeed, starts: inUML, boots: true, door: bessDoor, mtu: "1500", bytes: 100_000_000, parallel: 20},
}

func umlNeed(t *testing.T) { needTools(t, vm.UMLProgram) }

// inUML starts a User Mode Linux at a seqpacket socket.
func inUML(t *testing.T, _ *lab, at attach, name string, mac net.HardwareAddr) Guest {
	t.Helper()
	u, err := vm.StartUML(context.WithoutCancel(t.Context()), name, "transport=bess,dst="+at.unix+",depth=128,gro=1", mac, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		u.Close()
		if t.Failed() {
			t.Log(u.Console())
		}
	})
	return u
}
