//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/e2e/space"
)

// test is one thing that is measured.
type test struct {
	name, what string
	guests     int  // 0 for 1
	six        bool // over IPv6
	forward    bool // from the host in
	together   bool // guests on one network
	shown      bool // one of the default
	metrics    []metric
	run        func(*bed) (values, error)
}

// metric is one value of a test.
type metric struct {
	key, label, unit string
	places           int
}

var (
	gbps    = metric{"gbps", "", "Gbit/s", 2}
	perGB   = metric{"cpu_s_per_gb", "its processor time", "s/GB", 2}
	bulk    = []metric{gbps, perGB}
	latency = []metric{{"per_s", "", "a second", 0}, {"p50_us", "median", "µs", 0}, {"p99_us", "99th of 100", "µs", 0}}
	flood   = []metric{{"per_s", "arriving", "a second", 0}, {"loss", "loss", "%", 1}}
)

// idleGuests are those of the test idle20, and idleWindow how long they are watched: at 0.1 % of a processor that is
// ten milliseconds, a thousand times the clock's grain.
const (
	idleGuests = 20
	idleWindow = 10 * time.Second
)

var tests = []test{
	{name: "up", what: "guest to server, one TCP stream", shown: true, metrics: bulk, run: iperfTest(server4)},
	{name: "down", what: "server to guest, one TCP stream", shown: true, metrics: bulk, run: iperfTest(server4, "-R")},
	{name: "bidir", what: "both directions at once", metrics: append([]metric{{"gbps", "both", "Gbit/s", 2}, {"up_gbps", "up", "Gbit/s", 2}}, perGB), run: iperfTest(server4, "--bidir")},
	{name: "up8", what: "up, 8 streams", metrics: bulk, run: iperfTest(server4, "-P", "8")},
	{name: "down8", what: "down, 8 streams", metrics: bulk, run: iperfTest(server4, "-R", "-P", "8")},
	{name: "up128", what: "up, 128 streams", metrics: bulk, run: iperfTest(server4, "-P", "128")},
	{name: "down128", what: "down, 128 streams", metrics: bulk, run: iperfTest(server4, "-R", "-P", "128")},
	{name: "rr", what: "TCP request and response of 1 byte", shown: true, metrics: latency, run: loadTest("rr", 1, 1)},
	{name: "udprr", what: "UDP request and response of 1 byte", shown: true, metrics: latency, run: loadTest("udprr", 1, 1)},
	{name: "crr", what: "connections with 1 byte each way, 8 at a time", shown: true, metrics: latency, run: loadTest("crr", 8, 1)},
	{name: "udp64", what: "datagrams of 64 bytes, up", metrics: flood, run: loadTest("flood-up", 1, 64)},
	{name: "udp1400", what: "datagrams of 1400 bytes, up", metrics: flood, run: loadTest("flood-up", 1, 1400)},
	{name: "udp64down", what: "datagrams of 64 bytes, down, unpaced", metrics: flood, run: loadTest("flood-down", 1, 64)},
	{name: "udp1400down", what: "datagrams of 1400 bytes, down, unpaced", metrics: flood, run: loadTest("flood-down", 1, 1400)},
	{name: "dns", what: "DNS queries for new names, 8 at a time", metrics: latency, run: func(b *bed) (values, error) {
		return b.load(b.guests[0].Space, "dns", net.JoinHostPort(b.be.dns, "53"), 8, 1)
	}},
	{name: "idle", what: "memory with one idle guest", shown: true, metrics: []metric{{"rss_mb", "", "MB", 1}}, run: idleMemory},
	{name: "hold", what: "connections held open (--held)", metrics: []metric{{"kb_each", "memory each", "KB", 1}, {"open_s", "time to open", "s", 2}, {"alive", "alive at the end", "", 0}}, run: holdTest},
	{name: "watched", what: "with the stream of flows followed, metrics read each second and --held connections, beside without (vmnetd)",
		metrics: watchedMetrics, run: watchedTest},
	{name: "idle20", what: "20 idle guests", guests: idleGuests, metrics: []metric{{"cpu_percent", "processor time", "% of one", 2}, {"rss_mb", "memory", "MB", 1}}, run: idleCPU},
	{name: "fwd", what: "port forward, host to guest", forward: true, metrics: bulk, run: forwardTest()},
	{name: "fwdback", what: "port forward, guest to host", forward: true, metrics: bulk, run: forwardTest("-R")},
	{name: "fwdcrr", what: "connections through a port forward, 8 at a time", forward: true, metrics: latency, run: func(b *bed) (values, error) {
		return b.load(b.host, "crr", net.JoinHostPort("127.0.0.1", strconv.Itoa(echoPort)), 8, 1)
	}},
	{name: "g2g", what: "guest to guest, one TCP stream", guests: 2, together: true, metrics: bulk, run: guestToGuest},
	{name: "up6", what: "up over IPv6", six: true, metrics: bulk, run: iperfTest(server6)},
	{name: "down6", what: "down over IPv6", six: true, metrics: bulk, run: iperfTest(server6, "-R")},
	{name: "four-up", what: "four guests at once, up", guests: maxBulk, metrics: fourMetrics, run: fourTest()},
	{name: "four-down", what: "four guests at once, down", guests: maxBulk, metrics: fourMetrics, run: fourTest("-R")},
}

