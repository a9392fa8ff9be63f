package link

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmnetd/vmnetd/impair"
)

func words(t testing.TB, text string) impair.Way {
	t.Helper()
	w, err := impair.ParseWay(text, nil)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func numbered(n, size int) []byte {
	b := make([]byte, size)
	b[12], b[13] = 0x88, 0xb5
	binary.BigEndian.PutUint32(b[14:], uint32(n))
	return b
}

// reader collects what comes from a wire, and when.
type reader struct {
	mu   sync.Mutex
	n    []int
	at   []time.Duration
	done chan error
}

func collect(l Link, began time.Time) *reader {
	r := &reader{done: make(chan error, 1)}
	go func() {
		var b Batch
		for {
			b.Next()
			if err := l.ReadFrames(&b); err != nil {
				r.done <- err
				return
			}
			r.mu.Lock()
			for _, s := range b.Frames {
				f := b.AppendTo(nil, s)
				r.n = append(r.n, int(binary.BigEndian.Uint32(f[14:])))
				r.at = append(r.at, time.Since(began))
			}
			r.mu.Unlock()
		}
	}()
	return r
}

func (r *reader) all() ([]int, []time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.n), slices.Clone(r.at)
}

// Both ways of a wire take their time to the nanosecond, by the clock that everything else goes by, and what is set, set
// otherwise and taken off while it works loses nothing and mixes nothing up.
func TestImpairInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		guest, host := Pipe(64)
		w, err := Impair(host, nil)
		if err != nil {
			t.Fatal(err)
		}
		in, out := collect(w, began), collect(guest, began)
		n := 0
		both := func() {
			n++
			f := numbered(n, 100)
			if _, err := guest.WriteFrames([]Frame{NewFrame(f)}); err != nil {
				t.Error(err)
			}
			if _, err := w.WriteFrames([]Frame{NewFrame(f)}); err != nil {
				t.Error(err)
			}
		}
		want := func(at time.Duration, up, down time.Duration) {
			t.Helper()
			for _, x := range []struct {
				name string
				r    *reader
				late time.Duration
			}{{"up", in, up}, {"down", out, down}} {
				nums, times := x.r.all()
				if len(nums) != n || nums[n-1] != n || times[n-1] != at+x.late {
					t.Errorf("%s: %v at %v, want %d at %v", x.name, nums, times, n, at+x.late)
				}
			}
		}
		both()
		synctest.Wait()
		want(0, 0, 0)
		for i, s := range []*impair.Settings{
			{Up: words(t, "latency=50ms"), Down: words(t, "latency=20ms")},
			{Up: words(t, "latency=5ms"), Down: words(t, "rate=8kbit,latency=1ms")}, // 100 ms for 100 bytes
			nil,
			{Down: words(t, "latency=7ms")},
			nil,
		} {
			if err := w.Set(s); err != nil {
				t.Fatal(err)
			}
			at := time.Since(began)
			both()
			time.Sleep(time.Second)
			synctest.Wait()
			d := [][2]time.Duration{{50, 20}, {5, 101}, {0, 0}, {0, 7}, {0, 0}}[i]
			want(at, d[0]*time.Millisecond, d[1]*time.Millisecond)
		}
		// What is under way when it is taken off comes at once, before what is sent after.
		w.Set(&impair.Settings{Up: words(t, "latency=10s"), Down: words(t, "latency=10s")})
		for range 50 {
			both()
		}
		time.Sleep(time.Second)
		w.Set(nil)
		both()
		synctest.Wait()
		want(time.Since(began), 0, 0)
		if nums, _ := in.all(); !slices.IsSorted(nums) {
			t.Errorf("up: %v", nums)
		}
		if nums, _ := out.all(); !slices.IsSorted(nums) {
			t.Errorf("down: %v", nums)
		}
		s := w.Stats()
		if s.Up[0].Dropped() != 0 || s.Down[0].Dropped() != 0 {
			t.Errorf("%+v", s)
		}
		// The end: what is under way is gone, and so are the goroutines (or the bubble does not end).
		w.Set(&impair.Settings{Up: words(t, "latency=10s"), Down: words(t, "latency=10s")})
		both()
		w.Close()
		if err := <-in.done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		if err := <-out.done; !errors.Is(err, io.EOF) {
			t.Errorf("the other end: %v", err)
		}
		if _, err := w.WriteFrames([]Frame{NewFrame(numbered(0, 60))}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("writing after Close: %v", err)
		}
		w.Close()
	})
}

