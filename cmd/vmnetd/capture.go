package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/capture"
)

// captureWish is what a capture command says.
type captureWish struct {
	flow, write, ring string
	size, snaplen     byteCount
	packets           int64
	time              time.Duration
}

func (w *captureWish) add(fs *pflag.FlagSet) {
	fs.StringVarP(&w.write, "write", "w", "", "`FILE` that it is written to until ^C, or - for standard output")
	fs.StringVar(&w.flow, "flow", "", "only this `CONVERSATION`: its id, a name as example.com or *.example.com, or tcp:443")
	fs.VarP(&w.snaplen, "snaplen", "s", "`BYTES` of a frame that are kept at most (default all)")
	fs.Var(&w.size, "max-size", "end before the file has more than `SIZE`: bytes, or as 10MB or 10MiB (default never; 16MiB of one that the daemon keeps)")
	fs.Int64VarP(&w.packets, "max-packets", "c", 0, "end after `COUNT` packets")
	fs.DurationVar(&w.time, "max-time", 0, "end after a `TIME`, as 30s or 5m")
	fs.StringVar(&w.ring, "ring", "", "`COUNTxSIZE`, as 10x10MB: go on in another file when one has this size, and keep so many, the newest")
}

// request is the wish for a guest, or all, and an expression.
func (w *captureWish) request(a []string) control.CaptureRequest {
	r := control.CaptureRequest{Flow: w.flow, Snaplen: int(w.snaplen), MaxBytes: int64(w.size), MaxPackets: w.packets, MaxSeconds: w.time.Seconds()}
	if len(a) > 0 {
		if a[0] != "all" {
			r.Guest = a[0]
		}
		r.Filter = strings.Join(a[1:], " ")
	}
	return r
}

func (w *captureWish) check(a []string) error {
	switch {
	case w.packets < 0 || w.time < 0:
		return usagef("--max-packets and --max-time are not below 0")
	case w.ring != "" && (w.write == "" || w.write == "-"):
		return usagef("--ring %s: name the files with -w FILE", w.ring)
	}
	if len(a) > 1 {
		if _, err := capture.ParseFilter(strings.Join(a[1:], " ")); err != nil {
			return usageError{err}
		}
	}
	return nil
}

// byteCount is a number of bytes, as people write it.
type byteCount int64

func (n *byteCount) Type() string   { return "size" }
func (n *byteCount) String() string { return strconv.FormatInt(int64(*n), 10) }
func (n *byteCount) Set(s string) error {
	for _, unit := range []struct {
		name string
		n    int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"", 1}} {
		if digits, ok := strings.CutSuffix(s, unit.name); ok {
			v, err := strconv.ParseInt(digits, 10, 64)
			if err != nil || v < 0 || v > 1<<60/unit.n {
				break
			}
			*n = byteCount(v * unit.n)
			return nil
		}
	}
	return errors.New("want bytes, or as 10MB or 10MiB")
}

func parseRing(s string) (r capture.Ring, err error) {
	if s == "" {
		return r, nil
	}
	count, each, ok := strings.Cut(s, "x")
	var size byteCount
	r.Files, err = strconv.Atoi(count)
	if !ok || err != nil || r.Files < 1 || size.Set(each) != nil {
		return r, usagef("--ring %s: want how many files of which size, as 10x10MB", s)
	}
	r.Size = int64(size)
	return r, nil
}

