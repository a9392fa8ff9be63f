package main

// Sockets that systemd opened (systemd.socket(5), sd_listen_fds(3)). FileDescriptorName= says what each is for: the name of
// a framing makes it a door, "control" the control socket, "api" a port of the API.

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/mdlayher/vsock"
)

// firstHanded is SD_LISTEN_FDS_START.
const firstHanded = 3

// controlName is the name of the control socket, apiName of where the API answers over TCP.
const controlName, apiName = "control", "api"

// handedSocket is one of systemd's.
type handedSocket struct {
	name string
	fd   int
}

// handedFiles are never closed: their descriptors become others' files, which are.
var handedFiles []*os.File

// handedSockets are those of the environment, which then does not have them any more.
func handedSockets() (list []handedSocket) {
	files := activation.Files(true)
	handedFiles = append(handedFiles, files...)
	for i, f := range files {
		list = append(list, handedSocket{f.Name(), firstHanded + i})
	}
	return list
}

// activate opens what systemd handed over, but for descriptors that flags name by their numbers.
func (d *daemon) activate(list []handedSocket, addrs []*[]string, plans []plan) error {
	claimed := map[string]bool{}
	for _, of := range addrs {
		for _, s := range *of {
			if a, err := parseAddress(s); err == nil && a.kind == "fd" {
				claimed[a.rest] = true
			}
		}
	}
	for _, h := range list {
		if claimed[strconv.Itoa(h.fd)] {
			continue
		}
		if err := d.take(h, plans); err != nil {
			return fmt.Errorf("socket %d of systemd's, %q: %w", h.fd, h.name, err)
		}
	}
	return nil
}

func (d *daemon) take(h handedSocket, plans []plan) error {
	name, options, more := strings.Cut(h.name, ",")
	if name == controlName && !more {
		return d.takeControl(h.fd)
	}
	if name == apiName {
		a, err := apiAt(splitCommas(h.name)[1:], func() (*net.TCPListener, error) { return inheritedLoopback(h.fd) })
		if err == nil {
			d.api = append(d.api, a)
		}
		return err
	}
	var names []string
	for _, f := range framings {
		if _, ok := f.form("fd"); !ok {
			continue
		}
		names = append(names, f.name)
		if f.name != name {
			continue
		}
		addr := "fd:" + strconv.Itoa(h.fd)
		if more {
			addr += "," + options
		}
		if err := checkNetwork(addr, plans); err != nil {
			return usageError{err}
		}
		if err := d.open(f, addr); err != nil {
			return err
		}
		door := d.doors[len(d.doors)-1]
		if door.in != nil {
			door.bound = boundAt(door.in.Addr())
		}
		return nil
	}
	hint := "in the .socket unit, a line FileDescriptorName= with one of those names"
	if name == "connection" {
		hint = "in the .socket unit, Accept=no: one daemon takes all guests"
	}
	return hintError{usagef("what is it for? want %s, %s or %s", strings.Join(names, ", "), controlName, apiName), hint}
}

// boundAt is a listener's address as a flag has it.
func boundAt(a net.Addr) string {
	switch a := a.(type) {
	case *net.UnixAddr:
		return "unix:" + a.Name
	case *net.TCPAddr:
		return "tcp:" + a.String()
	case *net.UDPAddr:
		return "udp:" + a.String()
	case *vsock.Addr:
		return vsockName(a)
	}
	return ""
}

// inheritedLoopback is a listener that only this machine reaches.
func inheritedLoopback(fd int) (*net.TCPListener, error) {
	l, c, err := inherited(fd)
	if err != nil {
		return nil, err
	}
	t, ok := l.(*net.TCPListener)
	if ok {
		if _, err := apiAddress("tcp:" + t.Addr().String()); err != nil {
			t.Close()
			return nil, err
		}
		return t, nil
	}
	if l != nil {
		l.Close()
	}
	if c != nil {
		c.Close()
	}
	return nil, usagef("not a listening TCP socket: want ListenStream=127.0.0.1:PORT and Accept=no")
}

// takeControl makes a socket of systemd's the control socket. Its file stays systemd's.
func (d *daemon) takeControl(fd int) error {
	if d.controlAt != nil {
		return errors.New("there is a control socket already, and there can be one")
	}
	l, c, err := inherited(fd)
	if err != nil {
		return err
	}
	at, ok := l.(*net.UnixListener)
	if !ok {
		if l != nil {
			l.Close()
		}
		if c != nil {
			c.Close()
		}
		return usagef("not a listening unix socket: want ListenStream=/PATH and Accept=no")
	}
	at.SetUnlinkOnClose(false)
	d.controlAt, d.control, d.handedControl = at, at.Addr().String(), true
	return nil
}
