// Package qemu turns a stream socket into a guest's wire, as QEMU's `-netdev stream` and `-netdev socket` speak it:
// each Ethernet frame behind its length in 32 bits, big-endian, with no handshake (QEMU net/stream.c, passt(1)).
//
//	conn, err := listener.Accept()
//	if err != nil {
//		return err
//	}
//	err = network.Serve(ctx, qemu.NewLink(conn), "qemu")
//
// The same bytes come from passt's other clients: libkrun's unixstream, socket_vmnet, muvm.
//
// The other framings of streams are here too. [Accept] takes a guest that speaks QEMU's or begins with a handshake,
// HyperKit's or gvforwarder's, and finds out which; [AcceptHyperKit] is for the latter two and for who speaks as they do
// without a handshake; [NewVDELink] is vde_plug's wire.
//
// It listens nowhere and knows no addresses. It dials nobody: it is the network's side of each handshake, not the VMM's.
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

// minFrame is an Ethernet header (IEEE 802.3 §3.1.1). Shorter ones are passed over, a zero length too: QEMU
// itself tolerates it.
const minFrame = 14

// NewLink returns the wire that c carries. Closing one closes the other.
func NewLink(c net.Conn) link.Link { return wire(c, &stream{prefix: 4}) }

func wire(c net.Conn, s *stream) link.Link {
	setBuffers(c)
	s.c, s.read = c, reader(c)
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
		s.vectors = true
	}
	return newLink(s)
}

// stream is a wire on which each frame follows its length.
type stream struct {
	c       net.Conn
	prefix  int                             // bytes of the length: 4 or 2
	little  bool                            // its order, of 2
	most    int                             // the longest frame that is written; 0: any
	vectors bool                            // net.Buffers leave in one system call
	apart   bool                            // where they do not, each frame is a write
	read    func(iov [][]byte) (int, error) // one read into many pieces
	once    sync.Once
	done    error

	// Of the one writer:
	iov net.Buffers
	all []byte
}

var (
	_ link.Prefixed = (*stream)(nil)
	_ link.Limited  = (*stream)(nil)
)

// FrameError is a length that no frame has: the framing is lost and the wire is over.
type FrameError struct{ Length uint32 }

func (e *FrameError) Error() string {
	return fmt.Sprintf("qemu: frame of %d bytes announced, more than %d: is the peer speaking QEMU's stream protocol?", e.Length, link.MaxFrame)
}

// length reads one.
func (s *stream) length(p []byte) uint32 {
	switch {
	case s.prefix == 4:
		return binary.BigEndian.Uint32(p)
	case s.little:
		return uint32(binary.LittleEndian.Uint16(p))
	}
	return uint32(binary.BigEndian.Uint16(p))
}

// fit refuses frames whose lengths cannot be said: the peer would take their middle for lengths. Who looks at MaxFrame
// has none.
func (s *stream) fit(frames []link.Frame) error {
	if s.prefix == 4 {
		return nil
	}
	for i := range frames {
		if n := frames[i].Len(); n > 0xffff {
			return fmt.Errorf("qemu: frame of %d bytes: 16 bits of length say 65535 at most", n)
		}
	}
	return nil
}

// announce puts a frame's length before its head, and returns both.
func (s *stream) announce(f *link.Frame) []byte {
	head := f.Head[link.Headroom-s.prefix:]
	s.put(head, f.Len())
	return head
}

// put writes a length. It is small enough to be inlined.
func (s *stream) put(p []byte, n int) {
	if s.prefix == 4 {
		binary.BigEndian.PutUint32(p, uint32(n))
	} else {
		s.put16(p, uint16(n))
	}
}

func (s *stream) put16(p []byte, n uint16) {
	if s.little {
		binary.LittleEndian.PutUint16(p, n)
	} else {
		binary.BigEndian.PutUint16(p, n)
	}
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
	var p [4]byte
	for b.Peek(p[:s.prefix]) {
		n := s.length(p[:])
		if n > link.MaxFrame { // nothing that follows a wrong length can be trusted
			if len(b.Frames) > 0 {
				return nil
			}
			return &FrameError{n}
		}
		if b.Unparsed() < s.prefix+int(n) {
			return nil
		}
		if n < minFrame {
			b.Malformed++
			b.Take(s.prefix+int(n), 0)
			continue
		}
		b.Take(s.prefix, int(n))
	}
	return nil
}

func (s *stream) WriteFrames(frames []link.Frame) (int, error) {
	if err := s.fit(frames); err != nil {
		return 0, err
	}
	most := 512 // frames a call: two pieces each fill one writev (IOV_MAX is 1024)
	if s.apart && !s.vectors {
		most = 1
	}
	for done := 0; done < len(frames); {
		batch := frames[done:min(done+most, len(frames))]
		s.iov = s.iov[:0]
		for i := range batch {
			s.iov = append(s.iov, s.announce(&batch[i]))
			s.iov = append(s.iov, batch[i].Body...)
		}
		if err := s.write(); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return done, net.ErrClosed
			}
			return done, fmt.Errorf("qemu: write: %w", err)
		}
		done += len(batch)
	}
	return len(frames), nil
}

// write writes what iov holds.
func (s *stream) write() error {
	pieces := s.iov // WriteTo eats the slice it is called on
	var err error
	if s.vectors {
		_, err = s.iov.WriteTo(s.c)
	} else { // one write, or there would be one for each piece
		s.all = s.all[:0]
		for _, p := range pieces {
			s.all = append(s.all, p...)
		}
		_, err = s.c.Write(s.all)
	}
	clear(pieces)
	s.iov = pieces[:0]
	return err
}

// Prefix implements link.Prefixed.
func (s *stream) Prefix() int { return s.prefix }

// MaxFrame implements link.Limited.
func (s *stream) MaxFrame() int { return s.most }

func (s *stream) Close() error {
	s.once.Do(func() { s.done = s.c.Close() })
	return s.done
}
