package lab

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/lab/guest"
)

// qga talks to a guest's agent, QEMU's own or the small guest's, in QEMU's guest agent protocol (docs/interop/qemu-ga-ref of
// QEMU). What comes from there is a guest's: it is bounded, and whoever waits for it stops when his context ends.
//
// One request is under way at a time: lock is held by who made it. The agent must have answered a sync before; a request
// without an answer, and an answer that is none, ask for another.
type qga struct {
	conn    net.Conn
	longest int // bytes of an answer

	lock    chan struct{} // holds one token
	answers chan []byte   // lines, from the one reader
	ended   chan struct{} // closed when the reader has ended
	wg      sync.WaitGroup

	// Of the holder of the lock:
	synced bool
	id     int64     // of the last sync
	asked  time.Time // when that was sent
}

const (
	// qgaLongest is an answer with both of a command's streams, of which QEMU's agent keeps 16 MiB each, in base64.
	qgaLongest = 48 << 20
	// qgaInput is what a command may read: QEMU's JSON parser takes no token beyond 64 MiB, our agent 8 MiB before base64.
	qgaInput = 8 << 20
	// qgaAgain is when another sync is sent to an agent that did not answer one: it comes up, or its guest was restarted,
	// and what it had not read was lost. Those of an hour fit into a socket's buffer, and one that is full takes no more.
	qgaAgain = 2 * time.Second
	// qgaPatience bounds the wait for an answer, beside the caller's own context. Agents answer at once, but an emulated
	// guest that is just booting may need seconds for its first.
	qgaPatience = 20 * time.Second
)

// newQGA takes conn over. Close it when its guest has ended.
func newQGA(conn net.Conn) *qga { return limitedQGA(conn, qgaLongest) }

func limitedQGA(conn net.Conn, longest int) *qga {
	g := &qga{conn: conn, longest: longest, lock: make(chan struct{}, 1), answers: make(chan []byte, 1), ended: make(chan struct{})}
	g.lock <- struct{}{}
	g.wg.Go(g.read)
	return g
}

// Close ends all that waits.
func (g *qga) Close() error {
	err := g.conn.Close()
	g.wg.Wait()
	return err
}

// read hands answers on. Nobody waits for one that comes unasked: the last of those is kept, for sync to pass over.
func (g *qga) read() {
	defer close(g.ended)
	r := bufio.NewReaderSize(g.conn, 64<<10)
	for {
		line, over, err := guest.ReadLine(r, g.longest)
		if err != nil {
			return
		}
		if over {
			line = []byte("too long") // is seen to be none
		}
		select {
		case <-g.answers:
		default:
		}
		g.answers <- line // there is room: no other writes
	}
}

// qgaError is what the agent itself said.
type qgaError struct{ Class, Desc string }

func (e *qgaError) Error() string { return "the guest's agent: " + printable(e.Desc) }

// printable is a guest's text for an error or a log line.
func printable(s string) string {
	const most = 300 // a line or three
	if len(s) > most {
		s = s[:most] + "…"
	}
	q := fmt.Sprintf("%q", s)
	return q[1 : len(q)-1]
}

var (
	errAgentGone   = errors.New("the guest's agent is gone: its machine has ended")
	errAgentSilent = errors.New("the guest's agent does not answer")
)

// hold takes the lock.
func (g *qga) hold(ctx context.Context) error {
	select {
	case <-g.lock:
		return nil
	case <-g.ended:
		return errAgentGone
	case <-ctx.Done():
		return fmt.Errorf("the guest's agent is busy: %w", context.Cause(ctx))
	}
}

func (g *qga) release() { g.lock <- struct{}{} }

// send writes a request. An agent that does not read must not keep us.
func (g *qga) send(ctx context.Context, b []byte) error {
	deadline := time.Now().Add(qgaPatience)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	g.conn.SetWriteDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { g.conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := g.conn.Write(b); err != nil {
		// Part of it may be there: the next sync's 0xff has the agent forget that.
		g.synced = false
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", errAgentSilent, context.Cause(ctx))
		}
		select {
		case <-g.ended:
			return errAgentGone
		default:
			return fmt.Errorf("%w: %w", errAgentSilent, err)
		}
	}
	return nil
}

