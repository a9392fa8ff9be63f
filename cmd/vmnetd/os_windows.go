package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"syscall"
)

// What Windows lacks: descriptors that are inherited by number, signals, file modes. 'serve' works there with unix
// and tcp sockets, 'run' says that it does not.

const (
	hasModes    = false
	maxUnixPath = 107 // afunix.h: sun_path[108]
)

var errWindows = errors.New("not on Windows: start 'vmnetd serve' and give QEMU the line that it prints")

func owned(os.FileInfo) bool                             { return true } // TEMP is in the user's own profile
func lockDir(string) (func(), error)                     { return func() {}, nil }
func privateSocket(_, _ string, _ syscall.RawConn) error { return nil }
func inherited(int) (net.Listener, net.Conn, error)      { return nil, nil, errWindows }
func fileLimit() (uint64, bool)                          { return 0, false } // handles: bounded by memory alone
func foreground() bool                                   { return false }
func inheritable(int) bool                               { return false }
func socketPair() (net.Conn, *os.File, error)            { return nil, nil, errWindows }
func dieWithUs(*exec.Cmd)                                {}
func signalNumber(os.Signal) int                         { return 0 }
func peerName(c net.Conn) string {
	if t, ok := c.(*net.TCPConn); ok {
		return " from " + t.RemoteAddr().String()
	}
	return ""
}

var (
	endSignals  = []os.Signal{os.Interrupt, syscall.SIGTERM}
	hangup      = []os.Signal{}
	passSignals = []os.Signal{os.Interrupt}
	typed       = map[os.Signal]bool{os.Interrupt: true}
)
