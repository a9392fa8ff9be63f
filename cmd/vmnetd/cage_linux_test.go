package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/cage"
	"github.com/vmnetd/vmnetd/portforward"
)

// A resolv.conf that is a link is read where it leads to, by whatever way.
func TestLinkFolders(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{os.MkdirAll(at("run/real"), 0o755), os.Mkdir(at("etc"), 0o755), os.Symlink(at("run/real"), at("run/systemd")),
		os.WriteFile(at("run/real/stub.conf"), nil, 0o644), os.Symlink("stub.conf", at("run/real/resolv.conf")),
		os.Symlink("../run/systemd/resolv.conf", at("etc/resolv.conf")), os.WriteFile(at("etc/plain"), nil, 0o644), os.Symlink("loop", at("etc/loop"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := linkFolders(at("etc/resolv.conf")); !slices.Contains(got, at("run/systemd")) || !slices.Contains(got, at("run/real")) {
		t.Errorf("%q", got)
	}
	if got := linkFolders(at("etc/plain")); !slices.Equal(got, []string{at("etc")}) {
		t.Errorf("%q", got)
	}
	linkFolders(at("etc/loop")) // ends
	linkFolders(at("etc/none"))
}

// What a daemon's doors and flags need, and no more.
func TestCagePlan(t *testing.T) {
	listening := &dialler{}
	for _, tt := range []struct {
		name  string
		doors []*door
		check func(cage.Plan) bool
	}{
		{"QEMU", []*door{{framing: &qemuFraming, addr: "unix:/run/a/q.sock", in: listening}}, func(p cage.Plan) bool {
			return !p.Streams && !p.Datagrams && !p.Watch && slices.Contains(p.Sockets, "/run/a") && !slices.Contains(p.Connect, "/")
		}},
		{"VFKit", []*door{{framing: &vfkitFraming, addr: "unix:/run/a/v.sock", in: listening}}, func(p cage.Plan) bool {
			return !p.Streams && p.Datagrams && slices.Contains(p.Connect, "/")
		}},
		{"Dial", []*door{{framing: &qemuFraming, addr: "dial:unix:/run/b/vmm.sock", in: listening}}, func(p cage.Plan) bool {
			return p.Streams && !p.Datagrams && !p.Abstract && slices.Contains(p.Connect, "/run/b")
		}},
		{"DialAbstract", []*door{{framing: &qemuFraming, addr: "dial:unix:@vmm", in: listening}}, func(p cage.Plan) bool { return p.Streams && p.Abstract }},
		{"DialVsock", []*door{{framing: &qemuFraming, addr: "dial:vsock:3:1024", in: listening}}, func(p cage.Plan) bool { return p.Vsock && !p.Streams }},
		{"Namespace", []*door{{framing: &netnsFraming, addr: "pid:7"}}, func(p cage.Plan) bool {
			return p.Watch && slices.Contains(p.Capabilities, "cap_net_admin")
		}},
		{"TCP", []*door{{framing: &qemuFraming, addr: "tcp:127.0.0.1:7001", in: listening}}, func(p cage.Plan) bool {
			return slices.Equal(p.Sockets, []string{"/run/c"}) && !p.Streams && slices.Equal(p.Capabilities, []string{"cap_net_bind_service"})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &daemon{doors: tt.doors, control: "/run/c/control.sock", log: slog.New(slog.DiscardHandler)}
			p, err := d.cagePlan(0)
			if err != nil || !tt.check(p) {
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
	d := &daemon{control: "/run/c/control.sock", cage: confinement{cageFlags: cageFlags{folders: []string{filepath.Join(t.TempDir(), "none")}}}}
	var usage usageError
	if _, err := d.cagePlan(0); !errors.As(err, &usage) {
		t.Errorf("a folder that is not there: %v", err)
	}
}

// Sockets of forwards are made where the cage is open, and refused by name elsewhere.
func TestAllowForward(t *testing.T) {
	d := &daemon{}
	rule := func(path string) portforward.Rule { return portforward.Rule{Proto: portforward.Unix, Path: path} }
	if err := d.allowForward(rule("/x/a.sock")); err != nil {
		t.Errorf("before it is closed: %v", err)
	}
	d.cage.where = []string{"/run/web"}
	d.cage.told.Store(&control.Sandbox{Walls: "seccomp"})
	for path, ok := range map[string]bool{"/run/web/a.sock": true, "/run/web/b/a.sock": true, "/run/a.sock": false, "/run/web/../a.sock": false, "/run/website/a.sock": false} {
		err := d.allowForward(rule(path))
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "--sandbox-folder") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := d.allowForward(portforward.Rule{Proto: portforward.TCP, HostPort: 80}); err != nil {
		t.Error(err)
	}
	d.cage.told.Store(&control.Sandbox{Walls: "off"})
	if err := d.allowForward(rule("/x/a.sock")); err != nil {
		t.Errorf("without a cage: %v", err)
	}
}

// A state folder of root's is given away only with what we put there in it.
func TestHandOverFolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	u := &cage.User{Name: "nobody", UID: 65534, GID: 65534}
	owner := func(dir string) int {
		fi, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		return int(fi.Sys().(*syscall.Stat_t).Uid)
	}
	for _, tt := range []struct {
		name  string
		files []string
		links []string
		uid   int // the folder's before
		after int
	}{
		{"Empty", nil, nil, 0, 65534},
		{"Ours", []string{"leases-default.json", "added-lab.json.new"}, nil, 0, 65534},
		{"Others", []string{"leases-default.json", "passwd"}, nil, 0, 0},
		{"Link", nil, []string{"leases-default.json"}, 0, 0},
		{"AnotherUsers", nil, nil, 1, 1},
		{"Already", []string{"passwd"}, nil, 65534, 65534},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range tt.files {
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range tt.links {
				if err := os.Symlink("/etc/passwd", filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chown(dir, tt.uid, tt.uid); err != nil {
				t.Fatal(err)
			}
			err := handOverFolder(dir, u, "leases-", "added-", "")
			if got := owner(dir); got != tt.after || (err == nil) != (tt.after == 65534) {
				t.Errorf("%v, and the folder is user %d's, want %d's", err, got, tt.after)
			}
		})
	}
}
