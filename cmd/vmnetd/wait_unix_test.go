//go:build unix

package main

import (
	"strings"
	"testing"
)

func TestWait(t *testing.T) {
	dir := shortDir(t)
	l := newCLI(t, "--sandbox-folder", dir, "--user", "root")
	check := func(what string, status int, out, complaint string) func(string, string, int) {
		return func(gotOut, gotErr string, got int) {
			t.Helper()
			if got != status || !strings.Contains(gotOut, out) || !strings.Contains(gotErr, complaint) {
				t.Errorf("%s: status %d, %q, %q, want %d with %q and %q", what, got, gotOut, gotErr, status, out, complaint)
			}
		}
	}

	// What is not so within the time is said, with what is there.
	check("no guest", 1, "", "waited 20ms in vain for guest web to be plugged in: no guest of web; there is none")(l.run("wait", "guest", "web", "--timeout", "20ms"))
	check("no port", 1, "", `no guest "web"`)(l.run("wait", "port", "web:22", "--timeout", "300ms"))
	check("no forward", 1, "", "no forward 2222:22; there is none")(l.run("wait", "forward", "2222:22", "--timeout", "300ms"))
	check("gone", 0, "", "")(l.run("wait", "gone", "web"))
	check("daemon", 0, "", "")(l.run("wait", "daemon"))
	check("none", 1, "", "no daemon at nosuch")(l.run("wait", "daemon", "--control", "nosuch", "--timeout", "300ms"))
	check("none", 1, "", "start one with 'vmnetd serve'")(l.run("wait", "guest", "web", "--control", "nosuch"))

	// Commands that wait meanwhile end when it is so.
	plugged, leased := l.background("wait", "guest", "--any", "-o", "json"), l.background("wait", "lease", "WEB")
	two, port := l.background("wait", "lease", "--any", "--count", "2"), l.background("wait", "port", "web:22")
	forward := l.background("wait", "forward", "unix:"+dir+"/f-:22")
	web := l.plug("web")
	check("guest", 0, `"id": "g1"`, "")(plugged.ends())
	check("lease", 0, "10.0.2.15", "")(leased.ends())
	if !two.runs() || !port.runs() || !forward.runs() {
		t.Error("a command ended before what it waits for was so")
	}
	l.listen(web, 22)
	check("port", 0, "10.0.2.15:22", "")(port.ends())
	l.plug("db")
	check("two leases", 0, "db", "")(two.ends())
	check("two guests", 0, "", "")(l.run("wait", "guest", "--any", "--count", "2"))
	check("three", 1, "", "2 of 3; there is db, web")(l.run("wait", "guest", "--any", "--count", "3", "--timeout", "300ms"))
	if out, complaint, status := l.run("forward", "add", "0:22", "unix:"+dir+"/f-:22"); status != 0 {
		t.Fatal(complaint)
	} else {
		rule, _, _ := strings.Cut(out, "\n")
		check("by rule", 0, rule, "")(l.run("wait", "forward", rule))
		check("by id", 0, rule, "")(l.run("wait", "forward", "tcp:"+strings.TrimSuffix(rule, ":22/tcp")))
	}
	check("forward", 0, dir+"/f-:22", "")(forward.ends())

	check("still there", 1, "", "guest web (g1) is plugged in since")(l.run("wait", "gone", "web", "--timeout", "300ms"))
	gone := l.background("wait", "gone", "web")
	web.Close()
	check("gone", 0, "", "")(gone.ends())

	// A daemon that ends takes what waits with it, and says so.
	waits := l.background("wait", "guest", "web", "--timeout", "0")
	l.until("it waits", waits.runs)
	l.d.Process.Kill()
	check("daemon ended", 1, "", "vmnetd: ")(waits.ends())
	daemon := l.background("wait", "daemon")
	if !daemon.runs() {
		t.Error("no daemon is taken for one")
	}
	l.d.ends(-1)
	l.start()
	check("daemon", 0, "", "")(daemon.ends())
}

func TestWaitUsage(t *testing.T) {
	for s, want := range map[string]waitPort{
		"web:22": {"web", "tcp", 22}, "10.0.2.15:53/udp": {"10.0.2.15", "udp", 53}, "[fd00::15]:22": {"fd00::15", "tcp", 22},
		"52:54:00:12:34:56:22": {"52:54:00:12:34:56", "tcp", 22}, "g1:65535/tcp": {"g1", "tcp", 65535},
	} {
		if got, err := parseWaitPort(s); err != nil || got != want {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, bad := range []string{"", "web", "web:", ":22", "web:0", "web:65536", "web:ssh", "web:22/sctp", "fd00::15:22", "[fd00::15:22", "[]:22"} {
		if got, err := parseWaitPort(bad); err == nil {
			t.Errorf("%q is taken for %v", bad, got)
		}
	}
	for _, args := range []string{"wait", "wait guest", "wait guest a --any", "wait lease --any --count 0", "wait lease a --count 2", "wait port web", "wait nosuch", "wait gone"} {
		if status := vmnetd(strings.Fields(args)); status != exitUsage {
			t.Errorf("%s: status %d", args, status)
		}
	}
}

func FuzzWaitPort(f *testing.F) {
	for _, s := range []string{"web:22", "10.0.2.15:53/udp", "[fd00::15]:22", "52:54:00:12:34:56:22", "web", ":22", "web:0", "[]:1", "a:1/", "[a:1", "::1:2", "web:+1", "/udp", "web:22/tcp/udp"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseWaitPort(s)
		if err != nil {
			return
		}
		if p.guest == "" || p.port == 0 || p.proto != "tcp" && p.proto != "udp" {
			t.Errorf("%q is taken for %+v", s, p)
		}
		if !strings.Contains(s, p.guest) {
			t.Errorf("%q is taken for guest %q", s, p.guest)
		}
	})
}
