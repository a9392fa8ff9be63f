package lab

import "os"

// Pipes of Windows wait as they should.
func pipeToChild() (theirs, ours *os.File, err error)   { return os.Pipe() }
func pipeFromChild() (ours, theirs *os.File, err error) { return os.Pipe() }