var fourMetrics = []metric{{"gbps", "total", "Gbit/s", 2}, {"least_percent", "the least one's part of a fourth", "%", 0}, perGB}

func describeTests() string {
	var all []string
	for _, t := range tests {
		all = append(all, fmt.Sprintf("  %-12s %s", t.name, t.what))
	}
	return strings.Join(all, "\n")
}

func pickTests(list string) (picked []test, err error) {
	for _, n := range strings.Split(list, ",") {
		found := false
		for _, t := range tests {
			if t.name == n || n == "all" || n == "default" && t.shown {
				found = true
				if !slices.ContainsFunc(picked, func(p test) bool { return p.name == t.name }) {
					picked = append(picked, t)
				}
			}
		}
		if !found {
			return nil, fmt.Errorf("--tests: no test %q: want default, all, or some of\n%s", n, describeTests())
		}
	}
	return picked, nil
}

// tell is a measurement in one line.
func (t test) tell(v values) string {
	var all []string
	for _, m := range t.metrics {
		if x, ok := v[m.key]; ok {
			all = append(all, strings.TrimSpace(fmt.Sprintf("%s %.*f %s", m.label, m.places, x, m.unit)))
		}
	}
	if v["errors"] > 0 {
		all = append(all, fmt.Sprintf("%.0f failed", v["errors"]))
	}
	return strings.Join(all, ", ")
}

// warmUp is what iperf3 leaves out at the start: passt's and a stack's slow start at MTU 1500 takes up to two seconds.
const warmUp = 3

// iperf runs one client of iperf3.
func (b *bed) iperf(s *space.Space, to string, port int, extra ...string) (iperfResult, error) {
	args := append([]string{"iperf3", "-J", "-c", to, "-p", strconv.Itoa(port), "-t", strconv.Itoa(b.seconds), "-O", strconv.Itoa(warmUp)}, extra...)
	out, err := b.output(s, b.command(false, args...), time.Duration(b.seconds+warmUp)*time.Second)
	r, perr := parseIperf(out)
	if perr != nil { // its own reason is better than its exit status
		return r, errors.Join(perr, err)
	}
	return r, err
}

// output runs a process that takes about so long, and returns what it prints.
func (b *bed) output(s *space.Space, cmd *exec.Cmd, about time.Duration) ([]byte, error) {
	var out bytes.Buffer
	p := &proc{name: filepath.Base(cmd.Args[0]), cmd: cmd, gone: make(chan struct{})}
	cmd.Stdout = &out
	if err := b.launch(s, p); err != nil {
		return nil, err
	}
	err := b.wait(p, about+patience)
	return out.Bytes(), err
}

