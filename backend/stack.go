package backend

// Station 5, the stack: a guest's own gVisor stack, which ends its TCP and puts its fragments together. One stack a
// guest: 44 KB and 0.1 ms each, and what a guest fills or breaks in its stack is its own.

import (
	"fmt"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const nicID = 1

const (
	// tcpBuffer is how much one conversation holds each way, at most: the least that reached full speed at MTU
	// 65520. It is a ceiling; bytes present take memory, empty buffers do not.
	tcpBuffer = 4 << 20
	// timeWait frees a finished conversation's memory early: 2 MSL (RFC 9293 §3.6.1) is there for segments that
	// wander in a network, and between a guest and its gateway is one hop that keeps order. A second leaves a guest
	// whose queue dropped our last ACK time to send its FIN again (RFC 6298's least timeout).
	timeWait = time.Second
)

func init() {
	log.SetLevel(log.Warning) // gVisor's own log tells of every odd packet at Info, and guests choose how many there are
}

func newStack(ep stack.LinkEndpoint, clock tcpip.Clock, c *Config) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		Clock:            clock,
		NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
		},
	})
	if err := configure(s, ep, c); err != nil {
		s.Destroy()
		return nil, err
	}
	return s, nil
}

func configure(s *stack.Stack, ep stack.LinkEndpoint, c *Config) error {
	sndbuf := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: tcpBuffer, Max: tcpBuffer} // Max = Default: auto-tuning would double the queue and every flow's round trip
	rcvbuf := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: tcpBuffer, Max: 2 * tcpBuffer}
	moderate := tcpip.TCPModerateReceiveBufferOption(false)
	sack := tcpip.TCPSACKEnabled(true)
	recovery := tcpip.TCPRecovery(0)            // RACK's tail-loss probes take a loaded queue of 5 to 15 ms for loss
	cc := tcpip.CongestionControlOption("reno") // over 100 ms with 1 % lost it is level with Linux's cubic, and gVisor's own cubic at 0.8 of that
	tw := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sndbuf, &rcvbuf, &moderate, &sack, &recovery, &cc, &tw} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("gvisor: set %T: %s", o, err)
		}
	}
	if err := s.CreateNIC(nicID, ep); err != nil {
		return fmt.Errorf("gvisor: create nic: %s", err)
	}
	// The guest talks to addresses that are not ours, and we answer as them.
	if err := s.SetPromiscuousMode(nicID, true); err != nil {
		return fmt.Errorf("gvisor: promiscuous mode: %s", err)
	}
	if err := s.SetSpoofing(nicID, true); err != nil {
		return fmt.Errorf("gvisor: spoofing: %s", err)
	}
	for _, a := range []netip.Prefix{
		netip.PrefixFrom(c.Gateway4, c.Prefix4.Bits()), netip.PrefixFrom(c.DNS4, c.Prefix4.Bits()),
		netip.PrefixFrom(c.Gateway6, c.Prefix6.Bits()), netip.PrefixFrom(c.DNS6, c.Prefix6.Bits()),
		netip.PrefixFrom(linkLocal(c.GatewayMAC), 64),
	} {
		pa := tcpip.ProtocolAddress{Protocol: protoOf(a.Addr()), AddressWithPrefix: tcpip.AddressWithPrefix{Address: toTCPIP(a.Addr()), PrefixLen: a.Bits()}}
		if err := s.AddProtocolAddress(nicID, pa, stack.AddressProperties{}); err != nil {
			if _, dup := err.(*tcpip.ErrDuplicateAddress); !dup { // one address may be gateway and DNS
				return fmt.Errorf("gvisor: add address %s: %s", a, err)
			}
		}
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	return nil
}

func protoOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func toTCPIP(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func toNetip(a tcpip.Address) netip.Addr {
	if a.Len() == 4 {
		return netip.AddrFrom4(a.As4())
	}
	return netip.AddrFrom16(a.As16())
}

func fullAddr(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: toTCPIP(a.Addr()), Port: a.Port()}
}

// src and dst of a packet from the guest, as gVisor's demultiplexer names them.
func ends(id stack.TransportEndpointID) (src, dst netip.AddrPort) {
	return netip.AddrPortFrom(toNetip(id.RemoteAddress), id.RemotePort), netip.AddrPortFrom(toNetip(id.LocalAddress), id.LocalPort)
}

// linkLocal is the address that a station makes from its MAC (RFC 4291 appendix A).
func linkLocal(mac []byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}
