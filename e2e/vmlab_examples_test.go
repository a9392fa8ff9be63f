//go:build linux

package e2e

import (
	"fmt"
	"math"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/e2e/vm"
	labguest "github.com/vmnetd/vmnetd/lab/guest"
)

// guestPatience is how long two virtual machines may take to be ready. Alone on two quiet cores they take a fraction of
// it; the aim is 20 s there, which the test prints and does not insist on.
const guestPatience = time.Minute

// TestLabTwoGuests is the first of the labs that 'lab init' writes, and what becomes of one that is killed.
func TestLabTwoGuests(t *testing.T) {
	t.Parallel()
	needQEMU(t)
	s := newStudent(t)
	s.warm(t)
	s.must(t, "lab", "init")
	before := s.traces(t)
	port := s.freePort(t)
	s.must(t, "lab", "check", "two-guests.yaml")
	if _, took := s.timed(t, "lab", "up", "--set", "port="+port, "two-guests.yaml"); took > guestPatience {
		t.Errorf("two guests and a web server took %v", took)
	}
	for _, n := range s.status(t, "two-guests").Nodes {
		t.Logf("%s, %s: ready after %v", n.Name, n.Kind, n.ReadyAfter.Round(time.Millisecond))
	}
	if got, err := s.get(t, "127.0.0.1:"+port); err != nil || got != "hello from web\n" {
		t.Errorf("the web server by the forward: %q, %v", got, err)
	}
	for _, c := range []struct{ node, command, want string }{
		{"alice", "wget -qO- http://web.internal/", "hello from web\n"},
		{"bob", "wget -qO- http://www.internal/", "hello from web\n"},
		{"alice", "hostname", "alice\n"},
		{"web", "hostname", "web\n"},
		{"alice", "ping -c 1 -W 10 bob.internal >/dev/null && echo answered", "answered\n"},
		{"web", "ping -c 1 -W 10 alice.internal >/dev/null && echo answered", "answered\n"},
	} {
		if got := s.must(t, "lab", "exec", c.node, "--", "sh", "-c", c.command); got != c.want {
			t.Errorf("%s: %s: %q, want %q", c.node, c.command, got, c.want)
		}
	}
	if _, _, code := s.try(t, "lab", "exec", "alice", "--", "sh", "-c", "exit 7"); code != 7 {
		t.Errorf("exit 7 in alice comes out as %d", code)
	}

	// What is killed cannot clean up; who comes after does.
	meanwhile := s.traces(t)
	if n := len(meanwhile.processes); n < 4 {
		t.Errorf("%d processes, want the lab's, two machines and a server: %v", n, meanwhile.processes)
	}
	pid := s.status(t, "two-guests").PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.timed(t, "lab", "down", "two-guests")
	s.nothingLeft(t, before, meanwhile)
}

// TestLabRouted is the second: two networks, two routers, a bad line between them.
func TestLabRouted(t *testing.T) {
	t.Parallel()
	needQEMU(t)
	s := newStudent(t)
	s.warm(t)
	s.must(t, "lab", "init")
	before := s.traces(t)
	s.must(t, "lab", "check", "routed.yaml")
	if _, took := s.timed(t, "lab", "up", "routed.yaml"); took > guestPatience {
		t.Errorf("it took %v", took)
	}
	up := s.lives(t, s.status(t, "routed"))

	// Both families at once, from either side.
	var both sync.WaitGroup
	for _, c := range []struct{ from, to string }{{"l1", "10.1.2.11"}, {"r2", "fd00:1:1::12"}} {
		both.Go(func() { s.lossy(t, c.from, c.to, 1000, 0.02, 40*time.Millisecond) })
	}
	both.Wait()

	// A changed variable changes the line and nothing else.
	s.timed(t, "lab", "up", "--set", "loss=0%", "--set", "latency=1ms", "routed.yaml")
	if now := s.lives(t, s.status(t, "routed")); len(differ(up, now)) > 0 {
		t.Errorf("another line made %v anew", differ(up, now))
	}
	s.lossy(t, "l2", "10.1.2.12", 200, 0, 2*time.Millisecond)

	// The virtual machine is the firewall between the networks.
	s.must(t, "lab", "exec", "rl", "--", "sh", "-c", "ip route add prohibit 10.1.2.12 && ip -6 route add prohibit fd00:1:2::12")
	for to, want := range map[string]bool{"10.1.2.11": true, "10.1.2.12": false, "fd00:1:2::11": true, "fd00:1:2::12": false} {
		out, _, code := s.try(t, "lab", "exec", "l1", "--", "ping", "-c", "1", "-W", "10", to)
		if got := code == 0; got != want {
			t.Errorf("past the firewall to %s: %v, want %v: %s", to, got, want, out)
		}
	}
	// A network without an uplink has nothing in it but the nodes.
	if out, _, code := s.try(t, "lab", "exec", "l1", "--", "ping", "-c", "1", "-W", "1", world4); code == 0 {
		t.Errorf("there is a way out: %s", out)
	}
	meanwhile := s.traces(t)
	s.timed(t, "lab", "down", "routed")
	s.nothingLeft(t, before, meanwhile)
}

