//go:build unix

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/backend/guest"
	"github.com/vmnetd/vmnetd/qemu"
	"golang.org/x/sys/unix"
)

// The API over TCP, through the command: who has the token is heard, in the daemon's sandbox as well; guests are not, at
// no address of theirs, even with the token.
func TestAPIPort(t *testing.T) {
	token := filepath.Join(shortDir(t), "t,oken") // a comma, which an option doubles
	p := program(t, "vmnetd", "serve", "--api", "tcp:127.0.0.1:0", "--api", "tcp:[::1]:0,token-file="+qemuEscape(token)).start()
	said := []string{p.says("api http://127.0.0.1:")}
	clients := []string{strings.TrimPrefix(p.says("  vmnetd status"), "vmnetd status --control ")}
	said = append(said, p.says("api http://[::1]:"))
	clients = append(clients, strings.TrimPrefix(p.says("  vmnetd status"), "vmnetd status --control "))
	if want := filepath.Join(p.run, "vmnetd", "api.token"); !strings.Contains(said[0], want) || !strings.Contains(said[1], token) {
		t.Errorf("it said %q, want %s and %s", said, want, token)
	}
	ask := func(env []string, args ...string) (string, int) {
		t.Helper()
		q := program(t, "vmnetd", args...)
		q.Env = append(q.Env, "XDG_RUNTIME_DIR="+p.run)
		q.Env = append(q.Env, env...)
		q.Stderr = nil
		out, _ := q.CombinedOutput()
		return string(out), q.ProcessState.ExitCode()
	}
	for _, at := range clients {
		if out, code := ask(nil, "status", "--control", at); code != 0 || !strings.Contains(out, "API at") || !strings.Contains(out, token) {
			t.Errorf("status at %s: %d %s", at, code, out)
		}
		if out, code := ask([]string{"VMNETD_CONTROL=" + at}, "forward", "add", "0:22"); code != 0 {
			t.Errorf("forward add at %s: %d %s", at, code, out)
		}
		if out, code := ask(nil, "wait", "guest", "nobody", "--timeout", "300ms", "--control", at); code != 1 || !strings.Contains(out, "in vain for guest nobody") {
			t.Errorf("wait at %s: %d %s", at, code, out)
		}
		if out, code := ask([]string{"VMNETD_TOKEN=not-the-one-it-is"}, "dns", "ls", "--control", strings.Split(at, ",")[0]); code != 1 || !strings.Contains(out, "token") {
			t.Errorf("with another token at %s: %d %s", at, code, out)
		}
	}
	if d := newTop(&inspector{control: clients[1]}, t.Context()).ask().(topData); d.err != nil || d.status.PID != p.Process.Pid {
		t.Errorf("top at %s: %v, %v", clients[1], d.status, d.err)
	}
	for _, name := range []string{token, filepath.Join(p.run, "vmnetd", "api.token")} {
		if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 || fi.Size() < minToken {
			t.Errorf("token file: %v, %v", fi, err)
		}
	}

	// A guest at the gateway's address, which is the host's loopback: another port there answers it.
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	wire, err := net.Dial("unix", filepath.Join(p.run, "vmnetd", "qemu.sock"))
	if err != nil {
		t.Fatal(err)
	}
	g, err := guest.New(ctx, qemu.NewLink(wire), guest.Config{Name: "nosy"})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	secret, err := os.ReadFile(filepath.Join(p.run, "vmnetd", "api.token"))
	if err != nil {
		t.Fatal(err)
	}
	get := func(host, port string) (int, error) {
		c := g.HTTPClient()
		defer c.CloseIdleConnections()
		req, err := http.NewRequestWithContext(ctx, "GET", "http://"+net.JoinHostPort(host, port)+"/v1/status", nil)
		if err != nil {
			return 0, err
		}
		req.Host = "127.0.0.1:" + port
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(secret)))
		resp, err := c.Do(req)
		if err != nil {
			return 0, err
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return resp.StatusCode, nil
	}
	web := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer web.Close()
	port := func(at string) string { return at[strings.LastIndexByte(at, ':')+1:] }
	c := control.NewClient(filepath.Join(p.run, "vmnetd", "control.sock"))
	defer c.Close()
	st, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n := st.Networks[0]
	if code, err := get(n.Gateway4.String(), port(web.Listener.Addr().String())); code != 200 {
		t.Fatalf("the guest does not come to the host's loopback at all: %d, %v", code, err)
	}
	for _, x := range []struct {
		at   netip.Addr
		port string
	}{{n.Gateway4, port(clients[0])}, {n.Gateway6, port(strings.Split(clients[1], ",")[0])}} {
		if code, err := get(x.at.String(), x.port); err == nil {
			t.Errorf("a guest was answered at %s port %s: %d", x.at, x.port, code)
		}
	}
	if st, err = c.Status(ctx); err != nil || st.Networks[0].Refused["door"] < 2 {
		t.Errorf("not counted: %v, %v", st.Networks[0].Refused, err)
	}
}

