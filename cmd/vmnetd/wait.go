package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/portforward"
)

const (
	// waitTimeout is for who names none: an ordinary virtual machine has booted by then, on a busy host too.
	waitTimeout = time.Minute
	// waitAgain: events say when to look again. What guests cause without end is not told each time, and a forward's
	// state is no event, so it is looked at every so often besides.
	waitAgain = 2 * time.Second
	// A port is asked for again after a pause that grows from the one to the other: nothing tells when a guest's program
	// begins to listen, and a try costs the guest three packets.
	portFirst, portLast = 100 * time.Millisecond, time.Second
	// daemonAgain is how often it is looked for a control socket: a connection to a unix socket, microseconds.
	daemonAgain = 100 * time.Millisecond
)

// waiter is what all that waits has.
type waiter struct {
	inspector
	timeout time.Duration
}

// condition looks whether what is waited for is so. missing says what is not, for people.
type condition func(ctx context.Context) (missing string, err error)

func waitCommand() *cobra.Command {
	w := &waiter{}
	one := cobra.ExactArgs(1)

	var guestCount countFlags
	guest := w.command("guest NAME|--any", "Until a guest is plugged in", cobra.MaximumNArgs(1), func(ctx context.Context, c *control.Client, a []string) error {
		want, err := guestCount.want(a)
		if err != nil {
			return err
		}
		var held []backend.GuestInfo
		err = w.until(ctx, c, want.String()+" to be plugged in", func(ctx context.Context) (string, error) {
			all, err := ofNetworks(ctx, &w.inspector, c, c.Guests)
			held = slices.DeleteFunc(slices.Clone(all), func(g backend.GuestInfo) bool { return !want.any && !isGuest(g, want.name) })
			if len(held) >= want.count {
				return "", err
			}
			return want.missing(len(held), "guest", namesOf(all, guestName)), err
		})
		return w.show(err, held, func(w io.Writer) { writeGuests(w, held) })
	}, `  vmnetd wait guest web                       by name, MAC, address or id
  vmnetd wait guest --any --count 3`)
	guestCount.add(guest, "guests")

	var leaseCount countFlags
	lease := w.command("lease NAME|MAC|ADDRESS|--any", "Until a guest has a lease", cobra.MaximumNArgs(1), func(ctx context.Context, c *control.Client, a []string) error {
		want, err := leaseCount.want(a)
		if err != nil {
			return err
		}
		var held []control.Lease
		err = w.until(ctx, c, want.String()+" to have a lease", func(ctx context.Context) (string, error) {
			all, err := ofNetworks(ctx, &w.inspector, c, c.Leases)
			all = slices.DeleteFunc(all, func(l control.Lease) bool { return l.State != "bound" || l.Guest == "" || l.Away })
			held = slices.DeleteFunc(slices.Clone(all), func(l control.Lease) bool { return !want.any && !isLease(l, want.name) })
			if len(holders(held)) >= want.count {
				return "", err
			}
			return want.missing(len(holders(held)), "lease", namesOf(all, func(l control.Lease) string { return l.Addr.String() + " of " + leaseName(l) })), err
		})
		return w.show(err, held, func(w io.Writer) { writeLeases(w, held) })
	}, `  vmnetd wait lease web && ssh -p 2222 localhost
  vmnetd wait lease --any --count 3           three guests have one, of whatever family`)
	leaseCount.add(lease, "guests with one")

	port := w.command("port GUEST:PORT[/tcp|/udp]", "Until a port of a guest answers", one, func(ctx context.Context, c *control.Client, a []string) error {
		p, err := parseWaitPort(a[0])
		if err != nil {
			return err
		}
		var held control.PortState
		pause := portFirst
		err = w.until(ctx, c, fmt.Sprintf("port %d/%s of %s to answer", p.port, p.proto, p.guest), func(ctx context.Context) (string, error) {
			var problem *control.Problem
			held, err = c.Port(ctx, p.guest, p.proto, p.port)
			switch {
			case errors.As(err, &problem) && problem.Status == http.StatusNotFound:
				return problem.Error(), nil // an event tells when it comes
			case errors.As(err, &problem) && problem.Status == http.StatusTooManyRequests:
			case err != nil:
				return "", err
			case held.Answers():
				return "", nil
			}
			select {
			case <-time.After(pause):
				pause = min(2*pause, portLast)
			case <-ctx.Done():
			}
			if problem != nil {
				return problem.Error(), errAgain
			}
			return held.Detail, errAgain
		})
		return w.show(err, held, func(w io.Writer) { row(w, held.Guest, held.Address, held.Detail) })
	}, `  vmnetd wait port web:22 --timeout 2m && ssh -p 2222 localhost
  vmnetd wait port '[fdf7:3e18:6b44:2::15]:443'
  vmnetd wait port 10.0.2.15:53/udp`)
	port.Long = `Until a port of a guest answers. The daemon connects to it from the gateway's address, as a forward does, and ends the
connection. Of a guest that is named by name, MAC or id either family will do. An empty datagram is sent to a UDP port: it holds
when something answers, or when the guest is there and has not refused it within a second.`

	forward := w.command("forward RULE", "Until a forward listens and its guest is there", one, func(ctx context.Context, c *control.Client, a []string) error {
		var held []portforward.Status
		err := w.until(ctx, c, "forward "+a[0], func(ctx context.Context) (string, error) {
			all, err := ofNetworks(ctx, &w.inspector, c, c.Forwards)
			held = slices.DeleteFunc(slices.Clone(all), func(f portforward.Status) bool { return f.ID != a[0] && f.Text != a[0] && !sameRule(f, a[0]) })
			if err != nil {
				return "", err
			}
			if len(held) == 0 {
				return fmt.Sprintf("no forward %s%s", a[0], thereIs(namesOf(all, func(f portforward.Status) string { return f.ID }))), nil
			}
			for _, f := range held {
				switch {
				case f.State != portforward.StateListening:
					return fmt.Sprintf("forward %s is %s: %s", f.ID, f.State, f.LastError), nil
				case f.Guest == portforward.Absent:
					return fmt.Sprintf("forward %s listens, but its guest is not there", f.ID), nil
				}
			}
			return "", nil
		})
		return w.show(err, held, func(w io.Writer) { writeForwards(w, held) })
	}, `  vmnetd wait forward tcp:127.0.0.1:2222     by its id
  vmnetd wait forward 2222:22                 or by its rule`)

	gone := w.command("gone GUEST", "Until a guest is not plugged in", one, func(ctx context.Context, c *control.Client, a []string) error {
		return w.until(ctx, c, a[0]+" to be gone", func(ctx context.Context) (string, error) {
			all, err := ofNetworks(ctx, &w.inspector, c, c.Guests)
			for _, g := range all {
				if isGuest(g, a[0]) {
					return fmt.Sprintf("guest %s (%s) is plugged in since %s ago", guestName(g), g.ID, ago(g.Since)), err
				}
			}
			return "", err
		})
	}, "  vmnetd wait gone web --timeout 30s")
	gone.Long = "Until a guest is not plugged in: one that never was is not, either."

	daemon := w.command("daemon", "Until a daemon answers", cobra.NoArgs, func(ctx context.Context, c *control.Client, _ []string) error {
		ctx, cancel := w.bound(ctx)
		defer cancel()
		for {
			_, err := c.Status(ctx)
			if err == nil {
				return nil
			}
			select {
			case <-time.After(daemonAgain):
			case <-ctx.Done():
				return w.ended(ctx, "a daemon to answer", err.Error())
			}
		}
	}, "  vmnetd serve & vmnetd wait daemon && vmnetd status")

	return group("wait", "Wait until something is so, for scripts", `Wait until something is so: a guest is plugged in, has a lease, answers on a port, has gone; a forward works; a daemon answers.

  vmnetd wait daemon && vmnetd wait lease web && vmnetd wait port web:22 --timeout 5m

Exit status: 0 if it is so, which it may have been all along, 1 if it was not within --timeout, with what is missing.`,
		guest, lease, port, forward, gone, daemon)
}

