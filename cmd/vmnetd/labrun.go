package main

// 'vmnetd lab run': the one process in which a lab is. 'lab up' starts it, tells it at descriptor 3 what to run, and hears
// there what came of it; afterwards all is said at its sockets.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/lab"
	"github.com/vmnetd/vmnetd/lab/topology"
	"github.com/vmnetd/vmnetd/policy"
)

const (
	// labStartFD is where 'lab up' is: the first descriptor behind the standard ones.
	labStartFD = 3
	// labGrace is how long nodes have at the end: as lab.Close has it.
	labGrace = 10 * time.Second
	// maxLabStart: a lab's request, two paths and variables.
	maxLabStart = 1 << 20
	// maxLabLog is when a log is put aside for a new one, in place of the one before: some ten thousand lines each.
	maxLabLog = 2 << 20
)

// labStart is what 'lab run' is told.
type labStart struct {
	Name    string             `json:"name"`
	Folder  string             `json:"folder"`
	Keep    string             `json:"keep"`
	Request control.LabRequest `json:"request"`
}

// labStarted is what it answers.
type labStarted struct {
	Error   string            `json:"error,omitempty"`
	Hint    string            `json:"hint,omitempty"`
	Changes []topology.Change `json:"changes"`
}

func labRunCommand() *cobra.Command {
	return &cobra.Command{Use: "run", Short: "Be the process of a lab, as 'lab up' starts it", Hidden: true, Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			f, err := handedFile(labStartFD, "descriptor")
			if err != nil {
				return hintError{errors.New("'lab up' starts this"), "vmnetd lab up FILE"}
			}
			keepFromChildren(labStartFD)
			c, err := net.FileConn(f)
			f.Close()
			if err != nil {
				return hintError{errors.New("'lab up' starts this"), "vmnetd lab up FILE"}
			}
			defer c.Close()
			line, err := bufio.NewReader(io.LimitReader(c, maxLabStart)).ReadBytes('\n')
			if err != nil {
				return fmt.Errorf("nobody says which lab: %w", err)
			}
			var s labStart
			if err := json.Unmarshal(line, &s); err != nil {
				return err
			}
			d := &labDaemon{start: s, dir: labDir{s.Name, s.Folder}, keep: s.Keep, end: make(chan struct{}), told: c}
			return d.run()
		}}
}

// labDaemon is a lab's process.
type labDaemon struct {
	start labStart
	dir   labDir
	keep  string
	log   *slog.Logger
	lab   *lab.Lab
	srv   *control.Server
	told  net.Conn // 'lab up', until it has been answered

	once sync.Once
	end  chan struct{} // closed when it is to end

	sizing sync.Mutex
	memory *backend.Memory // of the process; nil: there is no target
	size   labSize
}

// labSize is what there is to carry.
type labSize struct{ interfaces, uplinks int }

// grow has as many threads as the lab has interfaces, and each of its networks a part of the descriptors.
func (d *labDaemon) grow(t *topology.Lab) {
	var now labSize
	for _, n := range t.Nodes {
		now.interfaces += len(n.Interfaces)
	}
	for _, n := range t.Networks {
		if n.Uplink {
			now.uplinks++
		}
	}
	d.sizing.Lock()
	defer d.sizing.Unlock()
	procs.add(now.interfaces - d.size.interfaces)
	d.size = now
}

// share is a network's part of what the process has.
func (d *labDaemon) share(c *backend.Config) {
	d.sizing.Lock()
	defer d.sizing.Unlock()
	c.Memory = d.memory
	if limit, ok := fileLimit(); ok && c.Limits.Total == 0 {
		c.Limits.Total = max(1, conversations(limit)/max(1, d.size.uplinks))
	}
}

// answer tells 'lab up' what came of it.
func (d *labDaemon) answer(changes []topology.Change, err error) {
	if d.told == nil {
		return
	}
	a := labStarted{Changes: changes}
	if err != nil {
		a.Error = err.Error()
		var hint hintError
		if errors.As(err, &hint) {
			a.Hint = hint.hint
		}
	}
	if b, err := json.Marshal(a); err == nil {
		d.told.SetWriteDeadline(time.Now().Add(doorPatience))
		d.told.Write(append(b, '\n'))
	}
	d.told.Close()
	d.told = nil
}

