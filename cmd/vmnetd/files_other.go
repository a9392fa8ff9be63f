//go:build !linux

package main

import "os"

// No cage is there in which a daemon could not read its files itself.

// openWithoutWaiting refuses by its name what could hold us up: there is no other way on Windows.
func openWithoutWaiting(path string) (*os.File, error) {
	if fi, err := os.Stat(path); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, &os.PathError{Op: "read", Path: path, Err: errNotRegular}
	}
	return os.Open(path)
}

type librarian struct{}

func startLibrarian(string, []string) (*librarian, error) { return nil, nil }
func (*librarian) read() (fileSet, error)                 { return fileSet{}, nil }
func (*librarian) close()                                 {}
