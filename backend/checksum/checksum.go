// Package checksum is the internet checksum (RFC 1071): the ones' complement sum of 16-bit words that IP, TCP, UDP and
// ICMP headers carry.
//
//	sum := checksum.Sum(header, 0)
//	sum = checksum.Add(sum, checksum.Sum(payload, 0), len(header)%2 == 1)
//	binary.BigEndian.PutUint16(header[at:], ^sum)
//
// Sums are not complemented, so that they can be put together: who writes one into a header inverts it. A sum is zero
// only of nothing but zeroes; else it is at most 0xffff, which in ones' complement is zero too.
//
// On amd64 with AVX2 long slices are summed by vector instructions, elsewhere by 64-bit words. It knows no protocol:
// the pseudo-header is the caller's to sum.
package checksum

import (
	"encoding/binary"
	"math/bits"
)

// Sum is the sum of the bytes of b, as big-endian words, and initial. An odd last byte is a word's first.
func Sum(b []byte, initial uint16) uint16 {
	return bits.ReverseBytes16(fold(sum(b, uint64(bits.ReverseBytes16(initial)))))
}

// Combine is the sum of two sums, both of bytes that begin at an even offset of the whole.
func Combine(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s + s>>16)
}

// Add is the sum of two, where part is that of bytes that begin at an odd offset of the whole if odd is set.
func Add(sum, part uint16, odd bool) uint16 {
	if odd {
		part = bits.ReverseBytes16(part)
	}
	return Combine(sum, part)
}

// Pieces sums bytes that come piece by piece. The zero value is the sum of nothing.
type Pieces struct {
	acc uint64 // of little-endian words
	odd bool   // the next byte is at an odd offset
}

// Add appends b to what is summed.
func (p *Pieces) Add(b []byte) {
	s := sum(b, 0)
	if p.odd {
		s = bits.RotateLeft64(s, 8) // each byte to the other half of its word
		p.odd = len(b)%2 == 0
	} else {
		p.odd = len(b)%2 == 1
	}
	p.acc = plus(p.acc, s)
}

// Sum is the sum of all pieces until now.
func (p *Pieces) Sum() uint16 { return bits.ReverseBytes16(fold(p.acc)) }

// plus is addition in ones' complement: what is carried out at the top comes in again below. That makes no second
// carry, since a sum that has just wrapped is not all ones.
func plus(a, b uint64) uint64 {
	s, c := bits.Add64(a, b, 0)
	return s + c
}

// fold brings a sum of words of 64 bits to 16: words of 16, 32 and 64 bits sum to the same modulo 0xffff (RFC 1071
// §2.C). A number and its halves exchanged sum to the halves' sum in the upper half, with the carry from the lower.
func fold(acc uint64) uint16 {
	acc += bits.RotateLeft64(acc, 32)
	s := uint32(acc >> 32)
	s += bits.RotateLeft32(s, 16)
	return uint16(s >> 16)
}

// words adds b to acc as little-endian words of 64 bits, the last filled up with zeroes. Byte order does not matter to
// the sum, as long as all words have the same (RFC 1071 §2.B), and this is the one that most processors load.
func words(b []byte, acc uint64) uint64 {
	var c uint64
	for len(b) >= 64 {
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b), 0)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[8:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[16:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[24:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[32:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[40:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[48:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[56:]), c)
		acc += c
		b = b[64:]
	}
	if len(b) >= 32 {
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b), 0)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[8:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[16:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[24:]), c)
		acc += c
		b = b[32:]
	}
	if len(b) >= 16 {
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b), 0)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[8:]), c)
		acc += c
		b = b[16:]
	}
	if len(b) >= 8 {
		acc = plus(acc, binary.LittleEndian.Uint64(b))
		b = b[8:]
	}
	if len(b) >= 4 {
		return plus(acc, uint64(binary.LittleEndian.Uint32(b))|tail(b[4:])<<32)
	}
	return plus(acc, tail(b))
}

// tail is up to three bytes as a little-endian word.
func tail(b []byte) uint64 {
	switch len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.LittleEndian.Uint16(b))
	case 3:
		return uint64(binary.LittleEndian.Uint16(b)) | uint64(b[2])<<16
	}
	return 0
}
