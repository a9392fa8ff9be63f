package main

// Commands that go to one node of a lab.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/lab/topology"
)

// labNodeOf is a node of the lab that is meant.
func labNodeOf(ctx context.Context, f *labFlag, name string) (labDir, topology.NodeStatus, error) {
	d, err := f.running()
	if err != nil {
		return d, topology.NodeStatus{}, err
	}
	client := d.client()
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	st, err := client.Lab(ctx)
	if err != nil {
		return d, topology.NodeStatus{}, fmt.Errorf("lab %s: %w", d.name, err)
	}
	var names []string
	for _, n := range st.Nodes {
		if n.Name == name {
			return d, n, nil
		}
		names = append(names, n.Name)
	}
	if len(names) == 0 {
		return d, topology.NodeStatus{}, fmt.Errorf("lab %s has no nodes", d.name)
	}
	return d, topology.NodeStatus{}, usagef("lab %s has no node %q: %s", d.name, name, didYouMean(name, names))
}

func labExecCommand() *cobra.Command {
	var lf labFlag
	var stdin bool
	c := &cobra.Command{
		Use:   "exec NODE [--] COMMAND [ARGUMENT]...",
		Short: "Run a command in a node",
		Long: `Run a command in a node, and end as it ends. In a node of kind netns it is a process of this machine's, with this terminal,
this folder and these files, and the node's network, host name and mounts. In a virtual machine its agent runs it, and what
it writes comes when it has ended; a file as standard input is sent along, and with --stdin whatever else.

Exit status: the command's, or 128 and the signal that ended it; 126 if it cannot be executed, 127 if it is not found.`,
		Example: `  vmnetd lab exec web1 -- ip addr
  vmnetd lab exec web1 bash`,
		Args: args(func(_ *cobra.Command, a []string) error {
			switch {
			case len(a) == 0:
				return errors.New("exec: in which node, and what?")
			case len(a) == 1 || len(a) == 2 && a[1] == "--":
				return fmt.Errorf("exec: which command? as in: vmnetd lab exec %s -- ip addr", a[0])
			}
			return nil
		}),
		RunE: func(c *cobra.Command, a []string) error {
			d, n, err := labNodeOf(c.Context(), &lf, a[0])
			if err != nil {
				return err
			}
			argv := a[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			if n.Kind == topology.KindNetns {
				return execSpace(d, n.Name, argv)
			}
			return execAgent(d, n, argv, stdin)
		},
	}
	lf.add(c)
	c.Flags().BoolVar(&stdin, "stdin", false, "send standard input to a virtual machine's command, too: all of it, before it starts")
	c.Flags().SetInterspersed(false) // flags behind the node's name are the command's
	c.ValidArgsFunction = completeNodes
	return c
}

// maxAgentInput is what may be sent to a command that an agent runs.
const maxAgentInput = 1 << 20

// execAgent has a virtual machine's agent run a command.
func execAgent(d labDir, n topology.NodeStatus, argv []string, all bool) error {
	cmd := control.LabCommand{Args: argv}
	if fi, err := os.Stdin.Stat(); err == nil && (all || fi.Mode().IsRegular()) {
		b, err := io.ReadAll(io.LimitReader(os.Stdin, maxAgentInput+1))
		if err != nil {
			return err
		}
		if len(b) > maxAgentInput {
			return fmt.Errorf("standard input has more than %d bytes: an agent takes them all at once", maxAgentInput)
		}
		cmd.Stdin = b
	}
	ctx, stop := signal.NotifyContext(context.Background(), endSignals...)
	defer stop()
	client := d.client()
	defer client.Close()
	r, err := client.ExecLab(ctx, n.Name, cmd)
	if ctx.Err() != nil {
		return exitError(130)
	}
	var p *control.Problem
	if errors.As(err, &p) {
		// Of what cannot be started, agents say no more than their system's words.
		switch detail := strings.ToLower(p.Detail); {
		case p.Hint != "":
		case strings.Contains(detail, "executable file not found"), strings.Contains(detail, "no such file"):
			return fmt.Errorf("%s in node %s: %w", argv[0], n.Name, exec.ErrNotFound)
		case strings.Contains(detail, "permission denied"), strings.Contains(detail, "exec format error"):
			return cannotExec{errors.New(p.Detail)}
		}
		if p.Hint == "" {
			return errors.New(p.Detail)
		}
		return hintError{errors.New(p.Detail), p.Hint}
	}
	if err != nil {
		return err
	}
	os.Stdout.Write(r.Stdout)
	os.Stderr.Write(r.Stderr)
	if r.Cut {
		fmt.Fprintf(os.Stderr, "vmnetd: it has written more than %d bytes: the rest is lost\n", control.MaxLabOutput)
	}
	if r.Exit != 0 {
		return exitError(r.Exit)
	}
	return nil
}

// unlessClosed is an error of copying to standard output, but that nobody reads on: head(1) has had enough.
func unlessClosed(err error) error {
	if errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

func labActCommand(what control.NodeAction, short string) *cobra.Command {
	var lf labFlag
	c := &cobra.Command{
		Use: string(what) + " NODE...", Short: short, Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), endSignals...)
			defer stop()
			var d labDir
			for _, name := range a { // all of them are there before anything is done to one
				var err error
				if d, _, err = labNodeOf(ctx, &lf, name); err != nil {
					return err
				}
			}
			client := d.client()
			defer client.Close()
			return each(a, func(name string) error { return client.Act(ctx, name, what) })
		},
	}
	lf.add(c)
	c.ValidArgsFunction = completeNodes
	return c
}

