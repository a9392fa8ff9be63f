package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/backend/guest"
	"github.com/vmnetd/vmnetd/qemu"
)

// reloaded is a daemon with a configuration file.
type reloaded struct {
	*proc
	t    *testing.T
	file string
	sock string
	c    *control.Client
}

// newReloaded starts one whose file has this text, with SOCK for a door's path. An ordinary user's is in its sandbox.
func newReloaded(t *testing.T, text string, args ...string) *reloaded {
	t.Helper()
	p := program(t, "vmnetd").ordinary()
	dir := shortDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r := &reloaded{proc: p, t: t, file: filepath.Join(dir, "vmnetd.yaml"), sock: filepath.Join(p.run, "q.sock")}
	r.write(text)
	p.Args = append([]string{"vmnetd", "serve", "--config", r.file, "--control", filepath.Join(p.run, "c.sock")}, args...)
	p.start().says("control ")
	r.c = control.NewClient(filepath.Join(p.run, "c.sock"))
	t.Cleanup(r.c.Close)
	return r
}

// write puts another file in its place, as editors do.
func (r *reloaded) write(text string) {
	r.t.Helper()
	next := r.file + ".new"
	if err := os.WriteFile(next, []byte(strings.ReplaceAll(text, "SOCK", r.sock)), 0o644); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(next, r.file); err != nil {
		r.t.Fatal(err)
	}
}

// reload is what came of it, a line each.
func (r *reloaded) reload() (changed, restart []string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	got, err := r.c.Reload(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, c := range got.Changed {
		changed = append(changed, c.String())
	}
	for _, c := range got.Restart {
		restart = append(restart, c.String())
	}
	slices.Sort(changed)
	slices.Sort(restart)
	return changed, restart
}

// plug is a guest at a door.
func (r *reloaded) plug(network, addr, name string) *guest.Guest {
	r.t.Helper()
	wire, err := net.Dial(network, addr)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	g, err := guest.New(ctx, qemu.NewLink(wire), guest.Config{Name: name})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { g.Close() })
	return g
}

func (r *reloaded) forwardTo(port uint16) netip.AddrPort {
	r.t.Helper()
	list, err := r.c.Forwards(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range list {
		if f.Rule.GuestPort == port {
			return netip.AddrPortFrom(f.Rule.Host, f.Rule.HostPort)
		}
	}
	r.t.Fatalf("no forward to port %d: %+v", port, list)
	return netip.AddrPort{}
}

func (r *reloaded) texts() (list []string) {
	r.t.Helper()
	all, err := r.c.Forwards(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range all {
		list = append(list, f.Text)
	}
	return list
}

func (r *reloaded) names() (list []string) {
	r.t.Helper()
	all, err := r.c.DNS(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, x := range all {
		if x.Source == "admin" {
			list = append(list, x.Name+" "+x.Type+" "+x.Value)
		}
	}
	return list
}

// echoes is a server of a test: what comes goes back.
func echoes(t *testing.T, l net.Listener) {
	var conns sync.WaitGroup
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { defer c.Close(); io.Copy(c, c) })
		}
	}()
	t.Cleanup(func() { l.Close(); <-done; conns.Wait() })
}

