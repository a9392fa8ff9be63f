package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/backend/guest"
	"github.com/vmnetd/vmnetd/qemu"
	"golang.org/x/sys/unix"
)

// goGuest plugs a guest in that is a program, and has an address.
func goGuest(t *testing.T, p *proc, name string) *guest.Guest {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(p.run, "vmnetd/qemu.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	g, err := guest.New(ctx, qemu.NewLink(c), guest.Config{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// logLine is a line of a flow log, as far as tests look at it.
type logLine struct {
	Time                                                                                        time.Time
	Event, Network, Guest, Proto, Direction, Src, Dst, Host, Name, Hello, Verdict, Reason, Rule string
	GuestName                                                                                   string `json:"guest_name"`
	PolicyRule                                                                                  string `json:"policy_rule"`
	ID, Lost                                                                                    uint64
	Names                                                                                       []string
	DurationMS                                                                                  *int64 `json:"duration_ms"`
	UpBytes                                                                                     uint64 `json:"up_bytes"`
	DownBytes                                                                                   uint64 `json:"down_bytes"`
	UpPackets                                                                                   uint64 `json:"up_packets"`
}

// flowLines are the lines of flow logs, oldest file last.
func flowLines(t *testing.T, files ...string) (list []logLine) {
	t.Helper()
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			if line[len(line)-1] != '\n' {
				break // it is being written
			}
			var x logLine
			if err := json.Unmarshal(line, &x); err != nil {
				t.Fatalf("%s: %q: %v", f, line, err)
			}
			list = append(list, x)
		}
	}
	return list
}

