package checksum

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

// blockLen is what sumBlocks takes at a time: one vector register.
const blockLen = 32

// leastVector is from which length the vectors pay for the call that cannot be inlined and for adding up their lanes;
// measured, see BenchmarkSum.
const leastVector = 128

var vector = cpu.X86.HasAVX2 // and the system saves the registers

// sumBlocks is the sum of n blocks at p as words of 32 bits; n is at least 1 and below 2^29, so that nothing carries.
//
//go:noescape
func sumBlocks(p *byte, n int) uint64

func sum(b []byte, acc uint64) uint64 {
	for vector && len(b) >= leastVector {
		n := min(len(b)/blockLen, 1<<24) // no packet is that long, but a caller's slice may be
		acc = plus(acc, sumBlocks(unsafe.SliceData(b), n))
		b = b[n*blockLen:]
	}
	return words(b, acc)
}