func (d *labDaemon) run() (err error) {
	alive, err := holdLock(d.dir.file(labAlive))
	if err != nil {
		d.answer(nil, err)
		return err
	}
	defer alive.Close()
	logFile, err := openBoundedLog(d.dir.file(labLog), maxLabLog)
	if err != nil {
		d.answer(nil, err)
		return err
	}
	sink := newLogSink(logFile, func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) })
	defer sink.Close()
	d.log = slog.New(slog.NewTextHandler(sink, nil))
	slog.SetDefault(d.log)
	signals := make(chan os.Signal, 4)
	notify(signals, endSignals)
	reaping, stopReaping := context.WithCancel(context.Background())
	reaped := adopt(reaping)
	defer func() { stopReaping(); <-reaped }()
	defer d.leave() // what is here is gone by then

	changes, stop, err := d.begin()
	if err != nil {
		d.log.Error("the lab could not be started", "error", err)
		d.answer(nil, err)
		return err
	}
	d.log.Info("lab up", "lab", d.dir.name, "file", d.start.Request.File, "pid", os.Getpid())
	d.answer(changes, nil)
	forgetStart()
	select {
	case s := <-signals:
		d.log.Info("ending", "signal", s)
	case <-d.end:
		d.log.Info("ending: 'lab down'")
	}
	ctx, cancel := context.WithTimeout(context.Background(), labGrace)
	defer cancel()
	go func() {
		select {
		case s := <-signals: // once more: nodes are not waited for
			d.log.Info("ending at once", "signal", s)
			cancel()
		case <-reaping.Done():
		}
	}()
	stop(ctx)
	d.log.Info("lab down", "lab", d.dir.name)
	return nil
}

// begin has everything open, and the nodes on their way.
func (d *labDaemon) begin() (changes []topology.Change, stop func(context.Context), err error) {
	req := d.start.Request
	t, err := topology.Read(req.File, req.Set)
	if err != nil {
		return nil, nil, err
	}
	if t.Name != d.dir.name {
		return nil, nil, fmt.Errorf("%s: the lab is %s now, and was %s a moment ago", req.File, t.Name, d.dir.name)
	}
	if d.memory, err = memoryValue(0).target(); err != nil {
		return nil, nil, err
	}
	d.grow(t)
	rec := labRecord{Name: d.dir.name, File: req.File, PID: os.Getpid(), Start: startTicks(os.Getpid()), Since: time.Now(), Folder: d.dir.path, Keep: d.keep}
	if err := rec.write(); err != nil {
		return nil, nil, err
	}
	controlAt, removeControl, err := listenUnix(d.dir.file(labControl))
	if err != nil {
		return nil, nil, err
	}
	doorAt, removeDoor, err := listenUnix(d.dir.file(labDoor))
	if err != nil {
		controlAt.Close()
		return nil, nil, err
	}
	d.srv = &control.Server{Version: versionString(), Logger: d.log, Lab: d}
	d.lab, err = lab.New(lab.Config{
		File: req.File, Base: filepath.Dir(req.File),
		Sockets: d.dir.file(labNodes), Keep: d.keep,
		Env:         []string{d.dir.mark()},
		More:        d.share,
		NetworkUp:   func(n *backend.Network, p *policy.Policy) { d.srv.Add(n, p) },
		NetworkDown: func(n *backend.Network) { d.srv.Remove(n) },
		Logger:      d.log,
	})
	if err != nil {
		controlAt.Close()
		doorAt.Close()
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	stop = func(patience context.Context) {
		if err := d.lab.Shutdown(patience); err != nil {
			d.log.Warn("the lab ended badly", "error", err)
		}
		d.lab.Close()
		// Commands that 'lab exec' runs, and what nodes' processes have left behind.
		if _, err := endMarked(context.Background(), d.dir.path); err != nil {
			d.log.Warn("not all has ended", "error", err)
		}
		removeControl()
		removeDoor()
		cancel()
		serving.Wait()
	}
	serving.Go(func() {
		if err := d.srv.Serve(ctx, controlAt); err != nil {
			d.log.Error("the control socket failed: ending", "error", err)
			d.End()
		}
	})
	door := &labServer{lab: d.lab, log: d.log, node: d.node}
	serving.Go(func() { door.serve(ctx, doorAt) })
	if changes, err = d.lab.Apply(ctx, t); err != nil {
		over, cancel := context.WithTimeout(context.Background(), labGrace)
		defer cancel()
		stop(over)
		return nil, nil, err
	}
	return changes, stop, nil
}

// leave takes our files away, unless somebody waits for our end who does that.
func (d *labDaemon) leave() {
	unlock, err := tryLock(d.dir.path + ".lock")
	if err != nil {
		return
	}
	d.dir.clean(context.Background()) // what is left is found by the next 'lab down'
	unlock()
	os.Remove(filepath.Dir(d.dir.path)) // if it is empty
}

// node finds one.
func (d *labDaemon) node(name string) (*lab.Node, error) {
	if n := d.lab.Node(name); n != nil {
		return n, nil
	}
	var names []string
	for _, n := range d.lab.Nodes() {
		names = append(names, n.Name())
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("lab %s has no nodes", d.dir.name)
	}
	return nil, fmt.Errorf("lab %s has no node %q: %s", d.dir.name, name, didYouMean(name, names))
}

// Status is control.Lab's.
func (d *labDaemon) Status() topology.Status {
	if d.lab == nil {
		return topology.Status{Name: d.dir.name, File: d.start.Request.File, PID: os.Getpid()}
	}
	st := d.lab.Status()
	st.File = d.start.Request.File
	return st
}

func labProblem(status int, hint string, err error) error {
	return &control.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: err.Error(), Hint: hint}
}

