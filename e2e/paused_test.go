//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/e2e/traffic"
	"github.com/vmnetd/vmnetd/e2e/vm"
)

// TestPausedVM: a VM that is stopped, as a suspended laptop's or one under a debugger, reads nothing for as long as that
// takes, and goes on where it was: its conversations both ways, its wire, its lease. Nobody else notices.
// VMNETD_E2E_PAUSE=3m makes it longer.
func TestPausedVM(t *testing.T) {
	t.Parallel()
	needQEMU(t)
	pause := 3 * time.Second
	if s := os.Getenv("VMNETD_E2E_PAUSE"); s != "" {
		var err error
		if pause, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	b := newBystander(t)
	g := qemuUnix.boot(t, b.daemon, attach{unix: b.unix}, "alpha")
	memory := b.memory(t)
	source := b.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.StreamTo(20<<20))
	sink := b.world.serve(t, "tcp", net.JoinHostPort(world6, "0"), traffic.CheckFrom(nil))
	down := g.begin(t, "guest stream -dir down %s", source.Addr())
	up := g.begin(t, "guest stream -dir up -rate 1000000 %s", sink.Addr())
	far := func(j *job) (line struct{ Bytes int64 }) {
		j.next(t, &line)
		return line
	}
	for _, j := range []*job{down, up} {
		wait(t, "bytes move", func() error {
			if l := far(j); l.Bytes == 0 {
				return fmt.Errorf("%+v", l)
			}
			return nil
		})
	}
	before, _ := g.info(t)

	q := g.Guest.(*vm.Guest)
	if err := q.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer q.Signal(syscall.SIGCONT)
	began := time.Now()
	f := b.forward(t, "0:alpha:9/udp")
	c, err := b.lab.host.dial("udp", at(f[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wait(t, "its queue is full", func() error {
		for range 1000 {
			c.Write(make([]byte, 1400)) // refused now and then; that is no matter
		}
		if info, _ := g.info(t); info.Dropped["queue-full"] == 0 {
			return fmt.Errorf("%d of %d bytes wait", info.Queued, info.QueueSize)
		}
		return nil
	})
	for b.unharmed(t); time.Since(began) < pause; {
		b.unharmed(t)
	}
	info, ok := g.info(t)
	if !ok || info.Queued > info.QueueSize {
		t.Errorf("after %v: %d of %d bytes wait, there: %v", pause, info.Queued, info.QueueSize, ok)
	}
	if more := b.memory(t) - memory; more > 128<<20 {
		t.Errorf("the daemon has grown by %d MB", more>>20)
	}

	if err := q.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for name, j := range map[string]*job{"down": down, "up": up} {
		l := far(j)
		wait(t, name+" goes on", func() error {
			if now := far(j); now.Bytes <= l.Bytes {
				return fmt.Errorf("%d bytes before, %d now", l.Bytes, now.Bytes)
			}
			return nil
		})
	}
	g.run(t, "ping -c 1 -W 10 %s", b.gw4)
	after, _ := g.info(t)
	if after.ID != before.ID {
		t.Errorf("it was guest %s and is %s: its wire has broken", before.ID, after.ID)
	}
}
