//go:build linux

package e2e

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/e2e/traffic"
	"github.com/vmnetd/vmnetd/impair"
)

// Bad lines, as guests' own kernels see them:
//
//	guest ── (up, down: rate, loss, latency, …) ── vmnetd ── the host's loopback
//
// That times are right to the nanosecond is proved in virtual time (packages impair and backend/link). Here bounds are those
// that a busy machine keeps: nothing comes sooner, or faster, than it should. VMNETD_MEASURE=1 has them as tight as a quiet
// machine keeps them.

var measures = os.Getenv("VMNETD_MEASURE") != ""

func TestImpair(t *testing.T) {
	t.Parallel()
	need(t)
	kinds := []transport{kernelUnix, qemuUnix}
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			kind.need(t)
			l := newLab(t)
			d, at := kind.serve(t, l)
			g := kind.boot(t, d, at, "alpha")
			gw := d.gateway(t)
			b := &impaired{daemon: d, g: g, lab: l, gw: gw.gw4}
			for _, tt := range []struct {
				name string
				test func(*testing.T, *impaired)
				slow bool // for a processor that is emulated
			}{
				{"latency", testImpairLatency, false},
				{"loss", testImpairLoss, true},
				{"rate", testImpairRate, true},
				{"counters", testImpairCounters, false},
				{"change", testImpairChange, true},
			} {
				if tt.slow && kind.name == qemuUnix.name && !measures {
					continue
				}
				if !t.Run(tt.name, func(t *testing.T) { tt.test(t, b) }) {
					t.Log(d.must(t, "impair", "show"))
				}
				d.must(t, "impair", "clear", "alpha")
			}
		})
	}
}

type impaired struct {
	*daemon
	g   *guest
	lab *lab
	gw  netip.Addr
}

// stats are those of a flow, of what the guest sends or gets.
func (b *impaired) stats(t *testing.T, flow string, up bool) impair.Stats {
	t.Helper()
	i := ask[backend.ImpairInfo](t, b.daemon, "impair", "show", "alpha")
	list := i.Down
	if up {
		list = i.Up
	}
	for _, c := range list {
		if c.Flow == flow {
			return c.Stats
		}
	}
	t.Fatalf("no flow %s in %+v", flow, i)
	return impair.Stats{}
}

// counter is one of the guest's kernel's.
func (b *impaired) counter(t *testing.T, group, name string) int {
	t.Helper()
	at := 0
	for line := range strings.Lines(b.g.run(t, "cat /proc/net/snmp /proc/net/netstat")) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || f[0] != group:
		case at == 0: // the names; the next line has the numbers
			if at = slices.Index(f, name); at < 0 {
				t.Fatalf("%s has no %s", group, name)
			}
		default:
			n, err := strconv.Atoi(f[at])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("there is no %s %s", group, name)
	return 0
}

// testImpairLatency: 50 ms each way are 100 ms there and back.
func testImpairLatency(t *testing.T, b *impaired) {
	n := 5
	if measures {
		n = 41
	}
	pings := func() (all []float64) {
		out := b.g.run(t, "ping -c 1 -W 20 %[2]s >/dev/null; ping -i 0.2 -c %[1]d -W 20 %[2]s", n, b.gw)
		for line := range strings.Lines(out) {
			if _, rest, ok := strings.Cut(line, "time="); ok {
				ms, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, ms)
			}
		}
		slices.Sort(all)
		if len(all) != n {
			t.Fatalf("%d of %d answers: %s", len(all), n, out)
		}
		return all
	}
	least, most := 99., 10000. // an emulated processor's clock may go a little slower than ours
	if measures {
		bare := pings() // of which an emulated guest needs a millisecond by itself
		t.Logf("nothing set: %.2f to %.2f ms, median %.2f", bare[0], bare[n-1], bare[n/2])
		least, most = 99.5, 101+bare[n/2]
	}
	b.must(t, "impair", "set", "alpha", "--up", "latency=50ms", "--down", "latency=50ms")
	all := pings()
	t.Logf("%.2f to %.2f ms, median %.2f", all[0], all[n-1], all[n/2])
	if all[0] < least || all[n/2] > most {
		t.Errorf("median %.2f ms of %v, want %.2f to %.2f", all[n/2], all, least, most)
	}
}

