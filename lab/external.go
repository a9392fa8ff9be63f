package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vmnetd/vmnetd/qemu"
)

// external is a node that somebody else starts, and plugs in at a unix socket for each interface, in QEMU's stream framing.
type external struct {
	b     *bench
	over  chan struct{} // it does not end by itself
	doors []*externalDoor
}

// externalDoor is one interface's socket. Who comes takes the place of who was there: it is one card's wire, and its holder
// may have been restarted.
type externalDoor struct {
	ln   net.Listener
	path string
	wg   sync.WaitGroup

	mu  sync.Mutex
	now net.Conn
	end bool
}

// newExternal is a node that somebody else starts, and plugs in at sockets.
func newExternal(b *bench) (machine, error) { return &external{b: b, over: make(chan struct{})}, nil }

// doorAt is where an interface's socket is.
func doorAt(b *bench, i int) string {
	if path, ok := strings.CutPrefix(b.node.Interfaces[i].Door, "unix:"); ok && path != "" {
		if !filepath.IsAbs(path) {
			path = filepath.Join(b.base, path)
		}
		return path
	}
	return filepath.Join(b.dir, b.node.Interfaces[i].Name+".sock")
}

// door is what Status shows for an interface.
func (e *external) door(i int) string { return "unix:" + doorAt(e.b, i) }

func (e *external) start(ctx context.Context) error {
	for i := range e.b.node.Interfaces {
		path := doorAt(e.b, i)
		ln, err := listenAlone(ctx, path)
		if err != nil {
			return fmt.Errorf("door of %s: %w", e.b.node.Interfaces[i].Name, err)
		}
		d := &externalDoor{ln: ln, path: path}
		e.doors = append(e.doors, d)
		d.wg.Go(func() { d.accept(e.b, i) })
	}
	return nil
}

// listenAlone listens at a path for this user only. A socket that nobody listens at any more is in nobody's way.
func listenAlone(ctx context.Context, path string) (net.Listener, error) {
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSocket != 0 {
		if listened(ctx, path) {
			return nil, fmt.Errorf("somebody listens at %s", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	// Between the two, its folder decides: the lab's own is private.
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// listened says whether somebody listens there. Linux tells; elsewhere it is tried, which may cost who is plugged in his wire.
func listened(ctx context.Context, path string) bool {
	if b, err := os.ReadFile("/proc/net/unix"); err == nil {
		return bytes.Contains(b, []byte(" "+path+"\n"))
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		c.Close()
	}
	return err == nil
}

func (d *externalDoor) accept(b *bench, i int) {
	for {
		c, err := d.ln.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				b.log.Error("nobody can plug in any more", "interface", b.node.Interfaces[i].Name, "error", err)
			}
			return
		}
		d.mu.Lock()
		old := d.now
		d.now = c
		end := d.end
		d.mu.Unlock()
		if old != nil {
			old.Close() // its port goes
		}
		if end {
			c.Close()
			return
		}
		b.log.Debug("plugged in", "interface", b.node.Interfaces[i].Name)
		b.plug(i, qemu.NewLink(c))
	}
}

func (d *externalDoor) close() error {
	err := d.ln.Close() // and its path goes
	d.mu.Lock()
	d.end = true
	if d.now != nil {
		d.now.Close()
	}
	d.mu.Unlock()
	d.wg.Wait()
	return err
}

func (e *external) begin(context.Context) error { return nil }

var errExternal = errors.New("somebody else runs it: the lab has its wires only")

func (e *external) exec(context.Context, Command) (int, error) { return -1, errExternal }

func (e *external) dial(ctx context.Context, network, port string) (net.Conn, error) {
	return dialUplink(ctx, e.b, network, port)
}

func (e *external) reachable(context.Context) error { return errExternal }
func (e *external) pids() []int                     { return nil }
func (e *external) spaces() ([]*os.File, error)     { return nil, nil }
func (e *external) ended() <-chan struct{}          { return e.over }
func (e *external) status() (int, error)            { return 0, nil }

func (e *external) stop(context.Context) error {
	var all []error
	for _, d := range e.doors {
		all = append(all, d.close())
	}
	e.doors = nil
	return errors.Join(all...)
}
