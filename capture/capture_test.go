package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmnetd/vmnetd/backend/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// block is one of a file.
type block struct {
	typ     uint32
	id      uint32
	data    []byte
	whole   uint32
	at      uint64
	options map[uint16]string
}

// blocksOf takes a file apart, and fails if it is none.
func blocksOf(t testing.TB, b []byte) (list []block) {
	t.Helper()
	for len(b) > 0 {
		raw, err := nextBlock(b)
		if err != nil || raw == nil {
			t.Fatalf("%d bytes that are no block: %v", len(b), err)
		}
		n := len(raw)
		if le.Uint32(raw[n-4:]) != uint32(n) {
			t.Fatalf("a block of %d bytes ends with %d", n, le.Uint32(raw[n-4:]))
		}
		k := block{typ: le.Uint32(raw), options: map[uint16]string{}}
		opts := raw[:n-4]
		switch k.typ {
		case blockSection:
			opts = opts[24:]
		case blockInterface:
			opts = opts[16:]
		case blockStatistics:
			k.id = le.Uint32(raw[8:])
			opts = opts[20:]
		case blockPacket:
			k.id, k.whole = le.Uint32(raw[8:]), le.Uint32(raw[24:])
			k.at = uint64(le.Uint32(raw[12:]))<<32 | uint64(le.Uint32(raw[16:]))
			size := int(le.Uint32(raw[20:]))
			k.data = raw[packetHead : packetHead+size]
			opts = opts[packetHead+pad(size):]
		}
		for len(opts) >= 4 {
			code, size := le.Uint16(opts), int(le.Uint16(opts[2:]))
			if code == optEnd {
				opts = opts[4:]
				break
			}
			k.options[code] = string(opts[4 : 4+size])
			opts = opts[4+pad(size):]
		}
		if len(opts) != 0 {
			t.Fatalf("%d bytes behind the options of a block of type %#x", len(opts), k.typ)
		}
		list = append(list, k)
		b = b[n:]
	}
	return list
}

func packetsOf(list []block) (out []block) {
	for _, b := range list {
		if b.typ == blockPacket {
			out = append(out, b)
		}
	}
	return out
}

func named(name string) func() Interface {
	return func() Interface { return Interface{Name: name, MAC: macA} }
}

// wired is a wire with a guest at its other end.
func wired(t testing.TB, depth int) (*Wire, link.Link) {
	a, b := link.Pipe(depth)
	w := Around(a)
	t.Cleanup(func() { w.Close(); b.Close() })
	return w, b
}

func send(t testing.TB, l link.Link, frames ...[]byte) {
	t.Helper()
	var list []link.Frame
	for i, f := range frames {
		fr := link.NewFrame(f)
		if i%2 == 1 && len(f) > 20 { // in pieces
			fr = link.NewFrame(f[:14])
			fr.Body = [][]byte{f[14:17], nil, f[17:]}
		}
		list = append(list, fr)
	}
	if n, err := l.WriteFrames(list); n != len(list) || err != nil {
		t.Fatal(n, err)
	}
}

func receive(t testing.TB, l link.Link, n int) {
	t.Helper()
	var b link.Batch
	for got := 0; got < n; got += len(b.Frames) {
		b.Next()
		if err := l.ReadFrames(&b); err != nil {
			t.Fatal(err)
		}
	}
}

func udpFrame(port uint16, n int) []byte {
	return ether(macB, macA, etherIP, ipv4(17, "10.0.2.15", "10.0.2.2", 0, 0, ports(port, 53, n))...)
}

