package main

// A configuration that is read again while the daemon runs. What can change is changed, all of it or, if anything is wrong,
// nothing; what cannot is named. Which is which says live, and what of the daemon's file is in force by then, forceable.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/config"
	"github.com/vmnetd/vmnetd/policy"
	"github.com/vmnetd/vmnetd/portforward"
)

// givenFlag is a flag of a command line with what it was given.
type givenFlag struct {
	name   string
	values []string
}

// givenFlags are those that a command line has.
func givenFlags(fs *pflag.FlagSet) (list []givenFlag) {
	fs.Visit(func(f *pflag.Flag) {
		g := givenFlag{f.Name, []string{f.Value.String()}}
		if l, ok := f.Value.(pflag.SliceValue); ok {
			g.values = l.GetSlice()
		}
		list = append(list, g)
	})
	return list
}

// give sets flags as they were given. Those that fs has not are another command's own.
func give(fs *pflag.FlagSet, list []givenFlag) error {
	for _, g := range list {
		if fs.Lookup(g.name) == nil {
			continue
		}
		for _, v := range g.values {
			if err := fs.Set(g.name, v); err != nil {
				return fmt.Errorf("--%s %s: %w", g.name, v, err)
			}
		}
	}
	return nil
}

// reloader reads a daemon's configuration again.
type reloader struct {
	d       *daemon
	path    string // as it was given
	given   []givenFlag
	log     io.Writer
	journal bool
	only    bool     // run's flags
	policy  []string // files that flags name: of policies, and traces of bad lines

	begun sync.Once
	mu    sync.Mutex   // one at a time, and none before the daemon has started
	over  bool         // the daemon ends
	file  *config.File // in force
	plans []plan       // as file has them

	waitMu  sync.Mutex
	waiting *reloadCall
}

// reloadCall is a reading that has not begun. Who comes before it does shares it.
type reloadCall struct {
	done   chan struct{}
	result control.Reload
	err    error
}

// newReloader is nil if no file was named. It reads nothing before ready is called.
func newReloader(d *daemon, f *serveFlags, plans []plan, log io.Writer) (*reloader, error) {
	if f.file == "" {
		return nil, nil
	}
	file, err := f.fileOf(plans)
	if err != nil {
		return nil, err
	}
	r := &reloader{d: d, path: f.file, given: f.given, log: log, journal: f.n.journal, only: f.only, file: file, plans: slices.Clone(plans)}
	if r.path != "-" {
		if r.path, err = filepath.Abs(r.path); err != nil {
			return nil, err
		}
	}
	for _, g := range f.given {
		if g.name == "policy-file" {
			r.policy = append(r.policy, g.values...)
		}
		if g.name == "impair" {
			for _, spec := range g.values {
				r.policy = append(r.policy, tracesOf(spec, nil)...)
			}
		}
		if g.name == "network" {
			for _, spec := range g.values {
				for _, part := range splitCommas(spec) {
					if path, ok := strings.CutPrefix(part, "policy-file="); ok {
						r.policy = append(r.policy, path)
					}
					if spec, ok := strings.CutPrefix(part, "impair="); ok {
						r.policy = append(r.policy, tracesOf(spec, nil)...)
					}
				}
			}
		}
	}
	r.mu.Lock()
	return r, nil
}

// ready says that the daemon has started: all that changes with a configuration is there.
func (r *reloader) ready() {
	if r != nil {
		r.begun.Do(r.mu.Unlock)
	}
}

// run reads the file and has in force what can be. Of those who ask while it is done, all get the one reading that begins
// after that: a hundred at once are two.
func (r *reloader) run(ctx context.Context) (control.Reload, error) {
	r.waitMu.Lock()
	c := r.waiting
	if c == nil {
		c = &reloadCall{done: make(chan struct{})}
		r.waiting = c
		r.d.controlling.Go(func() { // it is not cut off by a client that hangs up
			defer close(c.done)
			r.mu.Lock()
			defer r.mu.Unlock()
			r.waitMu.Lock()
			r.waiting = nil
			r.waitMu.Unlock()
			c.result, c.err = r.once()
		})
	}
	r.waitMu.Unlock()
	select {
	case <-c.done:
		return c.result, c.err
	case <-ctx.Done():
		return control.Reload{}, ctx.Err()
	}
}

