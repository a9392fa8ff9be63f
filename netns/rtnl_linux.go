package netns

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// netlink is a socket of rtnetlink(7) in the namespace. Requests are made one at a time and answered at once.
type netlink struct {
	mu  sync.Mutex
	fd  int // -1 after close
	seq uint32
	buf []byte
}

func newNetlink(fd int) *netlink {
	// The kernel answers within the call; a second means that it never will.
	tv := unix.NsecToTimeval(int64(time.Second))
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	return &netlink{fd: fd, buf: make([]byte, 64<<10)}
}

func (n *netlink) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd >= 0 {
		unix.Close(n.fd)
		n.fd = -1
	}
}

// request is a message being built: a header, a fixed part, attributes.
type request []byte

func newRequest(kind, flags uint16, fixed []byte) request {
	r := make(request, unix.SizeofNlMsghdr, 256)
	ne := binary.NativeEndian
	ne.PutUint16(r[4:], kind)
	ne.PutUint16(r[6:], unix.NLM_F_REQUEST|flags)
	return append(r, fixed...)
}

func (r *request) attr(kind uint16, data []byte) {
	b := make([]byte, unix.SizeofRtAttr, unix.SizeofRtAttr+len(data)+3)
	binary.NativeEndian.PutUint16(b, uint16(unix.SizeofRtAttr+len(data)))
	binary.NativeEndian.PutUint16(b[2:], kind)
	b = append(b, data...)
	for len(b)%unix.RTA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	*r = append(*r, b...)
}

func (r *request) attr32(kind uint16, v uint32) {
	r.attr(kind, binary.NativeEndian.AppendUint32(nil, v))
}

// do sends a request and calls each with the fixed part and attributes of each answer, until it is acknowledged.
func (n *netlink) do(r request, each func(kind uint16, body []byte)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd < 0 {
		return net.ErrClosed
	}
	ne := binary.NativeEndian
	n.seq++
	ne.PutUint32(r, uint32(len(r)))
	ne.PutUint32(r[8:], n.seq)
	if err := unix.Sendto(n.fd, r, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	for {
		m, _, err := unix.Recvfrom(n.fd, n.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		for b := n.buf[:m]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(ne.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				break
			}
			kind, seq, body := ne.Uint16(b[4:]), ne.Uint32(b[8:]), b[unix.SizeofNlMsghdr:size]
			b = b[min((size+3)&^3, len(b)):]
			if seq != n.seq {
				continue
			}
			switch kind {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				if len(body) < 4 {
					return fmt.Errorf("netlink: an answer of %d bytes", len(body))
				}
				if e := int32(ne.Uint32(body)); e != 0 {
					return unix.Errno(-e)
				}
				return nil
			default:
				if each != nil {
					each(kind, body)
				}
			}
		}
	}
}

// attrs calls f with each attribute.
func attrs(b []byte, f func(kind uint16, data []byte)) {
	ne := binary.NativeEndian
	for len(b) >= unix.SizeofRtAttr {
		size := int(ne.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return
		}
		f(ne.Uint16(b[2:]), b[unix.SizeofRtAttr:size])
		b = b[min((size+3)&^3, len(b)):]
	}
}

func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// linkFacts are what is asked of an interface.
type linkFacts struct {
	index int
	mac   net.HardwareAddr
	mtu   int
}

func (n *netlink) link(name string) (f linkFacts, err error) {
	r := newRequest(unix.RTM_GETLINK, 0, bytesOf(&unix.IfInfomsg{Family: unix.AF_UNSPEC}))
	r.attr(unix.IFLA_IFNAME, append([]byte(name), 0))
	r[6] |= unix.NLM_F_ACK
	err = n.do(r, func(_ uint16, body []byte) {
		if len(body) < unix.SizeofIfInfomsg {
			return
		}
		f.index = int(int32(binary.NativeEndian.Uint32(body[4:])))
		attrs(body[unix.SizeofIfInfomsg:], func(kind uint16, data []byte) {
			switch {
			case kind == unix.IFLA_ADDRESS:
				f.mac = append(net.HardwareAddr(nil), data...)
			case kind == unix.IFLA_MTU && len(data) == 4:
				f.mtu = int(binary.NativeEndian.Uint32(data))
			}
		})
	})
	return f, err
}

// setLink changes an interface by name: its address if mac is not nil, its MTU if it is not 0, and whether it is up.
func (n *netlink) setLink(name string, mac net.HardwareAddr, mtu int, up bool) error {
	m := unix.IfInfomsg{Family: unix.AF_UNSPEC}
	if up {
		m.Flags, m.Change = unix.IFF_UP, unix.IFF_UP
	}
	r := newRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK, bytesOf(&m))
	r.attr(unix.IFLA_IFNAME, append([]byte(name), 0))
	if mac != nil {
		r.attr(unix.IFLA_ADDRESS, mac)
	}
	if mtu != 0 {
		r.attr32(unix.IFLA_MTU, uint32(mtu))
	}
	return n.do(r, nil)
}

