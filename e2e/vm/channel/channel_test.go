//go:build unix

package channel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is a client and a guest in one process, ended when the test is.
func pair(t *testing.T) (context.Context, *Client) {
	t.Helper()
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- Serve(guest) }()
	c := NewClient(host)
	t.Cleanup(func() {
		c.Close()
		if err := <-served; err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Serve: %v", err)
		}
	})
	// Ten times what the slowest of these takes on two busy cores.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	if err := c.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx, c
}

func TestCommands(t *testing.T) {
	ctx, c := pair(t)
	for _, tt := range []struct {
		name, run, in string
		out, err      string
		code          int
	}{
		{name: "output", run: "echo hello", out: "hello\n"},
		{name: "stderr", run: "echo oops >&2; exit 3", err: "oops\n", code: 3},
		{name: "stdin", run: "cat; echo end", in: "one\ntwo", out: "one\ntwoend\n"},
		{name: "several lines", run: "x=1\necho $x", out: "1\n"},
		{name: "killed by a signal", run: "kill -15 $$", code: 128 + 15},
		{name: "no such command", run: "exec /nonexistent 2>/dev/null", code: 127},
		{name: "a child left behind", run: "sleep 100 & echo gone; kill -9 $!", out: "gone\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := c.Start(tt.run)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Write([]byte(tt.in)); err != nil {
				t.Fatal(err)
			}
			if err := p.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			out, _ := io.ReadAll(p.Stdout)
			stderr, _ := io.ReadAll(p.Stderr)
			exit, err := p.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if string(out) != tt.out || string(stderr) != tt.err || exit.Code != tt.code {
				t.Errorf("%q: output %q, errors %q, status %d; want %q, %q, %d",
					tt.run, out, stderr, exit.Code, tt.out, tt.err, tt.code)
			}
		})
	}
}

// A command that neither reads nor ends must not hold up another.
func TestCommandsAreIndependent(t *testing.T) {
	ctx, c := pair(t)
	stuck, err := c.Start("sleep 100")
	if err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB: more than any pipe holds
	if _, err := stuck.Write(big); err != nil {
		t.Fatal(err)
	}
	p, err := c.Start("wc -c")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write(big); err != nil {
		t.Fatal(err)
	}
	if err := p.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(p.Stdout)
	if got := strings.TrimSpace(string(out)); got != "1048576" {
		t.Errorf("wc counted %s bytes, want 1048576", got)
	}
	if err := stuck.Kill(); err != nil {
		t.Fatal(err)
	}
	if exit, err := stuck.Wait(ctx); err != nil || exit.Code != 128+9 {
		t.Errorf("killed: status %d, error %v; want 137", exit.Code, err)
	}
}

func TestOutputComesAsItIsWritten(t *testing.T) {
	ctx, c := pair(t)
	p, err := c.Start("echo first; read x; echo $x")
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, err := p.Stdout.Read(buf)
	if err != nil || string(buf[:n]) != "first\n" {
		t.Fatalf("read %q, %v while the command runs; want \"first\\n\"", buf[:n], err)
	}
	if _, err := p.Write([]byte("second\n")); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(p.Stdout)
	if string(rest) != "second\n" {
		t.Errorf("read %q, want \"second\\n\"", rest)
	}
	if _, err := p.Wait(ctx); err != nil {
		t.Error(err)
	}
}

// The stream's end ends every wait with an error that says so, and every command in the guest.
func TestGuestGone(t *testing.T) {
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- Serve(guest) }()
	c := NewClient(host)
	defer c.Close()
	p, err := c.Start("echo up; sleep 100")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Stdout.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	guest.Close()
	if _, err := p.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "guest is gone") {
		t.Errorf("Wait: %v, want one that says the guest is gone", err)
	}
	if _, err := c.Start("true"); err == nil {
		t.Error("a command could be started in a guest that is gone")
	}
	if err := c.Ready(t.Context()); err == nil {
		t.Error("a guest that is gone is ready")
	}
	select {
	case <-served:
	case <-time.After(20 * time.Second):
		t.Fatal("Serve goes on after its stream's end")
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	ctx, c := pair(t)
	p, err := c.Start("sleep 100")
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if _, err := p.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait: %v, want deadline exceeded", err)
	}
}

func TestOutputNobodyReadsIsBounded(t *testing.T) {
	o := newOutput()
	piece := make([]byte, 1<<20)
	for i := 0; i < maxUnread>>20; i++ {
		if !o.add(piece) {
			t.Fatalf("refused after %d MiB, want room for %d", i, maxUnread>>20)
		}
	}
	if o.add(piece) {
		t.Error("took more than maxUnread")
	}
	o.close()
	n, err := io.Copy(io.Discard, o)
	if n != maxUnread || err == nil {
		t.Errorf("read %d bytes, error %v; want %d and an error that says the rest is lost", n, err, maxUnread)
	}
}
