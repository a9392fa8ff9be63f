package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/cage"
)

// finding is what doctor says of one thing that vmnetd may want of a machine.
type finding struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Is    string `json:"is"`              // what was found
	Lacks string `json:"lacks,omitempty"` // what does not work, if it is not there
	Do    string `json:"do,omitempty"`    // what to do
}

// resolverTime is how long the host's resolvers may take: glibc asks the next one after five seconds, and people wait.
const resolverTime = 3 * time.Second

func doctorCommand() *cobra.Command {
	var format outputFormat
	var strict bool
	var need []string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what this machine lacks, and what does not work without it",
		Long: `Tell what this machine lacks for vmnetd, as the user who asks: what does not work without it, and what to do. Nothing is
changed, and no daemon is asked; 'vmnetd status' says how a daemon's own sandbox came out.

Exit status: 0, whatever is missing; 1 with --strict if anything is, with --need if that is.`,
		Example: `  vmnetd doctor
  vmnetd doctor --need 'IPv4 ping' --need resolver      # for a script: what it cannot do without
  vmnetd doctor -o json | jq '.[] | select(.ok | not)'`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			list := examine()
			missing, err := lacking(list, strict, need)
			if err != nil {
				return err
			}
			err = format.print(c.OutOrStdout(), false, list, func(w io.Writer) { writeFindings(w, list) })
			if err == nil && len(missing) > 0 {
				err = fmt.Errorf("this machine lacks %s", strings.Join(missing, ", "))
			}
			return err
		},
	}
	format.flag(c)
	c.Flags().BoolVar(&strict, "strict", false, "fail if anything is missing")
	c.Flags().StringArrayVar(&need, "need", nil, "fail if `THIS` is missing, by the name in the list; may be repeated")
	return c
}

// lacking are those that are missing and must not be.
func lacking(list []finding, strict bool, need []string) (missing []string, err error) {
	names := make([]string, len(list))
	for i, f := range list {
		names[i] = f.Name
		if !f.OK && (strict || slices.ContainsFunc(need, func(n string) bool { return strings.EqualFold(n, f.Name) })) {
			missing = append(missing, f.Name)
		}
	}
	for _, n := range need {
		if !slices.ContainsFunc(names, func(s string) bool { return strings.EqualFold(n, s) }) {
			return nil, usagef("--need %s: %s", n, didYouMean(n, names))
		}
	}
	return missing, nil
}

func writeFindings(w io.Writer, list []finding) {
	for _, f := range list {
		word := "ok"
		if !f.OK {
			word = "missing"
		}
		row(w, word, f.Name, f.Is)
		for _, more := range []string{f.Lacks, f.Do} {
			if more != "" {
				fmt.Fprintf(w, "\t\t  %s\n", visible(more))
			}
		}
	}
}

// examine looks at the machine.
func examine() []finding {
	list := examineCage()
	list = append(list, examineSystem()...)
	list = append(list, examineLab()...)
	return append(list, examineRoute("IPv4", "udp4", "192.0.2.1:9"), examineRoute("IPv6", "udp6", "[2001:db8::1]:9"),
		examineResolver(), examinePaths(), examineDescriptors())
}

func examineCage() []finding {
	s := cage.Look()
	l := finding{Name: "Landlock", OK: s.Landlock > 0, Is: fmt.Sprintf("ABI %d", s.Landlock)}
	switch {
	case !l.OK:
		l.Is, l.Lacks = s.LandlockWhy, "the daemon's sandbox does not close files: those that its user may read and write stay open to it"
	case s.Landlock < cage.ConnectABI:
		l.Lacks = fmt.Sprintf("before ABI %d it does not close unix sockets, so the sandbox lets the daemon make none: --sandbox-folder for forwards of unix sockets that are added later",
			cage.ConnectABI)
	}
	f := finding{Name: "seccomp", OK: s.Seccomp, Is: "filters"}
	if !f.OK {
		f.Is, f.Lacks = s.SeccompWhy, "the daemon's sandbox does not refuse system calls: exec, ptrace, new sockets of other kinds"
	}
	if runtime.GOOS != "linux" {
		l.Do, f.Do = "run vmnetd as a user of its own", ""
	}
	return []finding{l, f}
}

// examineRoute asks the system for a route, and sends nothing.
func examineRoute(name, network, to string) finding {
	f := finding{Name: name + " route"}
	c, err := net.Dial(network, to)
	if err != nil {
		f.Is, f.Lacks = cause(err), "guests reach nothing over "+name+" beyond this host"
		if name == "IPv6" {
			f.Lacks = "guests get IPv6 addresses and no default route"
		}
		return f
	}
	defer c.Close()
	f.OK, f.Is = true, "from "+c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().String()
	return f
}

func cause(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return err.Error()
}

// examineResolver asks the host's resolvers for the root's name servers, which each of them knows.
func examineResolver() finding {
	f := finding{Name: "resolver"}
	ctx, cancel := context.WithTimeout(context.Background(), resolverTime)
	defer cancel()
	start := time.Now()
	_, err := (&net.Resolver{PreferGo: true}).LookupNS(ctx, ".")
	var answer *net.DNSError
	switch {
	case err == nil, errors.As(err, &answer) && answer.IsNotFound:
		f.OK, f.Is = true, fmt.Sprintf("answers in %v", time.Since(start).Round(time.Millisecond))
	default:
		f.Is, f.Lacks = err.Error(), "guests resolve no names but those of their own network"
		f.Do = "look at /etc/resolv.conf, or name another with --resolver"
	}
	return f
}

// examinePaths looks at where sockets are by default.
func examinePaths() finding {
	dir := runtimeDir()
	path := filepath.Join(dir, "control.sock")
	if env := os.Getenv(controlEnv); env != "" {
		path = env
	}
	f := finding{Name: "sockets", OK: true, Is: dir}
	do := "set XDG_RUNTIME_DIR to a folder with a short name, or name places with --qemu unix:PATH and --control PATH, or $" + controlEnv
	switch {
	case len(path) > maxUnixPath:
		f.OK, f.Lacks, f.Do = false, fmt.Sprintf("vmnetd serve, run, and all that ask a daemon: %s has %d bytes, and a socket's path may have %d", path, len(path), maxUnixPath), do
	default:
		if err := private(dir); err != nil && !os.IsNotExist(err) {
			f.OK, f.Lacks, f.Do = false, err.Error(), do
		}
	}
	return f
}

// examineDescriptors says how many conversations there may be.
func examineDescriptors() finding {
	n, ok := fileLimit()
	if !ok {
		return finding{Name: "descriptors", OK: true, Is: "no limit but memory"}
	}
	f := finding{Name: "descriptors", OK: n >= 4096, Is: fmt.Sprintf("%d: %d conversations, %d guests", n, conversations(n), maxGuests())}
	if !f.OK { // a browser in one guest has hundreds
		f.Lacks, f.Do = "guests that open many connections hear that there is no room", "ulimit -n 65536, or LimitNOFILE= in a unit of systemd"
	}
	return f
}
