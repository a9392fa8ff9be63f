//go:build !linux

package vfkit

import (
	"errors"
	"net"
	"syscall"
	"time"

	"github.com/vmnetd/vmnetd/backend/link"
)

// socket is a socket of a Listener's, and its reader. A name is an address in text.
type socket struct {
	l     *Listener
	c     Conn
	since time.Time
	now   int64
}

func newSocket(l *Listener, c Conn) *socket { return &socket{l: l, c: c, since: time.Now()} }

func (s *socket) read() error {
	buf := make([]byte, longest)
	for {
		n, from, err := s.c.ReadFrom(buf)
		s.now = time.Now().UnixNano()
		switch {
		case errors.Is(err, net.ErrClosed):
			return net.ErrClosed
		case err != nil && s.l.udp: // Windows tells here of a port that was closed, and not whose
			continue
		case err != nil:
			return err
		}
		var name []byte
		if from != nil {
			name = []byte(from.String())
		}
		s.deliver(name, buf[:n], nil)
	}
}

func (s *socket) address(name []byte) (net.Addr, error) {
	if s.l.udp {
		return net.ResolveUDPAddr("udp", string(name))
	}
	return &net.UnixAddr{Net: "unixgram", Name: string(name)}, nil
}

func (s *socket) sender(p *peer) (sender, error) {
	to, err := s.address(p.name)
	return &shared{p: p, to: to}, err
}

// there says whether anybody is at a name, as far as that can be seen.
func (s *socket) there(name []byte) bool {
	if s.l.udp {
		return true
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: string(name)})
	if err == nil {
		c.Close()
	}
	return !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED)
}

// shared sends from a Listener's socket. What waits to be read is counted as the receiver's here, so nobody fills it for
// others.
type shared struct {
	p   *peer
	to  net.Addr
	all []byte
}

func (x *shared) shares() bool { return false }
func (x *shared) close()       {}

func (x *shared) send(frames []link.Frame, done <-chan struct{}) (int, error) {
	var p pause
	for i := range frames {
		x.all = frames[i].AppendTo(x.all[:0])
		for {
			_, err := x.p.s.c.WriteTo(x.all, x.to)
			if full(err) {
				if !p.wait(done) {
					return i, net.ErrClosed
				}
				continue
			}
			if err != nil {
				if !errors.Is(err, syscall.EMSGSIZE) && !(x.p.l.udp && gone(err)) {
					return i, err
				}
				x.p.overrun()
			}
			break
		}
		p = 0
	}
	return len(frames), nil
}

func (p *peer) link() link.Link { return p }

func describe(name []byte) string { return string(name) }
