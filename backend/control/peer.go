package control

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// peer is who is at the other end of a connection.
type peer struct {
	known    bool // whether this system tells
	uid, pid int
	tcp      string // the address, of one that came over TCP
	token    string // the name of the token that it had there
}

type peerKey struct{}

func (p peer) ours() bool { return p.tcp == "" && (!p.known || p.uid == 0 || p.uid == os.Geteuid()) }

// String is for the log.
func (p peer) String() string {
	switch {
	case p.tcp != "":
		return p.tcp + " token " + p.token
	case !p.known:
		return "unknown"
	}
	s := fmt.Sprintf("uid %d pid %d", p.uid, p.pid)
	if name := p.command(); name != "" {
		s += " (" + name + ")"
	}
	return s
}

// command is the name of the peer's program now. In the daemon's cage other processes are not to be seen: what the
// client calls itself is in the log besides.
func (p peer) command() string {
	if p.pid <= 0 {
		return ""
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(short(string(b)))
}