// freePort is one that nobody has now, below those that the system picks.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(10000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// While a guest moves bytes outward and by a forward, the file changes again and again, forwards, records, limits, doors and
// the policy, by the command's way and by signal, and not a byte is lost. A conversation of a forward that goes is one of them.
func TestReloadUnderTransfer(t *testing.T) {
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echoes(t, host)
	door := freePort(t)
	config := func(i int) string {
		s := fmt.Sprintf("networks:\n  - dns-record: [gen%d A 10.0.2.7, same A 10.0.2.8]\n    forward: [\"0:80\"", i)
		if i%2 == 0 {
			return s + ", \"0:81\"]\ndoors: {qemu: [\"unix:SOCK\"]}\n"
		}
		return s + fmt.Sprintf(", \"0:82\"]\n    policy: {preset: offline}\n    limits: {flows: %d, udp: 500}\ndoors: {qemu: [\"unix:SOCK\", \"tcp:%d\"]}\n", 100+i, door)
	}
	r := newReloaded(t, config(0))
	g := r.plug("unix", r.sock, "busy")
	for _, port := range []string{":80", ":81"} {
		l, err := g.Listen("tcp", port)
		if err != nil {
			t.Fatal(err)
		}
		echoes(t, l)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	out, err := g.DialContext(ctx, "tcp", fmt.Sprintf("10.0.2.2:%d", host.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	conns := []net.Conn{out}
	for _, port := range []uint16{80, 81} {
		c, err := net.Dial("tcp", r.forwardTo(port).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	const rounds, size = 8, 512 << 10 // there and back, three times: 24 MB, which the race detector makes seconds of
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(data)
	sent, got := sha256.New(), make([]interface{ Sum([]byte) []byte }, 3)
	hashes := []io.Writer{sha256.New(), sha256.New(), sha256.New()}
	for i := range got {
		got[i] = hashes[i].(interface{ Sum([]byte) []byte })
	}
	for i := 1; i <= rounds; i++ {
		data[0] = byte(i)
		sent.Write(data)
		var moving sync.WaitGroup
		for j, c := range conns {
			c.SetDeadline(time.Now().Add(100 * time.Second))
			moving.Go(func() {
				if _, err := c.Write(data); err != nil {
					t.Errorf("conversation %d, round %d: %v", j, i, err)
				}
			})
			moving.Go(func() {
				if n, err := io.CopyN(hashes[j], c, size); err != nil {
					t.Errorf("conversation %d, round %d: %d bytes, %v", j, i, n, err)
				}
			})
		}
		r.write(config(i))
		if i%4 < 2 {
			r.reload()
		} else {
			r.Process.Signal(syscall.SIGHUP)
		}
		waitUntil(t.Fatalf, "the records of a file", func() bool {
			return slices.Equal(r.names(), []string{fmt.Sprintf("gen%d.internal. A 10.0.2.7", i), "same.internal. A 10.0.2.8"})
		})
		moving.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	for i, h := range got {
		if !bytes.Equal(h.Sum(nil), sent.Sum(nil)) {
			t.Errorf("conversation %d: what came back is not what was sent", i)
		}
	}
	// The guest of a door that is closed stays, and the one of a new one is as good.
	r.write(config(rounds + 1))
	r.reload()
	other := r.plug("tcp", fmt.Sprintf("127.0.0.1:%d", door), "other")
	r.write(config(rounds + 2))
	changed, _ := r.reload()
	if !slices.Contains(changed, fmt.Sprintf("doors.qemu: - tcp:%d", door)) {
		t.Errorf("changed: %q", changed)
	}
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", door)); err == nil {
		c.Close()
		t.Error("the door that is gone is open")
	}
	c, err := other.DialContext(ctx, "tcp", fmt.Sprintf("10.0.2.2:%d", host.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatalf("the guest of the door that is gone: %v", err)
	}
	c.Close()
}

// Each kind of change: what is in force, what needs a restart, and what people changed meanwhile.
func TestReloadChanges(t *testing.T) {
	ports := []int{freePort(t), freePort(t), freePort(t)}
	const base = `
networks:
  - forward: ["0:80", "0:81"]
    dns-record: [db A 10.0.2.77, www CNAME db]
    static: {"52:54:00:12:34:56": [10.0.2.50]}
    limits: {flows: 100}
doors: {qemu: ["unix:SOCK"]}
sandbox: {folders: []}
`
	r := newReloaded(t, base)
	ctx := context.Background()
	if changed, restart := r.reload(); len(changed)+len(restart) != 0 {
		t.Errorf("the same file: changed %q, restart %q", changed, restart)
	}
	mine, err := r.c.AddForward(ctx, "0:90")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.c.AddDNS(ctx, control.DNSRequest{Name: "mine", Type: "TXT", Value: `"a b"`}); err != nil {
		t.Fatal(err)
	}
	if err := r.c.ChangeLimits(ctx, control.LimitChange{Limits: map[string]any{"udp": 60}}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.SetPolicy(ctx, "preset offline\n", "", false); err != nil {
		t.Fatal(err)
	}
	before := r.forwardTo(80)
	r.write(fmt.Sprintf(`
networks:
  - net: 10.7.0.0/24
    forward: ["0:80", "127.0.0.1:%d:82"]
    dns-record: [db A 10.7.0.78, "_x._tcp SRV 0 5 80 db"]
    static: {"52:54:00:12:34:56": [10.7.0.50]}
    limits: {flows: 200}
    isolate: true
  - name: lab
    forward: ["127.0.0.1:%d:22"]
    policy: {preset: sandbox}
doors: {qemu: ["unix:SOCK", "unix:SOCK2", "tcp:%d,network=lab", "netns:x"]}
log: {level: debug}
`, ports[0], ports[1], ports[2]))
	ctx2, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	_, err = r.c.Reload(ctx2)
	var p *control.Problem
	if !errors.As(err, &p) || !strings.Contains(p.Detail, "netns:x") {
		t.Fatalf("a door that is none: %v", err)
	}
	text, err := os.ReadFile(r.file)
	if err != nil {
		t.Fatal(err)
	}
	r.write(strings.Replace(strings.Replace(string(text), `, "netns:x"`, "", 1), "10.7.0.50", "10.0.2.51", 1))
	_, err = r.c.Reload(ctx2) // 10.0.2.51 is not in the file's own 10.7.0.0/24
	if !errors.As(err, &p) || !strings.Contains(p.Detail, "10.0.2.51 is not in 10.7.0.0/24") {
		t.Fatalf("a static lease of elsewhere: %v", err)
	}
	r.write(strings.Replace(strings.Replace(string(text), `, "netns:x"`, "", 1), "    static: {\"52:54:00:12:34:56\": [10.7.0.50]}\n", "", 1))
	changed, restart := r.reload()
	for _, want := range []string{
		fmt.Sprintf("networks[0].forward: + 127.0.0.1:%d:82/tcp", ports[0]),
		"networks[0].forward: - 127.0.0.1:0:81/tcp (its TCP conversations go on)",
		"networks[0].dns-record: + db A 10.7.0.78",
		"networks[0].dns-record: + _x._tcp SRV 0 5 80 db",
		"networks[0].dns-record: - db A 10.0.2.77",
		"networks[0].dns-record: - www CNAME db",
		"networks[0].static.52:54:00:12:34:56: - 10.0.2.50",
		"networks[0].limits.flows: 100 → 200",
		"networks[1]: + lab",
		fmt.Sprintf("doors.qemu: + tcp:%d,network=lab", ports[2]),
	} {
		if i := slices.Index(changed, want); i < 0 {
			t.Errorf("%q is not in what changed", want)
		} else {
			changed = slices.Delete(changed, i, i+1)
		}
	}
	if len(changed) > 0 {
		t.Errorf("changed, too: %q", changed)
	}
	for _, want := range []string{"networks[0].net: 10.0.2.0/24 → 10.7.0.0/24", "networks[0].isolate: false → true", "log.level: info → debug"} {
		if !slices.Contains(restart, want) {
			t.Errorf("%q is not in what needs a restart: %q", want, restart)
		}
	}
	// A socket that the sandbox keeps it from making is said to be so, where there is one.
	st, err := r.c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if st.Sandbox.Walls != "off" && st.Sandbox.Walls != "none" && !slices.ContainsFunc(restart, func(s string) bool { return strings.Contains(s, r.sock+"2 (the sandbox keeps") }) {
		t.Errorf("needs a restart: %q", restart)
	}
	if len(st.Networks) != 2 || !slices.Contains(st.Listen, fmt.Sprintf("qemu tcp:127.0.0.1:%d for network lab", ports[2])) {
		t.Errorf("networks %d, doors %q", len(st.Networks), st.Listen)
	}
	g := r.plug("tcp", fmt.Sprintf("127.0.0.1:%d", ports[2]), "inlab")
	lab := *r.c
	lab.Network = "lab"
	guests, err := lab.Guests(ctx)
	if err != nil || len(guests) != 1 || guests[0].Name != "inlab" {
		t.Errorf("guests of the new network: %+v, %v", guests, err)
	}
	l, err := g.Listen("tcp", ":22")
	if err != nil {
		t.Fatal(err)
	}
	echoes(t, l)
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[1]))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	io.WriteString(c, "lab")
	if b := make([]byte, 3); true {
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "lab" {
			t.Errorf("by the new network's forward: %q, %v", b, err)
		}
	}
	first := *r.c
	first.Network = "default"
	r.c = &first
	if got := r.forwardTo(80); got != before {
		t.Errorf("a forward that stays has port %s, had %s", got, before)
	}
	if !slices.Contains(r.texts(), mine[0].Text) {
		t.Errorf("forwards %q: without %s, which was added", r.texts(), mine[0].Text)
	}
	if want := []string{"_x._tcp.internal. SRV 0 5 80 db.internal.", "db.internal. A 10.7.0.78", `mine.internal. TXT "a b"`}; !slices.Equal(r.names(), want) {
		t.Errorf("records %q, want %q", r.names(), want)
	}
	limits, err := r.c.Limits(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range limits {
		if want := map[string]string{"flows": "200", "udp": "60"}[l.Name]; want != "" && l.Guest == "" && l.Text != want {
			t.Errorf("limit %s is %s, want %s", l.Name, l.Text, want)
		}
	}
	if pol, err := r.c.Policy(ctx, ""); err != nil || pol.Text != "preset offline\n" {
		t.Errorf("the policy that was set: %q, %v", pol.Text, err)
	}
	if pol, err := lab.Policy(ctx, ""); err != nil || pol.Text != "preset sandbox\n" {
		t.Errorf("the new network's policy: %q, %v", pol.Text, err)
	}
	events, err := r.c.Events(ctx, 0)
	if err != nil || !slices.ContainsFunc(events, func(e backend.Event) bool { return e.Kind == "reload" && strings.Contains(e.Text, "need a restart") }) {
		t.Errorf("events: %+v, %v", events, err)
	}
	// What needs a restart is said again, and nothing else.
	changed, again := r.reload()
	if len(changed) != 0 || !slices.Equal(again, restart) {
		t.Errorf("again: changed %q, restart %q", changed, again)
	}
}

// Whatever is wrong, with the file or with what it wants, changes nothing, and is told with its place.
func TestReloadRefused(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	const base = "networks:\n  - forward: [\"0:80\"]\n    dns-record: [db A 10.0.2.77]\ndoors: {qemu: [\"unix:SOCK\"]}\n"
	r := newReloaded(t, base)
	state := func() string {
		st, err := r.c.Status(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		pol, err := r.c.Policy(context.Background(), "")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(r.texts(), r.names(), st.Listen, len(st.Networks), pol.Text)
	}
	before := state()
	replace := func(make func() error) func() {
		return func() {
			if err := errors.Join(os.RemoveAll(r.file), make()); err != nil {
				t.Fatal(err)
			}
		}
	}
	text := func(s string) func() { return replace(func() error { r.write(s); return nil }) }
	const change = "networks:\n  - forward: [\"0:82\"]\n    dns-record: [db A 10.0.2.78, new A 10.0.2.79]\n    policy: {preset: sandbox}\n"
	for _, tt := range []struct {
		name string
		put  func()
		want string
	}{
		{"Key", text(change + "    forwrd: []\n"), r.file + `:5:5: no key "forwrd" in a network: did you mean forward?`},
		{"Value", text(change + "    mtu: 3\n"), r.file + `:5:10: "3": want auto`},
		{"Policy", text(strings.Replace(change, "{preset: sandbox}", "{rules: \"allow tpc x\"}", 1)), r.file + ":4:21: \"allow tpc x\": policy"},
		{"PolicyFile", text(strings.Replace(change, "{preset: sandbox}", "{file: /nowhere/at/all}", 1)), r.file + ":4:20: \"/nowhere/at/all\""},
		{"Record", text(strings.Replace(change, "new A", "new AA", 1)), r.file + ":3:34: dns: record"},
		{"RecordTwice", text(strings.Replace(change, "new A 10.0.2.79", "db CNAME new", 1)), "an alias (CNAME) stands alone"},
		{"Port", text(strings.Replace(change, "\"0:82\"", fmt.Sprintf("\"0:82\", \"%d:83\"", port), 1)), r.file + ":2:23: port forward"},
		{"PortOfAnother", text(change + fmt.Sprintf("  - name: lab\n    forward: [\"%d:83\"]\n", port)), r.file + ":6:15: port forward"},
		{"Door", text(change + fmt.Sprintf("doors: {qemu: [\"unix:SOCK\", \"tcp:%d\"]}\n", port)), fmt.Sprintf("%s:5:%d: --qemu tcp:%d", r.file, 19+len("unix:"+r.sock)+3-2, port)},
		{"Vanished", replace(func() error { return nil }), r.file + ": no such file"},
		{"FIFO", replace(func() error { return syscall.Mkfifo(r.file, 0o644) }), r.file + ": not a regular file"},
		{"Folder", replace(func() error { return os.Mkdir(r.file, 0o755) }), r.file + ": not a regular file"},
		{"Device", replace(func() error { return os.Symlink("/dev/zero", r.file) }), r.file + ": not a regular file"},
		{"Huge", replace(func() error {
			f, err := os.Create(r.file)
			if err == nil {
				err = errors.Join(f.Truncate(1<<40), f.Close())
			}
			return err
		}), r.file + ": more than 262144 bytes"},
		{"Unreadable", func() {
			if os.Getuid() != 0 {
				os.Remove(r.file)
			}
			r.write(change)
			os.Chmod(r.file, 0)
		}, r.file + ": permission denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.put()
			ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
			defer cancel()
			_, err := r.c.Reload(ctx)
			var p *control.Problem
			if !errors.As(err, &p) || p.Status != http.StatusUnprocessableEntity || !strings.Contains(p.Detail, tt.want) {
				t.Errorf("%v\nwant %s", err, tt.want)
			}
			if got := state(); got != before {
				t.Errorf("now %s\nwas %s", got, before)
			}
		})
	}
	// And it goes on.
	os.RemoveAll(r.file)
	r.write(change + "doors: {qemu: [\"unix:SOCK\"]}\n")
	var all sync.WaitGroup
	for range 100 { // at once
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Second)
			defer cancel()
			c := control.NewClient(filepath.Join(r.run, "c.sock"))
			defer c.Close()
			if _, err := c.Reload(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if want := []string{"db.internal. A 10.0.2.78", "new.internal. A 10.0.2.79"}; !slices.Equal(r.names(), want) {
		t.Errorf("records %q, want %q", r.names(), want)
	}
	r.Process.Signal(syscall.SIGTERM)
	r.ends(0)
}

// Without a file, or one of standard input, there is nothing to read again; a hangup ends the one, as ever.
func TestReloadWithoutFile(t *testing.T) {
	p := program(t, "vmnetd", "serve").start()
	p.says("control ")
	c := control.NewClient(filepath.Join(p.run, "vmnetd/control.sock"))
	defer c.Close()
	var prob *control.Problem
	if _, err := c.Reload(context.Background()); !errors.As(err, &prob) || prob.Status != http.StatusConflict || !strings.Contains(prob.Hint, "--config") {
		t.Errorf("without a file: %v", err)
	}
	p.Process.Signal(syscall.SIGHUP)
	p.ends(0)

	p = program(t, "vmnetd", "serve", "--config", "-")
	p.Stdin = strings.NewReader("networks: [{net: 10.9.0.0/24}]\n")
	p.start().says("control ")
	c2 := control.NewClient(filepath.Join(p.run, "vmnetd/control.sock"))
	defer c2.Close()
	if _, err := c2.Reload(context.Background()); err == nil || !strings.Contains(err.Error(), "standard input") {
		t.Errorf("of standard input: %v", err)
	}
	p.Process.Signal(syscall.SIGTERM)
	p.ends(0)
}
