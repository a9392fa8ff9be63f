package portforward

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxUnixPath is sizeof sun_path without its NUL (unix(7)).
const maxUnixPath = 107

const privilegedWhere = "net.ipv4.ip_unprivileged_port_start"

// unprivilegedPorts is the first port anybody may bind.
func unprivilegedPorts() int {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			return n
		}
	}
	return 1024 // IPPORT_RESERVED, the default
}

func privilegedHow(port uint16) string {
	return fmt.Sprintf("sysctl -w %s=%d, or setcap cap_net_bind_service=+ep on the program", privilegedWhere, port)
}

// ownerOnly gives a socket its mode before bind makes the file: at no moment
// can anybody else connect.
func ownerOnly(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
		return cerr
	}
	return err
}

// isClosed says whether a TCP connection has ended both ways. For one that has
// not been told to end its own, that is a reset: a mere FIN from the peer
// leaves it half open.
func isClosed(c net.Conn) bool {
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return false
	}
	is, err := polled(tc, unix.POLLHUP)
	return is || err != nil // the other direction has aborted it already
}

// portOwner names the program that has a port, as far as this user may know.
func portOwner(proto Proto, at netip.AddrPort) string {
	// A port may also be taken by the near end of a connection; who listens is
	// the likelier answer.
	listening, others := make(map[string]bool), make(map[string]bool)
	for _, table := range []string{string(proto), string(proto) + "6"} {
		readTable("/proc/net/"+table, func(f []string) {
			// sl local_address rem_address st … inode is the tenth
			if len(f) < 10 {
				return
			}
			a, ok := procAddr(f[1])
			if ok && a.Port() == at.Port() &&
				(a.Addr() == at.Addr().WithZone("") || a.Addr().IsUnspecified() || at.Addr().IsUnspecified()) {
				if proto == TCP && f[3] != "0A" { // TCP_LISTEN
					others[f[9]] = true
				} else {
					listening[f[9]] = true
				}
			}
		})
	}
	if len(listening) == 0 {
		return socketOwner(others)
	}
	return socketOwner(listening)
}

// pathOwner names the program that listens on a socket file.
func pathOwner(path string) string {
	inodes := make(map[string]bool)
	readTable("/proc/net/unix", func(f []string) {
		// Num RefCount Protocol Flags Type St Inode Path
		if len(f) >= 8 && strings.Join(f[7:], " ") == path {
			inodes[f[6]] = true
		}
	})
	return socketOwner(inodes)
}

func readTable(name string, line func(fields []string)) {
	f, err := os.Open(name)
	if err != nil {
		return
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		line(strings.Fields(s.Text()))
	}
}

// procAddr reads 0100007F:08AE: words in host order, as the kernel printed
// them with %08X.
func procAddr(s string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	p, perr := strconv.ParseUint(port, 16, 16)
	if err != nil || perr != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), ok
}

// socketOwner finds which process holds a socket. It reads every process's
// descriptors, which only an error message is worth.
func socketOwner(inodes map[string]bool) string {
	const unknown = "another program"
	if len(inodes) == 0 {
		return unknown
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil {
			continue
		}
		inode, ok := strings.CutPrefix(to, "socket:[")
		if !ok || !inodes[strings.TrimSuffix(inode, "]")] {
			continue
		}
		pid := strings.Split(link, "/")[2]
		if pid == strconv.Itoa(os.Getpid()) {
			return "this program itself"
		}
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		return fmt.Sprintf("%s (pid %s)", quote(string(bytes.TrimSpace(comm))), pid)
	}
	return unknown + " (another user's: root can see which, with ss -lnp)"
}

// listenConfig sets keep-alive on the listening socket, whose connections have
// it from there: net would set it on each of them, in four calls. 15 s and nine
// times 15 s are net's own.
func listenConfig() net.ListenConfig {
	return net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			for _, o := range [][3]int{
				{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
				{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
				{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
				{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
			} {
				if err == nil {
					err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), o[0], o[1], o[2]))
				}
			}
		}); cerr != nil {
			return cerr
		}
		return err
	}}
}
