// Release builds what is handed out: vmnetd for each system, with its papers, in archives that are the same bit for bit
// wherever the same commit is built.
//
//	make release                                          all systems, into dist/
//	go run ./contrib/release -o /tmp/x linux/amd64        one
//	go run ./contrib/release -tree /tmp/x linux/amd64     not packed: what 'make package' makes packages of
//
// What could differ from one machine to another is fixed: the Go that go.mod names, no cgo, no paths, no flags of the user's,
// names in order, no owners, and the commit's time ($SOURCE_DATE_EPOCH) as all files' time. The version is what 'git describe'
// says, or $VERSION. Without git both have to be set.
//
// What it does not do: it signs nothing, and uploads nothing.
package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// targets are what is built where nothing else is asked for.
var targets = []string{"linux/amd64", "linux/arm64", "darwin/arm64", "windows/amd64"}

func main() {
	out := flag.String("o", "dist", "`FOLDER` for the archives and SHA256SUMS")
	tree := flag.String("tree", "", "`FOLDER` for the files of one target, which are not packed then")
	showVersion := flag.Bool("version", false, "only print the version, the packages' and the time")
	flag.Parse()
	if err := run(*out, *tree, *showVersion, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func run(out, tree string, showVersion bool, want []string) error {
	r, err := newRelease()
	if err != nil {
		return err
	}
	if showVersion {
		fmt.Println(r.version, packageVersion(r.version), r.epoch.Unix())
		return nil
	}
	if len(want) == 0 {
		want = targets
	}
	if tree != "" && len(want) != 1 {
		return fmt.Errorf("-tree: want one target, as linux/amd64, not %q", want)
	}
	for _, target := range want {
		if system, arch, ok := strings.Cut(target, "/"); !ok || system == "" || arch == "" {
			return fmt.Errorf("%q: want SYSTEM/PROCESSOR, as linux/amd64", target)
		}
	}
	work, err := os.MkdirTemp("", "release")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	papers, err := r.papers(work)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); tree == "" && err != nil {
		return err
	}
	var sums []string
	for _, target := range want {
		system, arch, _ := strings.Cut(target, "/")
		files, err := r.files(work, system, arch, papers)
		if err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
		if tree != "" {
			return writeTree(tree, files, r.epoch)
		}
		name := fmt.Sprintf("vmnetd-%s-%s-%s", strings.TrimPrefix(r.version, "v"), system, arch)
		pack, ext := packTar, ".tar.gz"
		if system == "windows" {
			pack, ext = packZip, ".zip"
		}
		b, err := pack(name, files, r.epoch)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(out, name+ext), b, 0o644); err != nil {
			return err
		}
		sums = append(sums, fmt.Sprintf("%x  %s\n", sha256.Sum256(b), name+ext))
		fmt.Print(sums[len(sums)-1])
	}
	slices.SortFunc(sums, func(a, b string) int { return strings.Compare(a[64:], b[64:]) })
	return os.WriteFile(filepath.Join(out, "SHA256SUMS"), []byte(strings.Join(sums, "")), 0o644)
}

// release is what all builds have in common.
type release struct {
	version string
	epoch   time.Time
	vcs     bool
	env     []string
	built   map[string]string // paths, by target
}

