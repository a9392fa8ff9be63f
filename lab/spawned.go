//go:build unix

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// spawned is what machines have in common that are a process of ours: QEMU and User Mode Linux.
type spawned struct {
	b       *bench
	p       *process
	agent   *qga  // nil: there is none
	noAgent error // what is told then
	wg      sync.WaitGroup
	over    chan struct{} // closed once exit and err are set
	exit    int
	err     error
}

func newSpawned(b *bench, noAgent string) spawned {
	return spawned{b: b, noAgent: errors.New(noAgent), over: make(chan struct{})}
}

func (h *spawned) logf(format string, args ...any) { h.b.log.Info(fmt.Sprintf(format, args...)) }

// file is a name of the lab's file.
func (h *spawned) file(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(h.b.base, name)
}

func (h *spawned) exec(ctx context.Context, c Command) (int, error) {
	if h.agent == nil {
		return -1, h.noAgent
	}
	return h.agent.exec(ctx, c)
}

func (h *spawned) dial(ctx context.Context, network, port string) (net.Conn, error) {
	return dialUplink(ctx, h.b, network, port)
}

func (h *spawned) reachable(ctx context.Context) error {
	if h.agent == nil {
		return h.noAgent
	}
	return h.agent.reachable(ctx)
}

func (h *spawned) pids() []int {
	if h.p == nil {
		return nil
	}
	select {
	case <-h.p.ended:
		return nil
	default:
		return []int{h.p.cmd.Process.Pid}
	}
}

func (h *spawned) spaces() ([]*os.File, error) { return nil, nil }

func (h *spawned) ended() <-chan struct{} { return h.over }

func (h *spawned) status() (int, error) {
	select {
	case <-h.over:
		return h.exit, h.err
	default:
		return 0, nil
	}
}

// termPatience is how long QEMU has after SIGTERM: it closes its disks, which takes as long as writing what is still in memory.
const termPatience = 5 * time.Second

// end waits for a process that was asked to end, and kills it when ctx or its patience does.
func (h *spawned) end(ctx context.Context) error {
	patience := time.NewTimer(termPatience)
	defer patience.Stop()
	select {
	case <-h.over:
	case <-patience.C:
	case <-ctx.Done():
	}
	h.p.signal(syscall.SIGKILL)
	<-h.over
	h.wg.Wait()
	return nil
}
