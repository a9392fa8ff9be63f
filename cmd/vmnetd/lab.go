package main

// 'vmnetd lab': a few machines on a few networks from one file. The commands are here and in labnode.go; the lab's process
// is labrun.go, where its state is labdir.go.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/lab/examples"
	"github.com/vmnetd/vmnetd/lab/topology"
)

// defaultLabFile is the file where none is named.
const defaultLabFile = "lab.yaml"

const (
	// downPatience is how long a lab's process may take to end: its nodes have labGrace, and what is then killed some time
	// to go.
	downPatience = labGrace + 20*time.Second
	// labPoll is how often a lab is asked how far it is: nobody's eye is faster, and it is one lock.
	labPoll = 100 * time.Millisecond
)

func labCommand() *cobra.Command {
	c := group("lab", "Machines and networks from one file", `A few machines on a few networks from one file, up in seconds, as an ordinary user.

  vmnetd lab init            three labs to start from
  vmnetd lab up FILE         start it, or change what the file has changed since
  vmnetd lab ls              what is up
  vmnetd lab exec NODE -- COMMAND [ARGUMENT]...
  vmnetd lab console NODE    its serial line; ^] leaves it
  vmnetd lab ssh NODE        with an ssh server in it
  vmnetd lab down            stop it: nothing is left

All of a lab, networks and nodes, is one process in the background and its children. Its control socket is what 'lab ls'
shows: all that asks a daemon takes --control lab:NAME, as 'vmnetd flows ls --control lab:shop'. A lab whose process was
killed is found, and cleaned up, by the next 'lab down' or 'lab up'.

FILE is ./lab.yaml where none is named. Where several labs are up, the one that is meant is that of --lab NAME, else that
of ./lab.yaml.`,
		labUpCommand(), labDownCommand(), labLSCommand(), labExecCommand(), labConsoleCommand(), labSSHCommand(), labDialCommand(),
		labActCommand(control.NodeStart, "Start nodes that are stopped or have ended"),
		labActCommand(control.NodeStop, "Stop nodes until they are started"),
		labActCommand(control.NodeRestart, "Stop nodes and start them"),
		labGraphCommand(), labCheckCommand(), labInitCommand(), labRunCommand())
	return c
}

// labFlag is which lab is meant.
type labFlag struct{ name string }

func (f *labFlag) add(c *cobra.Command) {
	c.Flags().StringVar(&f.name, "lab", "", "`NAME` of the lab (default that of ./lab.yaml, or the only one that is up)")
	c.RegisterFlagCompletionFunc("lab", completeLabs)
}

// labNames are those that there is something of.
func labNames() (names []string) {
	for _, d := range labs() {
		names = append(names, d.name)
	}
	return names
}

// pick is the lab that is meant. It need not be up, where it is named.
func (f *labFlag) pick() (labDir, error) {
	if f.name != "" {
		return labNamed(f.name)
	}
	if file, err := filepath.Abs(defaultLabFile); err == nil {
		if d, ok := labOf(file); ok {
			return d, nil
		}
		if t, err := topology.Read(file, nil); err == nil {
			if d, err := labNamed(t.Name); err == nil {
				if st, _, err := d.state(); err == nil && st != labNone {
					return d, nil
				}
			}
		}
	}
	switch list := labs(); len(list) {
	case 1:
		return list[0], nil
	case 0:
		return labDir{}, hintError{errors.New("no lab is up"), "'vmnetd lab up FILE' starts one"}
	default:
		return labDir{}, usagef("which lab? say its NAME, where others go before it --lab NAME: there is %s", strings.Join(labNames(), ", "))
	}
}

// labOf is the lab that was brought up from a file.
func labOf(file string) (labDir, bool) {
	for _, d := range labs() {
		if r, err := d.record(); err == nil && r.File != "" && samePath(r.File, file) {
			return d, true
		}
	}
	return labDir{}, false
}

