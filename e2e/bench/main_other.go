//go:build !linux

// Command bench measures vmnetd beside other networks, on Linux only: it needs network namespaces.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: Linux only: it needs network namespaces and TAPs")
	os.Exit(2)
}