// stop ends it, after what is under way.
func (r *reloader) stop() {
	if r != nil {
		r.ready()
		r.mu.Lock()
		r.over = true
		r.mu.Unlock()
	}
}

// once is called with mu. It tells of what came of it.
func (r *reloader) once() (control.Reload, error) {
	if r.over {
		return control.Reload{}, &control.Problem{Status: http.StatusServiceUnavailable, Title: http.StatusText(http.StatusServiceUnavailable), Detail: "the daemon ends"}
	}
	r.d.service.reloading()
	defer r.d.service.reloaded()
	result, err := r.read()
	if err != nil {
		what, more, _ := strings.Cut(err.Error(), "\n") // the file's own lines are for people: they are in the answer
		if n := strings.Count(more, "^\n"); n > 0 {
			what += fmt.Sprintf(" (and %d more)", n)
		}
		r.d.log.Error("configuration not read again: nothing was changed", "file", r.path, "error", what)
		r.note("nothing was changed: " + what)
		var p *control.Problem
		if errors.As(err, &p) {
			return result, p
		}
		return result, control.ReloadProblem(err)
	}
	r.d.log.Info("configuration read again", "file", r.path, "changed", len(result.Changed), "restart", len(result.Restart), "unchanged", len(result.Unchanged))
	for _, c := range result.Changed {
		r.d.log.Info("configuration changed", "network", c.Network, "what", c.String())
	}
	for _, c := range result.Restart {
		r.d.log.Warn("configuration needs a restart", "network", c.Network, "what", c.String())
	}
	text := fmt.Sprintf("%s: %d changed, %d need a restart", r.path, len(result.Changed), len(result.Restart))
	if all := slices.Concat(result.Changed, result.Restart); len(all) > 0 {
		text += ": " + all[0].String()
		if len(all) > 1 {
			text += ", …"
		}
	}
	r.note(text)
	return result, nil
}

// note is an event of the first network's: the daemon has none.
func (r *reloader) note(text string) {
	r.d.net.Note(backend.Event{Kind: backend.EventReload, Subject: r.path, Text: text})
}

// files are what the configuration is made of, now.
func (r *reloader) files() (fileSet, error) {
	if r.path == "-" {
		return fileSet{}, errors.New("the configuration came from standard input: there is no file to read again; name one with --config")
	}
	if l := r.d.cage.library; l != nil {
		return l.read()
	}
	return readSet(r.path, r.policy), nil
}

// read is all or nothing.
func (r *reloader) read() (result control.Reload, err error) {
	result.File = r.path
	set, err := r.files()
	if err != nil {
		return result, err
	}
	text, err := set.read(r.path, config.MaxSize)
	if err != nil {
		return result, fmt.Errorf("%s: %w", r.path, err)
	}
	parsed, err := config.Parse(r.path, text)
	if err != nil {
		return result, err
	}
	var f serveFlags
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	if r.only {
		f.addRun(flags)
	} else {
		f.add(flags)
	}
	f.files, f.n.journal = set.read, r.journal
	if err := give(flags, r.given); err != nil {
		return result, err
	}
	f.given = r.given
	if err := f.apply(parsed, flags); err != nil {
		return result, err
	}
	plans, err := f.plans(flags, r.log)
	if err != nil {
		return result, err
	}
	file, err := f.fileOf(plans)
	if err != nil {
		return result, err
	}
	ch := &change{r: r, parsed: parsed, wanted: file, plans: plans}
	return result, ch.apply(&result)
}

// change is one file that takes another's place.
type change struct {
	r      *reloader
	parsed *config.File // for places
	wanted *config.File // what the file and the flags come to
	plans  []plan       // the same
	notes  map[string]string

	undo []func()
}

// place says where in the file an error is: at the value of a flag that is meant.
func (ch *change) place(network, flag string, is func(value string) bool, err error) error {
	for _, s := range ch.parsed.Settings() {
		if s.Flag == flag && (s.Network == config.Daemon || network == "" || ch.parsed.NetworkName(s.Network) == network) && is(s.Value) {
			return ch.parsed.Fault(s, err)
		}
	}
	return err
}

