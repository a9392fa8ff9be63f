package qemu

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vmnetd/vmnetd/backend/link"
)

// etherMTU is what guests have that were told nothing else (IEEE 802.3 §3.2.7).
const etherMTU = 1500

// framesOf is the longest frame of guests with an MTU: an Ethernet header and a VLAN tag (IEEE 802.1Q) more, as far as
// 16 bits can say it.
func framesOf(mtu int) int {
	if mtu == 0 {
		mtu = etherMTU
	}
	return min(mtu+14+4, 0xffff)
}

// NewHyperKitLink returns the wire that c carries with 16-bit little-endian lengths, as HyperKit and gvforwarder speak
// it once they have shaken hands, and gvforwarder's "stdio:" from the start. Nothing longer is written than what guests
// with mtu take, 0 meaning 1500: HyperKit gives up on a longer frame than it was told of, and gvforwarder cuts what its
// guest sends to its own -mtu, so that a guest must not be told of more.
func NewHyperKitLink(c net.Conn, mtu int) link.Link {
	return wire(c, &stream{prefix: 2, little: true, most: framesOf(mtu)})
}

// AcceptHyperKit returns the wire of a guest that has just connected with any of the beginnings that lead to 16-bit
// little-endian lengths: HyperKit's handshake, gvforwarder's POST /connect, or frames at once. Who has a handshake
// begins with it as soon as it is connected, so a guest that is silent for a second has none. A handshake that is wrong,
// or not done in a few seconds, is told why where it can be, and c is closed.
func AcceptHyperKit(c net.Conn, mtu int) (link.Link, error) {
	// A capital letter may as well be in the length of a frame, as of an 86-byte neighbour solicitation. Five bytes tell:
	// a frame whose length they spell would have 16,000 bytes or more, from a guest that was leased no address yet.
	return accept(c, mtu, len(magic), NewHyperKitLink)
}

// Accept is AcceptHyperKit for guests that else speak QEMU's framing. One byte tells: no frame is so long that its
// length begins with another than zero.
func Accept(c net.Conn, mtu int) (link.Link, error) {
	return accept(c, mtu, 1, func(c net.Conn, _ int) link.Link { return NewLink(c) })
}

// accept looks at as many bytes for a handshake, does it, and makes the link that follows, or makes the bare one.
func accept(c net.Conn, mtu, look int, bare func(net.Conn, int) link.Link) (link.Link, error) {
	quiet := c.SetReadDeadline(time.Now().Add(silence)) == nil
	begin, c, err := peek(c, 1)
	if quiet {
		c.SetReadDeadline(time.Time{})
	}
	if quiet && errors.Is(err, os.ErrDeadlineExceeded) {
		return bare(c, mtu), nil
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	if !isMethod(begin[0]) && begin[0] != magic[0] {
		return bare(c, mtu), nil
	}
	var late atomic.Bool
	end := c
	timer := time.AfterFunc(handshakeTime, func() { // a deadline would do it on sockets alone
		late.Store(true)
		end.Close()
	})
	if look > 1 {
		begin, c, err = peek(c, look)
	}
	switch {
	case err != nil:
	case strings.HasPrefix(magic, string(begin)):
		bare, err = NewHyperKitLink, greet(c, mtu)
	case look == 1 || slices.ContainsFunc(methods, func(m string) bool { return strings.HasPrefix(m, string(begin)) }):
		bare, err = NewHyperKitLink, connect(c)
	}
	if timer.Stop(); late.Load() {
		err = fmt.Errorf("qemu: handshake: not done within %v", handshakeTime)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return bare(c, mtu), nil
}

// silence is how long a guest's first byte is waited for. Clients send it right after connect(2); a second is what one
// may be kept from the processor.
var silence = time.Second

// handshakeTime is how long a handshake may take. Clients send theirs in one write or two; a VMM under emulation on a
// busy machine was never seen to need a second. Tests shorten both.
var handshakeTime = 10 * time.Second

// HyperKit's handshake, as vpnkit's protocol.md and gvproxy have it: both sides say "VMN3T", a version and a commit;
// the VM says what it wants and which VM it is; it is told its MTU, the longest frame, and its MAC.
const (
	magic   = "VMN3T"
	initLen = 5 + 4 + 40 // magic, version in 32 bits, commit in hexadecimal digits

	commandLen = 1 + 36 + 4 // what is wanted, the VM's UUID in text, an address that it would like
	byUUID     = 1          // wanted: a network card
	byAddress  = 8          // the same with an address, which we leave to DHCP

	replyLen = 1 + 1 + 256
	granted  = 1 // MTU, longest frame, both in 16 bits little-endian, and MAC follow
	refused  = 2 // a length and a text follow
)

// greet is the network's side of the handshake.
func greet(c net.Conn, mtu int) error {
	var hello [initLen]byte
	if _, err := io.ReadFull(c, hello[:]); err != nil {
		return fmt.Errorf("qemu: HyperKit's greeting: %w", err)
	}
	if string(hello[:len(magic)]) != magic {
		return fmt.Errorf("qemu: %q is no greeting of HyperKit's", hello[:len(magic)])
	}
	if _, err := c.Write(hello[:]); err != nil { // as if we were of its version: there is but one form of what follows
		return fmt.Errorf("qemu: HyperKit's greeting: %w", err)
	}
	var command [commandLen]byte
	if _, err := io.ReadFull(c, command[:]); err != nil {
		return fmt.Errorf("qemu: HyperKit's command: %w", err)
	}
	var reply [replyLen]byte
	var wrong error
	if command[0] == byUUID || command[0] == byAddress {
		if mtu == 0 {
			mtu = etherMTU
		}
		reply[0] = granted
		binary.LittleEndian.PutUint16(reply[1:], uint16(mtu))
		binary.LittleEndian.PutUint16(reply[3:], uint16(framesOf(mtu)))
		copy(reply[5:], cardOf(command[1:37]))
	} else {
		wrong = fmt.Errorf("qemu: HyperKit wants %d: only a network card, %d or %d, is to be had", command[0], byUUID, byAddress)
		reply[0] = refused
		reply[1] = byte(copy(reply[2:], "no such command"))
	}
	if _, err := c.Write(reply[:]); err != nil && wrong == nil {
		return fmt.Errorf("qemu: answer to HyperKit: %w", err)
	}
	return wrong
}

// cardOf is the MAC of a VM, the same whenever it comes, in the block that QEMU uses.
func cardOf(uuid []byte) net.HardwareAddr {
	sum := sha256.Sum256(uuid)
	return net.HardwareAddr{0x52, 0x54, 0, sum[0], sum[1], sum[2]}
}
