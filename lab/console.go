package lab

// Station 5: what a node says on its serial line, or what its command writes, bounded, for all who watch. The console keeps
// the last of it in a ring; who watches has a place in it and reads on at his own speed. So nobody waits for a watcher, and
// one who is too slow finds that the ring has gone on. Console.mu guards all but the conns' own bytes.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"sync"
	"time"

	"github.com/charmbracelet/x/ansi"
)

const (
	// consoleKept is how much a console keeps: some 15,000 lines, ten times what a distribution says as it boots. A hundred
	// nodes that flood take 100 MiB.
	consoleKept = 1 << 20
	// consoleRate is how many bytes a second are taken from a node. A serial line of 115,200 baud does a 700th, and what
	// comes faster is nobody's to read; a node in a loop waits for its own pipe and costs the lab a hundredth of a processor.
	consoleRate = 8 << 20
	// consoleBurst is what is taken at once after a pause: more than a boot is.
	consoleBurst = 2 << 20
	// consoleChunk is how much is moved at a time: a pipe's capacity (pipe(7)).
	consoleChunk = 64 << 10
	// consoleLine is how long a line may be for Match; longer ones are looked at in parts. What people wait for is in the
	// first of terminals' 4096 (N_TTY_BUF_SIZE).
	consoleLine = 4 << 10
	// consoleTail is what a conn of Serve gets first: a few screens full.
	consoleTail = 16 << 10
	// consoleConns is how many may watch by Serve at once. Each holds a chunk and two goroutines.
	consoleConns = 64
	// consolePatience is how long a node has to take input that somebody types, before it is lost as on a serial line.
	consolePatience = time.Second
	// consoleDrain is how long what is still in a node's pipe is read for once the node has been stopped: a full pipe takes
	// a tenth of it.
	consoleDrain = 50 * time.Millisecond
	// What a process has said before it ended may still be in its pipe. The pipe's end says that all is read; where children
	// of its keep it open, that nothing has come for quietSteps times quietStep, or quietMost.
	quietStep, quietSteps, quietMost = 20 * time.Millisecond, 5, time.Second
)

// Errors of Send.
var (
	ErrNoInput       = errors.New("nobody reads the console's input")
	errConsoleClosed = errors.New("the console is closed: its node is gone")
)

// Console is what a node says and hears. It lasts as long as the node, through all restarts.
type Console struct {
	mu     sync.Mutex
	ring   []byte // grows to consoleKept, and then goes round
	end    uint64 // how much was ever said; the ring's last byte is before it
	born   uint64 // where what the node says since its last start begins
	wake   chan struct{}
	closed chan struct{}
	input  writeCloser // nil: nobody reads
	lines  map[*line]bool
	wg     sync.WaitGroup

	sending sync.Mutex // one writer to input at a time, so that none is cut in two
}

type writeCloser interface {
	io.WriteCloser
	SetWriteDeadline(time.Time) error
}

// line is something that a console reads from.
type line struct {
	r interface {
		io.ReadCloser
		SetReadDeadline(time.Time) error
	}
	cut  chan struct{} // closed when it is to end
	once sync.Once
}

func newConsole() *Console {
	return &Console{wake: make(chan struct{}), closed: make(chan struct{}), lines: map[*line]bool{}}
}

// Files returns the ends for a process: in is its standard input, out its standard output and error. They are pipes, so
// that it may open /dev/stdout. The caller closes both once the process has them; until then the console holds what it says.
func (c *Console) Files() (in, out *os.File, err error) {
	in, ourIn, err := pipeToChild()
	if err != nil {
		return nil, nil, fmt.Errorf("a console's pipe: %w", err)
	}
	ourOut, out, err := pipeFromChild()
	if err != nil {
		in.Close()
		ourIn.Close()
		return nil, nil, fmt.Errorf("a console's pipe: %w", err)
	}
	l := &line{r: ourOut, cut: make(chan struct{})}
	if !c.attach(l, ourIn) {
		for _, f := range []*os.File{in, ourIn, ourOut, out} {
			f.Close()
		}
		return nil, nil, errConsoleClosed
	}
	go c.read(l, nil)
	return in, out, nil
}

// Carry is for a machine whose console is a conn: it carries both ways until the conn ends, or the node, and closes it.
func (c *Console) Carry(conn net.Conn) error {
	l := &line{r: conn, cut: make(chan struct{})}
	if !c.attach(l, conn) {
		conn.Close()
		return errConsoleClosed
	}
	c.read(l, conn)
	return nil
}

func (c *Console) attach(l *line, in writeCloser) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.closed:
		return false
	default:
	}
	old := c.input
	c.input = in
	c.lines[l] = true
	c.wg.Add(1)
	if old != nil {
		go old.Close() // whoever writes to it holds it up for a moment
	}
	return true
}

