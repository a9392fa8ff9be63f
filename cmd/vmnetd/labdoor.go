package main

// The lab's second socket, beside the control socket: what does not fit HTTP. A request is a line of JSON, its answer too;
// then come a node's namespaces as descriptors, or the bytes of a conversation with a port of it, or of its console.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/lab"
)

// doorRequest is what a client wants.
type doorRequest struct {
	Op      string `json:"op"` // spaces, dial, console, said
	Node    string `json:"node"`
	Network string `json:"network,omitempty"` // of dial: tcp, udp, or with the family, tcp4
	Port    string `json:"port,omitempty"`
	Tail    int    `json:"tail,omitempty"` // of console: how much of what was said comes first
}

// doorAnswer is what it gets before anything else.
type doorAnswer struct {
	Error string   `json:"error,omitempty"`
	Hint  string   `json:"hint,omitempty"`
	Env   []string `json:"env,omitempty"` // of spaces: the node's own
	Dir   string   `json:"dir,omitempty"`
	Files int      `json:"files,omitempty"` // that come with this line's first byte
}

const (
	// maxDoorLine: a node's environment, of some variables; Linux takes none longer than 128 KiB (MAX_ARG_STRLEN).
	maxDoorLine = 1 << 20
	// doorPatience is how long a client may take to say what it wants, and a node to take a conversation.
	doorPatience = 30 * time.Second
	// maxDoorCalls at once: shells, editors' connections over ssh, and scripts, for a class of thirty with several each.
	maxDoorCalls = 256
	// maxSpaceFiles: user, network, mount and UTS; there is room for kinds to come.
	maxSpaceFiles = 8
)

// labServer answers there.
type labServer struct {
	lab *lab.Lab
	log *slog.Logger
	// node finds one, with an error for people.
	node func(name string) (*lab.Node, error)
}

// serve answers until ctx is done. It closes l, and returns when all conversations have ended.
func (s *labServer) serve(ctx context.Context, l *net.UnixListener) {
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var calls sync.WaitGroup
	defer calls.Wait()
	places := make(chan struct{}, maxDoorCalls)
	for {
		c, err := l.AcceptUnix()
		switch {
		case err == nil:
		case ctx.Err() != nil, !temporary(err):
			return
		default:
			s.log.Warn("cannot take a call", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond): // descriptors come back
			}
			continue
		}
		if !ownPeer(c) {
			s.log.Warn("a call of another user's is refused", "peer", peerName(c))
			c.Close()
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			answerDoor(c, doorAnswer{Error: fmt.Sprintf("%d calls are open already", maxDoorCalls), Hint: "end one of them"})
			c.Close()
			continue
		}
		calls.Go(func() {
			defer func() { <-places }()
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			s.call(ctx, c)
		})
	}
}

func answerDoor(c *net.UnixConn, a doorAnswer, files ...*os.File) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	c.SetWriteDeadline(time.Now().Add(doorPatience))
	defer c.SetWriteDeadline(time.Time{})
	return sendFiles(c, append(b, '\n'), files)
}

func (s *labServer) call(ctx context.Context, c *net.UnixConn) {
	c.SetReadDeadline(time.Now().Add(doorPatience))
	in := bufio.NewReader(io.LimitReader(c, maxDoorLine))
	line, err := in.ReadBytes('\n')
	if err != nil {
		return // it has thought better of it
	}
	c.SetReadDeadline(time.Time{})
	var req doorRequest
	if err := json.Unmarshal(line, &req); err != nil {
		answerDoor(c, doorAnswer{Error: "no request: " + err.Error()})
		return
	}
	rest, _ := in.Peek(in.Buffered())
	n, err := s.node(req.Node)
	if err == nil {
		switch req.Op {
		case "spaces":
			err = s.spaces(c, n)
		case "dial":
			err = s.dial(ctx, c, n, req, bytes.Clone(rest))
		case "said":
			if con := n.Console(); con != nil && answerDoor(c, doorAnswer{}) == nil {
				c.Write(con.Tail(0))
			}
		case "console":
			err = s.console(ctx, c, n, req, bytes.Clone(rest))
		default:
			err = fmt.Errorf("no such request: %q", req.Op)
		}
	}
	if err != nil {
		a := doorAnswer{Error: err.Error()}
		var hint hintError
		if errors.As(err, &hint) {
			a.Hint = hint.hint
		}
		answerDoor(c, a)
	}
}

// spaces hands the node's namespaces over. An error is one before the answer.
func (s *labServer) spaces(c *net.UnixConn, n *lab.Node) error {
	files, err := n.Spaces()
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	t := n.Topology()
	a := doorAnswer{Dir: t.Dir, Files: len(files)}
	for k, v := range t.Env {
		a.Env = append(a.Env, k+"="+v)
	}
	if err := answerDoor(c, a, files...); err != nil {
		s.log.Warn("a node's namespaces could not be handed over", "node", n.Name(), "error", err)
	}
	return nil
}