// running is the lab that is meant, which must be up.
func (f *labFlag) running() (labDir, error) {
	d, err := f.pick()
	if err != nil {
		return d, err
	}
	switch st, _, err := d.state(); {
	case err != nil:
		return d, err
	case st == labStale:
		return d, hintError{fmt.Errorf("the process of lab %s was killed", d.name), fmt.Sprintf("'vmnetd lab down %s' takes away what is left of it, 'vmnetd lab up' starts it anew", d.name)}
	case st == labUp:
		return d, nil
	}
	if names := labNames(); len(names) > 0 {
		return d, fmt.Errorf("no lab %q is up: %s", d.name, didYouMean(d.name, names))
	}
	return d, hintError{fmt.Errorf("no lab %q is up", d.name), "'vmnetd lab up FILE' starts one"}
}

// labFileOf is the file that an argument names, or the default one: as it was named, and its whole path.
func labFileOf(a []string) (name, path string, err error) {
	name = defaultLabFile
	if len(a) > 0 {
		name = a[0]
	}
	if path, err = filepath.Abs(name); err != nil {
		return "", "", err
	}
	if _, err := os.Stat(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) && len(a) == 0 {
			return "", "", hintError{usagef("there is no %s here", defaultLabFile), "name a file, or 'vmnetd lab init' writes some to start from"}
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("there is no %s", name)
		}
		return "", "", err
	}
	return name, path, nil
}

// readLab reads the lab of the file that an argument names, or of the default one, whose whole path it returns.
func readLab(vars map[string]string, a ...string) (t *topology.Lab, path string, err error) {
	name, path, err := labFileOf(a)
	if err != nil {
		return nil, "", err
	}
	t, err = topology.Read(name, vars)
	return t, path, err
}

// variables reads what --set says.
func variables(list []string) (map[string]string, error) {
	set := map[string]string{}
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, usagef("--set %s: want NAME=VALUE", kv)
		}
		if _, twice := set[k]; twice {
			return nil, usagef("--set %s: %s is set twice", kv, k)
		}
		set[k] = v
	}
	return set, nil
}

func addSet(c *cobra.Command, set *[]string) {
	c.Flags().StringArrayVar(set, "set", nil, "`NAME=VALUE` of a variable, in place of the file's; may be repeated")
}

func labUpCommand() *cobra.Command {
	var set []string
	var noWait, replace bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "up [FILE]",
		Short: "Start a lab, or change what its file has changed, and wait until it is ready",
		Long: `Start a lab, or change of one that is up what its file has changed since, and wait until all nodes are ready. What stays the
same stays up: 'lab up' twice changes nothing.

^C while it waits leaves the lab up. Exit status: 0 if all nodes are ready; 1 if one has failed, with why; then the lab is
up all the same, for a look at it.`,
		Example: `  vmnetd lab up
  vmnetd lab up --set loss=20% routed.yaml`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			vars, err := variables(set)
			if err != nil {
				return err
			}
			t, file, err := readLab(vars, a...)
			if err != nil {
				return err
			}
			d, err := labNamed(t.Name)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(context.Background(), endSignals...)
			defer stop()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not ready in %v", timeout))
				defer cancel()
			}
			u := &labUp1{d: d, out: c.OutOrStdout(), errs: c.ErrOrStderr(), begun: time.Now(), replace: replace}
			changes, err := u.bring(ctx, control.LabRequest{File: file, Set: vars})
			if err != nil {
				return err
			}
			if len(changes) == 0 {
				fmt.Fprintf(u.out, "lab %s: nothing to change\n", d.name)
			}
			for _, ch := range changes {
				fmt.Fprintln(u.out, changeLine(ch))
			}
			if noWait {
				return nil
			}
			return u.wait(ctx, len(changes) > 0)
		},
	}
	addSet(c, &set)
	c.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until nodes are ready")
	c.Flags().BoolVar(&replace, "replace", false, "end a lab of the same name that is up from another file first")
	c.Flags().DurationVar(&timeout, "timeout", 0, "wait no longer than this, as 90s (default each node's own)")
	return c
}

// changeLine is a change for people.
func changeLine(c topology.Change) string {
	s := visible(c.Action + " " + c.What)
	if c.Why != "" {
		s += ": " + visible(c.Why)
	}
	return s
}

