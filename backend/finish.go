package backend

// Station 3, unfinished frames: what a guest's kernel left to do (backend/link's Offload) is done before a frame goes to
// another guest, as far as that one's wire does not take it undone. Sums are put where the frame lies; what is to be cut
// becomes frames that share its payload. Frames to the gateway stay as they are: the stack takes them so. Runs in the
// port's reader only.

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/vmnetd/vmnetd/backend/checksum"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
)

const (
	// leastSegment is the smallest payload that a segment is cut to: Linux's own TCP_MIN_GSO_SIZE, what the smallest
	// MSS of 48 leaves beside 40 bytes of options. A guest could else make 65,000 frames of one.
	leastSegment = 8
	// cutAtOnce is how many frames are made before they leave, so that their headers take little.
	cutAtOnce = 64
)

// mostTags is how many VLAN tags are looked behind: a provider's and a customer's (IEEE 802.1ad).
const mostTags = 2

// packet is where in the frame at hand its packet begins.
type packet struct {
	kind uint16 // its EtherType
	ip   []byte // its beginning
	at   int
}

// packetOf finds the packet of a frame that may have VLAN tags, by what follows its MACs.
func packetOf(kind uint16, rest []byte) packet {
	k := packet{kind, rest, ethLen}
	for range mostTags {
		if k.kind != etherVLAN && k.kind != etherQinQ || len(k.ip) < 4 {
			break
		}
		k = packet{binary.BigEndian.Uint16(k.ip[2:]), k.ip[4:], k.at + 4}
	}
	return k
}

// finisher makes frames whole.
type finisher struct {
	arena  []byte
	frames []link.Frame
	pieces [][]byte
}

// leaves says whether the frame at hand may be unfinished.
func (p *port) leaves() bool {
	return p.gives&link.Told != 0 && !p.offload.Whole() || p.gives&(link.Told|link.Checksums) == link.Checksums
}

// finishAlone makes a frame whole that goes to anybody, and reports whether it could be.
func (p *port) finishAlone(k packet, s link.Span) bool {
	if p.gives&link.Told == 0 {
		p.sumUntold(k, s)
		return true
	}
	if p.offload.Kind != 0 { // who sends as much to all?
		p.drop(flows.ReasonUnsupported)
		return false
	}
	return p.sum(k, s)
}

// finish makes a frame whole that goes to dst, or sends it on itself, in pieces. It reports whether it is to be carried
// on as it lies now.
func (p *port) finish(k packet, s link.Span, dst mac) bool {
	to := p.net.seg.at(dst)
	if to == nil {
		return p.finishAlone(k, s)
	}
	if to == p {
		return true
	}
	return p.finishFor(k, s, to)
}

// finishFor is finish for a frame that goes to a port.
func (p *port) finishFor(k packet, s link.Span, to *port) bool {
	o := p.offload
	told := p.gives&link.Told != 0
	kind, ip, body := k.kind, k.ip, s.From(k.at)
	if told && o.Kind == 0 {
		return p.sum(k, s)
	}
	tags := k.at - ethLen
	mtu := min(to.mtu(), to.carries-tags)
	if told && p.net.cfg.plain() { // the sender's kernel knows what its segments are to be
		mtu = to.carries - tags
	}
	hl, th, total, ok := segmentOf(kind, ip, body)
	v6 := kind == etherIPv6
	if !told && (!ok || total <= mtu) {
		p.sumUntold(k, s)
		return true
	}
	if !ok || told && (o.Kind != kindOf(v6) || o.Size < leastSegment || o.Flags&link.OffloadSum == 0) {
		p.drop(flows.ReasonMalformed) // no TCP, or in clothes that no kernel cuts
		return false
	}
	most := mtu - hl - th
	size := most
	if told {
		size = min(int(o.Size), most)
	}
	if size < leastSegment {
		p.drop(flows.ReasonMalformed)
		return false
	}
	p.onward.send(p.batch) // what came before goes before
	p.elsewhere++
	f := &p.finisher
	if need := segmentsOf(v6) | link.Checksums; told && to.split.takes&need == need && size == int(o.Size) && body.Len()+tags <= to.carries {
		f.reset()
		f.cut(p.batch, s.Upto(k.at+total), k.at+hl+th, 0, total-hl-th)
		f.frames[0].SetOffload(link.Offload{Flags: link.OffloadSum, Kind: o.Kind, Size: o.Size, Header: uint16(k.at + hl + th), SumStart: uint16(k.at + hl), SumAt: 16})
		head := f.frames[0].Head[link.Headroom+k.at:]
		putPseudo(head, head[hl:], v6, total-hl)
		f.send(to, true)
		return false
	}
	f.segments(p.batch, s, k.at, hl, th, total, size, v6, func() { f.send(to, false) })
	return false
}

