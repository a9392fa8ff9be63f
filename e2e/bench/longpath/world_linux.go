package main

// A world is what one measurement runs in, made for it and gone after it:
//
//	place "host":  guest ─ vmnetd ─ host socket ══ path ══ server      native: a client in the host's place
//	place "guest": guest ══ path ══ vmnetd ─ host socket ─ server      native: a kernel in vmnetd's place
//
// guest, host and server are network namespaces, so Linux TCPs all; ══ are TAPs joined by a path.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vmnetd/vmnetd/e2e/space"
)

// Addresses: the network between guest and vmnetd (or the kernel in its place), and the one between host and server.
const (
	guest4, gateway4 = "10.0.2.15", "10.0.2.2"
	guest6, gateway6 = "fd00:0:0:2::f", "fd00:0:0:2::2"
	host4, server4   = "10.99.0.2", "10.99.0.1"
	host6, server6   = "fd00:0:0:99::2", "fd00:0:0:99::1"
)

type world struct {
	client, server *space.Space // where the conversations' ends are
	address        string       // of the server, as the client has it
	imp            *path

	closers []func() error // last first
}

type setup struct {
	vmnetd   string // the command; "" for native
	log      string // vmnetd's
	place    string
	mtu      int
	ipv6     bool
	up, down impairment // from the guest's side, and to it
}

func newWorld(s setup) (w *world, err error) {
	w = &world{}
	defer func() {
		if err != nil {
			w.close()
			w = nil
		}
	}()
	pick := func(v4, v6 string) string {
		if s.ipv6 {
			return v6
		}
		return v4
	}
	host, err := w.space()
	if err != nil {
		return w, err
	}
	far, err := w.space()
	if err != nil {
		return w, err
	}
	if s.place == "host" {
		a, err := newTAP(host, "wan0", wanMTU)
		if err != nil {
			return w, err
		}
		b, err := newTAP(far, "wan0", wanMTU)
		if err != nil {
			a.Close()
			return w, err
		}
		w.join(a, b, s.up, s.down)
	} else if s.vmnetd != "" {
		if err := host.IP(fmt.Sprintf("link add wan0 type veth peer name wan0 netns %s\nlink set wan0 up", far.Path())); err != nil {
			return w, err
		}
		if err := far.IP("link set wan0 up"); err != nil {
			return w, err
		}
	}
	if s.place == "host" || s.vmnetd != "" {
		if err := errors.Join(
			host.IP(fmt.Sprintf("addr add %s/24 dev wan0\naddr add %s/64 dev wan0 nodad", host4, host6)),
			far.IP(fmt.Sprintf("addr add %s/24 dev wan0\naddr add %s/64 dev wan0 nodad", server4, server6)),
		); err != nil {
			return w, err
		}
		w.server, w.address = far, pick(server4, server6)
	}
	if s.place == "host" && s.vmnetd == "" {
		w.client = host
		return w, nil
	}

	guest, err := w.space()
	if err != nil {
		return w, err
	}
	w.client = guest
	eth, err := newTAP(guest, "eth0", s.mtu)
	if err != nil {
		return w, err
	}
	if err := guest.IP(fmt.Sprintf("addr add %s/24 dev eth0\naddr add %s/64 dev eth0 nodad\n"+
		"route add default via %s\nroute add ::/0 via %s", guest4, guest6, gateway4, gateway6)); err != nil {
		eth.Close()
		return w, err
	}
	if s.vmnetd == "" {
		gw, err := newTAP(host, "eth0", s.mtu)
		if err != nil {
			eth.Close()
			return w, err
		}
		if err := host.IP(fmt.Sprintf("addr add %s/24 dev eth0\naddr add %s/64 dev eth0 nodad", gateway4, gateway6)); err != nil {
			eth.Close()
			gw.Close()
			return w, err
		}
		w.join(eth, gw, s.up, s.down)
		w.server, w.address = host, pick(gateway4, gateway6)
		return w, nil
	}
	c, err := w.start(host, s)
	if err != nil {
		eth.Close()
		return w, err
	}
	if s.place == "host" {
		p := newPath(eth, newStream(c), impairment{}, impairment{})
		w.closers = append(w.closers, p.Close)
	} else {
		w.join(eth, newStream(c), s.up, s.down)
	}
	return w, nil
}

// wanMTU is that of the path on the host's side: the Internet's.
const wanMTU = 1500

func (w *world) space() (*space.Space, error) {
	s, err := space.New()
	if err != nil {
		return nil, err
	}
	w.closers = append(w.closers, func() error { s.Close(); return nil })
	for _, v := range [][2]string{
		{"ipv4/tcp_congestion_control", "cubic"}, // Linux's default, whatever this machine's is
		{"ipv4/tcp_no_metrics_save", "1"},        // each conversation learns the path anew
	} {
		if err := s.Sysctl(v[0], v[1]); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (w *world) join(a, b end, ab, ba impairment) {
	w.imp = newPath(a, b, ab, ba)
	w.closers = append(w.closers, w.imp.Close)
}

const (
	// startTime is how long vmnetd may take to open its socket, and stopTime to end.
	startTime = 10 * time.Second
	stopTime  = 5 * time.Second
)

// start runs vmnetd in the namespace and plugs in.
func (w *world) start(in *space.Space, s setup) (net.Conn, error) {
	dir, err := os.MkdirTemp("", "longpath-")
	if err != nil {
		return nil, err
	}
	w.closers = append(w.closers, func() error { return os.RemoveAll(dir) })
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	sock := filepath.Join(dir, "q")
	cmd := exec.Command(s.vmnetd, "serve", "--control", filepath.Join(dir, "c"), "--qemu", "unix:"+sock,
		"--mtu", fmt.Sprint(s.mtu), "--net6", "fd00:0:0:2::/64")
	cmd.Stdout, cmd.Stderr = log, log
	if err := in.Start(cmd); err != nil {
		return nil, err
	}
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	w.closers = append(w.closers, func() error {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-gone:
			return err
		case <-time.After(stopTime):
			cmd.Process.Kill()
			<-gone
			return errors.New("vmnetd did not end")
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	for {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", sock)
		if err == nil {
			return c, nil
		}
		select {
		case err := <-gone:
			gone <- err
			return nil, fmt.Errorf("vmnetd ended: %v; see %s", err, s.log)
		case <-ctx.Done():
			return nil, fmt.Errorf("vmnetd: %w; see %s", err, s.log)
		case <-time.After(10 * time.Millisecond): // once more: the socket says when it is there
		}
	}
}

func (w *world) close() error {
	var errs []error
	for i := len(w.closers) - 1; i >= 0; i-- {
		errs = append(errs, w.closers[i]())
	}
	return errors.Join(errs...)
}
