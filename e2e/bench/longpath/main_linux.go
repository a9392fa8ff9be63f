// Longpath measures TCP over a long path: goodput through vmnetd beside that of Linux alone, with the same delay, rate
// and loss.
//
//	go run ./e2e/bench/longpath                              # every cell, about half an hour
//	go run ./e2e/bench/longpath -rtt 100ms -loss 0 -place host
//
// The long path lies between the host and the server, where the Internet is (place "host"), or between the guest and
// vmnetd (place "guest": a guest that is plugged in from far away), and is made of TAPs and a program of ours that
// delays and drops; world_linux.go draws it. It needs root, for namespaces of its own, and ip(8).
//
// It does not say how fast anything is without a long path, and nothing of other TCPs than the machine's own: goodput
// under loss is a matter of congestion control, here cubic, and of luck: look at the spread beside the medians.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

type cell struct {
	place string
	up    bool
	rtt   time.Duration
	loss  float64 // per cent
}

func (c cell) direction() string {
	if c.up {
		return "up"
	}
	return "down"
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "longpath:", err)
		os.Exit(1)
	}
}

func run() error {
	vmnetd := flag.String("vmnetd", "", "the vmnetd to measure (default: built from this tree)")
	places := flag.String("place", "host,guest", "where the path lies")
	directions := flag.String("dir", "down,up", "directions, as the guest sees them")
	rtts := flag.String("rtt", "20ms,100ms", "round trips")
	losses := flag.String("loss", "0,0.1,1", "frames lost, per cent, each way")
	kinds := flag.String("kinds", "native,vmnetd", "what to measure")
	rate := flag.Float64("rate", 300, "the path's rate, Mbit/s; one that the machine can carry in software")
	queue := flag.Int("queue", 16<<20, "bytes that wait for the rate before frames are dropped; more than a window, so that nothing but the loss that is drawn is lost")
	mtu := flag.Int("mtu", 1500, "MTU of the guest's wire")
	ipv6 := flag.Bool("6", false, "IPv6")
	rounds := flag.Int("rounds", 3, "measurements of each, of which the median counts")
	skip := flag.Duration("skip", 2*time.Second, "beginning that is not counted: slow start")
	count := flag.Duration("count", 10*time.Second, "time that is counted")
	streams := flag.Int("streams", 4, "conversations at once where frames are lost; one where none are. A window under loss is far below the path's, so they do not disturb one another, and their sum varies less")
	parallel := flag.Int("parallel", 4, "measurements at once where frames are lost")
	seed := flag.Uint64("seed", 1, "of the losses")
	log := flag.String("log", os.DevNull, "file for what vmnetd says")
	verbose := flag.Bool("v", false, "print each measurement")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("%q: no arguments are taken", flag.Args())
	}
	if *vmnetd == "" {
		dir, err := os.MkdirTemp("", "longpath-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		*vmnetd = filepath.Join(dir, "vmnetd")
		build := exec.Command("go", "build", "-trimpath", "-o", *vmnetd, "github.com/vmnetd/vmnetd/cmd/vmnetd")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("building vmnetd: %w", err)
		}
	}
	var cells []cell
	for _, place := range strings.Split(*places, ",") {
		if place != "host" && place != "guest" {
			return fmt.Errorf("place %q: host or guest", place)
		}
		for _, dir := range strings.Split(*directions, ",") {
			if dir != "up" && dir != "down" {
				return fmt.Errorf("direction %q: up or down", dir)
			}
			for _, r := range strings.Split(*rtts, ",") {
				rtt, err := time.ParseDuration(r)
				if err != nil {
					return fmt.Errorf("round trip: %w", err)
				}
				for _, l := range strings.Split(*losses, ",") {
					loss, err := strconv.ParseFloat(l, 64)
					if err != nil || loss < 0 || loss >= 100 {
						return fmt.Errorf("loss %q: a percentage", l)
					}
					cells = append(cells, cell{place, dir == "up", rtt, loss})
				}
			}
		}
	}
	kindList := strings.Split(*kinds, ",")
	for _, k := range kindList {
		if k != "native" && k != "vmnetd" {
			return fmt.Errorf("kind %q: native or vmnetd", k)
		}
	}

	type key struct {
		cell
		kind string
	}
	results := map[key][]float64{}
	var mu sync.Mutex
	var first error
	measure := func(k key, round int) {
		s := setup{place: k.place, mtu: *mtu, ipv6: *ipv6, log: *log}
		if k.kind == "vmnetd" {
			s.vmnetd = *vmnetd
		}
		s.up = impairment{delay: k.rtt / 2, rate: *rate * 1e6 / 8, loss: k.loss / 100, queue: *queue, seed: *seed + uint64(2*round)}
		s.down = s.up
		s.down.seed++
		n := *streams
		if k.loss == 0 {
			n = 1
		}
		o, err := one(s, k.up, n, *skip, *count)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			if first == nil {
				first = fmt.Errorf("%s, %s, %v, %v %%, %s: %w", k.place, k.direction(), k.rtt, k.loss, k.kind, err)
			}
			return
		}
		results[k] = append(results[k], o.goodput/1e6)
		if *verbose {
			fmt.Printf("%-5s %-4s %5v %4v%% %-6s %d: %7.2f Mbit/s, %d retransmitted, %d lost, %d over the queue\n",
				k.place, k.direction(), k.rtt, k.loss, k.kind, round, o.goodput/1e6, o.retransmits, o.lost, o.overflowed)
		}
	}
	// Rounds outside, so that whatever else the machine does hits all alike.
	for round := range *rounds {
		var wg sync.WaitGroup
		slots := make(chan struct{}, max(*parallel, 1))
		for _, c := range cells {
			for _, kind := range kindList {
				if c.loss == 0 {
					wg.Wait() // these want the machine for themselves
					measure(key{c, kind}, round)
					continue
				}
				slots <- struct{}{}
				wg.Add(1)
				go func() {
					defer wg.Done()
					measure(key{c, kind}, round)
					<-slots
				}()
			}
		}
		wg.Wait()
		if first != nil {
			return first
		}
	}

	family := "IPv4"
	if *ipv6 {
		family = "IPv6"
	}
	fmt.Printf("%s, MTU %d, path of %v Mbit/s; goodput in Mbit/s, median (least to most) of %d\n\n", family, *mtu, *rate, *rounds)
	fmt.Println("| path at | direction | round trip | loss | Linux | vmnetd | vmnetd / Linux |")
	fmt.Println("|---|---|---|---|---|---|---|")
	for _, c := range cells {
		fmt.Printf("| %s | %s | %v | %v %% |", c.place, c.direction(), c.rtt, c.loss)
		for _, kind := range []string{"native", "vmnetd"} {
			fmt.Printf(" %s |", spread(results[key{c, kind}]))
		}
		if n, v := results[key{c, "native"}], results[key{c, "vmnetd"}]; len(n) > 0 && len(v) > 0 {
			fmt.Printf(" %.2f", median(v)/median(n))
		}
		fmt.Println(" |")
	}
	return nil
}

// one makes a world, measures in it, and takes it down.
func one(s setup, up bool, streams int, skip, count time.Duration) (outcome, error) {
	w, err := newWorld(s)
	if err != nil {
		return outcome{}, err
	}
	o, err := transfer(w, up, streams, skip, count)
	if cerr := w.close(); err == nil {
		err = cerr
	}
	return o, err
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func spread(v []float64) string {
	if len(v) == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f (%.1f to %.1f)", median(v), slices.Min(v), slices.Max(v))
}