// read takes what comes by a line, until it ends. own is its input, if that ends with it.
func (c *Console) read(l *line, own writeCloser) {
	defer c.wg.Done()
	defer func() {
		l.r.Close()
		c.mu.Lock()
		delete(c.lines, l)
		if own != nil && c.input == own {
			c.input = nil
		}
		close(c.wake)
		c.wake = make(chan struct{})
		c.mu.Unlock()
	}()
	buf := make([]byte, 4<<10) // most nodes say little; one that fills it gets a large one
	var owed time.Time         // when what was taken would have come at consoleRate
	for {
		n, err := l.r.Read(buf)
		if n > 0 {
			c.Write(buf[:n])
		}
		if err != nil {
			return
		}
		if n == len(buf) && n < consoleChunk {
			buf = make([]byte, consoleChunk)
		}
		now := time.Now()
		if first := now.Add(-consoleBurst * time.Second / consoleRate); owed.Before(first) {
			owed = first
		}
		owed = owed.Add(time.Duration(n) * time.Second / consoleRate)
		if wait := owed.Sub(now); wait > 0 {
			select {
			case <-l.cut:
			case <-time.After(wait):
			}
		}
	}
}

// began says that the node is started: what Match looks at begins here.
func (c *Console) began() {
	c.mu.Lock()
	c.born = c.end
	c.mu.Unlock()
}

// quiet waits until what a process that has ended said is read.
func (c *Console) quiet() {
	begin, last, still := time.Now(), c.said(), 0
	for still < quietSteps && time.Since(begin) < quietMost {
		c.mu.Lock()
		open, more := len(c.lines), c.wake
		c.mu.Unlock()
		if open == 0 {
			return
		}
		select {
		case <-more: // said, or at its end
		case <-time.After(quietStep):
		}
		if now := c.said(); now != last {
			last, still = now, 0
		} else {
			still++
		}
	}
}

// hangUp ends what the console reads from and writes to, of a node that has stopped.
func (c *Console) hangUp() {
	c.mu.Lock()
	in := c.input
	c.input = nil
	for l := range c.lines {
		l.once.Do(func() { close(l.cut) })
		l.r.SetReadDeadline(time.Now().Add(consoleDrain))
	}
	c.mu.Unlock()
	if in != nil {
		if _, same := in.(net.Conn); !same { // a conn is its reader's, who drains it first
			in.Close()
		}
	}
	c.wg.Wait()
}

// close ends the console for all who watch.
func (c *Console) close() {
	c.mu.Lock()
	select {
	case <-c.closed:
	default:
		close(c.closed)
	}
	c.mu.Unlock()
	c.hangUp()
}

// Write adds what somebody says in the node's place: the lab's own remarks.
func (c *Console) Write(p []byte) (int, error) {
	n := len(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end += uint64(n)
	if len(p) > consoleKept {
		p = p[len(p)-consoleKept:]
	}
	if room := consoleKept - len(c.ring); room > 0 && len(p) > 0 {
		k := min(room, len(p))
		c.ring = append(c.ring, p[:k]...)
		p = p[k:]
	}
	for len(p) > 0 { // the ring is full: byte i of all stands at i mod its size
		at := int((c.end - uint64(len(p))) % consoleKept)
		p = p[copy(c.ring[at:], p):]
	}
	close(c.wake)
	c.wake = make(chan struct{})
	return n, nil
}

// from copies what was said from at on into buf, at most what fits, and says how much of it is not kept any more. more is
// closed when there is more, if n is 0.
func (c *Console) from(at uint64, buf []byte) (n int, missed uint64, more <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if first := c.end - uint64(len(c.ring)); at < first {
		missed = first - at
		at = first
	}
	for at < c.end && n < len(buf) {
		i := int(at % consoleKept)
		k := copy(buf[n:], c.ring[i:min(len(c.ring), i+int(c.end-at))])
		n += k
		at += uint64(k)
	}
	return n, missed, c.wake
}

// back is the place tail bytes before the end, or the beginning of a line behind it; tail 0 is all that is kept.
func (c *Console) back(tail int) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.end - uint64(len(c.ring))
	if tail <= 0 || tail >= len(c.ring) {
		return first
	}
	at := c.end - uint64(tail)
	for i := at; i < c.end; i++ {
		if c.ring[(i-1)%consoleKept] == '\n' {
			return i
		}
	}
	return at
}

// Send is input to the node. It fails if nobody takes it before ctx ends.
func (c *Console) Send(ctx context.Context, p []byte) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	c.mu.Lock()
	in := c.input
	c.mu.Unlock()
	if in == nil {
		return ErrNoInput
	}
	in.SetWriteDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { in.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := in.Write(p)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("the node does not read its console: %w", context.Cause(ctx))
	}
	return fmt.Errorf("%w: %w", ErrNoInput, err)
}

