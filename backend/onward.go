package backend

// Station 3, from guest to guest: the frames of one batch that go to other guests, by destination. Each lot is written
// to its guest's wire from where it was read into, in one call and on this guest's goroutine, if nothing waits there;
// what the wire does not take at once is copied into the queue. Runs in the port's reader only.

import (
	"github.com/vmnetd/vmnetd/backend/link"
)

const (
	// onwardMost is how many guests' frames are collected at a time: a guest that talks to more at once sends smaller lots.
	onwardMost = 8
	// copiedAtOnce is how many bytes of frames share one piece of memory while they wait. All of it lives as long as one
	// of them waits, so it is little beside othersPart of the queue.
	copiedAtOnce = 64 << 10
)

type onward struct {
	lots   [onwardMost]lot
	n      int
	arena  []byte
	frames []link.Frame
	pieces [][]byte
	items  []item
}

// lot is what one guest is to get.
type lot struct {
	to    *port
	spans []link.Span
}

// add notes that the frame at f goes from p to another guest.
func (o *onward) add(p, to *port, f link.Span) {
	for i := range o.lots[:o.n] {
		if l := &o.lots[i]; l.to == to {
			l.spans = append(l.spans, f)
			return
		}
	}
	if o.n == onwardMost {
		o.send(p.batch)
	}
	l := &o.lots[o.n]
	l.to, l.spans = to, append(l.spans[:0], f)
	o.n++
}

// send sends all lots.
func (o *onward) send(b *link.Batch) {
	for i := range o.lots[:o.n] {
		l := &o.lots[i]
		o.deliver(l.to, b, l.spans)
		l.to = nil
	}
	o.n = 0
}

func (o *onward) deliver(to *port, b *link.Batch, spans []link.Span) {
	if to.loop != nil {
		o.compose(b, spans)
		spans = spans[to.loop.sendNow(o.frames):]
		clear(o.frames)
		clear(o.pieces)
	}
	if len(spans) > 0 {
		o.queue(to, b, spans)
	}
}

// compose makes frames of spans where they lie: only headers are copied, to have headroom.
func (o *onward) compose(b *link.Batch, spans []link.Span) {
	o.arena, o.frames, o.pieces = o.arena[:0], o.frames[:0], o.pieces[:0]
	need := 0
	for _, s := range spans {
		need += link.Headroom + max(inHead(s), minEthernet)
	}
	if cap(o.arena) < need {
		o.arena = make([]byte, 0, need)
	}
	for _, s := range spans {
		n, at := inHead(s), len(o.arena)
		o.arena = o.arena[:at+link.Headroom]
		clear(o.arena[at:]) // whole, to a wire that takes others
		o.arena = b.AppendTo(o.arena, s.Upto(n))
		if end := at + link.Headroom + minEthernet; s.Len() < minEthernet {
			clear(o.arena[len(o.arena):end])
			o.arena = o.arena[:end]
		}
		f := link.Frame{Head: o.arena[at:len(o.arena):len(o.arena)]}
		if n < s.Len() {
			at := len(o.pieces)
			b.Pieces(s.From(n), func(_ *link.Chunk, _ int, part []byte) { o.pieces = append(o.pieces, part) })
			f.Body = o.pieces[at:len(o.pieces):len(o.pieces)]
		}
		o.frames = append(o.frames, f)
	}
}

// inHead is how much of a frame is copied to its header's piece: all of it where that costs less than one more piece.
func inHead(s link.Span) int {
	if s.Len() <= copyPayload {
		return s.Len()
	}
	return ethLen
}

// queue copies frames for a guest that reads later.
func (o *onward) queue(to *port, b *link.Batch, spans []link.Span) {
	o.items = o.items[:0]
	var mem []byte
	for _, s := range spans {
		n := link.Headroom + max(s.Len(), minEthernet)
		if cap(mem)-len(mem) < n {
			mem = make([]byte, 0, max(n, min(copiedAtOnce, n*len(spans))))
		}
		at := len(mem)
		mem = b.AppendTo(mem[:at+link.Headroom], s)
		mem = mem[:at+n] // fresh memory: what is padded is zero
		o.items = append(o.items, item{raw: link.Frame{Head: mem[at : at+n : at+n]}, size: n, other: true})
	}
	to.queue.pushAll(o.items)
	clear(o.items)
}