// Both ways, with directions, times and comments, and what one interface was called; in a form that others read.
func TestCapture(t *testing.T) {
	w, guest := wired(t, 64)
	before := now()
	var file bytes.Buffer
	filter, err := ParseFilter("udp port 53")
	if err != nil {
		t.Fatal(err)
	}
	s := Start(&file, Options{Filter: filter, Application: "vmnetd test", OS: "linux", Note: "of a test",
		Judge: func(_ *Tap, p Packet) (string, bool) {
			if p.Guest.Port() == 1000 && !p.Out {
				return "the first", true
			}
			return "", p.Guest.Port() != 1002
		}})
	tap := s.Add(w, named("vm1"))
	in := [][]byte{udpFrame(1000, 8), udpFrame(1001, 1400), udpFrame(1002, 5), udpFrame(1003, 3)}
	send(t, guest, in...)
	send(t, guest, ether(broadcast, macA, etherARP, arpFor(1, "10.0.2.15", "10.0.2.2")...))
	receive(t, w, 5)
	out := ether(macA, macB, etherIP, ipv4(17, "10.0.2.2", "10.0.2.15", 0, 0, ports(53, 1000, 30000))...)
	send(t, w, out, out)
	tap.Remove()
	send(t, w, out)
	s.Stop()
	if err := s.Wait(); err != nil {
		t.Fatal(err)
	}
	list := blocksOf(t, file.Bytes())
	head := list[0]
	if head.typ != blockSection || head.options[optApplication] != "vmnetd test" || head.options[optOS] != "linux" || head.options[optComment] != "of a test" {
		t.Errorf("section %+v", head)
	}
	if i := list[1]; i.typ != blockInterface || i.options[optName] != "vm1" || i.options[optTimeUnit] != "\x09" || i.options[optMAC] != string(macA) || i.options[optFilter] != "\x00udp port 53" {
		t.Errorf("interface %+v", i)
	}
	want := [][]byte{in[0], in[1], in[3], out, out}
	got := packetsOf(list)
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	for i, p := range got {
		dir := uint32(flagInbound)
		if i >= 3 {
			dir = flagOutbound
		}
		if !bytes.Equal(p.data, want[i]) || int(p.whole) != len(want[i]) || le.Uint32([]byte(p.options[optFlags])) != dir {
			t.Errorf("packet %d: %d bytes, options %v", i, len(p.data), p.options)
		}
		if p.at < before || p.at > now() || i > 0 && p.at < got[i-1].at {
			t.Errorf("packet %d at %d", i, p.at)
		}
		if comment := p.options[optComment]; comment != map[bool]string{true: "the first"}[i == 0] {
			t.Errorf("packet %d has the comment %q", i, comment)
		}
	}
	last := list[len(list)-1]
	if u := func(o uint16) uint64 { return binary.LittleEndian.Uint64([]byte(last.options[o])) }; last.typ != blockStatistics || u(optReceived) != 7 || u(optAccepted) != 6 || u(optDropped) != 0 {
		t.Errorf("statistics %+v", last)
	}
	if f, why := s.Figures(); f.Packets != 5 || f.Seen != 7 || f.Bytes != int64(file.Len()) || why != Stopped {
		t.Errorf("figures %+v, %s", f, why)
	}
	read(t, file.Bytes(), 5)
}

// read has tshark and tcpdump read a file, where they are here.
func read(t testing.TB, file []byte, packets int) {
	t.Helper()
	for _, args := range [][]string{{"tshark", "-r", "-", "-T", "fields", "-e", "frame.number"}, {"tcpdump", "-nr", "-"}} {
		path, err := exec.LookPath(args[0])
		if err != nil {
			t.Logf("no %s here", args[0])
			continue
		}
		cmd := exec.Command(path, args[1:]...)
		cmd.Stdin = bytes.NewReader(file)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if n := bytes.Count(out, []byte("\n")); err != nil || n != packets {
			t.Errorf("%s: %d packets, want %d: %v: %s", args[0], n, packets, err, stderr.String())
		}
	}
}

