// Package link is the seam between a guest's wire and the network behind it: whole Ethernet frames, in batches.
//
// A transport (qemu, vfkit, netns) turns the bytes of its socket into frames and implements [Link]; backend serves
// any Link. What wants to see or disturb the frames on their way is a Link around a Link, as [Pipe] is a Link
// without a VMM.
//
//	guest, host := link.Pipe(256)
//	go network.Serve(ctx, host)
//	_, err := guest.WriteFrames([]link.Frame{link.NewFrame(ethernetBytes)})
//
// It knows no addresses and no protocols: a frame is bytes. It does not queue for a guest that does not read: its
// caller does, with a bound.
package link

// MaxFrame is the longest frame that any peer may send: QEMU's NET_BUFSIZE (include/net/net.h), 64 KiB and a page.
// Frames longer than the MTU do come: libkrun's guests send segments of 64 KiB whatever the MTU is.
const MaxFrame = 4096 + 65536

// Headroom is how many spare bytes stand in Frame.Head before the frame, for a framing's own header: the longest is
// the 12-byte virtio_net_hdr_v1, rounded up so that what follows stays aligned.
const Headroom = 16

// Link is one guest's wire. ReadFrames is called by one goroutine at a time, WriteFrames by one at a time, both may
// run together, and Close may be called at any time by anybody.
type Link interface {
	// ReadFrames waits until there is at least one whole frame and leaves those it has in b.Frames. Memory is b's
	// own. Frames that are too short, too long or cut off by the end are not reported: a framing that can go on
	// after them counts them in b.Malformed, one that cannot returns an error.
	// At the end of the wire the error is io.EOF, after Close it is net.ErrClosed (errors.Is).
	ReadFrames(b *Batch) error

	// WriteFrames sends frames in order and returns how many it took. It may wait for the peer to read. frames and
	// their bytes are borrowed for the call, except the Headroom bytes, which it may overwrite. A frame is taken
	// whole or not at all: what a peer has seen of a frame is always followed by the rest of it.
	// n < len(frames) only with an error.
	WriteFrames(frames []Frame) (n int, err error)

	// Close ends both ways and wakes who waits there. The second and later calls do nothing.
	Close() error
}

// Prefixed is a Link that says how much of the Headroom it overwrites: the last Prefix bytes, at most. What makes frames
// in one piece of memory may then lay each closer behind the one before, whose end is the rest of its headroom, and
// frames that follow one another with nothing between leave as one.
type Prefixed interface {
	Prefix() int
}

// Frame is one Ethernet frame to write, without FCS, in pieces: a header that its builder made and a payload that
// lies where it came from.
type Frame struct {
	Head []byte   // Headroom spare bytes, then the frame's first bytes
	Body [][]byte // the rest of it
}

// NewFrame returns a frame with a copy of b.
func NewFrame(b []byte) Frame {
	head := make([]byte, Headroom+len(b))
	copy(head[Headroom:], b)
	return Frame{Head: head}
}

// Len is the frame's length in bytes on the wire, without any framing.
func (f Frame) Len() int {
	n := len(f.Head) - Headroom
	for _, p := range f.Body {
		n += len(p)
	}
	return n
}

// AppendTo appends the frame's bytes to b.
func (f Frame) AppendTo(b []byte) []byte {
	b = append(b, f.Head[Headroom:]...)
	for _, p := range f.Body {
		b = append(b, p...)
	}
	return b
}
