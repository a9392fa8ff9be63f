package checksum_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/checksum"
)

// Nothing is read before the first byte or behind the last: there are pages that must not be touched.
func TestReadsNothingElse(t *testing.T) {
	page := os.Getpagesize()
	m, err := unix.Mmap(-1, 0, 4*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	for _, forbidden := range [][]byte{m[:page], m[3*page:]} {
		if err := unix.Mprotect(forbidden, unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	b := m[page : 3*page]
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	for n := range len(b) + 1 {
		for _, s := range [][]byte{b[:n], b[len(b)-n:]} {
			if got, want := checksum.Sum(s, 9), reference(s, 9); got != want {
				t.Fatalf("%d bytes: %#04x, want %#04x", n, got, want)
			}
			var p checksum.Pieces
			p.Add(s[:n/3])
			p.Add(s[n/3:])
			if got, want := p.Sum(), reference(s, 0); got != want {
				t.Fatalf("%d bytes in two: %#04x, want %#04x", n, got, want)
			}
		}
	}
}