func captureCommand() *cobra.Command {
	in := &inspector{}
	var w captureWish
	c := in.lasting("capture [GUEST|all] [EXPRESSION]... -w FILE", "Write down what crosses guests' wires, for Wireshark", cobra.ArbitraryArgs,
		func(ctx context.Context, c *control.Client, a []string) error {
			if err := w.check(a); err != nil {
				return err
			}
			if w.write == "" {
				return usagef("capture: where to? -w FILE, or -w - for a pipe; 'vmnetd capture start' has the daemon keep it")
			}
			return w.stream(ctx, c, a)
		})
	c.Long = `Write down what crosses guests' wires, for Wireshark, while they run: of a guest, named by id, name, MAC or address, or of
all, also those to come. It is a file in pcapng: each guest is an interface, what it sends is inbound there, and the first
packet of a conversation has a comment with its id, whether it was let in, and its names. ^C ends it with a whole file.

  vmnetd capture web -w web.pcapng
  vmnetd capture web -w - 'tcp port 443' | tshark -r -
  vmnetd capture -w - | wireshark -k -i -
  vmnetd capture all --ring 10x10MB -w lab.pcapng 'not port 22'
  vmnetd capture all --flow '*.example.com' -w example.pcapng

An EXPRESSION is one of tcpdump's: host, net, port, portrange, src, dst, ether, ip, ip6, arp, tcp, udp, icmp, icmp6, vlan,
tcp[tcpflags] & tcp-syn != 0, …, with and, or, not; inbound and outbound, too. Names of hosts are not looked up.

Guests never wait for a capture: what cannot be written fast enough is missing there, and counted. Frames are as they
cross: where a guest's card leaves work to others they are up to 64 KiB long, and their checksums may not be made yet.

Without -w, 'vmnetd capture start' has the daemon keep a capture in memory; save fetches it.`
	w.add(c.Flags())

	own := &inspector{}
	var kept captureWish
	start := own.lasting("start [GUEST|all] [EXPRESSION]...", "Begin a capture that the daemon keeps in memory, and print its id; or with -w, as capture", cobra.ArbitraryArgs,
		func(ctx context.Context, c *control.Client, a []string) error {
			if err := kept.check(a); err != nil {
				return err
			}
			if kept.write != "" {
				return kept.stream(ctx, c, a)
			}
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			i, err := c.AddCapture(ctx, kept.request(a))
			return own.show(err, i, func(w io.Writer) { fmt.Fprintln(w, i.ID) })
		})
	kept.add(start.Flags())
	ls := own.command("ls", "List captures that run, and those that are kept", cobra.ExactArgs(0), func(ctx context.Context, c *control.Client, _ []string) error {
		return showList(ctx, own, c, func() ([]backend.CaptureInfo, error) { return c.Captures(ctx) }, writeCaptures)
	})
	stop := own.command("stop ID...", "Stop captures; those that are kept can still be saved", cobra.MinimumNArgs(1), func(ctx context.Context, c *control.Client, a []string) error {
		return each(a, func(id string) error { _, err := c.StopCapture(ctx, id); return err })
	})
	rm := own.command("rm ID...", "Stop captures, and forget those that are kept", cobra.MinimumNArgs(1), func(ctx context.Context, c *control.Client, a []string) error {
		return each(a, func(id string) error { return c.RemoveCapture(ctx, id) })
	})
	var to string
	var follow bool
	save := own.lasting("save ID -w FILE", "Save a capture that is kept", cobra.ExactArgs(1), func(ctx context.Context, c *control.Client, a []string) error {
		if to == "" {
			return usagef("capture save: where to? -w FILE, or -w -")
		}
		body, err := c.CaptureFile(ctx, a[0], follow) // before the file: a capture that is not there empties none
		if err != nil {
			return err
		}
		defer body.Close()
		f, err := openCapture(to, capture.Ring{})
		if err != nil {
			return err
		}
		stop := interrupted(func() { body.Close() })
		_, err = io.Copy(f, body)
		if stop() {
			err = nil // it was we who broke off
		}
		return saved(f, err, follow)
	})
	save.Flags().StringVarP(&to, "write", "w", "", "`FILE`, or - for standard output")
	save.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes, until the capture is over or ^C")
	start.Example = "  vmnetd capture start web 'tcp port 443' --max-time 5m\n  vmnetd capture start all --flow '*.example.com'"
	save.Example = "  vmnetd capture save c1 -w web.pcapng\n  vmnetd capture save c1 --follow -w - | tshark -r -"
	c.AddCommand(start, ls, stop, rm, save)
	return c
}

func writeCaptures(w io.Writer, list []backend.CaptureInfo) {
	head(w, "ID", "STATE", "GOES TO", "GUEST", "EXPRESSION", "FLOW", "PACKETS", "BYTES", "MISSING", "AGE")
	for _, i := range list {
		state, to, guest := "running", "whoever began it", i.Guest
		if !i.Running {
			state = i.End
		}
		if i.Kept {
			to = "memory"
		}
		if guest == "" {
			guest = "all"
		}
		row(w, i.ID, state, to, guest, i.Filter, i.Flow, i.Packets, size(uint64(i.Bytes)), i.Dropped, ago(i.Started))
	}
}

// openCapture opens what -w names.
func openCapture(path string, ring capture.Ring) (*capture.File, error) {
	if path != "-" {
		return capture.OpenFile(path, ring)
	}
	fi, err := os.Stdout.Stat()
	null, err2 := os.Stat(os.DevNull)
	if err == nil && err2 == nil && fi.Mode()&os.ModeCharDevice != 0 && !os.SameFile(fi, null) {
		return nil, usagef("-w -: standard output is a terminal: pipe it, as in | tshark -r -")
	}
	signal.Ignore(syscall.SIGPIPE) // a reader that has enough is no failure
	return capture.NewFile(os.Stdout), nil
}

