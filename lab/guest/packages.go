package guest

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// Cache is the folder of what is fetched and made, for this user: $VMNETD_CACHE, or vmnetd in the user's own.
func Cache() (string, error) {
	dir := os.Getenv("VMNETD_CACHE")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil { // no HOME
			base = filepath.Join(os.TempDir(), fmt.Sprintf("vmnetd-%d", os.Getuid()))
			// Programs come from here, and in a folder that all write to anybody may have made it first.
			if err := private(base); err != nil {
				return "", fmt.Errorf("a cache without a home: %w: set $VMNETD_CACHE", err)
			}
		}
		dir = filepath.Join(base, "vmnetd")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// Unpacked returns the folder of an unpacked Debian package whose name matches the pattern, from
// the cache, or from the mirror that apt knows when the cache has none. Nothing is installed, and
// no rights are needed. name resolves the package's name and is asked only when it must be fetched.
func Unpacked(ctx context.Context, cache, pattern string, name func(Apt) (string, error), logf func(string, ...any)) (string, error) {
	have, err := glob(filepath.Join(cache, "packages"), pattern)
	if err != nil {
		return "", err
	}
	if len(have) > 0 {
		slices.Sort(have)
		return have[len(have)-1], nil
	}
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", fmt.Errorf("guests are made from Debian's packages, and %s is not here (this is %s)", tool, runtime.GOOS)
		}
	}
	tmp, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)

	// The machine's own lists first; they may be missing (a container) or too old for the mirror.
	a := Apt{ctx: ctx, dir: tmp}
	deb, err := a.download(name, logf)
	if err != nil {
		logf("reading the mirror's package lists")
		a.lists = filepath.Join(cache, "apt")
		if again := a.update(); again != nil {
			return "", fmt.Errorf("%w; then %w", err, again)
		}
		if deb, err = a.download(name, logf); err != nil {
			return "", err
		}
	}
	root := filepath.Join(tmp, "root")
	if _, err := run(ctx, tmp, "dpkg-deb", "-x", deb, root); err != nil {
		return "", err
	}
	// An _ ends the name in a package file's name: NAME_VERSION_ARCH.deb.
	final := filepath.Join(cache, "packages", strings.TrimSuffix(filepath.Base(deb), ".deb"))
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(root, final); err != nil {
		return "", err
	}
	return final, nil
}

// Apt asks Debian's package tools, with the machine's own package lists or, where lists is set,
// with lists in a folder of ours.
type Apt struct {
	ctx   context.Context
	dir   string // downloads go here
	lists string
}

func (a Apt) options() []string {
	// A download as root into a folder of root's is right here; apt would warn about its sandbox.
	o := []string{"-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2"}
	if a.lists != "" {
		o = append(o, "-o", "Dir::State::Lists="+filepath.Join(a.lists, "lists"), "-o", "Dir::Cache="+filepath.Join(a.lists, "cache"))
	}
	return o
}

func (a Apt) update() error {
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.lists, d), 0o755); err != nil {
			return err
		}
	}
	_, err := run(a.ctx, a.dir, "apt-get", append(a.options(), "update", "-q")...)
	return err
}

func (a Apt) download(name func(Apt) (string, error), logf func(string, ...any)) (string, error) {
	pkg, err := name(a)
	if err != nil {
		return "", err
	}
	logf("fetching the Debian package %s", pkg)
	if _, err := run(a.ctx, a.dir, "apt-get", append(a.options(), "download", "-q", pkg)...); err != nil {
		return "", err
	}
	debs, err := glob(a.dir, "*.deb")
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("apt-get download %s left %d files, want 1", pkg, len(debs))
	}
	return debs[0], nil
}

var dependsOnImage = regexp.MustCompile(`(?m)^\s*Depends: (linux-image-\S+)$`)

// Newest follows a package that always names the newest kernel, as linux-image-cloud-amd64, to the one that holds it.
func Newest(meta string) func(Apt) (string, error) {
	return func(a Apt) (string, error) {
		out, err := run(a.ctx, a.dir, "apt-cache", append(a.options(), "depends", meta)...)
		if err != nil {
			return "", err
		}
		m := dependsOnImage.FindSubmatch(out)
		if m == nil {
			return "", fmt.Errorf("apt knows no package %s: guests are made from Debian's kernels", meta)
		}
		return string(m[1]), nil
	}
}

// Named is for a package whose name is known.
func Named(name string) func(Apt) (string, error) {
	return func(Apt) (string, error) { return name, nil }
}

// run runs a command in dir; its error has the end of what the command complained about.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	// apt's messages are read by Newest.
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		said := strings.TrimSpace(stderr.String())
		if len(said) > 500 {
			said = "… " + said[len(said)-500:]
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return out, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, said)
	}
	return out, nil
}

// OneOf returns the first file that matches one of the patterns under root.
func OneOf(root string, patterns ...string) (string, error) {
	for _, p := range patterns {
		m, err := glob(root, p)
		if err != nil {
			return "", err
		}
		if len(m) > 0 {
			return m[0], nil
		}
	}
	return "", fmt.Errorf("no %s in %s", strings.Join(patterns, " or "), root)
}

// glob are files under a folder whose own name is not a pattern.
func glob(root, pattern string) ([]string, error) {
	m, err := fs.Glob(os.DirFS(root), pattern)
	for i := range m {
		m[i] = filepath.Join(root, m[i])
	}
	return m, err
}
