package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

func residentFile(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`RssFile:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Skip("the kernel does not tell RssFile")
	}
	n, _ := strconv.Atoi(string(m[1]))
	return n
}

// What start-up alone ran does not stay, and what goes on runs on.
func TestForgetStart(t *testing.T) {
	// In a copy: what a linker has written may lie in the page cache in pieces of 2 MB, which are mapped whole.
	const copied = "VMNETD_TEST_COPIED"
	if os.Getenv(copied) == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(exe)
		if err != nil {
			t.Fatal(err)
		}
		again := filepath.Join(t.TempDir(), "vmnetd.test")
		if err := os.WriteFile(again, b, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(again, "-test.run=^TestForgetStart$", "-test.v")
		cmd.Env = append(os.Environ(), copied+"=1")
		out, err := cmd.CombinedOutput()
		if t.Logf("%s", out); err != nil {
			t.Fatal(err)
		}
		return
	}
	before := residentFile(t)
	forgetStart()
	after := residentFile(t)
	t.Logf("%d kB of files resident, then %d", before, after)
	if after > before*3/4 {
		t.Errorf("%d kB of files resident, %d after it was let go", before, after)
	}
}
