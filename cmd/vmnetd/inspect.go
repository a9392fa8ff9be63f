package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/portforward"
)

// inspector is what each of these commands has: a daemon to ask and a form to answer in.
type inspector struct {
	control, network string
	format           outputFormat
	noHeaders        bool
}

// patience is how long a daemon may take to answer: it only has to look at its memory.
const patience = 30 * time.Second

// asks is what a command does with a daemon.
type asks func(ctx context.Context, c *control.Client, args []string) error

// command makes a command of a function that asks.
func (in *inspector) command(use, short string, check cobra.PositionalArgs, do asks) *cobra.Command {
	return in.lasting(use, short, check, func(ctx context.Context, c *control.Client, args []string) error {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return do(ctx, c, args)
	})
}

// lasting makes a command of a function that asks for as long as it likes.
func (in *inspector) lasting(use, short string, check cobra.PositionalArgs, do asks) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: args(check)}
	cmd.RunE = func(_ *cobra.Command, a []string) error {
		ctx := context.Background()
		c, err := newClient(in.control)
		if err != nil {
			return err
		}
		defer c.Close()
		c.Network = in.network
		err = do(ctx, c, a)
		var none *control.NoDaemonError
		if errors.As(err, &none) {
			err = hintError{err, in.noDaemon()}
		}
		return err
	}
	cmd.Flags().StringVar(&in.control, "control", "", "`PATH` of the daemon's control socket, lab:NAME of a lab's, or tcp:HOST:PORT of its --api (default $VMNETD_CONTROL, else $XDG_RUNTIME_DIR/vmnetd/control.sock)")
	cmd.Flags().StringVar(&in.network, "network", "", "`NAME` of the network, where the daemon has several (default all, for what is only shown)")
	in.format.flag(cmd)
	cmd.Flags().BoolVar(&in.noHeaders, "no-headers", false, "tables without their first line")
	return cmd
}

// noDaemon says how to start one, or which there are.
func (in *inspector) noDaemon() string {
	hint := "start one with 'vmnetd serve', or name its socket with --control or $" + controlEnv
	found, _ := filepath.Glob(filepath.Join(runtimeDir(), "run-*", "control.sock"))
	for _, name := range labNames() {
		found = append(found, "lab:"+name)
	}
	if len(found) > 0 {
		hint += "; there is " + strings.Join(found, ", ")
	}
	return hint
}