// apply has in force what can be.
func (ch *change) apply(result *control.Reload) (err error) {
	r, d := ch.r, ch.r.d
	ch.notes = map[string]string{}
	old := r.file
	if was, now := old.NetworkName(0), ch.wanted.NetworkName(0); was != now {
		// Which one doors without a network lead to is nothing that can change under guests.
		other, same := config.Diff(old, ch.wanted)
		result.Restart, result.Unchanged = ch.list(other), ch.list(same)
		for i := range result.Restart {
			result.Restart[i].Note = fmt.Sprintf("the first network is the daemon's own, and was %s", was)
		}
		return nil
	}
	defer func() {
		if err != nil {
			for _, f := range slices.Backward(ch.undo) {
				f()
			}
		}
	}()
	force, plans := ch.forceable()
	gone, come, err := ch.doors(force)
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(d.doors), func(x *door) bool { return slices.Contains(gone, x) })
	doors := slices.Concat(left, come)
	var made []*backend.Network
	again := []control.Change{}
	for i := range plans {
		p := plans[i]
		p.cfg = d.complete(plans, i, doors)
		n := d.named(nameOf(p.cfg))
		if n == nil {
			if n, err = ch.make(p); err != nil {
				return err
			}
			made = append(made, n)
			continue
		}
		done, err := n.Reload(context.Background(), p.cfg)
		if err != nil {
			return ch.fault(nameOf(p.cfg), err)
		}
		ch.undo = append(ch.undo, func() {
			if err := done.Undo(); err != nil {
				d.log.Error("what was changed cannot be taken back", "network", nameOf(p.cfg), "error", err)
			}
		})
		key := func(word string) string { return fmt.Sprintf("networks[%d].%s", i, word) }
		const note = "it had been removed meanwhile"
		for _, f := range done.Again {
			again = append(again, control.Change{Network: nameOf(p.cfg), Key: key("forward"), What: control.ChangeAdded, New: f.String(), Note: note})
		}
		for _, x := range done.AgainRecords {
			again = append(again, control.Change{Network: nameOf(p.cfg), Key: key("dns-record"), What: control.ChangeAdded, New: x.String(), Note: note})
		}
		if err := ch.setPolicy(n, old, force, p); err != nil {
			return err
		}
	}
	// From here on nothing can fail.
	d.swap(doors, made)
	for _, x := range come {
		d.letIn(x)
	}
	for _, x := range gone {
		x.end()
		x.close()
	}
	d.server.SetListen(d.places())
	changed, same := config.Diff(old, force)
	restart, _ := config.Diff(force, ch.wanted)
	result.Changed, result.Restart, result.Unchanged = append(ch.list(changed), again...), ch.list(restart), ch.list(same)
	for i, c := range result.Changed {
		if c.Key != "" && strings.HasSuffix(c.Key, ".forward") && c.What == control.ChangeRemoved {
			result.Changed[i].Note = "its TCP conversations go on"
		}
	}
	r.file, r.plans = force, plans
	return nil
}

// forceable is the file that can be in force now: the old one, with what is live of the new one, and its networks.
func (ch *change) forceable() (*config.File, []plan) {
	old, wanted := ch.r.file, ch.wanted
	force := *old
	force.Networks = slices.Clone(old.Networks)
	plans := slices.Clone(ch.r.plans)
	for i := range force.Networks {
		j := slices.IndexFunc(wanted.Networks, func(n config.Network) bool { return n.Name == force.Networks[i].Name })
		if j < 0 {
			continue
		}
		n, to := &force.Networks[i], wanted.Networks[j]
		n.DNSRecord, n.Static, n.Limits, n.GuestLimits, n.Impair = to.DNSRecord, to.Static, to.Limits, to.GuestLimits, to.Impair
		n.Policy = to.Policy
		n.Policy.Audit = force.Networks[i].Policy.Audit
		p := &plans[slices.IndexFunc(plans, func(p plan) bool { return nameOf(p.cfg) == n.Name })]
		q := ch.plans[slices.IndexFunc(ch.plans, func(p plan) bool { return nameOf(p.cfg) == n.Name })]
		p.cfg.Records, p.cfg.Static, p.cfg.Limits, p.cfg.GuestLimits = q.cfg.Records, q.cfg.Static, q.cfg.Limits, q.cfg.GuestLimits
		p.cfg.Impair, p.cfg.GuestImpair = q.cfg.Impair, q.cfg.GuestImpair
		p.policy.doc = q.policy.doc
		was := p.cfg.Forwards
		n.Forward, p.cfg.Forwards = nil, nil
		for _, rule := range q.cfg.Forwards {
			if err := ch.r.d.allowForward(rule); err != nil && !slices.Contains(was, rule) {
				ch.notes["forward "+rule.String()] = err.Error()
				continue
			}
			p.cfg.Forwards = append(p.cfg.Forwards, rule)
		}
		n.Forward = texts(p.cfg.Forwards)
	}
	for j, n := range wanted.Networks {
		if slices.ContainsFunc(force.Networks, func(o config.Network) bool { return o.Name == n.Name }) {
			continue
		}
		if why := ch.cannotMake(ch.plans[j].cfg); why != "" {
			ch.notes["network "+n.Name] = why
			continue
		}
		force.Networks, plans = append(force.Networks, n), append(plans, ch.plans[j])
	}
	return &force, plans
}

