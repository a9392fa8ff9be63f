package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/cage"
	"github.com/vmnetd/vmnetd/portforward"
)

// The daemon's own cage: once all is open that takes rights, it gives them away. What it still needs then is decided
// here; package cage does it.

// sandboxMode is what --sandbox says.
type sandboxMode string

const (
	sandboxAuto sandboxMode = "auto"
	sandboxOn   sandboxMode = "on"
	sandboxOff  sandboxMode = "off"
)

func (m *sandboxMode) Type() string   { return "mode" }
func (m *sandboxMode) String() string { return string(*m) }
func (m *sandboxMode) Set(s string) error {
	switch v := sandboxMode(s); v {
	case sandboxAuto, sandboxOn, sandboxOff:
		*m = v
		return nil
	}
	return errors.New("want auto, on or off")
}

// cageFlags are the flags of whoever is a daemon.
type cageFlags struct {
	mode      sandboxMode
	folders   []string
	coreDumps bool
	user      string
}

func (f *cageFlags) add(fs *pflag.FlagSet) {
	f.mode = sandboxAuto
	fs.Var(&f.mode, "sandbox", "shut the daemon in once it has started: `auto` as far as the system can ('vmnetd doctor' tells), on or not at all, or off (Linux)")
	fs.StringArrayVar(&f.folders, "sandbox-folder", nil, "`FOLDER` in the sandbox, where unix sockets may be forwarded later; may be repeated")
	fs.BoolVar(&f.coreDumps, "core-dumps", false, "leave core dumps possible, which have guests' data in them, and debuggers (default: neither, unless --sandbox off)")
}

// addUser adds the flag of a daemon that can be another user's than whoever started it.
func (f *cageFlags) addUser(fs *pflag.FlagSet) {
	fs.StringVar(&f.user, "user", "", "`USER`, by name or number, that root's daemon becomes in the sandbox (default vmnetd if there is one, else nobody; root, for none)")
}

// confinement is a daemon's cage.
type confinement struct {
	cageFlags
	drops bool // root becomes another user
	late  bool // start does not close it: a command is to be started first

	in      bool       // closed, or found to be off
	swept   *sweeper   // of root
	plan    cage.Plan  // once it is closed
	library *librarian // reads the configuration, which the daemon cannot any more
	where   []string   // folders in which sockets may still be made; set before told
	told    atomic.Pointer[control.Sandbox]
}

// shutIn closes the cage, with a command of this number outside, or 0. Called again it does nothing.
func (d *daemon) shutIn(child int) error {
	c := &d.cage
	if c.in {
		return nil
	}
	c.in = true
	if c.mode == sandboxOff || c.mode == "" {
		c.told.Store(&control.Sandbox{Walls: "off"})
		return nil
	}
	plan, err := d.cagePlan(child)
	if err != nil {
		return err
	}
	if os.Geteuid() == 0 { // Windows has -1
		if c.swept, err = d.sweeper(); err != nil {
			return err
		}
	}
	if r := d.reload; r != nil && r.path != "-" {
		if c.library, err = startLibrarian(r.path, r.policy); err != nil {
			return err
		}
	}
	walls, err := plan.Close()
	if err != nil {
		return hintError{fmt.Errorf("--sandbox %s: %w", c.mode, err), "'vmnetd doctor' tells what this system lacks; --sandbox auto does without"}
	}
	if plan.Streams || walls.Landlock >= cage.ConnectABI {
		c.where = plan.Sockets
	}
	c.plan = plan
	c.told.Store(&control.Sandbox{Walls: walls.String(), Missing: walls.Missing})
	d.log.Debug("sandbox", "walls", walls.String(), "missing", strings.Join(walls.Missing, "; "))
	return nil
}

// sandbox is for status.
func (d *daemon) sandbox() control.Sandbox {
	if s := d.cage.told.Load(); s != nil {
		return *s
	}
	return control.Sandbox{Walls: "off"}
}

