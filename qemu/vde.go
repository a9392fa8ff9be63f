package qemu

import (
	"net"

	"github.com/vmnetd/vmnetd/backend/link"
)

// NewVDELink returns the wire that c carries with 16-bit big-endian lengths, as vde_plug speaks it on its standard input
// and output. Nothing longer is written than what guests with mtu take, 0 meaning 1500: vde_plug has a buffer of 1521
// bytes (vde2) or 9216 (vdeplug 4), and drops all else that it has read together with a longer frame.
//
// Where c is no socket each frame is a write of its own. vde_plug loses a length of which it has read one byte of two,
// and a pipe that keeps writes apart, as Linux's do with O_DIRECT, never gives it one.
func NewVDELink(c net.Conn, mtu int) link.Link {
	return wire(c, &stream{prefix: 2, most: framesOf(mtu), apart: true})
}
