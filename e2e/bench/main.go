//go:build linux

// Command bench measures vmnetd beside the other user-mode networks for virtual machines that it finds, on the same
// work, in one run, on this machine:
//
//	make bench                                                      # a first look: vmnetd and what is on PATH
//	make bench BENCHFLAGS="--rounds 3 --tests all --mtu 1500,65520 --markdown table.md --svg bars.svg"
//	go run ./e2e/bench --backends vmnetd,passt --tests up,rr --peers /opt/passt/bin
//	go run ./e2e/bench --qemu --size 1G                             # real guests in QEMU instead
//
// Each measurement has a topology of its own, new for each of them so that none suffers from its predecessor's
// TIME_WAIT:
//
//	guest                              host                          server
//	a Linux network stack ── TAP ── join ── socket ── backend ── veth ── iperf3, and our own small servers
//
// guest, host and server are network namespaces; join carries frames between the TAP and the backend's socket as QEMU's
// `-netdev stream` does, one frame a write. Backends that know no such socket take the TAP themselves: slirp4netns, and
// libslirp as the `-netdev user` of a QEMU without a guest. Bulk goes through iperf3, all else through the small load
// tool in this command. A round runs each backend once for each test, one backend right after the other, so that what
// else the machine does hits all alike; what is told is the median over the rounds.
//
// It needs root, iproute2 and iperf3; each peer must be on PATH or in the folder of --peers, and one that is missing or
// fails is named with its reason. All that it makes is gone at its end. Figures of two runs do not compare, ratios
// within one do; on a machine that does other work they do not either.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	if p := os.Getenv(partEnv); p != "" {
		if err := bePart(p, os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", p, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	o, err := parseFlags(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil && os.Getuid() != 0 {
		err = errors.New("network namespaces and TAPs need root: run it with sudo (vmnetd itself needs none)")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	backends []backend
	tests    []test
	mtus     []int
	cores    []int
	rounds   int
	seconds  int
	held     int
	vmnetd   string
	peers    string
	json     string
	markdown string
	svg      string
	qemu     bool
	size     int64
	sizeText string
}

func parseFlags(args []string, say io.Writer) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(say)
	names := backendNames()
	list := fs.String("backends", strings.Join(names, ","), "what is measured, a comma between; vmnetd, if it is there, is what ratios are to")
	tests := fs.String("tests", "default", "the tests: default, all, or some of them with a comma between:\n"+describeTests())
	mtus := fs.String("mtu", "1500", "guests' MTUs, a comma between, 1280 to 65520; others than 1500 only where the backend takes one")
	cores := fs.String("cores", strconv.Itoa(runtime.NumCPU()), "how many processors all of it may use, a comma between")
	fs.IntVar(&o.rounds, "rounds", 1, "how often each is measured")
	fs.IntVar(&o.seconds, "seconds", 3, "how long one measurement takes, beyond its preparation")
	fs.IntVar(&o.held, "held", 10000, "connections of the test hold")
	fs.StringVar(&o.vmnetd, "vmnetd", "bin/vmnetd", "the vmnetd `binary`")
	fs.StringVar(&o.peers, "peers", "", "a `folder` that is looked in before PATH for passt, gvproxy, slirp4netns, qemu-system-x86_64, iperf3")
	fs.StringVar(&o.json, "json", "", "write every value to this `file`")
	fs.StringVar(&o.markdown, "markdown", "", "write the table to this `file`")
	fs.StringVar(&o.svg, "svg", "", "write a picture of the tests up and down to this `file`")
	fs.BoolVar(&o.qemu, "qemu", false, "hash-checked transfers of a real guest in QEMU, through vmnetd, passt and -netdev user; of the flags above all but --tests, --seconds, --held, --svg")
	fs.StringVar(&o.sizeText, "size", "1G", "with --qemu: bytes each way, with K, M or G for 2^10, 2^20, 2^30")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("%q: want flags only", fs.Args())
	}
	for _, n := range strings.Split(*list, ",") {
		i := slices.IndexFunc(backends, func(b backend) bool { return b.name == n })
		if i < 0 {
			return nil, fmt.Errorf("--backends: no backend %q: want some of %s", n, strings.Join(names, ","))
		}
		o.backends = append(o.backends, backends[i])
	}
	// The first column is what the others are compared with.
	slices.SortStableFunc(o.backends, func(a, b backend) int { return b2i(b.name == "vmnetd") - b2i(a.name == "vmnetd") })
	var err error
	if o.tests, err = pickTests(*tests); err != nil {
		return nil, err
	}
	if o.mtus, err = numbers("--mtu", *mtus, 1280, 65520); err != nil {
		return nil, err
	}
	if o.cores, err = numbers("--cores", *cores, 1, runtime.NumCPU()); err != nil {
		return nil, err
	}
	if o.size, err = parseSize(o.sizeText); err != nil {
		return nil, err
	}
	for _, c := range []struct {
		name        string
		v, min, max int
	}{{"rounds", o.rounds, 1, 100}, {"seconds", o.seconds, 1, 3600}, {"held", o.held, 1, 50000}} { // held: a client's ports to one server
		if c.v < c.min || c.v > c.max {
			return nil, fmt.Errorf("--%s %d: want %d to %d", c.name, c.v, c.min, c.max)
		}
	}
	return o, nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func numbers(name, s string, least, most int) (all []int, err error) {
	for _, f := range strings.Split(s, ",") {
		n, err := strconv.Atoi(f)
		if err != nil || n < least || n > most {
			return nil, fmt.Errorf("%s %s: %q: want numbers from %d to %d, a comma between", name, s, f, least, most)
		}
		all = append(all, n)
	}
	return all, nil
}

