// Package cage shuts a program in once it has started: what it does not need it gives away, for good and for all of its
// threads, so that who takes it over by a bug has little.
//
//	walls, err := cage.Plan{
//		Read:     []string{"/etc", "/proc/self"},
//		Keep:     []string{"/var/lib/mydaemon"},
//		User:     &cage.User{Name: "nobody", UID: 65534, GID: 65534}, // where it was started as root
//		Required: true,                                               // or do what the system can, and say what it cannot
//	}.Close()
//	fmt.Println(walls) // landlock 7, seccomp, no capabilities, user nobody
//
// The walls, each of which stands without the others:
//
//   - no new privileges: setuid programs and file capabilities give nothing (prctl(2), PR_SET_NO_NEW_PRIVS);
//   - Landlock: files and folders that are not named are not there (landlock(7));
//   - user and capabilities: root becomes an ordinary user, and what is left of capabilities goes (capabilities(7));
//   - core dumps: none, and no process of the same user may look into memory (PR_SET_DUMPABLE, RLIMIT_CORE);
//   - seccomp: system calls that a network daemon in Go does not make are refused, or end the process (seccomp(2)).
//
// [Close] is called late, when what needs rights has been opened: descriptors stay what they are. A child process that was
// started before is not shut in; later there can be none.
//
// What it does not do: no namespaces and no empty root, which a process with threads cannot give itself. It limits no
// memory and no processor time, and says nothing about who may be reached over the network. It is Linux only; elsewhere
// [Plan.Close] fails if it is required, and does nothing but say so if it is not.
package cage

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Plan says what a program still needs. The zero value is a program that has everything open that it will ever need but
// Internet sockets.
type Plan struct {
	// Read are files, and folders with all below, that may be read. What is not there is left out.
	Read []string
	// Devices are files that may be opened for reading and writing, as /dev/null.
	Devices []string
	// Keep are folders in which files may be made, read, written, renamed and removed.
	Keep []string
	// Sockets are folders in which unix sockets may be made, renamed and removed, and files removed.
	Sockets []string
	// Empty are folders of which empty folders may be removed.
	Empty []string
	// Connect are unix sockets, or folders of them, that may be connected to. Landlock knows this right from its ABI 9 on
	// (ConnectABI); before that there is only Streams and Datagrams.
	Connect []string

	// Streams and Datagrams allow new unix sockets of either kind. With a new stream socket, a program that was taken over
	// may reach any service of its user that listens at a path (a session's D-Bus starts programs), unless Landlock keeps it
	// from those. Sockets that are open already accept and send as before.
	Streams, Datagrams bool
	// Abstract allows connecting to unix sockets without a path.
	Abstract bool
	// Vsock allows new AF_VSOCK sockets.
	Vsock bool
	// Watch allows pidfd_open, by which a process's end is seen.
	Watch bool
	// Child is the one process beside itself that may be sent signals; 0 for none.
	Child int

	// User is whom root becomes; nil to stay. Without root it must be nil.
	User *User
	// Capabilities are kept, where they were there: "cap_net_bind_service". All others go.
	Capabilities []string

	// CoreDumps leaves dumps, and debuggers of the same user, possible.
	CoreDumps bool
	// Required makes Close fail at the first wall that cannot be built. Without it the others are built, and Walls tells.
	Required bool
}

// User is one that the system has.
type User struct {
	Name     string
	UID, GID int
}

// Walls are those that stand.
type Walls struct {
	NoNewPrivileges bool     `json:"no_new_privileges"`
	Landlock        int      `json:"landlock,omitempty"` // the ABI; 0: not there
	Seccomp         bool     `json:"seccomp"`
	Bounded         bool     `json:"bounded"` // no capability but those below can ever come back
	Capabilities    []string `json:"capabilities"`
	User            string   `json:"user,omitempty"` // that root became
	CoreDumps       bool     `json:"core_dumps"`
	Missing         []string `json:"missing,omitempty"` // walls that do not stand, and why
}

// String is a line for people.
func (w Walls) String() string {
	var s []string
	if w.Landlock > 0 {
		s = append(s, fmt.Sprintf("landlock %d", w.Landlock))
	}
	if w.Seccomp {
		s = append(s, "seccomp")
	}
	switch {
	case len(w.Capabilities) > 0:
		s = append(s, strings.Join(w.Capabilities, " "))
	case w.NoNewPrivileges:
		s = append(s, "no capabilities")
	}
	if w.User != "" {
		s = append(s, "user "+w.User)
	}
	if w.CoreDumps {
		s = append(s, "core dumps")
	}
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}

// Support is what a system has for a cage.
type Support struct {
	Landlock    int    // the ABI
	LandlockWhy string // it is not there
	Seccomp     bool
	SeccompWhy  string
}

// ConnectABI is the Landlock ABI from which on unix sockets of others are closed by it.
const ConnectABI = 9

// ErrLinux is what Close says elsewhere.
var ErrLinux = errors.New("cage: Linux only")

// Error is a wall that cannot be built.
type Error struct {
	Wall string
	Err  error
}

func (e *Error) Error() string { return "cage: " + e.Wall + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// missing records an error where walls are not required.
func (w *Walls) missing(required bool, wall string, err error) error {
	e := &Error{Wall: wall, Err: err}
	if required {
		return e
	}
	if text := wall + ": " + err.Error(); !slices.Contains(w.Missing, text) {
		w.Missing = append(w.Missing, text)
	}
	return nil
}