// next waits for an answer.
func (g *qga) next(ctx context.Context, wait <-chan time.Time) ([]byte, error) {
	select {
	case line := <-g.answers:
		return line, nil
	case <-g.ended:
		return nil, errAgentGone
	case <-wait:
		return nil, errAgentSilent
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", errAgentSilent, context.Cause(ctx))
	}
}

// sync has the agent answer a number that nobody knew before, and passes over all that comes earlier. The lock is held.
func (g *qga) sync(ctx context.Context) error {
	if g.synced {
		return nil
	}
	deadline := time.NewTimer(qgaPatience)
	defer deadline.Stop()
	for {
		if time.Since(g.asked) >= qgaAgain {
			g.id++
			// 0xff ends what an agent may be in the middle of.
			b := append([]byte{0xff}, fmt.Appendf(nil, `{"execute":"guest-sync-delimited","arguments":{"id":%d}}`+"\n", g.id)...)
			g.asked = time.Now()
			if err := g.send(ctx, b); err != nil {
				return err
			}
		}
		again := time.NewTimer(time.Until(g.asked.Add(qgaAgain)))
		select {
		case line := <-g.answers:
			again.Stop()
			var a struct{ Return *int64 }
			if json.Unmarshal(line, &a) != nil || a.Return == nil {
				continue
			}
			switch id := *a.Return; {
			case id == g.id:
				g.synced, g.asked = true, time.Time{}
				return nil
			case 0 < id && id < g.id:
				g.asked = time.Now() // it is on its way to the last one; what comes before that is none of ours
			}
		case <-again.C:
		case <-g.ended:
			again.Stop()
			return errAgentGone
		case <-deadline.C:
			again.Stop()
			return errAgentSilent
		case <-ctx.Done():
			again.Stop()
			return fmt.Errorf("%w: %w", errAgentSilent, context.Cause(ctx))
		}
	}
}

