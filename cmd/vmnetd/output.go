package main

// How answers are printed: the forms that -o knows, and a table for each thing there is to show.

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/portforward"
)

// outputFormat is a form of an answer: for people table, and wide with more columns; for programs json, and yaml with
// the same keys in the same order.
type outputFormat string

var outputFormats = []string{"table", "wide", "json", "yaml"}

func (f *outputFormat) String() string { return string(*f) }
func (f *outputFormat) Type() string   { return "format" }
func (f *outputFormat) Set(s string) error {
	if !slices.Contains(outputFormats, s) {
		return errors.New(didYouMean(s, outputFormats))
	}
	*f = outputFormat(s)
	return nil
}

// flag adds -o to a command.
func (f *outputFormat) flag(cmd *cobra.Command) {
	*f = "table"
	cmd.Flags().VarP(f, "output", "o", "`FORM` of the answer: table, wide (with more columns), json or yaml")
}

// data says that the answer is for programs.
func (f outputFormat) data() bool { return f == "json" || f == "yaml" }

// table is what tables are written to: cells go into columns when it is flushed.
type table struct {
	*tabwriter.Writer
	wide, bare bool
}

// print writes v as a program wants it, or what write writes into a table.
func (f outputFormat) print(out io.Writer, bare bool, v any, write func(io.Writer)) error {
	if !f.data() {
		w := table{tabwriter.NewWriter(out, 0, 0, 2, ' ', 0), f == "wide", bare}
		write(w)
		return w.Flush()
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err
	}
	if f == "json" {
		return writeJSON(out, b.Bytes())
	}
	text, err := yamlOf(b.Bytes())
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return err
}

// writeJSON writes a JSON text in which what a terminal would obey is escaped: the same text to a program. Go's encoder
// escapes of it only what is below a space.
func writeJSON(out io.Writer, text []byte) error {
	b := make([]byte, 0, len(text))
	for _, r := range string(text) {
		if r < 0x7f || unicode.IsPrint(r) {
			b = utf8.AppendRune(b, r)
			continue
		}
		for _, u := range utf16.AppendRune(nil, r) {
			b = fmt.Appendf(b, `\u%04x`, u)
		}
	}
	_, err := out.Write(b)
	return err
}

// one writes one of several that come with time: JSON has a line for each, YAML a document.
func (f outputFormat) one(out io.Writer, v any, write func(io.Writer)) error {
	switch f {
	case "json":
		text, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return writeJSON(out, append(text, '\n'))
	case "yaml":
		if _, err := io.WriteString(out, "---\n"); err != nil {
			return err
		}
	}
	return f.print(out, true, v, write)
}