// segments cuts a TCP segment, whose packet is at at of s, to such of size bytes of payload, and calls send after each
// cutAtOnce of them.
func (f *finisher) segments(b *link.Batch, s link.Span, at, hl, th, total, size int, v6 bool, send func()) {
	f.reset()
	hdr := at + hl + th
	payload := total - hl - th
	for done := 0; done < payload || done == 0; {
		n := min(size, payload-done)
		head := f.cut(b, s, hdr, done, n)
		ip := head[at:]
		t := ip[hl:]
		if v6 {
			binary.BigEndian.PutUint16(ip[4:], uint16(th+n))
		} else {
			binary.BigEndian.PutUint16(ip[2:], uint16(hl+th+n))
			id := binary.BigEndian.Uint16(ip[4:])
			binary.BigEndian.PutUint16(ip[4:], id+uint16(done/size)) // as Linux cuts it
			ip[10], ip[11] = 0, 0
			binary.BigEndian.PutUint16(ip[10:], ^checksum.Sum(ip[:hl], 0))
		}
		binary.BigEndian.PutUint32(t[4:], binary.BigEndian.Uint32(t[4:])+uint32(done))
		if done+n < payload {
			t[13] &^= uint8(header.TCPFlagFin | header.TCPFlagPsh)
		}
		if done > 0 {
			t[13] &^= cwr
		}
		putPseudo(ip, t, v6, th+n)
		var c checksum.Pieces
		c.Add(t[:th+f.inHead(hdr, n)])
		for _, part := range f.frames[len(f.frames)-1].Body {
			c.Add(part)
		}
		binary.BigEndian.PutUint16(t[16:], ^c.Sum())
		if done += n; len(f.frames) == cutAtOnce || done >= payload {
			send()
			f.reset()
		}
		if n == 0 {
			break
		}
	}
}

// cwr is TCP's flag that the sender has slowed down: of the first segment alone (RFC 3168 §6.1.2).
const cwr = 0x80

// putPseudo writes the pseudo-header's sum where TCP's checksum will be.
func putPseudo(ip, t []byte, v6 bool, n int) {
	binary.BigEndian.PutUint16(t[16:], fold(endsSum(ip, v6)+uint32(n)))
}

func (f *finisher) reset() {
	clear(f.frames)
	clear(f.pieces)
	f.arena, f.frames, f.pieces = f.arena[:0], f.frames[:0], f.pieces[:0]
}

// inHead is how much of n bytes of payload lie with the header.
func (f *finisher) inHead(hdr, n int) int {
	if hdr+n < minEthernet {
		return n
	}
	return 0
}

// cut makes a frame of the header of s and n bytes of what follows it at off, and returns its header, to be changed.
func (f *finisher) cut(b *link.Batch, s link.Span, hdr, off, n int) []byte {
	in := f.inHead(hdr, n)
	need := link.Headroom + hdr
	if hdr+n < minEthernet {
		need = link.Headroom + minEthernet
	}
	if cap(f.arena)-len(f.arena) < need {
		f.arena = make([]byte, 0, max(2*cap(f.arena), cutAtOnce*(link.Headroom+headLen)))
	}
	at := len(f.arena)
	f.arena = f.arena[:at+link.Headroom]
	clear(f.arena[at:]) // whole, so far
	f.arena = b.AppendTo(f.arena, s.Upto(hdr))
	rest := s.From(hdr + off).Upto(n)
	if in > 0 {
		f.arena = b.AppendTo(f.arena, rest)
	}
	end := at + need
	clear(f.arena[len(f.arena):end])
	f.arena = f.arena[:end]
	head := f.arena[at:end:end]
	first := len(f.pieces)
	if in == 0 && n > 0 {
		b.Pieces(rest, func(_ *link.Chunk, _ int, part []byte) { f.pieces = append(f.pieces, part) })
	}
	f.frames = append(f.frames, link.Frame{Head: head, Body: f.pieces[first:len(f.pieces):len(f.pieces)]})
	return head[link.Headroom:]
}

