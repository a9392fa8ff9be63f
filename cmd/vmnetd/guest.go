package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/netns"
	"github.com/vmnetd/vmnetd/qemu"
)

func guestCommand() *cobra.Command {
	var to, ifname, mac, host, resolv string
	level := slog.LevelInfo
	c := &cobra.Command{
		Use:   "guest --to ADDRESS",
		Short: "Inside a guest: be its network card",
		Long: `Inside a Linux guest: be its network card, for a VMM that has none, or to reach a second network.

  vmnetd guest --to vsock:2:1024          in the guest, as root
  vmnetd serve --qemu vsock:1024          on the host; of Firecracker and others: --qemu unix:PATH_OF_THE_VSOCK_1024

It makes a TAP, asks the network for addresses by DHCP and renews them, has the kernel take IPv6 from the router's
advertisements, and carries frames to a 'vmnetd serve' at ADDRESS: unix:PATH, tcp:HOST:PORT or vsock:CID:PORT, where 2 is
the host. When that goes away it tries again, for ever; the interface and its addresses stay meanwhile.

At SIGINT or SIGTERM the interface goes, and /etc/resolv.conf is what it was. Exit status: 0 after a signal; 1 if it
failed, with the reason on stderr; 2 if the command line was wrong.`,
		Args: args(cobra.NoArgs),
	}
	f := c.Flags()
	f.StringVar(&to, "to", "", "`ADDRESS` of the network: unix:PATH, tcp:HOST:PORT or vsock:CID:PORT")
	f.StringVar(&ifname, "ifname", netns.DefaultName, "`NAME` of the interface")
	f.StringVar(&mac, "mac", "", "`MAC` of the interface (default one of this machine's own, always the same)")
	f.StringVar(&host, "hostname", "", "`NAME` to lease under (default this machine's)")
	f.StringVar(&resolv, "resolv-conf", "", "`FILE` to write the network's DNS server to, as /etc/resolv.conf")
	f.TextVar(&level, "log-level", level, "`LEVEL` of the log: debug, info, warn, error")
	c.RunE = func(c *cobra.Command, _ []string) error {
		a, err := parseAddress(to)
		if err != nil || to == "" {
			return usagef("--to %s: want unix:PATH, tcp:HOST:PORT or vsock:CID:PORT, as vsock:2:1024", to)
		}
		dial, err := dialTo(a.kind, a.rest)
		if err != nil {
			return fmt.Errorf("--to %s: %w", to, err)
		}
		if host == "" {
			host, _ = os.Hostname()
		}
		if mac == "" {
			mac = machineMAC(ifname)
		}
		hw, err := net.ParseMAC(mac)
		if err != nil || len(hw) != 6 || hw[0]&1 != 0 {
			return usagef("--mac %s: want six bytes of a single station, as 52:54:00:12:34:56", mac)
		}
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
		signals := make(chan os.Signal, 1)
		notify(signals, endSignals)
		ctx, cancel := context.WithCancel(c.Context())
		defer cancel()
		tap, err := netns.Attach(ctx, netns.Config{Name: ifname, MAC: hw, NoOffloads: true})
		if err != nil {
			return hinted(err)
		}
		defer tap.Close()
		names := &resolvFile{path: resolv}
		defer names.restore()
		ended := make(chan error, 2)
		var running sync.WaitGroup
		agent := &agent{tap: tap, log: log, to: to, dial: dial, renew: tap.Renew}
		running.Go(func() { ended <- agent.run(ctx) })
		running.Go(func() {
			err := tap.Keep(ctx, host, func(l netns.Lease) {
				log.Info("leased", "interface", ifname, "address", l.Addr, "routers", l.Routers, "dns", l.DNS)
				if err := names.write(l); err != nil {
					log.Warn("DNS server not noted", "error", err)
				}
			})
			if ctx.Err() == nil {
				ended <- err
			}
		})
		select {
		case s := <-signals:
			log.Info("ending", "signal", s)
		case err = <-ended:
		}
		cancel()
		tap.Close()
		running.Wait()
		return err
	}
	c.AddCommand(guestAgentCommand())
	return c
}

// machineMAC is this machine's own MAC for an interface of this name: its ID is the same after each boot.
func machineMAC(ifname string) string {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		host, _ := os.Hostname()
		id = []byte(host)
	}
	return vmMAC(nil, "machine "+string(bytes.TrimSpace(id))+" "+ifname)
}

// agent carries frames between a TAP and whoever answers.
type agent struct {
	tap   link.Link
	log   *slog.Logger
	to    string
	dial  func(context.Context) (net.Conn, error)
	renew func() // the network may be another one

	wire atomic.Pointer[link.Link] // nil while there is none
}

