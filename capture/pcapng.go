package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// pcapng, as draft-ietf-opsawg-pcapng has it: blocks of a type, a length, a body, and the length again. Little-endian, since
// the machines that write it are.

const (
	blockSection    = 0x0a0d0d0a
	blockInterface  = 1
	blockStatistics = 5
	blockPacket     = 6

	linkEthernet = 1 // LINKTYPE_ETHERNET

	optEnd     = 0
	optComment = 1
	// of a section
	optOS          = 3
	optApplication = 4
	// of an interface
	optName        = 2
	optDescription = 3
	optMAC         = 6
	optTimeUnit    = 9
	optFilter      = 11
	// of a packet
	optFlags     = 2
	optDropCount = 4
	// of statistics
	optStart    = 2
	optStop     = 3
	optReceived = 4
	optDropped  = 5
	optAccepted = 6

	flagInbound, flagOutbound = 1, 2 // epb_flags, bits 0 and 1
)

var le = binary.LittleEndian

// begin begins a block, end ends the one that began at.
func begin(b []byte, typ uint32) []byte { return append32(b, typ, 0) }

func end(b []byte, at int) []byte {
	n := uint32(len(b) - at + 4)
	le.PutUint32(b[at+4:], n)
	return append32(b, n)
}

func append32(b []byte, vs ...uint32) []byte {
	for _, v := range vs {
		b = le.AppendUint32(b, v)
	}
	return b
}

func pad(n int) int { return (n + 3) &^ 3 }

func option(b []byte, code uint16, v []byte) []byte {
	b = le.AppendUint16(b, code)
	b = le.AppendUint16(b, uint16(len(v)))
	b = append(b, v...)
	return append(b, make([]byte, pad(len(v))-len(v))...)
}

// maxText bounds what of a name or a comment is written: an option has 65535 bytes.
const maxText = 4096

func textOption(b []byte, code uint16, s string) []byte {
	if s == "" {
		return b
	}
	return option(b, code, []byte(s[:min(len(s), maxText)]))
}

func option64(b []byte, code uint16, v uint64) []byte {
	return option(b, code, le.AppendUint64(nil, v))
}

// section is the block that a file begins with.
func section(o Options) []byte {
	b := begin(nil, blockSection)
	b = append32(b, 0x1a2b3c4d, 1)        // byte order; version 1.0
	b = le.AppendUint64(b, ^uint64(0))    // its length is not known
	b = textOption(b, optComment, o.Note) //
	b = textOption(b, optOS, o.OS)        //
	b = textOption(b, optApplication, o.Application)
	return end(append32(b, optEnd), 0)
}

// describe is the block of an interface.
func describe(i Interface, snaplen int, filter string) []byte {
	b := begin(nil, blockInterface)
	b = append32(b, linkEthernet, uint32(snaplen))
	b = textOption(b, optName, i.Name)
	b = textOption(b, optDescription, i.Description)
	if len(i.MAC) == 6 {
		b = option(b, optMAC, i.MAC)
	}
	b = option(b, optTimeUnit, []byte{9}) // nanoseconds
	if filter != "" {
		b = textOption(b, optFilter, "\x00"+filter) // in libpcap's language
	}
	return end(append32(b, optEnd), 0)
}

// statistics is the block that says how much there was at an interface.
func statistics(id uint32, from, to uint64, seen, accepted, dropped uint64) []byte {
	b := begin(nil, blockStatistics)
	b = append32(b, id, uint32(to>>32), uint32(to))
	stamp := func(code uint16, t uint64) { b = option(b, code, append32(nil, uint32(t>>32), uint32(t))) }
	stamp(optStart, from)
	stamp(optStop, to)
	b = option64(b, optReceived, seen)
	b = option64(b, optDropped, dropped)
	b = option64(b, optAccepted, accepted)
	return end(append32(b, optEnd), 0)
}

// statisticsLen is what that takes.
const statisticsLen = 8 + 12 + 5*12 + 4 + 4

const (
	packetHead  = 28        // of a packet's block, before its bytes
	packetTail  = 8 + 4 + 4 // its flags, the end of its options, its length again
	packetGap   = 4 + 8     // how many are missing before it
	packetExtra = packetHead + packetTail + packetGap
)

// packetBlock makes a packet's block of dst, which is long enough, around size bytes for its data, and returns these.
func packetBlock(dst []byte, id uint32, now uint64, size, whole int, flags uint32, missing uint64) []byte {
	n := uint32(len(dst))
	le.PutUint32(dst, blockPacket)
	le.PutUint32(dst[4:], n)
	le.PutUint32(dst[8:], id)
	le.PutUint32(dst[12:], uint32(now>>32))
	le.PutUint32(dst[16:], uint32(now))
	le.PutUint32(dst[20:], uint32(size))
	le.PutUint32(dst[24:], uint32(whole))
	data := dst[packetHead : packetHead+size]
	clear(dst[packetHead+size : packetHead+pad(size)])
	at := packetHead + pad(size)
	if missing > 0 {
		le.PutUint16(dst[at:], optDropCount)
		le.PutUint16(dst[at+2:], 8)
		le.PutUint64(dst[at+4:], missing)
		at += packetGap
	}
	le.PutUint16(dst[at:], optFlags)
	le.PutUint16(dst[at+2:], 4)
	le.PutUint32(dst[at+4:], flags)
	le.PutUint32(dst[at+8:], optEnd)
	le.PutUint32(dst[at+12:], n)
	return data
}

// commented is a packet's block with a comment.
func commented(to, block []byte, comment string) []byte {
	at := len(to)
	options := packetHead + pad(int(le.Uint32(block[20:])))
	to = append(to, block[:options]...)
	to = textOption(to, optComment, comment)
	to = append(to, block[options:len(block)-4]...)
	return end(to, at)
}

// errTorn is a stream that ends within a block.
var errTorn = errors.New("the capture ends within a block")

// maxBlock bounds a block that is read: a frame with its options and comment has 75 KiB.
const maxBlock = 1 << 20

// nextBlock is the first block of b, whole, or nil if there is none yet.
func nextBlock(b []byte) ([]byte, error) {
	if len(b) < 12 {
		return nil, nil
	}
	n := le.Uint32(b[4:])
	if n < 12 || n%4 != 0 || n > maxBlock {
		return nil, fmt.Errorf("not a capture: a block of %d bytes", n)
	}
	if uint32(len(b)) < n {
		return nil, nil
	}
	return b[:n], nil
}
