package guest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// The archive is read back by the format's own rules; the kernel reads it in every other test.
func TestArchive(t *testing.T) {
	var out bytes.Buffer
	a := Archive{W: &out}
	a.Dir("bin")
	a.Program("bin/x", []byte("12345"))
	a.Char("dev/console", 5, 1)
	a.Link("etc/link", "/target")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if out.Len()%512 != 0 {
		t.Errorf("%d bytes, want whole blocks of 512", out.Len())
	}
	var got []string
	for b := out.Bytes(); ; {
		var f [13]int
		if string(b[:6]) != "070701" {
			t.Fatalf("header %q after %q", b[:6], got)
		}
		for i := range f {
			if _, err := fmt.Sscanf(string(b[6+8*i:14+8*i]), "%X", &f[i]); err != nil {
				t.Fatal(err)
			}
		}
		up := func(n int) int { return (n + 3) &^ 3 }
		name := string(b[110 : 110+f[11]-1])
		start := up(110 + f[11])
		body := string(b[start : start+f[6]])
		b = b[up(start+f[6]):]
		if name == "TRAILER!!!" {
			break
		}
		got = append(got, fmt.Sprintf("%s %o %d,%d %q", name, f[1], f[9], f[10], body))
	}
	want := []string{`bin 40755 0,0 ""`, `bin/x 100755 0,0 "12345"`, `dev/console 20600 5,1 ""`, `etc/link 120777 0,0 "/target"`}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestModules(t *testing.T) {
	kernel, modules, busybox := testParts(t)
	if _, err := os.Stat(kernel); err != nil {
		t.Fatal(err)
	}
	tree, err := OpenModules(modules, []string{busybox, "xzcat"})
	if err != nil {
		t.Fatal(err)
	}
	for name := range tree.builtin {
		if m, err := tree.Resolve(name); err != nil || len(m) != 0 {
			t.Errorf("%s is built in, but resolves to %d modules, %v", name, len(m), err)
		}
		break
	}
	if _, err := tree.Resolve("no-such-module"); err == nil || !strings.Contains(err.Error(), "no_such_module") {
		t.Errorf("a module that is not there: %v", err)
	}
	order, err := tree.Resolve(needed...)
	if err != nil {
		t.Fatal(err)
	}
	loaded := map[string]bool{}
	for _, m := range order {
		deps, err := Dependencies(m.Body)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range deps {
			if d = strings.ReplaceAll(d, "-", "_"); !loaded[d] && !tree.builtin[d] {
				t.Errorf("%s is loaded before %s, which it needs", m.Name, d)
			}
		}
		if loaded[m.Name] {
			t.Errorf("%s is loaded twice", m.Name)
		}
		loaded[m.Name] = true
	}
	if len(order) < len(needed) {
		t.Logf("only %d of %d are modules in this kernel", len(order), len(needed))
	}
}

// testParts are Debian's packages. Where they cannot be had there is nothing to test, but in CI.
func testParts(t *testing.T) (kernel, modules, busybox string) {
	t.Helper()
	refuse := t.Skipf
	if os.Getenv("CI") == "true" {
		refuse = t.Fatalf
	}
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" || testing.Short() {
		t.Skip("Debian's packages, on linux/amd64, not with -short")
	}
	cache, err := Cache()
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := Lock(t.Context(), filepath.Join(cache, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	kernel, _, err = debians(t.Context(), cache, t.Logf)
	if err != nil {
		refuse("%v", err)
	}
	modules, err = OneOf(filepath.Dir(filepath.Dir(kernel)), "lib/modules/*", "usr/lib/modules/*")
	if err != nil {
		t.Fatal(err)
	}
	busybox, err = anyBusybox(t.Context(), cache, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	return kernel, modules, busybox
}