// What frames are cut to, and what ends a capture.
func TestCaptureBounds(t *testing.T) {
	for _, c := range []struct {
		name    string
		o       Options
		packets int
		bytes   int64
		why     Ending
	}{
		{"packets", Options{MaxPackets: 5}, 5, 0, FullPackets},
		{"size", Options{MaxBytes: 2000}, 0, 2000, FullBytes},
		{"snaplen", Options{MaxPackets: 4, Snaplen: 60}, 4, 0, FullPackets},
		{"nothing fits", Options{MaxBytes: 100}, 0, 200, FullBytes},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, guest := wired(t, 64)
			var file bytes.Buffer
			s := Start(&file, c.o)
			s.Add(w, named("vm"))
			for range 20 {
				send(t, guest, udpFrame(1, 101))
				receive(t, w, 1)
			}
			if err := s.Wait(); err != nil {
				t.Fatal(err)
			}
			list := blocksOf(t, file.Bytes())
			p := packetsOf(list)
			if _, why := s.Figures(); why != c.why || c.packets > 0 && len(p) != c.packets || c.bytes > 0 && int64(file.Len()) > c.bytes {
				t.Errorf("ended by %s with %d packets, %d bytes", why, len(p), file.Len())
			}
			if c.o.Snaplen > 0 && (len(p[0].data) != c.o.Snaplen || int(p[0].whole) != len(udpFrame(1, 101))) {
				t.Errorf("%d bytes of %d", len(p[0].data), p[0].whole)
			}
			if len(p) > 0 && list[len(list)-1].typ != blockStatistics {
				t.Error("no statistics at the end")
			}
			if w.taps.Load() != nil {
				t.Error("a capture that is over is still on the wire")
			}
		})
	}
	s := Start(io.Discard, Options{MaxTime: time.Millisecond})
	if err := s.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, why := s.Figures(); why != TimeOver {
		t.Errorf("ended by %s", why)
	}
}

// gate is a writer that waits.
type gate struct {
	bytes.Buffer
	open chan struct{}
}

func (g *gate) Write(b []byte) (int, error) {
	<-g.open
	return g.Buffer.Write(b)
}

// A writer that waits costs the capture, and is told of; the guests do not wait for it.
func TestCaptureSlowWriter(t *testing.T) {
	w, guest := wired(t, 64)
	g := &gate{open: make(chan struct{})}
	s := Start(g, Options{})
	s.Add(w, named("vm"))
	frame := udpFrame(1, 60000)
	const frames = 3 * queueBlocks * queueBlock / 60000
	for range frames {
		send(t, guest, frame)
		receive(t, w, 1)
	}
	f, _ := s.Figures()
	if f.Dropped == 0 || f.Seen != frames {
		t.Errorf("figures %+v", f)
	}
	close(g.open)
	for { // until there is room again
		send(t, guest, frame)
		receive(t, w, 1)
		if now, _ := s.Figures(); now.Dropped == f.Dropped {
			break
		} else {
			f = now
		}
	}
	s.Stop()
	if err := s.Wait(); err != nil {
		t.Fatal(err)
	}
	f, _ = s.Figures()
	list := blocksOf(t, g.Bytes())
	var missing uint64
	for _, p := range packetsOf(list) {
		if v := p.options[optDropCount]; v != "" {
			missing += binary.LittleEndian.Uint64([]byte(v))
		}
	}
	last := list[len(list)-1]
	if n := len(packetsOf(list)); f.Packets != uint64(n) || f.Packets+f.Dropped != f.Seen || missing != f.Dropped || binary.LittleEndian.Uint64([]byte(last.options[optDropped])) != f.Dropped {
		t.Errorf("figures %+v, %d packets, %d missing, statistics %v", f, n, missing, last.options)
	}
	read(t, g.Bytes(), len(packetsOf(list)))
}

type failing struct{ after int }

func (f *failing) Write(b []byte) (int, error) {
	if f.after--; f.after < 0 {
		return 0, errors.New("no space")
	}
	return len(b), nil
}

