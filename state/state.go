// Package state writes the files that survive a restart.
//
//	if err := state.WriteFile(filepath.Join(dir, "leases.json"), b); err != nil {
//		return err // the old file is still there
//	}
//
// It knows nothing of what is in them, and keeps nothing open.
package state

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
)

// WriteFile replaces the file at path with b: after it, or after a crash on the way, the file is the old one or the new
// one, whole. It is readable by its owner only. It is written through path + ".new", a fixed name, so that a killed
// program leaves one at most.
func WriteFile(path string, b []byte) (err error) {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) // who is on a network is its owner's business
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp))
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	if runtime.GOOS == "windows" { // directories cannot be synced there
		return nil
	}
	// The file is whole and in place; syncing the folder makes its name outlast a power cut too, where the
	// file system can do that. Where it cannot, that is no reason to fail.
	if d, err := os.Open(filepath.Dir(path)); err == nil {
		_ = d.Sync()
		d.Close()
	}
	return nil
}