func inspectCommands() []*cobra.Command {
	in := &inspector{}
	exactly := cobra.ExactArgs
	some := cobra.MinimumNArgs(1)

	status := in.command("status", "Show the daemon and its networks", exactly(0), func(ctx context.Context, c *control.Client, _ []string) error {
		st, err := c.Status(ctx)
		return in.show(err, st, func(w io.Writer) { writeStatus(w, st) })
	})

	vmLS := in.command("ls", "List the guests", exactly(0), func(ctx context.Context, c *control.Client, _ []string) error {
		return showList(ctx, in, c, func() ([]backend.GuestInfo, error) { return c.Guests(ctx) }, writeGuests)
	})
	kick := in.command("kick GUEST...", "End guests' wires; those that reconnect come back", some, func(ctx context.Context, c *control.Client, a []string) error {
		return each(a, func(g string) error { return c.Kick(ctx, g) })
	})

	forwardLS := in.command("ls", "List the port forwards", exactly(0), func(ctx context.Context, c *control.Client, _ []string) error {
		return showList(ctx, in, c, func() ([]portforward.Status, error) { return c.Forwards(ctx) }, writeForwards)
	})
	forwardAdd := in.command("add RULE...", "Add port forwards, and print them as they came out", some, func(ctx context.Context, c *control.Client, a []string) error {
		added := []control.Forward{}
		err := each(a, func(rule string) error {
			list, err := c.AddForward(ctx, rule)
			added = append(added, list...)
			return err
		})
		if err != nil && len(added) == 0 {
			return err
		}
		return errors.Join(err, in.show(nil, added, func(w io.Writer) {
			for _, f := range added {
				fmt.Fprintln(w, f.Text)
			}
		}))
	})
	forwardAdd.Long = `Add port forwards, and print them as they came out: with the port that was picked, where it was 0.

A rule may be written as for docker, passt or QEMU:

  2222:22   8000-8010   127.0.0.1:2222:22/tcp   [::1]:5353:53/udp   2222:web:22
  127.0.0.1/2222:22
  tcp:127.0.0.1:2222-:22   udp::5353-10.0.2.15:53   unix:/run/web.sock-:80

Add ,source=client to show the guest the client's own address in place of the gateway's. Without an address it is
127.0.0.1; without a guest, the network's first address.`
	var cut bool
	forwardRM := in.command("rm RULE...", "Remove port forwards, by id (tcp:127.0.0.1:2222) or by rule", some, func(ctx context.Context, c *control.Client, a []string) error {
		return each(a, func(rule string) error { return c.RemoveForward(ctx, rule, cut) })
	})
	forwardRM.Flags().BoolVar(&cut, "cut", false, "end the TCP conversations that came through it, too")

	leasesLS := in.command("ls", "List the leases", exactly(0), func(ctx context.Context, c *control.Client, _ []string) error {
		return showList(ctx, in, c, func() ([]control.Lease, error) { return c.Leases(ctx) }, writeLeases)
	})
	release := in.command("release ADDRESS...", "Free leased addresses", some, func(ctx context.Context, c *control.Client, a []string) error {
		for _, s := range a {
			if _, err := netip.ParseAddr(s); err != nil {
				return usagef("%q is no address", s)
			}
		}
		return each(a, func(s string) error { return c.ReleaseLease(ctx, netip.MustParseAddr(s)) })
	})

	dnsLS := in.command("ls", "List the local records", exactly(0), func(ctx context.Context, c *control.Client, _ []string) error {
		return showList(ctx, in, c, func() ([]backend.DNSRecord, error) { return c.DNS(ctx) }, writeDNS)
	})
	var ttl uint32
	dnsAdd := in.command("add NAME TYPE VALUE", "Add a local record: dns add db A 10.0.2.20", exactly(3), func(ctx context.Context, c *control.Client, a []string) error {
		return c.AddDNS(ctx, control.DNSRequest{Name: a[0], Type: a[1], Value: a[2], TTL: ttl})
	})
	dnsAdd.Flags().Uint32Var(&ttl, "ttl", 0, "how long guests may keep it, in `SECONDS` (default the server's)")
	dnsRM := in.command("rm NAME [TYPE [VALUE]]", "Remove local records", cobra.RangeArgs(1, 3), func(ctx context.Context, c *control.Client, a []string) error {
		a = append(a, "", "")
		return c.RemoveDNS(ctx, a[0], a[1], a[2])
	})

	for c, example := range map[*cobra.Command]string{
		status:     "  vmnetd status\n  vmnetd status --network lab -o json",
		vmLS:       "  vmnetd vm ls\n  vmnetd vm ls -o wide          # MACs, MTUs, links, drops by reason\n  vmnetd vm ls -o json | jq -r '.[].name'",
		kick:       "  vmnetd vm kick web\n  vmnetd vm kick 10.0.2.15 52:54:00:12:34:56",
		forwardLS:  "  vmnetd forward ls",
		forwardAdd: "  vmnetd forward add 8080:web:80\n  vmnetd forward add 0:22 | cut -d: -f2        # whatever port is free",
		forwardRM:  "  vmnetd forward rm tcp:127.0.0.1:8080\n  vmnetd forward rm --cut 8080:web:80",
		leasesLS:   "  vmnetd leases ls",
		release:    "  vmnetd leases release 10.0.2.15",
		dnsLS:      "  vmnetd dns ls",
		dnsAdd:     "  vmnetd dns add db A 10.0.2.20\n  vmnetd dns add db AAAA fdf7:3e18:6b44:2::20 --ttl 60",
		dnsRM:      "  vmnetd dns rm db\n  vmnetd dns rm db A 10.0.2.20",
	} {
		c.Example = example
	}
	return []*cobra.Command{
		status,
		eventsCommand(),
		policyCommand(),
		group("vm", "List and kick guests", "", vmLS, kick),
		group("forward", "List, add and remove port forwards", "", forwardLS, forwardAdd, forwardRM),
		flowsCommand(),
		group("leases", "List and release leases", "", leasesLS, release),
		group("dns", "List, add and remove local DNS records", "", dnsLS, dnsAdd, dnsRM),
	}
}

// each does it for all, and says what went wrong with any.
func each(list []string, do func(string) error) error {
	var errs []error
	for _, s := range list {
		err := do(s)
		var none *control.NoDaemonError
		if errors.As(err, &none) {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
