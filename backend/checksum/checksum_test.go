package checksum_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	gvisor "gvisor.dev/gvisor/pkg/tcpip/checksum"

	"github.com/vmnetd/vmnetd/backend/checksum"
)

// reference is RFC 1071 §4.1, word by word.
func reference(b []byte, initial uint16) uint16 {
	s := uint32(initial)
	for i, c := range b {
		if i%2 == 0 {
			s += uint32(c) << 8
		} else {
			s += uint32(c)
		}
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// fillings are bytes that carry seldom, at every word, and now and then.
func fillings(n int) map[string][]byte {
	m := map[string][]byte{"zeroes": make([]byte, n), "ones": bytes.Repeat([]byte{0xff}, n), "random": make([]byte, n), "random, mostly ones": make([]byte, n)}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		m["random"][i] = byte(r.Uint32())
		m["random, mostly ones"][i] = byte(r.Uint32() | r.Uint32() | r.Uint32() | r.Uint32() | r.Uint32())
	}
	return m
}

func TestSumKnown(t *testing.T) {
	for _, tt := range []struct {
		name string
		b    []byte
		want uint16
	}{
		{"nothing", nil, 0},
		{"RFC 1071 §3", []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, 0xddf2},
		{"an IPv4 header with its checksum", []byte{0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7}, 0xffff},
		{"one byte", []byte{0xab}, 0xab00},
		{"three", []byte{1, 2, 3}, 0x0402},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := checksum.Sum(tt.b, 0); got != tt.want {
				t.Errorf("%#04x, want %#04x", got, tt.want)
			}
		})
	}
}

// Every length of up to 4096 bytes, at every place relative to a vector.
func TestSumLengths(t *testing.T) {
	const most, places = 4096, 32
	for name, all := range fillings(most + places) {
		t.Run(name, func(t *testing.T) {
			for at := range places {
				for n := range most + 1 {
					if testing.Short() && n > 300 && (n+at)%7 != 0 {
						continue
					}
					b := all[at : at+n : at+n]
					initial := uint16(n * 0x3a71)
					// gVisor's is another's work, and fast enough to compare all with.
					if got, want := checksum.Sum(b, initial), gvisor.Checksum(b, initial); got != want {
						t.Fatalf("%d bytes at %d: %#04x, want %#04x", n, at, got, want)
					}
				}
			}
		})
	}
}

func TestSumReference(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for name, all := range fillings(64<<10 + 64) {
		t.Run(name, func(t *testing.T) {
			check := func(at, n int, initial uint16) {
				t.Helper()
				b := all[at : at+n]
				if got, want := checksum.Sum(b, initial), reference(b, initial); got != want {
					t.Fatalf("%d bytes at %d with %#04x: %#04x, want %#04x", n, at, initial, got, want)
				}
			}
			for n := range 700 {
				for _, initial := range []uint16{0, 1, 0xfffe, 0xffff, uint16(r.Uint32())} {
					check(n%64, n, initial)
				}
			}
			for range 200 {
				check(r.IntN(64), r.IntN(64<<10+1), uint16(r.Uint32()))
			}
			check(0, 65483, 0xffff)
			check(1, 64<<10, 0xffff)
		})
	}
}

// Sums of parts make the sum of the whole, wherever it is cut.
func TestParts(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for name, all := range fillings(4096) {
		t.Run(name, func(t *testing.T) {
			for cut := range 600 {
				b := all[:600+cut%5]
				want := reference(b, 0)
				if got := checksum.Add(checksum.Sum(b[:cut], 0), checksum.Sum(b[cut:], 0), cut%2 == 1); got != want {
					t.Fatalf("cut at %d: %#04x, want %#04x", cut, got, want)
				}
				if got := checksum.Combine(checksum.Sum(b[:cut&^1], 0), checksum.Sum(b[cut&^1:], 0)); got != want {
					t.Fatalf("combined at %d: %#04x, want %#04x", cut&^1, got, want)
				}
			}
			for range 500 {
				var p checksum.Pieces
				at := 0
				for at < len(all) {
					n := min(r.IntN(1<<r.IntN(11)+1), len(all)-at)
					p.Add(all[at : at+n])
					at += n
					if got, want := p.Sum(), reference(all[:at], 0); got != want {
						t.Fatalf("the last %d of %d bytes: %#04x, want %#04x", n, at, got, want)
					}
					if r.IntN(4) == 0 {
						at = len(all) // a short one
					}
				}
			}
		})
	}
}

func TestCombineAll(t *testing.T) {
	for a := range 0x10000 {
		for _, b := range []int{0, 1, 0xff, 0x100, 0x7fff, 0x8000, 0xfffe, 0xffff, a, ^a & 0xffff} {
			want := uint16((a + b) % 0xffff)
			if want == 0 && a+b > 0 {
				want = 0xffff
			}
			if got := checksum.Combine(uint16(a), uint16(b)); got != want {
				t.Fatalf("%#04x and %#04x: %#04x, want %#04x", a, b, got, want)
			}
		}
	}
}

func TestAllocs(t *testing.T) {
	b := make([]byte, 4096)
	var sink uint16
	if n := testing.AllocsPerRun(100, func() {
		var p checksum.Pieces
		p.Add(b[:1001])
		p.Add(b[1001:])
		sink += p.Sum() + checksum.Sum(b, sink)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint16(0), uint16(0))
	f.Add(bytes.Repeat([]byte{0xff}, 300), uint16(0xffff), uint16(1), uint16(33))
	f.Add(bytes.Repeat([]byte{0, 1}, 128), uint16(1), uint16(31), uint16(128))
	f.Add([]byte("the quick brown fox jumps over the lazy dog"), uint16(7), uint16(3), uint16(9))
	f.Fuzz(func(t *testing.T, b []byte, initial, first, second uint16) {
		want := reference(b, initial)
		if got := checksum.Sum(b, initial); got != want {
			t.Fatalf("%d bytes: %#04x, want %#04x", len(b), got, want)
		}
		i := int(first) % (len(b) + 1)
		j := i + int(second)%(len(b)-i+1)
		var p checksum.Pieces
		p.Add(b[:i])
		p.Add(b[i:j])
		p.Add(b[j:])
		if got, want := p.Sum(), reference(b, 0); got != want {
			t.Fatalf("%d bytes cut at %d and %d: %#04x, want %#04x", len(b), i, j, got, want)
		}
	})
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 40, 64, 96, 128, 160, 256, 1448, 65483} {
		data := bytes.Repeat([]byte{0x5a, 0xc3, 0x17}, n/3+1)[:n]
		for _, by := range []struct {
			name string
			sum  func([]byte, uint16) uint16
		}{{"ours", checksum.Sum}, {"gvisor", gvisor.Checksum}} {
			b.Run(fmt.Sprintf("%d/%s", n, by.name), func(b *testing.B) {
				b.SetBytes(int64(n))
				b.ReportAllocs()
				var s uint16
				for b.Loop() {
					s = by.sum(data, s)
				}
			})
		}
	}
}
