package guest

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Modules is the lib/modules/RELEASE folder of an unpacked kernel package. The package has no
// modules.dep (depmod makes it at installation), so dependencies are read from the modules.
type Modules struct {
	files   map[string]string // module name to path
	builtin map[string]bool
	unxz    []string // a command that turns xz on its input into bytes on its output
}

func OpenModules(dir string, unxz []string) (*Modules, error) {
	t := &Modules{files: map[string]string{}, builtin: map[string]bool{}, unxz: unxz}
	b, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	for _, line := range strings.Fields(string(b)) {
		t.builtin[moduleName(line)] = true
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && moduleName(path) != "" {
			t.files[moduleName(path)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	return t, nil
}

// moduleName is the name in a module's file name, "" for another file. The kernel takes - and _
// for the same.
func moduleName(path string) string {
	base := filepath.Base(path)
	for _, ext := range []string{".ko", ".ko.xz"} {
		if n, ok := strings.CutSuffix(base, ext); ok {
			return strings.ReplaceAll(n, "-", "_")
		}
	}
	return ""
}

// Module is one that has to be loaded.
type Module struct {
	Name string
	Body []byte
}

// Resolve returns the wanted modules and all they depend on, in the order to load them. What is
// built into the kernel needs no loading.
func (t *Modules) Resolve(wanted ...string) ([]Module, error) {
	var order []Module
	seen := map[string]bool{}
	var visit func(name, by string) error
	visit = func(name, by string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if seen[name] || t.builtin[name] {
			return nil
		}
		seen[name] = true
		path, ok := t.files[name]
		if !ok {
			return fmt.Errorf("kernel module %s, needed by %s, is neither in the package nor built in", name, by)
		}
		body, err := t.read(path)
		if err != nil {
			return fmt.Errorf("kernel module %s: %w", name, err)
		}
		deps, err := Dependencies(body)
		if err != nil {
			return fmt.Errorf("kernel module %s: %w", name, err)
		}
		for _, d := range deps {
			if err := visit(d, name); err != nil {
				return err
			}
		}
		order = append(order, Module{name, body})
		return nil
	}
	for _, w := range wanted {
		if err := visit(w, "the guest"); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// Known are those of names that there are, as modules or built in.
func (t *Modules) Known(names ...string) []string {
	var have []string
	for _, n := range names {
		if t.builtin[n] || t.files[n] != "" {
			have = append(have, n)
		}
	}
	return have
}

// read gives the module itself: newer Debian kernels pack theirs with xz.
func (t *Modules) read(path string) ([]byte, error) {
	if !strings.HasSuffix(path, ".xz") {
		return os.ReadFile(path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(t.unxz[0], t.unxz[1:]...)
	cmd.Stdin = f
	return cmd.Output()
}

// Dependencies reads "depends=a,b" from a module's .modinfo, a list of strings that end in NUL.
func Dependencies(body []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for _, field := range bytes.Split(info, []byte{0}) {
		if v, ok := strings.CutPrefix(string(field), "depends="); ok && v != "" {
			return strings.Split(v, ","), nil
		}
	}
	return nil, nil
}