// cannotMake is why a network cannot be made before a restart.
func (ch *change) cannotMake(c backend.Config) string {
	if !ch.r.d.caged() {
		return ""
	}
	known, names := false, false
	for _, n := range ch.r.d.nets {
		o := n.Config()
		known, names = known || o.StateDir == c.StateDir, names || len(o.Resolvers) == 0
	}
	switch {
	case c.StateDir != "" && !known:
		return "the sandbox keeps the daemon from writing to " + c.StateDir
	case len(c.Resolvers) == 0 && !names:
		return "the sandbox keeps the daemon from reading which resolvers the host has; say resolver, or restart it"
	}
	for _, f := range c.Forwards {
		if err := ch.r.d.allowForward(f); err != nil {
			return err.Error()
		}
	}
	return ""
}

// make makes a network that was not there.
func (ch *change) make(p plan) (*backend.Network, error) {
	d := ch.r.d
	name := nameOf(p.cfg)
	p.cfg.Logger = d.log
	n, err := d.makeNetwork(p)
	if n != nil {
		ch.undo = append(ch.undo, func() {
			d.forgetPolicy(name)
			n.Close()
		})
	}
	if err != nil {
		return nil, ch.fault(name, err)
	}
	return n, nil
}

// fault says where an error of a network is.
func (ch *change) fault(name string, err error) error {
	var forward *portforward.Error
	var record *backend.RecordError
	var usage usageError
	if errors.As(err, &usage) {
		err = usage.error
	}
	switch {
	case errors.As(err, &forward):
		return ch.place(name, "forward", func(v string) bool {
			rules, perr := portforward.ParseRule(v)
			return perr == nil && slices.ContainsFunc(rules, func(r portforward.Rule) bool { return r.String() == forward.Rule })
		}, err)
	case errors.As(err, &record):
		return ch.place(name, "dns-record", func(v string) bool {
			r, perr := backend.ParseDNSRecord(v)
			return perr == nil && r == record.Record
		}, err)
	}
	for i := range ch.parsed.Networks {
		if ch.parsed.NetworkName(i) == name {
			return ch.parsed.NetworkFault(i, err)
		}
	}
	return err
}

// setPolicy has a network's policy changed if the file's has: what people set meanwhile stays else.
func (ch *change) setPolicy(n *backend.Network, old, force *config.File, p plan) error {
	name := nameOf(p.cfg)
	of := func(f *config.File) (c config.Policy) {
		for i, n := range f.Networks {
			if f.NetworkName(i) == name {
				c = n.Policy
			}
		}
		c.Audit = nil
		return c
	}
	if a, b := of(old), of(force); a.Preset == b.Preset && a.Rules == b.Rules {
		return nil
	}
	rules := ch.r.d.policyOf(name)
	if rules == nil {
		return nil
	}
	was := rules.Document()
	if err := rules.Replace(p.policy.doc); err != nil {
		return ch.fault(name, err)
	}
	n.SetPolicy(rules, false)
	n.Note(backend.Event{Kind: backend.EventPolicy, Text: "the configuration's policy was set"})
	ch.undo = append(ch.undo, func() {
		if err := rules.Replace(was); err == nil {
			n.SetPolicy(rules, false)
		}
	})
	return nil
}

