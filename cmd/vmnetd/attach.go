package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/netns"
)

// attachAliases are slirp4netns' names for the same things.
var attachAliases = map[string]string{
	"macaddress": "mac", "cidr": "net", "disable-host-loopback": "no-host-loopback", "api-socket": "control",
}

func attachCommand() *cobra.Command {
	var n networkFlags
	var box cageFlags
	var ctl, mac, host, kind, user string
	var ready, exit int
	var configure bool
	c := &cobra.Command{
		Use:   "attach PID|PATH [IFNAME] [-p RULE]...",
		Short: "Give an existing network namespace a network",
		Long: `Give an existing network namespace a network: an interface is made in it, by default tap0, with addresses and routes
of both families. It lasts until the process ends, or until SIGINT or SIGTERM. Linux only.

  unshare --user --map-root-user --net sleep 1h &
  vmnetd attach $! &
  nsenter --preserve-credentials --user --net --target $! ping 10.0.2.2

PID is a process in the namespace: one of the same user's, or for root any. A PATH, as /run/user/1000/netns/web, has no
end by itself; --userns-path names the user namespace that it belongs to, where the caller is not in that. The
container's /etc/resolv.conf is its own affair: the DNS server is 10.0.2.3 unless --dns-addr says otherwise.

Several namespaces, or namespaces and virtual machines, on one network: 'vmnetd serve --netns pid:PID --qemu …'.

Flags of slirp4netns work as they are: -c, -r, -e, --mtu, --cidr, --macaddress, --userns-path, --netns-type,
--disable-host-loopback.

Exit status: 0 after a signal, or when the process has ended; 1 if it failed, with the reason on stderr; 2 if the command
line was wrong.`,
		Args: args(cobra.RangeArgs(1, 2)),
	}
	f := c.Flags()
	n.add(f, slog.LevelWarn)
	box.add(f)
	names := f.GetNormalizeFunc()
	f.SetNormalizeFunc(func(fs *pflag.FlagSet, name string) pflag.NormalizedName {
		if a := attachAliases[name]; a != "" {
			name = a
		}
		return names(fs, name)
	})
	f.StringVar(&ctl, "control", "", "`PATH` of the control socket (default in a private folder)")
	f.StringVar(&mac, "mac", "", "`MAC` of the interface")
	f.StringVar(&host, "hostname", "", "`NAME` that it leases under")
	f.BoolVarP(&configure, "configure", "c", true, "give it addresses and routes; --configure=false leaves that to its users")
	f.IntVarP(&ready, "ready-fd", "r", -1, "`DESCRIPTOR` that \"1\" is written to once it is ready")
	f.IntVarP(&exit, "exit-fd", "e", -1, "`DESCRIPTOR` whose hang-up ends it")
	f.StringVar(&kind, "netns-type", "", "what the namespace is named by: `pid` or path (default by its look)")
	f.StringVar(&user, "userns-path", "", "`PATH` of the user namespace that a namespace named by its path belongs to")
	c.RunE = func(c *cobra.Command, a []string) error {
		// Descriptors first: what we open ourselves must not be taken for one that we were handed.
		tell, err := handedFile(ready, "--ready-fd")
		if err != nil {
			return err
		}
		hangup, err := handedFile(exit, "--exit-fd")
		if err != nil {
			return err
		}
		log := n.openLog(os.Stderr)
		defer log.Close()
		cfg, err := n.config(log)
		if err != nil {
			return err
		}
		if n.mtu == 0 {
			large(&cfg)
		}
		at, err := spaceAddress(a[0], kind)
		if err != nil {
			return err
		}
		at.options = map[string]string{"ifname": strings.Join(a[1:], ""), "mac": mac, "host": host, "userns": user}
		if !configure {
			at.options["configure"] = "no"
		}
		d := &daemon{log: cfg.Logger, profile: n.profile, policy: n.chosen, cage: confinement{cageFlags: box}}
		defer d.stop(0)
		signals := make(chan os.Signal, 2)
		notify(signals, endSignals)
		door := &door{framing: &netnsFraming, log: d.log, remove: func() {}}
		if err := netnsFraming.open(door, at); err != nil {
			return err
		}
		d.doors = append(d.doors, door)
		if err := d.listenPrivately(ctl, "attach-"); err != nil {
			return err
		}
		if err := d.start(cfg); err != nil {
			return err
		}
		s := door.space
		l, err := s.configured(d.idle)
		if err != nil {
			return err
		}
		tellAttached(c.OutOrStdout(), d, s, l)
		if tell != nil {
			_, err := tell.Write([]byte("1"))
			if err := errors.Join(err, tell.Close()); err != nil {
				return fmt.Errorf("--ready-fd: %w", err)
			}
		}
		gone := make(chan struct{})
		if hangup != nil {
			go func() {
				defer close(gone)
				io.Copy(io.Discard, hangup) // what is written there says nothing
			}()
		}
		select {
		case <-signals:
			d.stop(grace)
			return nil
		case <-gone:
			d.stop(grace)
			return nil
		case err := <-d.failed:
			return err
		case <-d.idle:
			return nil
		}
	}
	return c
}

// spaceAddress is a namespace as --netns names it.
func spaceAddress(s, kind string) (address, error) {
	switch kind {
	case "":
		kind = "path"
		if _, err := strconv.Atoi(s); err == nil {
			kind = "pid"
		}
	case "pid", "path":
	default:
		return address{}, usagef("--netns-type %s: want pid or path", kind)
	}
	return address{kind: kind, rest: s}, nil
}

// listenPrivately opens the control socket at path, or in a folder of its own.
func (d *daemon) listenPrivately(path, name string) error {
	if path == "" {
		dir, err := makeRuntimeDir()
		if err != nil {
			return err
		}
		d.dirs = append(d.dirs, dir)
		own, err := os.MkdirTemp(dir, name)
		if err != nil {
			return err
		}
		d.dirs = append(d.dirs, own)
		path = filepath.Join(own, "control.sock")
	}
	return d.listen(path)
}

// tellAttached prints what the namespace has now.
func tellAttached(w io.Writer, d *daemon, s *space, l netns.Lease) {
	c := d.net.Config()
	fmt.Fprintf(w, "interface %s in %s", s.tap.Name, d.doors[0].addr)
	if list, err := s.tap.Addrs(); err == nil && l.Addr.IsValid() {
		for _, a := range list {
			fmt.Fprintf(w, " %s", a)
		}
	}
	fmt.Fprintln(w)
	fmt.Fprintf(w, "gateway %s and %s, DNS %s and %s\n", c.Gateway4, c.Gateway6, c.DNS4, c.DNS6)
	for _, r := range d.net.Bound() {
		fmt.Fprintf(w, "forward %s\n", r)
	}
	fmt.Fprintf(w, "control %s\n  vmnetd status --control %s\n", d.control, shellQuote(d.control))
}

// handedFile is a descriptor that we were started with, or nil for -1.
func handedFile(fd int, flag string) (*os.File, error) {
	if fd < 0 {
		return nil, nil
	}
	if !inheritable(fd) {
		return nil, usagef("%s %d: %w", flag, fd, errNoDescriptor)
	}
	return os.NewFile(uintptr(fd), flag), nil
}
