package checksum

import (
	"strconv"
	"testing"
)

// The words are what other processors have; here they are compared with the vectors, byte for byte.
func TestWords(t *testing.T) {
	all := make([]byte, 5000)
	for _, fill := range []func(i int) byte{
		func(i int) byte { return byte(i*i>>3 + i) },
		func(int) byte { return 0xff },
		func(int) byte { return 0 },
	} {
		for i := range all {
			all[i] = fill(i)
		}
		for n := range 4097 {
			b := all[n%67:][:n]
			if got, want := fold(words(b, 5)), fold(sum(b, 5)); got != want {
				t.Fatalf("%d bytes: %#04x by words, %#04x", n, got, want)
			}
		}
	}
}

func BenchmarkWords(b *testing.B) {
	for _, n := range []int{96, 128, 160, 256, 1448, 65483} {
		data := make([]byte, n)
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			var s uint64
			for b.Loop() {
				s = words(data, s)
			}
		})
	}
}
