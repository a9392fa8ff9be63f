package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"testing/iotest"

	"github.com/vmnetd/vmnetd/backend/link"
)

// every is each framing that there is.
var every = []struct {
	name   string
	make   func(net.Conn) link.Link
	most   int // that a length can say
	length func([]byte, int) []byte
}{
	{"qemu", NewLink, link.MaxFrame, func(b []byte, n int) []byte { return binary.BigEndian.AppendUint32(b, uint32(n)) }},
	{"hyperkit", func(c net.Conn) link.Link { return NewHyperKitLink(c, 0) }, 0xffff, func(b []byte, n int) []byte { return binary.LittleEndian.AppendUint16(b, uint16(n)) }},
	{"vde", func(c net.Conn) link.Link { return NewVDELink(c, 0) }, 0xffff, func(b []byte, n int) []byte { return binary.BigEndian.AppendUint16(b, uint16(n)) }},
}

// halves is a connection without a descriptor.
type halves struct {
	net.Conn
	io.Reader
	io.Writer
}

func (h halves) Read(b []byte) (int, error)  { return h.Reader.Read(b) }
func (h halves) Write(b []byte) (int, error) { return h.Writer.Write(b) }

// cutAnywhere makes a frame of b whose pieces are as long as r says.
func cutAnywhere(b []byte, r *rand.Rand) link.Frame {
	cut := func() int {
		switch r.IntN(4) {
		case 0:
			return r.IntN(4)
		case 1:
			return r.IntN(64)
		}
		return r.IntN(len(b) + 1)
	}
	n := min(cut(), len(b))
	f := link.NewFrame(b[:n])
	for rest := b[n:]; len(rest) > 0; {
		n := min(cut(), len(rest))
		f.Body = append(f.Body, rest[:n])
		rest = rest[n:]
	}
	return f
}

func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + seed)
	}
	return b
}

func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// What is read is what the lengths say, wherever the reads end; short frames are passed over and counted.
func TestEveryFramingReads(t *testing.T) {
	for _, f := range every {
		t.Run(f.name, func(t *testing.T) {
			sizes := []int{60, 0, 14, 13, 255, 256, 257, 1514, 1, 65534, 65535, 60}
			var bytesOf []byte
			var want [][]byte
			short := 0
			for i, n := range sizes {
				bytesOf = append(f.length(bytesOf, n), pattern(n, i)...)
				if n < minFrame {
					short++
				} else {
					want = append(want, pattern(n, i))
				}
			}
			bytesOf = append(f.length(bytesOf, 500), 1, 2, 3) // and an end in a frame
			for name, r := range map[string]io.Reader{
				"at once": bytes.NewReader(bytesOf), "byte by byte": iotest.OneByteReader(bytes.NewReader(bytesOf)),
				"in halves": iotest.HalfReader(bytes.NewReader(bytesOf)),
			} {
				l := f.make(halves{Reader: r})
				b := &link.Batch{}
				i := 0
				for {
					b.Next()
					err := l.ReadFrames(b)
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					for _, s := range b.Frames {
						if i == len(want) || !bytes.Equal(b.AppendTo(nil, s), want[i]) {
							t.Fatalf("%s: frame %d has %d bytes, or others", name, i, s.Len())
						}
						i++
					}
				}
				if i != len(want) || b.Malformed != short {
					t.Errorf("%s: %d frames and %d malformed, want %d and %d", name, i, b.Malformed, len(want), short)
				}
			}
		})
	}
}

// Frames in any pieces are written behind their lengths, in one write where there is no descriptor, and in one each
// where a peer needs that.
func TestEveryFramingWrites(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, f := range every {
		t.Run(f.name, func(t *testing.T) {
			var frames []link.Frame
			var want []byte
			for i, n := range []int{60, 14, 255, 256, 1514, 65535} {
				frames = append(frames, cutAnywhere(pattern(n, i), r))
				want = append(f.length(want, n), pattern(n, i)...)
			}
			var got bytes.Buffer
			writes := 0
			l := f.make(halves{Writer: writeFunc(func(b []byte) (int, error) { writes++; return got.Write(b) })})
			if n, err := l.WriteFrames(frames); n != len(frames) || err != nil {
				t.Fatalf("%d frames, %v", n, err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("other bytes from %d on", differ(got.Bytes(), want))
			}
			atOnce := 1
			if f.name == "vde" {
				atOnce = len(frames)
			}
			if writes != atOnce {
				t.Errorf("%d writes, want %d", writes, atOnce)
			}
		})
	}
}

// A frame that 16 bits cannot say is refused before a byte of its lot is written.
func TestTooLongToSay(t *testing.T) {
	for _, f := range every {
		wrote := 0
		l := f.make(halves{Writer: writeFunc(func(b []byte) (int, error) { wrote += len(b); return len(b), nil })})
		n, err := l.WriteFrames([]link.Frame{link.NewFrame(pattern(60, 1)), link.NewFrame(pattern(65536, 2))})
		if ok := f.most > 0xffff; ok != (err == nil) || !ok && (n != 0 || wrote != 0) {
			t.Errorf("%s: %d frames and %d bytes written, %v", f.name, n, wrote, err)
		}
	}
}

type writeFunc func([]byte) (int, error)

func (f writeFunc) Write(b []byte) (int, error) { return f(b) }

// What a wire says of itself is what its length can say and its peer was told.
func TestLimits(t *testing.T) {
	for _, x := range []struct {
		name   string
		l      link.Link
		prefix int
		most   int
	}{
		{"qemu", NewLink(halves{}), 4, 0},
		{"hyperkit", NewHyperKitLink(halves{}, 0), 2, 1518},
		{"hyperkit 4000", NewHyperKitLink(halves{}, 4000), 2, 4018},
		{"vde", NewVDELink(halves{}, 0), 2, 1518},
		{"the largest MTU", NewVDELink(halves{}, 65520), 2, 65535},
	} {
		if got := x.l.(link.Prefixed).Prefix(); got != x.prefix {
			t.Errorf("%s: a prefix of %d bytes, want %d", x.name, got, x.prefix)
		}
		if got := x.l.(link.Limited).MaxFrame(); got != x.most {
			t.Errorf("%s: frames of %d bytes at most, want %d", x.name, got, x.most)
		}
	}
}

// FuzzSixteenBits: any bytes are frames or the beginning of one, and what they say does not depend on how they are cut.
func FuzzSixteenBits(f *testing.F) {
	f.Fuzz(func(t *testing.T, in []byte, little bool) {
		if len(in) > 1<<20 {
			return
		}
		make := func(c net.Conn) link.Link { return NewVDELink(c, 0) }
		if little {
			make = func(c net.Conn) link.Link { return NewHyperKitLink(c, 0) }
		}
		read := func(r io.Reader) (out []byte, malformed int) {
			l, b := make(halves{Reader: r}), &link.Batch{}
			for {
				b.Next()
				err := l.ReadFrames(b)
				if errors.Is(err, io.EOF) {
					return out, b.Malformed
				}
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range b.Frames {
					if s.Len() < minFrame {
						t.Fatalf("a frame of %d bytes", s.Len())
					}
					out = b.AppendTo(append(out, '|'), s)
				}
			}
		}
		whole, m1 := read(bytes.NewReader(in))
		parts, m2 := read(iotest.OneByteReader(bytes.NewReader(in)))
		if !bytes.Equal(whole, parts) || m1 != m2 {
			t.Fatalf("whole %d bytes and %d malformed, in parts %d and %d", len(whole), m1, len(parts), m2)
		}
	})
}
