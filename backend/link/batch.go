package link

// ChunkSize is the size of one piece of a Batch's memory. A frame of 1500 bytes straddles two chunks once in 43
// times, and gVisor's largest pooled view is as large.
const ChunkSize = 64 << 10

// readAhead is how many chunks a Batch offers to one read while reads fill what they are offered. Four drain a socket
// buffer of 256 KiB in one system call; more gained nothing where it was measured.
const readAhead = 4

// calmReads is how many reads that one chunk would have held make a Batch let go of the others: a guest with little to
// say costs 64 KiB, and a stream's odd short read none of its pace.
const calmReads = 256

// Chunk is a piece of a Batch's memory.
type Chunk struct {
	Mem  []byte // ChunkSize bytes
	Ref  any    // what the owner of the memory knows it by
	Kept bool   // set by who keeps references into Mem: written bytes are then never overwritten
}

// Batch is the memory that a Link reads into, and the frames found there. It is a byte stream in chunks: a link
// appends to it with Space and Wrote and cuts frames from its front with Peek and Take; its owner walks Frames and
// then calls Next. A frame may straddle chunks.
//
// The zero Batch is ready and takes its memory from the heap. It is not safe for use by several goroutines.
type Batch struct {
	// Frames are the whole frames of the last ReadFrames, in order.
	Frames []Span

	// Offloads are theirs, one each, of a Link that is Told; of any other there are none.
	Offloads []Offload

	// Malformed counts frames that a link passed over: too short for an Ethernet header, or too long.
	Malformed int
	// Overrun counts frames, of either way, that a link had no room for.
	Overrun int

	// Alloc makes a chunk and Free takes one back that nothing of this Batch uses any more. Both or neither.
	Alloc func() Chunk
	Free  func(Chunk)
	// Shrink, if not nil, is called when what Free was given need not be kept at hand: there is little traffic, or no
	// more.
	Shrink func()

	chunks []Chunk
	ahead  int // chunks offered to the next read
	calm   int // reads in a row that needed one only
	space  int // bytes offered to the last one
	least  int // of them, what it could not do without
	parsed int // first byte not yet in a frame, counted from the start of chunks[0]
	filled int // first free byte, counted likewise
	iov    [][]byte
}

// Span is where a frame lies in a Batch.
type Span struct{ off, n int }

// Len is the frame's length in bytes.
func (s Span) Len() int { return s.n }

// From is the span without its first n bytes.
func (s Span) From(n int) Span { return Span{s.off + n, s.n - n} }

// Upto is the span's first n bytes.
func (s Span) Upto(n int) Span { return Span{s.off, n} }

// Space returns free memory that follows what was written, at least min bytes, in pieces that are logically one.
// It is valid until the next call of another method. A link that reads whole frames, several to a Space, names the
// longest as min, and is offered more at once when it has left less than that.
func (b *Batch) Space(min int) [][]byte {
	b.ahead = max(b.ahead, 1)
	b.least = min
	min = max(min, b.ahead*ChunkSize)
	for len(b.chunks)*ChunkSize-b.filled < min {
		b.chunks = append(b.chunks, b.alloc())
	}
	b.iov = b.iov[:0]
	first := b.filled / ChunkSize
	for i := first; i < len(b.chunks); i++ {
		m := b.chunks[i].Mem
		if i == first {
			m = m[b.filled%ChunkSize:]
		}
		b.iov = append(b.iov, m)
	}
	b.space = len(b.chunks)*ChunkSize - b.filled
	return b.iov
}

// Wrote says that the first n bytes of Space hold data now.
func (b *Batch) Wrote(n int) {
	b.filled += n
	switch {
	case n == b.space, b.space-n < b.least:
		b.ahead, b.calm = min(2*b.ahead, readAhead), 0
	case n > ChunkSize:
		b.calm = 0
	default:
		b.calm++
	}
}

// Append copies p behind what was written.
func (b *Batch) Append(p []byte) {
	least := b.least
	for _, s := range b.Space(len(p)) {
		if len(p) == 0 {
			break
		}
		n := copy(s, p)
		b.filled += n
		p = p[n:]
	}
	b.least = least
}

// Unparsed is how many bytes were written and are in no frame yet.
func (b *Batch) Unparsed() int { return b.filled - b.parsed }

// Peek copies the first unparsed bytes into p and reports whether there were enough.
func (b *Batch) Peek(p []byte) bool {
	if b.Unparsed() < len(p) {
		return false
	}
	b.copy(p, b.parsed)
	return true
}

