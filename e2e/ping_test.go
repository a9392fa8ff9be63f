//go:build linux

package e2e

import (
	"strings"
	"testing"
)

func testPing(t *testing.T, b *bench) {
	for _, a := range []string{b.gw4.String(), b.gw6.String(), b.dns4.String(), b.dns6.String(), world4, world6, second4, second6} {
		if out, errs, code, err := b.g.try(t, "ping -c 1 -W 5 %s", a); code != 0 || !strings.Contains(out, " 0% packet loss") {
			t.Errorf("ping %s: %v %s %s", a, err, out, errs)
		}
	}
	if out, errs, code, err := b.g.try(t, "ping -c 1 -W 5 -s 4000 %s", world4); code != 0 {
		t.Errorf("ping of 4000 bytes: %v %s %s", err, out, errs)
	}
	// An address that nobody answers for stays silent, and an unused one of the network too.
	out := b.g.run(t, "for a in %s %s 10.0.2.200; do ping -c 1 -W 1 $a & done; wait", silent4, silent6)
	if strings.Contains(out, "bytes from") || strings.Count(out, "100% packet loss") != 3 {
		t.Errorf("ping of addresses that nobody has: %s", out)
	}
	if st := b.status(t).Networks[0]; st.Ping4 != "ok" || st.Ping6 != "ok" {
		t.Errorf("status: ping %q and %q", st.Ping4, st.Ping6)
	}
}

// TestPingClosed: a host that lets nobody ping says so once, and the gateway answers all the same.
func TestPingClosed(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	l.host.sysctl(t, "ipv4/ping_group_range", "1 0")
	d := l.serve(t)
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	gw := d.gateway(t)
	for _, a := range []string{gw.gw4.String(), gw.gw6.String()} {
		g.run(t, "ping -c 1 -W 5 %s", a)
	}
	out := g.run(t, "for a in %[1]s %[2]s %[1]s %[2]s; do ping -c 1 -W 1 $a & done; wait", world4, world6)
	if strings.Contains(out, "bytes from") {
		t.Errorf("ping is answered: %s", out)
	}
	st := d.status(t).Networks[0]
	for _, s := range []string{st.Ping4, st.Ping6} {
		if s == "ok" || !strings.Contains(s, "ping_group_range") {
			t.Errorf("status: ping %q, want why not and what to do", s)
		}
	}
	said := 0
	for line := range strings.Lines(d.log.String()) {
		if strings.Contains(line, "ping_group_range") {
			said++
		}
	}
	if said < 1 || said > 2 { // once a family at most
		t.Errorf("said %d times in the log, want once: %s", said, d.log.String())
	}
}