// interrupted calls end at the first signal to end; the second ends us. What it returns stops that, and says whether there
// was one.
func interrupted(end func()) (stop func() bool) {
	signals := make(chan os.Signal, 2)
	notify(signals, endSignals)
	done := make(chan struct{})
	var was bool
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-signals:
			was = true
			signal.Reset(endSignals...)
			end()
		case <-done:
		}
	})
	return sync.OnceValue(func() bool {
		close(done)
		wg.Wait()
		signal.Stop(signals)
		return was
	})
}

// stream has a capture written as it comes, until it is over.
func (w *captureWish) stream(ctx context.Context, c *control.Client, a []string) error {
	ring, err := parseRing(w.ring)
	if err != nil {
		return err
	}
	s, err := c.StreamCapture(ctx, w.request(a)) // before the file: a guest that is not there empties none
	if err != nil {
		return err
	}
	defer s.Close()
	f, err := openCapture(w.write, ring)
	if err != nil {
		return err
	}
	end := sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if _, err := c.StopCapture(ctx, s.ID); err != nil { // the daemon has gone, or it is just over
			s.Close()
		}
	})
	stop := interrupted(end)
	if w.write == "-" {
		readerGone(os.Stdout, end) // else it would be noticed with the next packet only
	}
	_, err = io.Copy(f, s)
	stop()
	return saved(f, err, true)
}

// saved closes a capture's file and says what is in it.
func saved(f *capture.File, err error, say bool) error {
	torn := f.Close()
	if errors.Is(err, syscall.EPIPE) {
		return nil // who read it has enough
	}
	if err == nil {
		err = torn
	}
	what := fmt.Sprintf("%d packets", f.Packets)
	if f.Dropped > 0 {
		what += fmt.Sprintf(", %d are missing: they came faster than they could be written", f.Dropped)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the daemon has ended")
	}
	if err != nil {
		return fmt.Errorf("the capture broke off, with %s: %w", what, err)
	}
	if say {
		fmt.Fprintf(os.Stderr, "vmnetd: %s\n", what)
	}
	return nil
}

// captureFlags are a daemon's own capture.
type captureFlags struct{ spec string }

func (f *captureFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.spec, "capture", "", "`FILE` that all that crosses guests' wires is written to, from the first frame, as pcapng; behind commas filter=EXPRESSION, flow=, snaplen=, size=, time= bound it (of several networks, the first one's)")
}

// daemonCapture is a capture that a daemon was started with.
type daemonCapture struct {
	cfg  backend.CaptureConfig
	path string
	file *capture.File
	x    *backend.Capture
}

// open opens the file, while we may: in the sandbox there are no others.
func (f *captureFlags) open() (*daemonCapture, error) {
	if f.spec == "" {
		return nil, nil
	}
	parts := splitCommas(f.spec)
	d := &daemonCapture{path: parts[0], cfg: backend.CaptureConfig{Program: "vmnetd " + versionString()}}
	for _, p := range parts[1:] {
		name, value, _ := strings.Cut(p, "=")
		var n byteCount
		var err error
		switch name {
		case "filter":
			d.cfg.Filter = value
			_, err = capture.ParseFilter(value)
		case "flow":
			d.cfg.Flow = value
		case "snaplen":
			err = n.Set(value)
			d.cfg.Snaplen = int(n)
		case "size":
			err = n.Set(value)
			d.cfg.MaxBytes = int64(n)
		case "time":
			d.cfg.MaxTime, err = time.ParseDuration(value)
		default:
			err = errors.New(didYouMean(name, []string{"filter", "flow", "snaplen", "size", "time"}))
		}
		if err != nil {
			return nil, usagef("--capture %s: %s: %w", d.path, p, err)
		}
	}
	if d.path == "" || d.path == "-" {
		return nil, usagef("--capture %s: want a file; 'vmnetd capture -w -' writes to a pipe", f.spec)
	}
	if fi, err := os.Stat(d.path); err == nil && !fi.Mode().IsRegular() && fi.Mode()&os.ModeCharDevice == 0 {
		return nil, usagef("--capture %s: not a regular file; 'vmnetd capture -w %[1]s' writes to a pipe", d.path)
	}
	var err error
	if d.file, err = capture.OpenFile(d.path, capture.Ring{}); err != nil {
		return nil, fmt.Errorf("--capture: %w", err)
	}
	return d, nil
}

// begin begins it, before the first guest comes.
func (d *daemonCapture) begin(n *backend.Network) error {
	if d == nil {
		return nil
	}
	x, err := n.StartCapture(d.cfg, d.file)
	if err != nil {
		return usageError{fmt.Errorf("--capture %s: %w", d.path, err)}
	}
	d.x = x
	return nil
}

// close closes the file once all is in it: with the network, which has ended by then.
func (d *daemonCapture) close() {
	if d == nil {
		return
	}
	if d.x != nil {
		d.x.Stop()
		d.x.Wait() // what went wrong is in the log
	}
	d.file.Close()
}
