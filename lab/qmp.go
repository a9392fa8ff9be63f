package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// monitor talks to QEMU itself (QMP, docs/interop/qmp-spec of QEMU): is it up, why did it end, press the power button.
type monitor struct {
	conn  net.Conn
	ready chan struct{} // closed when it takes commands
	ended chan struct{} // closed when it has gone

	mu     sync.Mutex
	reason string // why it shuts down: of the last event SHUTDOWN
}

// qmpLongest is how long a line may be. Events and answers to what we ask have less than 1 KiB.
const qmpLongest = 64 << 10

// qmpPatience bounds a request's way to QEMU, which reads at once.
const qmpPatience = 5 * time.Second

func newMonitor(conn net.Conn) *monitor {
	m := &monitor{conn: conn, ready: make(chan struct{}), ended: make(chan struct{})}
	go m.read()
	return m
}

func (m *monitor) read() {
	defer close(m.ended)
	r := bufio.NewScanner(m.conn)
	r.Buffer(nil, qmpLongest)
	greeted := false
	for r.Scan() {
		var line struct {
			QMP    json.RawMessage
			Return json.RawMessage
			Event  string
			Data   struct{ Reason string }
		}
		if json.Unmarshal(r.Bytes(), &line) != nil {
			continue
		}
		switch {
		case line.QMP != nil && !greeted:
			if m.send(context.Background(), "qmp_capabilities") != nil {
				return
			}
			greeted = true
		case line.Return != nil && greeted:
			select {
			case <-m.ready:
			default:
				close(m.ready)
			}
		case line.Event == "SHUTDOWN":
			m.mu.Lock()
			m.reason = line.Data.Reason
			m.mu.Unlock()
		}
	}
}

func (m *monitor) send(ctx context.Context, command string) error {
	deadline := time.Now().Add(qmpPatience)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	m.conn.SetWriteDeadline(deadline)
	_, err := fmt.Fprintf(m.conn, "{\"execute\":%q}\n", command)
	return err
}

// powerdown presses the button.
func (m *monitor) powerdown(ctx context.Context) error {
	select {
	case <-m.ready:
		return m.send(ctx, "system_powerdown")
	default:
		return errors.New("QEMU's monitor is not ready")
	}
}

// crashed says whether it went down because it restarted, which a machine that may not does not survive.
func (m *monitor) crashed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reason == "guest-reset" || strings.HasSuffix(m.reason, "panic")
}

// Close ends it.
func (m *monitor) Close() { m.conn.Close() }