// labUp1 is one 'lab up'.
type labUp1 struct {
	d         labDir
	out, errs io.Writer
	begun     time.Time
	replace   bool
}

// bring has the lab up, nodes on their way.
func (u *labUp1) bring(ctx context.Context, req control.LabRequest) ([]topology.Change, error) {
	unlock, err := u.d.lock(ctx, func() { fmt.Fprintf(u.errs, "lab %s: somebody brings it up or down; waiting\n", u.d.name) })
	if err != nil {
		return nil, err
	}
	defer unlock()
	for {
		st, pid, err := u.d.state()
		if err != nil {
			return nil, err
		}
		switch st {
		case labUp:
			changes, again, err := u.change(ctx, req, pid)
			if !again {
				return changes, err
			}
			continue
		case labStale:
			if err := u.sweep(ctx); errors.Is(err, errLabLives) {
				continue
			} else if err != nil {
				return nil, err
			}
		}
		break
	}
	keep := labKeep(u.d.name)
	if err := private(keep); err == nil || !errors.Is(err, fs.ErrNotExist) { // of a lab whose own folder a restart took away
		if err := u.sweep(ctx); err != nil {
			return nil, err
		}
	}
	if err := u.d.make(); err != nil {
		return nil, err
	}
	err = os.MkdirAll(keep, 0o700)
	if err == nil {
		err = private(keep)
	}
	var a labStarted
	if err == nil {
		a, err = startLab(ctx, u.d, labStart{Name: u.d.name, Folder: u.d.path, Keep: keep, Request: req})
	}
	if err != nil {
		if _, bad := u.d.clean(context.WithoutCancel(ctx)); bad != nil {
			err = errors.Join(err, bad)
		}
		return nil, err
	}
	return a.Changes, nil
}

// sweep takes away what a killed lab has left, and says so.
func (u *labUp1) sweep(ctx context.Context) error {
	left, err := u.d.clean(ctx)
	if err != nil {
		return fmt.Errorf("what is left of lab %s, whose process was killed: %w", u.d.name, err)
	}
	if s := left.String(); s != "" {
		fmt.Fprintf(u.errs, "lab %s was killed: cleaned up %s\n", u.d.name, s)
	}
	return nil
}

// change has a lab that is up become what the file says. again: it has ended meanwhile.
func (u *labUp1) change(ctx context.Context, req control.LabRequest, pid int) (_ []topology.Change, again bool, err error) {
	client := u.d.client()
	defer client.Close()
	if r, err := u.d.record(); err == nil && !samePath(r.File, req.File) && u.replace {
		return nil, true, u.d.end(ctx, pid)
	}
	got, err := client.ApplyLab(ctx, req)
	if err == nil {
		return got.Changes, false, nil
	}
	var p *control.Problem
	if errors.As(err, &p) && p.Status != 503 {
		if p.Status == 409 {
			return nil, false, hintError{errors.New(p.Detail), "another name for one of them; or --replace ends that one first"}
		}
		if p.Hint == "" {
			return nil, false, errors.New(p.Detail)
		}
		return nil, false, hintError{errors.New(p.Detail), p.Hint}
	}
	if ctx.Err() != nil {
		return nil, false, context.Cause(ctx)
	}
	// It ends, or hangs.
	if gone := u.d.waitGone(ctx, pid, downPatience); gone != nil {
		return nil, false, fmt.Errorf("lab %s does not answer: %w (%v)", u.d.name, err, gone)
	}
	return nil, true, nil
}

