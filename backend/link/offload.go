package link

import "encoding/binary"

// Offloads is a set of works on a frame that one side of a wire leaves to the other.
type Offloads uint8

const (
	// Checksums: the checksum of TCP and UDP may be partial: the sum of the pseudo-header, to be completed.
	Checksums Offloads = 1 << iota
	// Segments4 and Segments6: a TCP segment may be as long as IP allows, whatever the MTU is, to be cut.
	Segments4
	Segments6
	// Told: each frame says what is left to do in its Offload. Without it nothing does: libkrun's guests send frames
	// with partial checksums and any length, and libkrun throws away what told of them.
	Told
)

// Segments is either family's.
const Segments = Segments4 | Segments6

// Offloading is a Link whose frames may be unfinished. One that is not has whole frames both ways. Who passes a frame
// of such a Link on to another that does not take as much finishes it before.
type Offloading interface {
	Link

	// Offloads says what frames that are read may lack, and what frames that are written may. Both stay as they are
	// for as long as the Link lives.
	Offloads() (gives, takes Offloads)
}

// OffloadsOf is what l says of itself, or nothing.
func OffloadsOf(l Link) (gives, takes Offloads) {
	if o, ok := l.(Offloading); ok {
		return o.Offloads()
	}
	return 0, 0
}

// OffloadLen is how many of a frame's headroom bytes, the last ones, are its Offload where a Link takes unfinished
// frames. Who writes to such a Link sets them on every frame, all zero on a whole one.
const OffloadLen = 10

// SetOffload says what is left to do on the frame, to a Link that takes unfinished frames.
func (f Frame) SetOffload(o Offload) { o.put(f.Head[Headroom-OffloadLen : Headroom]) }

// Offload is what SetOffload said.
func (f Frame) Offload() Offload { return ParseOffload(f.Head[Headroom-OffloadLen : Headroom]) }

// ParseOffload reads the first OffloadLen bytes of b: struct virtio_net_hdr in this machine's byte order, as Linux's TAPs
// have it.
func ParseOffload(b []byte) Offload {
	b = b[:OffloadLen]
	ne := binary.NativeEndian
	return Offload{
		Flags: b[0], Kind: b[1], Header: ne.Uint16(b[2:]), Size: ne.Uint16(b[4:]),
		SumStart: ne.Uint16(b[6:]), SumAt: ne.Uint16(b[8:]),
	}
}

func (o Offload) put(b []byte) {
	ne := binary.NativeEndian
	b[0], b[1] = o.Flags, o.Kind
	ne.PutUint16(b[2:], o.Header)
	ne.PutUint16(b[4:], o.Size)
	ne.PutUint16(b[6:], o.SumStart)
	ne.PutUint16(b[8:], o.SumAt)
}

// Offload is what is left to do on one frame: Linux's struct virtio_net_hdr by other names (virtio 1.2, 5.1.6). The
// zero Offload is that of a whole frame.
type Offload struct {
	Flags    uint8
	Kind     uint8  // what to cut the frame to: an Offload… constant
	Header   uint16 // bytes before the payload that is cut, a hint
	Size     uint16 // payload of each piece
	SumStart uint16 // if OffloadSum: sum up from here to the end,
	SumAt    uint16 // and put it this far behind SumStart, where the pseudo-header's sum is
}

const (
	OffloadSum   = 1 // in Flags (VIRTIO_NET_HDR_F_NEEDS_CSUM): the checksum is partial
	OffloadValid = 2 // in Flags (VIRTIO_NET_HDR_F_DATA_VALID): the checksum was verified

	OffloadTCP4 = 1 // in Kind (VIRTIO_NET_HDR_GSO_TCPV4)
	OffloadTCP6 = 4 // (VIRTIO_NET_HDR_GSO_TCPV6)
	OffloadECN  = 0x80
)

// Whole says that nothing is left to do.
func (o Offload) Whole() bool { return o.Flags&OffloadSum == 0 && o.Kind == 0 }

// Fits says whether what o speaks of lies within a frame of n bytes, so that it may be acted upon.
func (o Offload) Fits(n int) bool {
	if o.Flags&OffloadSum != 0 && int(o.SumStart)+int(o.SumAt)+2 > n {
		return false
	}
	switch o.Kind &^ OffloadECN {
	case 0:
		return o.Kind == 0
	case OffloadTCP4, OffloadTCP6:
		return o.Size > 0 && int(o.Header) <= n
	}
	return false
}
