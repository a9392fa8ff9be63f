// Package qemu turns a stream socket into a guest's wire, as QEMU's `-netdev stream` and `-netdev socket` speak it:
// each Ethernet frame behind its length in 32 bits, big-endian, with no handshake (QEMU net/stream.c, passt(1)).
//
//	conn, err := listener.Accept()
//	if err != nil {
//		return err
//	}
//	err = network.Serve(ctx, qemu.NewLink(conn), "qemu")
//
// The same bytes come from passt's other clients: libkrun's unixstream, socket_vmnet, muvm. It listens nowhere and
// knows no addresses.
package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/vmnetd/vmnetd/backend/link"
)

const (
	prefixLen = 4
	// minFrame is an Ethernet header (IEEE 802.3 §3.1.1). Shorter ones are passed over, a zero length too: QEMU
	// itself tolerates it.
	minFrame = 14
)

// NewLink returns the wire that c carries. Closing one closes the other.
func NewLink(c net.Conn) link.Link {
	setBuffers(c)
	return newLink(&stream{c: c, read: reader(c)})
}

type stream struct {
	c    net.Conn
	read func(iov [][]byte) (int, error) // one read into many pieces
	once sync.Once
	done error

	// Of the one writer:
	iov net.Buffers
}

var _ link.Prefixed = (*stream)(nil)

// FrameError is a length that no frame has: the framing is lost and the wire is over.
type FrameError struct{ Length uint32 }

func (e *FrameError) Error() string {
	return fmt.Sprintf("qemu: frame of %d bytes announced, more than %d: is the peer speaking QEMU's stream protocol?", e.Length, link.MaxFrame)
}

func (s *stream) ReadFrames(b *link.Batch) error {
	if err := s.cut(b); err != nil || len(b.Frames) > 0 {
		return err
	}
	for {
		b.Next() // there is no frame: a peer that sends only what is passed over must not make it grow
		n, err := s.read(b.Space(0))
		if n > 0 {
			b.Wrote(n)
			if err := s.cut(b); err != nil {
				return err
			}
			if len(b.Frames) > 0 {
				return nil
			}
			continue
		}
		switch {
		case errors.Is(err, net.ErrClosed):
			return net.ErrClosed
		case err == nil, errors.Is(err, io.EOF):
			return io.EOF
		}
		return fmt.Errorf("qemu: read: %w", err)
	}
}

// cut makes frames of what is whole. A wrong length behind good frames is told of at the next call.
func (s *stream) cut(b *link.Batch) error {
	var p [prefixLen]byte
	for b.Peek(p[:]) {
		n := binary.BigEndian.Uint32(p[:])
		if n > link.MaxFrame { // nothing that follows a wrong length can be trusted
			if len(b.Frames) > 0 {
				return nil
			}
			return &FrameError{n}
		}
		if b.Unparsed() < prefixLen+int(n) {
			return nil
		}
		if n < minFrame {
			b.Malformed++
			b.Take(prefixLen+int(n), 0)
			continue
		}
		b.Take(prefixLen, int(n))
	}
	return nil
}

func (s *stream) WriteFrames(frames []link.Frame) (int, error) {
	const most = 512 // frames a call: two pieces each fill one writev (IOV_MAX is 1024)
	for done := 0; done < len(frames); {
		batch := frames[done:min(done+most, len(frames))]
		s.iov = s.iov[:0]
		for i := range batch {
			head := batch[i].Head[link.Headroom-prefixLen:]
			binary.BigEndian.PutUint32(head, uint32(batch[i].Len()))
			s.iov = append(s.iov, head)
			s.iov = append(s.iov, batch[i].Body...)
		}
		all := s.iov // WriteTo eats the slice it is called on
		if _, err := s.iov.WriteTo(s.c); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return done, net.ErrClosed
			}
			return done, fmt.Errorf("qemu: write: %w", err)
		}
		clear(all)
		s.iov = all[:0]
		done += len(batch)
	}
	return len(frames), nil
}

// Prefix implements link.Prefixed.
func (s *stream) Prefix() int { return prefixLen }

func (s *stream) Close() error {
	s.once.Do(func() { s.done = s.c.Close() })
	return s.done
}
