package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/portforward"
)

// inspector is what each of these commands has: a daemon to ask and a form to answer in.
type inspector struct {
	control, network string
	format           outputFormat
}

type outputFormat string

func (f *outputFormat) String() string { return string(*f) }
func (f *outputFormat) Type() string   { return "format" }
func (f *outputFormat) Set(s string) error {
	if s != "table" && s != "json" {
		return errors.New("want table or json")
	}
	*f = outputFormat(s)
	return nil
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
		c := control.NewClient(controlPath(in.control))
		defer c.Close()
		c.Network = in.network
		err := do(ctx, c, a)
		var none *control.NoDaemonError
		if errors.As(err, &none) {
			err = hintError{err, in.noDaemon()}
		}
		return err
	}
	cmd.Flags().StringVar(&in.control, "control", "", "`PATH` of the daemon's control socket (default $VMNETD_CONTROL, else $XDG_RUNTIME_DIR/vmnetd/control.sock)")
	cmd.Flags().StringVar(&in.network, "network", "", "`NAME` of the network, where the daemon has several (default all, for what is only shown)")
	in.format = "table"
	cmd.Flags().VarP(&in.format, "output", "o", "`FORM` of the answer: table or json")
	return cmd
}

// noDaemon says how to start one, or which there are.
func (in *inspector) noDaemon() string {
	hint := "start one with 'vmnetd serve', or name its socket with --control or $" + controlEnv
	found, _ := filepath.Glob(filepath.Join(runtimeDir(), "run-*", "control.sock"))
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

	var filter control.FlowFilter
	flowsLS := in.command("ls", "List the conversations", exactly(0), func(ctx context.Context, c *control.Client, _ []string) error {
		return showList(ctx, in, c, func() ([]flows.Snapshot, error) { return c.Flows(ctx, filter) }, writeFlows)
	})
	flowsLS.Flags().StringVar(&filter.Guest, "guest", "", "only this `GUEST`'s: id, name, MAC or address")
	flowsLS.Flags().StringVar(&filter.Proto, "proto", "", "only this `PROTOCOL`: tcp, udp, icmp, icmp6")
	flowsLS.Flags().StringVar(&filter.State, "state", "", "only in this `STATE`: dialing, open, closing")
	flowsLS.Flags().StringVar(&filter.Direction, "direction", "", "only this `WAY`: in or out")

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

	return []*cobra.Command{
		status,
		eventsCommand(),
		policyCommand(),
		group("vm", "List and kick guests", "", vmLS, kick),
		group("forward", "List, add and remove port forwards", "", forwardLS, forwardAdd, forwardRM),
		group("flows", "List conversations", "", flowsLS),
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

// show prints an answer, unless there is an error in its place.
func (in *inspector) show(err error, v any, table func(io.Writer)) error {
	if err != nil {
		return err
	}
	if in.format == "json" {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	table(w)
	return w.Flush()
}

// showList prints a list of the network that is named. Of several with none named it prints all: in tables under the
// networks' names, in JSON with the network in each entry, as the API has it.
func showList[T any](ctx context.Context, in *inspector, c *control.Client, get func() ([]T, error), table func(io.Writer, []T)) error {
	names := []string{in.network}
	if in.network == "" {
		st, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if len(st.Networks) > 1 {
			names = nil
			for _, n := range st.Networks {
				names = append(names, n.Name)
			}
		}
	}
	if len(names) == 1 {
		list, err := get()
		return in.show(err, list, func(w io.Writer) { table(w, list) })
	}
	all := []json.RawMessage{}
	lists := make([][]T, len(names))
	var missing []error
	for i, name := range names {
		c.Network = name
		list, err := get()
		var p *control.Problem
		if errors.As(err, &p) && p.Status == http.StatusNotFound { // a guest that is in another network
			missing = append(missing, err)
			continue
		}
		if err != nil {
			return err
		}
		lists[i] = list
		for _, v := range list {
			b, err := json.Marshal(struct {
				Network string `json:"network"`
			}{name})
			if err != nil {
				return err
			}
			o, err := json.Marshal(v)
			if err != nil {
				return err
			}
			all = append(all, append(append(b[:len(b)-1], ','), o[1:]...))
		}
	}
	if len(missing) == len(names) {
		return missing[0]
	}
	return in.show(nil, all, func(w io.Writer) {
		for i, list := range lists {
			if list == nil {
				continue
			}
			row(w, "network "+names[i])
			table(w, list)
		}
	})
}

// row writes one line of a table. What guests choose, names above all, must not reach the terminal as it is.
func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		s := strings.Map(func(r rune) rune {
			if !unicode.IsPrint(r) {
				return '?'
			}
			return r
		}, fmt.Sprint(c))
		if s == "" {
			s = "-"
		}
		if i > 0 {
			s = "\t" + s
		}
		io.WriteString(w, s)
	}
	io.WriteString(w, "\n")
}

func writeStatus(w io.Writer, st control.Status) {
	row(w, "vmnetd", fmt.Sprintf("%s, pid %d", st.Version, st.PID))
	for _, l := range st.Listen {
		row(w, "guests at", l)
	}
	if st.Sandbox != nil {
		row(w, "sandbox", st.Sandbox.Walls)
		for _, m := range st.Sandbox.Missing {
			row(w, "sandbox lacks", m)
		}
	}
	for _, n := range st.Networks {
		router := "no IPv6 route on this host: guests get no IPv6 default route"
		if n.Router6 {
			router = "IPv6 router"
		}
		row(w, "network", fmt.Sprintf("%s, since %s", n.Name, n.Since.Local().Format(time.DateTime)))
		row(w, "IPv4", fmt.Sprintf("%s, gateway %s, DNS %s", n.Prefix4, n.Gateway4, n.DNS4))
		row(w, "IPv6", fmt.Sprintf("%s, gateway %s, DNS %s; %s", n.Prefix6, n.Gateway6, n.DNS6, router))
		row(w, "MTU", mtus(n))
		row(w, "gateway MAC", n.GatewayMAC)
		if n.Isolate {
			row(w, "isolate", "guests are kept from one another")
		}
		if n.Strict {
			row(w, "strict leases", "guests send as what they were given only")
		}
		if n.Routes != nil {
			row(w, "routes", strings.Trim(fmt.Sprint(n.Routes), "[]"))
		}
		row(w, "resolvers", strings.Join(n.Resolvers, ", "))
		row(w, "ping IPv4", n.Ping4)
		row(w, "ping IPv6", n.Ping6)
		row(w, "guests", n.Guests)
		row(w, "conversations", fmt.Sprintf("%d now, %d in all", n.Flows, n.FlowsTotal))
		row(w, "ended or refused", counts(n.Refused))
		for _, warn := range n.Warnings {
			row(w, "warning", warn)
		}
	}
}

func mtus(n backend.Status) string {
	switch {
	case n.LargeMTU == 0:
		return strconv.Itoa(n.MTU)
	case n.LargeNICs:
		return strconv.Itoa(n.LargeMTU)
	}
	return fmt.Sprintf("%d, or %d for cards that carry it", n.MTU, n.LargeMTU)
}

func counts(m map[string]uint64) string {
	var parts []string
	for k, v := range m {
		if v > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", k, v))
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

func writeGuests(w io.Writer, list []backend.GuestInfo) {
	row(w, "ID", "NAME", "MAC", "ADDRESSES", "SINCE", "MTU", "SENT", "RECEIVED", "FLOWS", "DROPPED", "LINK")
	for _, g := range list {
		var addrs []string
		for _, a := range g.Addrs {
			addrs = append(addrs, a.String())
		}
		mtu := "" // it has not shown any yet
		if g.MTU > 0 {
			mtu = strconv.Itoa(g.MTU)
		}
		row(w, g.ID, g.Name, g.MAC, strings.Join(addrs, ","), ago(g.Since), mtu, size(g.RxBytes), size(g.TxBytes), g.Flows, counts(g.Dropped), g.Link)
	}
}

func writeForwards(w io.Writer, list []portforward.Status) {
	row(w, "RULE", "STATE", "GUEST", "OPEN", "ACCEPTED", "REFUSED", "TO GUEST", "TO CLIENT", "LAST ERROR")
	for _, f := range list {
		row(w, f.Text, f.State, f.Guest, f.Active, f.Accepted, f.Refused, size(f.ToGuest), size(f.ToClient), f.LastError)
	}
}

func writeFlows(w io.Writer, list []flows.Snapshot) {
	row(w, "ID", "GUEST", "PROTO", "WAY", "FROM", "TO", "STATE", "UP", "DOWN", "IDLE", "AGE")
	for _, f := range list {
		row(w, f.ID, f.Guest, f.Proto, f.Dir, f.Src, f.Dst, f.State, size(f.UpBytes), size(f.DownBytes),
			time.Duration(f.IdleMS)*time.Millisecond, ago(f.Opened))
	}
}

func writeLeases(w io.Writer, list []control.Lease) {
	row(w, "ADDRESS", "MAC", "NAME", "GUEST", "STATE", "LEFT")
	for _, l := range list {
		left, guest := "for ever", l.Guest
		if !l.Static && !l.Expires.IsZero() {
			left = time.Until(l.Expires).Round(time.Second).String()
		}
		if l.Away {
			guest = "away"
		}
		row(w, l.Addr, l.MAC, l.Name, guest, l.State, left)
	}
}

func writeDNS(w io.Writer, list []backend.DNSRecord) {
	row(w, "NAME", "TYPE", "VALUE", "TTL", "FROM")
	for _, r := range list {
		row(w, r.Name, r.Type, r.Value, r.TTL, r.Source)
	}
}

func ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return time.Since(t).Round(time.Second).String()
}

func size(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return strconv.FormatUint(n, 10)
	}
	f, i := float64(n)/1000, 0
	for ; f >= 1000; i++ {
		f /= 1000
	}
	return fmt.Sprintf("%.1f%c", f, units[i])
}
