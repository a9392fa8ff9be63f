// Package lab brings up a few machines on a few networks from one file, as an ordinary user, in this process:
//
//	func TestShop(t *testing.T) {
//		l := lab.Up(t, "testdata/shop.yaml") // all nodes are ready; the lab ends with the test
//		r, err := l.HTTPClient().Get("http://web1/")
//		…
//		out, err := l.Node("client").Output(t.Context(), "curl", "-s", "http://web1.internal/")
//		…
//		c, err := l.Node("db").Dial(t.Context(), "tcp", "5432")
//	}
//
// What a file may say is package topology's. A network is a backend.Network; a node is one of four kinds of machine: netns,
// a command in namespaces of its own; qemu, a virtual machine; uml, a kernel that is a process; external, somebody else's.
//
// A program that is no test makes a Lab and applies a topology to it. Another topology changes what is different:
//
//	l, err := lab.New(lab.Config{Base: "shop"})
//	if err != nil {
//		return err
//	}
//	defer l.Close()
//	changes, err := l.Apply(ctx, top) // they have begun
//	err = l.Wait(ctx)                 // all is ready, or this says what is not, and why
//
// # Stations
//
//  1. topology: the file becomes a Lab, strict, with line and column.
//  2. lab.go: what runs, and what another file changes of it. life.go: a node from its start to its stop. wait.go: what makes
//     it ready.
//  3. network.go: a topology's network becomes a backend's.
//  4. machine.go: what all kinds of nodes are to the lab; netns_linux.go, qemu.go, uml.go, external.go.
//  5. console.go: what a node says, bounded, for all who watch. cloudinit.go: what a guest reads as it boots.
//
// # What ends, and how
//
// Close ends all of it: nodes are asked first, for ten seconds, then killed; networks are closed; folders removed. A node
// whose command or machine ends by itself is ended or failed, and left to be looked at. One node's failure is not the
// others', but for those that start after it. The same topology applied again starts what has failed.
//
// It opens no socket for control, reads no flags and keeps no state: that is the daemon's (cmd/vmnetd), which runs one lab a
// process. It brings no image of any distribution.
package lab
