package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/lab/topology"
)

func parse(t *testing.T, text string) *topology.Lab {
	t.Helper()
	l, err := topology.Parse("lab.yaml", []byte(text), nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return l
}

// mark is in the environment of all that a test's lab starts.
func mark(t *testing.T) string { return "VMNETD_LAB_TEST=" + t.Name() + strconv.Itoa(os.Getpid()) }

// marked are the processes that have it, but for this one.
func marked(t *testing.T) []string {
	t.Helper()
	var found []string
	paths, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, p := range paths {
		env, _ := os.ReadFile(p)
		if bytes.Contains(env, []byte(mark(t))) {
			cmd, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
			found = append(found, filepath.Base(filepath.Dir(p))+" "+strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	return found
}

func descriptors() []string {
	var list []string
	files, _ := os.ReadDir("/proc/self/fd")
	for _, f := range files {
		if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil {
			list = append(list, to)
		}
	}
	return list
}

// until waits for a state.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 30 s: not yet %s", what)
		}
	}
}

func upText(t *testing.T, text string, options ...Option) *Lab {
	t.Helper()
	needSpaces(t)
	return UpTopology(t, parse(t, text), append(options, With(func(c *Config) { c.Env = []string{mark(t)} }))...)
}

func needSpaces(t *testing.T) {
	t.Helper()
	if why := whyNoSpaces(); why != "" {
		t.Skip(why)
	}
}

const shop = `name: shop
networks:
  front: {net: 10.77.0.0/24}
  back: {uplink: false, net: 10.78.0.0/24, net6: "fd00:78::/64"}
nodes:
  web:
    kind: netns
    interfaces: [front, back]
    command: [sh, -c, "echo serving; mkdir -p /tmp/x; exec busybox nc -ll -p 80 -e echo hello"]
    wait: [tcp:80, "log:^serving$"]
    after: [db]
  db:
    kind: netns
    interfaces: [{net: back, address: [10.78.0.9, "fd00:78::9"]}]
    command: [sleep, "100000"]
`

// The same file changes nothing, and another one what is different.
func TestApplyAgain(t *testing.T) {
	l := upText(t, shop)
	pids := func(name string) []int { return l.Node(name).Status().PIDs }
	web, db := pids("web"), pids("db")
	if len(web) == 0 || len(db) == 0 {
		t.Fatalf("web has processes %v, db %v", web, db)
	}
	front := l.Network("front")
	again := func(text string) []topology.Change {
		t.Helper()
		changes, err := l.Apply(t.Context(), parse(t, text))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		return changes
	}
	for range 3 {
		if changes := again(shop); len(changes) != 0 {
			t.Errorf("the same file changes %v", changes)
		}
	}
	if !slices.Equal(pids("web"), web) || !slices.Equal(pids("db"), db) || l.Network("front") != front {
		t.Errorf("the same file: web %v, then %v; db %v, then %v", web, pids("web"), db, pids("db"))
	}

	changes := again(strings.Replace(shop, "100000", "200000", 1))
	if len(changes) != 1 || changes[0].What != "node db" || changes[0].Action != actRestart {
		t.Errorf("another command of db's changes %v", changes)
	}
	if !slices.Equal(pids("web"), web) || slices.Equal(pids("db"), db) {
		t.Errorf("db alone is another: web %v, then %v; db %v, then %v", web, pids("web"), db, pids("db"))
	}
	changes = again(strings.Replace(shop, "net: 10.77.0.0/24", "net: 10.77.0.0/24, forward: ['127.0.0.1:0:web:80']", 1))
	if !slices.ContainsFunc(changes, func(c topology.Change) bool { return c.What == "network front" && c.Action == actChange }) {
		t.Errorf("a forward more changes %v", changes)
	}
	if !slices.Equal(pids("web"), web) || l.Network("front") != front {
		t.Error("for a forward more others are started anew")
	}
	if rules := front.Forwards().List(); len(rules) != 1 {
		t.Errorf("there are forwards %v", rules)
	}

	// What has failed is started again by the same file.
	db = pids("db")
	syscall.Kill(db[0], syscall.SIGKILL)
	until(t, "db failed", func() bool { return l.Node("db").Status().State == topology.StateFailed })
	if err := l.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "db: its command has ended") {
		t.Errorf("after a kill: %v", err)
	}
	changes = again(strings.Replace(shop, "net: 10.77.0.0/24", "net: 10.77.0.0/24, forward: ['127.0.0.1:0:web:80']", 1))
	if len(changes) != 1 || changes[0] != (topology.Change{What: "node db", Action: actStart, Why: "it had failed"}) {
		t.Errorf("after a kill the same file changes %v", changes)
	}
	// Names and addresses.
	out, err := l.Node("web").Output(t.Context(), "sh", "-c", "hostname; ping -c 1 -W 10 db >/dev/null && ping -c 1 -W 10 fd00:78::9 >/dev/null && echo both")
	if err != nil || string(out) != "web\nboth\n" {
		t.Errorf("in web: %q, %v", out, err)
	}
	client := l.HTTPClient()
	defer client.CloseIdleConnections()
	if _, err := client.Get("http://nobody/"); err == nil || !strings.Contains(err.Error(), "the lab has no node nobody") {
		t.Errorf("a node that is none: %v", err)
	}
	for _, name := range []string{"front", "back"} {
		if l.Network(name) == nil {
			t.Errorf("there is no network %s", name)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if left := marked(t); len(left) != 0 {
		t.Errorf("these are left: %q", left)
	}
}

func TestHTTPClient(t *testing.T) {
	l := upText(t, `name: www
networks: {lan: {net: 10.77.1.0/24}}
nodes:
  web:
    kind: netns
    interfaces: [lan]
    setup: [mount -t tmpfs www /srv, echo hello >/srv/index.html]
    command: [busybox, httpd, -f, -p, "80", -h, /srv]
    wait: tcp:80
`)
	client := l.HTTPClient()
	defer client.CloseIdleConnections()
	for _, url := range []string{"http://web/", "http://web.internal/", "http://web:80/index.html"} {
		r, err := client.Get(url)
		if err != nil {
			t.Error(err)
			continue
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if r.StatusCode != http.StatusOK || string(body) != "hello\n" {
			t.Errorf("%s: %s %q", url, r.Status, body)
		}
	}
}

// A node that floods its console, one that does not hear SIGTERM, one that leaves daemons behind and one that forks all the
// time: each ends with the lab, and none keeps another from what it does.
func TestBadNodes(t *testing.T) {
	l := upText(t, `name: bad
networks: {lan: {net: 10.77.2.0/24}}
nodes:
  flood: {kind: netns, interfaces: [lan], command: [sh, -c, "yes 'all work and no play' & yes >&2"]}
  deaf: {kind: netns, interfaces: [lan], command: [sh, -c, "trap '' TERM INT HUP; echo deaf; while :; do sleep 1000; done"], wait: "log:deaf"}
  daemons: {kind: netns, interfaces: [lan], command: [sh, -c, "for i in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP; sleep 10000; :' >/dev/null 2>&1 </dev/null & done; exit 0"]}
  forks: {kind: netns, interfaces: [lan], command: [sh, -c, "while :; do (setsid sleep 0.2 &) ; sleep 0.01; done"]}
  good: {kind: netns, interfaces: [lan], command: [sh, -c, "echo working; exec sleep 10000"], wait: "log:working"}
`)
	until(t, "daemons ended", func() bool { return l.Node("daemons").Status().State == topology.StateEnded })
	until(t, "a flood of 4 MiB", func() bool { return l.Node("flood").Console().said() > 4<<20 })
	if out, err := l.Node("good").Output(t.Context(), "echo", "hello"); err != nil || string(out) != "hello\n" {
		t.Errorf("beside them: %q, %v", out, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // for the deaf
	defer cancel()
	if err := l.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if left := marked(t); len(left) != 0 {
		t.Errorf("these are left: %q", left)
	}
}

// A lab whose file is changed again and again, without a look at whether it is ready, with nodes killed from outside, is at
// the end what the last file says; and when it is closed nothing is left: descriptors, goroutines (TestMain), processes,
// folders.
func TestChurn(t *testing.T) {
	needSpaces(t)
	rounds := 15
	if testing.Short() {
		rounds = 5
	}
	sockets, keep := t.TempDir(), t.TempDir()
	before := descriptors()
	var l *Lab
	run := func(seed uint64, rounds int) {
		r := rand.New(rand.NewPCG(seed, 1))
		var err error
		if l, err = New(Config{Sockets: sockets, Keep: keep, Env: []string{mark(t)}, Logger: testLogger(t), Consoles: true}); err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var text string
		for round := range rounds {
			text = randomLab(r)
			if _, err := l.Apply(t.Context(), parse(t, text)); err != nil {
				t.Fatalf("seed %d, round %d: %v\n%s", seed, round, err, text)
			}
			nodes := l.Nodes()
			switch r.IntN(6) {
			case 0:
				if err := l.Wait(t.Context()); err != nil && !strings.Contains(err.Error(), "signal: killed") {
					t.Fatalf("seed %d, round %d: %v\n%s", seed, round, err, text)
				}
			case 1:
				if len(nodes) > 0 {
					for _, pid := range nodes[r.IntN(len(nodes))].Status().PIDs {
						syscall.Kill(pid, syscall.SIGKILL)
					}
				}
			case 2:
				if len(nodes) > 0 {
					nodes[r.IntN(len(nodes))].Stop(t.Context())
				}
			case 3:
				time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond)
			}
			l.Status()
		}
		// Kills may have come after the last round; the same once more has it all up.
		for range 2 {
			if _, err := l.Apply(t.Context(), parse(t, text)); err != nil {
				t.Fatal(err)
			}
			if err = l.Wait(t.Context()); err == nil {
				break
			}
		}
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, text)
		}
		for _, n := range parse(t, text).Nodes {
			if l.Node(n.Name) == nil {
				t.Errorf("seed %d: %s is not there", seed, n.Name)
			}
		}
		if have, want := len(l.Nodes()), len(parse(t, text).Nodes); have != want {
			t.Errorf("seed %d: %d nodes are there, and %d in the file", seed, have, want)
		}
	}
	seed := rand.Uint64()
	run(seed, rounds)
	if left := marked(t); len(left) != 0 {
		t.Errorf("seed %d: these are left: %q", seed, left)
	}
	for _, dir := range []string{sockets, keep} {
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("seed %d: %s has %v", seed, dir, left)
		}
	}
	// The runtime's own and package netns' are made once: so the second time there are none more.
	middle := descriptors()
	goroutines := runtime.NumGoroutine()
	run(seed+1, rounds/5)
	until(t, "no more goroutines than before", func() bool { return runtime.NumGoroutine() <= goroutines })
	if after := descriptors(); len(after) > len(middle) {
		t.Errorf("seed %d: descriptors %d at first, then %d, then %d: %q", seed, len(before), len(middle), len(after), after)
	}
}

// randomLab is some lab of a few nodes, networks and options.
func randomLab(r *rand.Rand) string {
	var b strings.Builder
	b.WriteString("name: churn\nnetworks:\n")
	networks := 1 + r.IntN(3)
	uplink := make([]bool, networks)
	for i := range networks {
		uplink[i] = r.IntN(3) > 0
		fmt.Fprintf(&b, "  n%d: {net: 10.79.%d.0/24, uplink: %v", i, i+10*r.IntN(2), uplink[i])
		if uplink[i] {
			if r.IntN(2) == 0 {
				b.WriteString(", forward: ['127.0.0.1:0:a0:80']")
			}
			if r.IntN(3) == 0 {
				b.WriteString(", dns-record: ['db A 10.1.2.3']")
			}
			if r.IntN(3) == 0 {
				b.WriteString(", policy: {preset: sandbox}")
			}
		}
		if r.IntN(3) == 0 {
			fmt.Fprintf(&b, ", impair: 'latency=%dms'", 1+r.IntN(5))
		}
		b.WriteString("}\n")
	}
	b.WriteString("nodes:\n")
	nodes := 1 + r.IntN(5)
	for i := range nodes {
		fmt.Fprintf(&b, "  a%d:\n    kind: netns\n", i)
		var in []string
		for k := range networks {
			if i == 0 || r.IntN(2) == 0 {
				in = append(in, fmt.Sprintf("n%d", k))
			}
		}
		if len(in) > 0 {
			fmt.Fprintf(&b, "    interfaces: [%s]\n", strings.Join(in, ", "))
		}
		switch r.IntN(4) {
		case 0:
			fmt.Fprintf(&b, "    command: [sleep, \"%d\"]\n", 10000+r.IntN(3))
		case 1:
			b.WriteString("    command: [sh, -c, 'while :; do echo tick; sleep 0.01; done']\n    wait: ['log:tick']\n")
		case 2:
			b.WriteString("    command: [sh, -c, 'sleep 0.05']\n    restart: true\n")
		}
		if r.IntN(3) == 0 {
			b.WriteString("    setup: ['echo set up']\n")
		}
		if i > 0 && r.IntN(2) == 0 {
			fmt.Fprintf(&b, "    after: [a%d]\n", r.IntN(i))
		}
	}
	return b.String()
}

// Ports of a node's own and of others', as a node tries them.
func TestTryPort(t *testing.T) {
	l := upText(t, `name: ports
networks: {lan: {net: 10.77.6.0/24}, plain: {uplink: false, net: 10.77.7.0/24}}
nodes:
  a: {kind: netns, interfaces: [lan]}
  b: {kind: netns, interfaces: [plain], command: [busybox, nc, -ll, -p, "80", -e, cat], wait: tcp:80}
  c: {kind: netns, interfaces: [plain, lan], wait: "tcp:b:80"}
`)
	for _, d := range []struct {
		node, network, host, port string
		want                      error
	}{
		{"a", "tcp", "", "80", syscall.ECONNREFUSED},
		{"a", "udp", "", "80", syscall.ECONNREFUSED},
		{"b", "tcp", "", "80", nil},
		{"b", "udp", "", "80", syscall.ECONNREFUSED},
		{"c", "tcp", "b", "80", nil},
		{"c", "tcp", "b", "81", syscall.ECONNREFUSED},
		{"c", "udp", "b", "80", syscall.ECONNREFUSED},
		{"c", "udp", "a.internal", "80", syscall.ECONNREFUSED},
		{"c", "udp", "10.77.7.77", "80", syscall.EHOSTUNREACH}, // nobody's
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		m, err := l.Node(d.node).machine()
		if err != nil {
			t.Fatal(err)
		}
		if err := tryPort(ctx, m, d.network, d.host, d.port); !errors.Is(err, d.want) || (err == nil) != (d.want == nil) {
			t.Errorf("%s of %s:%s, from %s: %v, want %v", d.network, d.host, d.port, d.node, err, d.want)
		}
		cancel()
	}
}
