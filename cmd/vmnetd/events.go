package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
)

func eventsCommand() *cobra.Command {
	in := &inspector{}
	var follow bool
	var since, guest string
	var kinds []string
	known := make([]string, len(backend.EventKinds))
	for i, k := range backend.EventKinds {
		known[i] = string(k)
	}
	c := in.lasting("events", "Show what happened, and follow it", cobra.ExactArgs(0), func(ctx context.Context, c *control.Client, _ []string) error {
		from, err := eventsSince(since, time.Now())
		if err != nil {
			return err
		}
		for _, k := range kinds {
			if !slices.Contains(known, k) {
				return usagef("--kind %s: %s", k, didYouMean(k, known))
			}
		}
		wanted := func(e backend.Event) bool {
			return (len(kinds) == 0 || slices.Contains(kinds, string(e.Kind))) && (guest == "" || e.Guest == guest)
		}
		if guest != "" {
			// Events have ids. A guest that has gone has no other name any more.
			if g, err := c.Guest(ctx, guest); err == nil {
				guest = g.ID
			}
		}
		if !follow {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			list, err := c.Events(ctx, from)
			list = slices.DeleteFunc(list, func(e backend.Event) bool { return !wanted(e) })
			return in.show(err, list, func(w io.Writer) { writeEvents(w, list, true) })
		}
		err = c.FollowEvents(ctx, from, func(e backend.Event, lost uint64) error {
			if lost > 0 {
				fmt.Fprintf(os.Stderr, "vmnetd: %d events of network %s are missing here: they were not read in time\n", lost, e.Network)
			}
			if !wanted(e) {
				return nil
			}
			return in.format.one(os.Stdout, e, func(w io.Writer) { writeEvents(w, []backend.Event{e}, false) })
		})
		if errors.Is(err, io.EOF) {
			return errors.New("the daemon has ended")
		}
		return err
	})
	c.Long = `Show what happened in the daemon's networks, the newest last: guests that were plugged in and have gone, leases, limits
that guests met, what they tried and may not, warnings and their ends, forwards, policies, questions and answers.

The last 2,048 events of each network are there. What guests may cause without end is counted rather than told each time.
With -o json they are an array; with --follow an object a line.

Kinds: ` + strings.Join(known, ", ")
	c.Example = `  vmnetd events --since 5m
  vmnetd events --follow --kind refused --guest web`
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with those that come, until ^C")
	c.Flags().StringVar(&since, "since", "", "only those after `WHEN`: an event's id, a time as 2026-11-21T13:00:00Z, or so long ago, as 5m")
	c.Flags().StringArrayVar(&kinds, "kind", nil, "only of this `KIND`; may be repeated")
	c.Flags().StringVar(&guest, "guest", "", "only of this `GUEST`: id, name, MAC or address")
	return c
}

// eventsSince reads when as the id of an event: ids are microseconds.
func eventsSince(when string, now time.Time) (uint64, error) {
	if when == "" {
		return 0, nil
	}
	if id, err := strconv.ParseUint(when, 10, 64); err == nil {
		return id, nil
	}
	if d, err := time.ParseDuration(when); err == nil && d >= 0 {
		return uint64(now.Add(-d).UnixMicro()), nil
	}
	for _, form := range []string{time.RFC3339, time.DateTime} {
		if t, err := time.ParseInLocation(form, when, time.Local); err == nil && t.UnixMicro() >= 0 {
			return uint64(t.UnixMicro()), nil
		}
	}
	return 0, usagef("--since %s: want an event's id, a time as 2026-11-21T13:00:00Z, or a while as 5m", when)
}
