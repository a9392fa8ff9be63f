package traffic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Handler holds one conversation. The connection is closed after it returns. What it returns goes
// into the server's Reports.
type Handler func(ctx context.Context, c net.Conn, r *Report) error

// Echo gives back what comes, and ends after the peer has.
func Echo(_ context.Context, c net.Conn, r *Report) error {
	n, err := io.Copy(c, c)
	r.Received, r.Sent = n, n
	return err
}

// Sink reads to the peer's end and answers with its Report as one JSON line: a peer that ended its
// half can compare.
func Sink(_ context.Context, c net.Conn, r *Report) error {
	if err := r.Receive(c); err != nil {
		return err
	}
	r.End = End(nil)
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	n, err := c.Write(append(b, '\n'))
	r.Sent = int64(n)
	return err
}

// Source sends Bytes(seed, n), ends its half, and reads to the peer's end.
func Source(seed uint64, n int64) Handler {
	return func(_ context.Context, c net.Conn, r *Report) error {
		if err := r.Send(c, seed, n); err != nil {
			return err
		}
		if err := closeWrite(c); err != nil {
			return err
		}
		return r.Receive(c)
	}
}

// Hold reads to the peer's end and says nothing.
func Hold(_ context.Context, c net.Conn, r *Report) error { return r.Receive(c) }

// Reset reads n bytes and then breaks the connection off with an RST.
func Reset(n int64) Handler {
	return func(_ context.Context, c net.Conn, r *Report) error {
		var err error
		r.Received, err = io.CopyN(io.Discard, c, n)
		if t, ok := c.(interface{ SetLinger(int) error }); ok && err == nil {
			err = t.SetLinger(0)
		}
		return err
	}
}

// StreamTo sends a numbered stream until the peer or the server ends it.
func StreamTo(rate int64) Handler {
	return func(ctx context.Context, c net.Conn, r *Report) error {
		return Stream(ctx, c, rate, func(n int64) { r.Sent = n })
	}
}

// CheckFrom reads a numbered stream. progress may be nil.
func CheckFrom(progress func(int64)) Handler {
	return func(_ context.Context, c net.Conn, r *Report) error {
		return Check(c, func(n int64) {
			r.Received = n
			if progress != nil {
				progress(n)
			}
		})
	}
}

func closeWrite(c net.Conn) error {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return fmt.Errorf("%T cannot end one half", c)
}

// Server is a listener with one Handler for all who come.
type Server struct {
	l       net.Listener
	handler Handler
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	// Done gets the report of every finished conversation, while somebody receives or its
	// buffer of 1024 has room; a test with more than that counts them itself.
	Done chan Report

	mu    sync.Mutex
	conns map[net.Conn]bool
}

// Serve listens, on any network that net.Listen knows, and serves every connection with h.
func Serve(network, address string, h Handler) (*Server, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	s := &Server{l: l, handler: h, conns: map[net.Conn]bool{}, Done: make(chan Report, 1024)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Add(1)
	go s.accept()
	return s, nil
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.l.Addr() }

// Port is the port of Addr, 0 for a network that has none.
func (s *Server) Port() int {
	if a, ok := s.l.Addr().(*net.TCPAddr); ok {
		return a.Port
	}
	return 0
}

// Close ends the listener and all conversations.
func (s *Server) Close() error {
	err := s.l.Close()
	s.cancel()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	s.wg.Wait()
	return err
}

func (s *Server) accept() {
	defer s.wg.Done()
	for {
		c, err := s.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors for now: do not spin
			continue
		}
		s.mu.Lock()
		if s.conns == nil {
			s.mu.Unlock()
			c.Close()
			return
		}
		s.conns[c] = true
		s.wg.Add(1)
		s.mu.Unlock()
		go s.serve(c)
	}
}

func (s *Server) serve(c net.Conn) {
	defer s.wg.Done()
	began := time.Now()
	r := Report{Local: c.LocalAddr().String(), Remote: c.RemoteAddr().String()}
	err := s.handler(s.ctx, c, &r)
	c.Close()
	r.Finish(err, began)
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	select {
	case s.Done <- r:
	default:
	}
}

// EchoUDP answers every datagram with its own bytes until pc is closed, empty ones too.
func EchoUDP(pc net.PacketConn) error {
	b := make([]byte, 65535) // the largest a UDP length field can say
	for {
		n, from, err := pc.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// An ICMP error about an answer of ours; the next reader is another peer.
			if End(err) == "refused" {
				continue
			}
			return err
		}
		// A peer that left gives an error here; it is not ours to report.
		_, _ = pc.WriteTo(b[:n], from)
	}
}
