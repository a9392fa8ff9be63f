//go:build linux

package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/e2e/traffic"
)

// bystander is a guest that wants nothing but its stream, and a daemon that must answer.
type bystander struct {
	*bench
	stream *job
}

func newBystander(t *testing.T, args ...string) *bystander {
	t.Helper()
	need(t)
	l := newLab(t)
	d := l.serve(t, args...)
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "bystander")
	source := l.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.StreamTo(2_000_000))
	b := &bystander{bench: &bench{lab: l, daemon: d, gateway: d.gateway(t), g: g}}
	b.stream = g.begin(t, "guest stream -dir down -every 20ms %s", source.Addr())
	b.stream.moves(t, 100_000)
	return b
}

// unharmed: the stream moves, the control socket answers, and what others opened is closed again.
func (b *bystander) unharmed(t *testing.T) {
	t.Helper()
	began := time.Now()
	b.status(t)
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("the control socket answers after %v", d)
	}
	b.stream.moves(t, 200_000)
	var r traffic.Report
	b.g.json(t, &r, "guest tcp -timeout 5s %s", net.JoinHostPort(world4, "9"))
	if r.End != "refused" || r.Seconds > 2 {
		t.Errorf("the bystander's next conversation: %+v", r)
	}
}

// TestDeafGuest: a guest that does not read fills its own queue. What does not fit is dropped and counted.
func TestDeafGuest(t *testing.T) {
	t.Parallel()
	b := newBystander(t)
	deaf := kernelUnix.boot(t, b.daemon, attach{unix: b.unix}, "deaf")
	memory := b.memory(t)
	f := b.forward(t, "0:deaf:9999/udp")
	c, err := b.lab.host.dial("udp", at(f[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// And conversations of its own that send to it.
	source := b.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.StreamTo(0))
	deaf.begin(t, "for i in 1 2 3 4; do guest stream -dir down %s & done; wait", source.Addr())
	wait(t, "its streams run", func() error {
		if n := len(b.flows(t, "--guest", deaf.mac.String(), "--proto", "tcp", "--state", "open")); n < 4 {
			return fmt.Errorf("%d do", n)
		}
		return nil
	})
	br := deaf.Guest.(*kernelGuest).br
	br.listen(false)
	defer br.listen(true)
	stop := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() {
		datagram := make([]byte, 1400)
		for {
			select {
			case <-stop:
				return
			default:
				c.Write(datagram) // refused now and then; that is no matter
			}
		}
	})
	wait(t, "its queue is full", func() error {
		info, _ := deaf.info(t)
		if info.Dropped["queue-full"] == 0 {
			return fmt.Errorf("%d of %d bytes wait, dropped %v", info.Queued, info.QueueSize, info.Dropped)
		}
		return nil
	})
	b.unharmed(t)
	if info, _ := deaf.info(t); info.Queued > info.QueueSize {
		t.Errorf("%d bytes wait, the limit is %d", info.Queued, info.QueueSize)
	}
	if more := b.memory(t) - memory; more > 128<<20 {
		t.Errorf("the daemon has grown by %d MB", more>>20)
	}
	close(stop)
	flood.Wait()
	// It hears again, and all is well with it.
	br.listen(true)
	wait(t, "the deaf guest hears again", func() error {
		if _, _, code, err := deaf.try(t, "ping -c 1 -W 1 %s", b.gw4); code != 0 {
			return fmt.Errorf("ping: %d, %v", code, err)
		}
		return nil
	})
}

// framed puts a frame's length before it, as QEMU does.
func framed(f []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...) }

// sum is the internet checksum (RFC 1071) without its last complement.
func sum(b []byte, start uint32) uint16 {
	s := start
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}