// consoleEscape leaves a console: ^], as in telnet.
const consoleEscape = 0x1d

func labConsoleCommand() *cobra.Command {
	var lf labFlag
	var dump bool
	c := &cobra.Command{
		Use:   "console NODE",
		Short: "Be at a node's serial line; ^] leaves it",
		Long: `Be at a node's serial line: what it says, beginning with the last of what it has said, and what is typed. ^] leaves it, and
the node goes on. Any number may watch. Without a terminal it copies both ways, until it is interrupted; with --dump it
prints what is kept, some megabyte, and ends.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), endSignals...)
			defer stop()
			d, n, err := labNodeOf(ctx, &lf, a[0])
			if err != nil {
				return err
			}
			const tail = 16 << 10 // a few screens
			req := doorRequest{Op: "console", Node: n.Name, Tail: tail}
			if dump {
				req.Op = "said"
			}
			calling, cancel := context.WithTimeout(ctx, doorPatience)
			conn, _, _, err := callDoor(calling, d, req)
			cancel()
			if err != nil {
				return err
			}
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if dump {
				_, err := io.Copy(os.Stdout, conn)
				return unlessClosed(err)
			}
			typed := term.IsTerminal(os.Stdin.Fd())
			if typed {
				fmt.Fprintf(os.Stderr, "lab %s, node %s: ^] leaves its console\n", d.name, n.Name)
				old, err := term.MakeRaw(os.Stdin.Fd())
				if err != nil {
					return err
				}
				defer func() {
					term.Restore(os.Stdin.Fd(), old)
					fmt.Fprintln(os.Stderr)
				}()
			}
			left := make(chan struct{})
			go func() { // it ends with the program: a terminal cannot be asked to give up a read
				if typeAt(conn, os.Stdin, typed) {
					close(left)
					conn.Close()
				}
			}()
			_, err = io.Copy(os.Stdout, conn)
			select {
			case <-left:
				return nil
			default:
			}
			if ctx.Err() != nil {
				return exitError(130)
			}
			if err == nil {
				fmt.Fprintf(os.Stderr, "\r\nthe console has ended: the node is gone\r\n")
			}
			return unlessClosed(err)
		},
	}
	lf.add(c)
	c.Flags().BoolVar(&dump, "dump", false, "print what it has said, as far as it is kept, and end")
	c.ValidArgsFunction = completeNodes
	return c
}

// typeAt carries what is typed, until the escape, and says whether that came.
func typeAt(to io.Writer, from io.Reader, escape bool) bool {
	buf := make([]byte, 4<<10)
	for {
		n, err := from.Read(buf)
		i := -1
		if escape {
			i = bytes.IndexByte(buf[:n], consoleEscape)
		}
		if i >= 0 {
			n = i
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return false
			}
		}
		if i >= 0 {
			return true
		}
		if err != nil {
			return escape // the terminal has gone
		}
	}
}

func labSSHCommand() *cobra.Command {
	var lf labFlag
	c := &cobra.Command{
		Use:   "ssh NODE [ARGUMENT]...",
		Short: "Log in to a node's ssh server",
		Long: `Log in to a node's ssh server with the system's ssh, through the lab: no port of this machine is opened, and the node need
have no address that is reachable from it. Arguments are ssh's. The user is the file's; the keys of hosts are kept with the
lab and asked about by nobody: the way to the node is inside this machine.`,
		Example: `  vmnetd lab ssh web1
  vmnetd lab ssh web1 -L 8080:localhost:80
  vmnetd lab ssh --lab shop web1 -- uname -a`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			d, n, err := labNodeOf(c.Context(), &lf, a[0])
			if err != nil {
				return err
			}
			user := ""
			if r, err := d.record(); err == nil {
				user = userOf(r.File, n.Name)
			}
			return execSSH(sshArgs(d, n, user, a[1:]))
		},
	}
	lf.add(c)
	c.Flags().SetInterspersed(false)
	c.ValidArgsFunction = completeNodes
	return c
}

// userOf is who the file says is to log in at a node.
func userOf(file, node string) string {
	t, err := topology.Read(file, nil)
	if err != nil { // it wants variables, or is being edited
		return ""
	}
	for _, n := range t.Nodes {
		if n.Name == node {
			return n.User
		}
	}
	return ""
}

// sshArgs are ssh's. A node's keys are known by its name and when it was started: what has no disk makes new ones each time.
func sshArgs(d labDir, n topology.NodeStatus, user string, more []string) []string {
	proxy := func(s string) string { return strings.ReplaceAll(shellQuote(s), "%", "%%") } // a shell reads it, after ssh
	argv := []string{"ssh",
		"-o", "ProxyCommand=" + proxy(programPath()) + " lab dial --lab " + d.name + " " + n.Name + " 22",
		"-o", "UserKnownHostsFile=" + strings.ReplaceAll(sshQuote(d.file(labHosts)), "%", "%%"),
		"-o", "GlobalKnownHostsFile=/dev/null",
		"-o", "StrictHostKeyChecking=accept-new",
		"-o", "HostKeyAlias=" + n.Name + "." + strconv.FormatInt(n.Started.UnixNano(), 36),
		"-o", "CheckHostIP=no",
		"-o", "LogLevel=ERROR", // or it tells of each key that it takes
	}
	if user != "" && !slices.Contains(more, "-l") {
		argv = append(argv, "-o", "User="+user)
	}
	return append(append(argv, n.Name), more...)
}

// sshQuote is a file's name as ssh_config(5) reads it.
func sshQuote(s string) string {
	if strings.ContainsAny(s, ` "'\`) {
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	return s
}

// programPath is this program's file, for others to start.
func programPath() string {
	if p, err := os.Executable(); err == nil {
		return p
	}
	return os.Args[0]
}

func labDialCommand() *cobra.Command {
	var lf labFlag
	c := &cobra.Command{
		Use: "dial NODE PORT", Short: "Connect standard input and output with a port of a node", Hidden: true, Args: args(cobra.ExactArgs(2)),
		RunE: func(_ *cobra.Command, a []string) error {
			d, err := lf.running()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(context.Background(), doorPatience+time.Second)
			conn, _, _, err := callDoor(ctx, d, doorRequest{Op: "dial", Node: a[0], Network: "tcp", Port: a[1]})
			cancel()
			if err != nil {
				return err
			}
			defer conn.Close()
			go func() {
				io.Copy(conn, os.Stdin)
				conn.CloseWrite()
			}()
			_, err = io.Copy(os.Stdout, conn)
			return err
		},
	}
	lf.add(c)
	c.ValidArgsFunction = completeNodes
	return c
}

// completeNodes gives nodes of the lab that is meant.
func completeNodes(c *cobra.Command, have []string, start string) (out []string, _ cobra.ShellCompDirective) {
	if len(have) > 0 && !slices.Contains([]string{"start", "stop", "restart"}, c.Name()) {
		if c.Name() == "exec" {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var lf labFlag
	if f := c.Flags().Lookup("lab"); f != nil {
		lf.name = f.Value.String()
	}
	d, err := lf.running()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), completeTime)
	defer cancel()
	client := d.client()
	defer client.Close()
	st, err := client.Lab(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, n := range st.Nodes {
		if strings.HasPrefix(n.Name, start) && !slices.Contains(have, n.Name) {
			out = append(out, word(n.Name, string(n.Kind)+" "+string(n.State))...)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
