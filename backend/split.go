package backend

// The way out of the stack: gVisor's packets, TCP segments of up to 64 KiB among them, become frames of the wire's
// MTU, or stay as they are where the wire takes them so. Payload is not copied but for small pieces; headers are made in an arena. Runs in the port's writer only.

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vmnetd/vmnetd/backend/checksum"
	"github.com/vmnetd/vmnetd/backend/link"
)

const (
	ethLen = 14
	// minEthernet is what a frame is padded to: 64 bytes less the FCS (IEEE 802.3 §4.2.3.3). Emulated NICs such as
	// e1000 drop shorter ones.
	minEthernet = 60
	// copyPayload is up to which size payload goes into the header's piece: one copy costs less than one more piece
	// for the system call to walk.
	copyPayload = 512
	// arenaSize holds the headers of a full batch: 512 frames of at most 16+14+60+60 bytes. A quiet guest has
	// arenaLeast, and it doubles when it was too small.
	arenaSize  = 128 << 10
	arenaLeast = 4 << 10
)

// splitter makes frames from packets. Frames are valid until reset.
type splitter struct {
	overlap int           // how much of a frame's headroom may be the end of the frame before: what the link leaves alone
	takes   link.Offloads // what the link takes unfinished

	arena  []byte
	frames []link.Frame
	slices [][]byte // backing of the frames' bodies
	views  [][]byte // payload of the packet at hand
	at     int      // the first of views that is not used up
	first  []byte   // its headers, as the first frame has them
}

func (s *splitter) reset() {
	s.arena = s.arena[:0]
	clear(s.frames)
	s.frames = s.frames[:0]
	clear(s.slices)
	s.slices = s.slices[:0]
}

// head returns n bytes of the arena behind the headroom, with whatever they hold. An arena that is full is left to the
// frames that lie in it.
func (s *splitter) head(n int) []byte {
	n += link.Headroom
	o := max(len(s.arena)-s.overlap, 0)
	if o+n > cap(s.arena) {
		s.arena, o = make([]byte, 0, max(min(2*cap(s.arena), arenaSize), n, arenaLeast)), 0
	}
	s.arena = s.arena[:o+n]
	return s.arena[o : o+n : o+n]
}

// overlapOf is how close frames may lie for l.
func overlapOf(l link.Link) int {
	if x, ok := l.(link.Prefixed); ok {
		return max(link.Headroom-x.Prefix(), 0)
	}
	return 0
}

func putEthernet(b []byte, dst, src []byte, v6 bool) {
	copy(b, dst)
	copy(b[6:], src)
	t := uint16(header.IPv4ProtocolNumber)
	if v6 {
		t = uint16(header.IPv6ProtocolNumber)
	}
	binary.BigEndian.PutUint16(b[12:], t)
}

// headersOf returns the network's and the transport's header of a packet. gVisor's own way to either costs as much as
// all else about a small frame.
func headersOf(pkt *stack.PacketBuffer) (nh, th []byte) {
	views, off := pkt.AsViewList()
	n := pkt.HeaderSize()
	if v := views.Front(); n >= header.IPv4MinimumSize && v.Size() >= off+n { // in one piece, as all are that it makes
		b := v.AsSlice()[off : off+n]
		hl := int(b[0]&0xf) * 4
		if pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber {
			hl = header.IPv6MinimumSize
			if n < hl || b[6] != byte(header.TCPProtocolNumber) {
				hl = n + 1 // it has to be asked
			}
		}
		if hl <= n {
			return b[:hl:hl], b[hl:]
		}
	}
	return pkt.NetworkHeader().Slice(), pkt.TransportHeader().Slice()
}