// A guest that has gone ends the reader, though something is under way.
func TestImpairGuestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guest, host := Pipe(64)
		w, err := Impair(host, &impair.Settings{Up: words(t, "latency=10s"), Down: words(t, "latency=10s")})
		if err != nil {
			t.Fatal(err)
		}
		in := collect(w, time.Now())
		guest.WriteFrames([]Frame{NewFrame(numbered(1, 60))})
		w.WriteFrames([]Frame{NewFrame(numbered(1, 60))})
		time.Sleep(time.Second)
		guest.Close()
		if err := <-in.done; !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		w.Close()
	})
}

func TestImpairRefuses(t *testing.T) {
	_, host := Pipe(1)
	defer host.Close()
	w, err := Impair(host, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Set(&impair.Settings{Down: impair.Way{Loss: 2}}); err == nil {
		t.Error("a loss of 200 % was taken")
	}
	if _, err := Impair(host, &impair.Settings{Up: impair.Way{Latency: -1}}); err == nil {
		t.Error("a negative latency was taken")
	}
}

// unfinishedWire says that its frames may be unfinished.
type unfinishedWire struct {
	Link
	gives, takes Offloads
}

func (u unfinishedWire) Offloads() (gives, takes Offloads) { return u.gives, u.takes }

// segment is a TCP segment with so much payload, its checksum right.
func segment(v6 bool, payload int) []byte {
	hl := 20
	if v6 {
		hl = 40
	}
	f := make([]byte, etherLen+hl+32+payload)
	ip := f[etherLen:]
	if v6 {
		f[12], f[13], ip[0], ip[6] = 0x86, 0xdd, 0x60, 6
		binary.BigEndian.PutUint16(ip[4:], uint16(32+payload))
		for i := 8; i < 40; i++ {
			ip[i] = byte(i)
		}
	} else {
		f[12], ip[0], ip[9] = 8, 0x45, 6
		binary.BigEndian.PutUint16(ip[2:], uint16(hl+32+payload))
		copy(ip[12:], []byte{10, 0, 2, 15, 192, 0, 2, 1})
		binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip[:20]))
	}
	t := ip[hl:]
	binary.BigEndian.PutUint32(t[4:], 0xffffff00) // sequence numbers wrap
	t[12], t[13] = 8<<4, 0x10|8|1|0x80
	for i := range t[32:] {
		t[32+i] = byte(i * 7)
	}
	binary.BigEndian.PutUint16(t[16:], pseudo(ip, v6, 32+payload))
	binary.BigEndian.PutUint16(t[16:], ^sum(0, t[:32+payload]))
	return f
}