// Tail is the last of what it said, from the beginning of a line: at most max bytes of what is kept, 0 for all.
func (c *Console) Tail(max int) []byte {
	at := c.back(max)
	c.mu.Lock()
	size := c.end - at
	c.mu.Unlock()
	buf := make([]byte, min(size, consoleKept))
	n, _, _ := c.from(at, buf)
	return buf[:n]
}

// LastLine is the last line that says something, since the node was last started, without colours: for messages.
func (c *Console) LastLine() string {
	c.mu.Lock()
	said := c.end - c.born
	c.mu.Unlock()
	if said == 0 {
		return ""
	}
	tail := c.Tail(int(min(said, consoleLine)))
	for len(tail) > 0 {
		i := bytes.LastIndexByte(tail, '\n')
		if s := plain(tail[i+1:]); s != "" {
			return s
		}
		tail = tail[:max(i, 0)]
	}
	return ""
}

// plain is a line as people read it: without what it tells a terminal.
func plain(b []byte) string {
	s := ansi.Strip(string(bytes.ToValidUTF8(b, []byte("?"))))
	return string(bytes.TrimSpace(bytes.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, []byte(s))))
}

// Watch carries what the node says to w, beginning with at most tail bytes of what it said, until ctx ends, the node is
// gone, or w fails. Who is slow misses some and is told how much.
func (c *Console) Watch(ctx context.Context, w io.Writer, tail int) error {
	c.mu.Lock()
	at := c.end
	c.mu.Unlock()
	if tail > 0 {
		at = c.back(tail)
	}
	buf := make([]byte, consoleChunk)
	for {
		n, missed, more := c.from(at, buf)
		if missed > 0 {
			if _, err := fmt.Fprintf(w, "\r\n[%d bytes of the console are missed here: they came too fast]\r\n", missed); err != nil {
				return err
			}
		}
		at += missed + uint64(n)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			continue
		}
		select {
		case <-more:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.closed:
			return nil
		}
	}
}

// Match waits until a line that the node says, or has said since it was last started, matches, and returns it. A line that
// has not ended yet, such as a prompt, counts. What a line tells a terminal, colours say, is not looked at.
func (c *Console) Match(ctx context.Context, re *regexp.Regexp) (string, error) {
	c.mu.Lock()
	at := c.born
	c.mu.Unlock()
	var held []byte // of a line that has not ended
	buf := make([]byte, consoleChunk)
	for {
		n, missed, more := c.from(at, buf)
		at += missed + uint64(n)
		if missed > 0 {
			held = held[:0]
		}
		for rest := buf[:n]; len(rest) > 0; {
			piece, after, whole := bytes.Cut(rest, []byte("\n"))
			if over := len(held) + len(piece) - consoleLine; over > 0 {
				// A line too long: its first part has to do, with what stands over the seam.
				piece, after, whole = rest[:len(piece)-over], rest[len(piece)-over:], false
			}
			held, rest = append(held, piece...), after
			if s := plain(held); (whole || len(rest) == 0 || len(held) >= consoleLine) && re.MatchString(s) {
				return s, nil
			}
			if whole {
				held = held[:0]
			} else if len(held) >= consoleLine {
				held = append(held[:0], held[consoleLine/2:]...)
			}
		}
		if n > 0 {
			continue
		}
		select {
		case <-more:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-c.closed:
			return "", errConsoleClosed
		}
	}
}

// Serve has each conn of ln be the console: first what was said last, then all that is, and what comes is the node's input,
// plain bytes both ways. It returns when ln is closed or the node gone, once all conns have ended.
func (c *Console) Serve(ln net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer ln.Close()
	wg.Go(func() {
		select {
		case <-c.closed:
			ln.Close()
		case <-ctx.Done():
		}
	})
	slots := make(chan struct{}, consoleConns)
	for {
		conn, err := ln.Accept()
		if err != nil {
			select {
			case <-c.closed:
				return nil
			default:
			}
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.SetWriteDeadline(time.Now().Add(consolePatience))
			fmt.Fprintf(conn, "%d others watch this console: no more can\r\n", consoleConns)
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			c.attend(ctx, conn)
		})
	}
}

// attend is one conn of Serve.
func (c *Console) attend(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { conn.Close() }) // ends both directions
	defer stop()
	defer conn.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		buf := make([]byte, 4<<10)
		for {
			n, err := conn.Read(buf)
			if n > 0 {
				sctx, done := context.WithTimeout(ctx, consolePatience)
				c.Send(sctx, buf[:n]) // else it is lost, as on a line that nobody reads
				done()
			}
			if err != nil {
				if err == io.EOF { // printf 'reboot\r' | nc -U …: what the node says to it is still seen
					select {
					case <-time.After(consolePatience):
					case <-ctx.Done():
					}
				}
				cancel()
				return
			}
		}
	})
	c.Watch(ctx, conn, consoleTail)
}

// said is how much was ever said.
func (c *Console) said() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end
}
