package vm

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/e2e/vm/channel"
)

// patience bounds every wait of the helpers that take a test. A boot takes two seconds and all else
// less; a machine with two cores and four guests at once still stays far below it.
const patience = 60 * time.Second

// Need skips the test where guests cannot be made: another system, no QEMU, go test -short. With
// CI=true it fails there: CI must not pass by skipping.
func Need(t testing.TB) {
	t.Helper()
	refuse := t.Skipf
	if testing.Short() {
		t.Skip("boots guests: not with -short")
	}
	if os.Getenv("CI") == "true" {
		refuse = t.Fatalf
	}
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		refuse("test guests are made on linux/amd64 only, this is %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	if _, _, err := QEMU(t.Context()); err != nil {
		refuse("%v", err)
	}
}

// Boot starts a guest, waits until it takes commands, and closes it with the test. A failed test
// shows its console.
func Boot(t testing.TB, cfg Config) *Guest {
	t.Helper()
	g := Launch(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := g.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return g
}

// Launch is Boot without the wait, for guests that boot side by side or must fail.
func Launch(t testing.TB, cfg Config) *Guest {
	t.Helper()
	Need(t)
	if cfg.Log == nil {
		cfg.Log = t.Logf
	}
	// Not t.Context, which ends before Cleanup shows the console.
	g, err := Start(context.WithoutCancel(t.Context()), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(g.Console())
		}
		g.Close()
	})
	return g
}

// Must runs a command that must succeed and returns what it printed. The words are put together as
// fmt.Sprintf does.
func (g *Guest) Must(t testing.TB, format string, args ...any) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := g.Output(ctx, fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// JSON runs a command that prints a JSON object, such as those of guestbin, and reads it into v.
func (g *Guest) JSON(t testing.TB, v any, format string, args ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := g.Decode(ctx, v, fmt.Sprintf(format, args...)); err != nil {
		t.Fatal(err)
	}
}

// MustStart starts a command that goes on beside the test, and kills it with the test.
func (g *Guest) MustStart(t testing.TB, format string, args ...any) *channel.Proc {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := g.Start(ctx, fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill() }) // the guest may be gone
	return p
}

// WaitLease waits for eth0's lease.
func (g *Guest) WaitLease(t testing.TB) Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l, err := g.Lease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// WaitIPv6 waits for eth0's first IPv6 address beyond the link.
func (g *Guest) WaitIPv6(t testing.TB) netip.Addr {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	all, err := g.IPv6(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return all[0].Addr()
}
