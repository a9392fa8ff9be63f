//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/e2e/traffic"
	"golang.org/x/sys/unix"
)

// The soak: one daemon under mixed load for as long as VMNETD_E2E_SOAK says (30m), whose memory, descriptors and
// goroutines must be flat at its end and back where they were once its guests have gone.
//
//	VMNETD_E2E_SOAK=30m VMNETD_E2E_SOAK_FILE=/tmp/soak go test -run '^TestSoak$' -timeout 40m ./e2e
//
// writes /tmp/soak.csv and /tmp/soak.txt, the samples and a graph of them. With CI=true five minutes of it run beside
// all other tests, in a process of its own that testMain starts first and waits for: the load is so low that it costs
// them nothing, and CI no time.
const (
	soakEnv     = "VMNETD_E2E_SOAK"
	soakFileEnv = "VMNETD_E2E_SOAK_FILE"
	soakBeside  = 5 * time.Minute
)

// besideAll: the soak runs beside all other tests.
var besideAll bool

// soakBehind starts the soak beside all other tests, if this run is of all. What it returns waits for its end.
func soakBehind() (wait func() error) {
	flag.Parse()
	run := flag.Lookup("test.run").Value.String()
	if os.Getenv("CI") != "true" || os.Getenv(soakEnv) != "" || run != "" || testing.Short() || os.Getuid() != 0 {
		return func() error { return nil }
	}
	self, err := os.Executable()
	if err != nil {
		return func() error { return err }
	}
	var said output
	cmd := exec.Command(self, "-test.run=^TestSoak$", "-test.timeout="+(soakBeside+5*time.Minute).String())
	cmd.Env = append(os.Environ(), soakEnv+"="+soakBeside.String())
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return func() error { return err }
	}
	besideAll = true
	// All that it starts inherits this: who measures beside it has the processor first.
	unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, 10)
	return func() error {
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("TestSoak beside the others: %w\n%s", err, said.String())
		}
		return nil
	}
}

func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(cmp.Or(os.Getenv(soakEnv), "0s"))
	if err != nil {
		t.Fatalf("%s: %v; want a time as 5m", soakEnv, err)
	}
	if length == 0 {
		if besideAll {
			return // that one's end is waited for when all others have ended
		}
		t.Skipf("with %s=5m; in CI it runs beside all other tests, which fail with it", soakEnv)
	}
	need(t)
	l := newLab(t)
	vfkit := l.path("vfkit.sock")
	d := l.serveAt(t, "q.sock", "control.sock", nil, "--pprof", "--vfkit", "unix:"+vfkit)
	s := &soak{lab: l, daemon: d, gateway: d.gateway(t), began: time.Now(), end: time.Now().Add(length)}
	s.doors = []attach{{unix: d.unix}, {tie: func(t *testing.T, tap *os.File) func() {
		return tie(tap, l.dialVfkit(t, vfkit, l.localPath(), true))
	}}}
	idle := s.sample(t, true)
	t.Run("load", func(t *testing.T) { s.load(t) })
	s.write(t)
	s.judge(t)
	// Guests and conversations have gone: what they had must have, too.
	// A datagram guest's end is seen by looking for its socket, and twice (vfkit).
	waitFor(t, 2*patience, "all is as it was before the first guest", func() error {
		now := s.sample(t, true)
		if now.guests > 0 || now.goroutines > idle.goroutines || now.descriptors > idle.descriptors {
			return fmt.Errorf("%+v, was %+v", now, idle)
		}
		return nil
	})
	t.Logf("idle again %v after the load's end", time.Since(s.end).Round(time.Millisecond))
	if n := strings.Count(d.log.String(), "level=ERROR"); n > 0 {
		t.Errorf("the daemon's log has %d errors", n)
	}
}

// soak is the load, and what was seen of the daemon under it.
type soak struct {
	*lab
	*daemon
	gateway
	doors      []attach
	began, end time.Time
	samples    []soakSample

	bytes, conversations, datagrams, names, visitors, rules atomic.Int64
}

type soakSample struct {
	at          time.Duration
	memory      int64 // resident
	heap        int64 // in use after a collection; 0: not asked
	descriptors int
	goroutines  int
	guests      int
	flows       int
}

// sample asks the daemon for its state. A collection is not its own idea, so it is asked for now and then only.
func (s *soak) sample(t *testing.T, collect bool) soakSample {
	t.Helper()
	n := s.status(t).Networks[0]
	x := soakSample{at: time.Since(s.began), guests: n.Guests, flows: n.Flows}
	if collect {
		x.heap = s.profiled(t, "heap?gc=1&debug=1", "# HeapAlloc = ")
	}
	x.goroutines = int(s.profiled(t, "goroutine?debug=1", "goroutine profile: total "))
	x.memory, x.descriptors = s.daemon.memory(t), s.daemon.descriptors()
	return x
}

