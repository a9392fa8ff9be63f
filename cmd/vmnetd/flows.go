package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/flows"
)

// flowsCommand lists conversations, and tells what becomes of them.
func flowsCommand() *cobra.Command {
	in := &inspector{}
	var f control.FlowFilter
	var follow bool
	do := func(ctx context.Context, c *control.Client, _ []string) error {
		if f.Limit < 0 {
			return usagef("--limit %d: want 1 or more", f.Limit)
		}
		if follow {
			return followFlows(ctx, in, c, f)
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return showList(ctx, in, c, func() ([]flows.Snapshot, error) { return c.Flows(ctx, f) }, writeFlows)
	}
	list, ls := in.lasting("flows", "List conversations, and follow them", cobra.NoArgs, do), in.lasting("ls", "List the conversations", cobra.NoArgs, do)
	list.Long = `List conversations, the oldest first, and with --follow tell what becomes of them: those that are there, then each as it is
opened, changed, ended or refused.

What has lately ended is listed with --state closed, and what was refused, with the reason, with --state refused.`
	list.Example = `  vmnetd flows --guest web --sort bytes --limit 10
  vmnetd flows --state refused -o wide              # what was not let in, and why
  vmnetd flows --follow --name debian.org
  vmnetd flows --follow -o json | jq 'select(.kind == "ended")'`
	for _, c := range []*cobra.Command{list, ls} {
		fs := c.Flags()
		fs.StringVar(&f.Guest, "guest", "", "only this `GUEST`'s: id, name, MAC or address")
		fs.StringVar(&f.Proto, "proto", "", "only this `PROTOCOL`: tcp, udp, icmp, icmp6")
		fs.StringVar(&f.State, "state", "", "only in this `STATE`: dialing, open, closing; closed and refused are those of lately")
		fs.StringVar(&f.Direction, "direction", "", "only this `WAY`: in or out")
		fs.StringVar(&f.Name, "name", "", "only with this `TEXT` in a name: one that was said, or that DNS answers had")
		fs.StringVar(&f.Address, "address", "", "only with this `ADDRESS`, or one in this prefix, at either end")
		fs.Uint16Var(&f.Port, "port", 0, "only to this `PORT`")
		fs.StringVar(&f.Verdict, "verdict", "", "only with this `VERDICT`: allowed, asked, refused")
		fs.StringVar(&f.Reason, "reason", "", "only what ended, or was refused, for this `REASON`")
		fs.Uint64Var(&f.MinBytes, "min-bytes", 0, "only with this many `BYTES` or more, both ways together")
		fs.StringVar(&f.Sort, "sort", "", "by `WHAT`: bytes, up, down, opened or idle, the largest first")
		fs.IntVar(&f.Limit, "limit", 0, "at most `N`")
		fs.BoolVarP(&follow, "follow", "f", false, "go on with what becomes of them, until ^C")
	}
	list.AddCommand(ls)
	return list
}

// flowNews is a line of --follow.
type flowNews struct {
	Kind string `json:"kind"` // present, opened, changed, ended or refused
	control.FlowEntry
}

func followFlows(ctx context.Context, in *inspector, c *control.Client, f control.FlowFilter) error {
	if f.Limit > 0 {
		return usagef("--limit goes without --follow")
	}
	tell := func(kind string, e control.FlowEntry) error {
		return in.format.one(os.Stdout, flowNews{kind, e}, func(w io.Writer) { writeFlowNews(w, kind, e) })
	}
	first := true
	err := c.FollowFlows(ctx, f, func(e control.FlowEvent) error {
		switch e.Kind {
		case "flows":
			for _, x := range e.Flows {
				if err := tell("present", x); first && err != nil {
					return err
				}
			}
		case "listed":
			first = false
		case "lost":
			fmt.Fprintf(os.Stderr, "vmnetd: %d changes in network %s are missing here: they were not read in time; what is there comes again\n", e.Lost, visible(e.Network))
		case "opened", "changed", "ended", "refused":
			if e.Flow != nil {
				return tell(e.Kind, *e.Flow)
			}
		}
		return nil
	})
	if errors.Is(err, io.EOF) {
		return errors.New("the daemon has ended")
	}
	return err
}

func writeFlowNews(w io.Writer, kind string, f control.FlowEntry) {
	at := time.Now()
	switch {
	case !f.Ended.IsZero():
		at = f.Ended
	case kind == "opened":
		at = f.Opened
	}
	what := f.State
	if f.Reason != "" {
		what = f.Reason
	}
	if f.Missed > 0 {
		what += fmt.Sprintf(" (and %d before)", f.Missed)
	}
	row(w, at.Local().Format(time.TimeOnly), wide{f.Network}, kind, f.Guest, f.Proto, f.Src, arrow(f.Snapshot), f.Dst, flowName(f.Snapshot), what,
		size(f.UpBytes), size(f.DownBytes), wide{cmp.Or(f.Rule, f.Policy)})
}

func arrow(f flows.Snapshot) string {
	if f.Dir == flows.In {
		return "=>"
	}
	return "->"
}

// flowName is what the far end is called: what the guest's first bytes said, else what its DNS answers had.
func flowName(f flows.Snapshot) string {
	if f.Name == "" && len(f.Names) > 0 {
		return f.Names[0]
	}
	return f.Name
}

func writeFlows(w io.Writer, list []flows.Snapshot) {
	ended := slices.ContainsFunc(list, func(f flows.Snapshot) bool { return f.Reason != "" })
	cells := func(put func(io.Writer, ...any), reason any, rest ...any) {
		if ended {
			rest = slices.Insert(rest, 8, reason)
		}
		put(w, rest...)
	}
	cells(head, "REASON", "ID", "GUEST", "PROTO", "WAY", "FROM", "TO", "NAME", "STATE", "UP", "DOWN", "IDLE", "AGE",
		wide{"WAITS"}, wide{"PACKETS UP"}, wide{"PACKETS DOWN"}, wide{"NAMES"}, wide{"VERDICT"}, wide{"HOST"}, wide{"FORWARD"}, wide{"POLICY"})
	for _, f := range list {
		host := ""
		if f.Host.IsValid() {
			host = f.Host.String()
		}
		cells(row, f.Reason, f.ID, f.Guest, f.Proto, f.Dir, f.Src, f.Dst, flowName(f), f.State, size(f.UpBytes), size(f.DownBytes),
			while(time.Duration(f.IdleMS)*time.Millisecond), ago(f.Opened),
			wide{f.Waits}, wide{f.UpPkts}, wide{f.DownPkts}, wide{strings.Join(f.Names, ",")}, wide{f.Verdict}, wide{host}, wide{f.Rule}, wide{f.Policy})
	}
}
