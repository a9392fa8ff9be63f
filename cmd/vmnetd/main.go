// Vmnetd gives virtual machines a network without root: DHCP, DNS, a way out, and port forwards in.
//
//	vmnetd run -p 2222:22 -- qemu-system-x86_64 -m 1G disk.img     a network for one command
//	vmnetd serve                                                    a daemon; it prints the lines for QEMU
//	vmnetd vm ls                                                    who is plugged in
//
// The commands that look and change speak to a daemon's control socket and to nothing else; what they can do, any
// program can (package backend/control). What is here is flags, files and signals: serve.go and run.go are the two
// daemons, door.go is where guests plug in (stream.go, datagram.go, netns.go how), inspect.go is the rest.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// version is set by the linker for releases.
var version = ""

func versionString() string {
	if version != "" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" && bi.Main.Version != "(devel)" {
		return bi.Main.Version
	}
	return "devel"
}

// Exit codes. run has its command's instead, or the shell's for one that cannot be started.
const (
	exitFailure    = 1
	exitUsage      = 2
	exitCannotExec = 126 // found, but it cannot be executed (POSIX sh, 2.8.2)
	exitNotFound   = 127
)

// usageError is a command line that cannot be right.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// hintError is an error and what to do about it.
type hintError struct {
	error
	hint string
}

func (e hintError) Unwrap() error { return e.error }

// exitError is a status to end with, and nothing to say.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	procs.add(0)
	os.Exit(vmnetd(os.Args[1:]))
}

// vmnetd runs a command line and returns the status to exit with.
func vmnetd(args []string) int {
	root := rootCommand()
	root.SetArgs(args)
	cmd, err := root.ExecuteC()
	if err == nil {
		return 0
	}
	var exit exitError
	if errors.As(err, &exit) {
		return int(exit)
	}
	fmt.Fprintf(os.Stderr, "vmnetd: %v\n", err)
	var hint hintError
	var usage usageError
	var noExec cannotExec
	if errors.As(err, &hint) {
		fmt.Fprintf(os.Stderr, "  %s\n", hint.hint)
	}
	switch {
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "  '%s --help' tells more\n", cmd.CommandPath())
		return exitUsage
	case errors.Is(err, exec.ErrNotFound):
		return exitNotFound
	case errors.As(err, &noExec):
		return exitCannotExec
	}
	return exitFailure
}

func rootCommand() *cobra.Command {
	root := group("vmnetd", "A network for virtual machines, without root", `A network for virtual machines, without root: DHCP, DNS, a way out, and port forwards in.

  vmnetd run -p 2222:22 -- qemu-system-x86_64 -m 1G disk.img    a network for one command
  vmnetd serve                                                  a daemon; it prints the lines for QEMU
  vmnetd vm ls                                                  who is plugged in
  vmnetd lab up lab.yaml                                        machines and networks from one file

Exit status: 0 if it was done, 1 if it failed, 2 if the command line was wrong; of 'run', the command's own.`)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(serveCommand(), runCommand(), attachCommand(), guestCommand(), doctorCommand(), selfTestCommand(), waitCommand(), topCommand(), manCommand(), versionCommand())
	root.AddCommand(inspectCommands()...)
	root.AddCommand(limitsCommand(), impairCommand(), captureCommand())
	root.AddCommand(reloadCommand())
	root.AddCommand(configCommand(), uiCommand())
	root.AddCommand(labCommand())
	for _, g := range helpGroups {
		root.AddGroup(&cobra.Group{ID: g.title, Title: g.title + ":"})
		for _, c := range root.Commands() {
			if slices.Contains(g.commands, c.Name()) {
				c.GroupID = g.title
			}
		}
	}
	root.SetCompletionCommandGroupID(setUpGroup)
	root.SetHelpCommandGroupID(setUpGroup)
	complete(root)
	return root
}

const setUpGroup = "Set up"

// helpGroups are the commands as --help shows them, by what they are for.
var helpGroups = []struct {
	title    string
	commands []string
}{
	{"Give guests a network", []string{"run", "serve", "attach", "guest"}},
	{"Machines and networks from a file", []string{"lab"}},
	{"Look", []string{"status", "vm", "leases", "flows", "events", "top", "ui", "capture", "wait"}},
	{"Change", []string{"forward", "dns", "policy", "limits", "impair", "reload"}},
	{setUpGroup, []string{"config", "doctor", "version"}},
}

// group is a command that only has commands under it.
func group(use, short, long string, sub ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return noCommand(c, args[0])
			}
			if c.HasParent() {
				return usagef("%s: which command? %s", c.CommandPath(), strings.Join(subcommands(c), ", "))
			}
			return c.Help()
		}}
	c.AddCommand(sub...)
	return c
}

// args makes a wrong number of arguments a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		err := check(c, a)
		switch {
		case err == nil:
			return nil
		case c.HasAvailableSubCommands() && len(a) > 0:
			return noCommand(c, a[0])
		}
		return usagef("%w: want %s", err, c.UseLine())
	}
}

// subcommands are those that are shown.
func subcommands(c *cobra.Command) (names []string) {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return names
}

// noCommand says which was likely meant.
func noCommand(c *cobra.Command, name string) error {
	return usagef("%s has no command %q: %s", c.CommandPath(), name, didYouMean(name, subcommands(c)))
}

// flagError says of a flag that is not there which was likely meant.
func flagError(c *cobra.Command, err error) error {
	var none *pflag.NotExistError
	if errors.As(err, &none) && len(none.GetSpecifiedName()) > 1 {
		var names []string
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
		if s := didYouMean(none.GetSpecifiedName(), names); strings.HasPrefix(s, "did you mean ") {
			return usagef("%w: %s", err, strings.Replace(s, "mean ", "mean --", 1))
		}
	}
	return usageError{err}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: args(cobra.NoArgs),
		Run: func(c *cobra.Command, _ []string) { fmt.Fprintln(c.OutOrStdout(), "vmnetd", versionString()) }}
}
