package cage

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Close builds the walls for all threads, those to come too. It is called once. After an error the program is shut in half
// way, and should end.
func (p Plan) Close() (Walls, error) {
	w := Walls{Capabilities: []string{}, CoreDumps: p.CoreDumps}
	for _, wall := range []struct {
		name  string
		build func(*Walls) error
	}{
		{"core dumps", p.noDumps},
		{"Landlock", p.landlock}, // while its paths can still be opened
		{"bounding set", dropBounds},
		{"user", p.become},
		{"capabilities", p.drop},
		{"no new privileges", p.noNewPrivileges},
		{"memory", p.hide}, // the kernel opens it again when the user changes
		{"seccomp", p.seccomp},
	} {
		if err := wall.build(&w); err != nil {
			if err := w.missing(p.Required, wall.name, err); err != nil {
				return w, err
			}
		}
	}
	return w, nil
}

// Look says what this system has.
func Look() (s Support) {
	abi, err := ll.LandlockGetABIVersion()
	switch {
	case err == nil:
		s.Landlock = abi
	case errors.Is(err, unix.ENOSYS):
		s.LandlockWhy = "the kernel has none (CONFIG_SECURITY_LANDLOCK, Linux 5.13)"
	case errors.Is(err, unix.EOPNOTSUPP):
		s.LandlockWhy = "it was not chosen when the kernel booted: lsm=landlock,… on its command line"
	case errors.Is(err, unix.EPERM):
		s.LandlockWhy = "a container's seccomp filter keeps it away"
	default:
		s.LandlockWhy = err.Error()
	}
	if err := canFilter(); err != nil {
		s.SeccompWhy = err.Error()
	} else {
		s.Seccomp = true
	}
	return s
}

func (p Plan) noDumps(*Walls) error {
	if p.CoreDumps {
		return nil
	}
	return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}

const (
	readFiles   = ll.AccessFSReadFile | ll.AccessFSReadDir
	deviceFiles = ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSIoctlDev
	keptFiles   = readFiles | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSMakeDir | ll.AccessFSRemoveFile | ll.AccessFSRemoveDir
	socketFiles = ll.AccessFSReadDir | ll.AccessFSMakeSock | ll.AccessFSRemoveFile
	allFiles    = ll.AccessFSResolveUnix<<1 - 1
)

// landlock closes the file system, abstract unix sockets of others and, without a child, signals to others. Which ports are
// used is not its affair here: a guest may go anywhere, and a policy says where not.
func (p Plan) landlock(w *Walls) error {
	s := Look()
	if s.Landlock == 0 {
		return errors.New(s.LandlockWhy)
	}
	var scope landlock.ScopedSet
	if !p.Abstract {
		scope |= ll.ScopeAbstractUnixSocket
	}
	if p.Child == 0 { // it was started outside
		scope |= ll.ScopeSignal
	}
	var rules []landlock.Rule
	add := func(rights landlock.AccessFSSet, paths []string) {
		for _, path := range paths {
			rights := rights
			if fi, err := os.Stat(path); err == nil && !fi.IsDir() {
				rights &^= ll.AccessFSReadDir | ll.AccessFSMakeSock | ll.AccessFSMakeReg | ll.AccessFSMakeDir | ll.AccessFSRemoveFile | ll.AccessFSRemoveDir
			}
			rules = append(rules, landlock.PathAccess(rights, path).IgnoreIfMissing())
		}
	}
	add(readFiles, p.Read)
	add(deviceFiles, p.Devices)
	add(keptFiles, p.Keep)
	add(socketFiles, p.Sockets)
	add(ll.AccessFSRemoveDir, p.Empty)
	add(ll.AccessFSResolveUnix, p.Connect)
	c := landlock.Config{HandledAccessFS: allFiles, Scoped: scope}
	if err := c.BestEffort().Restrict(rules...); err != nil {
		return err
	}
	w.Landlock = s.Landlock
	return nil
}

// dropBounds has no program that is started have capabilities. It takes CAP_SETPCAP; who does not have that has few to
// give away.
func dropBounds(w *Walls) error {
	set := cap.GetProc()
	if may, err := set.GetFlag(cap.Permitted, cap.SETPCAP); err != nil || !may {
		if held, err := boundsHeld(); err != nil || !held {
			return err // root's without it is said by drop
		}
		return nil
	}
	if err := set.SetFlag(cap.Effective, true, cap.SETPCAP); err != nil {
		return err
	}
	if err := set.SetProc(); err != nil {
		return err
	}
	if err := cap.ResetAmbient(); err != nil {
		return err
	}
	for c := range cap.MaxBits() {
		if err := cap.DropBound(c); err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
	}
	w.Bounded = true
	return nil
}

// boundsHeld says whether there is a capability that a program which is started could get.
func boundsHeld() (bool, error) {
	for c := range cap.MaxBits() {
		if has, err := cap.GetBound(c); err != nil || has {
			return has, err
		}
	}
	return false, nil
}

// become makes root another user.
func (p Plan) become(w *Walls) error {
	if p.User == nil || p.User.UID == os.Geteuid() && p.User.GID == os.Getegid() {
		return nil
	}
	// First the groups: afterwards nobody may.
	if err := cap.SetGroups(p.User.GID); err != nil {
		return fmt.Errorf("group %d: %w", p.User.GID, err)
	}
	if err := cap.SetUID(p.User.UID); err != nil {
		return fmt.Errorf("%s: %w", p.User.Name, err)
	}
	if os.Getuid() != p.User.UID || os.Geteuid() != p.User.UID {
		return fmt.Errorf("%s: still user %d", p.User.Name, os.Getuid())
	}
	w.User = p.User.Name
	return nil
}

// drop gives capabilities away.
func (p Plan) drop(w *Walls) error {
	had := cap.GetProc()
	left := cap.NewSet()
	for _, name := range p.Capabilities {
		c, err := cap.FromName(name)
		if err != nil {
			return err
		}
		if has, err := had.GetFlag(cap.Permitted, c); err != nil || !has {
			continue
		}
		if err := errors.Join(left.SetFlag(cap.Permitted, true, c), left.SetFlag(cap.Effective, true, c)); err != nil {
			return err
		}
		w.Capabilities = append(w.Capabilities, name)
	}
	slices.Sort(w.Capabilities)
	return left.SetProc()
}

func (p Plan) noNewPrivileges(w *Walls) error {
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return err
	}
	w.NoNewPrivileges = true
	return nil
}

// hide keeps other processes of the same user from looking into this one's memory, and the kernel from writing it to a
// file.
func (p Plan) hide(*Walls) error {
	var dumpable uintptr
	if p.CoreDumps {
		dumpable = 1
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, dumpable, 0, 0, 0)
}

func (p Plan) seccomp(w *Walls) error {
	if err := p.filter(); err != nil {
		return err
	}
	w.Seccomp = true
	return nil
}
