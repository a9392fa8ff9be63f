package backend

// Copies of every frame, for ports that get them all (PortConfig). What a guest sends is copied as it was read, before it is
// judged or goes anywhere; what the gateway says as it is written. Such a port gets frames in no other way, so each comes to
// it once. It is a port as any: what it does not read fills its queue and is dropped there, and nobody waits for it.
//
// Without such a port this is one pointer that is nil, for each batch.

import (
	"encoding/binary"

	"github.com/vmnetd/vmnetd/backend/checksum"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

// copyUp copies what the guest has sent. Runs in the port's reader, as onward.go does, which it uses.
func (p *port) copyUp(to []*port) {
	if p.role == mirror {
		return
	}
	for i, s := range p.batch.Frames {
		if s.Len() < ethLen {
			continue
		}
		h := p.batch.Head(s, headLen, p.scratch[:])
		if macOf(h[6:]).isMulticast() { // no station's
			continue
		}
		k := packetOf(binary.BigEndian.Uint16(h[12:]), h[ethLen:])
		p.offload = link.Offload{}
		if i < len(p.batch.Offloads) {
			p.offload = p.batch.Offloads[i]
		}
		for _, q := range to {
			if q == p {
				continue
			}
			if p.leaves() {
				if !p.finishFor(k, s, q) {
					continue // it is on its way, in pieces
				}
				if p.offload.Kind == 0 && i < len(p.batch.Offloads) {
					p.offload = link.Offload{} // summed up where it lies, for all who get it after
					p.batch.Offloads[i] = p.offload
				}
			}
			if s.Len()-ethLen > q.carries {
				q.drop(flows.ReasonUnreachable)
				continue
			}
			p.onward.add(p, q, s)
		}
	}
	p.onward.send(p.batch) // before anything is done where they lie
}

// copyDown copies what the gateway says to the guest, out of frames that are about to be written. Runs in the port's
// writer.
func (p *port) copyDown(to []*port, frames []link.Frame) {
	for _, f := range frames {
		if macOf(f.Head[link.Headroom+6:]) != p.net.gatewayMAC || p.net.cfg.plain() {
			continue // another guest's: copied as it came
		}
		o := link.Offload{}
		if p.split.takes != 0 {
			o = f.Offload()
		}
		for _, q := range to {
			if q != p {
				p.copyTo(q, f, o)
			}
		}
	}
}

// copyTo copies one frame of the gateway's, finished as far as q's wire wants it.
func (p *port) copyTo(q *port, f link.Frame, o link.Offload) {
	n := f.Len()
	cost := int64(max(n, minEthernet) + itemCost)
	if q.queue.bytes.Load()+cost > q.queue.limit.Load() { // not worth copying
		q.drop(flows.ReasonQueueFull)
		return
	}
	head := f.AppendTo(make([]byte, link.Headroom, link.Headroom+max(n, minEthernet)))
	head = head[:max(len(head), link.Headroom+minEthernet)]
	b := head[link.Headroom:]
	left := false
	switch {
	case o.Whole():
	case o.Kind == 0 && q.split.takes&link.Checksums != 0, o.Kind != 0 && q.split.takes&(link.Checksums|segmentsOf(o.Kind == link.OffloadTCP6)) == link.Checksums|segmentsOf(o.Kind == link.OffloadTCP6):
		left = true
	case o.Kind == 0:
		at := int(o.SumStart) + int(o.SumAt)
		binary.BigEndian.PutUint16(b[at:], ^checksum.Sum(b[o.SumStart:n], 0))
	default:
		p.copyCut(q, b[:n], o)
		return
	}
	if n-ethLen > q.carries {
		q.drop(flows.ReasonUnreachable)
		return
	}
	x := link.Frame{Head: head}
	if left {
		x.SetOffload(o)
	}
	q.queue.push(item{raw: x, size: len(head), other: true, left: left})
}

// copyCut copies a segment that is longer than a frame, in frames. It is as this network's own stack made it.
func (p *port) copyCut(q *port, b []byte, o link.Offload) {
	var batch link.Batch
	batch.Append(b)
	batch.Take(0, len(b))
	defer batch.Release()
	s := batch.Frames[0]
	k := packetOf(binary.BigEndian.Uint16(b[12:]), b[ethLen:])
	hl, th, total, ok := segmentOf(k.kind, k.ip, s.From(k.at))
	size := min(int(o.Size), q.carries-hl-th)
	if !ok || size < leastSegment {
		q.drop(flows.ReasonUnreachable)
		return
	}
	p.copier.segments(&batch, s, k.at, hl, th, total, size, k.kind == etherIPv6, func() { p.copier.queue(q) })
}

// queue gives the frames to another guest's queue.
func (f *finisher) queue(to *port) {
	for _, x := range f.frames {
		n := link.Headroom + max(x.Len(), minEthernet)
		head := x.AppendTo(make([]byte, link.Headroom, n))
		to.queue.push(item{raw: link.Frame{Head: head[:n]}, size: n, other: true})
	}
}
