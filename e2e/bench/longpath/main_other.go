//go:build !linux

// Longpath measures TCP over a long path, on Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "longpath: needs Linux: its worlds are made of network namespaces and TAPs")
	os.Exit(1)
}