// Long segments become packets of the line, whoever left them uncut, each as its receiver wants it.
func TestImpairCuts(t *testing.T) {
	const told = Checksums | Segments | Told
	for _, tt := range []struct {
		name     string
		offloads Offloads
		offload  bool
		words    string
		size     int // of the largest piece's payload; 0: it stays whole
	}{
		{"large MTU", 0, false, "loss=0.0001%", 1448},
		{"large MTU, a line of 900", 0, false, "loss=0.0001%,mtu=900", 848},
		{"an offload", told, true, "loss=0.0001%", 1000},
		{"nothing tells", Checksums | Segments, false, "loss=0.0001%", 1448},
		{"latency alone", told, true, "latency=1ms", 0},
	} {
		for _, v6 := range []bool{false, true} {
			for _, up := range []bool{false, true} {
				if up && tt.offload {
					continue // a Pipe cannot tell
				}
				synctest.Test(t, func(t *testing.T) {
					guest, host := Pipe(64)
					s := &impair.Settings{Down: words(t, tt.words), Up: words(t, tt.words)}
					w, err := Impair(unfinishedWire{host, tt.offloads, tt.offloads}, s)
					if err != nil {
						t.Fatal(err)
					}
					defer w.Close()
					const payload = 20000
					whole := segment(v6, payload)
					frame := NewFrame(whole)
					hl := 20
					if v6 {
						hl = 40
					}
					if tt.offload {
						kind := uint8(OffloadTCP4)
						if v6 {
							kind = OffloadTCP6
						}
						frame.SetOffload(Offload{Flags: OffloadSum, Kind: kind, Size: 1000, SumStart: uint16(etherLen + hl), SumAt: 16})
					}
					from, to := Link(w), guest
					if up {
						from, to = guest, w
					}
					w.takes &^= Told // else they would be joined again, where all come at once
					w.down.line.Whole = nil
					if _, err := from.WriteFrames([]Frame{frame}); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second)
					var data []byte
					var b Batch
					pieces, most := 0, 0
					for len(data) < payload {
						b.Next()
						if err := to.ReadFrames(&b); err != nil {
							t.Fatal(err)
						}
						for _, sp := range b.Frames {
							f := b.AppendTo(nil, sp)
							h, th, total, ok := tcpOf(f)
							if !ok || h != hl || th != 32 {
								t.Fatalf("%s: a piece is no segment: % x", tt.name, f[:min(80, len(f))])
							}
							tcp := f[etherLen+h : etherLen+total]
							if got := binary.BigEndian.Uint32(tcp[4:]); got != 0xffffff00+uint32(len(data)) {
								t.Errorf("%s: sequence number %x", tt.name, got)
							}
							if !v6 && sum(0, f[etherLen:etherLen+20]) != 0xffff {
								t.Errorf("%s: the IP header's checksum is wrong", tt.name)
							}
							if tt.offloads == 0 {
								check := slices.Clone(tcp)
								if s := sum(uint64(pseudo(f[etherLen:], v6, len(tcp))), check); s != 0xffff {
									t.Errorf("%s: checksum %x", tt.name, s)
								}
							}
							data = append(data, tcp[32:]...)
							pieces++
							most = max(most, len(tcp)-32)
							last := len(data) == payload
							if fin := tcp[13]&9 != 0; fin != last {
								t.Errorf("%s: FIN and PSH in a piece of the middle, or none at the end", tt.name)
							}
							if cwr := tcp[13]&0x80 != 0; cwr != (pieces == 1) {
								t.Errorf("%s: CWR", tt.name)
							}
						}
					}
					size := tt.size
					if v6 && size != 1000 && size > 0 {
						size -= 20
					}
					if size == 0 {
						size = payload
					}
					if want := (payload + size - 1) / size; pieces != want || most != size {
						t.Errorf("%s: %d pieces, the largest %d, want %d of %d", tt.name, pieces, most, want, size)
					}
					for i, x := range data {
						if x != byte(i*7) {
							t.Fatalf("%s: byte %d is wrong", tt.name, i)
						}
					}
				})
			}
		}
	}
}