func TestCaptureWriterFails(t *testing.T) {
	w, guest := wired(t, 64)
	s := Start(&failing{after: 2}, Options{})
	s.Add(w, named("vm"))
	send(t, guest, udpFrame(1, 10))
	receive(t, w, 1)
	if err := s.Wait(); err == nil || err.Error() != "no space" {
		t.Errorf("%v", err)
	}
	if _, why := s.Figures(); why != WriterFailed || w.taps.Load() != nil {
		t.Errorf("ended by %s", why)
	}
	send(t, guest, udpFrame(1, 10))
	receive(t, w, 1)
}

// Captures come and go on wires that are under load, and wires on captures.
func TestCaptureChurn(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var wires []*Wire
	var load sync.WaitGroup
	for range 3 {
		w, guest := wired(t, 64)
		wires = append(wires, w)
		load.Go(func() {
			for ctx.Err() == nil {
				send(t, guest, udpFrame(1, 500), udpFrame(2, 60), udpFrame(3, 9000))
				receive(t, w, 3)
			}
		})
		load.Go(func() {
			for ctx.Err() == nil {
				send(t, w, udpFrame(4, 50), udpFrame(5, 600))
				receive(t, guest, 2)
			}
		})
	}
	for range 25 {
		var file, other bytes.Buffer
		s, o := Start(&file, Options{}), Start(&other, Options{Snaplen: 80})
		var first *Tap
		for _, w := range wires {
			if t := s.Add(w, named("vm")); first == nil {
				first = t
			}
			o.Add(w, named("vm"))
		}
		first.Remove()
		s.Add(wires[0], named("again"))
		for f, _ := s.Figures(); f.Packets < 20; f, _ = s.Figures() {
			time.Sleep(100 * time.Microsecond)
		}
		s.Stop()
		o.Stop()
		if err := errors.Join(s.Wait(), o.Wait()); err != nil {
			t.Fatal(err)
		}
		list := blocksOf(t, file.Bytes())
		blocksOf(t, other.Bytes())
		interfaces := 0
		for _, b := range list {
			switch b.typ {
			case blockInterface:
				interfaces++
			case blockPacket:
				if int(b.id) >= interfaces {
					t.Fatalf("a packet of interface %d, of %d", b.id, interfaces)
				}
			}
		}
		if interfaces != 4 {
			t.Fatalf("%d interfaces", interfaces)
		}
	}
	cancel()
	load.Wait()
	for _, w := range wires {
		if w.taps.Load() != nil {
			t.Error("a capture is left on a wire")
		}
	}
}

// A wire that nobody looks at costs nothing that can be counted.
func TestWireAllocs(t *testing.T) {
	w := Around(nothing{})
	var b link.Batch
	frames := []link.Frame{link.NewFrame(udpFrame(1, 10))}
	if n := testing.AllocsPerRun(100, func() { w.ReadFrames(&b); w.WriteFrames(frames) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

type nothing struct{}

func (nothing) ReadFrames(*link.Batch) error            { return nil }
func (nothing) WriteFrames(f []link.Frame) (int, error) { return len(f), nil }
func (nothing) Close() error                            { return nil }

func BenchmarkWire(b *testing.B) {
	frames := []link.Frame{link.NewFrame(udpFrame(1, 1400))}
	for _, c := range []string{"no capture", "capture", "capture of others", "capture of 54 bytes"} {
		b.Run(c, func(b *testing.B) {
			w := Around(nothing{})
			o := Options{}
			switch {
			case strings.HasSuffix(c, "others"):
				o.Filter, _ = ParseFilter("tcp port 443")
			case strings.HasSuffix(c, "bytes"):
				o.Snaplen = 54
			}
			if c != "no capture" {
				s := Start(io.Discard, o)
				s.Add(w, named("vm"))
				defer s.Wait()
				defer s.Stop()
			}
			b.SetBytes(int64(frames[0].Len()))
			for b.Loop() {
				w.WriteFrames(frames)
			}
		})
	}
}