// command makes a command that waits.
func (w *waiter) command(use, short string, check cobra.PositionalArgs, do asks, example string) *cobra.Command {
	c := w.lasting(use, short, check, func(ctx context.Context, c *control.Client, a []string) error {
		ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
		defer stop()
		return do(ctx, c, a)
	})
	c.Example = example
	c.Flags().DurationVar(&w.timeout, "timeout", waitTimeout, "`TIME` to wait at most, as 30s or 5m; 0 for no end")
	return c
}

func (w *waiter) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if w.timeout > 0 {
		return context.WithTimeout(ctx, w.timeout)
	}
	return context.WithCancel(ctx)
}

// ended says that it was waited in vain.
func (w *waiter) ended(ctx context.Context, what, missing string) error {
	if missing == "" {
		missing = "the daemon has not said yet"
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("waited %s in vain for %s: %s", w.timeout, what, visible(missing))
	}
	return fmt.Errorf("interrupted while waiting for %s: %s", what, visible(missing))
}

// errAgain has a condition looked at again at once: it has paused itself.
var errAgain = errors.New("again")

// until waits for the condition. It is looked at when something has happened; the events are followed from before it is
// first looked at, so that nothing falls between.
func (w *waiter) until(ctx context.Context, c *control.Client, what string, holds condition) error {
	ctx, cancel := w.bound(ctx)
	defer cancel()
	happened := make(chan struct{}, 1)
	following := make(chan error, 1)
	events := anotherClient(w.control) // c's network changes while lists are asked for
	events.Network = w.network
	defer events.Close()
	since := uint64(time.Now().UnixMicro())
	go func() {
		following <- events.FollowEvents(ctx, since, func(backend.Event, uint64) error {
			select {
			case happened <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	defer func() { cancel(); <-following }()
	again := time.NewTicker(waitAgain)
	defer again.Stop()
	missing, over := "", following
	for {
		m, err := holds(ctx)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) && missing == "" { // a busy machine: it is looked at once at least
			last, cancel := context.WithTimeout(context.Background(), patience)
			m, err = holds(last)
			cancel()
			if missing = m; err != nil && err != errAgain || err == nil && m == "" {
				return err
			}
		}
		if ctx.Err() != nil {
			return w.ended(ctx, what, missing)
		}
		missing = m
		switch {
		case err == errAgain:
			continue
		case err != nil:
			return err
		case missing == "":
			return nil
		}
		select {
		case <-happened:
		case <-again.C:
		case err := <-over:
			following <- err
			var p *control.Problem
			if ctx.Err() != nil || errors.As(err, &p) { // too many follow: then it is looked at every so often
				over = nil
			} else {
				return fmt.Errorf("the daemon has ended while waiting for %s: %s", what, visible(missing))
			}
		case <-ctx.Done():
		}
	}
}

// ofNetworks is the list of the network that is named, or of all.
func ofNetworks[T any](ctx context.Context, in *inspector, c *control.Client, get func(context.Context) ([]T, error)) ([]T, error) {
	nets, err := in.networks(ctx, c)
	if err != nil {
		return nil, err
	}
	var all []T
	for _, c.Network = range nets {
		list, err := get(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	c.Network = in.network
	return all, nil
}

// isGuest says whether ref is what people call g, as the daemon understands it.
func isGuest(g backend.GuestInfo, ref string) bool {
	a, _ := netip.ParseAddr(ref)
	return g.ID == ref || strings.EqualFold(g.Name, ref) || sameMAC(g.MAC, ref) || a.IsValid() && slices.Contains(g.Addrs, a.Unmap())
}

func isLease(l control.Lease, ref string) bool {
	a, _ := netip.ParseAddr(ref)
	return l.Guest == ref || strings.EqualFold(l.Name, ref) || sameMAC(l.MAC, ref) || a.IsValid() && l.Addr == a.Unmap()
}

func sameMAC(mac, ref string) bool { return strings.EqualFold(mac, strings.ReplaceAll(ref, "-", ":")) }

// holders are the guests that have one of the leases: each may have one of either family.
func holders(list []control.Lease) map[string]bool {
	m := map[string]bool{}
	for _, l := range list {
		m[l.Guest] = true
	}
	return m
}

func guestName(g backend.GuestInfo) string { return cmp.Or(g.Name, g.MAC, g.ID) }

func leaseName(l control.Lease) string { return cmp.Or(l.Name, l.MAC) }

// sameRule says whether text is a rule, in whatever spelling, that has become f.
func sameRule(f portforward.Status, text string) bool {
	rules, err := portforward.ParseRule(text)
	return err == nil && slices.ContainsFunc(rules, func(r portforward.Rule) bool { return r.String() == f.Text || r.ID() == f.ID })
}

func namesOf[T any](list []T, name func(T) string) []string {
	var all []string
	for _, x := range list {
		all = append(all, name(x))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// thereIs ends a text with what there is, as far as anybody reads.
func thereIs(names []string) string {
	const most = 10
	switch {
	case len(names) == 0:
		return "; there is none"
	case len(names) > most:
		return fmt.Sprintf("; there is %s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return "; there is " + strings.Join(names, ", ")
}

// countFlags say how many of whom are waited for.
type countFlags struct {
	any   bool
	count int
}

func (f *countFlags) add(c *cobra.Command, what string) {
	c.Flags().BoolVar(&f.any, "any", false, "any will do")
	c.Flags().IntVar(&f.count, "count", 1, "until there are `N` "+what)
}

// wanted is whom is waited for, and how many.
type wanted struct {
	name  string
	any   bool
	count int
}

func (f *countFlags) want(a []string) (wanted, error) {
	w := wanted{strings.Join(a, ""), f.any, f.count}
	switch {
	case w.any == (len(a) > 0):
		return w, usagef("whose? one name, MAC or address, or --any")
	case w.count < 1:
		return w, usagef("--count %d: want 1 or more", w.count)
	case w.count > 1 && !w.any:
		return w, usagef("--count goes with --any")
	}
	return w, nil
}

func (w wanted) String() string {
	if !w.any {
		return "guest " + w.name
	}
	if w.count == 1 {
		return "any guest"
	}
	return fmt.Sprintf("%d guests", w.count)
}

func (w wanted) missing(have int, what string, names []string) string {
	if !w.any {
		return fmt.Sprintf("no %s of %s%s", what, w.name, thereIs(names))
	}
	return fmt.Sprintf("%d of %d%s", have, w.count, thereIs(names))
}

// waitPort is a port of a guest.
type waitPort struct {
	guest, proto string
	port         uint16
}

// parseWaitPort reads web:22, 10.0.2.15:53/udp, [fd00::15]:22, 52:54:00:12:34:56:22.
func parseWaitPort(s string) (waitPort, error) {
	wrong := func(what string) (waitPort, error) {
		return waitPort{}, usagef("%q: %s: want GUEST:PORT, as web:22, 10.0.2.15:53/udp, [fd00::15]:22", s, what)
	}
	p := waitPort{proto: "tcp"}
	at, proto, ok := strings.Cut(s, "/")
	if ok {
		if protos := []string{"tcp", "udp"}; !slices.Contains(protos, proto) {
			return wrong(fmt.Sprintf("protocol %q: %s", proto, didYouMean(proto, protos)))
		}
		p.proto = proto
	}
	i := strings.LastIndexByte(at, ':')
	if i <= 0 {
		return wrong("which port?")
	}
	n, err := strconv.ParseUint(at[i+1:], 10, 16)
	if err != nil || n == 0 {
		return wrong(fmt.Sprintf("%q is no port", at[i+1:]))
	}
	p.guest, p.port = at[:i], uint16(n)
	if inside, ok := strings.CutPrefix(p.guest, "["); ok {
		if p.guest, ok = strings.CutSuffix(inside, "]"); !ok {
			return wrong("no ]")
		}
	} else if _, err := netip.ParseAddr(p.guest); err == nil && strings.Contains(p.guest, ":") {
		return wrong("an IPv6 address stands in brackets")
	}
	if p.guest == "" {
		return wrong("whose port?")
	}
	return p, nil
}
