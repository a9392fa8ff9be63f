package channel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// maxUnread is how much output of one command a Client keeps for a reader that does not come.
// A command that writes more is ended; 64 MiB is far above what any test prints and far below
// what would hurt the machine.
const maxUnread = 64 << 20

// Client is the host's end. It starts one goroutine, which ends when the stream does.
type Client struct {
	rw    io.ReadWriteCloser
	ready chan struct{} // closed at the guest's first hello
	done  chan struct{} // closed when the reading goroutine has ended

	wmu sync.Mutex // held across one message
	enc *json.Encoder

	mu    sync.Mutex
	last  uint64
	procs map[uint64]*Proc
	err   error // why the stream ended; set before done is closed
}

// NewClient speaks to the guest at the far end of rw, and owns rw from then on.
func NewClient(rw io.ReadWriteCloser) *Client {
	c := &Client{
		rw: rw, enc: json.NewEncoder(rw), procs: map[uint64]*Proc{},
		ready: make(chan struct{}), done: make(chan struct{}),
	}
	go c.read()
	return c
}

// Ready returns when the guest answers, or with the reason why it cannot any more.
func (c *Client) Ready(ctx context.Context) error {
	// The one hello waits in the port until the guest opens it.
	if err := c.send(request{Hello: true}); err != nil {
		return err
	}
	select {
	case <-c.ready:
		return nil
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return fmt.Errorf("no answer from the guest: %w", context.Cause(ctx))
	}
}

// Done is closed when the stream has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the stream and every command's Stdout, Stderr and Wait.
func (c *Client) Close() error {
	err := c.rw.Close()
	<-c.done
	return err
}

func (c *Client) send(r request) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.enc.Encode(r); err != nil {
		return fmt.Errorf("command channel: %w", err)
	}
	return nil
}

func (c *Client) read() {
	defer close(c.done)
	dec := json.NewDecoder(c.rw)
	for {
		var m reply
		err := dec.Decode(&m)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("command channel: the guest is gone")
			} else {
				err = fmt.Errorf("command channel: the guest is gone: %w", err)
			}
			c.mu.Lock()
			c.err = err
			procs := c.procs
			c.procs = nil
			c.mu.Unlock()
			for _, p := range procs {
				p.end(Exit{Code: -1}, err)
			}
			return
		}
		if m.Hello {
			select {
			case <-c.ready:
			default:
				close(c.ready)
			}
			continue
		}
		c.mu.Lock()
		p := c.procs[m.ID]
		if m.Exit != nil {
			delete(c.procs, m.ID)
		}
		c.mu.Unlock()
		if p == nil {
			continue
		}
		if !p.Stdout.add(m.Out) || !p.Stderr.add(m.Err) {
			p.Kill()
		}
		if m.Exit != nil {
			var err error
			if m.Exit.Error != "" {
				err = errors.New(m.Exit.Error)
			}
			p.end(*m.Exit, err)
		}
	}
}

// Start runs a command with the guest's sh. Its output is kept until it is read.
func (c *Client) Start(command string) (*Proc, error) {
	c.mu.Lock()
	if c.procs == nil {
		c.mu.Unlock()
		return nil, c.err
	}
	c.last++
	p := &Proc{c: c, id: c.last, ended: make(chan struct{}), Stdout: newOutput(), Stderr: newOutput()}
	c.procs[p.id] = p
	c.mu.Unlock()
	if err := c.send(request{ID: p.id, Run: command}); err != nil {
		c.mu.Lock()
		delete(c.procs, p.id)
		c.mu.Unlock()
		return nil, err
	}
	return p, nil
}

// Proc is one command in the guest.
type Proc struct {
	c  *Client
	id uint64

	// Stdout and Stderr are the command's output as it comes; io.EOF once it has ended.
	Stdout, Stderr *Output

	ended chan struct{} // closed after exit and err are set
	exit  Exit
	err   error
}

// Write gives bytes to the command's standard input.
func (p *Proc) Write(b []byte) (int, error) {
	for n := 0; n < len(b); n += chunk {
		if err := p.c.send(request{ID: p.id, In: b[n:min(n+chunk, len(b))]}); err != nil {
			return n, err
		}
	}
	return len(b), nil
}

// CloseWrite ends the command's standard input.
func (p *Proc) CloseWrite() error { return p.c.send(request{ID: p.id, EOF: true}) }

// Signal sends a signal, by its Linux number, to the command and its children.
func (p *Proc) Signal(n int) error { return p.c.send(request{ID: p.id, Signal: n}) }

// Kill is Signal(SIGKILL).
func (p *Proc) Kill() error { return p.Signal(9) }

// Done is closed when the command has ended.
func (p *Proc) Done() <-chan struct{} { return p.ended }

// Wait returns how the command ended. Its error says that the command could not be started, that
// the guest went away, or that ctx ended first; the command then goes on.
func (p *Proc) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.ended:
		return p.exit, p.err
	case <-ctx.Done():
		return Exit{Code: -1}, context.Cause(ctx)
	}
}

func (p *Proc) end(e Exit, err error) {
	p.exit, p.err = e, err
	close(p.ended)
	p.Stdout.close()
	p.Stderr.close()
}

// Output is the output of a command, kept until it is read.
type Output struct {
	mu     sync.Mutex
	more   *sync.Cond
	unread bytes.Buffer
	closed bool
	full   bool
}

func newOutput() *Output {
	o := &Output{}
	o.more = sync.NewCond(&o.mu)
	return o
}

// add reports whether there was room.
func (o *Output) add(b []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.unread.Len()+len(b) > maxUnread {
		o.full = true
	}
	if !o.full {
		o.unread.Write(b)
		o.more.Broadcast()
	}
	return !o.full
}

func (o *Output) close() {
	o.mu.Lock()
	o.closed = true
	o.more.Broadcast()
	o.mu.Unlock()
}

// Read gives what has come, or waits for more until the command has ended.
func (o *Output) Read(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.unread.Len() == 0 && !o.closed {
		o.more.Wait()
	}
	if o.unread.Len() == 0 {
		if o.full {
			return 0, fmt.Errorf("the command was ended: it printed more than %d bytes that nobody read", maxUnread)
		}
		return 0, io.EOF
	}
	return o.unread.Read(b)
}