func newRelease() (*release, error) {
	r := &release{version: os.Getenv("VERSION"), built: map[string]string{}}
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	described, err := output("git", "describe", "--tags", "--always", "--dirty", "--abbrev=12")
	r.vcs = err == nil
	if r.vcs && epoch == "" {
		if epoch, err = output("git", "log", "-1", "--format=%ct"); err != nil {
			return nil, err
		}
	}
	if r.vcs && r.version == "" {
		if r.version = described; !strings.HasPrefix(described, "v") { // there is no tag yet: as Go has it
			at, err := output("git", "log", "-1", "--format=%cd", "--date=format-local:%Y%m%d%H%M%S")
			if err != nil {
				return nil, err
			}
			r.version = "v0.0.0-" + at + "-" + described
		}
	}
	if r.version == "" || epoch == "" {
		return nil, fmt.Errorf("git does not tell (%v): set VERSION, as v1.2.3, and SOURCE_DATE_EPOCH, in seconds", err)
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds < 315532800 { // zip's times begin in 1980
		return nil, fmt.Errorf("SOURCE_DATE_EPOCH=%s: want seconds since 1970, from 1980 on", epoch)
	}
	r.epoch = time.Unix(seconds, 0).UTC()
	if r.env, err = buildEnv(r.epoch); err != nil {
		return nil, err
	}
	return r, nil
}

// packageVersion is a version as Debian and RPM compare it: behind a tag's is a +, before it a ~.
func packageVersion(v string) string {
	v = strings.TrimPrefix(v, "v")
	v = regexp.MustCompile(`^0\.0\.0-(\d{14})-([0-9a-f]+)`).ReplaceAllString(v, "0.0.0+$1.$2")
	v = regexp.MustCompile(`-(\d+)-(g[0-9a-f]+)`).ReplaceAllString(v, "+$1.$2")
	v = strings.Replace(v, "-dirty", "+dirty", 1)
	return strings.ReplaceAll(v, "-", "~")
}

// buildEnv is the environment without what changes builds.
func buildEnv(epoch time.Time) ([]string, error) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		return nil, fmt.Errorf("%w: it is started in the source's folder", err)
	}
	goVersion := ""
	for line := range strings.Lines(string(mod)) {
		if v, ok := strings.CutPrefix(line, "go "); ok {
			goVersion = strings.TrimSpace(v)
		}
	}
	var env []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if name != "GOEXPERIMENT" && name != "GOFIPS140" && !strings.HasPrefix(name, "CGO_") {
			env = append(env, v)
		}
	}
	return append(env, "GOTOOLCHAIN=go"+goVersion, "CGO_ENABLED=0", "GOFLAGS=-trimpath", "GOAMD64=v1", "GOARM64=v8.0", "GOWORK=off", "LC_ALL=C", "TZ=UTC0",
		fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch.Unix())), nil
}

func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "TZ=UTC0", "LC_ALL=C")
	b, err := cmd.Output()
	return strings.TrimSpace(string(b)), err
}

// build makes one binary.
func (r *release) build(path, system, arch string) error {
	if r.built[system+"/"+arch] == path {
		return nil
	}
	r.built[system+"/"+arch] = path
	cmd := exec.Command("go", "build", "-mod=readonly", "-trimpath", fmt.Sprintf("-buildvcs=%v", r.vcs),
		"-ldflags=-s -w -buildid= -X main.version="+r.version, "-o", path, "./cmd/vmnetd")
	cmd.Env = append(slices.Clone(r.env), "GOOS="+system, "GOARCH="+arch)
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// file is one of a release's.
type file struct {
	name string // with slashes
	mode fs.FileMode
	data []byte
}

// papers are what the command prints of itself, by folders: man pages and completions. This machine's binary is asked, and
// says the same on all.
func (r *release) papers(work string) (files []file, err error) {
	bin := filepath.Join(work, runtime.GOOS+"-"+runtime.GOARCH)
	if err := r.build(bin, runtime.GOOS, runtime.GOARCH); err != nil {
		return nil, err
	}
	ask := func(args ...string) ([]byte, error) {
		cmd := exec.Command(bin, args...)
		cmd.Env = append(slices.Clone(r.env), "HOME=/nonexistent", "XDG_RUNTIME_DIR=", "VMNETD_CONTROL=", "COLUMNS=", "TERM=dumb")
		b, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("vmnetd %s: %w", strings.Join(args, " "), err)
		}
		return b, nil
	}
	for shell, name := range map[string]string{"bash": "vmnetd.bash", "zsh": "_vmnetd", "fish": "vmnetd.fish", "powershell": "vmnetd.ps1"} {
		b, err := ask("completion", shell)
		if err != nil {
			return nil, err
		}
		files = append(files, file{"completions/" + name, 0o644, b})
	}
	pages := filepath.Join(work, "man")
	if err := os.Mkdir(pages, 0o755); err != nil {
		return nil, err
	}
	if _, err := ask("man", pages); err != nil {
		return nil, err
	}
	list, err := os.ReadDir(pages)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		b, err := os.ReadFile(filepath.Join(pages, e.Name()))
		if err != nil {
			return nil, err
		}
		files = append(files, file{"man/man" + strings.TrimPrefix(filepath.Ext(e.Name()), ".") + "/" + e.Name(), 0o644, b})
	}
	return files, nil
}

