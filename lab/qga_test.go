//go:build unix

package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/lab/guest"
)

// testLongest is an answer with all that our own agent keeps of a stream, in base64. A smaller one than qgaLongest is sooner full.
const testLongest = 6 << 20

// agentPair is a client and the conn that its agent answers at.
func agentPair(t testing.TB) (*qga, net.Conn) {
	t.Helper()
	ours, f, err := socketPair(syscall.SOCK_STREAM, "agent")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	g := limitedQGA(ours, testLongest)
	t.Cleanup(func() {
		theirs.Close()
		g.Close()
	})
	return g, theirs
}

// realAgent is the small guest's, in this process.
func realAgent(t *testing.T) *qga {
	t.Helper()
	g, c := agentPair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		new(guest.Agent).Serve(c)
	}()
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	return g
}

func TestQGAExec(t *testing.T) {
	g := realAgent(t)
	ctx := t.Context()
	if err := g.reachable(ctx); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		command  Command
		code     int
		out, err string
		fails    string
	}{
		{name: "output", command: Command{Args: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}}, code: 3, out: "out\n", err: "err\n"},
		{name: "input", command: Command{Args: []string{"cat"}, Stdin: strings.NewReader("in\x00\xff")}, out: "in\x00\xff"},
		{name: "folder", command: Command{Args: []string{"pwd"}, Dir: "/"}, out: "/\n"},
		{name: "environment", command: Command{Args: []string{"sh", "-c", `echo "$A $PATH"|cut -c1-5`}, Env: []string{"A=b c"}}, out: "b c /\n"},
		{name: "both, and words with blanks", command: Command{Args: []string{"echo", "a  b", "$A"}, Dir: "/", Env: []string{"A=x"}}, out: "a  b $A\n"},
		{name: "signal", command: Command{Args: []string{"sh", "-c", "kill -9 $$"}}, code: 137},
		{name: "no folder", command: Command{Args: []string{"pwd"}, Dir: "/no/such"}, code: 126, err: "*"},
		{name: "no program", command: Command{Args: []string{"/no/such"}}, fails: "/no/such"},
		{name: "no command", fails: "no command"},
		{name: "more than is kept", command: Command{Args: []string{"head", "-c", "4200000", "/dev/zero"}}, fails: "there was more"},
		{name: "more than is taken", command: Command{Args: []string{"cat"}, Stdin: io.LimitReader(zeros{}, qgaInput+1)}, fails: "8 MiB"},
		{name: "a lot", command: Command{Args: []string{"cat"}, Stdin: io.LimitReader(zeros{}, 1<<20)}, out: string(make([]byte, 1<<20))},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, complaint bytes.Buffer
			c.command.Stdout, c.command.Stderr = &out, &complaint
			code, err := g.exec(ctx, c.command)
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Fatalf("status %d, error %v; want one with %q", code, err, c.fails)
				}
				return
			}
			if err != nil || code != c.code || out.String() != c.out || c.err != "*" && complaint.String() != c.err {
				t.Errorf("status %d, %v, output %q, complaint %q", code, err, &out, &complaint)
			}
		})
	}
	// The client is as good as before after all that.
	if err := g.reachable(ctx); err != nil {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A guest that says nothing, or nonsense, keeps nobody longer than he wants to wait, and gets an error that says so.
func TestQGAHostile(t *testing.T) {
	for _, c := range []struct {
		name string
		says func(w io.Writer, n int, request string) error // n-th request
		want string
	}{
		{"nothing", func(io.Writer, int, string) error { return nil }, "does not answer"},
		{"garbage for a sync", func(w io.Writer, _ int, _ string) error {
			_, err := w.Write([]byte("\xffhello\n{}\n[]\n\"\"\n"))
			return err
		}, "does not answer"},
		{"garbage later", afterSync("no json\x1b[2J\n"), `what is no JSON: no json\x1b[2J`},
		{"neither", afterSync("{}\n"), "neither a result nor an error"},
		{"an error", afterSync(`{"error":{"class":"GenericError","desc":"no\n\u001b[31m"}}` + "\n"), `agent: no\n\x1b[31m`},
		{"a result of another kind", afterSync(`{"return":"x"}` + "\n"), "with something else"},
		{"deep", afterSync(strings.Repeat("[", 1<<16) + "\n"), "no JSON"},
		{"an end", func(w io.Writer, _ int, _ string) error { return io.EOF }, "gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, conn := agentPair(t)
			go func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				for n := 0; ; n++ {
					line, err := r.ReadString('\n')
					if err != nil || c.says(conn, n, line) != nil {
						return
					}
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if !strings.Contains(c.want, "answer") || strings.Contains(c.want, "with") {
				ctx = t.Context()
			}
			_, err := g.exec(ctx, Command{Args: []string{"x"}})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want one with %q", err, c.want)
			}
		})
	}
}

