package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/impair"
)

const impairUsage = "`[GUEST@]LINE` plays a bad line to all guests, or to the one with this name or MAC: a preset as 3g, rate=10mbit,latency=50ms, or down=… up=…; 'vmnetd impair set --help' has the words; may be repeated"

// parseImpair makes what --impair says a configuration's.
func parseImpair(specs []string, c *backend.Config, read fileReader) error {
	for _, spec := range specs {
		guest, text, own := strings.Cut(spec, "@")
		if !own {
			guest, text = "", spec
		}
		s, err := impair.ParseSettings(text, read.trace)
		if err != nil {
			return fmt.Errorf("--impair %s: %w", spec, err)
		}
		if !own {
			c.Impair = &s
			continue
		}
		if guest == "" {
			return fmt.Errorf("--impair %s: no guest before the @: want its name or its MAC", spec)
		}
		if c.GuestImpair == nil {
			c.GuestImpair = map[string]impair.Settings{}
		}
		c.GuestImpair[guest] = s
	}
	return nil
}

// wayFlag is --up or --down: of the flow that --flow named before it, else of what no flow has.
type wayFlag struct {
	change *impairChange
	up     bool
}

func (f *wayFlag) String() string { return "" }
func (f *wayFlag) Type() string   { return "words" }
func (f *wayFlag) Set(s string) error {
	w, err := impair.ParseWay(s, impair.OpenTrace)
	if err != nil {
		return err
	}
	c := f.change
	to := &c.ways
	if len(c.flows) > 0 {
		to = &c.flows[len(c.flows)-1].ways
	}
	if f.up {
		to.up = &w
	} else {
		to.down = &w
	}
	return nil
}

type flowFlag struct{ change *impairChange }

func (f *flowFlag) String() string { return "" }
func (f *flowFlag) Type() string   { return "flow" }
func (f *flowFlag) Set(s string) error {
	name, match, ok := strings.Cut(s, "=")
	if !ok {
		return fmt.Errorf("%q: want NAME=ADDRESS[:PROTOCOL[:PORT[-PORT]]] as dns='*:udp:53'", s)
	}
	m, err := impair.ParseMatch(match)
	if err != nil {
		return err
	}
	f.change.flows = append(f.change.flows, flowChange{name: name, match: m})
	return nil
}

type ways struct{ up, down *impair.Way }

type flowChange struct {
	name  string
	match impair.Match
	ways
}

// impairChange is what a command line says of a line. What it does not say stays.
type impairChange struct {
	ways
	flows []flowChange
	seed  uint64
}

func (c *impairChange) add(fs *pflag.FlagSet) {
	fs.Var(&wayFlag{c, false}, "down", "what the guest gets suffers these `WORDS`, as rate=10mbit,latency=50ms")
	fs.Var(&wayFlag{c, true}, "up", "what the guest sends suffers these `WORDS`")
	fs.Var(&flowFlag{c}, "flow", "some conversations, `NAME=MATCH` as dns='*:udp:53': the --down and --up behind it are theirs; may be repeated")
	fs.Uint64Var(&c.seed, "seed", 0, "`NUMBER` that makes a run repeatable: the same frames are lost with it (default: go on, or a random one)")
}

func (w ways) set(up, down *impair.Way) {
	if w.up != nil {
		*up = *w.up
	}
	if w.down != nil {
		*down = *w.down
	}
}

// change changes settings. A seed counts frames anew, so that in force is not sent again.
func (c *impairChange) change(s *impair.Settings) {
	s.Seed = c.seed
	c.ways.set(&s.Up, &s.Down)
flows:
	for _, f := range c.flows {
		for i := range s.Flows {
			if s.Flows[i].Name == f.name {
				s.Flows[i].Match = f.match
				f.ways.set(&s.Flows[i].Up, &s.Flows[i].Down)
				continue flows
			}
		}
		flow := impair.Flow{Name: f.name, Match: f.match}
		f.ways.set(&flow.Up, &flow.Down)
		s.Flows = append(s.Flows, flow)
	}
}

