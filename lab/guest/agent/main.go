// Command agent is the guest agent alone: what package guest builds where no vmnetd can be it.
package main

import (
	"os"

	"github.com/vmnetd/vmnetd/lab/guest"
)

func main() { os.Exit(guest.AgentMain(os.Args[1:])) }
