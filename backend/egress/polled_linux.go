package egress

import (
	"net"
	"net/netip"
)

var _ PolledPacket = (*packetConn)(nil)

// Poll implements PolledPacket.
func (c *packetConn) Poll(f func(fd int) error) error {
	var err error
	if cerr := c.rd.raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return net.ErrClosed
	}
	return err
}

// TryReadBorrowed implements PolledPacket.
func (c *packetConn) TryReadBorrowed(bufs Buffers) ([]byte, netip.AddrPort, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	r := &c.rd
	r.buf, r.bufs = nil, bufs
	r.n, r.from, r.err = 0, netip.AddrPort{}, nil
	done := false
	if err := r.raw.Control(func(fd uintptr) { done = r.try(fd) }); err != nil {
		return nil, netip.AddrPort{}, net.ErrClosed
	}
	b := r.buf
	r.buf, r.bufs = nil, nil
	switch {
	case !done:
		return nil, netip.AddrPort{}, ErrWait
	case r.err != nil:
		if b != nil {
			bufs.Put(b)
		}
		return nil, netip.AddrPort{}, r.err
	}
	return b[:r.n], r.from, nil
}
