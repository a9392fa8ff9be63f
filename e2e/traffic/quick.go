package traffic

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"io"
	"math/bits"
	"net"
)

// Sums for a gigabyte in a guest whose processor is emulated: making ChaCha8's bytes and hashing them by SHA-256 would
// take it longer than any network. A word costs one multiplication; its place counts, so that what is lost, doubled or
// swapped shows. It is no defence against somebody who wants to deceive it.

// quickSum takes 64 bits at a time.
type quickSum struct {
	sum  uint64
	rest []byte // less than a word
	n    uint64
}

// quickPrime is the 64-bit FNV prime (draft-eastlake-fnv §5): odd, so that a multiplication loses nothing.
const quickPrime = 0x100000001b3

func (q *quickSum) word(w uint64) { q.sum = bits.RotateLeft64((q.sum^w)*quickPrime, 29) }

func (q *quickSum) Write(b []byte) (int, error) {
	all := len(b)
	q.n += uint64(all)
	if len(q.rest) > 0 {
		k := min(8-len(q.rest), len(b))
		q.rest, b = append(q.rest, b[:k]...), b[k:]
		if len(q.rest) < 8 {
			return all, nil
		}
		q.word(binary.LittleEndian.Uint64(q.rest))
		q.rest = q.rest[:0]
	}
	for len(b) >= 8 {
		q.word(binary.LittleEndian.Uint64(b))
		b = b[8:]
	}
	q.rest = append(q.rest, b...)
	return all, nil
}

func (q *quickSum) String() string {
	end := *q
	var last [8]byte
	copy(last[:], end.rest)
	end.word(binary.LittleEndian.Uint64(last[:]))
	end.word(end.n)
	return "quick:" + hex.EncodeToString(binary.BigEndian.AppendUint64(nil, end.sum))
}

// quickPiece is what is sent and read at once: as much as a socket's buffer takes well.
const quickPiece = 256 << 10

// SendQuick is Send with bytes and a sum that are cheap to make: random ones over and over, with a number of its own in
// each KiB.
func (r *Report) SendQuick(w io.Writer, seed uint64, n int64) error {
	piece := make([]byte, quickPiece)
	_, _ = io.ReadFull(Bytes(seed, quickPiece), piece) // cannot fail
	var q quickSum
	for number := uint64(0); n > 0; {
		for at := 0; at < len(piece); at += blockSize {
			binary.BigEndian.PutUint64(piece[at:], number)
			number++
		}
		b := piece[:min(n, quickPiece)]
		sent, err := w.Write(b)
		r.Sent += int64(sent)
		if err != nil {
			return err
		}
		_, _ = q.Write(b)
		n -= int64(len(b))
	}
	r.SentHash = q.String()
	return nil
}

// ReceiveQuick is Receive for SendQuick's sum.
func (r *Report) ReceiveQuick(rd io.Reader) error {
	var q quickSum
	n, err := io.CopyBuffer(&q, struct{ io.Reader }{rd}, make([]byte, quickPiece)) // a socket's own WriteTo has small pieces
	r.Received += n
	r.ReceivedHash = q.String()
	return err
}

// QuickSource is Source with SendQuick; QuickSink reads to the peer's end and ends after it.
func QuickSource(seed uint64, n int64) Handler {
	return func(_ context.Context, c net.Conn, r *Report) error {
		if err := r.SendQuick(c, seed, n); err != nil {
			return err
		}
		if err := closeWrite(c); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, c)
		return err
	}
}

// QuickSink is described at QuickSource.
func QuickSink(_ context.Context, c net.Conn, r *Report) error { return r.ReceiveQuick(c) }