// doors opens those that are new and can be, and finds those that are gone. What is in force of them goes into force.
func (ch *change) doors(force *config.File) (gone, come []*door, err error) {
	d := ch.r.d
	d.makeGuestLog()
	for _, f := range framings {
		was, now := *doorsOf(ch.r.file, f), *doorsOf(ch.wanted, f)
		list := []string{}
		for _, addr := range was {
			i := slices.IndexFunc(d.doors, func(x *door) bool { return x.framing == f && x.said == addr })
			switch {
			case slices.Contains(now, addr):
				list = append(list, addr)
			case i < 0: // it has ended
			case !d.doors[i].canGo():
				ch.notes[f.name+" "+addr] = "its guest has the one end of it"
				list = append(list, addr)
			default:
				gone = append(gone, d.doors[i])
			}
		}
		for _, addr := range now {
			if slices.Contains(was, addr) {
				continue
			}
			if why := d.cannotOpen(f, addr, force, gone); why != "" {
				ch.notes[f.name+" "+addr] = why
				continue
			}
			x, err := openDoor(f, addr, d.guestLog)
			if err != nil {
				return nil, nil, ch.place("", f.name, func(v string) bool { return v == addr }, err)
			}
			ch.undo = append(ch.undo, x.close)
			come, list = append(come, x), append(list, addr)
		}
		*doorsOf(force, f) = list
	}
	return gone, come, nil
}

// doorsOf are a file's doors of a framing.
func doorsOf(f *config.File, of *framing) *[]string {
	return map[*framing]*[]string{&qemuFraming: &f.Doors.QEMU, &hyperkitFraming: &f.Doors.HyperKit, &vdeFraming: &f.Doors.VDE, &vfkitFraming: &f.Doors.VFKit,
		&dgramFraming: &f.Doors.Dgram, &bessFraming: &f.Doors.Bess, &netnsFraming: &f.Doors.Netns}[of]
}

// canGo says whether the door can be closed with its guests plugged in.
func (d *door) canGo() bool {
	kind, _, _ := strings.Cut(d.said, ":")
	return d.in != nil && kind != "fd"
}

// cannotOpen is why a door cannot be opened before a restart.
func (d *daemon) cannotOpen(f *framing, addr string, force *config.File, gone []*door) string {
	a, _, err := f.parse(addr)
	if err != nil {
		return "" // openDoor says what is wrong
	}
	switch a.kind {
	case "unix", "tcp", "udp", "vsock", "fds":
	default:
		return "it is opened when the daemon starts"
	}
	if name, ok := a.options["network"]; ok && !slices.ContainsFunc(force.Networks, func(n config.Network) bool { return n.Name == name }) {
		return fmt.Sprintf("network %s needs one", name)
	}
	if a.kind == "unix" || a.kind == "fds" {
		path, _ := filepath.Abs(a.rest)
		for _, x := range gone {
			if _, at, _ := strings.Cut(x.addr, ":"); at == path {
				return "the door that is there goes first"
			}
		}
	} else if slices.ContainsFunc(gone, func(x *door) bool { _, at, _ := strings.Cut(x.said, ":"); return firstPart(at) == a.rest }) {
		return "the door that is there goes first"
	}
	if !d.caged() {
		return ""
	}
	datagrams := f == &vfkitFraming || f == &dgramFraming
	switch {
	case a.kind == "vsock" && !d.cage.plan.Vsock, a.kind == "unix" && datagrams && !d.cage.plan.Datagrams,
		(a.kind == "unix" || a.kind == "fds") && !datagrams && !d.cage.plan.Streams:
		return "the sandbox keeps the daemon from making such a socket; started with this door, with --sandbox-folder or with --sandbox off it can"
	case a.kind == "unix" || a.kind == "fds":
		path, err := filepath.Abs(a.rest)
		if err == nil {
			err = d.allowSocket(filepath.Dir(path), "this door")
		}
		if err != nil {
			return err.Error()
		}
	}
	return ""
}

func firstPart(s string) string { return splitCommas(s)[0] }

