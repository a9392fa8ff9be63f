//go:build !linux

package portforward

import (
	"net"
	"net/netip"
	"runtime"
	"syscall"
)

const privilegedWhere = "the system's rule"

// unprivilegedPorts is IPPORT_RESERVED.
func unprivilegedPorts() int { return 1024 }

func privilegedHow(uint16) string { return "run the program as root" }

// ownerOnly: only Linux makes the file with the socket's mode; elsewhere the
// mode is set right after.
func ownerOnly(_, _ string, _ syscall.RawConn) error { return nil }

// isClosed: poll's POLLHUP means as much only on Linux. Elsewhere a guest may
// see an end just before the reset.
func isClosed(net.Conn) bool { return false }

// Only Linux tells who has a socket without privileges.
func portOwner(Proto, netip.AddrPort) string {
	return "another program on this " + runtime.GOOS + " host"
}
func pathOwner(string) string { return "another program" }

func listenConfig() net.ListenConfig { return net.ListenConfig{} }
