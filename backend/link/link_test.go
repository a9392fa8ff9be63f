package link

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory counts a Batch's chunks, and sees that kept ones stay as they are.
type memory struct {
	t    testing.TB
	live map[*byte]bool
	made int
	most int
	kept map[*byte][]byte // chunks with references into them, as they were when they were kept
}

func newMemory(t testing.TB) (*memory, *Batch) {
	m := &memory{t: t, live: map[*byte]bool{}, kept: map[*byte][]byte{}}
	return m, &Batch{Alloc: m.alloc, Free: m.free}
}

func (m *memory) alloc() Chunk {
	c := Chunk{Mem: make([]byte, ChunkSize)}
	m.live[&c.Mem[0]] = true
	m.made++
	m.most = max(m.most, len(m.live))
	return c
}

func (m *memory) free(c Chunk) {
	if !m.live[&c.Mem[0]] {
		m.t.Error("a chunk is given back twice, or was never had")
	}
	delete(m.live, &c.Mem[0])
}

func fill(b *Batch, p []byte) {
	for len(p) > 0 {
		n := 0
		for _, s := range b.Space(1) {
			k := copy(s, p[n:])
			n += k
			if n == len(p) {
				break
			}
		}
		b.Wrote(n)
		p = p[n:]
	}
}

// period is a prime, so that chunks never begin at the same place of the pattern.
const period = 1<<20 - 3

var pattern = func() []byte {
	b := make([]byte, 2*period)
	for i := range b {
		b[i] = byte(uint32(i%period) * 2654435761 >> 24)
	}
	return b
}()

// ramp is n bytes that tell where they are. They are shared.
func ramp(from, n int) []byte { return pattern[from%period:][:n] }

// exercise sends a stream of frames through a Batch as a link and its owner do, cut as choose says, and compares.
func exercise(t testing.TB, choose func(n int) int) {
	m, b := newMemory(t)
	type view struct {
		part []byte
		want []byte
	}
	var views []view // what somebody kept
	stream, parsed := 0, 0
	var pending []int // lengths of frames not yet whole
	for range 60 {
		b.Next()
		size := choose(200_000)
		fill(b, ramp(stream, size))
		stream += size
		for {
			if len(pending) == 0 {
				pending = append(pending, 1+choose(MaxFrame))
			}
			skip := choose(12)
			if b.Unparsed() < skip+pending[0] {
				break
			}
			head := make([]byte, min(8, b.Unparsed()))
			if !b.Peek(head) || !bytes.Equal(head, ramp(parsed, len(head))) {
				t.Fatalf("peeked other bytes at %d", parsed)
			}
			b.Take(skip, pending[0])
			parsed += skip
			s := b.Frames[len(b.Frames)-1]
			want := ramp(parsed, pending[0])
			if s.Len() != len(want) || !bytes.Equal(b.AppendTo(nil, s), want) {
				t.Fatalf("frame at %d is another", parsed)
			}
			k := choose(100)
			var scratch [100]byte
			if h := b.Head(s, k, scratch[:k]); !bytes.Equal(h, want[:min(k, len(want))]) {
				t.Fatalf("head at %d is another", parsed)
			}
			if f := choose(s.Len() + 1); !bytes.Equal(b.AppendTo(nil, s.From(f)), want[f:]) || !bytes.Equal(b.AppendTo(nil, s.Upto(f)), want[:f]) {
				t.Fatalf("part of the frame at %d is another", parsed)
			}
			if choose(4) == 0 { // somebody refers to it from now on
				off := 0
				b.Pieces(s, func(c *Chunk, o int, part []byte) {
					if &c.Mem[o] != &part[0] {
						t.Fatal("a piece is not where it says")
					}
					c.Kept = true
					views = append(views, view{part, want[off : off+len(part)]})
					off += len(part)
				})
			}
			parsed += pending[0]
			pending = pending[1:]
		}
		if b.Peek(make([]byte, b.Unparsed()+1)) {
			t.Fatal("peeked more than there is")
		}
		if b.Unparsed() != stream-parsed {
			t.Fatalf("%d unparsed, want %d", b.Unparsed(), stream-parsed)
		}
	}
	for _, v := range views {
		if !bytes.Equal(v.part, v.want) {
			t.Fatal("kept bytes were overwritten")
		}
	}
	b.Release()
	if len(m.live) != 0 {
		t.Fatalf("%d chunks are left after Release", len(m.live))
	}
	if most := (200_000+MaxFrame)/ChunkSize + 2 + readAhead; m.most > most {
		t.Fatalf("%d chunks at once, want %d at most", m.most, most)
	}
}

func TestBatchProperties(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		exercise(t, func(n int) int {
			if r.IntN(3) == 0 {
				n = min(n, 100) // small ones, which share chunks
			}
			return r.IntN(max(n, 1))
		})
	}
}

