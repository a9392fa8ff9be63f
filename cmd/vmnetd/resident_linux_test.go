package main

import (
	"os"
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
	before := residentFile(t)
	forgetStart()
	after := residentFile(t)
	t.Logf("%d kB of files resident, then %d", before, after)
	if after > before*3/4 {
		t.Errorf("%d kB of files resident, %d after it was let go", before, after)
	}
}
