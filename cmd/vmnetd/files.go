package main

// Files that are read when a configuration is, again and again: the daemon's own and the policies that it names.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/vmnetd/vmnetd/config"
	"github.com/vmnetd/vmnetd/impair"
)

// fileReader reads files of no more than so many bytes. nil reads them as they are.
type fileReader func(path string, most int) ([]byte, error)

func (r fileReader) read(path string, most int) ([]byte, error) {
	if r == nil {
		return readBounded(path, most, false)
	}
	return r(path, most)
}

// trace is impair.Files.
func (r fileReader) trace(name string) (*impair.Trace, error) {
	b, err := r.read(name, maxTraceFile)
	if err != nil {
		return nil, err
	}
	return impair.ReadTrace(name, bytes.NewReader(b))
}

// maxTraceFile: an hour of a line, a number for each packet, has some megabytes.
const maxTraceFile = 16 << 20

// tracesOf are the files that an --impair names.
func tracesOf(spec string, read fileReader) (names []string) {
	if _, text, own := strings.Cut(spec, "@"); own {
		spec = text
	}
	impair.ParseSettings(spec, func(name string) (*impair.Trace, error) { // what is wrong is said when it is used
		names = append(names, name)
		return read.trace(name)
	})
	return names
}

var errNotRegular = errors.New("not a regular file")

// readBounded reads a file. regular keeps from what is none: a FIFO without a writer would hold up whoever reads it.
func readBounded(path string, most int, regular bool) ([]byte, error) {
	open := os.Open
	if regular {
		open = openWithoutWaiting
	}
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if regular {
		if fi, err := f.Stat(); err != nil {
			return nil, err
		} else if !fi.Mode().IsRegular() {
			return nil, &fs.PathError{Op: "read", Path: path, Err: errNotRegular}
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(b) > most {
		err = &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("more than %d bytes", most)}
	}
	return b, err
}

// fileSet is what a configuration is made of, as it was read at one time.
type fileSet struct {
	Config string              `json:"config"`
	Files  map[string]readFile `json:"files"`
}

// readFile is a file's text or why there is none.
type readFile struct {
	Text  []byte `json:"text,omitempty"`
	Error string `json:"error,omitempty"`
}

// readSet reads a configuration file, those that it names, and others.
func readSet(path string, others []string) fileSet {
	s := fileSet{Config: path, Files: map[string]readFile{}}
	add := func(path string, most int) []byte {
		if f, ok := s.Files[path]; ok {
			return f.Text
		}
		b, err := readBounded(path, most, true)
		f := readFile{Text: b}
		if err != nil {
			f = readFile{Error: err.Error()}
			var p *fs.PathError
			if errors.As(err, &p) {
				f.Error = p.Err.Error() // who asks says which it is
			}
		}
		s.Files[path] = f
		return f.Text
	}
	text := add(path, config.MaxSize)
	const maxFiles = 64 // policies: more than networks have; each is some megabytes at the worst
	if f, err := config.Parse(path, text); err == nil {
		for _, one := range f.Settings() {
			if one.Flag == "impair" {
				tracesOf(one.Value, func(name string, most int) ([]byte, error) {
					if len(s.Files) < maxFiles {
						add(name, most)
					}
					return s.read(name, most)
				})
			}
			if one.Flag == "policy-file" && len(s.Files) < maxFiles {
				add(one.Value, maxPolicyFile)
			}
		}
	}
	for _, o := range others {
		if len(s.Files) < maxFiles {
			add(o, maxPolicyFile)
		}
	}
	return s
}

// read is a fileReader.
func (s fileSet) read(path string, most int) ([]byte, error) {
	f, ok := s.Files[path]
	switch {
	case !ok:
		return nil, errors.New("it was not read: there are too many files")
	case f.Error != "":
		return nil, errors.New(f.Error)
	case len(f.Text) > most:
		return nil, fmt.Errorf("more than %d bytes", most)
	}
	return f.Text, nil
}
