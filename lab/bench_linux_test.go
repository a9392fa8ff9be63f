package lab

import (
	"context"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/lab/topology"
)

// guestPatience bounds each wait of these tests: a boot takes a few seconds on a quiet machine.
const guestPatience = 60 * time.Second

// needQEMU skips where no guest can be had; not in CI.
func needQEMU(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a guest: not with -short")
	}
	if _, err := exec.LookPath("qemu-system-" + qemuArch()); err != nil || runtime.GOARCH != "amd64" {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no QEMU for the small guest: %v", err)
		}
		t.Skipf("no QEMU for the small guest: %v", err)
	}
}

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
		dir: t.TempDir(), keep: t.TempDir(), base: t.TempDir(), console: c, log: benchLog(t),
		plug: func(_ int, l link.Link) {
			go func() {
				defer l.Close()
				for b := new(link.Batch); l.ReadFrames(b) == nil; b.Next() {
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
