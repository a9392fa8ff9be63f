package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"

	"github.com/vmnetd/vmnetd/guestlog"
)

// maxTCP is how many connections are open at a TCP listener: as many programs as one person has, each with a stream or two.
// Any user of this machine can connect, and so takes no more descriptors than these; who says nothing is put out after
// headerTimeout, who has no token at once.
const maxTCP = 128

// ServeTCP answers on l, at a loopback address, to whoever has the token: see [Guard]. name is what the log calls the
// token. It is as Serve besides.
func (s *Server) ServeTCP(ctx context.Context, l *net.TCPListener, token, name string) error {
	refuse := func(err error) error {
		l.Close()
		return fmt.Errorf("control: %s: %w", l.Addr(), err)
	}
	if a, ok := l.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		return refuse(errors.New("not a loopback address: whoever reaches it could try tokens, and would read one on its way"))
	}
	if token == "" {
		return refuse(errors.New("no token"))
	}
	quiet := slog.New(guestlog.New(s.log().Handler()))
	g := newGuard(s.api(), token, l.Addr())
	g.refused = func(r *http.Request, p *Problem) {
		from, _ := r.Context().Value(peerKey{}).(peer)
		quiet.Warn("control: refused", "peer", from.tcp, "status", p.Status, "error", p.Detail)
	}
	places := make(chan struct{}, maxTCP)
	who := func(c net.Conn) peer { return peer{tcp: c.RemoteAddr().String(), token: name} }
	return s.serveOn(ctx, &boundedListener{TCPListener: l, places: places, closed: make(chan struct{})}, http.HandlerFunc(g.serve), func() { <-places }, who)
}

// boundedListener takes no more connections than it has places. Who takes one from it gives the place back.
type boundedListener struct {
	*net.TCPListener
	places chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (l *boundedListener) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.TCPListener.Accept()
	if err != nil {
		<-l.places
	}
	return c, err
}

func (l *boundedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.TCPListener.Close()
}
