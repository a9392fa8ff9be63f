package main

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// forgetCode takes the program's code and constants out of our resident memory. Most of what is there after a start was
// touched by starting up alone, or lies within 64 KiB of what was (the kernel maps as much around each fault), and is
// three quarters of what an idle daemon holds. What is used again is mapped again, from the page cache.
func forgetCode() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	var from, to uint64
	for line := range strings.Lines(string(maps)) {
		// address perms offset dev inode path, then "Anonymous: 8 kB" and its like (proc_pid_smaps(5)).
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case !strings.HasSuffix(f[0], ":"):
			from, to = 0, 0
			if len(f) < 6 || f[5] != exe || f[1] != "r-xp" && f[1] != "r--p" {
				continue
			}
			a, b, _ := strings.Cut(f[0], "-")
			from, _ = strconv.ParseUint(a, 16, 64)
			to, _ = strconv.ParseUint(b, 16, 64) // 0 if it is no number
		case f[0] == "Anonymous:" && len(f) > 1 && f[1] == "0" && from < to:
			// What holds nothing but the file: not the tables that a dynamic linker has filled in and then closed.
			unix.Syscall(unix.SYS_MADVISE, uintptr(from), uintptr(to-from), unix.MADV_DONTNEED)
		}
	}
}