// A frame that is damaged is finished before: its checksum is wrong when it comes.
func TestImpairCorruptsFinished(t *testing.T) {
	guest, host := Pipe(2000)
	w, err := Impair(unfinishedWire{host, 0, Checksums | Segments | Told}, &impair.Settings{Down: words(t, "corrupt=100%"), Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	const n = 200
	for range n {
		f := segment(false, 100)
		tcp := f[etherLen+20:]
		binary.BigEndian.PutUint16(tcp[16:], pseudo(f[etherLen:], false, 132))
		frame := NewFrame(f)
		frame.SetOffload(Offload{Flags: OffloadSum, SumStart: etherLen + 20, SumAt: 16})
		if _, err := w.WriteFrames([]Frame{frame}); err != nil {
			t.Fatal(err)
		}
	}
	var b Batch
	for got := 0; got < n; {
		b.Next()
		if err := guest.ReadFrames(&b); err != nil {
			t.Fatal(err)
		}
		for _, sp := range b.Frames {
			f := b.AppendTo(nil, sp)
			ip, tcp := f[etherLen:], f[etherLen+20:]
			if sum(0, ip[:20]) == 0xffff && sum(uint64(pseudo(ip, false, 132)), tcp) == 0xffff {
				t.Fatal("the damage does not show")
			}
			got++
		}
	}
}

// New connections hear of the line's size, wherever the option lies, and the checksum stays right.
func TestImpairClamps(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, options := range [][]byte{{2, 4, 0xff, 0xc8, 1, 1, 4, 2}, {1, 2, 4, 0xff, 0xc8, 0, 0, 0}, {8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 2, 4, 0xff, 0xc8, 1, 1}} {
			f := segment(v6, 16)
			hl := 20
			if v6 {
				hl = 40
			}
			tcp := f[etherLen+hl:]
			tcp = append(tcp[:20], options...)
			f = f[:etherLen+hl+20+len(options)]
			tcp[12], tcp[13] = byte(20+len(options))/4<<4, 2
			set := func() {
				if v6 {
					binary.BigEndian.PutUint16(f[etherLen+4:], uint16(len(tcp)))
				} else {
					binary.BigEndian.PutUint16(f[etherLen+2:], uint16(hl+len(tcp)))
				}
				binary.BigEndian.PutUint16(tcp[16:], pseudo(f[etherLen:], v6, len(tcp)))
				binary.BigEndian.PutUint16(tcp[16:], ^sum(0, tcp))
			}
			set()
			at := synOf(f)
			if at == 0 || binary.BigEndian.Uint16(f[at:]) != 0xffc8 {
				t.Fatalf("%v: at %d", options, at)
			}
			clamp(f, at, 1500, Offload{})
			want := uint16(1460)
			if v6 {
				want = 1440
			}
			if got := binary.BigEndian.Uint16(f[at:]); got != want {
				t.Errorf("%v: %d, want %d", options, got, want)
			}
			if s := sum(uint64(pseudo(f[etherLen:], v6, len(tcp))), tcp); s != 0xffff {
				t.Errorf("%v: checksum %x", options, s)
			}
			clamp(f, at, 9000, Offload{})
			if got := binary.BigEndian.Uint16(f[at:]); got != want {
				t.Errorf("%v was raised to %d", options, got)
			}
		}
	}
	for _, bad := range [][]byte{nil, make([]byte, 60), segment(false, 10)} {
		if synOf(bad) != 0 {
			t.Errorf("% x is a SYN", bad)
		}
	}
}

// recorder keeps what is written to it, with what is left to do.
type recorder struct {
	Link
	mu       sync.Mutex
	frames   [][]byte
	offloads []Offload
}

func (r *recorder) Offloads() (gives, takes Offloads) { return 0, Checksums | Segments | Told }

func (r *recorder) WriteFrames(frames []Frame) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range frames {
		r.frames, r.offloads = append(r.frames, f.AppendTo(nil)), append(r.offloads, f.Offload())
	}
	return len(frames), nil
}

