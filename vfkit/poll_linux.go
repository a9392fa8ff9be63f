package vfkit

import (
	"net"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/link"
)

// polledPeer is a guest of a Listener for a loop that waits for many descriptors at once. No descriptor of the guest's
// tells both when it has sent something, which comes to the Listener's socket, and when it can be sent something, so this
// is an epoll of its own (epoll(7)), which is readable when either has happened.
type polledPeer struct {
	*peer

	// Under peer.mu, -1 before Poll and after Close:
	ep     int         // readable when there is something to do
	event  int         // an eventfd in it: there are frames, or the end, or it is time to try again
	armed  bool        // the guest's own socket is in ep
	timer  *time.Timer // where frames leave by a socket that cannot tell
	closed bool

	// Of the one writer:
	arm   func(fd uintptr) // watch
	pause pause
}

var _ link.Polled = (*polledPeer)(nil)

func (p *peer) link() link.Link {
	q := &polledPeer{peer: p, ep: -1, event: -1}
	q.arm = q.watch
	return q
}

// Poll implements link.Polled. Where there is no descriptor left for it, the guest is served without.
func (q *polledPeer) Poll(f func(fd int) error) (bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false, net.ErrClosed
	}
	if q.ep < 0 {
		ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			return false, nil
		}
		event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err == nil {
			err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, event, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET})
			if err != nil {
				unix.Close(event)
			}
		}
		if err != nil {
			unix.Close(ep)
			return false, nil
		}
		q.ep, q.event = ep, event
		q.notify = q.signal
		if len(q.in) > 0 || q.over != nil {
			q.signal()
		}
	}
	return true, f(q.ep)
}

// signal makes ep readable. It is called with mu held.
func (q *polledPeer) signal() {
	if q.event >= 0 {
		one := uint64(1)
		unix.RawSyscall(unix.SYS_WRITE, uintptr(q.event), uintptr(unsafe.Pointer(&one)), 8)
	}
}

func (q *polledPeer) TryReadFrames(b *link.Batch) error {
	q.mu.Lock()
	if q.ep >= 0 { // what it tells is done below, or by who writes
		var events [2]unix.EpollEvent
		unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(q.ep), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	}
	if len(q.in) == 0 && q.over == nil {
		q.mu.Unlock()
		return link.ErrWait
	}
	return q.take(b)
}

func (q *polledPeer) TryWriteFrames(frames []link.Frame) (n int, err error) {
	switch tx := q.tx.(type) {
	case *own:
		if n, err = tx.try(frames); err == link.ErrWait && tx.rc.Control(q.arm) != nil {
			err = net.ErrClosed
		}
	case *shared:
		if n, err = tx.try(frames); err == link.ErrWait {
			if n > 0 {
				q.pause = 0
			}
			q.later()
		} else {
			q.pause = 0
		}
	}
	return n, q.wrote(err)
}

// watch has ep tell, once, when the guest's own socket takes more.
func (q *polledPeer) watch(fd uintptr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ep < 0 {
		return
	}
	op := unix.EPOLL_CTL_MOD
	if !q.armed {
		op, q.armed = unix.EPOLL_CTL_ADD, true
	}
	unix.EpollCtl(q.ep, op, int(fd), &unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLONESHOT})
}

// later has ep tell after a while.
func (q *polledPeer) later() {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
	case q.timer == nil:
		q.timer = time.AfterFunc(q.pause.next(), func() {
			q.mu.Lock()
			q.signal()
			q.mu.Unlock()
		})
	default:
		q.timer.Reset(q.pause.next())
	}
}

func (q *polledPeer) Close() error {
	err := q.peer.Close()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ep >= 0 {
		unix.Close(q.ep)
		unix.Close(q.event)
	}
	if q.timer != nil {
		q.timer.Stop()
	}
	q.ep, q.event, q.closed = -1, -1, true
	return err
}
