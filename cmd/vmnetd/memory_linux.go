package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// groupMemory is the least that this process's control group and those around it may have. With cgroup v2 that is
// memory.max (cgroup-v2.rst), with v1 memory.limit_in_bytes of the controller of that name.
func groupMemory(self, root string) (least int64, ok bool) {
	b, err := os.ReadFile(self)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		// ID:CONTROLLERS:PATH (cgroups(7))
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		base, file := root, "memory.max"
		switch {
		case f[0] == "0" && f[1] == "":
		case strings.Contains(","+f[1]+",", ",memory,"):
			base, file = filepath.Join(root, "memory"), "memory.limit_in_bytes"
		default:
			continue
		}
		for dir := filepath.Clean("/" + f[2]); ; dir = filepath.Dir(dir) {
			if b, err := os.ReadFile(filepath.Join(base, dir, file)); err == nil {
				n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64) // or "max"
				if err == nil && n > 0 && n < 1<<60 && (!ok || n < least) {      // v1 says nearly 2^63 for none
					least, ok = n, true
				}
			}
			if dir == "/" {
				break
			}
		}
	}
	return least, ok
}
