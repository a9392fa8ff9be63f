package link

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/impair"
)

// polledPipe says that a pipe's end has a descriptor to wait for, which nobody does here.
type polledPipe struct {
	Link
	frames chan []byte
}

func (p polledPipe) Poll(f func(fd int) error) (bool, error) { return true, f(-1) }

func (p polledPipe) TryReadFrames(b *Batch) error {
	select {
	case f := <-p.frames:
		b.Append(f)
		b.Take(0, len(f))
		return nil
	default:
		return ErrWait
	}
}

func (p polledPipe) TryWriteFrames(frames []Frame) (int, error) { return p.Link.WriteFrames(frames) }

// Who waits for descriptors is given a line's timers to wait for. One that he cannot is Go's.
func TestImpairTimer(t *testing.T) {
	for _, fails := range []bool{false, true} {
		guest, host := Pipe(64)
		defer guest.Close()
		wire := polledPipe{host, make(chan []byte, 1)}
		w, err := Impair(wire, nil)
		if err != nil {
			t.Fatal(err)
		}
		type timer struct {
			c            syscall.RawConn
			fire, failed func()
		}
		var timers []timer
		due := make(chan struct{}, 16)
		w.OnDue(func() { due <- struct{}{} }, func() {}, nil)
		w.OnTimer(func(c syscall.RawConn, fire, failed func()) { timers = append(timers, timer{c, fire, failed}) })
		if ok, err := w.Poll(func(int) error { return nil }); !ok || err != nil {
			t.Fatal(ok, err)
		}
		const late = 20 * time.Millisecond
		if err := w.Set(&impair.Settings{Up: impair.Way{Latency: late}}); err != nil {
			t.Fatal(err)
		}
		if len(timers) != 2 {
			t.Fatalf("%d timers, want one a way", len(timers))
		}
		up := timers[0]
		began := time.Now()
		wire.frames <- numbered(1, 60)
		var b Batch
		if err := w.TryReadFrames(&b); !errors.Is(err, ErrWait) {
			t.Fatalf("a frame came at once: %v", err)
		}
		for len(due) > 0 {
			<-due // that the settings changed
		}
		if fails {
			up.failed()
		} else {
			var n int
			up.c.Control(func(fd uintptr) {
				fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				for {
					if n, err = unix.Poll(fds, 30000); err != unix.EINTR {
						break
					}
				}
			})
			if n != 1 || err != nil {
				t.Fatalf("the timer did not come to its end: %d, %v", n, err)
			}
			up.fire()
		}
		select {
		case <-due:
		case <-time.After(30 * time.Second):
			t.Fatal("nobody is told that the frame has come due")
		}
		if d := time.Since(began); d < late {
			t.Errorf("it came due after %v", d)
		}
		b.Next()
		if err := w.TryReadFrames(&b); err != nil || len(b.Frames) != 1 {
			t.Errorf("%d frames, %v", len(b.Frames), err)
		}
		w.Close()
		for i, x := range timers {
			if fails && i == 0 {
				continue
			}
			if err := x.c.Control(func(uintptr) {}); err == nil {
				t.Error("a timer is open after Close")
			}
		}
		b.Release()
	}
}