func (n *netlink) removeLink(index int) error {
	return n.do(newRequest(unix.RTM_DELLINK, unix.NLM_F_ACK, bytesOf(&unix.IfInfomsg{Family: unix.AF_UNSPEC, Index: int32(index)})), nil)
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// addAddr gives an interface an address, or brings its time up to date: life 0 is for ever.
func (n *netlink) addAddr(index int, p netip.Prefix, life time.Duration) error {
	m := unix.IfAddrmsg{Family: family(p.Addr()), Prefixlen: uint8(p.Bits()), Index: uint32(index)}
	r := newRequest(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, bytesOf(&m))
	a := p.Addr().AsSlice()
	r.attr(unix.IFA_LOCAL, a)
	r.attr(unix.IFA_ADDRESS, a)
	if p.Addr().Is4() {
		b := [4]byte(a)
		for i := p.Bits(); i < 32; i++ {
			b[i/8] |= 0x80 >> (i % 8)
		}
		r.attr(unix.IFA_BROADCAST, b[:])
	} else {
		r.attr32(unix.IFA_FLAGS, unix.IFA_F_NODAD) // there is nobody else on a wire that has just been made
	}
	if life > 0 {
		secs := uint32(min(life/time.Second, 1<<31))
		r.attr(unix.IFA_CACHEINFO, bytesOf(&unix.IfaCacheinfo{Prefered: secs, Valid: secs}))
	}
	return n.do(r, nil)
}

func (n *netlink) removeAddr(index int, p netip.Prefix) error {
	m := unix.IfAddrmsg{Family: family(p.Addr()), Prefixlen: uint8(p.Bits()), Index: uint32(index)}
	r := newRequest(unix.RTM_DELADDR, unix.NLM_F_ACK, bytesOf(&m))
	r.attr(unix.IFA_LOCAL, p.Addr().AsSlice())
	return n.do(r, nil)
}

// addRoute makes via the way to a prefix. by says who did (RTPROT_…).
func (n *netlink) addRoute(index int, to netip.Prefix, via netip.Addr, by uint8) error {
	m := unix.RtMsg{Family: family(via), Dst_len: uint8(to.Bits()), Table: unix.RT_TABLE_MAIN, Protocol: by, Scope: unix.RT_SCOPE_UNIVERSE, Type: unix.RTN_UNICAST}
	r := newRequest(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, bytesOf(&m))
	if to.Bits() > 0 {
		r.attr(unix.RTA_DST, to.Masked().Addr().AsSlice())
	}
	r.attr(unix.RTA_GATEWAY, via.AsSlice())
	r.attr32(unix.RTA_OIF, uint32(index))
	return n.do(r, nil)
}

// everywhere is the prefix of the default route of an address's family.
func everywhere(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// addrs are an interface's addresses that may be used, link-local ones left out.
func (n *netlink) addrs(index int) (list []netip.Prefix, err error) {
	r := newRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP, bytesOf(&unix.IfAddrmsg{Family: unix.AF_UNSPEC}))
	err = n.do(r, func(_ uint16, body []byte) {
		if len(body) < unix.SizeofIfAddrmsg || int(binary.NativeEndian.Uint32(body[4:])) != index {
			return
		}
		if body[2]&unix.IFA_F_TENTATIVE != 0 || body[3] == unix.RT_SCOPE_LINK {
			return
		}
		attrs(body[unix.SizeofIfAddrmsg:], func(kind uint16, data []byte) {
			if a, ok := netip.AddrFromSlice(data); ok && (kind == unix.IFA_LOCAL || kind == unix.IFA_ADDRESS && a.Is6()) {
				list = append(list, netip.PrefixFrom(a, int(body[1])))
			}
		})
	})
	return list, err
}