// testImpairLoss: of 20,000 datagrams 2 % are lost, within 3 σ, the same number with the same seed; nothing else is.
func testImpairLoss(t *testing.T, b *impaired) {
	const n, p = 20000, 0.02
	echo := b.lab.host.listenPacket(t, "127.0.0.1:0")
	lost := func(seed int) (frames, lost uint64) {
		b.must(t, "impair", "clear", "alpha")
		const flow = "u" // in both runs: each name has draws of its own
		b.must(t, "impair", "set", "alpha", "--flow", fmt.Sprintf("%s=*:udp:%d", flow, echo.LocalAddr().(*net.UDPAddr).Port), "--up", "loss=2%,latency=1ms", "--seed", fmt.Sprint(seed))
		// No more at once than the interface's own queue has room for, which would else drop some by itself.
		b.g.run(t, "for i in $(seq %d); do guest udp -wait 0 -size 64 -count 200 %s >/dev/null; done", n/200, target(b.gw.String(), echo.LocalAddr()))
		var s impair.Stats
		wait(t, "all are through", func() error {
			before := s.Frames
			if s = b.stats(t, flow, true); s.Frames < n && s.Frames != before || s.UnderWay > 0 || s.Frames == 0 {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
		if s.Dropped() != s.Lost {
			t.Errorf("%+v", s)
		}
		return s.Frames, s.Lost
	}
	frames, one := lost(7)
	framesAgain, again := lost(7)
	mean, sigma := float64(frames)*p, math.Sqrt(float64(frames)*p*(1-p))
	t.Logf("%d of %d lost, %.2f σ from what is meant; again %d of %d", one, frames, (float64(one)-mean)/sigma, again, framesAgain)
	if frames < n/2 || math.Abs(float64(one)-mean) > 3*sigma {
		t.Errorf("%d of %d lost, want %.0f ± %.0f", one, frames, mean, 3*sigma)
	}
	if frames == framesAgain && one != again { // else the guest's own queue was too short after all
		t.Errorf("%d and %d of %d lost with one seed", one, again, frames)
	}
}

// testImpairRate: TCP goes no faster than its line from the first second on, and a queue of 100 ms hardly loses any.
func testImpairRate(t *testing.T, b *impaired) {
	size := int64(2_000_000)
	if measures {
		size = 10_000_000
	}
	b.must(t, "impair", "set", "alpha", "--up", "rate=10mbit,latency=10ms,queue=100ms", "--down", "rate=10mbit,latency=10ms,queue=100ms")
	sink := b.lab.host.serve(t, "tcp", "127.0.0.1:0", traffic.Sink)
	for _, way := range []string{"up", "down"} {
		var r traffic.Report
		began := time.Now()
		if way == "up" {
			b.g.json(t, &r, "guest tcp -timeout 60s -send %d %s", size, target(b.gw.String(), sink.Addr()))
			report(t, sink)
		} else {
			source := b.lab.host.serve(t, "tcp", "127.0.0.1:0", traffic.Source(7, size))
			b.g.json(t, &r, "guest tcp -timeout 60s -close write -send 0 %s", target(b.gw.String(), source.Addr()))
			if r.Received != size {
				t.Errorf("%d of %d bytes: %+v", r.Received, size, r)
			}
		}
		rate := float64(size) * 8 / time.Since(began).Seconds() / 1e6
		s := b.stats(t, "default", way == "up")
		t.Logf("%s: %.2f Mbit/s, %+v", way, rate, s)
		// Of a frame of 1514 bytes 1448 are its user's; the queue, 125 kB, may be what is still on its way when the guest is done.
		if rate > 10*1448./1514*(1+125e3/float64(size))+0.1 || measures && rate < 9.2 {
			t.Errorf("%s: %.2f Mbit/s over a line of 10", way, rate)
		}
		if s.Queue > s.Frames/5 {
			t.Errorf("%s: %d of %d frames found the queue full", way, s.Queue, s.Frames)
		}
	}
}

// testImpairCounters: what a line does to frames is what the guest's kernel counts.
func testImpairCounters(t *testing.T, b *impaired) {
	b.must(t, "impair", "set", "alpha", "--down", "duplicate=100%")
	wait(t, "a ping is answered twice", func() error {
		if out := b.g.run(t, "ping -c 2 -W 5 %s || true", b.gw); !strings.Contains(out, "DUP") {
			return fmt.Errorf("no DUP: %s", out)
		}
		return nil
	})
	const size = 300_000
	ahead := func() int { return b.counter(t, "TcpExt:", "TCPOFOQueue") }
	b.must(t, "impair", "set", "alpha", "--down", "latency=20ms,reorder=20%")
	early := ahead()
	source := b.lab.host.serve(t, "tcp", "127.0.0.1:0", traffic.Source(7, size))
	var got traffic.Report
	b.g.json(t, &got, "guest tcp -timeout 60s -close write -send 0 %s", target(b.gw.String(), source.Addr()))
	if got.Received != size || got.ReceivedHash != traffic.Hash(7, size) {
		t.Errorf("of segments in another order came %d of %d bytes, hash right: %v", got.Received, size, got.ReceivedHash == traffic.Hash(7, size))
	}
	if n, s := ahead()-early, b.stats(t, "default", false); n == 0 || s.Reordered == 0 {
		t.Errorf("the guest counts %d segments ahead of others, the line %d of %d", n, s.Reordered, s.Frames)
	}

	counter := func() int { return b.counter(t, "Udp:", "InCsumErrors") + b.counter(t, "Ip:", "InHdrErrors") }
	echo := b.lab.host.echoUDP(t, "127.0.0.1:0")
	b.must(t, "impair", "set", "alpha", "--down", "none", "--flow", fmt.Sprintf("echo=*:udp:%d", echo.Port), "--down", "corrupt=100%")
	before := counter()
	var r datagrams
	b.g.json(t, &r, "guest udp -wait 200ms -size 1000 -count 10 %s", target(b.gw.String(), echo))
	if r.Wrong > 0 || r.Answered > 2 { // a flipped bit in the UDP length or the addresses goes elsewhere; in a TOS field nobody minds
		t.Errorf("%+v: damaged datagrams arrived", r)
	}
	wait(t, "the guest counts bad checksums", func() error {
		if n := counter() - before; n < 5 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	b.must(t, "impair", "preset", "alpha", "3g")
	if i := ask[backend.ImpairInfo](t, b.daemon, "impair", "show", "alpha"); i.Settings.Down.String() != "rate=1.6mbit,latency=150ms" || len(i.Settings.Flows) != 0 {
		t.Errorf("3g: %+v", i.Settings)
	}
	if _, errs, code := b.cli("impair", "set", "alpha", "--down", "loss=120%"); code != 2 || !strings.Contains(errs, "0% to 100%") {
		t.Errorf("a loss of 120 %%: %d %s", code, errs)
	}
}

// testImpairChange: a conversation lives through changes of its line, and every byte arrives.
func testImpairChange(t *testing.T, b *impaired) {
	const size = 20_000_000
	sink := b.lab.host.serve(t, "tcp", "127.0.0.1:0", traffic.Sink)
	b.must(t, "impair", "set", "alpha", "--up", "rate=50mbit,latency=5ms")
	job := b.g.begin(t, "guest tcp -timeout 60s -send %d -seed 7 %s", size, target(b.gw.String(), sink.Addr()))
	for _, words := range []string{"rate=100mbit,latency=20ms", "latency=2ms,loss=0.1%", "rate=200mbit,policy=codel", "latency=10ms,jitter=5ms,duplicate=1%", "none"} {
		b.must(t, "impair", "set", "alpha", "--up", words)
	}
	var r traffic.Report
	job.next(t, &r)
	if got := report(t, sink); r.End != "eof" || got.Received != size || got.ReceivedHash != traffic.Hash(7, size) {
		t.Errorf("%d of %d bytes arrived, hash right: %v, end %q", got.Received, size, got.ReceivedHash == traffic.Hash(7, size), r.End)
	}
}
