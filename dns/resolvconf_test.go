package dns

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

func TestParseResolvConf(t *testing.T) {
	self := addrs("10.0.2.3", "fd00::3")
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "[] [] names no resolver"},
		{"one", "nameserver 192.0.2.1\n", "[192.0.2.1:53] []"},
		{"no newline at the end", "nameserver 192.0.2.1", "[192.0.2.1:53] []"},
		{"both families, a stub, a scope", "nameserver 127.0.0.53\nnameserver 2001:db8::1\nnameserver fe80::1%eth0\n", "[127.0.0.53:53 [2001:db8::1]:53 [fe80::1%eth0]:53] []"},
		{"the fourth is nobody's", "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n", "[192.0.2.1:53 192.0.2.2:53 192.0.2.3:53] []"},
		{"twice is once", "nameserver 192.0.2.1\nnameserver 192.0.2.1\n", "[192.0.2.1:53] []"},
		{"mapped is IPv4", "nameserver ::ffff:192.0.2.1\n", "[192.0.2.1:53] []"},
		{"comments and blanks", "# a\n; b\n\n  nameserver\t192.0.2.1 # mine\n#nameserver 192.0.2.2\n", "[192.0.2.1:53] []"},
		{"CRLF", "nameserver 192.0.2.1\r\nsearch corp.example\r\n", "[192.0.2.1:53] [corp.example]"},
		{"nonsense between", "nameserver\nnameserver localhost\nnameserver 1.2.3\nfoo bar\nnameserver 192.0.2.1\n", "[192.0.2.1:53] []"},
		{"ourselves", "nameserver 10.0.2.3\nnameserver fd00::3\n", "[] [] names no resolver but this network's own DNS address"},
		{"ourselves and another", "nameserver ::ffff:10.0.2.3\nnameserver 192.0.2.1\n", "[192.0.2.1:53] []"},
		{"the last search counts", "domain a.example\nsearch b.example c.example\n", "[] [b.example c.example] names no resolver"},
		{"options", "nameserver 192.0.2.1\noptions ndots:5 timeout:2 attempts:9 rotate use-vc edns0\n", "[192.0.2.1:53] [] try=2s attempts=5 rotate tcp"},
		{"bad options", "nameserver 192.0.2.1\noptions timeout:x timeout:-1 timeout attempts:0 timeout:99\n", "[192.0.2.1:53] [] try=30s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := parseResolvConf(c.text, self)
			got := fmt.Sprintf("%v %v", r.servers, r.search)
			if r.try != 0 {
				got += fmt.Sprint(" try=", r.try)
			}
			if r.attempts != 0 {
				got += fmt.Sprint(" attempts=", r.attempts)
			}
			if r.rotate {
				got += " rotate"
			}
			if r.tcp {
				got += " tcp"
			}
			if got = strings.TrimSpace(got + " " + r.why); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// until waits for a state, not for a time.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func inForce(s *Server) string {
	st := s.Status()
	var out []string
	for _, ap := range st.Resolvers {
		out = append(out, ap.Addr().String())
	}
	return strings.Join(out, " ") + st.Problem
}

// etc is a file tree of our own.
type etc struct {
	t   *testing.T
	dir string
}

func (e etc) path(name string) string { return filepath.Join(e.dir, name) }
func (e etc) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}
func (e etc) write(name, server string) {
	e.t.Helper()
	e.must(os.WriteFile(e.path(name), []byte("nameserver "+server+"\n"), 0o644))
}

// How a host's resolv.conf changes, each step a way it is done in the world.
// The slow poll is out of play: it would take longer than the events.
func TestResolvConfChanges(t *testing.T) {
	e := etc{t, t.TempDir()}
	e.must(os.Mkdir(e.path("etc"), 0o755))
	e.must(os.MkdirAll(e.path("run/resolved"), 0o755))
	e.write("etc/resolv.conf", "192.0.2.1")
	s := start(t, Config{ResolvConf: e.path("etc/resolv.conf")})
	if got := inForce(s); got != "192.0.2.1" {
		t.Fatalf("at the start: %q", got)
	}
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"replaced by rename", func() {
			e.write("etc/resolv.conf.tmp", "192.0.2.2")
			e.must(os.Rename(e.path("etc/resolv.conf.tmp"), e.path("etc/resolv.conf")))
		}, "192.0.2.2"},
		{"and again, as the first watch of the inode is gone", func() {
			e.write("etc/resolv.conf.tmp", "192.0.2.3")
			e.must(os.Rename(e.path("etc/resolv.conf.tmp"), e.path("etc/resolv.conf")))
		}, "192.0.2.3"},
		{"truncated and written", func() { e.write("etc/resolv.conf", "192.0.2.4") }, "192.0.2.4"},
		{"removed", func() { e.must(os.Remove(e.path("etc/resolv.conf"))) }, "no such file"},
		{"back", func() { e.write("etc/resolv.conf", "192.0.2.5") }, "192.0.2.5"},
		{"emptied", func() { e.must(os.WriteFile(e.path("etc/resolv.conf"), nil, 0o644)) }, "names no resolver"},
		{"made a link", func() {
			e.write("run/resolved/stub.conf", "127.0.0.53")
			e.must(os.Symlink("../run/resolved/stub.conf", e.path("etc/new")))
			e.must(os.Rename(e.path("etc/new"), e.path("etc/resolv.conf")))
		}, "127.0.0.53"},
		{"what the link leads to is replaced", func() {
			e.write("run/resolved/.stub", "192.0.2.6")
			e.must(os.Rename(e.path("run/resolved/.stub"), e.path("run/resolved/stub.conf")))
		}, "192.0.2.6"},
		{"the link leads elsewhere", func() {
			e.write("run/other.conf", "fe80::1%eth0")
			e.must(os.Symlink(e.path("run/other.conf"), e.path("etc/new")))
			e.must(os.Rename(e.path("etc/new"), e.path("etc/resolv.conf")))
		}, "fe80::1%eth0"},
		{"and what it leads to is written", func() { e.write("run/other.conf", "192.0.2.7") }, "192.0.2.7"},
	} {
		step.do()
		until(t, step.name+" gives "+step.want, func() bool { return strings.Contains(inForce(s), step.want) })
	}
}

