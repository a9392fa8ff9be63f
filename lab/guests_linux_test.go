package lab

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/lab/topology"
)

// upFile brings a lab up from a text.
func upFile(t *testing.T, text string) *Lab {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lab.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	top, err := topology.Read(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(Config{File: file, Base: filepath.Dir(file)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range top.Nodes {
				if c := l.Node(n.Name); c != nil {
					t.Logf("%s said:\n%s", n.Name, c.Console().Tail(8<<10))
				}
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	if _, err := l.Apply(ctx, top); err != nil {
		t.Fatal(err)
	}
	if err := l.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	return l
}

// A small guest with an uplink and a plain network: its addresses, its agent, a conversation with it, its end.
func TestSmallGuest(t *testing.T) {
	needQEMU(t)
	began := time.Now()
	l := upFile(t, `
name: small
networks:
  lan: {}
  inner: {uplink: false, net: 10.9.0.0/24, net6: "fd09::/64"}
nodes:
  box:
    kind: qemu
    interfaces:
      - net: lan
      - {net: inner, address: 10.9.0.7}
`)
	t.Logf("ready after %v", time.Since(began))
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	box := l.Node("box")
	out, err := box.Output(ctx, "sh", "-c", "hostname; ip -4 addr; ip -6 addr show dev eth1; ip route; cat /etc/resolv.conf /etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", out)
	for _, want := range []string{"box\n", "10.9.0.7/24", "default via", "nameserver"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q", want)
		}
	}
	var got, complaint bytes.Buffer
	code, err := box.Exec(ctx, Command{Args: []string{"sh", "-c", `pwd; echo "$WORD"; cat; echo oops >&2; exit 7`},
		Dir: "/tmp", Env: []string{"WORD=a b"}, Stdin: strings.NewReader("in\n"), Stdout: &got, Stderr: &complaint})
	if err != nil || code != 7 || got.String() != "/tmp\na b\nin\n" || complaint.String() != "oops\n" {
		t.Errorf("status %d, %v; output %q, complaint %q", code, err, &got, &complaint)
	}
	if code, err := box.Exec(ctx, Command{Args: []string{"no-such-program"}}); err == nil {
		t.Errorf("a program that is not there: status %d, no error", code)
	}
	// A command whose caller has gone does not run on.
	short, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		_, err := box.Exec(short, Command{Args: []string{"sh", "-c", "echo $$ >/tmp/pid; exec sleep 1000"}})
		done <- err
	}()
	for {
		if out, err := box.Output(ctx, "sh", "-c", "cat /tmp/pid 2>/dev/null || true"); err != nil {
			t.Fatal(err)
		} else if len(out) > 0 {
			break
		}
	}
	stop()
	if err := <-done; err == nil {
		t.Error("a command whose caller has gone ended well")
	}
	if code, err := box.Exec(ctx, Command{Args: []string{"sh", "-c", "kill -0 $(cat /tmp/pid)"}}); err != nil || code == 0 {
		t.Errorf("it runs on: %d, %v", code, err)
	}
	// From the gateway into the guest.
	go box.Exec(ctx, Command{Args: []string{"nc", "-l", "-p", "7000", "-e", "cat"}})
	var c net.Conn
	for {
		if c, err = box.Dial(ctx, "tcp", "7000"); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	defer c.Close()
	echo := make([]byte, 5)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(echo); err != nil || string(echo) != "hello" {
		t.Errorf("echo %q, %v", echo, err)
	}
	c.Close()
	// It ends by itself.
	box.Exec(ctx, Command{Args: []string{"poweroff", "-f"}})
	awaitState(t, box, topology.StateEnded)
}

func awaitState(t *testing.T, n *Node, want topology.State) {
	t.Helper()
	for end := time.Now().Add(guestPatience); n.Status().State != want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v, want %s", n.Status(), want)
		}
	}
}
