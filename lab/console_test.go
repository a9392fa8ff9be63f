package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestConsoleKeepsTheEnd(t *testing.T) {
	c := newConsole()
	defer c.close()
	var all bytes.Buffer
	for i := 0; all.Len() < 3*consoleKept; i++ {
		line := fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", i%777))
		all.WriteString(line)
		c.Write([]byte(line))
	}
	if got := c.Tail(0); !bytes.Equal(got, all.Bytes()[all.Len()-consoleKept:]) {
		t.Errorf("%d bytes are kept, and not the last %d", len(got), consoleKept)
	}
	got := c.Tail(1000)
	if !bytes.HasSuffix(all.Bytes(), got) || len(got) > 1000 || !bytes.HasPrefix(got, []byte("line ")) {
		t.Errorf("the last 1000 bytes are %q", got)
	}
	// One write that is longer than all that is kept.
	big := bytes.Repeat([]byte("0123456789\n"), consoleKept/5)
	c.Write(big)
	if got := c.Tail(0); !bytes.Equal(got, big[len(big)-consoleKept:]) {
		t.Error("after a write that is larger than the ring, the ring has something else than its end")
	}
}

func TestConsoleLastLine(t *testing.T) {
	for _, d := range []struct{ said, want string }{
		{"", ""},
		{"one\ntwo\n", "two"},
		{"one\r\n\x1b[32mtwo\x1b[0m\r\n\r\n   \n", "two"},
		{"half", "half"},
		{"bad \xff bytes \x00\x07 \n", "bad ? bytes"},
	} {
		c := newConsole()
		c.Write([]byte("of an earlier start\n"))
		c.began()
		c.Write([]byte(d.said))
		if got := c.LastLine(); got != d.want {
			t.Errorf("the last line of %q is %q, want %q", d.said, got, d.want)
		}
		c.close()
	}
}

func TestConsoleMatch(t *testing.T) {
	long := strings.Repeat("y", 3*consoleLine)
	for _, d := range []struct {
		name   string
		writes []string
		re     string
	}{
		{"whole line", []string{"booting\n", "listening on 80\n"}, "^listening on [0-9]+$"},
		{"in pieces", []string{"boot", "ing\nlisten", "ing", " on 8", "0\n"}, "listening on 80$"},
		{"a prompt", []string{"Debian\n\nweb ", "login: "}, "login:$"},
		{"coloured", []string{"[\x1b[0;32m  OK  \x1b[0m] Reached target\r\n"}, `^\[  OK  \] Reached`},
		{"behind a long line", []string{long + "\n", "here\n"}, "^here$"},
		{"across a seam of a long line", []string{long[:consoleLine-3], "needle" + long + "\n"}, "needle"},
		{"at the end of a long line", []string{long, "needle"}, "needle$"},
	} {
		t.Run(d.name, func(t *testing.T) {
			c := newConsole()
			defer c.close()
			c.Write([]byte("listening on 80\nlogin:\nhere needle\n[  OK  ] Reached\n")) // of an earlier start
			c.began()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			type answer struct {
				line string
				err  error
			}
			got := make(chan answer, 1)
			go func() {
				line, err := c.Match(ctx, regexp.MustCompile(d.re))
				got <- answer{line, err}
			}()
			for _, w := range d.writes {
				c.Write([]byte(w))
				runtime.Gosched()
			}
			if a := <-got; a.err != nil {
				t.Fatalf("%q is not found: %v", d.re, a.err)
			}
			// And by who comes later.
			if _, err := c.Match(ctx, regexp.MustCompile(d.re)); err != nil && d.name != "at the end of a long line" {
				t.Errorf("later %q is not found: %v", d.re, err)
			}
		})
	}
	c := newConsole()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Match(ctx, regexp.MustCompile("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait that was given up ended with %v", err)
	}
	c.close()
	if _, err := c.Match(t.Context(), regexp.MustCompile("x")); err == nil {
		t.Error("a line was found on a console that is closed")
	}
}

// FuzzConsoleMatch: however what a node says comes, a line is found that is short enough to be one.
func FuzzConsoleMatch(f *testing.F) {
	f.Add([]byte("booting\nlogin: "), uint8(3))                             // a prompt
	f.Add([]byte("\x1b[32mOK\x1b[0m login: \r\n"), uint8(1))                // colours
	f.Add(bytes.Repeat([]byte("z"), 2*consoleLine), uint8(200))             // a long line
	f.Add(append(bytes.Repeat([]byte("\xff\n"), 50), "\x1b["...), uint8(7)) // half an escape
	f.Fuzz(func(t *testing.T, noise []byte, step uint8) {
		c := newConsole()
		defer c.close()
		c.began()
		for rest := noise; len(rest) > 0; {
			k := min(len(rest), int(step)+1)
			c.Write(rest[:k])
			rest = rest[k:]
		}
		c.LastLine()
		c.Write([]byte("\x18\n\nthe needle is here\n")) // CAN ends an escape that was open (ECMA-48)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if _, err := c.Match(ctx, regexp.MustCompile("^the needle is here$")); err != nil {
			t.Errorf("after %q: %v", noise, err)
		}
	})
}

