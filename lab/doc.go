// Package lab brings up a few machines on a few networks from one file, as an ordinary user, in this process:
//
//	func TestShop(t *testing.T) {
//		l := lab.Up(t, "testdata/shop.yaml")
//		c, err := l.Node("web1").Dial(t.Context(), "tcp", "80")
//		…
//		out, err := l.Node("client").Output(t.Context(), "curl", "-s", "http://web1.internal/")
//	}
//
// What a file may say is package topology's. A network is a backend.Network; a node is one of four kinds of machine: netns,
// qemu, uml, external.
//
// # Stations
//
//  1. topology: the file becomes a Lab, strict, with line and column.
//  2. lab.go: what runs, and what another file changes of it. Start order, and what makes a node ready: wait.go.
//  3. network.go: a topology's network becomes a backend's.
//  4. machine.go: what all kinds of nodes are to the lab; netns_linux.go, qemu.go, uml.go, external.go.
//  5. console.go: what a node says, bounded, for all who watch. cloudinit.go: what a guest reads as it boots.
//
// It opens no socket for control and keeps no state: that is the daemon's (cmd/vmnetd), which runs one lab a process.
package lab