// Apply is control.Lab's.
func (d *labDaemon) Apply(ctx context.Context, r control.LabRequest) (control.LabChanges, error) {
	fail := func(status int, hint, format string, args ...any) (control.LabChanges, error) {
		return control.LabChanges{}, labProblem(status, hint, fmt.Errorf(format, args...))
	}
	select {
	case <-d.end:
		return fail(http.StatusServiceUnavailable, "again in a moment", "lab %s is ending", d.dir.name)
	default:
	}
	if file := d.start.Request.File; !samePath(r.File, file) {
		return fail(http.StatusConflict, "another name for one of them", "lab %s is up from %s, and this is %s", d.dir.name, file, r.File)
	}
	read := func() (*topology.Lab, error) { return topology.Read(r.File, r.Set) }
	if r.Text != "" {
		read = func() (*topology.Lab, error) { return topology.Parse(r.File, []byte(r.Text), r.Set) }
	}
	t, err := read()
	if err != nil {
		return fail(http.StatusUnprocessableEntity, "nothing was changed", "%w", err)
	}
	if t.Name != d.dir.name {
		return fail(http.StatusConflict, "'lab up' starts another one beside this", "lab %s cannot become lab %s", d.dir.name, t.Name)
	}
	d.grow(t)
	changes, err := d.lab.Apply(ctx, t)
	if err != nil {
		return fail(http.StatusUnprocessableEntity, "", "%w", err)
	}
	return control.LabChanges{Name: t.Name, Changes: changes}, nil
}

// samePath says whether two paths are of one file.
func samePath(a, b string) bool {
	if a == b {
		return true
	}
	fa, err := os.Stat(a)
	if err != nil {
		return false
	}
	fb, err := os.Stat(b)
	return err == nil && os.SameFile(fa, fb)
}

// End is control.Lab's.
func (d *labDaemon) End() { d.once.Do(func() { close(d.end) }) }

// Act is control.Lab's.
func (d *labDaemon) Act(ctx context.Context, node string, what control.NodeAction) error {
	n, err := d.node(node)
	if err != nil {
		return labProblem(http.StatusNotFound, "", err)
	}
	if what != control.NodeStart {
		err = n.Stop(ctx)
	}
	if err == nil && what != control.NodeStop {
		err = n.Start(ctx)
	}
	if err != nil {
		return labProblem(http.StatusConflict, "", err)
	}
	return nil
}

// keptOutput keeps the first bytes of what is written.
type keptOutput struct {
	b   []byte
	cut bool
}

func (k *keptOutput) Write(p []byte) (int, error) {
	room := min(control.MaxLabOutput-len(k.b), len(p))
	k.b = append(k.b, p[:room]...)
	k.cut = k.cut || room < len(p)
	return len(p), nil
}

// Exec is control.Lab's.
func (d *labDaemon) Exec(ctx context.Context, node string, c control.LabCommand) (control.LabResult, error) {
	n, err := d.node(node)
	if err != nil {
		return control.LabResult{}, labProblem(http.StatusNotFound, "", err)
	}
	var out, errs keptOutput
	cmd := lab.Command{Args: slices.Clone(c.Args), Stdout: &out, Stderr: &errs}
	if len(c.Stdin) > 0 {
		cmd.Stdin = bytes.NewReader(c.Stdin)
	}
	exit, err := n.Exec(ctx, cmd)
	if err != nil {
		hint := ""
		if n.Topology().Kind != topology.KindNetns {
			hint = fmt.Sprintf("'vmnetd lab console %s' is its serial line; 'vmnetd lab ssh %[1]s' wants an ssh server in it", node)
		}
		return control.LabResult{}, labProblem(http.StatusConflict, hint, err)
	}
	return control.LabResult{Exit: exit, Stdout: out.b, Stderr: errs.b, Cut: out.cut || errs.cut}, nil
}