// Who does not read holds up neither the node nor others, and is told what was missed.
func TestConsoleSlowWatcher(t *testing.T) {
	c := newConsole()
	defer c.close()
	r, w := io.Pipe() // takes nothing by itself
	slow := make(chan error, 1)
	go func() { slow <- c.Watch(t.Context(), w, 0) }()
	got := make(chan struct{})
	go func() { io.ReadFull(r, make([]byte, 5)); close(got) }()
	for watching := false; !watching; { // from some moment on; what was said before is not for it
		c.Write([]byte("begin\n"))
		select {
		case <-got:
			watching = true
		case <-time.After(time.Millisecond):
		}
	}
	line := bytes.Repeat([]byte("flood\n"), 1000)
	for i := 0; i < 3*consoleKept; i += len(line) {
		c.Write(line) // returns, or the test ends by its deadline
	}
	c.Write([]byte("the end\n"))
	found := make(chan string, 1)
	go func() {
		var all bytes.Buffer
		buf := make([]byte, 64<<10)
		for !bytes.Contains(all.Bytes(), []byte("the end\n")) {
			n, err := r.Read(buf)
			if err != nil {
				break
			}
			all.Write(buf[:n])
		}
		found <- all.String()
	}()
	if all := <-found; !regexp.MustCompile(`\[[0-9]+ bytes of the console are missed here`).MatchString(all) {
		t.Errorf("of %d bytes a slow watcher got %d and was not told", 3*consoleKept, len(all))
	}
	r.Close()
	c.Write([]byte("x"))
	if err := <-slow; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a watcher who has gone ended with %v", err)
	}
}

// A process writes and reads; a program that floods is slowed down, and not the lab.
func TestConsoleOfProcess(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a shell")
	}
	c := newConsole()
	defer c.close()
	start := func(script string) *exec.Cmd {
		in, out, err := c.Files()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-c", script)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in.Close()
		out.Close()
		return cmd
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := start(`echo ready >/dev/stdout; read x; echo "got $x" >&2; read y; echo "then $y"`)
	if _, err := c.Match(ctx, regexp.MustCompile("^ready$")); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"one\n", "two\n"} {
		if err := c.Send(ctx, []byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Match(ctx, regexp.MustCompile("^then two$")); err != nil {
		t.Fatalf("%v; it said %q", err, c.Tail(0))
	}
	cmd.Wait()

	// One that never reads: input waits for as long as it may, and no longer.
	cmd = start(`echo again; exec sleep 1000`)
	if _, err := c.Match(ctx, regexp.MustCompile("^again$")); err != nil {
		t.Fatal(err)
	}
	short, done := context.WithTimeout(ctx, 50*time.Millisecond)
	if err := c.Send(short, make([]byte, 1<<20)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a megabyte to a program that does not read ended with %v", err)
	}
	done()
	cmd.Process.Kill()
	cmd.Wait()
	c.hangUp()
	if err := c.Send(ctx, []byte("x")); !errors.Is(err, ErrNoInput) {
		t.Errorf("input to nobody ended with %v", err)
	}

	before := c.said()
	begin := time.Now()
	cmd = start(`exec yes`)
	for c.said()-before < consoleBurst+consoleRate/2 {
		if ctx.Err() != nil {
			t.Fatal("it says nothing")
		}
		time.Sleep(time.Millisecond)
	}
	if rate := float64(c.said()-before-consoleBurst) / time.Since(begin).Seconds(); rate > 1.5*consoleRate {
		t.Errorf("a flood is taken at %.0f bytes a second, want %d at most", rate, consoleRate)
	}
	hung := time.Now()
	c.hangUp() // while it floods; it gets SIGPIPE
	if d := time.Since(hung); d > 10*time.Second {
		t.Errorf("to hang up took %v", d)
	}
	cmd.Wait()
}

func TestConsoleServe(t *testing.T) {
	c := newConsole()
	node, far := net.Pipe()
	carried := make(chan error, 1)
	go func() { carried <- c.Carry(node) }()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "c"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- c.Serve(ln) }()

	far.Write([]byte("said before\n"))
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		return conn
	}
	expect := func(conn net.Conn, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if n, err := io.ReadFull(conn, got); err != nil || string(got) != want {
			t.Fatalf("got %q (%v), want %q", got[:n], err, want)
		}
	}
	a, b := dial(), dial()
	expect(a, "said before\n")
	expect(b, "said before\n")
	far.Write([]byte("to both\n"))
	expect(a, "to both\n")
	expect(b, "to both\n")
	if _, err := a.Write([]byte("typed\r")); err != nil {
		t.Fatal(err)
	}
	expect(far, "typed\r")
	a.Close()
	b.Close()

	// Those who come and go leave no place taken, even if nothing is said: more than may be at once.
	var wg sync.WaitGroup
	for range 3 * consoleConns {
		conn := dial()
		wg.Go(func() {
			defer conn.Close()
			got := make([]byte, 4)
			if _, err := io.ReadFull(conn, got); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		conn.Close()
	}

	// All who watch are let go when the node is.
	last := dial()
	expect(last, "said before\nto both\n")
	c.close()
	if _, err := last.Read(make([]byte, 1)); err == nil {
		t.Error("a conn goes on after the console was closed")
	}
	last.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := <-carried; err != nil {
		t.Error(err)
	}
	far.Close()
}
