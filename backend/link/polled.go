package link

import "errors"

// ErrWait is what a call of Polled gets that would have to wait.
var ErrWait = errors.New("link: would wait")

// Polled is what a Link may offer beside, on systems with readiness: a descriptor for a loop that waits for many at
// once, and calls that never wait. A Link that is used so is used by no other means.
type Polled interface {
	Link

	// Poll begins such use and calls f with the descriptor, which stays valid until Close. It reports whether the
	// Link can be used so.
	Poll(f func(fd int) error) (bool, error)

	// TryReadFrames is ReadFrames, but with ErrWait when there is no frame. It reads once: the descriptor is to be
	// watched by level.
	TryReadFrames(b *Batch) error

	// TryWriteFrames is WriteFrames, but takes only the frames that it need not wait for; n < len(frames) with
	// ErrWait. What it has sent of a frame that it took, and has not sent yet, it keeps a copy of and sends first at
	// the next call, which may come without frames.
	TryWriteFrames(frames []Frame) (n int, err error)
}
