package backend

// Station 8, the relay: bytes both ways between a guest and the far side, the plain path for any net.Conn. A side
// that has finished sending is told on as a half-close, a side that breaks off as a reset; a reset never arrives as a
// clean end.

import (
	"io"
	"net"
	"sync"

	"github.com/vmnetd/vmnetd/flows"
)

// relayBuffer is one gVisor view's worth: more gains nothing, since reads come in views.
const relayBuffer = 64 << 10

var relayBuffers = sync.Pool{New: func() any { b := make([]byte, relayBuffer); return &b }}

// relay runs until both directions are over, closes both sides and says how it ended.
func relay(guest, far net.Conn, f *flows.Flow) flows.Reason {
	var broken error
	var once sync.Once
	fail := func(err error) {
		once.Do(func() {
			broken = err
			abort(guest)
			abort(far)
		})
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		if err := copyHalf(far, guest, f, &f.Up); err != nil {
			fail(err)
		}
	}()
	if err := copyHalf(guest, far, f, &f.Down); err != nil {
		fail(err)
	}
	wg.Wait()
	guest.Close()
	far.Close()
	if broken != nil {
		return flows.ReasonReset
	}
	return flows.ReasonClosed
}

// copyHalf carries src's bytes to dst until src ends, and then ends dst's other half.
func copyHalf(dst, src net.Conn, f *flows.Flow, c *flows.Counter) error {
	bp := relayBuffers.Get().(*[]byte)
	defer relayBuffers.Put(bp)
	for {
		n, err := src.Read(*bp)
		if n > 0 {
			if _, werr := dst.Write((*bp)[:n]); werr != nil {
				return werr
			}
			c.Add(n)
			f.Touch()
		}
		if err == io.EOF {
			f.SetState(flows.Closing)
			if h, ok := dst.(interface{ CloseWrite() error }); ok {
				// Its error is the next read's or write's to tell.
				h.CloseWrite()
				return nil
			}
			return dst.Close()
		}
		if err != nil {
			return err
		}
	}
}
