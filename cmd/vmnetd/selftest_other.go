//go:build !linux

package main

import "github.com/spf13/cobra"

func selfTestCommand() *cobra.Command {
	g := group("self-test", "Try this program on this machine", "Try this program on this machine; there is nothing to try here.")
	g.Hidden = true
	return g
}
