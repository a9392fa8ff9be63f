package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/netns"
)

// leaseTime is how long the first lease is waited for: the network is our own and answers within milliseconds, but a
// machine that is busy may take a while.
const leaseTime = 10 * time.Second

// spaceFlags are the flags of run that give a command a network namespace.
type spaceFlags struct {
	on      bool
	mapRoot bool
	ifname  string
}

func (f *spaceFlags) add(fs *pflag.FlagSet) {
	fs.BoolVar(&f.on, "netns", false, "give the command a network namespace of its own, whose only way out is this network (Linux)")
	fs.BoolVar(&f.mapRoot, "map-root", false, "with --netns: let the command be root there")
	fs.StringVar(&f.ifname, "ifname", "eth0", "with --netns: `NAME` of the interface there")
}

// space is a namespace that is plugged in.
type space struct {
	tap    *netns.TAP
	end    context.CancelFunc
	leased chan netns.Lease // the first one
	kept   chan error       // why the lease is not kept any more; nil: it never was
}

// attachSpace makes the interface and, with configure, has it ask for a lease as host: from now on, since what it sends
// waits in the TAP until the wire is served.
func attachSpace(cfg netns.Config, host string, configure bool, log *slog.Logger) (*space, error) {
	tap, err := netns.Attach(context.Background(), cfg)
	if err != nil {
		return nil, hinted(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &space{tap: tap, end: cancel}
	if !configure {
		return s, nil
	}
	s.leased, s.kept = make(chan netns.Lease, 1), make(chan error, 1)
	go func() {
		err := tap.Keep(ctx, host, func(l netns.Lease) {
			select {
			case s.leased <- l:
			default: // renewed
			}
		})
		if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) { // or the wire has ended first
			log.Warn("lease lost", "interface", tap.Name, "error", err)
		}
		s.kept <- err
	}()
	return s, nil
}

// caller is its guest, at a door.
func (s *space) caller(peer string) *caller {
	return &caller{peer, func() (link.Link, error) { return s.tap, nil }, s.close}
}

// close takes the interface away. It may be called again.
func (s *space) close() {
	s.end()
	s.tap.Close()
}

// configured waits for the first lease and, if the network has it, for IPv6. end closes if the network ends before.
func (s *space) configured(end <-chan struct{}) (l netns.Lease, err error) {
	if s.kept == nil {
		return l, nil
	}
	select {
	case l = <-s.leased:
		s.tap.Await6(context.Background())
		return l, nil
	case <-time.After(leaseTime):
		return l, fmt.Errorf("%s got no lease of our own network within %v", s.tap.Name, leaseTime)
	case err := <-s.kept:
		return l, hinted(fmt.Errorf("%s got no lease: %w", s.tap.Name, err))
	case <-end:
		return l, fmt.Errorf("%s is gone", s.tap.Name)
	}
}

// hinted adds what would be right.
func hinted(err error) error {
	var e *netns.Error
	if errors.As(err, &e) && e.Hint != "" {
		return hintError{err, e.Hint}
	}
	return err
}

// startFailed says why a command could not be started in its namespaces.
func startFailed(err error) error {
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EACCES) {
		return hintError{fmt.Errorf("no namespaces for the command: %w", err), netns.WhyNoNamespaces()}
	}
	return cannotExec{err}
}

