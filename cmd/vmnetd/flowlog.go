package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/config"
	"github.com/vmnetd/vmnetd/flowlog"
)

// flowLogFlags say what becomes of conversations is written where.
type flowLogFlags struct {
	path, only string
	size       byteCount
	keep       int
}

func (f *flowLogFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.path, "flow-log", "", "`FILE` that gets a line of JSON for each conversation that begins, ends or is refused; a pipe, or - for standard output")
	f.size, f.keep = 10<<20, 5
	fs.Var(&f.size, "flow-log-size", "rename the flow log when it has this `SIZE`, to FILE.1, and begin another; 0: never")
	fs.Lookup("flow-log-size").DefValue = "10MiB"
	fs.IntVar(&f.keep, "flow-log-keep", f.keep, "keep this many (`N`) renamed flow logs")
	fs.StringVar(&f.only, "flow-log-only", "", "write only what was `refused`")
}

func (f *flowLogFlags) check() error {
	switch {
	case f.only != "" && f.only != "refused":
		return usagef("--flow-log-only %s: want refused, or nothing for all", f.only)
	case f.size > 0 && f.size < flowlog.LeastSize:
		return usagef("--flow-log-size %d: want 64KiB at least, or 0", f.size)
	case f.size > 0 && (f.keep < 1 || f.keep > flowlog.MostKeep):
		return usagef("--flow-log-keep %d: want 1 to %d", f.keep, flowlog.MostKeep)
	}
	return nil
}

// open opens the flow log before the daemon is shut in. nil: none is wanted.
func (f *flowLogFlags) open(d *daemon) error {
	if err := f.check(); err != nil || f.path == "" {
		return err
	}
	c := flowlog.Config{Path: f.path, Size: int64(f.size), Keep: f.keep, Refused: f.only != "", Logger: d.log}
	if f.path == "-" {
		for _, door := range d.doors {
			if door.stdio {
				return usagef("--flow-log -: standard output is the wire of --%s stdio", door.framing.name)
			}
		}
		c.Path, c.Writer, c.Size = "standard output", os.Stdout, 0
	}
	l, err := flowlog.Open(c)
	if err != nil {
		return fmt.Errorf("--flow-log: %w", err)
	}
	d.flowLog = l
	return nil
}

// flowLogStatus is for status; nil: there is none.
func (d *daemon) flowLogStatus() *control.FlowLog {
	if d.flowLog == nil {
		return nil
	}
	s := control.FlowLog(d.flowLog.Status())
	return &s
}

// logFlows has what becomes of a network's conversations written down.
func (d *daemon) logFlows(n *backend.Network) {
	if d.flowLog != nil {
		d.flowLog.Follow(n.Config().Name, n.Flows(), n.GuestName)
	}
}

// flowLogFolder is where files are made and renamed, "" if none are.
func (d *daemon) flowLogFolder() string {
	if d.flowLog == nil {
		return ""
	}
	return d.flowLog.Folder()
}

// flowLogName is what the files' names begin with, if they are in dir.
func (d *daemon) flowLogName(dir string) string {
	if d.flowLogFolder() == "" {
		return ""
	}
	if abs, err := filepath.Abs(dir); err != nil || abs != d.flowLogFolder() {
		return ""
	}
	return filepath.Base(d.flowLog.Status().Path)
}

// file is what a configuration file says of it.
func (f *flowLogFlags) file() (c config.FlowLog) {
	if f.path != "" {
		c = config.FlowLog{File: f.path, Size: f.size.String(), Keep: strconv.Itoa(f.keep), Only: f.only}
	}
	return c
}
