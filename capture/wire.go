package capture

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vmnetd/vmnetd/backend/link"
)

// Wire is a Link around a Link, which captures come to and go from while it runs. What else is put around a wire, to lose
// or to delay frames, is put around this one: a capture shows what truly crosses.
type Wire struct {
	inner link.Link
	taps  atomic.Pointer[[]*Tap]
	mu    sync.Mutex // held to change taps
}

var (
	_ link.Polled     = (*Wire)(nil)
	_ link.Limited    = (*Wire)(nil)
	_ link.Prefixed   = (*Wire)(nil)
	_ link.Offloading = (*Wire)(nil)
)

// Around returns a wire around l, which is used by no other means from then on.
func Around(l link.Link) *Wire { return &Wire{inner: l} }

func (w *Wire) add(t *Tap) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*Tap
	if old := w.taps.Load(); old != nil {
		list = slices.Clone(*old)
	}
	list = append(list, t)
	w.taps.Store(&list)
}

func (w *Wire) remove(t *Tap) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.taps.Load()
	if old == nil {
		return
	}
	list := slices.DeleteFunc(slices.Clone(*old), func(x *Tap) bool { return x == t })
	if len(list) == 0 {
		w.taps.Store(nil)
	} else {
		w.taps.Store(&list)
	}
}

// ReadFrames implements link.Link.
func (w *Wire) ReadFrames(b *link.Batch) error {
	old := len(b.Frames)
	err := w.inner.ReadFrames(b)
	w.read(b, old)
	return err
}

func (w *Wire) read(b *link.Batch, old int) {
	if taps := w.taps.Load(); taps != nil && len(b.Frames) > old {
		for _, t := range *taps {
			t.read(b, b.Frames[old:])
		}
	}
}

// WriteFrames implements link.Link.
func (w *Wire) WriteFrames(frames []link.Frame) (int, error) {
	n, err := w.inner.WriteFrames(frames)
	w.wrote(frames[:n])
	return n, err
}

func (w *Wire) wrote(frames []link.Frame) {
	if taps := w.taps.Load(); taps != nil && len(frames) > 0 {
		for _, t := range *taps {
			t.wrote(frames)
		}
	}
}

// Close implements link.Link.
func (w *Wire) Close() error { return w.inner.Close() }

// Poll implements link.Polled, for a Link that does.
func (w *Wire) Poll(f func(fd int) error) (bool, error) {
	if p, ok := w.inner.(link.Polled); ok {
		return p.Poll(f)
	}
	return false, nil
}

// TryReadFrames implements link.Polled.
func (w *Wire) TryReadFrames(b *link.Batch) error {
	old := len(b.Frames)
	err := w.inner.(link.Polled).TryReadFrames(b)
	w.read(b, old)
	return err
}

// TryWriteFrames implements link.Polled.
func (w *Wire) TryWriteFrames(frames []link.Frame) (int, error) {
	n, err := w.inner.(link.Polled).TryWriteFrames(frames)
	w.wrote(frames[:n])
	return n, err
}

// MaxFrame implements link.Limited.
func (w *Wire) MaxFrame() int {
	if l, ok := w.inner.(link.Limited); ok {
		return l.MaxFrame()
	}
	return 0
}

// Prefix implements link.Prefixed.
func (w *Wire) Prefix() int {
	if p, ok := w.inner.(link.Prefixed); ok {
		return p.Prefix()
	}
	return link.Headroom
}

// Offloads implements link.Offloading.
func (w *Wire) Offloads() (gives, takes link.Offloads) { return link.OffloadsOf(w.inner) }
