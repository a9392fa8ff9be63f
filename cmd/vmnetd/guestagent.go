package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/lab/guest"
)

// guestAgentCommand is the small guest's agent under a name that can be typed. In the guest itself this program goes by
// another, which package guest looks for before there are commands.
func guestAgentCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "agent [-port DEVICE]",
		Short:              "Inside a guest: answer as QEMU's guest agent does",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if code := guest.AgentMain(args); code != 0 {
				os.Exit(code)
			}
			return nil
		},
	}
}
