//go:build unix

package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend/control"
)

// What is there is told first, then what becomes of it; a line each.
func TestFlowsFollow(t *testing.T) {
	l := newCLI(t)
	g := l.plug("web")
	l.listen(g, 7)
	host := serveHost(t, func(c net.Conn) { io.Copy(c, c) })
	ctx, cancel := context.WithTimeout(context.Background(), cliPatience)
	defer cancel()
	c, err := g.Dial(ctx, "tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l.until("the flow is open", func() bool {
		list, _ := l.c.Flows(ctx, control.FlowFilter{State: "open"})
		return len(list) == 1
	})
	if out, complaint, status := l.run("flows", "--guest", "web", "--proto", "tcp", "--sort", "bytes"); status != 0 || !strings.Contains(out, host.String()) {
		t.Errorf("status %d, %s%s", status, out, complaint)
	}
	if out, _, _ := l.run("flows", "ls", "--proto", "udp", "--no-headers"); out != "" {
		t.Errorf("udp: %s", out)
	}
	if _, complaint, status := l.run("flows", "--state", "opn"); status != 1 || !strings.Contains(complaint, "one of dialing, open") {
		t.Errorf("status %d, %s", status, complaint)
	}

	news := l.command("flows", "--follow", "-o", "json", "--address", "10.0.2.2")
	out, err := news.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := news.Start(); err != nil {
		t.Fatal(err)
	}
	defer news.Wait()
	defer news.Process.Kill()
	d := json.NewDecoder(out)
	next := func() (n flowNews) {
		t.Helper()
		if err := d.Decode(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := next(); n.Kind != "present" || n.Dst != host || n.Network != "default" || n.Guest != "g1" {
		t.Errorf("first: %+v", n)
	}
	c2, err := g.Dial(ctx, "tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	if n := next(); n.Kind != "opened" || n.Dst != host {
		t.Errorf("then: %+v", n)
	}
	c2.Close()
	for {
		n := next()
		if n.Kind == "ended" {
			if n.State != "closed" || n.Reason == "" {
				t.Errorf("at its end: %+v", n)
			}
			break
		}
	}
	if out, _, _ := l.run("flows", "--state", "closed"); !strings.Contains(out, "REASON") || !strings.Contains(out, host.String()) {
		t.Errorf("closed: %s", out)
	}
}