func FuzzBatch(f *testing.F) {
	f.Add([]byte{})                                            // all zero
	f.Add(bytes.Repeat([]byte{0xff}, 300))                     // all largest
	f.Add(ramp(1, 400))                                        // mixed
	f.Add(bytes.Repeat([]byte{0, 1, 0xff, 0xff, 0, 14}, 60))   // short behind long
	f.Add(bytes.Repeat([]byte{0x01, 0x00, 0, 60, 0, 0, 0}, 9)) // kept
	f.Fuzz(func(t *testing.T, script []byte) {
		exercise(t, func(n int) int {
			x := 0
			for i := 0; i < 3 && len(script) > 0; i++ {
				x, script = x<<8|int(script[0]), script[1:]
			}
			return x % max(n, 1)
		})
	})
}

// Small traffic stays in one chunk, and what was read is given back while more comes.
func TestBatchGivesMemoryBack(t *testing.T) {
	m, b := newMemory(t)
	for range 10_000 {
		b.Next()
		b.Append(ramp(0, 100))
		b.Take(4, 96)
	}
	if m.made > readAhead+1 {
		t.Errorf("%d chunks were made for frames of 100 bytes", m.made)
	}
	for range 1000 {
		b.Next()
		b.Append(ramp(0, 60_000))
		b.Take(0, 60_000)
		b.Append(ramp(0, 7)) // the beginning of the next
		b.Take(0, 7)
	}
	b.Next()
	if len(m.live) > readAhead+2 {
		t.Errorf("%d chunks are held for nothing", len(m.live))
	}
	b.Release()
	b.Append([]byte("again")) // a released batch may be used
	b.Take(0, 5)
	if got := string(b.AppendTo(nil, b.Frames[0])); got != "again" {
		t.Errorf("after Release: %q", got)
	}
}

func TestBatchAllocs(t *testing.T) {
	var b Batch
	p := ramp(0, 1500)
	got := testing.AllocsPerRun(1000, func() {
		b.Next()
		b.Append(p)
		b.Take(0, len(p))
		var scratch [64]byte
		b.Head(b.Frames[0], 64, scratch[:])
	})
	if got > 0.1 { // the chunks themselves, once
		t.Errorf("%v allocations a frame", got)
	}
}

func TestFrame(t *testing.T) {
	f := NewFrame([]byte("head"))
	f.Body = [][]byte{[]byte(" and"), nil, []byte(" body")}
	if got := string(f.AppendTo([]byte(">"))); got != ">head and body" || f.Len() != 13 {
		t.Errorf("%q, %d bytes", got, f.Len())
	}
}

func read(t *testing.T, l Link) ([]string, error) {
	t.Helper()
	var b Batch
	err := l.ReadFrames(&b)
	var got []string
	for _, s := range b.Frames {
		got = append(got, string(b.AppendTo(nil, s)))
	}
	return got, err
}

func TestPipe(t *testing.T) {
	a, b := Pipe(4)
	one, two := NewFrame([]byte("one")), NewFrame([]byte("two"))
	if n, err := a.WriteFrames([]Frame{one, two}); n != 2 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	one.Head[Headroom] = 'X' // borrowed for the call only
	if got, err := read(t, b); len(got) != 2 || got[0] != "one" || got[1] != "two" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	b.WriteFrames([]Frame{two})
	if got, _ := read(t, a); len(got) != 1 {
		t.Errorf("the other way: %q", got)
	}
	a.WriteFrames([]Frame{two})
	a.Close()
	a.Close()
	if got, err := read(t, b); len(got) != 1 || err != nil {
		t.Errorf("what was sent before the end: %q, %v", got, err)
	}
	if _, err := read(t, b); err != io.EOF {
		t.Errorf("the end: %v", err)
	}
	if _, err := read(t, a); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if _, err := a.WriteFrames([]Frame{two}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
	if n, err := b.WriteFrames([]Frame{two}); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write to nobody: %d, %v", n, err)
	}
}

// Close wakes who waits, at either end.
func TestPipeCloseWakes(t *testing.T) {
	for _, mine := range []bool{true, false} {
		a, b := Pipe(1)
		wrote, got := make(chan error), make(chan error)
		go func() {
			for {
				if _, err := a.WriteFrames([]Frame{NewFrame([]byte("x"))}); err != nil {
					wrote <- err
					return
				}
			}
		}()
		c, d := Pipe(1)
		go func() { _, err := read(t, c); got <- err }()
		if mine {
			a.Close()
			c.Close()
		} else {
			b.Close()
			d.Close()
		}
		if err := <-wrote; err == nil {
			t.Error("a write went on")
		}
		if err := <-got; err == nil {
			t.Error("a read went on")
		}
	}
}
