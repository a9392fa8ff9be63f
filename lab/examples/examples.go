// Package examples is the labs that 'vmnetd lab init' writes to start from. They are run in CI as they stand, without
// the Internet: by e2e/vmlab_test.go.
package examples

import "embed"

// Files are they, each one file with the lab's name.
//
//go:embed *.yaml
var Files embed.FS
