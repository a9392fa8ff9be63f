package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
)

// pingSocket opens an ICMP datagram socket, which macOS lets everybody do.
func pingSocket(v6 bool, src netip.Addr) (*icmp.PacketConn, error) {
	network, addr := "udp4", "0.0.0.0"
	if v6 {
		network, addr = "udp6", "::"
	}
	if src.IsValid() {
		addr = src.String()
	}
	c, err := icmp.ListenPacket(network, addr)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("egress: ping: %w: ICMP datagram sockets are forbidden, by a sandbox profile perhaps (%w)", ErrNoPing, err)
	}
	if err != nil {
		return nil, fmt.Errorf("egress: ping: %w", err)
	}
	return c, nil
}

func pingAllowed(v6 bool) error {
	c, err := pingSocket(v6, netip.Addr{})
	if err == nil {
		return c.Close()
	}
	return err
}

func (h *Host) ping(ctx context.Context, dst netip.Addr, seq uint16, payload []byte) error {
	v6 := dst.Is6()
	if err := h.leaveBy(-1, dst); err != nil {
		return fmt.Errorf("egress: ping %s: %w", dst, err)
	}
	c, err := pingSocket(v6, h.source(dst))
	if err != nil {
		return err
	}
	defer c.Close()
	b := DatagramBuffers.Get()
	defer DatagramBuffers.Put(b)
	msg := appendEcho(b[:0], v6, seq, payload)
	// Unlike Linux, macOS computes neither the identifier nor, for IPv4, the
	// checksum, and it hands every such socket all replies.
	id := uint16(time.Now().UnixNano() >> 10)
	msg[4], msg[5] = byte(id>>8), byte(id)
	if !v6 {
		sum := checksum(msg)
		msg[2], msg[3] = byte(sum>>8), byte(sum)
	}
	if _, err := c.WriteTo(msg, &net.UDPAddr{IP: dst.AsSlice()}); err != nil {
		return &UnreachableError{Dst: netip.AddrPortFrom(dst, 0), Kind: Classify(err), Err: err}
	}
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("egress: ping %s: %w", dst, context.Cause(ctx))
		}
		if err != nil {
			return err
		}
		ua, ok := from.(*net.UDPAddr)
		if !ok || ua.AddrPort().Addr().Unmap().WithZone("") != dst {
			continue
		}
		if answers(b[:n], v6, seq, payload) && b[4] == byte(id>>8) && b[5] == byte(id) {
			return nil
		}
	}
}

// checksum is the Internet checksum, RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