func impairCommand() *cobra.Command {
	show := func(in *inspector, i backend.ImpairInfo, err error) error {
		return in.show(err, i, func(w io.Writer) { writeImpairs(w, []backend.ImpairInfo{i}) })
	}
	in := &inspector{}
	var change impairChange
	set := in.command("set GUEST [--down WORDS] [--up WORDS] [--flow NAME=MATCH ...]", "Play a bad line to a guest, or change it", cobra.ExactArgs(1),
		func(ctx context.Context, c *control.Client, a []string) error {
			if change.up == nil && change.down == nil && len(change.flows) == 0 && change.seed == 0 {
				return usagef("impair set: what? as in: vmnetd impair set %s --down rate=10mbit,latency=50ms,loss=1%%", a[0])
			}
			now, err := c.Impairment(ctx, a[0])
			if err != nil {
				return err
			}
			s := now.Settings
			change.change(&s)
			if err := s.Check(); err != nil {
				return usageError{err}
			}
			i, err := c.Impair(ctx, a[0], &s)
			return show(in, i, err)
		})
	change.add(set.Flags())
	set.Long = `Play a bad line to a guest from now on, or change the one it has. A direction or flow that is named is as the words say,
all of it; what is not named stays. What waits and is under way is not lost by the change. The guest keeps it when it comes
again, by its MAC or its name, until the daemon ends.

  vmnetd impair set web --down rate=10mbit,latency=50ms,jitter=10ms,loss=1% --up rate=1mbit,latency=50ms
  vmnetd impair set web --flow dns='*:udp:53' --down loss=20%          for some conversations: the first that matches
  vmnetd impair set web --flow api='[2001:db8::/32]:tcp:443' --down latency=1s --flow rest='10.0.0.0/8' --up rate=1mbit
  vmnetd impair set web --down 'latency=20ms;at=10s,loss=30%;at=12s,loss=none;repeat=30s'     as time goes by
  vmnetd impair set web --down trace=Verizon-LTE-short.down,latency=30ms                     Mahimahi's recordings

Words:

` + wordHelp()
	in2 := &inspector{}
	preset := in2.command("preset [GUEST PRESET]", "Play a line that people know, or list those", cobra.RangeArgs(0, 2),
		func(ctx context.Context, c *control.Client, a []string) error {
			if len(a) != 2 {
				return usagef("impair preset: want a guest and a preset: %s", linePresets())
			}
			s, err := impair.Preset(a[1])
			if err != nil {
				return usageError{err}
			}
			i, err := c.Impair(ctx, a[0], &s)
			return show(in2, i, err)
		})
	ask := preset.RunE
	preset.RunE = func(cmd *cobra.Command, a []string) error {
		if len(a) > 0 {
			return ask(cmd, a)
		}
		return in2.show(nil, presetList(), func(w io.Writer) { // no daemon is asked
			head(w, "PRESET", "WHAT", "DOWN", "UP", "FIGURES FROM")
			for _, p := range impair.Presets() {
				s := p.Settings()
				row(w, p.Name, p.Title, s.Down.String(), s.Up.String(), p.Source)
			}
		})
	}
	preset.Long = "Play a line that people know to a guest, in place of the one that it has. Without a guest, list them:\n\n"
	for _, p := range impair.Presets() {
		preset.Long += fmt.Sprintf("  %-12s %s\n", p.Name, p.Title)
	}
	in3 := &inspector{}
	ls := in3.command("show [GUEST]", "Show guests' bad lines, and what became of their frames", cobra.MaximumNArgs(1),
		func(ctx context.Context, c *control.Client, a []string) error {
			if len(a) > 0 {
				i, err := c.Impairment(ctx, a[0])
				return show(in3, i, err)
			}
			return showList(ctx, in3, c, func() ([]backend.ImpairInfo, error) { return c.Impairs(ctx) }, writeImpairs)
		})
	clear := (&inspector{}).command("clear GUEST...", "Take guests' bad lines off", cobra.MinimumNArgs(1),
		func(ctx context.Context, c *control.Client, a []string) error {
			return each(a, func(g string) error { _, err := c.Impair(ctx, g, nil); return err })
		})
	return group("impair", "Play bad lines to guests: slow, late, lossy", "", set, preset, ls, clear)
}

func wordHelp() string {
	var b strings.Builder
	for _, w := range impair.Words() {
		fmt.Fprintf(&b, "  %-22s %s\n", w.Name+"="+w.Example, w.Help)
	}
	return b.String()
}

func linePresets() string {
	var names []string
	for _, p := range impair.Presets() {
		names = append(names, p.Name)
	}
	return strings.Join(names, ", ")
}

type presetInfo struct {
	Name     string          `json:"name"`
	Title    string          `json:"title"`
	Source   string          `json:"source"`
	Settings impair.Settings `json:"settings"`
}

func presetList() (list []presetInfo) {
	for _, p := range impair.Presets() {
		list = append(list, presetInfo{p.Name, p.Title, p.Source, p.Settings()})
	}
	return list
}

func writeImpairs(w io.Writer, list []backend.ImpairInfo) {
	head(w, "GUEST", "NAME", "FLOW", "WAY", "LINE", "FRAMES", "LOST", "QUEUE", "POLICED", "FLAP", "FULL", "DOUBLED", "CORRUPT", "REORDERED", "WAITING", "DELAY")
	for _, i := range list {
		one := func(flow, match, way string, line *impair.Way, all []impair.ClassStats) {
			var s impair.Stats
			for _, c := range all {
				if c.Flow == flow {
					s = c.Stats
				}
			}
			name := flow
			if match != "" {
				name += " " + match
			}
			row(w, i.Guest, i.Name, name, way, line.String(), s.Frames, s.Lost, s.Queue, s.Policed, s.Flap, s.Full, s.Duplicated, s.Corrupted, s.Reordered,
				size(uint64(s.Queued+s.UnderWay)), time.Duration(s.Delay)*time.Microsecond)
		}
		for n := range i.Settings.Flows {
			f := &i.Settings.Flows[n]
			one(f.Name, f.Match.String(), "down", &f.Down, i.Down)
			one(f.Name, f.Match.String(), "up", &f.Up, i.Up)
		}
		one("default", "", "down", &i.Settings.Down, i.Down)
		one("default", "", "up", &i.Settings.Up, i.Up)
	}
}

// impairTexts are lines as --impair takes them.
func impairTexts(c *backend.Config) (list []string) {
	if c.Impair != nil {
		list = append(list, c.Impair.String())
	}
	for guest, s := range c.GuestImpair {
		list = append(list, guest+"@"+s.String())
	}
	slices.Sort(list)
	return list
}
