package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/flows"
)

// limitsCommand shows limits and changes them.
func limitsCommand() *cobra.Command {
	in := &inspector{}
	show := in.command("limits [GUEST]", "Show what guests may have, what they have, and how often they wanted more", cobra.MaximumNArgs(1),
		func(ctx context.Context, c *control.Client, a []string) error {
			guest := ""
			if len(a) > 0 {
				guest = a[0]
			}
			return showList(ctx, in, c, func() ([]backend.LimitInfo, error) { return c.Limits(ctx, guest) }, writeLimits)
		})
	show.Long = `Show what each guest may have, what it has now, the most that it had, and how often something was refused, dropped,
ended or held back for a limit. Without a guest, those for all guests together come first, and what each has that has none
of its own.

A limit with a star is the guest's own. They are set by --limit when the daemon starts, or by 'vmnetd limits set':

  vmnetd limits set web flows=100,up=10mbit     a guest's, by id, name, MAC or address
  vmnetd limits set flows=1000                  the network's, for guests without one of their own
  vmnetd limits set web up=default              as the network has it`
	set := in.command("set [GUEST] NAME=VALUE[,NAME=VALUE]...", "Change limits, of a guest or of the network", cobra.MinimumNArgs(1),
		func(ctx context.Context, c *control.Client, a []string) error {
			change := control.LimitChange{Limits: map[string]any{}}
			if !strings.Contains(a[0], "=") {
				change.Guest, a = a[0], a[1:]
			}
			for part := range strings.SplitSeq(strings.Join(a, ","), ",") {
				if err := new(flows.Limits).Parse(part); err != nil { // said at once, whatever the daemon is
					return usageError{err}
				}
				name, value, _ := strings.Cut(part, "=")
				change.Limits[strings.TrimSpace(name)] = strings.TrimSpace(value)
			}
			return c.ChangeLimits(ctx, change)
		})
	set.Long = `Change limits, all that are named or none. What is open stays; what comes is bounded by them.

A value is a number; bytes are written 4MiB or 500k, bytes a second 10mbit or 1MB; none takes away a bound that need not
be, default what was set. A guest's limits stay with its MAC until the daemon ends.`
	show.Example = "  vmnetd limits\n  vmnetd limits web -o json"
	set.Example = "  vmnetd limits set web flows=100,up=10mbit\n  vmnetd limits set flows=1000"
	show.AddCommand(set)
	return show
}

func writeLimits(w io.Writer, list []backend.LimitInfo) {
	head(w, "GUEST", "LIMIT", "VALUE", "NOW", "MOST", "HITS", "WHAT")
	for _, l := range list {
		guest := l.Guest
		if guest == "" {
			guest = "all"
		}
		value := l.Text
		if l.Own {
			value += "*"
		}
		now, most := fmt.Sprint(l.Now), fmt.Sprint(l.Most)
		if m, err := flows.Named(l.Name); err == nil || l.Unit == flows.Bytes {
			if err != nil {
				m = &flows.Limit{Unit: l.Unit}
			}
			now, most = m.Format(l.Now), m.Format(l.Most)
		}
		if l.Each {
			row(w, "each", l.Name, value, "", "", "", l.Why)
			continue
		}
		row(w, guest, l.Name, value, now, most, l.Hits, l.Why)
	}
}

const limitUsage = "`[MAC,]NAME=VALUE`[,NAME=VALUE]... bounds each guest, or the one with this MAC, as flows=100,up=10mbit; 'vmnetd limits' has the names; may be repeated"

// parseLimits makes what --limit says a configuration's.
func parseLimits(specs []string, c *backend.Config) error {
	for _, s := range specs {
		l, rest := &c.Limits, s
		if first, more, ok := strings.Cut(s, ","); ok && !strings.Contains(first, "=") {
			hw, err := net.ParseMAC(first)
			if err != nil || len(hw) != 6 {
				return fmt.Errorf("--limit %s: %q is no MAC: want 52:54:00:12:34:56,flows=100", s, first)
			}
			if c.GuestLimits == nil {
				c.GuestLimits = map[string]flows.Limits{}
			}
			own := c.GuestLimits[hw.String()]
			if err := own.Parse(more); err != nil {
				return fmt.Errorf("--limit %s: %w", s, err)
			}
			c.GuestLimits[hw.String()] = own
			continue
		}
		if err := l.Parse(rest); err != nil {
			return fmt.Errorf("--limit %s: %w", s, err)
		}
	}
	return nil
}
