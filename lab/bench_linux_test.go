package lab

import (
	"context"
	"net"
	"regexp"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/lab/topology"
)

// standalone is a bench without a lab: what its node sends goes nowhere.
func standalone(t *testing.T, n *topology.Node, networks ...topology.Network) *bench {
	t.Helper()
	c := newConsole()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", c.Tail(8<<10))
		}
		c.close()
	})
	return &bench{
		lab: &topology.Lab{Name: "bench", Networks: networks, Nodes: []topology.Node{*n}}, node: n,
		dir: t.TempDir(), keep: t.TempDir(), base: t.TempDir(), console: c, log: testLog(t),
		plug: func(_ int, l link.Link) {
			go func() {
				defer l.Close()
				for b := new(link.Batch); l.ReadFrames(b) == nil; {
				}
			}()
		},
		dialNetwork: func(context.Context, int, string, string) (net.Conn, error) { return nil, net.ErrClosed },
	}
}

// startAlone starts a machine, and stops it with the test.
func startAlone(t *testing.T, m machine) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), guestPatience)
		defer cancel()
		if err := m.stop(ctx); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	if err := m.start(ctx); err != nil {
		t.Fatal(err)
	}
}

func awaitAgent(t *testing.T, m machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	for {
		err := m.reachable(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		select {
		case <-m.ended():
			t.Fatal(m.status())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// awaitText waits until the console has said something.
func awaitText(t *testing.T, c *Console, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	if _, err := c.Match(ctx, regexp.MustCompile(regexp.QuoteMeta(want))); err != nil {
		t.Fatalf("no %q on the console: %v", want, err)
	}
}
