package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// systemdAnalyze is systemd's own checker.
func systemdAnalyze(t *testing.T, args ...string) (string, error) {
	t.Helper()
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	cmd := exec.Command(tool, args...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir(), "SYSTEMD_COLORS=0", "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// The units that we hand out are right in systemd's eyes, and the system's is as closed as it was.
func TestUnits(t *testing.T) {
	bin, err := exec.LookPath("vmnetd")
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{"system", "user"} {
		t.Run(who, func(t *testing.T) {
			list, err := filepath.Glob("../../contrib/systemd/" + who + "/*")
			if err != nil || len(list) != 3 {
				t.Fatal(list, err)
			}
			dir := t.TempDir()
			args := []string{"--" + who, "--man=no", "verify"}
			for _, path := range list {
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				to := filepath.Join(dir, filepath.Base(path))
				// The program is not installed where it will be.
				if err := os.WriteFile(to, []byte(strings.ReplaceAll(string(b), "/usr/bin/vmnetd", bin)), 0o644); err != nil {
					t.Fatal(err)
				}
				args = append(args, to)
			}
			if out, err := systemdAnalyze(t, args...); err != nil || strings.Contains(out, dir) {
				t.Errorf("systemd-analyze verify: %v\n%s", err, out)
			}
			if who == "user" {
				return // its files are the user's
			}
			// 2.1 by systemd 252; later ones know more that could be closed. 10 is wide open.
			if out, err := systemdAnalyze(t, "security", "--offline=yes", "--no-pager", "--threshold=26", filepath.Join(dir, "vmnetd.service")); err != nil {
				t.Errorf("systemd-analyze security: %v\n%s", err, out)
			}
		})
	}
}

// The configuration that packages bring is right, and is what the daemon does without one, but for what it says.
func TestPackageConfig(t *testing.T) {
	const path = "../../contrib/package/vmnetd.yaml"
	if out, err := exec.Command("vmnetd", "config", "check", path).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// What is commented out has to be right, too: somebody will take the marks away.
	var all strings.Builder
	for line := range strings.Lines(string(b)) {
		rest, marked := strings.CutPrefix(strings.TrimLeft(line, " "), "# ")
		if marked && (strings.Contains(rest, ": ") || strings.HasSuffix(rest, ":\n") || strings.HasPrefix(strings.TrimLeft(rest, " "), "- ")) && !strings.Contains(rest, "at ports") {
			line = line[:strings.Index(line, "#")] + rest
		}
		all.WriteString(line)
	}
	full := filepath.Join(t.TempDir(), "vmnetd.yaml")
	if err := os.WriteFile(full, []byte(all.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("vmnetd", "config", "check", full).CombinedOutput(); err != nil {
		t.Errorf("%v: %s\n%s", err, out, all.String())
	}
	if text := all.String(); !strings.Contains(text, "\n    policy:\n") || !strings.Contains(text, "\ndoors:\n") {
		t.Errorf("not all marks were found:\n%s", text)
	}
}

// Scripts of packages are read by any sh.
func TestPackageScripts(t *testing.T) {
	list, err := filepath.Glob("../../contrib/package/*/*")
	if err != nil || len(list) != 6 {
		t.Fatal(list, err)
	}
	for _, path := range append(list, "../../contrib/package/build.sh") {
		if out, err := exec.Command("sh", "-n", path).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", path, err, out)
		}
	}
}