// waitGone waits until the lab's process has ended.
func (d labDir) waitGone(ctx context.Context, pid int, patience time.Duration) error {
	for end := time.Now().Add(patience); ; {
		st, now, err := d.state()
		if err == nil && (st != labUp || now != pid) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("process %d has not ended in %v", pid, patience)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// end has the lab's process end, and takes away what is left. The caller has the lock.
func (d labDir) end(ctx context.Context, pid int) error {
	client := d.client()
	defer client.Close()
	asking, cancel := context.WithTimeout(ctx, patience)
	err := client.EndLab(asking)
	cancel()
	if err != nil && ctx.Err() == nil {
		killLab(d, pid, false) // it does not answer; it may listen to that
	}
	if err := d.waitGone(ctx, pid, downPatience); err != nil {
		if ctx.Err() != nil {
			return err
		}
		killLab(d, pid, true)
		if err := d.waitGone(ctx, pid, doorPatience); err != nil {
			return err
		}
	}
	_, err = d.clean(ctx)
	return err
}

// wait shows how nodes come, until all are ready.
func (u *labUp1) wait(ctx context.Context, changed bool) error {
	client := u.d.client()
	defer client.Close()
	p := newProgress(u.out, u.d.name)
	defer p.done()
	shown := false
	for {
		st, err := client.Lab(ctx)
		switch {
		case ctx.Err() != nil:
			p.done()
			if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
				return hintError{fmt.Errorf("lab %s: %w: %s", u.d.name, cause, p.missing()), u.stays()}
			}
			fmt.Fprintf(u.errs, "\nlab %s stays up: %s\n", u.d.name, u.stays())
			return exitError(130) // as a shell says it of SIGINT
		case err != nil:
			p.done()
			said := tailOf(u.d.file(labLog))
			if said != "" {
				said = "; its log ends so:\n" + said
			}
			return fmt.Errorf("lab %s has ended while it was waited for: %w%s", u.d.name, err, said)
		}
		coming, failed := 0, []string{}
		for _, n := range st.Nodes {
			switch n.State {
			case topology.StateWaiting, topology.StateStarting, topology.StateStopping:
				coming++
			case topology.StateFailed:
				failed = append(failed, fmt.Sprintf("node %s: %s", n.Name, n.Error))
			}
		}
		if !changed && !shown && coming == 0 && len(failed) == 0 {
			return nil
		}
		p.show(st)
		shown = true
		if coming == 0 {
			p.done()
			if len(failed) > 0 {
				const most = 5 // more than that nobody reads in a row, and 'lab ls' has them in lines
				if n := len(failed) - most; n > 0 {
					failed = append(failed[:most], fmt.Sprintf("and %d more", n))
				}
				return hintError{fmt.Errorf("lab %s is not as it should be: %s", u.d.name, inOneLine(strings.Join(failed, "; "))), u.stays()}
			}
			if changed {
				fmt.Fprintf(u.out, "lab %s ready in %.1f s\n", u.d.name, time.Since(u.begun).Seconds())
			}
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(labPoll):
		}
	}
}

func (u *labUp1) stays() string {
	return fmt.Sprintf("'vmnetd lab ls %s' shows it, 'vmnetd lab down %[1]s' ends it", u.d.name)
}

func labDownCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "down [NAME|FILE]",
		Short: "End a lab: nothing of it is left",
		Long: `End a lab: its nodes are asked to stop, and killed after ten seconds; then its processes, sockets, namespaces and files are
gone. Of a lab whose process was killed, what is left is found and taken away. To end what is not up is no error.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), endSignals...)
			defer stop()
			var list []labDir
			switch {
			case all && len(a) > 0:
				return usagef("--all, or one: not both")
			case all:
				list = labs()
			default:
				d, err := labToEnd(a)
				if err != nil {
					return err
				}
				if d.name != "" {
					list = append(list, d)
				}
			}
			if len(list) == 0 {
				fmt.Fprintln(c.OutOrStdout(), "no lab is up")
			}
			var errs []error
			for _, d := range list {
				errs = append(errs, d.down(ctx, c.OutOrStdout(), c.ErrOrStderr()))
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all labs of this user's")
	c.ValidArgsFunction = func(c *cobra.Command, have []string, start string) ([]string, cobra.ShellCompDirective) {
		out, _ := completeLabs(c, have, start)
		return out, cobra.ShellCompDirectiveDefault // or a file
	}
	return c
}

// labToEnd is the lab that 'lab down' names; without a name if there is none.
func labToEnd(a []string) (labDir, error) {
	if len(a) == 0 {
		if len(labs()) == 0 {
			if _, file, err := labFileOf(nil); err == nil {
				if t, err := topology.Read(file, nil); err == nil { // its overlays may be left
					return labNamed(t.Name)
				}
			}
			return labDir{}, nil
		}
		return new(labFlag).pick()
	}
	if fi, err := os.Stat(a[0]); err == nil && fi.Mode().IsRegular() {
		file, err := filepath.Abs(a[0])
		if err != nil {
			return labDir{}, err
		}
		if d, ok := labOf(file); ok { // whatever is in it now
			return d, nil
		}
		t, err := topology.Read(a[0], nil)
		if err != nil {
			return labDir{}, fmt.Errorf("no lab is up from this file, and its name cannot be read: %w", err)
		}
		return labNamed(t.Name)
	}
	if strings.ContainsAny(a[0], "/.") {
		if file, err := filepath.Abs(a[0]); err == nil {
			for _, d := range labs() {
				if r, err := d.record(); err == nil && r.File == file { // the file has gone
					return d, nil
				}
			}
		}
		return labDir{}, fmt.Errorf("%s is neither a file nor a lab's name", a[0])
	}
	d, err := labNamed(a[0])
	if err != nil {
		return d, err
	}
	if st, _, err := d.state(); err == nil && st == labNone {
		if names := labNames(); len(names) > 0 {
			if s := didYouMean(d.name, names); strings.HasPrefix(s, "did you mean ") {
				return d, fmt.Errorf("no lab %q is up: %s", d.name, s)
			}
		}
	}
	return d, nil
}

// down ends a lab, whatever is left of it.
func (d labDir) down(ctx context.Context, out, errs io.Writer) error {
	if st, _, err := d.state(); err == nil && st == labNone && private(labKeep(d.name)) != nil {
		if _, err := os.Lstat(d.path + ".lock"); errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintf(out, "lab %s is not up\n", d.name)
			return nil
		}
	}
	unlock, err := d.lock(ctx, func() { fmt.Fprintf(errs, "lab %s: somebody brings it up or down; waiting\n", d.name) })
	if err != nil {
		return err
	}
	defer unlock()
	begun := time.Now()
	var left leftovers
	for {
		st, pid, err := d.state()
		if err != nil {
			return err
		}
		if st == labUp {
			if err := d.end(ctx, pid); err != nil {
				return fmt.Errorf("lab %s: %w", d.name, err)
			}
			fmt.Fprintf(out, "lab %s is down, in %.1f s\n", d.name, time.Since(begun).Seconds())
			return nil
		}
		if left, err = d.clean(ctx); err == nil {
			break
		}
		if !errors.Is(err, errLabLives) {
			return fmt.Errorf("what is left of lab %s: %w", d.name, err)
		}
	}
	if s := left.String(); s != "" {
		fmt.Fprintf(out, "lab %s was killed: cleaned up %s\n", d.name, s)
	} else {
		fmt.Fprintf(out, "lab %s is not up\n", d.name)
	}
	return nil
}

// labShown is a lab as 'lab ls' prints it.
type labShown struct {
	topology.Status
	State   string `json:"state"` // up, killed, or silent: it lives and does not answer
	Folder  string `json:"folder"`
	Control string `json:"control"`
	Log     string `json:"log"`
	Error   string `json:"error,omitempty"`
}

func labLSCommand() *cobra.Command {
	var format outputFormat
	var bare bool
	c := &cobra.Command{
		Use:   "ls [NAME]...",
		Short: "List the labs that are up, and their nodes",
		Args:  args(cobra.ArbitraryArgs),
		RunE: func(c *cobra.Command, a []string) error {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			list := []labShown{}
			known := labs()
			for _, name := range a {
				if !slices.ContainsFunc(known, func(d labDir) bool { return d.name == name }) {
					if len(known) == 0 {
						return hintError{fmt.Errorf("no lab %q is up", name), "'vmnetd lab up FILE' starts one"}
					}
					return fmt.Errorf("no lab %q is up: %s", name, didYouMean(name, labNames()))
				}
			}
			for _, d := range known {
				if len(a) > 0 && !slices.Contains(a, d.name) {
					continue
				}
				if s, there := d.shown(ctx); there {
					list = append(list, s)
				}
			}
			return format.print(c.OutOrStdout(), bare, list, func(w io.Writer) { writeLabs(w, list) })
		},
	}
	format.flag(c)
	c.Flags().BoolVar(&bare, "no-headers", false, "tables without their first line")
	c.ValidArgsFunction = completeLabs
	return c
}

// shown asks a lab how it is.
func (d labDir) shown(ctx context.Context) (s labShown, there bool) {
	st, pid, err := d.state()
	if err == nil && st == labNone {
		return s, false
	}
	s = labShown{Folder: d.path, Control: d.file(labControl), Log: d.file(labLog)}
	s.Name, s.PID = d.name, pid
	s.Networks, s.Nodes = []topology.NetworkStatus{}, []topology.NodeStatus{}
	if r, err := d.record(); err == nil {
		s.File, s.Since = r.File, r.Since
	}
	if err != nil || st != labUp {
		s.State, s.Error = "killed", fmt.Sprintf("'vmnetd lab down %s' takes away what is left", d.name)
		if err != nil {
			s.State, s.Error = "unknown", err.Error()
		}
		return s, true
	}
	client := d.client()
	defer client.Close()
	now, err := client.Lab(ctx)
	if err != nil {
		s.State, s.Error = "silent", err.Error() // it begins, or ends, or hangs
		return s, true
	}
	s.State, s.Status = "up", now
	return s, true
}

func writeLabs(w io.Writer, list []labShown) {
	for i, l := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		ready := 0
		for _, n := range l.Nodes {
			if n.State == topology.StateReady {
				ready++
			}
		}
		what := fmt.Sprintf("%d of %d nodes ready, since %s, pid %d", ready, len(l.Nodes), l.Since.Local().Format(time.DateTime), l.PID)
		if l.State != "up" {
			what = l.State + ": " + l.Error
		}
		fmt.Fprintf(w, "lab %s: %s\n", visible(l.Name), visible(what))
		fmt.Fprintf(w, "file %s\ncontrol %s\n", visible(l.File), visible(l.Control))
		if len(l.Nodes) > 0 {
			head(w, "NODE", "KIND", "STATE", "READY IN", wide{"PIDS"}, wide{"RESTARTS"}, "ADDRESSES", "SAYS")
		}
		for _, n := range l.Nodes {
			in := ""
			if n.ReadyAfter > 0 {
				in = fmt.Sprintf("%.1f s", n.ReadyAfter.Seconds())
			}
			row(w, n.Name, n.Kind, n.State, in, wide{strings.Trim(fmt.Sprint(n.PIDs), "[]")}, wide{n.Restarts}, nodeAddrs(n, w), nodeSays(n))
		}
	}
}

// nodeAddrs are a node's addresses: with the interfaces' names in wide tables, or without any of link only.
func nodeAddrs(n topology.NodeStatus, w io.Writer) string {
	t, _ := w.(table)
	var parts []string
	for _, i := range n.Interfaces {
		for _, a := range i.Addrs {
			switch {
			case t.wide:
				parts = append(parts, i.Name+"="+a.String())
			case !a.IsLinkLocalUnicast():
				parts = append(parts, a.String())
			}
		}
	}
	return strings.Join(parts, ",")
}

// nodeSays is what there is to say of a node.
func nodeSays(n topology.NodeStatus) string {
	switch {
	case n.Error != "":
		return inOneLine(n.Error)
	case n.WaitsFor != "":
		return "waits for " + n.WaitsFor
	case n.ExitStatus != nil:
		return fmt.Sprintf("exit status %d", *n.ExitStatus)
	}
	for _, i := range n.Interfaces {
		if i.Door != "" && len(i.Addrs) == 0 {
			return i.Name + " plugs in at " + i.Door
		}
	}
	return ""
}

func labCheckCommand() *cobra.Command {
	var set []string
	c := &cobra.Command{
		Use:   "check [FILE]...",
		Short: "Say what is wrong with labs' files, with line and column",
		RunE: func(c *cobra.Command, a []string) error {
			vars, err := variables(set)
			if err != nil {
				return err
			}
			if len(a) == 0 {
				return checkLab(c.OutOrStdout(), vars)
			}
			var faults []error
			for _, file := range a {
				if err := checkLab(c.OutOrStdout(), vars, file); err != nil {
					faults = append(faults, err)
				}
			}
			return errors.Join(faults...)
		},
	}
	addSet(c, &set)
	return c
}

// howMany is so many of something.
func howMany(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// checkLab says what a lab's file has, if nothing is wrong with it.
func checkLab(out io.Writer, vars map[string]string, file ...string) error {
	t, _, err := readLab(vars, file...)
	if err != nil {
		return err
	}
	if _, err := labNamed(t.Name); err != nil {
		return err
	}
	kinds := map[topology.Kind]int{}
	for _, n := range t.Nodes {
		kinds[n.Kind]++
	}
	var parts []string
	for _, k := range []topology.Kind{topology.KindQEMU, topology.KindNetns, topology.KindUML, topology.KindExternal} {
		if kinds[k] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", kinds[k], k))
		}
	}
	fmt.Fprintf(out, "lab %s: %s (%s), %s\n", t.Name, howMany(len(t.Nodes), "node"), strings.Join(parts, ", "), howMany(len(t.Networks), "network"))
	return nil
}

func labGraphCommand() *cobra.Command {
	var set []string
	var form string
	c := &cobra.Command{
		Use:   "graph [FILE]",
		Short: "Draw a lab: as text, or as SVG, with its nodes' states if it is up",
		Args:  args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			vars, err := variables(set)
			if err != nil {
				return err
			}
			if forms := []string{"text", "svg"}; !slices.Contains(forms, form) {
				return usagef("-o %s: %s", form, didYouMean(form, forms))
			}
			t, file, err := readLab(vars, a...)
			if err != nil {
				return err
			}
			if form == "text" {
				_, err = io.WriteString(c.OutOrStdout(), t.Graph())
				return err
			}
			var st *topology.Status
			if d, ok := labOf(file); ok && d.name == t.Name {
				client := d.client()
				defer client.Close()
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				if now, err := client.Lab(ctx); err == nil { // else it is not up
					st = &now
				}
			}
			_, err = c.OutOrStdout().Write(t.SVG(st))
			return err
		},
	}
	addSet(c, &set)
	c.Flags().StringVarP(&form, "output", "o", "text", "`FORM` of the picture: text or svg")
	c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "svg"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func labInitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init [DIR]",
		Short: "Write three labs to start from; what is there stays as it is",
		Args:  args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			dir := "."
			if len(a) > 0 {
				dir = a[0]
			}
			if err := os.MkdirAll(dir, 0o777); err != nil {
				return err
			}
			entries, err := examples.Files.ReadDir(".")
			if err != nil {
				return err
			}
			first := ""
			for _, e := range entries {
				text, err := examples.Files.ReadFile(e.Name())
				if err != nil {
					return err
				}
				path := filepath.Join(dir, e.Name())
				f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
				if errors.Is(err, fs.ErrExist) {
					fmt.Fprintf(c.OutOrStdout(), "%s is there: it stays as it is\n", path)
					continue
				}
				if err != nil {
					return err
				}
				_, err = f.Write(text)
				if err := errors.Join(err, f.Close()); err != nil {
					os.Remove(path)
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "%s\n", path)
				first = path
			}
			if first != "" {
				fmt.Fprintf(c.OutOrStdout(), "  vmnetd lab up %s\n", shellQuote(first))
			}
			return nil
		},
	}
}

func completeLabs(_ *cobra.Command, have []string, start string) (out []string, _ cobra.ShellCompDirective) {
	for _, n := range labNames() {
		if strings.HasPrefix(n, start) && !slices.Contains(have, n) {
			out = append(out, n)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
