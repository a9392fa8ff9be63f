package lab

import (
	"net"
	"syscall"
)

// hearErrors has a UDP socket hear that nobody has its address: ICMP's "host unreachable", which Linux keeps from sockets
// that do not ask for it (ip(7), IP_RECVERR).
func hearErrors(c net.Conn) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) { // one of them is not of its family
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_RECVERR, 1)
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_RECVERR, 1)
	})
}
