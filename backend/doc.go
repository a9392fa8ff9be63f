// Package backend is the network that guests plug into: a switch, a gateway with DHCP, DNS and router advertisements,
// and a gVisor stack a guest that ends its conversations on an egress.
//
//	n, err := backend.New(backend.Config{})
//	if err != nil {
//		return err
//	}
//	defer n.Close()
//	l, err := net.Listen("unix", "/run/user/1000/vm.sock")
//	if err != nil {
//		return err
//	}
//	for {
//		c, err := l.Accept()
//		if err != nil {
//			return err
//		}
//		go n.Serve(ctx, qemu.NewLink(c), "qemu")
//	}
//
// # The way a frame goes
//
// Each station is a file, in this order:
//
//  1. backend/link: the wire. Batches of whole frames. capture.go: what crosses it, written down.
//  2. port.go: one guest. Its reader, its writer, its bounded queue (queue.go).
//  3. segment.go, onward.go: the switch. Who has which MAC and address; frames between guests. finish.go: what a guest's
//     kernel has left to do on them.
//     guard.go: who a guest may be, and what one may say to another. plain.go: the switch of a network without an uplink, and
//     a wire between two. copies.go: ports that get every frame; plug.go: what a port may be.
//  4. gateway.go, ndp.go, services.go: what the gateway answers itself: ARP, neighbour discovery, DHCP.
//     nic.go, split.go: the gateway's side of the wire as the stack sees it. mtu.go: what each guest takes.
//  5. stack.go: gVisor, every option with its reason.
//  6. tcp.go, udp.go, icmp.go: where a guest's conversations end.
//  7. admit.go: the one door, with the policy and the flow table behind it. judge.go: verdicts that wait for an answer, and
//     a policy that changes.
//  8. relay.go: bytes both ways; stream_linux.go and datagram_linux.go the same on the loop. inspect.go: what a guest says
//     first, where the verdict waits for it. peer.go: whom datagrams go to.
//  9. backend/egress: host sockets, or somewhere else.
//
// The host's way in is the same path backwards: portforward accepts, dialin.go opens the flow and dials the guest.
// A program that has the network in it goes the same way: Network.DialContext to a guest (dialin.go), Network.Listen for
// what guests want of the program (inside.go). To be a guest itself, it takes package guest; to lead guests of another
// machine to some addresses only, Config.Routes.
//
// # Without an uplink
//
// Config.NoUplink is a switch and nothing else: no gateway, no services, no stack, and whatever a guest sends passes. Config.Wire
// is a cable between two. Both have the same queues, limits, captures and impairments.
//
// # Guests that route
//
// A guest may forward packets whose sources are of other networks. Its neighbours get them as they are. A conversation
// with the gateway, or by it with the world, is had with the address that the packets name; what goes back goes to the MAC that
// the router's wire showed first, so the router needs no NAT. Each guest has a stack of its own: a conversation ends when its
// packets begin to come by another router. From the host only the network's own addresses are reached. Virtual routers' MACs
// (VRRP) move, with the addresses at them; an address without such a MAC stays with the guest that showed it, and a router that is to take it over
// by itself wants a promiscuous port. Router advertisements and DHCP answers of guests pass from such a port only, or where there is no uplink.
// With StrictLeases no guest routes.
//
// # What runs and who locks
//
// A port has a reader, a writer and a DHCP goroutine for as long as its wire lives; each conversation has its own
// goroutines while it lasts, and ends with its port. A reader never waits for another guest: it pushes to queues,
// which drop. Locks, none held while another is taken but as listed: flows.Table (its own), segment.mu, tcpSide.mu,
// udpSide.mu, mapping.mu, queue.mu. Policies are asked without any of them.
//
// A panic in what runs for a guest ends that guest; contain.go says how, and what it cannot catch.
//
// # What it does not do
//
// It opens no listening socket but those of port forwards, parses no flags, and speaks no HTTP: see cmd/vmnetd and backend/control.
package backend