// Between truncate and write there is no resolver in the file: guests must
// not feel it.
func TestResolvConfHalfWritten(t *testing.T) {
	e := etc{t, t.TempDir()}
	e.write("resolv.conf", "192.0.2.1")
	var seen []string
	applied := make(chan *resolvers, 10)
	w := &watcher{path: e.path("resolv.conf"), poll: time.Millisecond, believe: time.Minute, apply: func(r *resolvers) { applied <- r }}
	stop, done := make(chan struct{}), make(chan struct{})
	first := readResolvConf(w.path, nil)
	go func() { defer close(done); w.run(stop, first) }()
	e.must(os.Truncate(e.path("resolv.conf"), 0))
	time.Sleep(50 * time.Millisecond) // polls see it empty; were there none, the test would say less, not fail
	e.write("resolv.conf", "192.0.2.2")
	r := <-applied
	seen = append(seen, fmt.Sprint(r.servers))
	if want := []string{"[192.0.2.2:53]"}; !slices.Equal(seen, want) {
		t.Errorf("applied %v; want %v", seen, want)
	}
	close(stop)
	<-done
}

// Where there are no events (a bind mount, a network file system) the poll
// sees the change.
func TestResolvConfPolled(t *testing.T) {
	e := etc{t, t.TempDir()}
	e.write("resolv.conf", "192.0.2.1")
	applied := make(chan *resolvers, 10)
	w := &watcher{path: e.path("resolv.conf"), poll: time.Millisecond, believe: time.Minute, apply: func(r *resolvers) { applied <- r }}
	stop, done := make(chan struct{}), make(chan struct{})
	first := readResolvConf(w.path, nil)
	go func() { defer close(done); w.run(stop, first) }()
	e.write("new", "192.0.2.2")
	e.must(os.Rename(e.path("new"), e.path("resolv.conf")))
	if r := <-applied; fmt.Sprint(r.servers) != "[192.0.2.2:53]" {
		t.Errorf("applied %v", r.servers)
	}
	close(stop)
	<-done
}

// Names beside the file say nothing about it.
func TestResolvConfNeighbours(t *testing.T) {
	e := etc{t, t.TempDir()}
	e.write("resolv.conf", "192.0.2.1")
	fs, err := fsnotify.NewWatcher()
	e.must(err)
	w := &watcher{path: e.path("resolv.conf"), fs: fs}
	if got := w.watch(); !slices.Equal(got, []string{e.path("resolv.conf")}) {
		t.Errorf("hops: %q", got)
	}
	e.must(os.Remove(e.path("resolv.conf")))
	e.must(os.Symlink("resolv.conf", e.path("resolv.conf"))) // a ring
	if got := len(w.watch()); got != maxLinks+1 {
		t.Errorf("a ring of links gave %d hops; want the bound of %d", got, maxLinks+1)
	}
	if got := w.fs.WatchList(); !slices.Equal(got, []string{e.dir}) {
		t.Errorf("watched: %q", got)
	}
	e.must(fs.Close())
}

// A change takes effect on the next question, without a restart.
func TestResolvConfInUse(t *testing.T) {
	e := etc{t, t.TempDir()}
	log := &lines{}
	s := start(t, Config{ResolvConf: e.path("resolv.conf"), Logger: slog.New(slog.NewTextHandler(log, nil))})
	for range 3 {
		if got := overUDP(t, s, question("example.com A")); got.Rcode != 2 {
			t.Errorf("without a resolver: %v", got)
		}
	}
	if n := log.count("has no resolver"); n != 1 {
		t.Errorf("said %d times in the log that there is no resolver; want once:\n%s", n, log)
	}
	e.write("resolv.conf", "192.0.2.9")
	until(t, "the new resolver is in force", func() bool { return inForce(s) == "192.0.2.9" })
	if n := log.count("192.0.2.9"); n != 1 {
		t.Errorf("the change is logged %d times", n)
	}
}

func FuzzResolvConf(f *testing.F) {
	self := addrs("10.0.2.3")
	f.Fuzz(func(t *testing.T, text string) {
		r := parseResolvConf(text, self)
		if len(r.servers) > maxServers || (len(r.servers) == 0) != (r.why != "") {
			t.Fatalf("%d servers, why %q", len(r.servers), r.why)
		}
		for i, a := range r.servers {
			if !a.IsValid() || a.Port() != 53 || a.Addr().WithZone("") == self[0] || slices.Contains(r.servers[:i], a) {
				t.Fatalf("server %v", a)
			}
		}
		if r.try < 0 || r.try > 30*time.Second || r.attempts < 0 || r.attempts > 5 {
			t.Fatalf("timeout %v, attempts %d", r.try, r.attempts)
		}
		// What was read, written again, is read the same.
		var b strings.Builder
		for _, a := range r.servers {
			fmt.Fprintf(&b, "nameserver %s\n", a.Addr())
		}
		if again := parseResolvConf(b.String(), self); !slices.Equal(again.servers, r.servers) {
			t.Fatalf("%v became %v", r.servers, again.servers)
		}
	})
}
