package vfkit

import (
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/vmnetd/vmnetd/backend/link"
)

// NewLink returns the wire that c carries, a connected socket that keeps messages apart. Closing one closes the other.
//
// A seqpacket socket tells when its peer goes. A unix datagram socket's end is seen when something is sent there, and a
// UDP socket's never: its peer may not be there yet, or come again.
func NewLink(c net.Conn, o Options) link.Link {
	setBuffers(c)
	w := &wire{c: c, o: o, done: make(chan struct{})}
	network := c.LocalAddr().Network()
	w.stays = strings.HasPrefix(network, "udp")
	w.ends = network == "unixpacket"
	w.most = o.mostOf(w.stays)
	return newLink(w)
}

// wire is one guest's socket.
type wire struct {
	c     net.Conn
	o     Options
	most  int  // the longest frame that is written; 0: any
	stays bool // a peer that is not there may come
	ends  bool // a message of no bytes may be the end
	done  chan struct{}
	once  sync.Once
	err   error

	lost atomic.Int64 // frames that could not be written, not yet told of

	// Where there is nothing better:
	buf, all []byte
}

var (
	_ link.Limited    = (*wire)(nil)
	_ link.Prefixed   = (*wire)(nil)
	_ link.Offloading = (*wire)(nil)
)

// MaxFrame implements link.Limited.
func (w *wire) MaxFrame() int { return w.most }

// Prefix implements link.Prefixed: nothing stands before a frame.
func (w *wire) Prefix() int { return 0 }

// Offloads implements link.Offloading.
func (w *wire) Offloads() (gives, takes link.Offloads) { return w.o.gives(), 0 }

func (w *wire) Close() error {
	w.once.Do(func() {
		close(w.done)
		w.err = w.c.Close()
	})
	return w.err
}

// ReadFrames reads one message.
func (w *wire) ReadFrames(b *link.Batch) error {
	if w.buf == nil {
		w.buf = make([]byte, longest)
	}
	b.Overrun += int(w.lost.Swap(0))
	for {
		n, err := w.c.Read(w.buf)
		switch {
		case err != nil && w.stays && errors.Is(err, syscall.ECONNREFUSED):
		case err != nil:
			return w.end(err)
		case n < minFrame || n > link.MaxFrame:
			if string(w.buf[:min(n, len(greeting))]) != greeting {
				b.Malformed++
			}
		default:
			b.Append(w.buf[:n])
			b.Take(0, n)
			return nil
		}
	}
}

// WriteFrames writes a message a frame, and waits for the peer to read.
func (w *wire) WriteFrames(frames []link.Frame) (int, error) {
	var p pause
	for i := range frames {
		w.all = frames[i].AppendTo(w.all[:0])
		for {
			_, err := w.c.Write(w.all)
			if full(err) { // macOS: the peer's buffer is full, and nothing tells when it no longer is
				if p.wait(w.done) {
					continue
				}
				return i, net.ErrClosed
			}
			if err = w.failed(err); err != nil {
				return i, err
			}
			break
		}
		p = 0
	}
	return len(frames), nil
}

func full(err error) bool {
	return errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.EAGAIN)
}

// gone says whether an error of sending means that nobody is there any more.
func gone(err error) bool {
	for _, e := range []error{syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ENOENT, syscall.ENOTCONN, syscall.EPIPE, syscall.EDESTADDRREQ} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// failed says what an error of writing a frame is to the wire: nil if it goes on without that frame.
func (w *wire) failed(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EMSGSIZE), w.stays && errors.Is(err, syscall.ECONNREFUSED):
		w.lost.Add(1)
		return nil
	}
	return w.end(err)
}

// end is the error that a wire ends with.
func (w *wire) end(err error) error {
	switch {
	case errors.Is(err, net.ErrClosed):
		return net.ErrClosed
	case errors.Is(err, io.EOF), gone(err):
		return io.EOF
	}
	return &net.OpError{Op: "vfkit", Net: w.c.LocalAddr().Network(), Addr: w.c.LocalAddr(), Err: err}
}
