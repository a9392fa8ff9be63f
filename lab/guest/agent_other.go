//go:build !linux

package guest

import (
	"fmt"
	"os"
	"os/exec"
	"time"
)

const outputDelay = 200 * time.Millisecond

// AgentMain refuses: the small guest is Linux.
func AgentMain([]string) int {
	fmt.Fprintf(os.Stderr, "%s: runs in Linux guests only\n", AgentName)
	return 1
}

func ownSession(*exec.Cmd) {}

func exitOf(s *os.ProcessState) (code, signal int) {
	if s == nil {
		return -1, 0
	}
	return s.ExitCode(), 0
}