// list is differences as the API has them.
func (ch *change) list(diffs []config.Difference) []control.Change {
	list := []control.Change{}
	for _, x := range diffs {
		c := control.Change{Network: x.Network, Key: x.Key, What: control.ChangeChanged, Old: oneOf(x.Old), New: oneOf(x.New)}
		switch {
		case x.Added:
			c.What = control.ChangeAdded
		case x.Removed:
			c.What = control.ChangeRemoved
		case x.Old == x.New:
			c.What, c.Old = control.ChangeNone, ""
		}
		value := x.New
		if x.Removed {
			value = x.Old
		}
		if x.Flag == "" {
			c.Note = ch.notes["network "+value]
			if x.Removed {
				c.Note = "its guests stay until then"
			}
		} else {
			c.Note = ch.notes[x.Flag+" "+value]
		}
		list = append(list, c)
	}
	return list
}

// oneOf is a value in a line: rules of a policy have many.
func oneOf(s string) string {
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	if len(lines) == 1 {
		return lines[0]
	}
	return fmt.Sprintf("%s … (%d lines)", lines[0], len(lines))
}

// What of a daemon changes with its configuration.

// named is the network of a name, or nil.
func (d *daemon) named(name string) *backend.Network {
	for _, n := range d.networks() {
		if n.Config().Name == name {
			return n
		}
	}
	return nil
}

// networks are all that there are now.
func (d *daemon) networks() []*backend.Network {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.nets)
}

func (d *daemon) policyOf(name string) *policy.Policy {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.policies[name]
}

// forgetPolicy ends a policy whose network does not come to be.
func (d *daemon) forgetPolicy(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.policies[name]; p != nil {
		p.Close()
		delete(d.policies, name)
	}
}

// swap has other doors, and more networks.
func (d *daemon) swap(doors []*door, more []*backend.Network) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.doors, d.nets = doors, append(slices.Clip(d.nets), more...)
	for _, n := range more {
		d.logFlows(n)
		d.server.Add(n, d.policies[n.Config().Name])
	}
}

// caged says whether the daemon has shut itself in.
func (d *daemon) caged() bool {
	told := d.cage.told.Load()
	return told != nil && told.Walls != "off"
}

// givenPolicies is what the server begins with: its own map.
func (d *daemon) givenPolicies() map[string]*policy.Policy { return maps.Clone(d.policies) }

func reloadCommand() *cobra.Command {
	in := &inspector{}
	c := in.lasting("reload", "Have the daemon read its configuration file again", cobra.NoArgs, func(ctx context.Context, c *control.Client, _ []string) error {
		ctx, cancel := context.WithTimeout(ctx, 2*patience) // files may be far away, and others be waited for
		defer cancel()
		r, err := c.Reload(ctx)
		var p *control.Problem
		if errors.As(err, &p) && p.Hint != "" { // the file's own lines come before it
			return hintError{errors.New(p.Detail), p.Hint}
		}
		return in.show(err, r, func(w io.Writer) { writeReload(w, r) })
	})
	c.Long = `Have the daemon read the file of 'vmnetd serve --config' again, as SIGHUP does, and say what came of it.

What can change does, for what is to come; conversations that run are not touched: forwards (TCP conversations of those
that are removed go on; UDP's end), DNS records, static leases, limits, bad lines, the policy, doors (guests of those that are closed
stay), and networks that are new. What else differs is named, and needs a restart. What was added meanwhile ('vmnetd forward
add', 'dns add') stays; a policy, limit or bad line that was set meanwhile stays unless the file says another than before.

It is all or nothing: if anything is wrong, with the file or with what it wants, nothing is changed.

Exit status: 0 if it was read, 1 if nothing was changed.`
	return c
}

func writeReload(w io.Writer, r control.Reload) {
	if len(r.Changed)+len(r.Restart) > 0 {
		row(w, "RESULT", "NETWORK", "KEY", "WAS", "IS", "NOTE")
	}
	for _, part := range []struct {
		what string
		list []control.Change
	}{{"", r.Changed}, {"needs a restart", r.Restart}} {
		for _, c := range part.list {
			what := part.what
			if what == "" {
				what = string(c.What)
			}
			row(w, what, c.Network, c.Key, c.Old, c.New, c.Note)
		}
	}
	fmt.Fprintf(w, "%s: %d changed, %d need a restart, %d unchanged\n", r.File, len(r.Changed), len(r.Restart), len(r.Unchanged))
}