// files are those of one target, in order.
func (r *release) files(work, system, arch string, papers []file) ([]file, error) {
	name := "vmnetd"
	if system == "windows" {
		name += ".exe"
	}
	bin := filepath.Join(work, system+"-"+arch)
	if err := r.build(bin, system, arch); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(bin)
	if err != nil {
		return nil, err
	}
	licences, err := r.licences(system, arch)
	if err != nil {
		return nil, err
	}
	files := append([]file{{name, 0o755, b}, {"THIRD-PARTY-LICENSES", 0o644, licences}}, papers...)
	sources := []string{"LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md", "contrib/grafana"}
	if system == "linux" {
		sources = append(sources, "contrib/systemd")
	}
	for _, s := range sources {
		err := filepath.WalkDir(s, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			files = append(files, file{filepath.ToSlash(path), 0o644, b})
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	return files, nil
}

// licence is how files with one are called, in whatever case.
var licence = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)`)

// licences are those of what is in a target's binary beside our own code.
func (r *release) licences(system, arch string) ([]byte, error) {
	ask := func(args ...string) (string, error) {
		cmd := exec.Command("go", args...)
		cmd.Env = append(slices.Clone(r.env), "GOOS="+system, "GOARCH="+arch)
		cmd.Stderr = os.Stderr
		b, err := cmd.Output()
		return strings.TrimSpace(string(b)), err
	}
	list, err := ask("list", "-mod=readonly", "-deps", "-f", `{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}	{{.Dir}}{{end}}{{end}}`, "./cmd/vmnetd")
	if err != nil {
		return nil, err
	}
	root, err := ask("env", "GOROOT")
	if err != nil {
		return nil, err
	}
	modules := strings.Split(list, "\n")
	slices.Sort(modules)
	modules = append([]string{"The Go standard library\t" + root}, slices.Compact(modules)...)
	var b bytes.Buffer
	for _, m := range modules {
		name, dir, _ := strings.Cut(m, "\t")
		if dir == "" {
			continue // packages of the standard library have no module
		}
		found := 0
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if !licence.MatchString(e.Name()) || e.IsDir() {
				continue
			}
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return nil, err
			}
			found++
			fmt.Fprintf(&b, "---- %s, %s\n\n%s\n\n", name, e.Name(), bytes.TrimRight(text, "\n"))
		}
		if found == 0 {
			return nil, fmt.Errorf("%s: no licence in %s", name, dir)
		}
	}
	return b.Bytes(), nil
}

// packTar makes a .tar.gz of files in a folder of this name.
func packTar(folder string, files []file, at time.Time) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(z)
	for _, f := range files {
		h := &tar.Header{Name: folder + "/" + f.name, Typeflag: tar.TypeReg, Mode: int64(f.mode), Size: int64(len(f.data)), ModTime: at, Format: tar.FormatUSTAR}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// packZip is packTar for Windows.
func packZip(folder string, files []file, at time.Time) ([]byte, error) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, f := range files {
		h := &zip.FileHeader{Name: folder + "/" + f.name, Method: zip.Deflate, Modified: at}
		h.SetMode(f.mode)
		into, err := w.CreateHeader(h)
		if err != nil {
			return nil, err
		}
		if _, err := into.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// writeTree puts files into a folder.
func writeTree(dir string, files []file, at time.Time) error {
	for _, f := range files {
		path := filepath.Join(dir, filepath.FromSlash(f.name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.data, f.mode); err != nil {
			return err
		}
		if err := os.Chtimes(path, at, at); err != nil {
			return err
		}
	}
	return nil
}
