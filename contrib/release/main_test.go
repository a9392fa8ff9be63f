package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// The same commit in two folders, fetched by users with other habits, makes the same archive; and it has what it should.
func TestSameTwice(t *testing.T) {
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(top, ".git")); err != nil {
		t.Skip("not in a clone: ", err)
	}
	tool := filepath.Join(t.TempDir(), "release")
	if out, err := exec.Command("go", "build", "-o", tool, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const target = "linux/amd64"
	var archives [][]byte
	var name string
	for i, umask := range []string{"022", "077"} {
		dir := filepath.Join(t.TempDir(), strings.Repeat("longer", i))
		script := `umask "$1"; git clone -q "$2" "$3" && cd "$3" && exec "$4" -o out ` + target
		cmd := exec.Command("sh", "-c", script, "sh", umask, top, dir, tool)
		cmd.Env = append(os.Environ(), "VERSION=v1.2.3-rc1", "TZ=Asia/Kathmandu", "GOFLAGS=", "GOAMD64=")
		if i > 0 {
			cmd.Env = append(cmd.Env, "TZ=UTC", "GOAMD64=v2", "CGO_CFLAGS=-O0", "LC_ALL=de_DE.UTF-8")
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		list, err := filepath.Glob(filepath.Join(dir, "out", "*.tar.gz"))
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		name = filepath.Base(list[0])
		b, err := os.ReadFile(list[0])
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, b)
		sums, err := os.ReadFile(filepath.Join(dir, "out", "SHA256SUMS"))
		if want := fmt.Sprintf("%x  %s\n", sha256.Sum256(b), name); string(sums) != want || err != nil {
			t.Errorf("SHA256SUMS has %q, %v, want %q", sums, err, want)
		}
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Errorf("the archives differ: %d and %d bytes", len(archives[0]), len(archives[1]))
	}
	const folder = "vmnetd-1.2.3-rc1-linux-amd64"
	if name != folder+".tar.gz" {
		t.Errorf("it is called %s", name)
	}
	files := readTar(t, archives[0])
	for _, want := range []string{"vmnetd", "LICENSE", "THIRD-PARTY-LICENSES", "README.md", "CHANGELOG.md", "completions/vmnetd.bash", "completions/_vmnetd",
		"completions/vmnetd.fish", "man/man1/vmnetd.1", "man/man1/vmnetd-serve.1", "contrib/systemd/system/vmnetd.service", "contrib/systemd/user/vmnetd.socket"} {
		if files[folder+"/"+want] == nil {
			t.Errorf("no %s", want)
		}
	}
	if runtime.GOOS+"/"+runtime.GOARCH != target {
		return
	}
	bin := filepath.Join(t.TempDir(), "vmnetd")
	if err := os.WriteFile(bin, files[folder+"/vmnetd"], 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(bin, "version").CombinedOutput(); string(out) != "vmnetd v1.2.3-rc1\n" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

// readTar are an archive's files. All have one owner, one time and their order.
func readTar(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	last, at := "", time.Time{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if at.IsZero() {
			at = h.ModTime
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || !h.ModTime.Equal(at) || h.Name <= last || h.Mode != 0o644 && h.Mode != 0o755 {
			t.Errorf("%+v behind %s", h, last)
		}
		last = h.Name
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPackZip(t *testing.T) {
	at := time.Unix(1795277973, 0).UTC()
	b, err := packZip("f", []file{{"a", 0o644, []byte("one")}, {"b/c.exe", 0o755, []byte("two")}}, at)
	if err != nil {
		t.Fatal(err)
	}
	r, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.File) != 2 || r.File[1].Name != "f/b/c.exe" || r.File[1].Mode() != 0o755 || !r.File[0].Modified.Equal(at) {
		t.Errorf("%+v", r.File[1].FileHeader)
	}
}

func TestPackageVersion(t *testing.T) {
	list := []string{ // the older first, as dpkg has it
		"v0.0.0-20261121161933-61074892f698", "v0.0.0-20261121162000-01074892f698-dirty", "v1.2.3-rc1", "v1.2.3-rc1-4-gcc4d83416244", "v1.2.3", "v1.2.3-dirty", "v1.2.3-4-gcc4d83416244", "v1.2.4",
	}
	want := []string{"0.0.0+20261121161933.61074892f698", "0.0.0+20261121162000.01074892f698+dirty", "1.2.3~rc1", "1.2.3~rc1+4.gcc4d83416244", "1.2.3", "1.2.3+dirty", "1.2.3+4.gcc4d83416244", "1.2.4"}
	for i, v := range list {
		if got := packageVersion(v); got != want[i] {
			t.Errorf("%s: %s, want %s", v, got, want[i])
		}
	}
	dpkg, err := exec.LookPath("dpkg")
	if err != nil {
		return
	}
	for i := 1; i < len(want); i++ {
		if want[i] == "1.2.3+4.gcc4d83416244" {
			continue // both are behind 1.2.3
		}
		if err := exec.Command(dpkg, "--compare-versions", want[i-1], "lt", want[i]).Run(); err != nil {
			t.Errorf("dpkg does not take %s for older than %s: %v", want[i-1], want[i], err)
		}
	}
}

func TestRefuses(t *testing.T) {
	t.Chdir("../..")
	for _, env := range []string{"0", "yesterday"} {
		t.Setenv("VERSION", "v1.0.0")
		t.Setenv("SOURCE_DATE_EPOCH", env)
		if _, err := newRelease(); err == nil || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH") {
			t.Errorf("%s: %v", env, err)
		}
	}
	t.Setenv("SOURCE_DATE_EPOCH", "1795277973")
	for _, want := range [][]string{{"linux"}, {"linux/amd64", "linux/arm64"}} {
		if err := run(t.TempDir(), map[bool]string{true: t.TempDir()}[len(want) > 1], false, want); err == nil {
			t.Errorf("%q was taken", want)
		}
	}
}
