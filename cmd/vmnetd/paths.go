package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// controlEnv names the control socket where --control does not.
const controlEnv = "VMNETD_CONTROL"

// runtimeDir is where sockets are by default: $XDG_RUNTIME_DIR/vmnetd, else /run/user/UID/vmnetd, else
// /tmp/vmnetd-UID. Only makeRuntimeDir makes sure of it.
func runtimeDir() string {
	// The specification has relative ones ignored. One that is not there is a session's that su or sudo has left.
	if d := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
		if fi, err := os.Stat(d); err == nil && fi.IsDir() {
			return filepath.Join(d, "vmnetd")
		}
	}
	uid := strconv.Itoa(os.Getuid())
	if d := filepath.Join("/run/user", uid); private(d) == nil {
		return filepath.Join(d, "vmnetd")
	}
	return filepath.Join(os.TempDir(), "vmnetd-"+uid)
}

// makeRuntimeDir makes the folder, or makes sure that the one there is ours alone: anybody can have made
// /tmp/vmnetd-1000 first, and would own what is put there.
func makeRuntimeDir() (string, error) {
	d := runtimeDir()
	if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if err := private(d); err != nil {
		return "", hintError{err, "name other places with --qemu unix:PATH and --control PATH, or set XDG_RUNTIME_DIR"}
	}
	return d, nil
}

// private says why a folder is not ours alone.
func private(dir string) error {
	fi, err := os.Lstat(dir)
	switch {
	case err != nil:
		return err
	case !fi.IsDir():
		return fmt.Errorf("%s is not a folder", dir)
	case !owned(fi):
		return fmt.Errorf("%s belongs to somebody else", dir)
	case fi.Mode().Perm()&0o077 != 0 && hasModes:
		return fmt.Errorf("%s is open to others (mode %04o, want 0700)", dir, fi.Mode().Perm())
	}
	return nil
}

// controlPath is the control socket that the flag, the environment or the default names; lab:NAME is a lab's.
func controlPath(flag string) string {
	for _, p := range []string{flag, os.Getenv(controlEnv)} {
		if name, ok := strings.CutPrefix(p, "lab:"); ok {
			if d, err := labNamed(name); err == nil {
				return d.file(labControl)
			}
		}
		if p != "" {
			return p
		}
	}
	return filepath.Join(runtimeDir(), "control.sock")
}