// cagePlan is what this daemon still needs.
func (d *daemon) cagePlan(child int) (cage.Plan, error) {
	c := &d.cage
	p := cage.Plan{
		// Of itself, the machine's memory and its control groups, the network's limits, and the time zone of log lines.
		Read: []string{"/proc/self", "/proc/sys", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage",
			"/etc/localtime", "/usr/share/zoneinfo"},
		Devices:   []string{os.DevNull},
		Child:     child,
		CoreDumps: c.coreDumps,
		Required:  c.mode == sandboxOn,
		// Forwards of ports below 1024 that are added later.
		Capabilities: []string{"cap_net_bind_service"},
	}
	if child > 0 {
		p.Capabilities = append(p.Capabilities, "cap_kill") // a command of root's may have become another user
		p.Devices = append(p.Devices, "/dev/tty")           // whether what is typed reaches the command
	}
	names := false // of hosts, as package net looks them up
	own := ""      // what needs to be done as the user that we are
	for _, door := range d.doors {
		kind, rest, _ := strings.Cut(door.addr, ":")
		if kind == "dial" {
			kind, rest, _ = strings.Cut(rest, ":")
			kind = "dial:" + kind
		}
		grams := door.framing == &vfkitFraming || door.framing == &dgramFraming
		switch kind {
		case "unix", "fds":
			p.Sockets = append(p.Sockets, filepath.Dir(rest))
		case "dial:unix":
			p.Streams, own = true, "--"+door.framing.name+" "+door.addr
			if strings.HasPrefix(rest, "@") {
				p.Abstract = true
			} else {
				p.Connect = append(p.Connect, filepath.Dir(rest)) // the socket itself comes and goes
			}
		case "dial:tcp":
			names = true
		case "dial:vsock":
			p.Vsock = true
		}
		// A guest of a datagram socket is answered at a socket of its own, wherever that is.
		if grams && door.in != nil && (kind == "unix" || kind == "fd") {
			p.Datagrams, own = true, "--"+door.framing.name+" "+door.addr
			p.Connect = append(p.Connect, "/")
		}
		if door.framing == &netnsFraming {
			p.Watch = true
			p.Capabilities = append(p.Capabilities, "cap_net_admin") // leases are renewed, over netlink sockets that are open
		}
	}
	if dir := d.flowLogFolder(); dir != "" {
		p.Keep = append(p.Keep, dir)
	}
	if pid := d.service.pidFolder(); pid != "" { // it goes at the end
		p.Sockets = append(p.Sockets, pid)
	}
	if d.control != "" && !d.handedControl {
		p.Sockets = append(p.Sockets, filepath.Dir(d.control))
	}
	for _, dir := range d.dirs { // they go at the end
		p.Empty = append(p.Empty, filepath.Dir(dir))
		p.Keep = append(p.Keep, dir)
	}
	for _, dir := range c.folders {
		fi, err := os.Stat(dir)
		if err == nil && !fi.IsDir() {
			err = errors.New("not a folder")
		}
		if err != nil {
			return p, usagef("--sandbox-folder %s: %w", dir, err)
		}
		dir, err = filepath.Abs(dir)
		if err != nil {
			return p, err
		}
		p.Streams = true
		p.Sockets = append(p.Sockets, dir)
		p.Connect = append(p.Connect, dir) // to see whether a socket is stale
	}
	for i, n := range d.nets {
		for _, f := range n.Forwards().List() {
			if f.Rule.Proto == portforward.Unix {
				p.Sockets = append(p.Sockets, filepath.Dir(f.Rule.Path))
			}
		}
		cfg := d.plans[i].cfg
		if cfg.StateDir != "" {
			p.Keep = append(p.Keep, cfg.StateDir)
		}
		if len(cfg.Resolvers) == 0 {
			names = true
		}
	}
	if names {
		// The folder, since the file is replaced by another one; and those of what it is a link to.
		p.Read = append(p.Read, "/etc")
		p.Read = append(p.Read, linkFolders("/etc/resolv.conf")...)
	}
	p.Connect = append(p.Connect, p.Sockets...)
	for _, list := range []*[]string{&p.Read, &p.Keep, &p.Sockets, &p.Empty, &p.Connect, &p.Capabilities} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	var err error
	p.User, err = d.cageUser(own, p.Keep)
	return p, err
}

// linkFolders are the folders that a file's symbolic links lead to.
func linkFolders(path string) (out []string) {
	for range 8 { // resolv.conf has two at most, where systemd is
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
		out = append(out, filepath.Dir(path))
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		out = append(out, filepath.Dir(real))
	}
	return out
}

// allowForward says whether a forward can be added now.
func (d *daemon) allowForward(r portforward.Rule) error {
	if r.Proto != portforward.Unix || !d.caged() {
		return nil
	}
	return d.allowSocket(filepath.Dir(r.Path), "this forward")
}

// allowSocket says whether a socket can be made in a folder now.
func (d *daemon) allowSocket(dir, what string) error {
	for _, w := range d.cage.where {
		if rel, err := filepath.Rel(w, dir); err == nil && (rel == "." || filepath.IsLocal(rel)) {
			return nil
		}
	}
	return fmt.Errorf("the sandbox keeps the daemon from making a socket in %s: start it with %[2]s, with --sandbox-folder %[1]s, or with --sandbox off", dir, what)
}
