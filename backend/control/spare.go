package control

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
)

// spareConns is how many clients are still heard when the process has no descriptor left: somebody who looks why, somebody
// who ends what it is, and one each who waits for events or forgot to hang up.
const spareConns = 4

// spareListener holds descriptors that it gives up for clients when there are no others.
type spareListener struct {
	net.Listener

	mu     sync.Mutex
	spares []*os.File
	closed bool
}

func (l *spareListener) Accept() (net.Conn, error) {
	l.refill()
	for {
		c, err := l.Listener.Accept()
		if err == nil || !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) || !l.give() {
			return c, err
		}
	}
}

// give closes one, and says whether there was one.
func (l *spareListener) give() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.spares)
	if n == 0 {
		return false
	}
	l.spares[n-1].Close()
	l.spares = l.spares[:n-1]
	return true
}

// refill takes as many as there may be. It is called when a client has gone, before anybody else takes its descriptor.
func (l *spareListener) refill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.spares) < spareConns && !l.closed {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return
		}
		l.spares = append(l.spares, f)
	}
}

func (l *spareListener) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	for l.give() {
	}
	return l.Listener.Close()
}
