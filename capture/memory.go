package capture

import (
	"bytes"
	"io"
	"sync"
)

// Memory is a Writer that keeps what it is given. Its methods may be called by anybody.
type Memory struct {
	mu     sync.Mutex
	chunks [][]byte // each but the last full
	size   int64
	more   chan struct{} // closed at the next write; nil if nobody waits
}

// memoryChunk is in what pieces memory is taken: a capture of a few packets takes little.
const memoryChunk = 64 << 10

// Write implements Writer.
func (m *Memory) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(b)
	for len(b) > 0 {
		last := len(m.chunks) - 1
		if last < 0 || len(m.chunks[last]) == memoryChunk {
			m.chunks = append(m.chunks, make([]byte, 0, memoryChunk))
			last++
		}
		c := m.chunks[last]
		k := min(len(b), memoryChunk-len(c))
		m.chunks[last] = append(c, b[:k]...)
		b = b[k:]
	}
	m.size += int64(n)
	if m.more != nil {
		close(m.more)
		m.more = nil
	}
	return n, nil
}

// From copies what there is from off on into p. Where there is nothing, more is closed when there is.
func (m *Memory) From(p []byte, off int64) (n int, more <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off >= m.size {
		if m.more == nil {
			m.more = make(chan struct{})
		}
		return 0, m.more
	}
	for off < m.size && n < len(p) {
		k := copy(p[n:], m.chunks[off/memoryChunk][off%memoryChunk:])
		n += k
		off += int64(k)
	}
	return n, nil
}

// Size is how many bytes there are.
func (m *Memory) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.size
}

// Reader reads what there is now, whole blocks, and says how much that is.
func (m *Memory) Reader() (io.Reader, int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	parts := make([]io.Reader, len(m.chunks))
	for i, c := range m.chunks {
		parts[i] = bytes.NewReader(c) // what is appended to it later is behind its end
	}
	return io.MultiReader(parts...), m.size
}
