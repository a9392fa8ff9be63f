// Package traffic is what the end-to-end tests send through a network: counted and hashed bytes,
// endless numbered streams, echoes. The test on the host and the program in the guest
// (e2e/guestbin) use the same functions, so that one end can check the other's numbers.
//
//	srv, err := traffic.Serve("tcp", "127.0.0.1:0", traffic.Echo)   // on the host
//	…
//	guest tcp -send 1048576 10.0.2.2:PORT                            // in the guest
//
// It measures no speed: a guest under emulation has none worth measuring.
package traffic

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"
)

// Report is what one end of a conversation saw. The JSON form is what guestbin prints.
type Report struct {
	Local        string `json:"local,omitempty"`
	Remote       string `json:"remote,omitempty"`
	Sent         int64  `json:"sent"`
	SentHash     string `json:"sent_sha256,omitempty"`
	Received     int64  `json:"received"`
	ReceivedHash string `json:"received_sha256,omitempty"`
	// End is how it ended: one of the words of End.
	End string `json:"end"`
	// Error is the error behind End, when there was one.
	Error string `json:"error,omitempty"`
	// Seconds is how long it took, the dial included.
	Seconds float64 `json:"seconds"`
}

// Finish notes how the conversation ended.
func (r *Report) Finish(err error, began time.Time) {
	r.End = End(err)
	if err != nil && !errors.Is(err, io.EOF) {
		r.Error = err.Error()
	}
	r.Seconds = time.Since(began).Seconds()
}

// End names how a connection or a dial ended:
//
//	eof              the peer ended it in good order
//	reset            the peer broke it off (RST)
//	refused          nobody listens there (RST to a SYN, or ICMP port unreachable)
//	host-unreachable ICMP host unreachable, or nobody answers ARP or NDP
//	net-unreachable  ICMP network unreachable, or no route
//	prohibited       ICMP administratively prohibited
//	timeout          nothing came in time
//	closed           we closed it ourselves
//	error            anything else
func End(err error) string {
	var ne net.Error
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return "eof"
	case errors.Is(err, net.ErrClosed), errors.Is(err, context.Canceled):
		return "closed"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	if name := errnoEnd(err); name != "" {
		return name
	}
	if errors.As(err, &ne) && ne.Timeout() {
		return "timeout"
	}
	return "error"
}

// Bytes is n bytes that anybody with the same seed can make again, and that do not repeat: a
// relay that swaps, doubles or loses a piece changes their hash.
func Bytes(seed uint64, n int64) io.Reader {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	return io.LimitReader(rand.NewChaCha8(key), n)
}

// Hash is the sum that a Report would show for Bytes(seed, n).
func Hash(seed uint64, n int64) string {
	h := sha256.New()
	_, _ = io.Copy(h, Bytes(seed, n)) // neither side can fail
	return sum(h)
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// Send writes Bytes(seed, n) to w and counts them into r.
func (r *Report) Send(w io.Writer, seed uint64, n int64) error {
	h := sha256.New()
	sent, err := io.Copy(w, io.TeeReader(Bytes(seed, n), h))
	r.Sent += sent
	if err == nil { // after an error the hash covers more than was sent
		r.SentHash = sum(h)
	}
	return err
}

// Receive reads rd to its end and counts it into r. A clean end gives nil.
func (r *Report) Receive(rd io.Reader) error {
	h := sha256.New()
	n, err := io.Copy(h, rd)
	r.Received += n
	r.ReceivedHash = sum(h)
	return err
}

// blockSize is one block of a Stream: its number in 8 bytes, then bytes that follow from the
// number. 1 KiB fits any MTU, so that a lost segment shows as a lost or torn block.
const blockSize = 1024

func block(b []byte, number uint64) {
	binary.BigEndian.PutUint64(b, number)
	for i := 8; i < blockSize; i++ {
		b[i] = byte(number + uint64(i))
	}
}

// Stream writes numbered blocks to w, at most rate bytes a second (0: as fast as it goes), until
// it fails or ctx ends, and calls progress with the number of bytes written so far after each.
func Stream(ctx context.Context, w io.Writer, rate int64, progress func(int64)) error {
	b := make([]byte, blockSize)
	began := time.Now()
	for n := uint64(0); ; n++ {
		if rate > 0 {
			due := began.Add(time.Duration(float64(n*blockSize) / float64(rate) * float64(time.Second)))
			select {
			case <-time.After(time.Until(due)):
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		block(b, n)
		if _, err := w.Write(b); err != nil {
			return err
		}
		progress(int64(n+1) * blockSize)
	}
}

// Check reads a Stream until it ends (nil) or fails, and calls progress with the number of good
// bytes so far after each block. A wrong, missing or doubled byte is an error that says where.
func Check(rd io.Reader, progress func(int64)) error {
	got, want := make([]byte, blockSize), make([]byte, blockSize)
	for n := uint64(0); ; n++ {
		if _, err := io.ReadFull(rd, got); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("in block %d: %w", n, err)
		}
		block(want, n)
		for i := range got {
			if got[i] != want[i] {
				return fmt.Errorf("block %d: byte %d is %#02x, want %#02x (the block names itself %d)",
					n, i, got[i], want[i], binary.BigEndian.Uint64(got))
			}
		}
		progress(int64(n+1) * blockSize)
	}
}