// show prints an answer, unless there is an error in its place.
func (in *inspector) show(err error, v any, write func(io.Writer)) error {
	if err != nil {
		return err
	}
	return in.format.print(os.Stdout, in.noHeaders, v, write)
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

// wide is a cell of a column that only wide tables have.
type wide struct{ cell any }

// head writes a table's first line, unless nobody wants it.
func head(w io.Writer, cells ...any) {
	if t, ok := w.(table); ok && t.bare {
		return
	}
	row(w, cells...)
}

// row writes one line of a table. What guests choose, names above all, must not reach the terminal as it is.
func row(w io.Writer, cells ...any) {
	t, _ := w.(table)
	var line strings.Builder
	n := 0
	for _, c := range cells {
		if more, ok := c.(wide); ok {
			if !t.wide {
				continue
			}
			c = more.cell
		}
		if n++; n > 1 {
			line.WriteByte('\t')
		}
		line.WriteString(cmp.Or(visible(fmt.Sprint(c)), "-"))
	}
	line.WriteByte('\n')
	io.WriteString(w, line.String())
}

// visible is s without what a terminal would obey: control characters, and those that turn text around.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

func writeStatus(w io.Writer, st control.Status) {
	row(w, "vmnetd", fmt.Sprintf("%s, pid %d", st.Version, st.PID))
	for _, l := range st.Listen {
		row(w, "guests at", l)
	}
	for _, l := range st.API {
		row(w, "API at", l)
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
		if n.NoUplink {
			writePlain(w, n)
			continue
		}
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

// writePlain is a network's without an uplink: nobody but the guests is there.
func writePlain(w io.Writer, n backend.Status) {
	if n.Wire {
		row(w, "wire", "two guests, and whatever one sends the other")
	} else {
		row(w, "no uplink", "a plain switch")
	}
	for _, p := range []netip.Prefix{n.Prefix4, n.Prefix6} {
		if p.IsValid() {
			row(w, "addresses", p)
		}
	}
	if n.Isolate {
		row(w, "isolate", "guests are kept from one another")
	}
	row(w, "guests", n.Guests)
	row(w, "dropped", counts(n.Refused))
	for _, warn := range n.Warnings {
		row(w, "warning", warn)
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
	head(w, "ID", "NAME", wide{"MAC"}, "ADDRESSES", "SINCE", wide{"MTU"}, "SENT", "RECEIVED", "FLOWS", "DROPPED", wide{"QUEUED"}, wide{"LINK"})
	for _, g := range list {
		var addrs []string
		for _, a := range g.Addrs {
			addrs = append(addrs, a.String())
		}
		mtu := "" // it has not shown any yet
		if g.MTU > 0 {
			mtu = strconv.Itoa(g.MTU)
		}
		var dropped uint64
		for _, n := range g.Dropped {
			dropped += n
		}
		drops := strconv.FormatUint(dropped, 10)
		if t, ok := w.(table); ok && t.wide {
			drops = counts(g.Dropped)
		}
		row(w, g.ID, g.Name, wide{g.MAC}, strings.Join(addrs, ","), ago(g.Since), wide{mtu}, size(g.RxBytes), size(g.TxBytes), g.Flows, drops,
			wide{size(uint64(g.Queued))}, wide{strings.TrimSuffix(g.Link+", "+g.Port, ", ")})
	}
}

func writeForwards(w io.Writer, list []portforward.Status) {
	head(w, "RULE", "STATE", "GUEST", "OPEN", "ACCEPTED", "REFUSED", "TO GUEST", "TO CLIENT", wide{"SINCE"}, wide{"ID"}, "LAST ERROR")
	for _, f := range list {
		row(w, f.Text, f.State, f.Guest, f.Active, f.Accepted, f.Refused, size(f.ToGuest), size(f.ToClient), wide{ago(f.Since)}, wide{f.ID}, f.LastError)
	}
}

func writeLeases(w io.Writer, list []control.Lease) {
	head(w, "ADDRESS", "MAC", "NAME", "GUEST", "STATE", "LEFT", wide{"SINCE"}, wide{"HOST NAME"}, wide{"CLIENT ID"})
	for _, l := range list {
		left, guest := "for ever", l.Guest
		if !l.Static && !l.Expires.IsZero() {
			left = while(time.Until(l.Expires))
		}
		if l.Away {
			guest = "away"
		}
		row(w, l.Addr, l.MAC, l.Name, guest, l.State, left, wide{ago(l.Start)}, wide{l.Hostname}, wide{l.ClientID})
	}
}

func writeDNS(w io.Writer, list []backend.DNSRecord) {
	head(w, "NAME", "TYPE", "VALUE", "TTL", "FROM")
	for _, r := range list {
		row(w, r.Name, r.Type, r.Value, r.TTL, r.Source)
	}
}

// ago is how long ago t was, as tables have it.
func ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return while(time.Since(t))
}

// while is a time in two units at most, which is as much as anybody reads: 12s, 3m40s, 5h20m, 4d7h.
func while(d time.Duration) string {
	s := int64(max(0, d).Round(time.Second) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%ds", s/60, s%60)
	case s < 24*3600:
		return fmt.Sprintf("%dh%dm", s/3600, s%3600/60)
	}
	return fmt.Sprintf("%dd%dh", s/(24*3600), s%(24*3600)/3600)
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

func writeEvents(w io.Writer, list []backend.Event, headed bool) {
	several := slices.ContainsFunc(list, func(e backend.Event) bool { return e.Network != list[0].Network })
	line := func(put func(io.Writer, ...any), network string, cells ...any) {
		if several {
			cells = append([]any{network}, cells...)
		}
		put(w, cells...)
	}
	if headed {
		line(head, "NETWORK", wide{"ID"}, "TIME", "KIND", "GUEST", wide{"SUBJECT"}, wide{"REASON"}, wide{"COUNT"}, "WHAT")
	}
	for _, e := range list {
		text := e.Text
		if e.Missed > 0 {
			text += fmt.Sprintf(" (and %d like it before)", e.Missed)
		}
		line(row, e.Network, wide{e.ID}, e.Time.Local().Format(time.DateTime), e.Kind, e.Guest, wide{e.Subject}, wide{e.Reason}, wide{e.Count}, text)
	}
}