// Take passes over skip unparsed bytes, a framing's own header, and makes a frame of the n behind them. n zero makes
// none.
func (b *Batch) Take(skip, n int) {
	if n > 0 {
		b.Frames = append(b.Frames, Span{b.parsed + skip, n})
	}
	b.parsed += skip + n
}

// TakeUnfinished is Take for a frame with something left to do on it. A link that calls it does so for all its frames.
func (b *Batch) TakeUnfinished(skip, n int, o Offload) {
	b.Take(skip, n)
	b.Offloads = append(b.Offloads, o)
}

// Head returns the first n bytes of s in one piece: where they lie if they lie so, else copied to scratch, which
// must be as long.
func (b *Batch) Head(s Span, n int, scratch []byte) []byte {
	if n > s.n {
		n = s.n
	}
	c, o := s.off/ChunkSize, s.off%ChunkSize
	if o+n <= ChunkSize {
		return b.chunks[c].Mem[o : o+n]
	}
	b.copy(scratch[:n], s.off)
	return scratch[:n]
}

// Whole returns the bytes of s in one piece: where they lie if they lie so, else copied to scratch, which grows for it.
func (b *Batch) Whole(s Span, scratch *[]byte) []byte {
	if o := s.off % ChunkSize; s.n > 0 && o+s.n <= ChunkSize {
		return b.chunks[s.off/ChunkSize].Mem[o : o+s.n]
	}
	*scratch = b.AppendTo((*scratch)[:0], s)
	return *scratch
}

// Pieces calls f for each piece of s, in order: part lies in c.Mem at off.
func (b *Batch) Pieces(s Span, f func(c *Chunk, off int, part []byte)) {
	for s.n > 0 {
		c, o := s.off/ChunkSize, s.off%ChunkSize
		n := min(s.n, ChunkSize-o)
		f(&b.chunks[c], o, b.chunks[c].Mem[o:o+n])
		s = s.From(n)
	}
}

// AppendTo appends the bytes of s to p.
func (b *Batch) AppendTo(p []byte, s Span) []byte {
	for s.n > 0 {
		o := s.off % ChunkSize
		n := min(s.n, ChunkSize-o)
		p = append(p, b.chunks[s.off/ChunkSize].Mem[o:o+n]...)
		s = s.From(n)
	}
	return p
}

// Next forgets the frames and gives back the memory before the first unparsed byte.
func (b *Batch) Next() {
	b.Frames, b.Offloads = b.Frames[:0], b.Offloads[:0]
	done := b.parsed / ChunkSize
	for i := 0; i < done; i++ {
		b.free(b.chunks[i])
	}
	if done > 0 {
		b.chunks = append(b.chunks[:0], b.chunks[done:]...)
		b.parsed -= done * ChunkSize
		b.filled -= done * ChunkSize
	}
	if b.parsed == b.filled && len(b.chunks) > 0 && !b.chunks[0].Kept {
		b.parsed, b.filled = 0, 0 // small traffic stays in one warm chunk
		if keep := max(1, (b.least+ChunkSize-1)/ChunkSize); b.calm >= calmReads && len(b.chunks) > keep {
			for _, c := range b.chunks[keep:] {
				b.free(c)
			}
			clear(b.chunks[keep:])
			b.chunks, b.ahead = b.chunks[:keep], 1
			b.shrink()
		}
	}
}

// Release gives back all memory. The Batch is empty then and may be used again.
func (b *Batch) Release() {
	for _, c := range b.chunks {
		b.free(c)
	}
	b.chunks, b.Frames, b.Offloads, b.parsed, b.filled = nil, nil, nil, 0, 0
	b.shrink()
}

func (b *Batch) shrink() {
	if b.Shrink != nil {
		b.Shrink()
	}
}

func (b *Batch) alloc() Chunk {
	if b.Alloc != nil {
		return b.Alloc()
	}
	return Chunk{Mem: make([]byte, ChunkSize)}
}

func (b *Batch) free(c Chunk) {
	if b.Free != nil {
		b.Free(c)
	}
}

func (b *Batch) copy(p []byte, off int) {
	for len(p) > 0 {
		n := copy(p, b.chunks[off/ChunkSize].Mem[off%ChunkSize:])
		p, off = p[n:], off+n
	}
}

// moveUnparsed gives what is in no frame yet to another batch, which has nothing of the kind.
func (b *Batch) moveUnparsed(to *Batch) {
	for n := b.Unparsed(); n > 0; n = b.Unparsed() {
		c, o := b.parsed/ChunkSize, b.parsed%ChunkSize
		n = min(n, ChunkSize-o)
		to.Append(b.chunks[c].Mem[o : o+n])
		b.parsed += n
	}
}
