package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend"
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

// space is a namespace on the daemon's network.
type space struct {
	held *netns.Held
	tap  *netns.TAP
	end  context.CancelFunc
	over chan error // when the wire has ended, and the lease is kept no more
}

// prepare has a command wait in namespaces of its own.
func (s *space) prepare(cmd *exec.Cmd, f spaceFlags) (err error) {
	s.held, err = netns.Hold(cmd, netns.Options{MapRoot: f.mapRoot})
	return err
}

// attach plugs a namespace in and returns once it has its addresses.
func (s *space) attach(d *daemon, cfg netns.Config, wire, host string, configure bool) (l netns.Lease, err error) {
	if s.tap, err = netns.Attach(context.Background(), cfg); err != nil {
		return l, hinted(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.end, s.over = cancel, make(chan error, 1)
	leased, lost := make(chan netns.Lease, 1), make(chan error, 1)
	go func() {
		procs.add(1)
		defer procs.add(-1)
		err := d.net.Serve(ctx, s.tap, wire)
		cancel()
		if configure {
			<-lost
		}
		s.over <- err
	}()
	if !configure {
		return l, nil
	}
	go func() {
		err := s.tap.Keep(ctx, host, func(l netns.Lease) {
			select {
			case leased <- l:
			default: // renewed
			}
		})
		lost <- err
		if ctx.Err() == nil {
			d.log.Warn("lease lost", "interface", s.tap.Name, "error", err)
		}
	}()
	select {
	case l = <-leased:
		s.tap.Await6(ctx)
		return l, nil
	case <-time.After(leaseTime):
		return l, fmt.Errorf("%s got no lease of our own network within %v", s.tap.Name, leaseTime)
	case err := <-lost:
		lost <- err
		return l, hinted(fmt.Errorf("%s got no lease: %w", s.tap.Name, err))
	}
}

// close unplugs it, and ends a command that was never let go.
func (s *space) close() {
	if s.held != nil {
		s.held.Close()
	}
	if s.end != nil {
		s.end()
		<-s.over
	}
	if s.tap != nil {
		s.tap.Close()
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

// wireSpace makes run's way for a namespace.
func wireSpace(f spaceFlags, mac, program string, resolvDir func() string) *way {
	s := &space{}
	return &way{
		prepare: func(cmd *exec.Cmd) error { return s.prepare(cmd, f) },
		failed:  startFailed,
		started: func(d *daemon, pid int) error {
			hw, err := net.ParseMAC(mac)
			if err != nil {
				return err
			}
			resolv := filepath.Join(resolvDir(), "resolv.conf")
			if err := os.WriteFile(resolv, resolvConf(d.net.Config()), 0o644); err != nil {
				return err
			}
			defer os.Remove(resolv) // what is mounted stays
			base := filepath.Base(program)
			cfg := netns.Config{PID: pid, Name: f.ifname, MAC: hw, Ping: true, Resolv: resolv}
			if _, err := s.attach(d, cfg, fmt.Sprintf("netns %s pid %d", base, pid), hostName(base), true); err != nil {
				return err
			}
			err = s.held.Go()
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return fmt.Errorf("%w: %w", err, exec.ErrNotFound) // an interpreter that is not there
			case err != nil:
				return cannotExec{err}
			}
			return nil
		},
		close: s.close,
	}
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
