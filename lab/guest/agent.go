package guest

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
)

// AgentName is what a program is called in order to be the agent: this package takes over before main.
const AgentName = "vmnetd-guest-agent"

// PortName is the virtio port's, as QEMU's own agent has it.
const PortName = "org.qemu.guest_agent.0"

// agentVersion is what -version prints.
const agentVersion = "vmnetd guest agent 1"

const (
	// longestLine is a request with mostInput in base64, and room for arguments. A small guest has 192 MiB for all.
	longestLine = 12 << 20
	mostInput   = 8 << 20
	// mostOutput is kept of each of a command's streams until it is asked for. QEMU's agent keeps 16 MiB.
	mostOutput = 4 << 20
	// mostCommands run, or wait to be asked for, at the same time: 64 with both streams full would be more than a small
	// guest's memory, and are a client's own fault.
	mostCommands = 64
)

// Agent answers requests of QEMU's guest agent protocol. The zero value is ready.
type Agent struct {
	// Shutdown ends the machine: powerdown, halt or reboot. nil: the agent refuses.
	Shutdown func(mode string) error

	start func(*exec.Cmd) error // nil: its Start

	mu       sync.Mutex
	commands map[int]*running
}

// running is a command that was started and whose end nobody has heard of yet.
type running struct {
	out, err capped
	captured bool
	done     bool
	state    *os.ProcessState
}

// capped keeps the beginning of what is written to it.
type capped struct {
	b   []byte
	cut bool
}

func (c *capped) Write(p []byte) (int, error) {
	n := min(len(p), mostOutput-len(c.b))
	c.b = append(c.b, p[:n]...)
	c.cut = c.cut || n < len(p)
	return len(p), nil
}

// Serve answers the requests that come from rw, one after the other, until it ends.
func (a *Agent) Serve(rw io.ReadWriter) error {
	r := bufio.NewReaderSize(rw, 64<<10)
	for {
		line, over, err := ReadLine(r, longestLine)
		if err != nil {
			return err
		}
		if over {
			line = []byte("{}") // has an error for its answer
		}
		if answer := a.answer(line); answer != nil {
			if _, err := rw.Write(answer); err != nil {
				return err
			}
		}
	}
}

// ReadLine reads a request or an answer that is not empty. A byte 0xff, which UTF-8 has not, has what came before it
// forgotten: a client that connects anew sends it first. Of a line that is longer than longest there is only that it is over.
func ReadLine(r *bufio.Reader, longest int) (line []byte, over bool, err error) {
	for {
		part, err := r.ReadSlice('\n')
		if i := bytes.LastIndexByte(part, 0xff); i >= 0 {
			line, part, over = nil, part[i+1:], false
		}
		if over = over || len(line)+len(part) > longest; over {
			line = nil
		} else {
			line = append(line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case err != nil:
			return nil, false, err
		case over:
			return nil, true, nil
		case len(bytes.TrimSpace(line)) == 0:
			line = nil
		default:
			return line, false, nil
		}
	}
}

type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id"`
}

type response struct {
	Return any             `json:"return,omitempty"`
	Error  *failure        `json:"error,omitempty"`
	ID     json.RawMessage `json:"id,omitempty"`
}

type failure struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// answer is that of one request, with its newline; nil if it has none.
func (a *Agent) answer(line []byte) []byte {
	var q request
	r := response{}
	if err := json.Unmarshal(line, &q); err != nil || q.Execute == "" {
		r.Error = &failure{"GenericError", "not a request: want {\"execute\": …}"}
	} else {
		var err error
		if r.Return, err = a.do(&q); errors.Is(err, errUnknown) {
			r.Error = &failure{"CommandNotFound", "The command " + q.Execute + " has not been found"}
		} else if err != nil {
			r.Error = &failure{"GenericError", err.Error()}
		}
		r.ID = q.ID
	}
	if r.Error != nil {
		r.Return = nil
	} else if r.Return == nil {
		return nil
	}
	b, err := json.Marshal(&r)
	if err != nil { // an id that is no JSON cannot have come through
		return nil
	}
	b = append(b, '\n')
	if q.Execute == "guest-sync-delimited" {
		b = append([]byte{0xff}, b...)
	}
	return b
}

var errUnknown = errors.New("unknown command")

// nothing is the answer of who has nothing to say.
type nothing struct{}

var names = []string{"guest-sync", "guest-sync-delimited", "guest-ping", "guest-info", "guest-exec", "guest-exec-status",
	"guest-get-host-name", "guest-network-get-interfaces", "guest-shutdown"}

