//go:build unix

package lab

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/lab/topology"
	"github.com/vmnetd/vmnetd/qemu"
)

// Somebody plugs in, goes, and comes again; a second one takes his place.
func TestExternal(t *testing.T) {
	dir := t.TempDir()
	got := make(chan string, 10)
	b := &bench{
		lab: &topology.Lab{}, dir: dir, base: dir,
		node: &topology.Node{Name: "x", Interfaces: []topology.Interface{{Name: "eth0"}, {Name: "eth1", Door: "unix:by-hand"}}},
		log:  benchLog(t),
	}
	b.plug = func(i int, l link.Link) {
		go func() {
			defer l.Close()
			var batch link.Batch
			for ; l.ReadFrames(&batch) == nil; batch.Next() {
				for _, f := range batch.Frames {
					got <- b.node.Interfaces[i].Name + " " + string(batch.AppendTo(nil, f)[:4])
				}
			}
			got <- b.node.Interfaces[i].Name + " gone"
		}()
	}
	m, err := newExternal(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	doors := m.(interface{ door(int) string })
	for i, want := range []string{filepath.Join(dir, "eth0.sock"), filepath.Join(dir, "by-hand")} {
		if got := doors.door(i); got != "unix:"+want {
			t.Errorf("door %d is %s, want %s", i, got, want)
		}
		if fi, err := os.Stat(want); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v; want 0600", fi, err)
		}
	}
	expect := func(want string) {
		t.Helper()
		select {
		case s := <-got:
			if s != want {
				t.Errorf("got %q, want %q", s, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("no %q", want)
		}
	}
	plug := func(i int, says string) link.Link {
		t.Helper()
		c, err := net.Dial("unix", strings.TrimPrefix(doors.door(i), "unix:"))
		if err != nil {
			t.Fatal(err)
		}
		l := qemu.NewLink(c)
		if _, err := l.WriteFrames([]link.Frame{link.NewFrame([]byte(says + strings.Repeat("-", 60)))}); err != nil {
			t.Fatal(err)
		}
		return l
	}
	first := plug(0, "one.")
	expect("eth0 one.")
	first.Close()
	expect("eth0 gone")
	second := plug(0, "two.")
	expect("eth0 two.")
	other := plug(1, "oth.")
	expect("eth1 oth.")
	third := plug(0, "thr.")
	// In either order: one is another's goroutine.
	seen := map[string]bool{<-got: true, <-got: true}
	if !seen["eth0 gone"] || !seen["eth0 thr."] {
		t.Errorf("got %v", seen)
	}
	if m2, _ := newExternal(b); m2.start(t.Context()) == nil {
		t.Error("two listen at one path")
	} else {
		m2.stop(t.Context())
	}
	if err := m.stop(t.Context()); err != nil {
		t.Error(err)
	}
	seen = map[string]bool{<-got: true, <-got: true}
	if !seen["eth0 gone"] || !seen["eth1 gone"] {
		t.Errorf("at the end: %v", seen)
	}
	for _, l := range []link.Link{second, third, other} {
		l.Close()
	}
	left, _ := os.ReadDir(dir)
	if len(left) > 0 {
		t.Errorf("%v is left behind", left)
	}
	// A socket that a killed lab left is in nobody's way.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, "eth0.sock")})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	m3, _ := newExternal(b)
	if err := m3.start(t.Context()); err != nil {
		t.Error(err)
	}
	m3.stop(t.Context())
}
