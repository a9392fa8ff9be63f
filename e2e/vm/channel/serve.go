//go:build unix

package channel

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Serve is the guest's end: it runs what the host asks for until the stream ends, and then kills
// what still runs and closes rw.
func Serve(rw io.ReadWriteCloser) error {
	s := &server{enc: json.NewEncoder(rw), cmds: map[uint64]*command{}}
	dec := json.NewDecoder(rw)
	for {
		var m request
		if err := dec.Decode(&m); err != nil {
			s.mu.Lock()
			for _, c := range s.cmds {
				c.signal(syscall.SIGKILL)
			}
			s.mu.Unlock()
			// A virtio-serial port whose host is gone takes no bytes and gives no error: writers
			// would wait for good.
			closed := rw.Close()
			s.wg.Wait()
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return errors.Join(err, closed)
		}
		switch {
		case m.Hello:
			s.wg.Go(func() { s.send(reply{Hello: true}) }) // reading, which sees the end, never waits for writing
		case m.Run != "":
			s.run(m.ID, m.Run)
		default:
			s.mu.Lock()
			c := s.cmds[m.ID]
			s.mu.Unlock()
			if c == nil {
				continue // it has just ended
			}
			if m.Signal != 0 {
				c.signal(syscall.Signal(m.Signal))
			}
			if len(m.In) > 0 || m.EOF {
				c.feed(m.In, m.EOF)
			}
		}
	}
}

type server struct {
	wmu sync.Mutex // held across one message
	enc *json.Encoder

	mu   sync.Mutex
	cmds map[uint64]*command
	wg   sync.WaitGroup
}

type command struct {
	cmd *exec.Cmd

	// Input goes through a queue of its own, so that a command that does not read holds up
	// nobody else.
	mu    sync.Mutex
	more  *sync.Cond
	queue [][]byte
	eof   bool
}

// send cannot report an error usefully: the stream's reader sees its end.
func (s *server) send(r reply) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	_ = s.enc.Encode(r)
}

func (s *server) run(id uint64, line string) {
	c := &command{cmd: exec.Command("/bin/sh", "-c", line)}
	c.more = sync.NewCond(&c.mu)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // signals reach its children too
	c.cmd.Stdout = writer(func(b []byte) { s.send(reply{ID: id, Out: b}) })
	c.cmd.Stderr = writer(func(b []byte) { s.send(reply{ID: id, Err: b}) })
	// A child left in the background must not hold up the word that the command ended; a second
	// is time for output that is still in the pipe.
	c.cmd.WaitDelay = time.Second
	in, err := c.cmd.StdinPipe()
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		s.wg.Go(func() { s.send(reply{ID: id, Exit: &Exit{Code: 127, Error: err.Error()}}) })
		return
	}
	s.mu.Lock()
	s.cmds[id] = c
	s.mu.Unlock()

	s.wg.Go(func() { c.pump(in) })
	s.wg.Go(func() {
		err := c.cmd.Wait()
		s.mu.Lock()
		delete(s.cmds, id)
		s.mu.Unlock()
		c.feed(nil, true)
		s.send(reply{ID: id, Exit: exitOf(c.cmd, err)})
	})
}

func exitOf(cmd *exec.Cmd, err error) *Exit {
	if cmd.ProcessState == nil {
		return &Exit{Code: 127, Error: err.Error()}
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return &Exit{Code: 128 + int(ws.Signal())}
	}
	return &Exit{Code: cmd.ProcessState.ExitCode()}
}

func (c *command) signal(n syscall.Signal) {
	// Gone already is fine. The group outlives its leader while a child holds the output.
	_ = syscall.Kill(-c.cmd.Process.Pid, n)
}

func (c *command) feed(b []byte, eof bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.eof {
		return
	}
	if len(b) > 0 {
		c.queue = append(c.queue, b)
	}
	c.eof = eof
	c.more.Signal()
}

func (c *command) pump(in io.WriteCloser) {
	defer in.Close()
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && !c.eof {
			c.more.Wait()
		}
		queue, eof := c.queue, c.eof
		c.queue = nil
		c.mu.Unlock()
		for _, b := range queue {
			if _, err := in.Write(b); err != nil {
				return // it ended or closed its input
			}
		}
		if eof {
			return
		}
	}
}

// writer cuts what a command writes into messages.
type writer func([]byte)

func (w writer) Write(b []byte) (int, error) {
	for n := 0; n < len(b); n += chunk {
		w(b[n:min(n+chunk, len(b))])
	}
	return len(b), nil
}
