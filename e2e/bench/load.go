//go:build linux

package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"
)

// Ports of the servers.
const (
	iperfPort = 5201 // and those above it
	echoPort  = 7777
	floodPort = 7778
)

// maxBulk is how many guests have bulk traffic at once at most.
const maxBulk = 4

// batch is how many datagrams one system call sends or takes.
const batch = 32

// values is what a load or a test found out.
type values map[string]float64

// load KIND [flags] puts load on a path and prints values as JSON.
func load(args []string) error {
	fs := flag.NewFlagSet("load", flag.ContinueOnError)
	to := fs.String("to", "", "the server")
	d := fs.Duration("d", 3*time.Second, "how long")
	n := fs.Int("n", 1, "at once, or how many to hold")
	size := fs.Int("size", 1, "bytes of a datagram")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	var v values
	var err error
	switch args[0] {
	case "rr", "udprr":
		network := map[string]string{"rr": "tcp", "udprr": "udp"}[args[0]]
		v, err = exchanges(*n, *d, func(int) (func() error, error) {
			c, err := net.DialTimeout(network, *to, patience)
			return func() error { return echo(c, time.Second) }, err
		})
	case "crr":
		v, err = exchanges(*n, *d, func(int) (func() error, error) {
			return func() error {
				c, err := net.DialTimeout("tcp", *to, 3*time.Second) // the second SYN goes out after one
				if err != nil {
					return err
				}
				defer c.Close()
				return echo(c, 3*time.Second)
			}, nil
		})
	case "dns":
		v, err = exchanges(*n, *d, func(worker int) (func() error, error) { return asker(*to, worker) })
	case "hold":
		return hold(*to, *n)
	case "flood-up":
		v, err = floodUp(*to, *d, *size)
	case "flood-down":
		v, err = floodDown(*to, *d, *size)
	default:
		err = errors.New("no such load")
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(v)
}

// exchanges runs n workers for d, each doing one thing after another, and times each.
func exchanges(n int, d time.Duration, worker func(int) (func() error, error)) (values, error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var took []time.Duration
	var failed float64
	var inTime int
	var last error
	jobs := make([]func() error, n)
	for i := range jobs {
		var err error
		if jobs[i], err = worker(i); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	for _, job := range jobs {
		wg.Go(func() {
			var mine []time.Duration
			var bad float64
			var late int // done after the end: the slow one of a few must not stretch the time of all
			var err error
			for at := began; at.Sub(began) < d; {
				e := job()
				now := time.Now()
				if e != nil {
					bad, err = bad+1, e
				} else {
					mine = append(mine, now.Sub(at))
					late = b2i(now.Sub(began) > d)
				}
				at = now
			}
			mu.Lock()
			defer mu.Unlock()
			took, failed, inTime = append(took, mine...), failed+bad, inTime+len(mine)-late
			if err != nil {
				last = err
			}
		})
	}
	wg.Wait()
	if len(took) == 0 {
		return nil, fmt.Errorf("none of %.0f succeeded: %w", failed, last)
	}
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Nanoseconds()) / 1e3 }
	return values{"per_s": float64(inTime) / d.Seconds(), "p50_us": at(.5), "p99_us": at(.99), "errors": failed}, nil
}

func echo(c net.Conn, most time.Duration) error {
	var b [1]byte
	c.SetDeadline(time.Now().Add(most))
	if _, err := c.Write(b[:]); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b[:])
	return err
}

// asker asks a DNS server for one new name after another, so that no cache answers.
func asker(to string, worker int) (func() error, error) {
	c, err := net.Dial("udp", to)
	n := 0
	buf := make([]byte, 1500)
	return func() error {
		n++
		name, err := dnsmessage.NewName(fmt.Sprintf("h%d-%d.example.", worker, n))
		if err != nil {
			return err
		}
		m := dnsmessage.Message{
			Header:    dnsmessage.Header{ID: uint16(n), RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		}
		q, err := m.Pack()
		if err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(time.Second))
		if _, err := c.Write(q); err != nil {
			return err
		}
		for {
			got, err := c.Read(buf)
			if err != nil {
				return err
			}
			if err := m.Unpack(buf[:got]); err != nil {
				return err
			}
			if m.ID != uint16(n) {
				continue // the late answer to one that was given up
			}
			if m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 1 {
				return fmt.Errorf("%s: %v with %d answers", name, m.RCode, len(m.Answers))
			}
			return nil
		}
	}, err
}