// Pieces that arrive at once are written as one, and be it that some are lost: every byte that is not is there, in segments
// that a card would have made of what came.
func TestImpairJoins(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, tt := range []struct {
			words string
			most  int // frames
		}{
			{"rate=1gbit,latency=10ms", 4}, // a wakeup is for 12 of these; CWR's piece is alone
			{"loss=20%", 16},
			{"duplicate=20%", 16},
			{"latency=10ms,reorder=10%", 8},
			{"corrupt=20%", 16},
		} {
			synctest.Test(t, func(t *testing.T) {
				_, host := Pipe(1)
				r := &recorder{Link: host}
				w, err := Impair(r, &impair.Settings{Down: words(t, tt.words), Seed: 3})
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				const payload, size = 20000, 1000
				whole := segment(v6, payload)
				hl, kind := 20, uint8(OffloadTCP4)
				if v6 {
					hl, kind = 40, OffloadTCP6
				}
				frame := NewFrame(whole)
				frame.SetOffload(Offload{Flags: OffloadSum, Kind: kind, Size: size, SumStart: uint16(etherLen + hl), SumAt: 16})
				other := NewFrame(segment(!v6, 100)) // of another conversation, behind it
				if _, err := w.WriteFrames([]Frame{frame, other}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				r.mu.Lock()
				defer r.mu.Unlock()
				got := 0
				for i, f := range r.frames {
					h, th, total, ok := tcpOf(f)
					if !ok || f[etherLen]>>4 == 6 != v6 {
						continue // the other, or damaged
					}
					tcp := f[etherLen+h : etherLen+total]
					from := int(binary.BigEndian.Uint32(tcp[4:]) - 0xffffff00)
					o := r.offloads[i]
					if o.Flags&OffloadSum == 0 {
						continue // damaged, and finished before
					}
					if !v6 && sum(0, f[etherLen:etherLen+20]) != 0xffff {
						t.Errorf("%s: the IP header's checksum is wrong", tt.words)
					}
					if got := binary.BigEndian.Uint16(tcp[16:]); got != pseudo(f[etherLen:], v6, len(tcp)) {
						t.Errorf("%s: the partial checksum is %x", tt.words, got)
					}
					n := len(tcp) - th
					if last := from+n == payload; (tcp[13]&9 != 0) != last || (tcp[13]&0x80 != 0) != (from == 0) {
						t.Errorf("%s: flags %x from %d, %d bytes", tt.words, tcp[13], from, n)
					}
					if n > size && (o.Kind != kind || o.Size != size || int(o.Header) != etherLen+h+th || from == 0) || n <= size && o.Kind != 0 || !o.Fits(len(f)) {
						t.Errorf("%s: %d bytes from %d: %+v", tt.words, n, from, o)
					}
					for k, x := range tcp[th:] {
						if x != byte((from+k)*7) {
							t.Fatalf("%s: byte %d is wrong", tt.words, from+k)
						}
					}
					got += n
				}
				s := w.Stats().Down[0]
				if want := payload - size*int(s.Lost+s.Corrupted) + size*int(s.Duplicated); got != want && s.Duplicated+s.Lost+s.Corrupted == 0 || got < payload/2 || len(r.frames) > tt.most {
					t.Errorf("%s: %d bytes in %d frames, want %d in at most %d: %+v", tt.words, got, len(r.frames), want, tt.most, s)
				}
			})
		}
	}
}

// brokenWire panics when it is written to.
type brokenWire struct{ Link }

func (brokenWire) WriteFrames([]Frame) (int, error) { panic("a bug") }

// What the wire's own goroutines meet is told, and nobody waits for ever afterwards.
func TestImpairPanic(t *testing.T) {
	_, host := Pipe(1)
	w, err := Impair(brokenWire{host}, nil)
	if err != nil {
		t.Fatal(err)
	}
	met := make(chan any, 1)
	w.OnPanic(func(r any, _ []byte) { met <- r })
	if err := w.Set(&impair.Settings{Down: words(t, "latency=1ms")}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteFrames([]Frame{NewFrame(numbered(1, 60))}); err != nil {
		t.Fatal(err)
	}
	if r := <-met; r != "a bug" {
		t.Errorf("met %v", r)
	}
	w.Stats()
	if err := w.Set(nil); err != nil {
		t.Error(err)
	}
	w.Close()
}

// A stream's reader is woken for many frames at once, none of which is later than impairRest for it; a frame by itself is
// not late at all.
func TestImpairWakesSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		guest, host := Pipe(4096)
		w, err := Impair(host, &impair.Settings{Down: words(t, "rate=1gbit,latency=10ms")})
		if err != nil {
			t.Fatal(err)
		}
		out := collect(guest, began)
		const n, size = 2000, 1250 // 10 µs each
		frames := make([]Frame, n)
		for i := range frames {
			frames[i] = NewFrame(numbered(i, size))
		}
		if _, err := w.WriteFrames(frames); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		nums, times := out.all()
		if len(nums) != n || !slices.IsSorted(nums) {
			t.Fatalf("%d frames, in order: %v", len(nums), slices.IsSorted(nums))
		}
		if first := 10*time.Millisecond + 10*time.Microsecond; times[0] != first {
			t.Errorf("the first after %v, want %v", times[0], first)
		}
		wakes := 1
		for i, at := range times {
			if i > 0 && at != times[i-1] {
				wakes++
			}
			if late := at - 10*time.Millisecond - time.Duration(i+1)*10*time.Microsecond; late < 0 || late > impairRest {
				t.Fatalf("frame %d is %v late", i, late)
			}
		}
		if wakes > n/9 {
			t.Errorf("%d wakeups for %d frames", wakes, n)
		}
		w.Close()
		<-out.done
	})
}

