package main

import "errors"

// A file cannot be replaced there while it is open, and its lock is another thing.
var errNoPIDFile = errors.New("not on Windows, where a file that is open cannot be replaced")

type pidFile struct{ path string }

func (*pidFile) remove() {}

func checkPIDFile(string) error             { return usageError{errNoPIDFile} }
func writePIDFile(string) (*pidFile, error) { return nil, errNoPIDFile }
func keepFromChildren(int)                  {}