type iperfResult struct {
	up, down float64 // bits a second that arrived
	bytes    float64 // all of both, the warm-up too
}

// parseIperf reads iperf3 -J.
func parseIperf(out []byte) (r iperfResult, err error) {
	type sum struct {
		Bytes float64
		Bits  float64 `json:"bits_per_second"`
	}
	var j struct {
		Error string
		Start struct {
			Test struct{ Reverse int } `json:"test_start"`
		}
		Intervals []struct {
			Sum     sum
			Reverse sum `json:"sum_bidir_reverse"`
		}
		End struct {
			Received *sum `json:"sum_received"`
			Reverse  sum  `json:"sum_received_bidir_reverse"`
		}
	}
	if err := json.Unmarshal(out, &j); err != nil {
		return r, fmt.Errorf("iperf3 printed %.80q: %w", out, err)
	}
	if j.Error != "" {
		return r, fmt.Errorf("iperf3: %s", j.Error)
	}
	if j.End.Received == nil || j.End.Received.Bits == 0 {
		return r, errors.New("iperf3: nothing arrived")
	}
	r.up, r.down = j.End.Received.Bits, j.End.Reverse.Bits
	if j.Start.Test.Reverse == 1 {
		r.up, r.down = 0, r.up
	}
	for _, i := range j.Intervals {
		r.bytes += i.Sum.Bytes + i.Reverse.Bytes
	}
	return r, nil
}

// costing runs f, which says how many bytes it moved, and adds the backend's processor time for them.
func (b *bed) costing(f func() (values, float64, error)) (values, error) {
	before, _ := b.usage()
	v, bytes, err := f()
	after, _ := b.usage()
	if err != nil {
		return nil, err
	}
	v["cpu_s_per_gb"] = (after - before).Seconds() / (bytes / 1e9)
	return v, nil
}

func bulkTest(from func(*bed) *space.Space, to func(*bed) string, extra ...string) func(*bed) (values, error) {
	return func(b *bed) (values, error) {
		return b.costing(func() (values, float64, error) {
			r, err := b.iperf(from(b), to(b), iperfPort, extra...)
			return values{"gbps": (r.up + r.down) / 1e9, "up_gbps": r.up / 1e9}, r.bytes, err
		})
	}
}

func first(b *bed) *space.Space { return b.guests[0].Space }

func iperfTest(to string, extra ...string) func(*bed) (values, error) {
	return bulkTest(first, func(*bed) string { return to }, extra...)
}

func forwardTest(extra ...string) func(*bed) (values, error) {
	return bulkTest(func(b *bed) *space.Space { return b.host }, func(*bed) string { return "127.0.0.1" }, extra...)
}

func guestToGuest(b *bed) (values, error) {
	if err := b.serve(b.guests[1].Space, 1); err != nil {
		return nil, err
	}
	to := b.guests[1].addr4.String()
	if err := b.until("the other guest", func() error { return exchange(first(b), net.JoinHostPort(to, strconv.Itoa(echoPort))) }); err != nil {
		return nil, err
	}
	return bulkTest(first, func(*bed) string { return to })(b)
}

func fourTest(extra ...string) func(*bed) (values, error) {
	return func(b *bed) (values, error) {
		return b.costing(func() (values, float64, error) {
			results := make([]iperfResult, len(b.guests))
			errs := make([]error, len(b.guests))
			var wg sync.WaitGroup
			for i, g := range b.guests {
				wg.Go(func() { results[i], errs[i] = b.iperf(g.Space, server4, iperfPort+i, extra...) })
			}
			wg.Wait()
			var total, bytes float64
			least := -1.0
			for _, r := range results {
				one := r.up + r.down
				total, bytes = total+one, bytes+r.bytes
				if least < 0 || one < least {
					least = one
				}
			}
			return values{"gbps": total / 1e9, "least_percent": 100 * least / (total / float64(len(results)))}, bytes, errors.Join(errs...)
		})
	}
}

