// Package stream is the guests' side of vmnetd's stream framings, as the programs speak them that vmnetd takes, written
// from what those send and not with package qemu, which it tests.
//
//	c, err := net.Dial("unix", path)
//	…
//	err = stream.Forwarder.Greet(c)                     // POST /connect, as gvforwarder does
//	err = stream.Forwarder.Copy(c, tap, nil)            // frames until one of them ends
package stream

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
)

// Framing is how a program begins and how its frames' lengths stand on the stream.
type Framing struct {
	Name   string
	Prefix int // bytes of a length
	Little bool
	Greet  func(net.Conn) error
}

// The framings, by who speaks them.
var (
	QEMU      = Framing{"qemu", 4, false, silent}
	Forwarder = Framing{"connect", 2, true, connect} // gvforwarder by a URL
	Bare      = Framing{"bare", 2, true, silent}     // gvforwarder by stdio:
	HyperKit  = Framing{"hyperkit", 2, true, vpnkit} //
	VDE       = Framing{"vde", 2, false, silent}     // vde_plug
)

// All is every framing.
var All = []Framing{QEMU, Forwarder, Bare, HyperKit, VDE}

// ByName finds one.
func ByName(name string) (Framing, error) {
	var names []string
	for _, f := range All {
		if f.Name == name {
			return f, nil
		}
		names = append(names, f.Name)
	}
	return Framing{}, fmt.Errorf("no framing %q: want %s", name, strings.Join(names, ", "))
}

// Put writes a length to p.
func (f Framing) Put(p []byte, n int) {
	switch {
	case f.Prefix == 4:
		binary.BigEndian.PutUint32(p, uint32(n))
	case f.Little:
		binary.LittleEndian.PutUint16(p, uint16(n))
	default:
		binary.BigEndian.PutUint16(p, uint16(n))
	}
}

// Length reads one.
func (f Framing) Length(p []byte) int {
	switch {
	case f.Prefix == 4:
		return int(binary.BigEndian.Uint32(p))
	case f.Little:
		return int(binary.LittleEndian.Uint16(p))
	}
	return int(binary.BigEndian.Uint16(p))
}

func silent(net.Conn) error { return nil }

// connect is what Go's http.Request.Write makes of gvforwarder's request for unix:///PATH/connect. No answer comes.
func connect(c net.Conn) error {
	_, err := io.WriteString(c, "POST /connect HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n\r\n")
	return err
}

// UUID is the VM that HyperKit's handshake speaks of: gvproxy's default.
const UUID = "c3d68012-0208-11ea-9fd7-f2189899ab08"

func vpnkit(c net.Conn) error {
	hello := append([]byte("VMN3T\x16\x00\x00\x00"), "e9a2c85f0d8f2e1b7f3b1a9d5c6e4f3a2b1c0d9e"...)
	if _, err := c.Write(hello); err != nil {
		return err
	}
	back := make([]byte, len(hello))
	if _, err := io.ReadFull(c, back); err != nil {
		return fmt.Errorf("HyperKit's greeting: %w", err)
	}
	if string(back[:5]) != "VMN3T" {
		return fmt.Errorf("HyperKit's greeting is answered with %q", back)
	}
	command := append([]byte{1}, UUID...)
	if _, err := c.Write(append(command, 0, 0, 0, 0)); err != nil {
		return err
	}
	reply := make([]byte, 258)
	if _, err := io.ReadFull(c, reply); err != nil {
		return fmt.Errorf("HyperKit's command: %w", err)
	}
	mtu, most := binary.LittleEndian.Uint16(reply[1:]), binary.LittleEndian.Uint16(reply[3:])
	if reply[0] != 1 || mtu < 1280 || most < mtu+14 || reply[5]&1 != 0 {
		return fmt.Errorf("HyperKit's command is answered with %x", reply[:16])
	}
	return nil
}
