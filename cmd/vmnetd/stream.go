package main

// Doors where guests come as streams of bytes: any way to have a net.Conn, and any framing on it.

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"

	"github.com/mdlayher/vsock"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/qemu"
)

var (
	qemuFraming = framing{
		name:  "qemu",
		usage: "take QEMU's -netdev stream guests at `ADDRESS`, and HyperKit's and gvforwarder's",
		forms: append(streams(anyStream), dials(plainQEMU)...),
		lines: qemuLines,
	}
	hyperkitFraming = framing{
		name:  "hyperkit",
		usage: "take HyperKit's and gvforwarder's guests at `ADDRESS`",
		forms: streams(hyperKit), // nobody of theirs listens
		lines: hyperkitLines,
	}
	vdeFraming = framing{
		name:  "vde",
		usage: "take a vde_plug at `ADDRESS`",
		forms: append(streams(vdePlug), dials(vdePlug)...),
		lines: vdeLines,
	}
)

// shake makes a link of a connection, after the framing's handshake if it has one.
type shake func(*door, net.Conn) (link.Link, error)

func anyStream(d *door, c net.Conn) (link.Link, error) { return qemu.Accept(c, d.told) }
func plainQEMU(_ *door, c net.Conn) (link.Link, error) { return qemu.NewLink(c), nil }
func hyperKit(d *door, c net.Conn) (link.Link, error)  { return qemu.AcceptHyperKit(c, d.told) }
func vdePlug(d *door, c net.Conn) (link.Link, error)   { return qemu.NewVDELink(c, d.told), nil }

// streams are the forms of a framing over streams that come to us.
func streams(s shake) []form {
	return []form{
		{"unix", "unix:PATH", func(d *door, a address) error {
			l, remove, err := listenUnix(a.rest)
			if err != nil {
				return err
			}
			d.in, d.remove, d.addr = s.at(d, l), remove, "unix:"+l.Addr().String()
			return nil
		}},
		{"tcp", "tcp:[HOST:]PORT", func(d *door, a address) error {
			l, err := listenTCP(d, a.rest)
			if err != nil {
				return err
			}
			d.in, d.addr = s.at(d, l), "tcp:"+l.Addr().String()
			return nil
		}},
		{"vsock", "vsock:[CID:]PORT", func(d *door, a address) error {
			l, err := listenVsock(d, a.rest)
			if err != nil {
				return err
			}
			d.in, d.addr = s.at(d, l), vsockName(l.Addr())
			return nil
		}},
		{"fd", "fd:N", func(d *door, a address) error {
			n, err := descriptor(a.rest)
			if err != nil {
				return err
			}
			d.addr = "fd:" + strconv.Itoa(n)
			if l, err := inheritedVsock(n); l != nil || err != nil {
				if err == nil {
					d.in = s.at(d, l)
				}
				return err
			}
			l, c, err := inherited(n)
			switch {
			case err != nil:
				return err
			case l != nil:
				d.in = s.at(d, l)
			default:
				d.only = s.caller(d, c, "")
			}
			return nil
		}},
		{"stdio", "stdio", func(d *door, a address) error {
			if a.rest != "" {
				return usagef("stdio has nothing behind it")
			}
			c, err := openStdio(d.framing.name == "vde")
			if err != nil {
				return err
			}
			d.addr, d.stdio, d.only = "stdio", true, s.caller(d, c, "")
			return nil
		}},
	}
}

// dials are the forms of a framing over streams to peers that listen.
func dials(s shake) (forms []form) {
	for _, f := range [][2]string{{"unix", "PATH"}, {"tcp", "HOST:PORT"}, {"vsock", "CID:PORT"}} {
		kind := "dial:" + f[0]
		forms = append(forms, form{kind, kind + ":" + f[1], func(d *door, a address) error {
			if f[0] == "unix" && a.rest != "" && a.rest[0] != '@' { // Linux's abstract names are no paths
				var err error
				if a.rest, err = filepath.Abs(a.rest); err != nil { // for QEMU, which may be started elsewhere
					return err
				}
			}
			dial, err := dialTo(f[0], a.rest)
			if err != nil {
				return err
			}
			d.addr = kind + ":" + a.rest
			d.in = newDialler(d, d.addr, dial, func(c net.Conn) *caller { return s.caller(d, c, "") })
			return nil
		}})
	}
	return forms
}

// at is a listener's guests.
func (s shake) at(d *door, l net.Listener) accepter { return connAccepter{l, s, d} }

type connAccepter struct {
	net.Listener
	shake shake
	door  *door
}

func (a connAccepter) accept() (*caller, error) {
	c, err := a.Accept()
	if err != nil {
		return nil, err
	}
	peer := peerName(c)
	if from, ok := c.RemoteAddr().(*vsock.Addr); ok {
		peer = " from " + vsockName(from)
	}
	return a.shake.caller(a.door, c, peer), nil
}

func (s shake) caller(d *door, c net.Conn, peer string) *caller {
	return &caller{peer, func() (link.Link, error) { return s(d, c) }, func() { c.Close() }}
}

var (
	errNoDescriptor = errors.New("no such descriptor: was it opened before vmnetd started, as in 3<>… ?")
	errNoSocket     = errors.New("not a socket")
	errNoStream     = errors.New("not a stream socket")
)

// descriptor reads the number of one that we were started with.
func descriptor(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16) // descriptors are small numbers; RLIMIT_NOFILE ends them
	if err != nil {
		return 0, usagef("%q is no descriptor: want fd:3", s)
	}
	return int(n), nil
}

func listenTCP(d *door, s string) (*net.TCPListener, error) {
	ap, err := hostPort(d, s)
	if err != nil {
		return nil, err
	}
	return net.ListenTCP("tcp", net.TCPAddrFromAddrPort(ap))
}

// hostPort reads [HOST:]PORT of an address to listen at, this machine's alone if HOST is missing, and notes what the
// user should know of any other.
func hostPort(d *door, s string) (netip.AddrPort, error) {
	var none netip.AddrPort
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = "", s // a port alone
	}
	switch host {
	case "", "localhost":
		host = "127.0.0.1" // what is open to a network must be written out
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return none, usagef("%q is no IP address: want PORT for this machine alone, or ADDRESS:PORT", host)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return none, usagef("%q is no port: want 0 to 65535", port)
	}
	ap := netip.AddrPortFrom(a, uint16(n))
	if !a.IsLoopback() {
		d.note = "frames are not authenticated: whoever reaches " + ap.String() + " is on the guests' network"
	}
	return ap, nil
}
