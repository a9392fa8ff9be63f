//go:build unix

package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Without a home the cache is in a folder that all write to: what others have made there, or may write to, is not used.
func TestCacheWithoutHome(t *testing.T) {
	tmp := t.TempDir()
	for _, v := range []string{"HOME", "XDG_CACHE_HOME", "VMNETD_CACHE"} {
		t.Setenv(v, "")
	}
	t.Setenv("TMPDIR", tmp)
	dir, err := Cache()
	if err != nil || !strings.HasPrefix(dir, tmp) {
		t.Fatalf("%s, %v", dir, err)
	}
	base := filepath.Dir(dir)
	if fi, err := os.Stat(base); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	if again, err := Cache(); err != nil || again != dir {
		t.Errorf("again: %s, %v", again, err)
	}
	refused := func(what string) {
		if dir, err := Cache(); err == nil || !strings.Contains(err.Error(), "VMNETD_CACHE") {
			t.Errorf("%s: %s, %v", what, dir, err)
		}
	}
	if err := os.Chmod(base, 0o777); err != nil {
		t.Fatal(err)
	}
	refused("all may write to it")
	if err := os.Chmod(base, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(base, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		refused("somebody else's")
	}
	if err := os.RemoveAll(base); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), base); err != nil {
		t.Fatal(err)
	}
	refused("a link to another")
}
