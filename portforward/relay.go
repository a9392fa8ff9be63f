package portforward

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

const (
	// smallBuf is a conversation's buffer while it has little to say: an
	// interactive one fills no more, and thousands of idle ones stay cheap.
	smallBuf = 4 << 10
	// largeBuf is one for bulk: a full segment at the largest MTU (65520) in
	// one read.
	largeBuf = 64 << 10
	// calmReads is how many reads that a small buffer would have held make a
	// conversation calm again: long enough that a bulk transfer's odd short
	// read does not swap buffers back and forth.
	calmReads = 32
)

var (
	smallPool = sync.Pool{New: func() any { return new([smallBuf]byte) }}
	largePool = sync.Pool{New: func() any { return new([largeBuf]byte) }}
)

// Relay copies between two connections until both directions have ended, and
// closes both. An end of one direction is passed on with CloseWrite and leaves
// the other direction going; any error aborts both connections, so that a
// reset on one side is a reset on the other. It returns the bytes each way and
// the first error, nil for two clean ends.
//
// A connection without CloseWrite is closed at the other's half-close. One is
// aborted by its Abort method, else by SetLinger(0) and Close, else by Close.
func Relay(a, b net.Conn) (aToB, bToA int64, err error) {
	var ab, ba atomic.Int64
	err = relay(a, b, &ab, &ba)
	return ab.Load(), ba.Load(), err
}

// Carrier is what a guest's TCP conn may be beside: one that can carry a host
// connection itself, faster than Relay.
type Carrier interface {
	// Carry begins what Relay does, with host as the first connection, and
	// adds to the counters as bytes move. over is told what Relay would have
	// returned, once, on any goroutine, perhaps before Carry returns; it does
	// not wait. False: it cannot carry this one, and has not touched it.
	Carry(host net.Conn, toGuest, toHost *atomic.Int64, over func(error)) bool
}

// relay is Relay with counters that move while it runs.
func relay(a, b net.Conn, ab, ba *atomic.Int64) error {
	var (
		once  sync.Once
		first error
	)
	fail := func(err error) {
		once.Do(func() { first = err })
		abort(a)
		abort(b)
	}
	// Which sides have been told that nothing more comes.
	var endedA, endedB atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := pump(a, b, ba, &endedA, &endedB); err != nil {
			fail(err)
		}
	}()
	if err := pump(b, a, ab, &endedB, &endedA); err != nil {
		fail(err)
	}
	<-done
	a.Close()
	b.Close()
	return first
}

// pump copies src to dst up to src's end and passes that on. endedDst and
// endedSrc are set before the end is passed to that side.
func pump(dst, src net.Conn, n *atomic.Int64, endedDst, endedSrc *atomic.Bool) (err error) {
	defer caught(&err)
	small := smallPool.Get().(*[smallBuf]byte)
	var large *[largeBuf]byte
	defer func() {
		if small != nil {
			smallPool.Put(small)
		}
		if large != nil {
			largePool.Put(large)
		}
	}()
	calm := 0
	for {
		buf := small[:]
		if large != nil {
			buf = large[:]
		}
		got, err := src.Read(buf)
		if got > 0 {
			put, werr := dst.Write(buf[:got])
			n.Add(int64(put))
			if werr != nil {
				return werr
			}
		}
		if errors.Is(err, io.EOF) {
			// The system reports a reset once. Where the other direction's
			// write has it, this read sees an end.
			if isClosed(src) && !endedSrc.Load() {
				return syscall.ECONNRESET
			}
			endedDst.Store(true)
			return closeWrite(dst)
		}
		if err != nil {
			return err
		}
		switch {
		case large == nil && got == smallBuf:
			large, calm = largePool.Get().(*[largeBuf]byte), 0
		case large != nil && got >= smallBuf:
			calm = 0
		case large != nil:
			if calm++; calm == calmReads {
				largePool.Put(large)
				large = nil
			}
		}
	}
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// abort ends a connection with a reset where it has one.
func abort(c net.Conn) {
	switch r := c.(type) {
	case interface{ Abort() error }:
		r.Abort()
	case interface{ SetLinger(int) error }:
		r.SetLinger(0)
	}
	c.Close()
}