// add appends the frames of pkt, sent from MAC src to MAC dst.
func (s *splitter) add(pkt *stack.PacketBuffer, dst, src []byte) {
	v6 := pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber
	nh, th := headersOf(pkt)
	if pkt.TransportProtocolNumber != header.TCPProtocolNumber || len(th) < header.TCPMinimumSize {
		s.addPlain(pkt, dst, src, v6)
		return
	}
	s.views, s.at = s.views[:0], 0
	size := 0
	skip := len(nh) + len(th)
	views, off := pkt.AsViewList()
	skip += off
	for v := views.Front(); v != nil; v = v.Next() {
		p := v.AsSlice()
		if skip >= len(p) {
			skip -= len(p)
			continue
		}
		s.views = append(s.views, p[skip:])
		size += len(p) - skip
		skip = 0
	}
	// What a host peer trickled while the guest took nothing lies in as many pieces as it came in.
	crumbs := len(s.views)*copyPayload > size
	mss := size
	if g := pkt.GSOOptions; g.Type != stack.GSONone && g.MSS > 0 && int(g.MSS) < size {
		mss = int(g.MSS)
	}

	// What all frames share: the header, and the sums of its parts that do not change.
	hdr := ethLen + len(nh) + len(th)
	all := append(append(append(s.first[:0], make([]byte, ethLen)...), nh...), th...)
	putEthernet(all, dst, src, v6)
	s.first = all
	step, left := mss, link.Offload{}
	tcpSum := uint32(0)
	if s.takes&link.Checksums == 0 {
		tcpSum = tcpHeaderSum(nh, th, v6)
	} else {
		tcpSum = endsSum(nh, v6)
		left = link.Offload{Flags: link.OffloadSum, SumStart: uint16(ethLen + len(nh)), SumAt: 16}
		if size > mss && s.takes&segmentsOf(v6) != 0 {
			step = size
			left.Kind, left.Size, left.Header = kindOf(v6), uint16(mss), uint16(hdr)
		}
	}
	seq := binary.BigEndian.Uint32(th[4:])
	flags := th[13]
	ipSum, id := uint32(0), uint16(0)
	if !v6 {
		id = header.IPv4(nh).ID()
		// All but the length, the ID and the checksum itself: x and ^x make zero.
		ipSum = uint32(checksum.Sum(nh, 0)) + uint32(^binary.BigEndian.Uint16(nh[2:])) + uint32(^id) + uint32(^header.IPv4(nh).Checksum())
	}
	for done, first := 0, true; first || done < size; first = false {
		n := min(step, size-done)
		inline := crumbs || n <= copyPayload
		want := hdr
		if inline {
			want = max(hdr+n, minEthernet)
		}
		head := s.head(want)
		b := head[link.Headroom:]
		copy(b, all)
		ip := b[ethLen:]
		if v6 {
			header.IPv6(ip).SetPayloadLength(uint16(len(nh) - header.IPv6MinimumSize + len(th) + n))
		} else {
			total := uint16(len(nh) + len(th) + n)
			binary.BigEndian.PutUint16(ip[2:], total)
			binary.BigEndian.PutUint16(ip[4:], id) // RFC 6864: an atomic datagram's is free; others' must differ
			binary.BigEndian.PutUint16(ip[10:], ^fold(ipSum+uint32(total)+uint32(id)))
		}
		t := ip[len(nh):]
		at := seq + uint32(done)
		binary.BigEndian.PutUint32(t[4:], at)
		f := flags
		if done+n < size {
			f &^= uint8(header.TCPFlagFin | header.TCPFlagPsh)
		}
		t[13] = f
		sum := tcpSum + uint32(len(th)+n)
		if left.Flags == 0 {
			sum += at>>16 + at&0xffff + uint32(f)
		}
		var body [][]byte
		if inline {
			data := t[len(th):len(th)]
			for left := n; left > 0; {
				p := s.cut(left)
				data = append(data, p...)
				left -= len(p)
			}
			clear(b[hdr+n:]) // padding
			if left.Flags == 0 {
				sum += uint32(checksum.Sum(data, 0))
			}
		} else {
			start := len(s.slices)
			p := s.cut(n)
			s.slices = append(s.slices, p)
			if left.Flags != 0 {
				for rest := n - len(p); rest > 0; rest -= len(p) {
					p = s.cut(rest)
					s.slices = append(s.slices, p)
				}
			} else if len(p) == n {
				sum += uint32(checksum.Sum(p, 0))
			} else {
				var c checksum.Pieces
				for left := n; ; {
					c.Add(p)
					if left -= len(p); left == 0 {
						break
					}
					p = s.cut(left)
					s.slices = append(s.slices, p)
				}
				sum += uint32(c.Sum())
			}
			body = s.slices[start:len(s.slices):len(s.slices)]
		}
		if left.Flags != 0 {
			binary.BigEndian.PutUint16(t[16:], fold(sum))
		} else {
			binary.BigEndian.PutUint16(t[16:], ^fold(sum))
		}
		if s.takes != 0 {
			link.Frame{Head: head}.SetOffload(left)
		}
		s.frames = append(s.frames, link.Frame{Head: head, Body: body})
		done += n
		id++
	}
}

// tcpHeaderSum sums what all segments share: the pseudo-header without its length, the ports, ack, window, urgent
// pointer, options and the data offset, but neither sequence number, flags nor the checksum itself.
func tcpHeaderSum(nh, th []byte, v6 bool) uint32 {
	sum := endsSum(nh, v6)
	sum += uint32(binary.BigEndian.Uint16(th)) + uint32(binary.BigEndian.Uint16(th[2:])) // ports
	sum += uint32(binary.BigEndian.Uint16(th[8:])) + uint32(binary.BigEndian.Uint16(th[10:]))
	sum += uint32(th[12])<<8 + uint32(binary.BigEndian.Uint16(th[14:]))
	return sum + uint32(checksum.Sum(th[18:], 0))
}

// endsSum sums TCP's pseudo-header without its length.
func endsSum(nh []byte, v6 bool) uint32 {
	ends := nh[12:20]
	if v6 {
		ends = nh[8:40]
	}
	return uint32(checksum.Sum(ends, uint16(header.TCPProtocolNumber)))
}

func segmentsOf(v6 bool) link.Offloads {
	if v6 {
		return link.Segments6
	}
	return link.Segments4
}

func kindOf(v6 bool) uint8 {
	if v6 {
		return link.OffloadTCP6
	}
	return link.OffloadTCP4
}

// fold brings the sum of some checksums to one.
func fold(sum uint32) uint16 {
	sum = sum>>16 + sum&0xffff
	return uint16(sum + sum>>16)
}

// cut takes up to n bytes from the front of the payload, in one piece.
func (s *splitter) cut(n int) []byte {
	p := s.views[s.at]
	if len(p) > n {
		s.views[s.at] = p[n:]
		return p[:n]
	}
	s.at++
	return p
}

// addPlain copies a packet that needs no splitting: ICMP, and what gVisor has fragmented.
func (s *splitter) addPlain(pkt *stack.PacketBuffer, dst, src []byte, v6 bool) {
	n := ethLen + pkt.Size()
	head := s.head(max(n, minEthernet))
	b := head[link.Headroom:]
	putEthernet(b, dst, src, v6)
	at := b[ethLen:]
	for _, p := range pkt.AsSlices() {
		at = at[copy(at, p):]
	}
	clear(at) // padding
	s.addWhole(link.Frame{Head: head})
}

// addWhole appends a frame on which nothing is left to do.
func (s *splitter) addWhole(f link.Frame) {
	if s.takes != 0 {
		f.SetOffload(link.Offload{})
	}
	s.frames = append(s.frames, f)
}