// load runs our load tool in a namespace.
func (b *bed) load(s *space.Space, kind, to string, n, size int) (v values, err error) {
	d := time.Duration(b.seconds) * time.Second
	out, err := b.output(s, b.partCommand("load", kind, "-to", to, "-d", d.String(), "-n", strconv.Itoa(n), "-size", strconv.Itoa(size)), d)
	if err != nil {
		return nil, err
	}
	return v, json.Unmarshal(out, &v)
}

func loadTest(kind string, n, size int) func(*bed) (values, error) {
	port := echoPort
	if strings.HasPrefix(kind, "flood") {
		port = floodPort
	}
	return func(b *bed) (values, error) {
		return b.load(first(b), kind, net.JoinHostPort(server4, strconv.Itoa(port)), n, size)
	}
}

func idleMemory(b *bed) (values, error) {
	if err := b.sleep(time.Second); err != nil { // what it does at its start is over
		return nil, err
	}
	_, rss := b.usage()
	return values{"rss_mb": float64(rss) / 1e6}, nil
}

func idleCPU(b *bed) (values, error) {
	if err := b.sleep(2 * time.Second); err != nil { // the kernels' own greetings on a new link are over
		return nil, err
	}
	before, _ := b.usage()
	began := time.Now()
	if err := b.sleep(idleWindow); err != nil {
		return nil, err
	}
	after, rss := b.usage()
	return values{"cpu_percent": 100 * (after - before).Seconds() / time.Since(began).Seconds(), "rss_mb": float64(rss) / 1e6}, nil
}

func holdTest(b *bed) (values, error) {
	if _, err := idleMemory(b); err != nil {
		return nil, err
	}
	_, before := b.usage()
	v, finish, err := b.hold()
	if err != nil {
		return nil, err
	}
	_, after := b.usage()
	end, err := finish()
	if err != nil {
		return nil, err
	}
	v["alive"] = end["alive"]
	v["kb_each"] = float64(after-before) / 1e3 / v["opened"]
	if missing := float64(b.held) - v["opened"]; missing > 0 {
		v["errors"] = missing
	}
	return v, nil
}

// hold has the first guest hold connections (--held). finish ends them, and says what had become of them.
func (b *bed) hold() (v values, finish func() (values, error), err error) {
	begin, in, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	out, said, err := os.Pipe()
	if err != nil {
		begin.Close()
		in.Close()
		return nil, nil, err
	}
	p := &proc{name: "load hold", cmd: b.partCommand("load", "hold", "-to", net.JoinHostPort(server4, strconv.Itoa(echoPort)), "-n", strconv.Itoa(b.held)), gone: make(chan struct{})}
	p.cmd.Stdin, p.cmd.Stdout = begin, said
	err = b.launch(first(b), p)
	begin.Close()
	said.Close()
	if err != nil {
		in.Close()
		out.Close()
		return nil, nil, err
	}
	lines := make(chan values, 2)
	go func() {
		defer out.Close()
		defer close(lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			var v values
			if json.Unmarshal(sc.Bytes(), &v) == nil {
				lines <- v
			}
		}
	}()
	// A backend that opens them a hundred a second is not waited for.
	most := patience + time.Duration(b.held)*10*time.Millisecond
	next := func() values {
		select {
		case v := <-lines:
			return v
		case <-time.After(most):
		case <-b.ctx.Done():
		}
		return nil
	}
	if v = next(); v == nil {
		p.stop()
		in.Close()
		return nil, nil, fmt.Errorf("%d connections do not open within %v: %s", b.held, most, p.said.String())
	}
	return v, func() (values, error) {
		defer in.Close()
		if _, err := io.WriteString(in, "\n"); err != nil {
			return nil, err
		}
		end := next()
		return end, b.wait(p, patience)
	}, nil
}
