package link

// Counting for synthetic-network's programs: what leaves the line, where somebody has asked for it. Else it costs one look.

import (
	"sync/atomic"

	"github.com/vmnetd/vmnetd/impair"
)

// Counts has frames that leave the line counted in *t, while there is one. It is called before use.
func (w *Impaired) Counts(t *atomic.Pointer[impair.Tally]) { w.tally = t }

func (w *Impaired) counter() *impair.Tally {
	if w.tally == nil {
		return nil
	}
	return w.tally.Load()
}

// headSeen is how much of a frame is looked at: Ethernet, IPv6 with some extension headers, ports.
const headSeen = 128

// countRead counts what the guest has sent.
func (w *Impaired) countRead(b *Batch) {
	t := w.counter()
	if t == nil {
		return
	}
	var scratch [headSeen]byte
	for i, s := range b.Frames {
		var o Offload
		if i < len(b.Offloads) {
			o = b.Offloads[i]
		}
		packets, bytes := o.packets(s.Len())
		t.Add(true, impair.Count(b.Head(s, headSeen, scratch[:]), true, packets, bytes))
	}
}

// writing looks at frames before they are written: what the wire leaves of their headroom is its own.
func (w *Impaired) writing(frames []Frame) {
	w.counted = w.counted[:0]
	if w.counter() == nil {
		return
	}
	var scratch [headSeen]byte
	for i := range frames {
		f := &frames[i]
		var o Offload
		if w.takes != 0 {
			o = f.Offload()
		}
		packets, bytes := o.packets(f.Len())
		head := f.Head[Headroom:]
		if len(head) < headSeen && len(f.Body) > 0 {
			n := copy(scratch[:], head)
			for _, p := range f.Body {
				n += copy(scratch[n:], p)
			}
			head = scratch[:n]
		}
		w.counted = append(w.counted, impair.Count(head, false, packets, bytes))
	}
}

// wrote counts the first n of those that writing has seen.
func (w *Impaired) wrote(n int) {
	if t := w.counter(); t != nil && n <= len(w.counted) {
		for _, c := range w.counted[:n] {
			t.Add(false, c)
		}
	}
}

// packets is how many a frame of so many bytes will be once it is cut, and how many bytes these have.
func (o Offload) packets(n int) (packets, bytes int) {
	header, size := int(o.Header), int(o.Size)
	if o.Kind == 0 || size == 0 || n <= header+size {
		return 1, n
	}
	packets = (n - header + size - 1) / size
	return packets, n + (packets-1)*header
}