// wireSpace makes run's way for a namespace. dir is a private folder, once there is one.
func wireSpace(f spaceFlags, mac, program string, dir func() string) *way {
	var held *netns.Held
	var s *space
	over := make(chan struct{})
	wires, end := context.WithCancel(context.Background())
	return &way{
		prepare: func(cmd *exec.Cmd) (err error) {
			held, err = netns.Hold(cmd, netns.Options{MapRoot: f.mapRoot})
			return err
		},
		failed: startFailed,
		started: func(d *daemon, pid int) error {
			hw, err := net.ParseMAC(mac)
			if err != nil {
				return err
			}
			resolv := filepath.Join(dir(), "resolv.conf")
			if err := errors.Join(os.WriteFile(resolv, resolvConf(d.net.Config()), 0o644), os.Chmod(resolv, 0o644)); err != nil { // whatever our umask
				return err
			}
			base := filepath.Base(program)
			s, err = attachSpace(netns.Config{PID: pid, Name: f.ifname, MAC: hw, Ping: true, Resolv: resolv}, hostName(base), true, d.log)
			os.Remove(resolv) // what is mounted stays
			if err != nil {
				return err
			}
			door := &door{framing: &netnsFraming, addr: "pid:" + strconv.Itoa(pid), log: d.log}
			go func() {
				defer close(over)
				door.plug(wires, d.net, s.caller(" "+base))
			}()
			if _, err := s.configured(over); err != nil {
				return err
			}
			if err := d.shutIn(pid); err != nil { // before the command can do anything
				return err
			}
			err = held.Go()
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return fmt.Errorf("%w: %w", err, exec.ErrNotFound) // an interpreter that is not there
			case err != nil:
				return cannotExec{err}
			}
			return nil
		},
		close: func() {
			end()
			if held != nil {
				held.Close()
			}
			if s != nil {
				<-over
			}
		},
	}
}

// netnsFraming is that of a TAP, which has none: frames come one a read.
var netnsFraming = framing{
	name:  "netns",
	usage: "attach a network namespace, by an interface made there, at `ADDRESS`",
	forms: []form{
		{"pid", "pid:PID", func(d *door, a address) error {
			n, err := strconv.ParseInt(a.rest, 10, 32)
			if err != nil || n <= 0 {
				return usagef("%q is no process: want pid:1234", a.rest)
			}
			return openSpace(d, a, netns.Config{PID: int(n)})
		}},
		{"path", "path:PATH", func(d *door, a address) error {
			return openSpace(d, a, netns.Config{Path: a.rest, UserPath: a.options["userns"]})
		}},
	},
	options: []string{"ifname", "mac", "host", "userns", "configure"},
}

// open opens a door by itself, as the flag does.
func (f *framing) open(d *door, a address) error {
	o, _ := f.form(a.kind)
	return o.open(d, a)
}

// openSpace attaches a namespace as a door's only guest.
func openSpace(d *door, a address, cfg netns.Config) error {
	cfg.Name = a.options["ifname"]
	if m := a.options["mac"]; m != "" {
		hw, err := net.ParseMAC(m)
		if err != nil || len(hw) != 6 || hw[0]&1 != 0 {
			return usagef("mac=%s: want six bytes of a single station, as 52:54:00:12:34:56", m)
		}
		cfg.MAC = hw
	}
	configure := true
	switch v := a.options["configure"]; v {
	case "", "yes":
	case "no":
		configure = false
	default:
		return usagef("configure=%s: want yes or no", v)
	}
	s, err := attachSpace(cfg, a.options["host"], configure, d.log)
	if err != nil {
		return err
	}
	d.addr = a.kind + ":" + a.rest
	g := s.caller(" " + s.tap.Name)
	if cfg.PID != 0 { // the TAP would keep the namespace alive
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			if netns.Wait(ctx, cfg.PID) == nil {
				s.tap.Remove()
			}
		}()
		g.close = func() { cancel(); s.close() }
	}
	d.only, d.space = g, s
	return nil
}

// resolvConf is /etc/resolv.conf for a network's guest.
func resolvConf(c backend.Config) []byte {
	var b strings.Builder
	fmt.Fprintln(&b, "search", strings.Join(append([]string{c.Domain}, c.Search...), " "))
	for _, a := range []netip.Addr{c.DNS4, c.DNS6} {
		fmt.Fprintln(&b, "nameserver", a)
	}
	return []byte(b.String())
}

// hostName makes a host's name (RFC 952) of a program's.
func hostName(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, s)
	return strings.Trim(s[:min(len(s), 63)], "-")
}

// large makes --mtu auto the largest: a TAP carries it.
func large(cfg *backend.Config) { cfg.LargeMTU, cfg.LargeNICs = backend.MaxMTU, true }
