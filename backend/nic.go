package backend

// Station 4, the NIC: the gateway's side of a guest's wire, a gVisor LinkEndpoint. Packets from the stack go to the
// port's queue as they are, up to 64 KiB; the port's writer has them cut to the MTU (split.go). Runs on whatever
// goroutine the stack sends from; the queue has the lock.

import (
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vmnetd/vmnetd/backend/link"
)

type nic struct {
	port *port

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher
}

var _ stack.GSOEndpoint = (*nic)(nil)
var _ stack.LinkEndpoint = (*nic)(nil)

func (n *nic) MTU() uint32                             { return uint32(n.port.stackMTU()) }
func (n *nic) SetMTU(uint32)                           {}
func (n *nic) MaxHeaderLength() uint16                 { return 0 } // the writer makes the Ethernet header in its own memory
func (n *nic) LinkAddress() tcpip.LinkAddress          { return tcpip.LinkAddress(n.port.net.cfg.GatewayMAC) }
func (n *nic) SetLinkAddress(tcpip.LinkAddress)        {}
func (n *nic) Wait()                                   {}
func (n *nic) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (n *nic) AddHeader(*stack.PacketBuffer)           {}
func (n *nic) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (n *nic) Close()                                  {}
func (n *nic) SetOnCloseAction(func())                 {}
func (n *nic) GSOMaxSize() uint32                      { return 65535 } // more than IPv4's total length holds is refused by its header check
func (n *nic) SupportedGSO() stack.SupportedGSO        { return stack.HostGSOSupported }
func (n *nic) Capabilities() stack.LinkEndpointCapabilities {
	// Both checksums are ours: split.go makes them. A guest's are not verified, since a local socket does not
	// corrupt and libkrun's guests send partial ones.
	return stack.CapabilityTXChecksumOffload | stack.CapabilityRXChecksumOffload
}

func (n *nic) Attach(d stack.NetworkDispatcher) {
	n.mu.Lock()
	n.dispatcher = d
	n.mu.Unlock()
}

func (n *nic) IsAttached() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.dispatcher != nil
}

// WritePackets implements stack.LinkWriter.
func (n *nic) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	defer n.port.guard("nic")
	all := pkts.AsSlice()
	for _, p := range all {
		p.IncRef()
		n.port.queue.push(item{pkt: p, size: p.Size()})
	}
	return len(all), nil
}

// copyBelow is up to which size a frame is copied out of the memory it was read into: a quarter of a chunk. A packet
// that the stack keeps for long keeps its whole chunk, and a guest could choose one small packet of each; so it costs
// four times at most what the stack counts for it. Only frames of jumbo MTUs are longer, and those are worth it.
const copyBelow = link.ChunkSize / 4

// deliver hands the packet at s, behind the Ethernet header, to the stack.
func (n *nic) deliver(proto tcpip.NetworkProtocolNumber, b *link.Batch, s link.Span) {
	var payload buffer.Buffer
	if s.Len() <= copyBelow {
		v := newView(b, s.Len())
		b.AppendTo(v.AsSlice()[:0], s)
		payload = buffer.MakeWithView(v)
	} else {
		// The headers lie in memory of their own: the stack wants to write there, and would copy the chunk for it.
		head := buffer.NewView(headLen)
		b.Pieces(s.Upto(headLen), func(_ *link.Chunk, _ int, part []byte) { head.Write(part) })
		payload = buffer.MakeWithView(head)
		share(&payload, b, s.From(headLen))
	}
	n.hand(proto, payload)
}

// newView returns n bytes for the stack, to be written over: of the batch's memory where they take most of a piece,
// else of gVisor's.
func newView(b *link.Batch, n int) *buffer.View {
	if n <= link.ChunkSize/2 {
		return buffer.NewViewSize(n)
	}
	c := b.Alloc()
	v := c.Ref.(*buffer.View)
	b.Free(link.Chunk{Ref: v.Clone()}) // which is used when the stack has let go of v
	v.CapLength(n)
	return v
}

// share appends the bytes at s without a copy: their memory is not used again before the stack lets go of it.
func share(to *buffer.Buffer, b *link.Batch, s link.Span) {
	b.Pieces(s, func(c *link.Chunk, off int, part []byte) {
		v := c.Ref.(*buffer.View).Clone()
		c.Kept = true
		v.TrimFront(off)
		v.CapLength(len(part))
		to.Append(v)
	})
}

// hand gives the stack a packet, with its memory.
func (n *nic) hand(proto tcpip.NetworkProtocolNumber, payload buffer.Buffer) {
	n.mu.RLock()
	d := n.dispatcher
	n.mu.RUnlock()
	if d == nil {
		payload.Release()
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: payload})
	d.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// handTCP gives the stack's TCP a segment whose IP header was seen to be in order, without a way through its IP layer,
// which would copy what lies with the header.
func (n *nic) handTCP(proto tcpip.NetworkProtocolNumber, payload buffer.Buffer, ip, tcp int) {
	n.mu.RLock()
	d, ok := n.dispatcher.(stack.TransportDispatcher)
	n.mu.RUnlock()
	if !ok {
		n.hand(proto, payload)
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: payload})
	pkt.NetworkProtocolNumber, pkt.TransportProtocolNumber = proto, header.TCPProtocolNumber
	pkt.NICID, pkt.InputNICID = nicID, nicID
	pkt.RXChecksumValidated = true // as for all: see Capabilities
	pkt.NetworkHeader().Consume(ip)
	pkt.TransportHeader().Consume(tcp)
	d.DeliverTransportPacket(header.TCPProtocolNumber, pkt)
	pkt.DecRef()
}

// newBatch returns a Batch whose memory gVisor's buffers can share.
func newBatch() *link.Batch {
	r := &recycler{}
	return &link.Batch{Alloc: r.take, Free: r.give, Shrink: r.drop}
}
