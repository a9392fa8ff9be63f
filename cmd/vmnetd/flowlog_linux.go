package main

import (
	"fmt"
	"os"

	"github.com/vmnetd/vmnetd/cage"
)

// handOverFlowLog lets the user that root becomes rename the flow log, and begin another.
func (d *daemon) handOverFlowLog(u *cage.User) error {
	dir := d.flowLogFolder()
	if dir == "" {
		return nil
	}
	if err := d.flowLog.File().Chown(u.UID, u.GID); err != nil {
		return fmt.Errorf("--flow-log: %w", err)
	}
	if fi, err := os.Stat(dir); err == nil && fi.Mode().Perm()&0o002 != 0 || !d.flowLog.Rotates() {
		return nil // as /tmp: everybody's own files are theirs
	}
	begins := []string{d.flowLogName(dir)}
	for _, n := range d.plans {
		if n.cfg.StateDir != "" {
			begins = append(begins, "leases-", "added-")
		}
	}
	if err := handOverFolder(dir, u, begins...); err != nil {
		return hintError{fmt.Errorf("--flow-log: folder %s: %w", dir, err),
			fmt.Sprintf("the daemon becomes user %s, who renames the file when it is full: name a folder of its own, or say --flow-log-size 0, or --user root", u.Name)}
	}
	return nil
}
