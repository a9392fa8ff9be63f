// Package netns attaches a Linux network namespace by a TAP in it, as an ordinary user: no helper binary, no setuid.
//
//	tap, err := netns.Attach(ctx, netns.Config{PID: pid}) // of a container, or of `unshare -Urn sleep 1h`
//	if err != nil {
//		return err
//	}
//	go network.Serve(ctx, tap, "netns")
//	lease, err := tap.Configure(ctx, "web") // asks the network's DHCP; IPv6 comes by router advertisement
//
// [Attach] makes the TAP and returns its wire, a [link.Link] whose frames may be segments of 64 KiB with checksums left
// open, at any MTU (IFF_VNET_HDR). Addresses and routes are set from outside, by rtnetlink. [Hold] prepares an
// *exec.Cmd to be started in namespaces of its own, and to begin only once its network is there.
//
// How it enters a namespace: a process with threads cannot join a user namespace, and a Go program always has some. So
// Attach forks, without exec; the child, which has one thread, joins, opens what can only be opened inside (the TAP, a
// netlink socket, a packet socket), hands the descriptors back and ends. It makes system calls and does nothing else.
//
// [NewSpace] makes namespaces that need no process to be there: they are kept by descriptors, and are gone when those are,
// even by a kill -9. Programs are started in it, sockets dialed from there, and all of it ended:
//
//	s, err := netns.NewSpace(netns.SpaceOptions{Hostname: "web1"}) // its programs are root in it
//	tap, err := s.Attach(ctx, netns.Config{Name: "eth0"})
//	p, err := s.Start(netns.Process{Args: []string{"busybox", "httpd", "-f"}, DeathSignal: syscall.SIGKILL})
//	c, err := s.Dial(ctx, "tcp", "127.0.0.1:80")
//	err = s.End(ctx) // whoever started them
//	err = s.Close()
//
// It runs no network: backend does, or whatever serves a Link. It makes no bridges, moves no interfaces, and changes
// nothing in a namespace of others but the interface it made, lo and, where asked, /etc/resolv.conf in a mount namespace. A
// Space is no sandbox: its programs have the caller's files, and may do to them what he may.
package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Config says which namespace to attach, and by what interface. The zero value of each field but the first has a
// meaning.
type Config struct {
	PID  int    // a process in the network namespace; or
	Path string // the namespace itself, as /run/user/1000/netns/web; without either it is the caller's own

	// UserPath is the user namespace that owns Path. Not needed for a PID, or where the caller has CAP_NET_ADMIN.
	UserPath string

	Name string           // of the interface; "tap0" if empty
	MAC  net.HardwareAddr // random, locally administered, if nil
	MTU  int              // 1500 if 0; 65520 costs nothing here

	// NoOffloads has the kernel hand over whole frames of at most MTU, for whoever forwards them as they are.
	NoOffloads bool

	// Ping lets all groups that the namespace knows open ping sockets (net.ipv4.ping_group_range).
	Ping bool

	// NoDefault4 and NoDefault6 keep DHCP and router advertisements from giving a default route: another interface has it.
	NoDefault4, NoDefault6 bool

	// Resolv is the path of a file that PID's mount namespace is to have for /etc/resolv.conf. PID must have that
	// namespace for itself, as commands of Hold do. Services that would answer for it, nscd and systemd-resolved, are
	// hidden.
	Resolv string

	space *Space
}

// Lease is what DHCP gave.
type Lease struct {
	Addr    netip.Prefix
	Routers []netip.Addr
	DNS     []netip.Addr
	Domain  string
	Search  []string
	MTU     int // 0: not said
	Server  netip.Addr

	Renew, Rebind, Expire time.Duration // after it was given: T1, T2 and the end (RFC 2131 §4.4.5)
}

// Error is what could not be done, and what would be right.
type Error struct {
	Op   string // "open /dev/net/tun"
	Err  error
	Hint string // "" if there is nothing to say
}

func (e *Error) Error() string { return fmt.Sprintf("netns: %s: %v", e.Op, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// ErrLinux is what every call returns on other systems.
var ErrLinux = fmt.Errorf("network namespaces are Linux's: %w", errors.ErrUnsupported)

// DefaultName is an interface's without a Config.Name.
const DefaultName = "tap0"
