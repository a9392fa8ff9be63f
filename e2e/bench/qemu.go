//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"github.com/vmnetd/vmnetd/e2e/traffic"
	"github.com/vmnetd/vmnetd/e2e/vm"
)

// inQEMU are the backends that a QEMU guest has a netdev for, the last its own.
var inQEMU = []string{"vmnetd", "passt", "libslirp"}

// bootTime bounds the guest's boot and lease: five seconds when emulated, on a machine that does nothing else.
const bootTime = time.Minute

// measureQEMU measures transfers of a real guest.
func measureQEMU(ctx context.Context, o *options, dir string, r *report, out io.Writer) error {
	logf := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	if _, _, err := vm.Image(ctx, logf); err != nil { // not in a namespace without the mirror
		return err
	}
	_, version, err := vm.QEMU(ctx)
	if err != nil {
		return err
	}
	if !version.CanStream() {
		return fmt.Errorf("QEMU %s has no -netdev stream, 7.2 is the first", version)
	}
	accel, why, err := vm.Accel(ctx, logf)
	if err != nil {
		return err
	}
	logf("the guest runs in QEMU %s by %s: %s", version, accel, why)
	o.backends = slices.DeleteFunc(o.backends, func(b backend) bool { return !slices.Contains(inQEMU, b.name) })
	what := fmt.Sprintf("QEMU guest (%s), %s checked, ", accel, o.sizeText)
	o.tests = []test{
		{name: "qemu-up", what: what + "up", metrics: transferMetrics},
		{name: "qemu-down", what: what + "down", metrics: transferMetrics},
	}
	for round := range o.rounds {
		for _, cores := range o.cores {
			for _, mtu := range o.mtus {
				for _, be := range o.backends {
					k := key{cores, mtu, "qemu", be.name}
					got := make([]values, 2)
					err := errors.New(be.cannot(test{}, mtu))
					if err.Error() == "" {
						got, err = transfer(ctx, o, dir, k, be)
					}
					if ctx.Err() != nil {
						return errors.New("interrupted")
					}
					if err != nil {
						r.fail(out, be.name, k.String(), err)
						continue
					}
					for i, t := range o.tests {
						k.Test = t.name
						r.add(k, got[i])
						logf("round %d %s %s: %s", round+1, k, be.name, t.tell(got[i]))
					}
				}
			}
		}
	}
	return nil
}

var transferMetrics = []metric{{"s", "", "s", 1}, gbps, perGB}

// transfer boots a guest and moves the bytes up, then down.
func transfer(ctx context.Context, o *options, dir string, k key, be backend) (got []values, err error) {
	b, err := newBed(ctx, dir, k.Cores, k.MTU)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	b.be = be
	nic := vm.User("")
	if be.socket {
		sock := b.path("0.sock")
		p, err := be.start(b, &guest{addr4: be.guest4}, plan{sock: sock})
		if err != nil {
			return nil, err
		}
		b.backends = append(b.backends, p)
		// Only looked at: a connection would be the one guest of passt.
		if err := b.until("its socket", func() error { _, err := os.Stat(sock); return err }); err != nil {
			return nil, err
		}
		nic = vm.StreamUnix(sock)
	}
	var g *vm.Guest
	if err := b.host.Do(func() (err error) {
		g, err = vm.Start(ctx, vm.Config{NICs: []vm.NIC{{Netdev: nic}}})
		return err
	}); err != nil {
		return nil, err
	}
	defer g.Close()
	boot, cancel := context.WithTimeoutCause(ctx, bootTime, fmt.Errorf("not within %v", bootTime))
	defer cancel()
	lease, err := g.Lease(boot)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, g.Console())
	}
	if _, err := g.Output(boot, fmt.Sprintf("ip link set eth0 mtu %d", b.mtu)); err != nil {
		return nil, err
	}
	if lease.MTU != 0 && lease.MTU != b.mtu {
		return nil, fmt.Errorf("DHCP told the guest an MTU of %d", lease.MTU)
	}
	const seed = 3
	for _, d := range []struct {
		send int64
		h    traffic.Handler
	}{{o.size, traffic.QuickSink}, {0, traffic.QuickSource(seed, o.size)}} {
		v, err := b.move(g, d.send, o.size, d.h)
		if err != nil {
			return nil, err
		}
		if !be.socket { // its share of QEMU's processor time cannot be told
			delete(v, "cpu_s_per_gb")
		}
		got = append(got, v)
	}
	return got, nil
}

// move is one transfer between a guest and a server that handles it, and what both saw compared.
func (b *bed) move(g *vm.Guest, send, size int64, h traffic.Handler) (values, error) {
	var s *traffic.Server
	if err := b.server.Do(func() (err error) {
		s, err = traffic.Serve("tcp", net.JoinHostPort(server4, "0"), h)
		return err
	}); err != nil {
		return nil, err
	}
	defer s.Close()
	// A megabyte a second is a tenth of what the slowest emulated guest does.
	most := patience + time.Duration(size/1e6)*time.Second
	ctx, cancel := context.WithTimeout(b.ctx, most+patience)
	defer cancel()
	return b.costing(func() (values, float64, error) {
		var there traffic.Report
		if err := g.Decode(ctx, &there, fmt.Sprintf("guest tcp -quick -seed 3 -send %d -timeout %s %s", send, most, s.Addr())); err != nil {
			return nil, 0, err
		}
		if there.End != "eof" {
			return nil, 0, fmt.Errorf("the guest's end: %s: %s", there.End, there.Error)
		}
		var here traffic.Report
		select {
		case here = <-s.Done:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
		sum, want, n := here.ReceivedHash, there.SentHash, here.Received
		if send == 0 {
			sum, want, n = there.ReceivedHash, here.SentHash, there.Received
		}
		if n != size || sum != want {
			return nil, 0, fmt.Errorf("not what was sent: %d bytes of %d, sum %s, want %s", n, size, sum, want)
		}
		return values{"s": there.Seconds, "gbps": float64(size) * 8 / there.Seconds / 1e9}, float64(size), nil
	})
}