func TestAPIFlag(t *testing.T) {
	dir := shortDir(t)
	fifo, foreign := filepath.Join(dir, "fifo"), filepath.Join(dir, "foreign")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 { // who made a file knows what is in it
		if err := errors.Join(os.WriteFile(foreign, []byte("0123456789abcdef"), 0o600), os.Chown(foreign, 65534, 65534)); err != nil {
			t.Fatal(err)
		}
		if _, err := openAPI("tcp:127.0.0.1:0,token-file=" + foreign); err == nil || !strings.Contains(err.Error(), "somebody else's") {
			t.Errorf("root takes another user's token: %v", err)
		}
		if token, err := readToken(foreign, false); err != nil {
			t.Errorf("root cannot ask another user's daemon: %q, %v", token, err)
		}
	}
	file := func(name, text string, mode os.FileMode) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for _, c := range []struct {
		spec, want string
		usage      bool
	}{
		{"tcp:0.0.0.0:0", "no loopback address", true},
		{"tcp:192.0.2.1:80", "no loopback address", true},
		{"tcp:[::]:0", "no loopback address", true},
		{"tcp:[::ffff:127.0.0.1]:0", "no loopback address", true},
		{"tcp:example.com:80", "want tcp:127.0.0.1:PORT", true},
		{"tcp:8080", "want tcp:127.0.0.1:PORT", true},
		{"unix:/x", "control socket", true},
		{"tcp:127.0.0.1:0,token=x", "token-file=PATH", true},
		{"tcp:127.0.0.1:0,token-file=", "token-file=PATH", true},
		{"tcp:127.0.0.1:0,token-file=" + dir + ",token-file=" + dir, "once", true},
		{"tcp:127.0.0.1:0,token-file=" + dir, "no plain file", false},
		{"tcp:127.0.0.1:0,token-file=" + fifo, "no plain file", false},
		{"tcp:127.0.0.1:0,token-file=" + filepath.Join(dir, "no", "t"), "no such file", false},
		{"tcp:127.0.0.1:0,token-file=" + file("open", "0123456789abcdef", 0o644), "open to others", false},
		{"tcp:127.0.0.1:0,token-file=" + file("short", "0123456789abcde", 0o600), "has no token", false},
		{"tcp:127.0.0.1:0,token-file=" + file("empty", "", 0o600), "has no token", false},
		{"tcp:127.0.0.1:0,token-file=" + file("words", "0123456789 abcdef", 0o600), "has no token", false},
		{"tcp:127.0.0.1:0,token-file=" + file("long", strings.Repeat("x", maxToken+1), 0o600), "has no token", false},
		{"tcp:localhost:0,token-file=" + file("fine", "0123456789abcdef\n", 0o600), "", false},
	} {
		list, err := (&apiFlags{[]string{c.spec}}).open()
		for _, a := range list {
			if a.token != "0123456789abcdef" {
				t.Errorf("%s: token %q", c.spec, a.token)
			}
			a.Close()
		}
		var usage usageError
		if c.want == "" && err == nil {
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &usage) != c.usage {
			t.Errorf("%s: %v; want %q, usage %v", c.spec, err, c.want, c.usage)
		}
	}
}