// request asks for one thing and decodes the answer into out.
func (g *qga) request(ctx context.Context, execute string, arguments, out any) error {
	if err := g.hold(ctx); err != nil {
		return err
	}
	defer g.release()
	if err := g.sync(ctx); err != nil {
		return err
	}
	q := struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{execute, arguments}
	b, err := json.Marshal(&q)
	if err != nil {
		return err
	}
	if err := g.send(ctx, append(b, '\n')); err != nil {
		return err
	}
	wait := time.NewTimer(qgaPatience)
	defer wait.Stop()
	line, err := g.next(ctx, wait.C)
	if err != nil {
		g.synced = false
		return err
	}
	var a struct {
		Return json.RawMessage
		Error  *qgaError
	}
	if err := json.Unmarshal(line, &a); err != nil {
		g.synced = false
		return fmt.Errorf("the guest's agent answered %s with what is no JSON: %s", execute, printable(string(line[:min(len(line), 80)])))
	}
	switch {
	case a.Error != nil:
		return a.Error
	case a.Return == nil:
		g.synced = false
		return fmt.Errorf("the guest's agent answered %s with neither a result nor an error: %s", execute, printable(string(line[:min(len(line), 80)])))
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(a.Return, out); err != nil {
		g.synced = false
		return fmt.Errorf("the guest's agent answered %s with something else: %w", execute, err)
	}
	return nil
}

// reachable says whether the agent is there: ping.
func (g *qga) reachable(ctx context.Context) error { return g.request(ctx, "guest-ping", nil, nil) }

// exec runs a command to its end and returns its exit status. The protocol hands input over beforehand and output
// afterwards. When ctx ends first, the command is killed.
func (g *qga) exec(ctx context.Context, c Command) (int, error) {
	if len(c.Args) == 0 {
		return -1, errors.New("no command")
	}
	args := c.Args
	if c.Dir != "" || len(c.Env) > 0 {
		// The protocol has no folder, and its environment takes the place of the agent's own.
		script, more := "", []string{"env"}
		more = append(append(more, c.Env...), args...)
		if c.Dir != "" {
			script = `cd -- "$1" || exit 126; shift; `
			more = append([]string{c.Dir}, more...)
		}
		args = append([]string{"sh", "-c", script + `exec "$@"`, "sh"}, more...)
	}
	in := struct {
		Path    string   `json:"path"`
		Arg     []string `json:"arg"`
		Input   string   `json:"input-data,omitempty"`
		Capture bool     `json:"capture-output"`
	}{Path: args[0], Arg: args[1:], Capture: true}
	if c.Stdin != nil {
		b, err := readInput(ctx, c.Stdin)
		if err != nil {
			return -1, err
		}
		in.Input = base64.StdEncoding.EncodeToString(b)
	}
	var started struct{ PID int64 }
	if err := g.request(ctx, "guest-exec", &in, &started); err != nil {
		return -1, fmt.Errorf("%s: %w", c.Args[0], err)
	}
	if started.PID <= 0 {
		return -1, fmt.Errorf("%s: the guest's agent does not say which process it is", c.Args[0])
	}
	s, err := g.wait(ctx, started.PID)
	if err != nil {
		if ctx.Err() != nil {
			g.kill(started.PID)
		}
		return -1, fmt.Errorf("%s: %w", c.Args[0], err)
	}
	for _, o := range []struct {
		to   io.Writer
		data []byte
		cut  bool
		name string
	}{{c.Stdout, s.Out, s.OutTruncated, "output"}, {c.Stderr, s.Err, s.ErrTruncated, "error output"}} {
		if o.to == nil {
			continue
		}
		if _, err := o.to.Write(o.data); err != nil {
			return -1, fmt.Errorf("%s: its %s: %w", c.Args[0], o.name, err)
		}
		if o.cut {
			return -1, fmt.Errorf("%s: the guest's agent keeps %d bytes of its %s, and there was more: have it write to a file", c.Args[0], len(o.data), o.name)
		}
	}
	switch {
	case s.Signal != nil:
		return 128 + *s.Signal, nil // as a shell has it
	case s.ExitCode != nil:
		return *s.ExitCode, nil
	}
	return -1, fmt.Errorf("%s: the guest's agent does not say how it ended", c.Args[0])
}

type qgaStatus struct {
	Exited       bool
	ExitCode     *int
	Signal       *int
	Out          []byte `json:"out-data"`
	Err          []byte `json:"err-data"`
	OutTruncated bool   `json:"out-truncated"`
	ErrTruncated bool   `json:"err-truncated"`
}

// Between two looks at a command: most are over at once, an agent's answer takes a millisecond, and who waits for a long one
// does not notice a quarter of a second.
const (
	qgaLookFirst = 5 * time.Millisecond
	qgaLookMost  = 250 * time.Millisecond
)

func (g *qga) wait(ctx context.Context, pid int64) (*qgaStatus, error) {
	for pause := qgaLookFirst; ; pause = min(pause*3/2, qgaLookMost) {
		var s qgaStatus
		if err := g.request(ctx, "guest-exec-status", map[string]int64{"pid": pid}, &s); err != nil {
			return nil, err
		}
		if s.Exited {
			return &s, nil
		}
		select {
		case <-time.After(pause):
		case <-g.ended:
			return nil, errAgentGone
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// qgaKill is for the goodbye to a command whose caller has gone.
const qgaKill = 2 * time.Second

// kill ends a command in the guest and has its agent forget it, as far as that can be had.
func (g *qga) kill(pid int64) {
	ctx, cancel := context.WithTimeout(context.Background(), qgaKill)
	defer cancel()
	in := map[string]any{"path": "kill", "arg": []string{"-9", fmt.Sprint(pid)}}
	var started struct{ PID int64 }
	if g.request(ctx, "guest-exec", in, &started) == nil {
		g.wait(ctx, started.PID)
		g.wait(ctx, pid)
	}
}

// readInput reads all of a command's input, which may be a terminal or a socket that never ends.
func readInput(ctx context.Context, r io.Reader) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		b, err := io.ReadAll(io.LimitReader(r, qgaInput+1))
		done <- result{b, err}
	}()
	select {
	case got := <-done:
		if got.err != nil {
			return nil, fmt.Errorf("input: %w", got.err)
		}
		if len(got.b) > qgaInput {
			return nil, fmt.Errorf("input: more than the %d MiB that the guest's agent takes at once", qgaInput>>20)
		}
		return got.b, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("input: not at its end: %w", context.Cause(ctx))
	}
}
