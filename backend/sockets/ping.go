package sockets

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Ping sends one echo request and waits for its reply.
func Ping(ctx context.Context, s *stack.Stack, dst netip.Addr, seq uint16, data []byte) error {
	proto, kind, reply := icmp.ProtocolNumber4, byte(header.ICMPv4Echo), byte(header.ICMPv4EchoReply)
	if dst.Is6() {
		proto, kind, reply = icmp.ProtocolNumber6, byte(header.ICMPv6EchoRequest), byte(header.ICMPv6EchoReply)
	}
	fail := func(err error) error {
		return &net.OpError{Op: "ping", Net: "icmp", Addr: &net.IPAddr{IP: dst.AsSlice()}, Err: err}
	}
	wq := new(waiter.Queue)
	ep, terr := s.NewEndpoint(proto, protocol(dst), wq)
	if terr != nil {
		return fail(named(terr))
	}
	defer ep.Close()
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if terr = ep.Connect(full(netip.AddrPortFrom(dst, 0))); terr != nil {
		return fail(named(terr))
	}
	m := payload(append(make([]byte, header.ICMPv4MinimumSize), data...)) // the identifier is the stack's to choose
	m[0] = kind
	binary.BigEndian.PutUint16(m[6:], seq)
	if _, terr = ep.Write(&m, tcpip.WriteOptions{}); terr != nil {
		return fail(named(terr))
	}
	for {
		var b bytes.Buffer
		_, terr := ep.Read(&b, tcpip.ReadOptions{})
		switch terr.(type) {
		case nil:
			if r := b.Bytes(); len(r) >= 8 && r[0] == reply && binary.BigEndian.Uint16(r[6:]) == seq && bytes.Equal(r[8:], data) {
				return nil
			}
			continue
		case *tcpip.ErrWouldBlock:
		default:
			return fail(named(terr))
		}
		select {
		case <-ready:
		case <-ctx.Done():
			return fail(context.Cause(ctx))
		}
	}
}