// afterSync answers syncs as it should, and all else with text.
func afterSync(text string) func(io.Writer, int, string) error {
	return func(w io.Writer, _ int, line string) error {
		if answerSync(w, line) {
			return nil
		}
		_, err := io.WriteString(w, text)
		return err
	}
}

func answerSync(w io.Writer, line string) bool {
	var q struct {
		Execute   string
		Arguments struct{ ID int64 }
	}
	if json.Unmarshal([]byte(strings.TrimPrefix(line, "\xff")), &q) != nil || !strings.HasPrefix(q.Execute, "guest-sync") {
		return false
	}
	fmt.Fprintf(w, "\xff{\"return\": %d}\n", q.Arguments.ID)
	return true
}

// A guest that floods fills no memory and keeps nobody; one that does not read keeps nobody either.
func TestQGAFlood(t *testing.T) {
	g, conn := agentPair(t)
	var sent atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		junk := bytes.Repeat([]byte("x"), 64<<10) // and never a newline
		for {
			n, err := conn.Write(junk)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	}()
	for sent.Load() < 2*testLongest {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := g.reachable(ctx); !errors.Is(err, errAgentSilent) {
			t.Errorf("reachable: %v", err)
		}
		cancel()
	}
	// Its input is larger than any socket's buffer.
	g.synced = true
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := g.exec(ctx, Command{Args: []string{"cat"}, Stdin: io.LimitReader(zeros{}, qgaInput)}); !errors.Is(err, errAgentSilent) {
		t.Errorf("exec: %v", err)
	}
	conn.Close()
	<-done
}

// The agent of a guest that was restarted has forgotten what it was asked; who waits comes through.
func TestQGAAgain(t *testing.T) {
	g, conn := agentPair(t)
	ignored := make(chan struct{})
	go func() {
		r := bufio.NewReader(conn)
		for n := 0; ; n++ {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			switch {
			case n == 0:
				close(ignored) // as if it had not been there
			case answerSync(conn, line):
			default:
				io.WriteString(conn, "{\"return\": {}}\n")
			}
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-ignored; cancel() }()
	if err := g.reachable(ctx); !errors.Is(err, errAgentSilent) {
		t.Fatalf("reachable: %v", err)
	}
	if err := g.reachable(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// FuzzQGA has an agent answer whatever it likes: no panic, and an end.
func FuzzQGA(f *testing.F) {
	for _, s := range []string{
		"", "\xff\n", `{"return": 1}` + "\n", `{"return": 1}` + "\n" + `{"return": {"pid": 5}}` + "\n" + `{"return": {"exited": true, "exitcode": 0, "out-data": "YQ=="}}` + "\n",
		`{"return": 1}` + "\n" + `{"error": {"class": "GenericError", "desc": "no"}}` + "\n", `{"return": 1}` + "\n" + `{"return": {"pid": 1e99}}` + "\n",
		`{"return": 1}` + "\n" + `{"return": {"pid": 5}}` + "\n" + `{"return": {"exited": true, "signal": -9223372036854775808}}` + "\n",
		`{"return": 1}` + "\n" + `{"return": {"pid": 5}}` + "\n" + `{"return": {"exited": true, "out-data": "*"}}` + "\n", "{\n{\n\xff{\xff}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := net.Pipe()
		g := newQGA(ours)
		go func() {
			theirs.Write(said)
			theirs.Close()
		}()
		// What it is asked, it does not read: what is sent ends with the conn.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		var out bytes.Buffer
		g.exec(ctx, Command{Args: []string{"x"}, Stdout: &out})
		if ctx.Err() != nil {
			t.Error("the client did not notice the end")
		}
		g.Close()
	})
}

// benchLog logs with the test.
func benchLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }
