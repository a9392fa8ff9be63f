package main

// Where a lab's state is, and how it is known whether its process lives. All that makes or takes away a lab's folder holds
// the lock of its name meanwhile: two 'lab up' at once, or an 'up' and a 'down', come one after the other.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vmnetd/vmnetd/backend/control"
)

// labEnv marks every process of a lab's with the lab's folder.
const labEnv = "VMNETD_LAB"

// labPrefix is what the folder of a lab's state begins with.
const labPrefix = "lab-"

// Files in that folder.
const (
	labControl = "control.sock"
	labDoor    = "exec.sock" // descriptors and conversations: labdoor.go
	labFile    = "lab.json"  // labRecord
	labAlive   = "alive"     // locked by the lab's process as long as that lives
	labLog     = "log"
	labHosts   = "known_hosts"
	labNodes   = "n" // the nodes' own folders; short, for the sake of sockets in them
)

// maxLabName: with it /run/user/1000/vmnetd/lab-NAME/n/ leaves 30 bytes of a socket's 107.
const maxLabName = 40

// labDir is where a lab's state is.
type labDir struct{ name, path string }

// labNamed is the lab of that name, which is checked: it becomes part of paths.
func labNamed(name string) (labDir, error) {
	switch {
	case name == "":
		return labDir{}, usagef("a lab without a name")
	case len(name) > maxLabName:
		return labDir{}, usagef("a lab's name of %d bytes: want %d at most", len(name), maxLabName)
	case strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	}), name[0] == '-':
		return labDir{}, usagef("%q is no lab's name: want letters, digits, - and _", name)
	}
	return labDir{name, filepath.Join(runtimeDir(), labPrefix+name)}, nil
}

func (d labDir) file(name string) string { return filepath.Join(d.path, name) }

// mark is what stands in the environment of the lab's processes.
func (d labDir) mark() string { return labEnv + "=" + d.path }

func (d labDir) client() *control.Client { return control.NewClient(d.file(labControl)) }

// labRecord is what a lab's process leaves for others to read. What is in it is taken for a hint: that the process lives
// says the lock, and what may be removed the name.
type labRecord struct {
	Name   string    `json:"name"`
	File   string    `json:"file"`
	PID    int       `json:"pid"`
	Start  uint64    `json:"start"` // of the process, in ticks since the machine began (proc_pid_stat(5)); 0: not known
	Since  time.Time `json:"since"`
	Folder string    `json:"folder"`
	Keep   string    `json:"keep"` // for overlays
}

// maxLabRecord: two paths of 4096 bytes and change, escaped at the worst.
const maxLabRecord = 64 << 10

func (d labDir) record() (r labRecord, err error) {
	b, err := readBounded(d.file(labFile), maxLabRecord, true)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return labRecord{}, fmt.Errorf("%s: %w", d.file(labFile), err)
	}
	return r, nil
}

// write puts the record where others find the whole of it or the one before.
func (r labRecord) write() error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(r.Folder, labFile)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// labKeep is the folder for what a lab keeps on disk while it is up: $XDG_STATE_HOME/vmnetd/lab-NAME.
func labKeep(name string) string {
	base := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(base) { // the specification has relative ones ignored
		home, err := os.UserHomeDir()
		if fi, bad := os.Stat(home); err != nil || bad != nil || !fi.IsDir() || !filepath.IsAbs(home) || home == "/" { // nobody's
			base = filepath.Join(os.TempDir(), "vmnetd-state-"+strconv.Itoa(os.Getuid()))
		} else {
			base = filepath.Join(home, ".local", "state")
		}
	}
	return filepath.Join(base, "vmnetd", labPrefix+name)
}

// labState is how it is with a lab's folder.
type labState int

const (
	labNone  labState = iota // there is no folder
	labStale                 // its process has been killed
	labUp                    // its process lives
)

// state says how it is, and whose process it is if that lives: certain, by the process's own lock, whatever numbers have
// come round since.
func (d labDir) state() (st labState, pid int, err error) {
	switch err := private(d.path); {
	case errors.Is(err, fs.ErrNotExist):
		return labNone, 0, nil
	case err != nil:
		return labNone, 0, hintError{err, "it is left alone: look at it, and remove it yourself"}
	}
	pid, err = lockHolder(d.file(labAlive))
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && pid == 0:
		return labStale, 0, nil
	case err != nil:
		return labNone, 0, err
	}
	return labUp, pid, nil
}

// labs are those that there are folders of.
func labs() (list []labDir) {
	entries, err := os.ReadDir(runtimeDir())
	if err != nil {
		return nil
	}
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), labPrefix)
		if !ok || !e.IsDir() {
			continue
		}
		if d, err := labNamed(name); err == nil && private(d.path) == nil {
			list = append(list, d)
		}
	}
	return list
}

// lock waits until nobody else makes or takes away this lab's folder. tell is called once if that takes a while.
func (d labDir) lock(ctx context.Context, tell func()) (unlock func(), err error) {
	const soon = 300 * time.Millisecond // most are done by then, and a line would be noise
	late := time.Now().Add(soon)
	for {
		if _, err := makeRuntimeDir(); err != nil && !errors.Is(err, fs.ErrNotExist) { // whoever was last has just removed it
			return nil, err
		}
		// Whose file has gone by the time that it is locked has locked nothing.
		unlock, err := tryLock(d.path + ".lock")
		switch {
		case err == nil:
			return func() { unlock(); os.Remove(runtimeDir()) }, nil // the folder only if it is empty
		case errors.Is(err, errLocked):
			if !late.IsZero() && time.Now().After(late) {
				tell()
				late = time.Time{}
			}
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

var errLocked = errors.New("somebody else has it locked")

// make makes the folder. The caller has the lock.
func (d labDir) make() error {
	if room := maxUnixPath - len(d.file(labControl)); room < 0 {
		return hintError{usagef("%s has %d bytes, and a socket's path may have %d", d.file(labControl), len(d.file(labControl)), maxUnixPath),
			"a shorter name for the lab, or XDG_RUNTIME_DIR set to a shorter folder"}
	}
	if err := os.Mkdir(d.path, 0o700); err != nil {
		return err
	}
	return os.Mkdir(d.file(labNodes), 0o700)
}

// leftovers are what was found of a lab whose process has gone.
type leftovers struct {
	Processes int
	Folders   []string
}

func (l leftovers) String() string {
	var parts []string
	if l.Processes == 1 {
		parts = append(parts, "1 process")
	} else if l.Processes > 1 {
		parts = append(parts, fmt.Sprintf("%d processes", l.Processes))
	}
	return strings.Join(append(parts, l.Folders...), ", ")
}

// errLabLives: a lab whose process had gone has one again.
var errLabLives = errors.New("its process has just begun")

// clean ends what a lab's process has left behind and takes its files away. The caller has the lock, and the process has
// gone. It may be called for a lab that there is nothing of.
func (d labDir) clean(ctx context.Context) (left leftovers, err error) {
	if err = private(d.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return left, hintError{err, "it is left alone: look at it, and remove it yourself"}
	}
	if err == nil {
		// A process whose 'lab up' was killed while it started it may not bear the mark yet. It does not begin without this
		// lock, nor without the folder; and if it has it already, the lab is up.
		alive, err := holdLock(d.file(labAlive))
		if err == nil {
			defer alive.Close()
		} else if pid, bad := lockHolder(d.file(labAlive)); bad == nil && pid != 0 {
			return left, errLabLives
		}
	}
	left.Processes, err = endMarked(ctx, d.path)
	if err != nil {
		return left, err
	}
	dirs := []string{labKeep(d.name)}
	if r, err := d.record(); err == nil && r.Keep != dirs[0] && keepsOf(r.Keep, d.name) {
		dirs = append(dirs, r.Keep) // the environment was another one then
	}
	var errs []error
	for _, dir := range append(dirs, d.path) { // the record goes last
		err := private(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = removeAll(dir)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		left.Folders = append(left.Folders, dir)
		if dir != d.path {
			os.Remove(filepath.Dir(dir)) // if it is empty
		}
	}
	return left, errors.Join(errs...)
}

// keepsOf says whether a path may be that of a lab's overlays: nothing else is removed, whatever a record says.
func keepsOf(path, name string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path && filepath.Base(path) == labPrefix+name && filepath.Base(filepath.Dir(path)) == "vmnetd"
}

// removeAll removes a folder of ours, also what a node has made in it that we may not write to as it is.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() {
			os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}