// send gives the frames to another guest: to its wire, or where that takes no more, copied, to its queue. left says that
// they have an Offload.
func (f *finisher) send(to *port, left bool) {
	rest := f.frames
	if to.loop != nil {
		rest = rest[to.loop.sendNow(rest):]
	}
	for _, x := range rest {
		n := link.Headroom + max(x.Len(), minEthernet)
		head := x.AppendTo(make([]byte, link.Headroom, n))
		copy(head, x.Head[:link.Headroom])
		to.queue.push(item{raw: link.Frame{Head: head[:n]}, size: n, other: true, left: left})
	}
}

// sum does what a partial checksum still needs, where the frame lies.
func (p *port) sum(k packet, s link.Span) bool {
	o := p.offload
	if o.Flags&link.OffloadSum == 0 {
		return true
	}
	at := int(o.SumStart) + int(o.SumAt)
	may := int(o.SumStart) >= ethLen // where nobody is judged by what it sends
	if !p.net.cfg.plain() {
		may = mayPutSum(k.kind, k.ip, int(o.SumStart)-k.at, at-k.at)
	}
	if !may || at+2 > s.Len() {
		p.drop(flows.ReasonMalformed)
		return false
	}
	var c checksum.Pieces
	p.batch.Pieces(s.From(int(o.SumStart)), func(_ *link.Chunk, _ int, part []byte) { c.Add(part) })
	p.put(s.From(at), ^c.Sum())
	return true
}

// mayPutSum says whether a checksum from start to the packet's end belongs at at: where TCP's or UDP's is, or within what
// is a tunnel's. A guest could else have us write over what it was judged by: its address, or the one that
// its ARP or its neighbour advertisement speaks of.
func mayPutSum(kind uint16, ip []byte, start, at int) bool {
	hl, proto := 0, byte(0)
	switch {
	case kind == etherIPv4 && len(ip) >= header.IPv4MinimumSize && binary.BigEndian.Uint16(ip[6:])&0x1fff == 0:
		hl, proto = int(ip[0]&15)*4, ip[9]
	case kind == etherIPv6 && len(ip) >= header.IPv6MinimumSize:
		hl, proto = header.IPv6MinimumSize, ip[6]
	}
	if hl < header.IPv4MinimumSize || start < hl {
		return false
	}
	switch tcpip.TransportProtocolNumber(proto) {
	case header.TCPProtocolNumber:
		return at == hl+16
	case header.UDPProtocolNumber:
		return at == hl+6 || at >= hl+header.UDPMinimumSize
	case 4, 41, 47: // IPv4, IPv6 and GRE in IP: what the outer header says is judged, and no more
		return start >= hl+4 // GRE's least header (RFC 2784 §2.1)
	}
	return false
}

// sumUntold writes the checksum of a TCP or UDP packet anew: it may be partial, and nothing tells.
func (p *port) sumUntold(k packet, s link.Span) {
	kind, ip, body := k.kind, k.ip, s.From(k.at)
	for _, t := range []struct {
		proto tcpip.TransportProtocolNumber
		at    int
		least int
	}{{header.TCPProtocolNumber, 16, header.TCPMinimumSize}, {header.UDPProtocolNumber, 6, header.UDPMinimumSize}} {
		hl, total, ok := wholeOf(kind, ip, body, t.proto)
		if !ok || total < hl+t.least || len(ip) < hl+t.least {
			continue
		}
		if t.proto == header.UDPProtocolNumber {
			if n := int(binary.BigEndian.Uint16(ip[hl+4:])); n != total-hl || binary.BigEndian.Uint16(ip[hl+6:]) == 0 && hl == header.IPv4MinimumSize {
				return // no whole datagram, or one without a checksum (RFC 768)
			}
		}
		ends := ip[12:20]
		if kind == etherIPv6 {
			ends = ip[8:40]
		}
		sum := uint32(checksum.Sum(ends, uint16(t.proto))) + uint32(total-hl)
		p.put(body.From(hl+t.at), fold(sum))
		var c checksum.Pieces
		p.batch.Pieces(body.Upto(total).From(hl), func(_ *link.Chunk, _ int, part []byte) { c.Add(part) })
		got := ^c.Sum()
		if got == 0 && t.proto == header.UDPProtocolNumber {
			got = 0xffff // RFC 768
		}
		p.put(body.From(hl+t.at), got)
		return
	}
}

// put writes two bytes at the beginning of s, in the memory that was read into.
func (p *port) put(s link.Span, v uint16) {
	b := [2]byte{byte(v >> 8), byte(v)}
	n := 0
	p.batch.Pieces(s.Upto(2), func(_ *link.Chunk, _ int, part []byte) { n += copy(part, b[n:]) })
}
