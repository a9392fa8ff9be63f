package vm

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
)

// Netdev is QEMU's side of a network card: one of its -netdev forms.
type Netdev struct {
	options   string // without the id
	file      *os.File
	fileKey   string // the option that takes file's number
	stream    bool
	reconnect time.Duration
}

// StreamUnix connects to a unix socket that speaks QEMU's stream framing.
func StreamUnix(path string) Netdev {
	return Netdev{options: "stream,server=off,addr.type=unix,addr.path=" + escape(path), stream: true}
}

// StreamTCP connects to a TCP socket that speaks QEMU's stream framing.
func StreamTCP(a netip.AddrPort) Netdev {
	return Netdev{options: fmt.Sprintf("stream,server=off,addr.type=inet,addr.host=%s,addr.port=%d", a.Addr(), a.Port()), stream: true}
}

// StreamFD speaks the stream framing on an open stream socket. Start passes it on; the caller
// still closes its own.
func StreamFD(f *os.File) Netdev {
	return Netdev{options: "stream,addr.type=fd", file: f, fileKey: "addr.str"}
}

// DgramUnix sends a frame a datagram between two unix datagram sockets. QEMU makes the local one.
func DgramUnix(local, remote string) Netdev {
	return Netdev{options: "dgram,local.type=unix,local.path=" + escape(local) + ",remote.type=unix,remote.path=" + escape(remote)}
}

// DgramFD sends a frame a datagram on an open, connected datagram socket.
func DgramFD(f *os.File) Netdev {
	return Netdev{options: "dgram,local.type=fd", file: f, fileKey: "local.str"}
}

// User is QEMU's own user network: what a test compares with. Options as QEMU takes them, "" for
// none.
func User(options string) Netdev {
	if options != "" {
		options = "," + options
	}
	return Netdev{options: "user" + options}
}

// Reconnect lets QEMU dial a stream socket again after it broke, at this interval. QEMU below 8.0
// cannot, and Start says so; see Version.CanReconnect.
func (n Netdev) Reconnect(every time.Duration) Netdev {
	n.reconnect = every
	return n
}

// argument is the value of -netdev. fd is the number that file has in QEMU.
func (n Netdev) argument(id string, v Version, fd int) (string, error) {
	kind, rest, _ := strings.Cut(n.options, ",")
	arg := kind + ",id=" + id
	if rest != "" {
		arg += "," + rest
	}
	if n.file != nil {
		arg += fmt.Sprintf(",%s=%d", n.fileKey, fd)
	}
	if n.reconnect > 0 {
		switch {
		case !n.stream:
			return "", fmt.Errorf("netdev %s: only a stream socket that QEMU dials can reconnect", kind)
		case v.atLeast(9, 2):
			arg += fmt.Sprintf(",reconnect-ms=%d", n.reconnect.Milliseconds())
		case v.CanReconnect():
			arg += fmt.Sprintf(",reconnect=%d", (n.reconnect+time.Second-1)/time.Second)
		default:
			return "", fmt.Errorf("QEMU %s cannot reconnect a stream netdev, 8.0 is the first that can", v)
		}
	}
	return arg, nil
}

// escape doubles commas, which end a value in QEMU's options.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// NIC is one network card of a guest: eth0, eth1, … in order.
type NIC struct {
	Netdev
	// MAC is the card's address; nil for one made of the guest's name and the card's number.
	MAC net.HardwareAddr
	// Options are more of -device, such as "mrg_rxbuf=off".
	Options string
}

// MAC is the address that a guest's card gets when none is given: the same for the same name.
func MAC(name string, card int) net.HardwareAddr {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", name, card))
	// 52:54:00 is the prefix that QEMU's own cards have.
	return net.HardwareAddr{0x52, 0x54, 0x00, sum[0], sum[1], sum[2]}
}
