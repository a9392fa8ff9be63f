//go:build unix

package backend_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
)

// blackHole is a port of the host's loopback that answers no SYN: its backlog is full.
func (f family) blackHole(t testing.TB) netip.AddrPort {
	t.Helper()
	dom, sa := syscall.AF_INET, syscall.Sockaddr(&syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if f.gateway.Is6() {
		dom, sa = syscall.AF_INET6, &syscall.SockaddrInet6{Addr: netip.IPv6Loopback().As16()}
	}
	fd, err := syscall.Socket(dom, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, sa), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	got, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := 0
	switch a := got.(type) {
	case *syscall.SockaddrInet4:
		port = a.Port
	case *syscall.SockaddrInet6:
		port = a.Port
	}
	c, err := net.Dial("tcp", at(f.loopback, uint16(port)).String()) // the one place that a backlog of 0 has
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return at(f.gateway, uint16(port))
}
