package main

// The ends of a path: a TAP in a network namespace, and the socket of a network that speaks QEMU's stream framing.

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/e2e/space"
)

// tapQueue is how many frames a TAP holds for its reader: more than any TCP window has, so that the path's own queue
// is the only one that drops.
const tapQueue = 20000

type tap struct{ f *os.File }

// newTAP makes the interface named name in the namespace. Its kernel offloads nothing: frames are of the MTU.
func newTAP(s *space.Space, name string, mtu int) (*tap, error) {
	var f *os.File
	if err := s.Do(func() (err error) {
		f, err = space.OpenTAP(name, false)
		return err
	}); err != nil {
		return nil, err
	}
	if err := s.IP(fmt.Sprintf("link set %s mtu %d txqueuelen %d up", name, mtu, tapQueue)); err != nil {
		f.Close()
		return nil, err
	}
	return &tap{f}, nil
}

func (t *tap) ReadFrame(b []byte) (int, error) { return t.f.Read(b) }

func (t *tap) WriteFrames(frames [][]byte) error {
	for _, b := range frames {
		if _, err := t.f.Write(b); err != nil && !errors.Is(err, unix.EIO) { // EIO: the interface is down
			return err
		}
	}
	return nil
}

func (t *tap) Close() error { return t.f.Close() }

// stream is a connection with QEMU's framing: a length of 32 bits before each frame.
type stream struct {
	c    net.Conn
	r    *bufio.Reader
	lens [dueAtOnce][4]byte
	vec  net.Buffers
}

func newStream(c net.Conn) *stream {
	return &stream{c: c, r: bufio.NewReaderSize(c, 256<<10)}
}

func (s *stream) ReadFrame(b []byte) (int, error) {
	var head [4]byte
	if _, err := io.ReadFull(s.r, head[:]); err != nil {
		return 0, s.ended(err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if int(n) > len(b) {
		return 0, fmt.Errorf("frame of %d bytes", n)
	}
	_, err := io.ReadFull(s.r, b[:n])
	return int(n), s.ended(err)
}

func (s *stream) WriteFrames(frames [][]byte) error {
	vec := s.vec[:0]
	for i, b := range frames {
		binary.BigEndian.PutUint32(s.lens[i][:], uint32(len(b)))
		vec = append(vec, s.lens[i][:], b)
	}
	s.vec = vec
	_, err := vec.WriteTo(s.c)
	return s.ended(err)
}

func (s *stream) Close() error { return s.c.Close() }

// ended makes the end that Close brings one that the path knows.
func (s *stream) ended(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return os.ErrClosed
	}
	return err
}