// run goes on until ctx ends or the TAP is gone.
func (a *agent) run(ctx context.Context) error {
	gone := make(chan error, 1)
	go func() { gone <- a.up() }()
	defer func() {
		a.tap.Close()
		<-gone
	}()
	wait, down := redialLeast, false
	for {
		try, cancel := context.WithTimeout(ctx, dialMost)
		c, err := a.dial(try)
		cancel()
		if err == nil {
			a.log.Info("connected", "to", a.to)
			began := time.Now()
			down = false
			err = a.carry(ctx, c)
			a.log.Warn("disconnected", "to", a.to, "error", err)
			if time.Since(began) > redialMost { // it was a network, and not somebody who hangs up
				wait = redialLeast
			}
		} else if !down && ctx.Err() == nil { // once, until it answers
			down = true
			a.log.Warn("nobody answers; trying again and again", "at", a.to, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-gone:
			gone <- err
			return fmt.Errorf("the interface is gone: %w", err)
		case <-time.After(wait):
		}
		wait = min(2*wait, redialMost)
	}
}

// carry takes a connection's frames to the TAP until it ends.
func (a *agent) carry(ctx context.Context, c net.Conn) error {
	l := qemu.NewLink(c)
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	a.wire.Store(&l)
	defer a.wire.Store(nil)
	a.renew()
	var b link.Batch
	defer b.Release()
	var p pack
	for {
		b.Next()
		if err := l.ReadFrames(&b); err != nil {
			return err
		}
		if _, err := a.tap.WriteFrames(p.frames(&b)); err != nil {
			return err
		}
	}
}

// up takes the TAP's frames to the connection of the moment, if there is one.
func (a *agent) up() error {
	var b link.Batch
	defer b.Release()
	var p pack
	for {
		b.Next()
		if err := a.tap.ReadFrames(&b); err != nil {
			return err
		}
		if w := a.wire.Load(); w != nil {
			if _, err := (*w).WriteFrames(p.frames(&b)); err != nil {
				(*w).Close() // its reader finds that out, and dials again
			}
		}
	}
}

// pack makes frames to write of those that were read, where they lie.
type pack struct {
	arena  []byte
	list   []link.Frame
	pieces [][]byte
}

func (p *pack) frames(b *link.Batch) []link.Frame {
	const head = 14 // Ethernet
	clear(p.list)
	clear(p.pieces)
	p.arena, p.list, p.pieces = p.arena[:0], p.list[:0], p.pieces[:0]
	if need := len(b.Frames) * (link.Headroom + head); cap(p.arena) < need {
		p.arena = make([]byte, 0, need)
	}
	for _, s := range b.Frames {
		at, first, n := len(p.arena), len(p.pieces), min(head, s.Len())
		p.arena = p.arena[:at+link.Headroom]
		clear(p.arena[at:]) // whole (link.OffloadLen)
		p.arena = b.AppendTo(p.arena, s.Upto(n))
		b.Pieces(s.From(n), func(_ *link.Chunk, _ int, part []byte) { p.pieces = append(p.pieces, part) })
		p.list = append(p.list, link.Frame{Head: p.arena[at:len(p.arena):len(p.arena)], Body: p.pieces[first:len(p.pieces):len(p.pieces)]})
	}
	return p.list
}

// resolvFile is a resolv.conf that is ours for a time.
type resolvFile struct {
	path   string
	mu     sync.Mutex
	before []byte // nil if there was none
	ours   []byte
}

// write notes a lease's DNS servers. The file is written where it is, whatever links or mounts lead there.
func (r *resolvFile) write(l netns.Lease) error {
	if r.path == "" || len(l.DNS) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var b bytes.Buffer
	if search := strings.Join(l.Search, " "); search != "" {
		fmt.Fprintln(&b, "search", search)
	} else if l.Domain != "" {
		fmt.Fprintln(&b, "search", l.Domain)
	}
	for _, a := range l.DNS {
		fmt.Fprintln(&b, "nameserver", a)
	}
	if bytes.Equal(b.Bytes(), r.ours) {
		return nil
	}
	if r.ours == nil {
		before, err := os.ReadFile(r.path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		r.before = before
	}
	r.ours = b.Bytes()
	return os.WriteFile(r.path, r.ours, 0o644)
}

// restore puts back what was there, unless somebody else has changed it since.
func (r *resolvFile) restore() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ours == nil {
		return
	}
	if now, err := os.ReadFile(r.path); err != nil || !bytes.Equal(now, r.ours) {
		return
	}
	if r.before == nil {
		os.Remove(r.path)
	} else {
		os.WriteFile(r.path, r.before, 0o644)
	}
}