func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "KMG")
	n, err := strconv.ParseInt(digits, 10, 64)
	shift, ok := map[string]int{"": 0, "K": 10, "M": 20, "G": 30}[s[len(digits):]]
	if err != nil || !ok || n < 1 || n > 1<<40>>shift {
		return 0, fmt.Errorf("--size %s: want bytes, as 1000000, 64M or 1G, and no more than 1024G", s)
	}
	return n << shift, nil
}

// run measures all that was asked for.
func run(ctx context.Context, o *options, out io.Writer) (err error) {
	if o.peers != "" {
		dir, err := filepath.Abs(o.peers)
		if err != nil {
			return err
		}
		if err := os.Setenv("PATH", dir+":"+os.Getenv("PATH")); err != nil {
			return err
		}
	}
	for tool, pkg := range map[string]string{"ip": "iproute2", "iperf3": "iperf3", "mount": "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w (on Debian: apt-get install %s)", err, pkg)
		}
	}
	if err := moreFiles(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/tmp", fmt.Sprintf("vmnet-bench-%d-", os.Getpid())) // short: sockets live in it
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o755); err != nil { // passt becomes nobody
		return err
	}
	r := newReport(ctx, o)
	here := o.backends[:0:0]
	for _, b := range o.backends {
		if b.path, err = b.find(o); err == nil {
			b.version, err = b.ask(ctx)
		}
		if err != nil {
			r.fail(out, b.name, "", fmt.Errorf("skipped: %w", err))
			continue
		}
		r.Versions[b.name] = b.version
		fmt.Fprintf(out, "%s: %s (%s)\n", b.name, b.version, b.path)
		here = append(here, b)
	}
	if len(here) == 0 {
		return errors.New("there is nothing to measure")
	}
	o.backends = here
	if o.qemu {
		err = measureQEMU(ctx, o, dir, r, out)
	} else {
		err = measureAll(ctx, o, dir, r, out)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s", r.markdown())
	write := func(path, what string) {
		if path != "" {
			err = errors.Join(err, os.WriteFile(path, []byte(what), 0o644))
		}
	}
	write(o.json, r.json())
	write(o.markdown, r.markdown())
	write(o.svg, r.svg())
	return err
}

func measureAll(ctx context.Context, o *options, dir string, r *report, out io.Writer) error {
	for round := range o.rounds {
		for _, cores := range o.cores {
			for _, mtu := range o.mtus {
				for _, t := range o.tests {
					for _, be := range o.backends {
						k := key{cores, mtu, t.name, be.name}
						err := errors.New(be.cannot(t, mtu))
						var got values
						if err.Error() == "" {
							got, err = measure(ctx, o, dir, k, be, t)
						}
						if ctx.Err() != nil {
							return errors.New("interrupted")
						}
						if err != nil {
							r.fail(out, be.name, k.String(), err)
							continue
						}
						r.add(k, got)
						fmt.Fprintf(out, "round %d %s %s: %s\n", round+1, k, be.name, t.tell(got))
					}
				}
			}
		}
	}
	return nil
}

func measure(ctx context.Context, o *options, dir string, k key, be backend, t test) (got values, err error) {
	b, err := newBed(ctx, dir, k.Cores, k.MTU)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	b.seconds, b.held = o.seconds, o.held
	if err := b.bringUp(be, max(t.guests, 1), t.forward, t.six); err != nil {
		return nil, err
	}
	return t.run(b)
}