// lossy pings n times through a line that loses p of all frames each way, and is late.
func (s *student) lossy(t *testing.T, from, to string, n int, p float64, rtt time.Duration) {
	t.Helper()
	out, errs, code := s.try(t, "lab", "exec", from, "--", "ping", "-q", "-n", "-i", "0.002", "-c", strconv.Itoa(n), "-W", "2", to)
	if code != 0 {
		t.Errorf("%s pings %s: exit status %d: %s%s", from, to, code, out, errs)
		return
	}
	m := regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`).FindStringSubmatch(out)
	r := regexp.MustCompile(`= ([\d.]+)/([\d.]+)/`).FindStringSubmatch(out)
	if m == nil || r == nil || m[1] != strconv.Itoa(n) {
		t.Errorf("%s pings %s: %s", from, to, out)
		return
	}
	got, _ := strconv.Atoi(m[2])
	least, _ := strconv.ParseFloat(r[1], 64)
	both := 1 - (1-p)*(1-p) // there and back
	// An emulated router that has no processor for a moment may lose one or the other at the end.
	want, slack := float64(n)*both, 4*math.Sqrt(float64(n)*both*(1-both))+2
	t.Logf("%s pings %s: %d of %d lost, want %.1f ± %.1f, which are 4 σ and 2; %s ms at least", from, to, n-got, n, want, slack, r[1])
	if lost := float64(n - got); math.Abs(lost-want) > slack {
		t.Errorf("%s pings %s: %v of %d lost, want %.1f ± %.1f", from, to, lost, n, want, slack)
	}
	if least < float64(rtt)/1e6 {
		t.Errorf("%s pings %s: an answer after %v ms, want %v at least", from, to, least, rtt)
	}
}

// TestLabSandbox is the third: what the agent reaches is what the list names.
func TestLabSandbox(t *testing.T) {
	t.Parallel()
	s := newStudent(t)
	s.must(t, "lab", "init")
	before := s.traces(t)
	s.must(t, "lab", "check", "sandbox.yaml")
	s.timed(t, "lab", "up", "sandbox.yaml")
	for _, c := range []struct{ what, url, want string }{
		{"its neighbour", "http://tools.internal/", "hello from tools\n"},
		{"what is on the list, by its address before its name was asked for", "http://10.9.0.2:18000/", ""},
		{"what is on the list", "http://packages.example:18000/", "hello from packages.example\n"},
		{"another port of it", "http://packages.example:18001/", ""},
		{"a name of the world that is not on the list", "http://www.example.com/", ""},
		{"the world by its address", "http://" + world4 + "/", ""},
		{"the cloud's metadata", "http://169.254.169.254/", ""},
		{"a node of another network", "http://10.10.0.15/", ""},
	} {
		out, errs, code := s.try(t, "lab", "exec", "agent", "--", "busybox", "wget", "-qO-", c.url)
		if c.want != "" && (code != 0 || out != c.want) {
			t.Errorf("%s, %s: %q, exit status %d: %s; want %q", c.what, c.url, out, code, errs, c.want)
		}
		if c.want == "" && code == 0 {
			t.Errorf("%s, %s is reached: %q", c.what, c.url, out)
		}
	}
	if s.dns.count("www.example.com.") > 0 {
		t.Error("a name that is not on the list was asked for in the world")
	}
	meanwhile := s.traces(t)
	s.timed(t, "lab", "down", "sandbox")
	s.nothingLeft(t, before, meanwhile)
}

// manyFile is a lab of n namespaces on two networks.
func manyFile(n int, more string) string {
	return fmt.Sprintf(`name: many
networks:
  lan: {net: 10.20.0.0/24}
  quiet: {uplink: false, net: 10.21.0.0/24, net6: "fd00:21::/64"}
nodes:
  web:
    kind: netns
    interfaces: [lan, quiet]
    command: [busybox, httpd, -f, -p, "80", -h, /etc]
    wait: tcp:80
  n:
    kind: netns
    count: %d
    interfaces: [lan]
    command: [sleep, infinity]
%s`, n-1, more)
}

// TestLabMany: ten namespaces and thirty, what they take, and that the same file changes nothing.
func TestLabMany(t *testing.T) {
	t.Parallel()
	s := newStudent(t)
	file := s.file(t, "many.yaml", manyFile(10, ""))
	before := s.traces(t)
	_, took := s.timed(t, "lab", "up", file)
	t.Logf("ten nodes: %v; 3 s is the aim on a quiet machine", took)
	if took > 20*time.Second {
		t.Errorf("ten nodes took %v", took)
	}
	first := s.lives(t, s.status(t, "many"))
	if len(first) != 1+10+2+1 {
		t.Errorf("%d parts: %v", len(first), first)
	}
	out, _ := s.timed(t, "lab", "up", file)
	if now := s.lives(t, s.status(t, "many")); len(differ(first, now)) > 0 {
		t.Errorf("the same file again made %v anew: %s", differ(first, now), out)
	}

	// One node more, one that goes, one that runs something else: of the others none is touched.
	s.file(t, "many.yaml", manyFile(9, "  late: {kind: netns, interfaces: [quiet]}\n"))
	s.timed(t, "lab", "up", file)
	now := s.lives(t, s.status(t, "many"))
	if got, want := fmt.Sprint(differ(first, now)), "[namespaces node late node n9]"; got != want {
		t.Errorf("another file made %s anew, want %s", got, want)
	}

	// Thirty.
	s.file(t, "many.yaml", manyFile(30, ""))
	_, took = s.timed(t, "lab", "up", file)
	thirty := s.status(t, "many")
	if len(thirty.Nodes) != 30 {
		t.Errorf("%d nodes, want 30", len(thirty.Nodes))
	}
	s.lives(t, thirty)
	kB, processes := s.memory(t)
	t.Logf("thirty nodes, twenty-one of them new: %v; %d processes hold %d kB together", took, processes, kB)
	if got := s.must(t, "lab", "exec", "n29", "--", "busybox", "wget", "-qO-", "http://web.internal/hostname"); got == "" {
		t.Error("the thirtieth does not reach the first")
	}

	meanwhile := s.traces(t)
	if err := syscall.Kill(thirty.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.timed(t, "lab", "down", "many")
	s.nothingLeft(t, before, meanwhile)
}

// warm has what the small guest is made of in the user's cache, who has no way to the mirror here.
func (s *student) warm(t *testing.T) {
	t.Helper()
	if _, _, err := vm.Image(t.Context(), t.Logf); err != nil {
		t.Fatal(err)
	}
	own, err := labguest.Cache()
	if err != nil {
		t.Fatal(err)
	}
	const link = `mkdir "$2" && { cp -al "$1/packages" "$2/" 2>/dev/null || cp -a "$1/packages" "$2/"; } && find "$2" -type d -exec chown "$3" {} + `
	if said, err := exec.Command("sh", "-c", link, "sh", own, s.path("cache"), fmt.Sprint(s.uid)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
}
