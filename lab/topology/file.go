package topology

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/vmnetd/vmnetd/config"
	"github.com/vmnetd/vmnetd/impair"
)

// maxText bounds a file that a lab's file names for its text: cloud-init's data, rules. EC2 takes 16 KiB of user-data; this
// is for those who put files into theirs.
const maxText = 1 << 20

// Read reads a lab's file. Names of files in it are relative to its folder, must be there, and are whole paths in the Lab.
// set are values of variables that stand above the file's own. Faults are told with their places, as config.Error.
func Read(path string, set map[string]string) (*Lab, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, config.MaxSize+1))
	if err != nil {
		return nil, err
	}
	whole, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	return parse(path, text, set, &folder{filepath.Dir(whole)})
}

// Parse reads a lab from text. name is for errors, and the lab's name is made from it if the text has none, as from a file's.
// It opens no file: names of files stay as they are, and texts that are in files of their own are faults.
func Parse(name string, text []byte, set map[string]string) (*Lab, error) {
	return parse(name, text, set, nil)
}

func parse(name string, text []byte, set map[string]string, files *folder) (*Lab, error) {
	src, root, err := config.Open(name, text, "put long texts in files of their own, user-data-file or policy's file")
	if err != nil {
		return nil, quoteHint(err)
	}
	r := &reader{src: src, vars: scope{}, files: files}
	l := r.lab(root, name, set)
	if err := src.Err(); err != nil {
		return nil, config.Sorted(err)
	}
	return l, nil
}

// quoteHint tells those who wrote [${x}] why that is no list: a brace ends a plain value in brackets.
func quoteHint(err error) error {
	var e *config.Error
	if errors.As(err, &e) && strings.Contains(e.Text, "${") && unquoted.MatchString(e.Text) {
		e.What += ` (in [ ] and { } a value with ${ } stands in quotes: ["${x}"])`
	}
	return err
}

var unquoted = regexp.MustCompile(`[\[{,][^"']*\$\{`)

// folder is where names are relative to.
type folder struct{ path string }

func (f *folder) whole(name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(f.path, name)
}

// Sorts of files.
const (
	regular = "file"
	program = "program" // looked for as a shell does if it has no slash
	dir     = "folder"
	image   = "image" // or a block device
)

// find checks that a file is there, and returns its whole path.
func (f *folder) find(name, sort string) (string, error) {
	if sort == program && !strings.ContainsAny(name, `/\`) {
		return name, nil // where it runs it is looked for; it may be another machine
	}
	path := f.whole(name)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("there is no %s: names are relative to the file's folder", path)
	case err != nil:
		return "", err
	case sort == dir:
		if !info.IsDir() {
			return "", fmt.Errorf("%s is no folder", path)
		}
		return path, nil
	case info.IsDir():
		return "", fmt.Errorf("%s is a folder: want a file", path)
	case sort == program && runtime.GOOS != "windows" && info.Mode()&0o111 == 0:
		return "", fmt.Errorf("%s is no program: it wants chmod +x", path)
	case info.Mode().IsRegular(), sort == image && info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0:
		return path, nil
	}
	return "", fmt.Errorf("%s is no plain file", path)
}

// read returns a file's text.
func (f *folder) read(name string) (string, error) {
	path, err := f.find(name, regular)
	if err != nil {
		return "", err
	}
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxText+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxText {
		return "", fmt.Errorf("%s has more than %d MiB", path, maxText>>20)
	}
	return string(b), nil
}

// traces are impair's files.
func (f *folder) traces(name string) (*impair.Trace, error) {
	if f == nil {
		return nil, errors.New("a trace is a file, and none is opened here")
	}
	path, err := f.find(name, regular)
	if err != nil {
		return nil, err
	}
	return impair.OpenTrace(path)
}
