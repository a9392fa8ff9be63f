package capture

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vmnetd/vmnetd/backend/link"
)

// A disk that is full ends a capture, and what is on it is whole.
func TestFileFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a small disk takes root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip(err)
	}
	defer syscall.Unmount(dir, 0)
	path := filepath.Join(dir, "full.pcapng")
	f, err := OpenFile(path, Ring{})
	if err != nil {
		t.Fatal(err)
	}
	w, _ := wired(t, 4)
	s := Start(f, Options{})
	s.Add(w, named("vm"))
	for range 200 {
		if taps := w.taps.Load(); taps != nil {
			(*taps)[0].wrote([]link.Frame{link.NewFrame(udpFrame(1, 3000))})
		}
	}
	s.Stop()
	if err := s.Wait(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v", err)
	}
	if _, why := s.Figures(); why != WriterFailed {
		t.Errorf("ended by %s", why)
	}
	f.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(packetsOf(blocksOf(t, b))); n < 50 {
		t.Errorf("%d packets on %d bytes of disk", n, len(b))
	}
	read(t, b, len(packetsOf(blocksOf(t, b))))
}
