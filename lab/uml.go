//go:build linux

package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vmnetd/vmnetd/lab/guest"
	"github.com/vmnetd/vmnetd/vfkit"
)

// umlProgram is Debian's name of it (package user-mode-linux).
const umlProgram = "linux.uml"

// uml is a node whose kernel is a process: User Mode Linux. Its cards dial sockets in the node's folder, where each is
// accepted once; its serial lines are open descriptors.
type uml struct{ spawned }

// newUML is a node whose kernel is a process: User Mode Linux.
func newUML(b *bench) (machine, error) {
	return &uml{newSpawned(b, "a User Mode Linux with its own initrd or disk has no agent: use its console, or 'lab ssh'")}, nil
}

// umlDepth is how many frames a card has on its way each way: a socket's buffer holds no more of them (net.core.wmem_default).
const umlDepth = 128

func (u *uml) start(ctx context.Context) error {
	n := u.b.node
	name := n.UML
	if name == "" {
		name = umlProgram
	}
	program, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("no User Mode Linux: %w (on Debian: apt-get install user-mode-linux)", err)
	}
	memory := n.Memory
	if memory == 0 {
		memory = smallMemory
	}
	// No user's settings: what it keeps in files of its own is in the node's folder.
	args := []string{fmt.Sprintf("mem=%dM", memory), "uml_dir=" + u.b.dir, "umid=uml", "con=null", "con0=fd:3,fd:3", "ssl=null", "panic=-1"}
	var files []*os.File
	var conns []net.Conn
	var listeners []*net.UnixListener
	failed := func(err error) error {
		for _, f := range files {
			f.Close()
		}
		for _, c := range conns {
			c.Close()
		}
		for _, l := range listeners {
			l.Close()
		}
		return err
	}
	inherit := func(what string) (net.Conn, error) {
		c, f, err := socketPair(syscall.SOCK_STREAM, what)
		if err != nil {
			return nil, err
		}
		files, conns = append(files, f), append(conns, c)
		return c, nil
	}
	console, err := inherit("console")
	if err != nil {
		return failed(err)
	}
	var agent net.Conn
	switch {
	case n.Initrd == "" && n.Disk == "":
		im, err := guest.MakeUML(ctx, u.logf)
		if err != nil {
			return failed(err)
		}
		initrd, err := im.For(u.b.keep, smallNode(u.b, "/dev/ttyS0"))
		if err != nil {
			return failed(fmt.Errorf("small guest: %w", err))
		}
		if agent, err = inherit("agent"); err != nil {
			return failed(err)
		}
		args = append(args, "initrd="+initrd, "quiet", "ssl0=fd:4,fd:4")
	default:
		if n.Initrd != "" {
			args = append(args, "initrd="+u.file(n.Initrd))
		}
		if n.Disk != "" {
			disk := u.file(n.Disk)
			if n.Overlay {
				// Its own copy-on-write file, which goes with the node.
				over, _, err := overlayOf(u.b.keep, disk, "", ".cow")
				if err != nil {
					return failed(fmt.Errorf("disk: %w", err))
				}
				disk = over + "," + disk
			}
			args = append(args, "ubd0="+disk)
		}
	}
	for i := range n.Interfaces {
		path := filepath.Join(u.b.dir, fmt.Sprintf("card%d.sock", i))
		ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
		if err != nil {
			return failed(err)
		}
		listeners = append(listeners, ln)
		args = append(args, fmt.Sprintf("vec%d:transport=bess,dst=%s,depth=%d,gro=1,mac=%s", i, path, umlDepth, n.Interfaces[i].MAC))
	}
	if n.Append != "" {
		args = append(args, strings.Fields(n.Append)...)
	}
	args = append(args, n.Args...)
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), u.b.env...)
	cmd.Dir = u.b.base
	started := files
	files = nil
	if u.p, err = startProcess(cmd, started); err != nil {
		return failed(fmt.Errorf("starting User Mode Linux: %w", err))
	}
	u.wg.Go(func() { _ = u.b.console.Carry(console) })
	if agent != nil {
		u.agent = newQGA(agent)
	}
	for i, ln := range listeners {
		u.wg.Go(func() {
			// Again when the guest has brought its card down and up.
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				u.b.plug(i, vfkit.NewLink(c, vfkit.Options{}))
			}
		})
	}
	u.wg.Go(func() {
		<-u.p.ended
		u.p.rest()
		u.exit, u.err = u.p.exit()
		for _, ln := range listeners {
			ln.Close()
		}
		if u.agent != nil {
			u.agent.Close()
		}
		console.Close()
		close(u.over)
	})
	return nil
}

func (u *uml) begin(ctx context.Context) error {
	if u.agent == nil || len(u.b.node.Command) == 0 {
		return nil
	}
	return beginByAgent(ctx, u.b, u.agent)
}

// stop kills it: its kernel does not ask its processes when it is told to end.
func (u *uml) stop(ctx context.Context) error {
	if u.p == nil {
		return nil
	}
	u.p.signal(syscall.SIGKILL)
	return u.end(ctx)
}
