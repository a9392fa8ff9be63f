//go:build linux

package e2e

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/e2e/traffic"
)

// bystander is a guest that wants nothing but its stream, and a daemon that must answer.
type bystander struct {
	*bench
	stream *job
	gwMAC  net.HardwareAddr
	fds    int // before anybody came who should not
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
	b.fds = d.descriptors()
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

// descriptorsBack waits until the daemon has as many as before, or few more: ones that the bystander's next
// conversation has.
func (b *bystander) descriptorsBack(t *testing.T) {
	t.Helper()
	wait(t, "descriptors are back", func() error {
		if n := b.descriptors(); n > b.fds+4 {
			return fmt.Errorf("%d are open, %d were", n, b.fds)
		}
		return nil
	})
}

// TestGarbage: bytes that are no frames end the wire that they come on and nothing else.
func TestGarbage(t *testing.T) {
	t.Parallel()
	b := newBystander(t)
	noise := make([]byte, 1<<20)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(noise)
	frame := func(n int, body []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(n)), body...) }
	short := append(frame(0, nil), frame(1, []byte{1})...)
	var shaped []byte // frames whose length is right and whose content is noise
	for i := range 2000 {
		n := 14 + int(noise[i])
		f := append([]byte(nil), noise[i:i+n]...)
		switch i % 4 { // so that they get further than their MAC
		case 0:
			copy(f, []byte{0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 9, 9, 9, 0x08, 0x00, 0x45})
		case 1:
			copy(f, []byte{0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 9, 9, 9, 0x86, 0xdd, 0x60})
		case 2:
			copy(f, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 9, 9, 9, 0x08, 0x06})
		}
		shaped = append(shaped, frame(n, f)...)
	}
	for name, tt := range map[string]struct {
		send []byte
		ends bool // by the daemon
	}{
		"a length of 4 GB":      {frame(0xffffffff, noise[:100]), true},
		"a length of 1 MB":      {frame(1<<20, noise[:100]), true},
		"HTTP":                  {[]byte("GET / HTTP/1.1\r\nHost: vmnetd\r\n\r\n"), true},
		"noise":                 {append([]byte{0x7f}, noise...), true},
		"half a frame":          {frame(1000, noise[:500]), false},
		"half a length":         {[]byte{0, 0}, false},
		"empty and short":       {short, false},
		"right lengths, noise":  {shaped, false},
		"nothing":               {nil, false},
		"a runt, then 4 GB":     {append(append([]byte(nil), short...), frame(0xfffffff0, nil)...), true},
		"65,536 empty in a row": {make([]byte, 4*65536), false},
	} {
		c, err := net.Dial("unix", b.unix)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		go io.Copy(io.Discard, c)
		_, err = c.Write(tt.send)
		if tt.ends {
			// The daemon ends it: writing on fails before long.
			deadline := time.Now().Add(patience)
			for err == nil && time.Now().Before(deadline) {
				time.Sleep(5 * time.Millisecond)
				_, err = c.Write([]byte{0, 0, 0, 0})
			}
			if err == nil {
				t.Errorf("%s: the wire goes on", name)
			}
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
	}
	b.unharmed(t)
	wait(t, "only the bystander is left", func() error {
		if n := b.status(t).Networks[0].Guests; n != 1 {
			return fmt.Errorf("%d guests", n)
		}
		return nil
	})
	b.descriptorsBack(t)
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

// TestReconnects: a thousand guests that come and go, and three thousand more, leave nothing behind.
func TestReconnects(t *testing.T) {
	t.Parallel()
	b := newBystander(t)
	const rounds = 4
	for round := range rounds {
		for i := range 1000 {
			c, err := net.Dial("unix", b.unix)
			if err != nil {
				t.Fatal(err)
			}
			// Each says who it is, with a MAC and an address of its own, and some stop in the middle of a word.
			mac := [6]byte{0x52, 0x54, 1, byte(round), byte(i >> 8), byte(i)}
			c.Write(arp(mac, netip.AddrFrom4([4]byte{10, 0, 2, byte(100 + i%100)})))
			if i%3 == 0 {
				c.Write([]byte{0, 0, 5})
			}
			c.Close()
		}
		wait(t, "all have gone", func() error {
			if n := b.status(t).Networks[0].Guests; n != 1 {
				return fmt.Errorf("%d guests", n)
			}
			return nil
		})
		b.unharmed(t)
		b.descriptorsBack(t)
	}
	// Many of a thousand are there at once, and what they had waits for the collector. What leaked would add up: with
	// a tenth of a wire's memory it would be beyond this by now.
	bound := int64(1 << 30)
	if race {
		bound *= 4 // it keeps up to four words for each of the program's
	}
	if m := b.memory(t); m > bound {
		t.Errorf("the daemon has %d MB after %d guests", m>>20, 1000*rounds)
	} else {
		t.Logf("%d MB after %d guests", m>>20, 1000*rounds)
	}
}

// TestUDPFlows: 50,000 one-packet flows end with the table at its cap, and descriptors are back when the guest is gone.
func TestUDPFlows(t *testing.T) {
	t.Parallel()
	b := newBystander(t)
	sink := b.world.listenPacket(t, net.JoinHostPort(world4, "0"))
	received := make(chan int, 1)
	go func() {
		n := 0
		defer func() { received <- n }()
		buf := make([]byte, 2048)
		for {
			if _, _, err := sink.ReadFrom(buf); err != nil {
				return
			}
			n++
		}
	}()
	flooder := kernelUnix.boot(t, b.daemon, attach{unix: b.unix}, "flooder")
	before := b.status(t).Networks[0].FlowsTotal
	br := flooder.Guest.(*kernelGuest).br
	const n = 50_000
	to := sink.LocalAddr().(*net.UDPAddr).AddrPort()
	most := 0
	for i := range n {
		from := netip.AddrPortFrom(flooder.addr4, uint16(10_000+i))
		if err := br.inject(udpFrame(b.macs(t), flooder, from, to)); err != nil {
			t.Fatal(err)
		}
		if i%5000 == 0 {
			most = max(most, b.descriptors())
		}
	}
	wait(t, "all flows were opened", func() error {
		if got := b.status(t).Networks[0].FlowsTotal - before; got < n {
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	})
	const limit = 4096 // flows.Limits.UDP
	list := b.flows(t, "--guest", flooder.mac.String(), "--proto", "udp")
	if len(list) > limit || len(list) < limit/2 {
		t.Errorf("%d flows in the table, want %d", len(list), limit)
	}
	if most = max(most, b.descriptors()); most > b.fds+limit+200 {
		t.Errorf("%d descriptors at most, %d before: more than the cap of %d flows", most, b.fds, limit)
	}
	b.unharmed(t)
	// The guest itself still has a way out: the oldest make room.
	var r datagrams
	echo := b.world.echoUDP(t, net.JoinHostPort(world4, "0"))
	flooder.json(t, &r, "guest udp -count 3 %s", echo)
	if r.Answered != 3 {
		t.Errorf("the flooder's next datagrams: %+v", r)
	}
	flooder.Kill()
	b.descriptorsBack(t)
	sink.Close()
	if got := <-received; got < n*9/10 { // some are lost where the world's socket is full
		t.Errorf("%d of %d datagrams arrived", got, n)
	}
}

// TestBlackHole: ten thousand SYNs into nowhere do not delay the same guest's next good conversation.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	b := newBystander(t)
	g := kernelUnix.boot(t, b.daemon, attach{unix: b.unix}, "caller")
	echo := b.world.serve(t, "tcp", net.JoinHostPort(world4, "0"), traffic.Echo)
	br := g.Guest.(*kernelGuest).br
	before := b.status(t).Networks[0].FlowsTotal
	const n = 10_000
	for i := range n {
		from := netip.AddrPortFrom(g.addr4, uint16(2000+i))
		to := netip.AddrPortFrom(netip.MustParseAddr(silent4), uint16(1+i%60000))
		if err := br.inject(synFrame(b.macs(t), g, from, to)); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, "all dials were begun", func() error {
		if got := b.status(t).Networks[0].FlowsTotal - before; got < n {
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	})
	for range 5 {
		var r traffic.Report
		g.json(t, &r, "guest tcp -timeout 5s -send 1000 %s", echo.Addr())
		if r.End != "eof" || r.Received != 1000 || r.Seconds > 1 {
			t.Errorf("the next good conversation: %+v", r)
		}
	}
	if list := b.flows(t, "--guest", g.mac.String(), "--state", "dialing"); len(list) > 1024 { // flows.Limits.Dials
		t.Errorf("%d dials wait, the limit is 1024", len(list))
	}
	b.unharmed(t)
	g.Kill()
	b.descriptorsBack(t)
}

// macs is the gateway's MAC, asked for once.
func (b *bystander) macs(t *testing.T) net.HardwareAddr {
	if b.gwMAC == nil {
		var err error
		if b.gwMAC, err = net.ParseMAC(b.status(t).Networks[0].GatewayMAC); err != nil {
			t.Fatal(err)
		}
	}
	return b.gwMAC
}

// framed puts a frame's length before it, as QEMU does.
func framed(f []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...) }

// arp is a gratuitous ARP request (RFC 826): who sends it has a.
func arp(mac [6]byte, a netip.Addr) []byte {
	f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac[:]...)
	f = append(f, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(f, mac[:]...)
	f = append(f, a.AsSlice()...)
	f = append(f, 0, 0, 0, 0, 0, 0)
	return framed(append(f, a.AsSlice()...))
}

// ipFrame is an IPv4 packet in its frame.
func ipFrame(to net.HardwareAddr, g *guest, src, dst netip.Addr, proto byte, body []byte) []byte {
	f := append(append([]byte(nil), to...), g.mac...)
	f = append(f, 0x08, 0x00)
	ip := make([]byte, 20, 20+len(body))
	ip[0], ip[8], ip[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(body)))
	copy(ip[12:], src.AsSlice())
	copy(ip[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], ^sum(ip, 0))
	return framed(append(f, append(ip, body...)...))
}

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

// udpFrame is a datagram of four bytes without a checksum, which IPv4 allows (RFC 768).
func udpFrame(to net.HardwareAddr, g *guest, src, dst netip.AddrPort) []byte {
	u := make([]byte, 12)
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	binary.BigEndian.PutUint16(u[4:], 12)
	return ipFrame(to, g, src.Addr(), dst.Addr(), 17, u)
}

// synFrame is a TCP SYN.
func synFrame(to net.HardwareAddr, g *guest, src, dst netip.AddrPort) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h, src.Port())
	binary.BigEndian.PutUint16(h[2:], dst.Port())
	binary.BigEndian.PutUint32(h[4:], 1)
	h[12], h[13] = 5<<4, 2
	binary.BigEndian.PutUint16(h[14:], 65535)
	pseudo := append(append([]byte(nil), src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, 6, 0, 20)
	binary.BigEndian.PutUint16(h[16:], ^sum(h, uint32(sum(pseudo, 0))))
	return ipFrame(to, g, src.Addr(), dst.Addr(), 6, h)
}
