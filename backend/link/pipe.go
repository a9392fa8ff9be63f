package link

import (
	"io"
	"net"
	"sync"
)

// Pipe returns two ends of a wire in memory: what one end writes, the other reads. depth is how many frames stand
// between them before a writer waits, as a socket's buffer would have it.
func Pipe(depth int) (Link, Link) {
	ab, ba := make(chan []byte, depth), make(chan []byte, depth)
	a := &pipe{in: ba, out: ab, done: make(chan struct{})}
	b := &pipe{in: ab, out: ba, done: make(chan struct{})}
	a.peer, b.peer = b.done, a.done
	return a, b
}

type pipe struct {
	in   <-chan []byte
	out  chan<- []byte
	peer <-chan struct{} // closed when the other end is
	done chan struct{}
	once sync.Once
}

func (p *pipe) ReadFrames(b *Batch) error {
	select { // after Close nothing is read, even if something waits
	case <-p.done:
		return net.ErrClosed
	default:
	}
	select {
	case f := <-p.in:
		p.take(b, f)
	default:
		select {
		case f := <-p.in:
			p.take(b, f)
		case <-p.done:
			return net.ErrClosed
		case <-p.peer:
			select { // what was sent before the close still arrives
			case f := <-p.in:
				p.take(b, f)
			default:
				return io.EOF
			}
		}
	}
	for len(b.Frames) < cap(p.in) {
		select {
		case f := <-p.in:
			p.take(b, f)
		default:
			return nil
		}
	}
	return nil
}

func (p *pipe) take(b *Batch, f []byte) {
	b.Append(f)
	b.Take(0, len(f))
}

func (p *pipe) WriteFrames(frames []Frame) (int, error) {
	for i, f := range frames {
		select {
		case <-p.done:
			return i, net.ErrClosed
		case <-p.peer:
			return i, io.ErrClosedPipe
		default:
		}
		select {
		case p.out <- f.AppendTo(nil):
		case <-p.done:
			return i, net.ErrClosed
		case <-p.peer:
			return i, io.ErrClosedPipe
		}
	}
	return len(frames), nil
}

func (p *pipe) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}
