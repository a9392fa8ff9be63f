package backend

// The way out of the stack: gVisor's packets, TCP segments of up to 64 KiB among them, become frames of the wire's
// MTU. Payload is not copied but for small pieces; headers are made in an arena. Runs in the port's writer only.

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

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
	arena  []byte
	frames []link.Frame
	slices [][]byte // backing of the frames' bodies
	views  [][]byte // payload of the packet at hand
	at     int      // the first of views that is not used up
}

func (s *splitter) reset() {
	s.arena = s.arena[:0]
	clear(s.frames)
	s.frames = s.frames[:0]
	clear(s.slices)
	s.slices = s.slices[:0]
}

// head returns n zero bytes of the arena behind the headroom. An arena that is full is left to the frames that lie
// in it.
func (s *splitter) head(n int) []byte {
	n += link.Headroom
	if len(s.arena)+n > cap(s.arena) {
		s.arena = make([]byte, 0, max(min(2*cap(s.arena), arenaSize), n, arenaLeast))
	}
	o := len(s.arena)
	s.arena = s.arena[:o+n]
	h := s.arena[o : o+n : o+n]
	clear(h)
	return h
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

// add appends the frames of pkt, sent from MAC src to MAC dst.
func (s *splitter) add(pkt *stack.PacketBuffer, dst, src []byte) {
	nh, th := pkt.NetworkHeader().Slice(), pkt.TransportHeader().Slice()
	v6 := pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber
	if pkt.TransportProtocolNumber != header.TCPProtocolNumber || len(th) < header.TCPMinimumSize {
		s.addPlain(pkt, dst, src, v6)
		return
	}
	s.views, s.at = s.views[:0], 0
	size := pkt.Data().Size()
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
		skip = 0
	}
	// What a host peer trickled while the guest took nothing lies in as many pieces as it came in.
	crumbs := len(s.views)*copyPayload > size
	mss := size
	if g := pkt.GSOOptions; g.Type != stack.GSONone && g.MSS > 0 && int(g.MSS) < size {
		mss = int(g.MSS)
	}
	tcpSum := tcpHeaderSum(nh, th, v6)
	ipSum := uint16(0)
	if !v6 {
		ipSum = checksum.Checksum(nh[:2], 0) // all but the length and the checksum itself
		ipSum = checksum.Checksum(nh[4:10], ipSum)
		ipSum = checksum.Checksum(nh[12:], ipSum)
	}
	seq := binary.BigEndian.Uint32(th[4:])
	flags := th[13]
	id := uint16(0)
	if !v6 {
		id = header.IPv4(nh).ID()
	}
	for done, first := 0, true; first || done < size; first = false {
		n := min(mss, size-done)
		hdr := ethLen + len(nh) + len(th)
		inline := crumbs || n <= copyPayload
		want := hdr
		if inline {
			want = max(hdr+n, minEthernet)
		}
		head := s.head(want)
		b := head[link.Headroom:]
		putEthernet(b, dst, src, v6)
		ip := b[ethLen:]
		copy(ip, nh)
		if v6 {
			header.IPv6(ip).SetPayloadLength(uint16(len(nh) - header.IPv6MinimumSize + len(th) + n))
		} else {
			h := header.IPv4(ip)
			total := uint16(len(nh) + len(th) + n)
			h.SetTotalLength(total)
			sum := checksum.Combine(ipSum, total)
			if !first { // RFC 6864: an atomic datagram's ID is free; others' must differ
				h.SetID(id)
				sum = checksum.Combine(sum, checksum.Combine(id, ^header.IPv4(nh).ID()))
			}
			h.SetChecksum(^sum)
		}
		t := ip[len(nh):]
		copy(t, th)
		binary.BigEndian.PutUint32(t[4:], seq+uint32(done))
		f := flags
		if done+n < size {
			f &^= uint8(header.TCPFlagFin | header.TCPFlagPsh)
		}
		t[13] = f
		sum := checksum.Combine(tcpSum, uint16(len(th)+n))
		sum = addUint32(sum, seq+uint32(done))
		sum = checksum.Combine(sum, uint16(f))
		var body [][]byte
		if inline {
			data := t[len(th):len(th)]
			s.cut(n, func(p []byte) { data = append(data, p...) })
			sum = checksum.Checksum(data, sum)
		} else {
			start := len(s.slices)
			var c checksum.Checksumer
			s.cut(n, func(p []byte) { s.slices = append(s.slices, p); c.Add(p) })
			body = s.slices[start:len(s.slices):len(s.slices)]
			sum = checksum.Combine(sum, c.Checksum())
		}
		binary.BigEndian.PutUint16(t[16:], ^sum)
		s.frames = append(s.frames, link.Frame{Head: head, Body: body})
		done += n
		id++
	}
}

// tcpHeaderSum sums what all segments share: the pseudo-header without its length, the ports, ack, window, urgent
// pointer, options and the data offset, but neither sequence number, flags nor the checksum itself.
func tcpHeaderSum(nh, th []byte, v6 bool) uint16 {
	var src, dst []byte
	if v6 {
		src, dst = nh[8:24], nh[24:40]
	} else {
		src, dst = nh[12:16], nh[16:20]
	}
	sum := checksum.Checksum(src, uint16(header.TCPProtocolNumber))
	sum = checksum.Checksum(dst, sum)
	sum = checksum.Checksum(th[:4], sum)
	sum = checksum.Checksum(th[8:12], sum)
	sum = checksum.Combine(sum, uint16(th[12])<<8)
	sum = checksum.Checksum(th[14:16], sum)
	return checksum.Checksum(th[18:], sum)
}

func addUint32(sum uint16, v uint32) uint16 {
	return checksum.Combine(checksum.Combine(sum, uint16(v>>16)), uint16(v))
}

// cut takes n bytes from the front of the payload.
func (s *splitter) cut(n int, f func([]byte)) {
	for n > 0 {
		p := s.views[s.at]
		if len(p) > n {
			f(p[:n])
			s.views[s.at] = p[n:]
			return
		}
		f(p)
		n -= len(p)
		s.at++
	}
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
	s.frames = append(s.frames, link.Frame{Head: head})
}
