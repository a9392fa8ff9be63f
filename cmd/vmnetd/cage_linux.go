package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vmnetd/vmnetd/cage"
	"github.com/vmnetd/vmnetd/portforward"
)

// cageUser is whom root becomes. own says what takes the rights of the user that we are; kept are folders that are
// written later.
func (d *daemon) cageUser(own string, kept []string) (*cage.User, error) {
	c := &d.cage
	if !c.drops {
		return nil, nil
	}
	if os.Geteuid() != 0 {
		if c.user != "" && c.user != "root" && !itself(c.user) {
			return nil, usagef("--user %s: only root can become another user", c.user)
		}
		return nil, nil
	}
	if c.user == "" && own != "" {
		d.log.Info("the daemon stays root, without capabilities", "since", own+" connects to sockets of whoever starts the VMs", "other", "--user NAME")
		return nil, nil
	}
	u, err := findUser(c.user)
	if err != nil || u.UID == 0 {
		return nil, err
	}
	for _, n := range d.plans {
		if dir := n.cfg.StateDir; dir != "" {
			if err := handOverFolder(dir, u, "leases-", "added-", d.flowLogName(dir)); err != nil {
				return nil, hintError{fmt.Errorf("--state-dir %s: %w", dir, err),
					fmt.Sprintf("the daemon becomes user %s: chown %[1]s the folder, name a new one, or say --user root", u.Name)}
			}
		}
	}
	if err := d.handOverFlowLog(u); err != nil {
		return nil, err
	}
	return u, nil
}

func itself(name string) bool {
	u, err := user.Current()
	return err == nil && (name == u.Username || name == u.Uid)
}

// findUser looks a user up; "" is the one that it is for.
func findUser(name string) (*cage.User, error) {
	try := []string{name}
	if name == "" {
		try = []string{"vmnetd", "nobody"}
	}
	for _, name := range try {
		u, err := user.Lookup(name)
		if err != nil {
			u, err = user.LookupId(name)
		}
		if err == nil {
			uid, err := strconv.ParseUint(u.Uid, 10, 32)
			gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
			if err := errors.Join(err, err2); err != nil {
				return nil, fmt.Errorf("--user %s: %w", name, err)
			}
			return &cage.User{Name: u.Username, UID: int(uid), GID: int(gid)}, nil
		}
	}
	if name == "" {
		return &cage.User{Name: "nobody", UID: 65534, GID: 65534}, nil // the kernel's overflowuid: a container without /etc/passwd
	}
	return nil, usagef("--user %s: there is no such user", name)
}

// handOverFolder makes a folder of root's the user's, if there is nothing in it but what we put there, by what such names
// begin with.
func handOverFolder(dir string, u *cage.User, begins ...string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) == u.UID {
		return nil
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		name := e.Name()
		ours := slices.ContainsFunc(begins, func(s string) bool { return s != "" && strings.HasPrefix(name, s) })
		if st.Uid != 0 || !ours || !e.Type().IsRegular() {
			return fmt.Errorf("it belongs to user %d and %s is in it", st.Uid, filepath.Join(dir, name))
		}
	}
	if st.Uid != 0 {
		return fmt.Errorf("it belongs to user %d", st.Uid)
	}
	return os.Lchown(dir, u.UID, u.GID)
}

// sweeper starts what takes our sockets' files away at the end.
func (d *daemon) sweeper() (*sweeper, error) {
	s := sweepings{Dirs: d.dirs}
	for _, door := range d.doors {
		if kind, path, _ := strings.Cut(door.addr, ":"); door.in != nil && (kind == "unix" || kind == "fds") {
			s.look(path, true)
		}
	}
	if !d.handedControl {
		s.look(d.control, false)
	}
	s.own(d.service)
	for _, n := range d.nets {
		for _, f := range n.Forwards().List() {
			if f.Rule.Proto == portforward.Unix {
				s.look(f.Rule.Path, false)
			}
		}
	}
	if len(s.Files) == 0 && len(s.Dirs) == 0 {
		return nil, nil
	}
	return startSweeper(s)
}
