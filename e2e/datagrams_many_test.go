//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/e2e/traffic"
	"golang.org/x/sys/unix"
)

// sends is a socket that is not connected, as QEMU's: it names where each datagram goes.
type sends struct {
	*net.UnixConn
	to *net.UnixAddr
}

func (s sends) Write(b []byte) (int, error) { return s.WriteTo(b, s.to) }

// many is one socket that any number of guests are at.
type many struct {
	*lab
	*daemon
	path string
	row  transport
}

// plug starts a guest with its own socket at local: connected and with a greeting, as vfkit's, or neither, as QEMU's.
func (m *many) plug(t *testing.T, name, local string, vfkit bool, hear func(<-chan struct{})) *guest {
	t.Helper()
	return m.row.launch(t, m.daemon, attach{tie: func(t *testing.T, tap *os.File) func() {
		t.Helper()
		if vfkit {
			return tieWhile(tap, m.dialVfkit(t, m.path, local, true), hear)
		}
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: local})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); os.Remove(local) })
		c.SetReadBuffer(4 << 20)
		if err := os.Chmod(local, 0o666); err != nil {
			t.Fatal(err)
		}
		return tieWhile(tap, sends{c, &net.UnixAddr{Net: "unixgram", Name: m.path}}, hear)
	}}, name)
}

// TestManyOnOneSocket: twenty guests at one unix datagram socket, of both kinds. While most transfer, some are killed and
// come back, at the same path and at another, two stop reading what they have asked for, and strangers send what makes
// no guest. Every byte of the others arrives.
func TestManyOnOneSocket(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := &many{lab: l, path: l.path("vfkit.sock"), row: transport{name: "kernel-vfkit", starts: inNamespace}}
	m.daemon = l.serveAt(t, "", "control.sock", nil, "--vfkit", "unix:"+m.path)
	gw := m.gateway(t)

	const count, bytesEach = 20, 2_000_000
	var guests []*guest
	var deaf [2]atomic.Bool
	stop := make(chan struct{})
	for i := range count {
		var hear func(<-chan struct{})
		if i < len(deaf) {
			hear = func(over <-chan struct{}) {
				for deaf[i].Load() {
					select {
					case <-stop:
						return
					case <-over:
						return
					case <-time.After(10 * time.Millisecond):
					}
				}
			}
		}
		name := fmt.Sprintf("g%02d", i)
		guests = append(guests, m.plug(t, name, l.path(name+".sock"), i%2 == 0, hear))
	}
	t.Cleanup(func() { close(stop) })
	for _, g := range guests {
		g.configured(t)
	}

	// Two are deaf, one of each kind, and ask on.
	for i := range deaf {
		deaf[i].Store(true)
		guests[i].begin(t, "ping -i 0.002 -s 1400 %s >/dev/null", gw.gw4)
	}
	strangers(t, m.path, l.dir)

	echo := l.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Echo)
	var jobs []*job
	const killed = 3
	for i, g := range guests[len(deaf)+killed:] {
		jobs = append(jobs, g.begin(t, "guest tcp -timeout 60s -send %d -seed %d %s", bytesEach, i+1, echo.Addr()))
	}
	for i := range killed {
		g := guests[len(deaf)+i]
		if err := g.Kill(); err != nil {
			t.Fatal(err)
		}
		local := l.path(g.name + ".sock")
		if i == 1 {
			local = l.path(g.name + "-again.sock")
		}
		was := g.addr4
		g = m.plug(t, g.name, local, i != 2, nil)
		g.configured(t)
		if g.addr4 != was { // it may ask for its lease while the one before is still being ended
			t.Logf("%s came back to %s, was %s", g.name, g.addr4, was)
		}
		b := &bench{lab: l, daemon: m.daemon, gateway: gw, g: g}
		b.bytes(t, world4, l.world, bytesEach)
	}
	for i, j := range jobs {
		var r traffic.Report
		j.next(t, &r)
		if want := traffic.Hash(uint64(i+1), bytesEach); r.End != "eof" || r.Received != bytesEach || r.ReceivedHash != want {
			t.Errorf("%s: %d of %d bytes came back, end %q (%s), hash right: %v", guests[len(deaf)+killed+i].name, r.Received, bytesEach, r.End, r.Error, r.ReceivedHash == want)
		}
	}

	// Who reads again is served again.
	for i := range deaf {
		deaf[i].Store(false)
		wait(t, guests[i].name+" hears again", func() error {
			_, errs, code, err := guests[i].try(t, "ping -c 1 -W 1 %s", gw.gw4)
			if err == nil && code != 0 {
				err = fmt.Errorf("exit status %d %s", code, errs)
			}
			return err
		})
	}
	wait(t, "each guest is there once", func() error {
		here := map[string]int{}
		for _, i := range ask[[]backend.GuestInfo](t, m.daemon, "vm", "ls") {
			if i.MAC != "" {
				here[i.MAC]++
			}
		}
		for _, g := range guests {
			if here[g.mac.String()] != 1 {
				return fmt.Errorf("%s is there %d times", g.name, here[g.mac.String()])
			}
		}
		return nil
	})
}

// strangers sends what makes no guest, or none for long: from a socket without a name, too short, too long, and from many
// addresses.
func strangers(t *testing.T, path, dir string) {
	t.Helper()
	to := &net.UnixAddr{Net: "unixgram", Name: path}
	frame := bytes.Repeat([]byte{0xff}, 60)
	unnamed, err := net.DialUnix("unixgram", nil, to)
	if err != nil {
		t.Fatal(err)
	}
	defer unnamed.Close()
	for range 2000 {
		if _, err := unnamed.Write(frame); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		local := fmt.Sprintf("%s/s%d", dir, i)
		c, err := net.DialUnix("unixgram", &net.UnixAddr{Net: "unixgram", Name: local}, to)
		if err != nil {
			t.Fatal(err)
		}
		os.Chmod(local, 0o666)
		c.SetWriteBuffer(1 << 20)
		for _, n := range []int{0, 1, 13, 4096 + 65536 + 1} {
			_, err := c.Write(make([]byte, n))
			for n == 0 && errors.Is(err, unix.EAGAIN) { // package net does not wait with nothing to write
				time.Sleep(time.Millisecond)
				_, err = c.Write(nil)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if i%10 == 0 { // a guest for as long as its socket is there
			c.Write(frame)
		}
		c.Close()
		os.Remove(local)
	}
}