func (s *labServer) dial(ctx context.Context, c *net.UnixConn, n *lab.Node, req doorRequest, first []byte) error {
	network := req.Network
	if network == "" {
		network = "tcp"
	}
	dialing, cancel := context.WithTimeout(ctx, doorPatience)
	to, err := n.Dial(dialing, network, req.Port)
	cancel()
	if err != nil {
		return err
	}
	defer to.Close()
	if answerDoor(c, doorAnswer{}) == nil {
		relay(c, to, first)
	}
	return nil
}

// relay carries bytes both ways until both have ended, or one has failed. first has come from a already.
func relay(a, b net.Conn, first []byte) {
	var both sync.WaitGroup
	half := func(to, from net.Conn, first []byte) {
		if _, err := to.Write(first); len(first) > 0 && err != nil {
			from.Close()
			return
		}
		_, err := io.Copy(to, from)
		if w, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
			err = w.CloseWrite()
		} else if !ok {
			err = io.ErrClosedPipe
		}
		if err != nil {
			to.Close()
			from.Close()
		}
	}
	both.Go(func() { half(b, a, first) })
	both.Go(func() { half(a, b, nil) })
	both.Wait()
}

func (s *labServer) console(ctx context.Context, c *net.UnixConn, n *lab.Node, req doorRequest, first []byte) error {
	con := n.Console()
	if con == nil {
		return fmt.Errorf("node %s has no console", n.Name())
	}
	if answerDoor(c, doorAnswer{}) != nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	var both sync.WaitGroup
	defer both.Wait()
	defer c.Close()
	defer cancel()
	both.Go(func() {
		defer cancel()
		buf := make([]byte, 4<<10)
		for p := first; ; {
			if len(p) > 0 {
				typing, done := context.WithTimeout(ctx, time.Second) // as on a serial line, what nobody takes is lost
				err := con.Send(typing, p)
				done()
				if err != nil && ctx.Err() == nil {
					fmt.Fprintf(c, "\r\n[%v]\r\n", err)
				}
			}
			k, err := c.Read(buf)
			if errors.Is(err, io.EOF) { // it says no more, and may listen on
				<-ctx.Done()
				return
			}
			if err != nil {
				return
			}
			p = buf[:k]
		}
	})
	con.Watch(ctx, c, req.Tail)
	return nil
}

// callDoor asks at a lab's second socket, and returns the conn behind the answer, with the files that came.
func callDoor(ctx context.Context, d labDir, req doorRequest) (*net.UnixConn, doorAnswer, []*os.File, error) {
	var a doorAnswer
	nc, err := (&net.Dialer{}).DialContext(ctx, "unix", d.file(labDoor))
	if err != nil {
		return nil, a, nil, hintError{fmt.Errorf("lab %s does not answer: %w", d.name, err), fmt.Sprintf("'vmnetd lab down %s' takes away what is left of it", d.name)}
	}
	c := nc.(*net.UnixConn)
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	fail := func(err error, files []*os.File) (*net.UnixConn, doorAnswer, []*os.File, error) {
		c.Close()
		for _, f := range files {
			f.Close()
		}
		return nil, a, nil, err
	}
	b, err := json.Marshal(req)
	if err != nil {
		return fail(err, nil)
	}
	if _, err := c.Write(append(b, '\n')); err != nil {
		return fail(fmt.Errorf("lab %s: %w", d.name, err), nil)
	}
	line, files, err := receiveLine(c)
	if err != nil {
		return fail(fmt.Errorf("lab %s: %w", d.name, err), files)
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return fail(fmt.Errorf("lab %s: %w", d.name, err), files)
	}
	if a.Error != "" {
		err := error(errors.New(a.Error))
		if a.Hint != "" {
			err = hintError{err, a.Hint}
		}
		return fail(err, files)
	}
	if len(files) != a.Files {
		return fail(fmt.Errorf("lab %s: %d descriptors came, want %d", d.name, len(files), a.Files), files)
	}
	return c, a, files, nil
}

// receiveLine reads a line and what files come with it, and nothing behind it: that is the conversation's.
func receiveLine(c *net.UnixConn) (line []byte, files []*os.File, err error) {
	b := make([]byte, 1)
	for len(line) < maxDoorLine {
		n, got, err := receiveFiles(c, b)
		files = append(files, got...)
		if n == 0 || err != nil {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, files, err
		}
		if b[0] == '\n' {
			return line, files, nil
		}
		line = append(line, b[0])
	}
	return nil, files, errors.New("the answer does not end")
}