// What a guest does is in the log, under the names that it knows: written from within the sandbox, by whoever the daemon
// has become, in files that are renamed as they grow.
func TestFlowLog(t *testing.T) {
	for _, ordinary := range []bool{true, false} {
		t.Run(fmt.Sprintf("ordinary=%v", ordinary), func(t *testing.T) {
			dir := shortDir(t)
			path := filepath.Join(dir, "flows.jsonl")
			p := program(t, "vmnetd", "serve", "--flow-log", path, "--flow-log-size", "64KiB", "--flow-log-keep", "4")
			if ordinary {
				p.ordinary()
				if err := os.Chmod(dir, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			p.start().says("control")
			c := control.NewClient(filepath.Join(p.run, "vmnetd/control.sock"))
			t.Cleanup(c.Close)
			g := goGuest(t, p, "web")

			host := loopbackServer(t, false, 1<<20, func(c net.Conn) {
				io.Copy(io.Discard, c)
				c.Write(make([]byte, 5000))
				c.Close()
			})
			dial := func(to string) error {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				conn, err := g.DialContext(ctx, "tcp", to)
				if err != nil {
					return err
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(30 * time.Second))
				if _, err := conn.Write(make([]byte, 1000)); err != nil {
					return err
				}
				conn.(interface{ CloseWrite() error }).CloseWrite()
				if n, err := io.Copy(io.Discard, conn); n != 5000 || err != nil {
					return fmt.Errorf("%d bytes, %w", n, err)
				}
				return nil
			}
			if err := dial(fmt.Sprintf("host.internal:%d", host)); err != nil {
				t.Fatal(err)
			}
			if err := dial("169.254.169.254:80"); err == nil {
				t.Fatal("the metadata service answers")
			}
			// Something listens nowhere: refused by the far side, not by us.
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
			if err := dial(strings.Replace(l.Addr().String(), "127.0.0.1", "10.0.2.2", 1)); err == nil {
				t.Fatal("nobody answers")
			}
			find := func(what string, is func(logLine) bool) logLine {
				t.Helper()
				var found logLine
				waitUntil(t.Fatalf, what, func() bool {
					for _, x := range flowLines(t, path) {
						if is(x) {
							found = x
							return true
						}
					}
					return false
				})
				return found
			}
			dst := fmt.Sprintf("10.0.2.2:%d", host)
			x := find("the conversation's beginning", func(x logLine) bool { return x.Event == "opened" && x.Dst == dst })
			if x.Network != "default" || x.Guest != "g1" || x.GuestName != "web" || x.Proto != "tcp" || x.Direction != "out" || !strings.HasPrefix(x.Src, "10.0.2.15:") ||
				x.Host != fmt.Sprintf("127.0.0.1:%d", host) || x.Verdict != "allowed" || len(x.Names) != 1 || x.Names[0] != "host.internal" || x.DurationMS != nil {
				t.Errorf("opened: %+v", x)
			}
			y := find("its end", func(y logLine) bool { return y.Event == "ended" && y.ID == x.ID })
			if y.UpBytes != 1000 || y.DownBytes != 5000 || y.UpPackets == 0 || y.Reason != "closed" || y.DurationMS == nil || y.Src != x.Src || y.Names[0] != "host.internal" || y.Time.Before(x.Time) {
				t.Errorf("ended: %+v", y)
			}
			x = find("what was refused", func(x logLine) bool { return x.Event == "refused" })
			if x.Dst != "169.254.169.254:80" || x.Reason != "link-local" || x.Verdict != "refused" || x.GuestName != "web" {
				t.Errorf("refused: %+v", x)
			}
			x = find("what nobody answered", func(x logLine) bool { return x.Event == "ended" && x.Reason == "refused" })
			if x.Verdict != "allowed" || x.UpBytes != 0 {
				t.Errorf("refused by the far side: %+v", x)
			}
			closed, err := c.Flows(t.Context(), control.FlowFilter{State: "refused"})
			if err != nil || len(closed) != 1 || closed[0].Reason != "link-local" {
				t.Errorf("the API says %+v, %v", closed, err)
			}

			// It grows, is renamed, and nothing is lost on the way.
			const more = 300
			for range more {
				if err := dial(fmt.Sprintf("10.0.2.2:%d", host)); err != nil {
					t.Fatal(err)
				}
			}
			waitUntil(t.Fatalf, "all lines", func() bool {
				files, _ := filepath.Glob(path + "*")
				n := 0
				for _, x := range flowLines(t, files...) {
					if x.Event == "ended" && x.Dst == dst {
						n++
					}
				}
				return n == more+1
			})
			files, _ := filepath.Glob(path + "*")
			if len(files) < 3 {
				t.Errorf("%v", files)
			}
			for _, f := range files {
				if fi, err := os.Stat(f); err != nil || fi.Mode() != 0o600 {
					t.Errorf("%s: %v, %v", f, fi.Mode(), err)
				}
			}
			st, err := c.Status(t.Context())
			if err != nil || st.FlowLog == nil || st.FlowLog.Lost != 0 || st.FlowLog.Error != "" || st.FlowLog.Lines < 2*more {
				t.Errorf("status: %+v, %v", st.FlowLog, err)
			}
			if st.Sandbox.Walls == "off" {
				t.Errorf("sandbox: %+v", st.Sandbox)
			}
			p.Process.Signal(syscall.SIGTERM)
			p.ends(0)
		})
	}
}

// Nobody who does not read the log holds anything up: the guest, the control socket, the daemon's end.
func TestFlowLogUnread(t *testing.T) {
	path := filepath.Join(shortDir(t), "pipe")
	if err := unix.Mkfifo(path, 0o666); err != nil {
		t.Fatal(err)
	}
	p := program(t, "vmnetd", "serve", "--flow-log", path).start()
	p.says("control")
	c := control.NewClient(filepath.Join(p.run, "vmnetd/control.sock"))
	t.Cleanup(c.Close)
	g := goGuest(t, p, "web")
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	client := g.HTTPClient()
	client.Timeout = 30 * time.Second
	client.Transport.(*http.Transport).DisableKeepAlives = true
	for range 400 { // more than a pipe holds
		resp, err := client.Get("http://" + strings.Replace(l.Addr().String(), "127.0.0.1", "10.0.2.2", 1))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); string(b) != "hello" || err != nil {
			t.Fatalf("%q, %v", b, err)
		}
		resp.Body.Close()
	}
	waitUntil(t.Fatalf, "a status that says so", func() bool {
		st, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(st.FlowLog.Error, "nobody reads")
	})
	p.Process.Signal(syscall.SIGTERM)
	p.ends(0)
}

func TestFlowLogFlags(t *testing.T) {
	dir := shortDir(t)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--flow-log", filepath.Join(dir, "no/f")}, "no such file"},
		{[]string{"--flow-log", dir}, "neither a file nor a pipe"},
		{[]string{"--flow-log", filepath.Join(dir, "f"), "--flow-log-size", "1k"}, "64KiB at least"},
		{[]string{"--flow-log", filepath.Join(dir, "f"), "--flow-log-keep", "0"}, "want 1 to"},
		{[]string{"--flow-log", filepath.Join(dir, "f"), "--flow-log-only", "all"}, "want refused"},
		{[]string{"--flow-log", "-", "--hyperkit", "stdio"}, "standard output is the wire"},
	} {
		p := program(t, "vmnetd", append([]string{"serve"}, tt.args...)...).start()
		if err := <-p.ended; err == nil || !strings.Contains(p.err.String(), tt.want) {
			t.Errorf("%q: %v: %s", tt.args, err, p.err.String())
		}
		p.ended <- nil
	}
	if os.Getuid() == 0 { // root's daemon becomes another user, who must be able to rename
		path := filepath.Join(dir, "sub/f")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "sub/other"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		p := program(t, "vmnetd", "serve", "--flow-log", path).start()
		if err := <-p.ended; err == nil || !strings.Contains(p.err.String(), "--flow-log-size 0") {
			t.Errorf("a folder of root's: %v: %s", err, p.err.String())
		}
		p.ended <- nil
		p = program(t, "vmnetd", "serve", "--flow-log", path, "--flow-log-size", "0").start()
		p.says("control")
		p.Process.Signal(syscall.SIGTERM)
		p.ends(0)
	}
	// Standard output is the log's alone.
	p := program(t, "vmnetd", "serve", "--flow-log", "-").start()
	waitUntil(t.Fatalf, "the daemon", func() bool { return strings.Contains(p.err.String(), "\ncontrol ") })
	g := goGuest(t, p, "web")
	g.DialContext(t.Context(), "tcp", "169.254.169.254:80")
	if line := p.says(""); !strings.Contains(line, `"event":"refused"`) || !json.Valid([]byte(line)) {
		t.Errorf("%q", line)
	}
	p.Process.Signal(syscall.SIGTERM)
	p.ends(0)
}