// hold opens n connections, 64 at once, tells of it, keeps them until a line comes in, and tells how many still live.
func hold(to string, n int) error {
	conns := make([]net.Conn, n)
	var wg sync.WaitGroup
	next := make(chan int)
	var mu sync.Mutex
	var last error
	began := time.Now()
	for range 64 {
		wg.Go(func() {
			for i := range next {
				c, err := net.DialTimeout("tcp", to, patience)
				if err == nil {
					err = echo(c, patience)
				}
				if err == nil {
					conns[i] = c
					continue
				}
				mu.Lock()
				last = err
				mu.Unlock()
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	took := time.Since(began)
	alive := func() (count float64) {
		for _, c := range conns {
			if c != nil && echo(c, time.Second) == nil {
				count++
			}
		}
		return count
	}
	opened := 0
	for _, c := range conns {
		opened += b2i(c != nil)
	}
	if opened == 0 {
		return fmt.Errorf("none of %d opened: %w", n, last)
	}
	enc := json.NewEncoder(os.Stdout)
	if err := enc.Encode(values{"opened": float64(opened), "open_s": took.Seconds()}); err != nil {
		return err
	}
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	return enc.Encode(values{"alive": alive()})
}

// token marks one flood's datagrams.
func token() uint64 { return uint64(time.Now().UnixNano()) }

// floodUp sends as fast as the wire takes it and asks the server what came.
func floodUp(to string, d time.Duration, size int) (values, error) {
	c, err := net.Dial("udp", to)
	if err != nil {
		return nil, err
	}
	mark := token()
	b := make([]byte, max(size, 8))
	binary.BigEndian.PutUint64(b, mark)
	msgs := make([]ipv4.Message, batch)
	for i := range msgs {
		msgs[i].Buffers = [][]byte{b}
	}
	pc := ipv4.NewPacketConn(c.(*net.UDPConn))
	taken, err := transmitted()
	if err != nil {
		return nil, err
	}
	// A virtio ring, of 256 frames by default in QEMU, holds its guest back; a TAP drops. So no more than that is sent
	// ahead of what the backend, or join, has taken from the TAP.
	const ring = 256
	sent := 0
	began := time.Now()
	for time.Since(began) < d {
		now, err := transmitted()
		if err != nil {
			return nil, err
		}
		if sent-int(now-taken) > ring-batch {
			time.Sleep(20 * time.Microsecond)
			continue
		}
		n, err := pc.WriteBatch(msgs, 0)
		if err != nil {
			return nil, err
		}
		sent += n
	}
	took := time.Since(began).Seconds()
	got, err := askFlood(to, fmt.Sprintf("count %d", mark))
	if err != nil {
		return nil, err
	}
	return values{"per_s": got / took, "loss": 100 * (1 - got/float64(sent))}, nil
}

// transmitted is how many frames have been read from the TAP.
func transmitted() (uint64, error) {
	b, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		return 0, err
	}
	_, line, ok := strings.Cut(string(b), "tap0:")
	f := strings.Fields(line)
	if !ok || len(f) < 10 {
		return 0, errors.New("/proc/self/net/dev has no tap0")
	}
	return strconv.ParseUint(f[9], 10, 64)
}

// floodDown asks the server to send as fast as it can, and counts what comes.
func floodDown(to string, d time.Duration, size int) (values, error) {
	c, err := net.Dial("udp", to)
	if err != nil {
		return nil, err
	}
	mark := token()
	hello := binary.BigEndian.AppendUint64(nil, mark)
	if _, err := c.Write(hello); err != nil { // so that the server knows where to
		return nil, err
	}
	got := make(chan float64)
	go func() {
		n := 0
		in := newInbox(c.(*net.UDPConn))
		for {
			if err := in.each(func([]byte, net.Addr) { n++ }); err != nil {
				got <- float64(n)
				return
			}
		}
	}()
	began := time.Now()
	sent, err := askFlood(to, fmt.Sprintf("flood %d %d %d", mark, d.Milliseconds(), size))
	if err != nil {
		return nil, err
	}
	took := time.Since(began).Seconds()
	c.SetReadDeadline(time.Now().Add(settle))
	n := <-got
	return values{"per_s": n / took, "loss": 100 * (1 - n/sent)}, nil
}

// settle is how long what is under way may take to arrive: queues hold a few milliseconds at these rates.
const settle = 300 * time.Millisecond

func askFlood(to, question string) (float64, error) {
	c, err := net.DialTimeout("tcp", to, patience)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	fmt.Fprintln(c, question)
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("%s: %w", question, err)
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(line), 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%s: the server says %q", question, line)
	}
	return n, nil
}

// inbox reads datagrams, many with a call.
type inbox struct {
	pc   *ipv4.PacketConn
	msgs []ipv4.Message
}

func newInbox(c *net.UDPConn) *inbox {
	// 16 MiB: a receiver that waits for its processor for some milliseconds is not the backend's loss. More than the
	// system's bound is cut off quietly, as it may.
	_ = c.SetReadBuffer(16 << 20)
	in := &inbox{ipv4.NewPacketConn(c), make([]ipv4.Message, batch)}
	for i := range in.msgs {
		in.msgs[i].Buffers = [][]byte{make([]byte, 2048)}
	}
	return in
}

func (in *inbox) each(f func([]byte, net.Addr)) error {
	n, err := in.pc.ReadBatch(in.msgs, 0)
	for _, m := range in.msgs[:max(n, 0)] {
		f(m.Buffers[0][:m.N], m.Addr)
	}
	return err
}
