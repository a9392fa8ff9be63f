// Package vfkit turns sockets that keep messages apart into guests' wires: one Ethernet frame is one message, with
// nothing before it. So speak vfkit, krunkit and libkrun's unixgram (after a greeting of four bytes, VFKT), QEMU's
// -netdev dgram, GNS3's and VirtualBox's UDP tunnels, and, over seqpacket sockets, User Mode Linux's and slirp4netns'
// "bess".
//
// A connected socket is one guest's wire:
//
//	err = network.Serve(ctx, vfkit.NewLink(conn, vfkit.Options{}), "vm")
//
// A socket that is not connected is any number of guests', told apart by their addresses:
//
//	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: "/run/user/1000/vfkit.sock"})
//	if err != nil {
//		return err
//	}
//	l := vfkit.Listen(conn, vfkit.Options{MTU: 1500})
//	for {
//		guest, peer, err := l.Accept()
//		if err != nil {
//			return err
//		}
//		go network.Serve(ctx, guest, "vfkit"+peer)
//	}
//
// The greeting may come or not, first or later. It knows no addresses of the guests' and keeps no file: who made a
// socket's path takes it away.
package vfkit

import (
	"time"

	"github.com/vmnetd/vmnetd/backend/link"
)

const (
	// minFrame is an Ethernet header (IEEE 802.3 §3.1.1). Shorter messages are passed over, the greeting among them.
	minFrame = 14
	// longest is room for a message: a byte more than any frame, to tell what was cut.
	longest = link.MaxFrame + 1
	// maxUDP is the longest message over UDP: 65,535 less IPv4's and UDP's headers (RFC 768).
	maxUDP = 65535 - 20 - 8

	// What vfkit and gvproxy ask for. Linux gives twice what net.core.wmem_max and rmem_max allow of it. On macOS the
	// former is the longest message of a unix socket, and the latter is what waits to be read.
	sendBuffer    = 1 << 20
	receiveBuffer = 4 << 20
)

// greeting is vfkit's first message.
const greeting = "VFKT"

// Options say what is known of guests.
type Options struct {
	// MTU, if not 0, is the guests': no frame is sent to them that is longer than such a guest's, a VLAN tag included.
	// Apple's and libkrun's guests have buffers of that size.
	MTU int
	// Offload says that frames may have partial checksums and be longer than the MTU, as libkrun's are with
	// offloading=on: the guest's kernel is trusted with them.
	Offload bool
	// Refused, if not nil, is told of datagrams that make no guest. It is called for each, by one goroutine, and must
	// not wait.
	Refused func(error)
	// Again, if not nil, gives Listen a socket for those who come after a guest that hears no other socket than this,
	// so that each such guest has one of its own: see Listener.
	Again func() (Conn, error)
}

// mostOf is the longest frame that is written, 0 for any.
func (o *Options) mostOf(udp bool) int {
	most := 0
	if o.MTU > 0 {
		most = o.MTU + minFrame + 4 // a VLAN tag (IEEE 802.1Q)
	}
	if udp && (most == 0 || most > maxUDP) {
		most = maxUDP
	}
	return most
}

// gives is what frames of the guests' may lack.
func (o *Options) gives() link.Offloads {
	if o.Offload {
		return link.Checksums | link.Segments
	}
	return 0
}

// pause is how a writer waits for a socket that cannot tell when it is ready: longer each time, so that a guest that
// does not read for minutes costs nothing, and one that was busy for a moment is soon served.
type pause time.Duration

const (
	pauseLeast = 50 * time.Microsecond
	pauseMost  = 20 * time.Millisecond
)

func (p *pause) next() time.Duration {
	*p = min(max(2**p, pause(pauseLeast)), pause(pauseMost))
	return time.Duration(*p)
}

// wait waits, or returns false when done is closed before.
func (p *pause) wait(done <-chan struct{}) bool {
	t := time.NewTimer(p.next())
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-done:
		return false
	}
}

// setBuffers asks for the buffers above. What the system does not give, it does not give.
func setBuffers(c any) {
	if s, ok := c.(interface {
		SetReadBuffer(int) error
		SetWriteBuffer(int) error
	}); ok {
		s.SetReadBuffer(receiveBuffer)
		s.SetWriteBuffer(sendBuffer)
	}
}
