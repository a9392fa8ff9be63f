package control

import (
	"fmt"
	"os"
)

// peer is the process at the other end of a connection.
type peer struct {
	known    bool // whether this system tells
	uid, pid int
}

type peerKey struct{}

func (p peer) ours() bool { return !p.known || p.uid == 0 || p.uid == os.Geteuid() }

func (p peer) String() string {
	if !p.known {
		return "unknown"
	}
	return fmt.Sprintf("uid %d pid %d", p.uid, p.pid)
}