// malformedWire counts frames that it passes over, as a framing does.
type malformedWire struct{ Link }

func (m malformedWire) ReadFrames(b *Batch) error {
	err := m.Link.ReadFrames(b)
	b.Malformed++
	return err
}

// What the wire passed over is counted once, whoever reads it.
func TestImpairMalformed(t *testing.T) {
	guest, host := Pipe(1)
	w, err := Impair(malformedWire{host}, &impair.Settings{Up: words(t, "latency=1us")})
	if err != nil {
		t.Fatal(err)
	}
	const n = 500
	sent := make(chan error, 1)
	go func() {
		defer guest.Close()
		for i := range n {
			if _, err := guest.WriteFrames([]Frame{NewFrame(numbered(i, 60))}); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	var b Batch
	frames, malformed := 0, 0
	for {
		b.Next()
		err := w.ReadFrames(&b)
		malformed, b.Malformed = malformed+b.Malformed, 0
		frames += len(b.Frames)
		if err != nil {
			break
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	w.Close()
	if frames != n || malformed == 0 || malformed > n+1 {
		t.Errorf("%d frames, %d malformed", frames, malformed)
	}
}

// Frames of any bytes go through a wire whose frames may be unfinished. The payload is only a length: the fuzzer tries each
// pair of bytes to make an input shorter, and would with a payload do nothing else for a minute.
func FuzzImpair(f *testing.F) {
	f.Add(segment(false, 640)[:66], uint16(640), uint8(2), true, uint8(1), uint8(1), uint16(300), uint16(34), uint16(16))
	f.Add(segment(true, 640)[:86], uint16(640), uint8(2), false, uint8(1), uint8(4), uint16(64), uint16(54), uint16(16))
	f.Add(segment(false, 640)[:66], uint16(640), uint8(0), true, uint8(0), uint8(0), uint16(0), uint16(0), uint16(0))
	f.Add(segment(false, 1400)[:66], uint16(1400), uint8(2), false, uint8(1), uint8(1), uint16(300), uint16(34), uint16(16))
	f.Add(segment(true, 640)[:86], uint16(640), uint8(1), false, uint8(1), uint8(0x84), uint16(8), uint16(0), uint16(0xffff))
	syn := segment(false, 0)
	syn[etherLen+33] = 2
	f.Add(syn, uint16(0), uint8(0), true, uint8(0), uint8(0), uint16(0), uint16(0), uint16(0))
	way := words(f, "corrupt=50%,mtu=576")
	f.Fuzz(func(t *testing.T, b []byte, payload uint16, wire uint8, up bool, flags, kind uint8, size, start, at uint16) {
		if b = slices.Concat(b, make([]byte, payload)); len(b) < etherLen || len(b) > MaxFrame {
			return
		}
		offloads := []Offloads{0, Checksums | Segments, Checksums | Segments | Told}[wire%3]
		w := &Impaired{began: time.Now(), gives: offloads, takes: offloads}
		if err := w.Set(&impair.Settings{Up: way, Down: way, Seed: 1}); err != nil {
			t.Fatal(err)
		}
		d := &w.down
		if up {
			d = &w.up
		}
		buf := d.line.Buffer(Headroom + len(b))
		copy(buf[Headroom:], b)
		Offload{Flags: flags, Kind: kind, Size: size, SumStart: start, SumAt: at}.put(buf[Headroom-OffloadLen : Headroom])
		w.enter(d, buf, ParseOffload(buf[Headroom-OffloadLen:]), offloads)
		length := 0
		for _, buf := range d.line.Take(w.now(), nil, 1<<20, 1<<30) {
			w.join(buf)
			length += len(buf) - Headroom
		}
		if d.line.Held() != 0 {
			t.Errorf("%d bytes are left", d.line.Held())
		}
		for _, f := range w.frames {
			o := f.Offload()
			length -= f.Len() + len(f.Body)*int(o.Header) // each piece but the first leaves its header behind
			if len(f.Body) > 0 && !o.Fits(f.Len()) {
				t.Errorf("%+v does not fit %d bytes", o, f.Len())
			}
		}
		if length != 0 {
			t.Errorf("%d bytes are missing", length)
		}
	})
}