// profiled is the number behind some words in one of the daemon's profiles.
func (s *soak) profiled(t *testing.T, path, words string) int64 {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.control)
	}}}
	resp, err := c.Get("http://vmnetd/v1/debug/pprof/" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), words)
	n, err := strconv.ParseInt(rest[:max(0, strings.IndexByte(rest, '\n'))], 10, 64)
	if err != nil {
		t.Fatalf("%s: %v in %.300q", path, err, b)
	}
	return n
}

// over says whether the time is up.
func (s *soak) over() bool { return !time.Now().Before(s.end) }

// load is the mixed load. Rates are such that it takes a fifth of a processor: what leaks does so by the number of
// things, not by their size.
func (s *soak) load(t *testing.T) {
	alpha := kernelUnix.boot(t, s.daemon, s.doors[0], "alpha")
	bravo := kernelUnix.boot(t, s.daemon, s.doors[1], "bravo")
	echo := map[string]net.Addr{}
	udpEcho := map[string]net.Addr{}
	worlds := []string{world4, world6}
	for _, a := range worlds {
		echo[a] = s.world.serve(t, "tcp", net.JoinHostPort(a, "0"), traffic.Echo).Addr()
		udpEcho[a] = s.world.echoUDP(t, net.JoinHostPort(a, "0"))
	}
	port, _ := alpha.listen(t, "guest listen echo :0")
	udpPort, _ := bravo.listen(t, "guest udp-echo :0")
	checkPort, _ := bravo.listen(t, "guest listen check :0")

	// Conversations that last as long as all of it: up in one family, down in the other, and in by a forward.
	source := s.world.serve(t, "tcp", net.JoinHostPort(world6, "0"), traffic.StreamTo(50_000))
	check := s.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.CheckFrom(nil))
	lasting := []*job{
		alpha.begin(t, "guest stream -dir up -rate 50000 -every 1s %s", check.Addr()),
		bravo.begin(t, "guest stream -dir down -every 1s %s", source.Addr()),
	}
	inward := s.forward(t, "[::1]:0:bravo:%d", checkPort)
	in, err := s.lab.host.dial("tcp", at(inward[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var inBytes atomic.Int64
	inward2, stop := context.WithCancel(t.Context())
	defer stop()
	inEnd := make(chan error, 1)
	go func() { inEnd <- traffic.Stream(inward2, in, 50_000, inBytes.Store) }()

	var wg sync.WaitGroup
	work := func(name string, every time.Duration, f func(t *testing.T, round int)) {
		wg.Go(func() {
			t.Run(name, func(t *testing.T) {
				for round := 0; !s.over() && !t.Failed(); round++ {
					began := time.Now()
					// A test of its own, so that what is cleaned up with the test is so now.
					t.Run(strconv.Itoa(round), func(t *testing.T) { f(t, round) })
					time.Sleep(min(time.Until(began.Add(every)), time.Until(s.end)))
				}
			})
		})
	}
	family := func(round int) string { return worlds[round%2] }

	work("bulk", 5*time.Second, func(t *testing.T, round int) {
		const n = 5_000_000
		g := []*guest{alpha, bravo}[round/2%2]
		var r traffic.Report
		g.json(t, &r, "guest tcp -timeout 60s -send %d -seed %d %s", n, round, echo[family(round)])
		if r.End != "eof" || r.Received != n || r.ReceivedHash != traffic.Hash(uint64(round), n) {
			t.Errorf("%s to %s: %d of %d bytes came back, end %q (%s)", g.name, family(round), r.Received, n, r.End, r.Error)
		}
		s.bytes.Add(2 * n)
	})
	work("short", 0, func(t *testing.T, round int) {
		const n = 200
		g := []*guest{bravo, alpha}[round/2%2]
		var r struct {
			Done, Wrong int
			Ends        map[string]int
		}
		g.json(t, &r, "guest short -count %d -every 50ms -seed %d %s", n, round*n, echo[family(round)])
		if r.Done != n {
			t.Errorf("%s to %s: %+v, want %d done", g.name, family(round), r, n)
		}
		s.conversations.Add(n)
	})
	work("udp", time.Second, func(t *testing.T, round int) {
		const n = 50
		// A mapping is kept for five minutes (RFC 4787), so that ever new ports would be flat after these only.
		from := 20_000 + round%30
		var r datagrams
		alpha.json(t, &r, "guest udp -from %d -count %d -size %d %s", from, n, 100+round*131%1800, udpEcho[family(round)])
		if r.Wrong > 0 || r.Answered < n*9/10 { // some may get lost where the processor is another's
			t.Errorf("%+v, want %d answers", r, n)
		}
		s.datagrams.Add(n)
	})
	work("names", 2*time.Second, func(t *testing.T, round int) {
		q := []struct{ ask, rcode string }{
			{"www.example A", "NOERROR"}, {"-tcp www.example AAAA", "NOERROR"}, {"alpha.internal A", "NOERROR"},
			{"nx.example A", "NXDOMAIN"}, {"-tcp big.example TXT", "NOERROR"}, {"fail.example A", "SERVFAIL"},
		}[round%6]
		if a := bravo.query(t, "%s", q.ask); a.Rcode != q.rcode {
			t.Errorf("%s: %+v, want %s", q.ask, a, q.rcode)
		}
		s.names.Add(1)
	})
	work("visitors", 6*time.Second, func(t *testing.T, round int) {
		// A few names, so that leases are given again, and one of its own now and then.
		name := fmt.Sprintf("visitor%d", round%3)
		if round%7 == 6 {
			name = fmt.Sprintf("visitor-%d", round)
		}
		g := kernelUnix.boot(t, s.daemon, s.doors[round%2], name)
		b := &bench{lab: s.lab, daemon: s.daemon, gateway: s.gateway, g: g}
		b.bytes(t, family(round), s.world, 300_000)
		g.run(t, "ping -c 1 -W 5 %s", alpha.addr4)
		g.run(t, "ping -c 1 -W 5 %s", bravo.addr6)
		// It goes in the middle of a word.
		hold := s.world.serve(t, "tcp", net.JoinHostPort(family(round+1), "0"), traffic.Hold)
		var p progress
		g.begin(t, "guest stream -rate 100000 -every 50ms %s", hold.Addr()).next(t, &p)
		if err := g.Kill(); err != nil {
			t.Error(err)
		}
		if r := report(t, hold); r.End != "reset" {
			t.Errorf("the far side of a guest that has gone: %q, want reset", r.End)
		}
		s.visitors.Add(1)
	})
	work("forwards", 3*time.Second, func(t *testing.T, round int) {
		host := []string{"127.0.0.1:0", "[::1]:0"}[round%2]
		added := s.forward(t, "%s:alpha:%d", host, port)
		addedUDP := s.forward(t, "%s:[%s]:%d/udp", host, bravo.addr6, udpPort)
		for i := range 5 {
			want := pattern(uint64(round), 2000)
			if got, err := s.lab.host.talk(t, "tcp", at(added[0]), want); err != nil || !bytes.Equal(got, want) {
				t.Errorf("forward %s, %d: %d bytes came back, %v", added[0].Text, i, len(got), err)
			}
			if got, err := s.lab.host.talk(t, "udp", at(addedUDP[0]), want); err != nil || !bytes.Equal(got, want) {
				t.Errorf("forward %s, %d: %d bytes came back, %v", addedUDP[0].Text, i, len(got), err)
			}
		}
		s.rules.Add(2)
	})
	// As many samples whatever the length, but not so many that they are the load.
	every := min(max(time.Until(s.end)/240, time.Second), 10*time.Second)
	for i := 0; !s.over(); i++ {
		s.samples = append(s.samples, s.sample(t, i%6 == 0))
		time.Sleep(min(every, time.Until(s.end)))
	}
	wg.Wait()

	// Each moves to this moment, and none is torn: "check" would have ended it.
	for _, j := range lasting {
		j.moves(t, 50_000)
	}
	before := inBytes.Load()
	wait(t, "the lasting conversation by a forward goes on", func() error {
		select {
		case err := <-inEnd:
			t.Fatalf("it has ended: %v", err)
		default:
		}
		if n := inBytes.Load(); n < before+20_000 {
			return fmt.Errorf("%d bytes, were %d", n, before)
		}
		return nil
	})
	stop()
	<-inEnd
}

// judge compares the last third of the time with the middle one: the first is warm-up. The bounds are what single
// samples of a flat run differ by; what leaks with each conversation, guest or rule is beyond them within five minutes.
func (s *soak) judge(t *testing.T) {
	third := len(s.samples) / 3
	if third < 10 {
		t.Fatalf("%d samples say nothing", len(s.samples))
	}
	for _, k := range s.kinds() {
		middle, last := median(k.of(s.samples[third:2*third])), median(k.of(s.samples[2*third:]))
		if k.slack == 0 {
			continue
		}
		if last > middle+max(k.slack, middle*k.share) {
			t.Errorf("%s is not flat: %.0f in the middle third, %.0f in the last", k.name, middle, last)
		}
	}
}

type soakKind struct {
	name         string
	slack, share float64 // that the last third may have more: the larger; 0: not judged
	value        func(soakSample) float64
}

func (s *soak) kinds() []soakKind {
	const mb = 1e6
	return []soakKind{
		{"resident MB", 8, 0.1, func(x soakSample) float64 { return float64(x.memory) / mb }},
		{"live heap MB", 1.5, 0.05, func(x soakSample) float64 { return float64(x.heap) / mb }},
		{"descriptors", 15, 0, func(x soakSample) float64 { return float64(x.descriptors) }},
		{"goroutines", 20, 0, func(x soakSample) float64 { return float64(x.goroutines) }},
		{"flows", 0, 0, func(x soakSample) float64 { return float64(x.flows) }},
		{"guests", 0, 0, func(x soakSample) float64 { return float64(x.guests) }},
	}
}

// of is a kind's value in each sample that has it.
func (k soakKind) of(samples []soakSample) (v []float64) {
	for _, x := range samples {
		if y := k.value(x); y > 0 {
			v = append(v, y)
		}
	}
	return v
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// write keeps the samples and their graph, and shows the graph.
func (s *soak) write(t *testing.T) {
	graph := s.graph()
	t.Log("\n" + graph)
	base := os.Getenv(soakFileEnv)
	if base == "" {
		return
	}
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	w.Write([]string{"seconds", "resident_bytes", "live_heap_bytes", "descriptors", "goroutines", "flows", "guests"})
	for _, x := range s.samples {
		w.Write([]string{
			fmt.Sprintf("%.1f", x.at.Seconds()), fmt.Sprint(x.memory), fmt.Sprint(x.heap), fmt.Sprint(x.descriptors), fmt.Sprint(x.goroutines),
			fmt.Sprint(x.flows), fmt.Sprint(x.guests),
		})
	}
	w.Flush()
	if err := errors.Join(os.WriteFile(base+".csv", b.Bytes(), 0o644), os.WriteFile(base+".txt", []byte(graph), 0o644)); err != nil {
		t.Error(err)
	}
}

// graph draws each kind over time: in each column the most of its samples, from 0 up.
func (s *soak) graph() string {
	var b strings.Builder
	last := time.Duration(0)
	if n := len(s.samples); n > 0 {
		last = s.samples[n-1].at
	}
	fmt.Fprintf(&b, "%v of mixed load: %d MB in bulk, %d short conversations, %d datagrams, %d names, %d guests came and went, %d forwards\n",
		last.Round(time.Second), s.bytes.Load()/1e6, s.conversations.Load(), s.datagrams.Load(), s.names.Load(), s.visitors.Load(), s.rules.Load())
	const columns, rows = 72, 5
	for _, k := range s.kinds() {
		var most [columns]float64
		top := 0.0
		for _, x := range s.samples {
			c := min(columns-1, int(float64(columns)*float64(x.at)/float64(last+1)))
			most[c] = max(most[c], k.value(x))
			top = max(top, most[c])
		}
		for c := 1; c < columns; c++ { // where nothing was asked, as before
			if most[c] == 0 {
				most[c] = most[c-1]
			}
		}
		third := len(s.samples) / 3
		fmt.Fprintf(&b, "\n%s: median %.1f in the middle third, %.1f in the last\n", k.name, median(k.of(s.samples[third:2*third])), median(k.of(s.samples[2*third:])))
		for r := rows; r > 0; r-- {
			label := ""
			if r == rows {
				label = strconv.FormatFloat(top, 'f', -1, 64)
				label = label[:min(len(label), 7)]
			}
			line := make([]byte, columns)
			for c := range line {
				line[c] = ' '
				if top > 0 && int(math.Ceil(most[c]/top*rows)) >= r {
					line[c] = '#'
				}
			}
			fmt.Fprintf(&b, "%8s |%s\n", label, strings.TrimRight(string(line), " "))
		}
		fmt.Fprintf(&b, "%8s +%s\n", "0", strings.Repeat("-", columns))
	}
	end := last.Round(time.Second).String()
	fmt.Fprintf(&b, "%8s  0%*s\n", "", columns-1, end)
	return b.String()
}