func (a *Agent) do(q *request) (any, error) {
	switch q.Execute {
	case "guest-sync", "guest-sync-delimited":
		var in struct{ ID int64 }
		err := arguments(q, &in)
		return in.ID, err
	case "guest-ping":
		return nothing{}, nil
	case "guest-info":
		type command struct {
			Name     string `json:"name"`
			Enabled  bool   `json:"enabled"`
			Succeeds bool   `json:"success-response"`
		}
		var all []command
		for _, n := range names {
			all = append(all, command{n, true, n != "guest-shutdown"})
		}
		return struct {
			Version  string    `json:"version"`
			Commands []command `json:"supported_commands"`
		}{agentVersion, all}, nil
	case "guest-get-host-name":
		name, err := os.Hostname()
		return map[string]string{"host-name": name}, err
	case "guest-network-get-interfaces":
		return interfaces()
	case "guest-exec":
		return a.exec(q)
	case "guest-exec-status":
		return a.status(q)
	case "guest-shutdown":
		in := struct{ Mode string }{"powerdown"}
		if err := arguments(q, &in); err != nil {
			return nil, err
		}
		switch in.Mode {
		case "powerdown", "halt", "reboot":
		default:
			return nil, fmt.Errorf("mode %q: want powerdown, halt or reboot", in.Mode)
		}
		if a.Shutdown == nil {
			return nil, errors.New("this machine is not the agent's to switch off")
		}
		return nil, a.Shutdown(in.Mode) // nobody is answered whom the machine goes down under
	}
	return nil, errUnknown
}

func arguments(q *request, in any) error {
	if len(q.Arguments) == 0 {
		return nil
	}
	if err := json.Unmarshal(q.Arguments, in); err != nil {
		return fmt.Errorf("%s: arguments: %w", q.Execute, err)
	}
	return nil
}

func (a *Agent) exec(q *request) (any, error) {
	var in struct {
		Path    string   `json:"path"`
		Arg     []string `json:"arg"`
		Env     []string `json:"env"`
		Input   string   `json:"input-data"`
		Capture bool     `json:"capture-output"`
	}
	if err := arguments(q, &in); err != nil {
		return nil, err
	}
	if in.Path == "" {
		return nil, errors.New("guest-exec: no path")
	}
	input, err := base64.StdEncoding.DecodeString(in.Input)
	if err != nil {
		return nil, fmt.Errorf("guest-exec: input-data: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.commands) >= mostCommands {
		return nil, fmt.Errorf("guest-exec: %d commands run, or have ended and were not asked for: no more", mostCommands)
	}
	cmd := exec.Command(in.Path, in.Arg...)
	if in.Env != nil {
		cmd.Env = in.Env
	}
	if len(input) > 0 {
		cmd.Stdin = bytes.NewReader(input)
	}
	r := &running{captured: in.Capture}
	if in.Capture {
		cmd.Stdout, cmd.Stderr = &r.out, &r.err
	}
	ownSession(cmd)
	// What it left in the background may hold its pipes. Its output counts until it has ended itself.
	cmd.WaitDelay = outputDelay
	start := a.start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("guest-exec: %w", err)
	}
	pid := cmd.Process.Pid
	if a.commands == nil {
		a.commands = map[int]*running{}
	}
	a.commands[pid] = r
	go func() {
		cmd.Wait()
		a.mu.Lock()
		defer a.mu.Unlock()
		r.done, r.state = true, cmd.ProcessState
	}()
	return map[string]int{"pid": pid}, nil
}

type execStatus struct {
	Exited       bool   `json:"exited"`
	ExitCode     *int   `json:"exitcode,omitempty"`
	Signal       *int   `json:"signal,omitempty"`
	Out          string `json:"out-data,omitempty"`
	Err          string `json:"err-data,omitempty"`
	OutTruncated bool   `json:"out-truncated,omitempty"`
	ErrTruncated bool   `json:"err-truncated,omitempty"`
}

func (a *Agent) status(q *request) (any, error) {
	var in struct{ PID int }
	if err := arguments(q, &in); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.commands[in.PID]
	if r == nil {
		return nil, fmt.Errorf("guest-exec-status: no command with PID %d", in.PID)
	}
	if !r.done {
		return execStatus{}, nil
	}
	delete(a.commands, in.PID)
	s := execStatus{Exited: true}
	code, signal := exitOf(r.state)
	if signal > 0 {
		s.Signal = &signal
	} else {
		s.ExitCode = &code
	}
	if r.captured {
		s.Out, s.Err = base64.StdEncoding.EncodeToString(r.out.b), base64.StdEncoding.EncodeToString(r.err.b)
		s.OutTruncated, s.ErrTruncated = r.out.cut, r.err.cut
	}
	return s, nil
}

func interfaces() (any, error) {
	type address struct {
		Addr string `json:"ip-address"`
		Type string `json:"ip-address-type"`
		Bits int    `json:"prefix"`
	}
	type iface struct {
		Name  string    `json:"name"`
		MAC   string    `json:"hardware-address,omitempty"`
		Addrs []address `json:"ip-addresses,omitempty"`
	}
	list, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	all := []iface{}
	for _, l := range list {
		f := iface{Name: l.Name, MAC: l.HardwareAddr.String()}
		addrs, err := l.Addrs()
		if err != nil { // it has just gone
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				bits, _ := n.Mask.Size()
				kind := "ipv6"
				if n.IP.To4() != nil {
					kind = "ipv4"
				}
				f.Addrs = append(f.Addrs, address{n.IP.String(), kind, bits})
			}
		}
		all = append(all, f)
	}
	return all, nil
}
