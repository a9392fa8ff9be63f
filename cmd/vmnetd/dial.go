package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// dialler is a door where we knock: a guest whose VMM listens, as QEMU does with server=on. There is one guest at a
// time, and when it has gone it is called again, for ever.
type dialler struct {
	to    string // the address as it was given
	dial  func(context.Context) (net.Conn, error)
	guest func(net.Conn) *caller
	log   *slog.Logger

	ctx  context.Context
	end  context.CancelFunc
	gone chan struct{} // tells that the guest has gone
	wait time.Duration // before the next try
	at   time.Time     // when the last guest came
	down bool          // told that nobody answers
}

// A VMM that is being started listens within a tenth of a second; one that is not there is looked for every few
// seconds, which costs nothing and is soon enough for who starts it by hand.
const (
	redialLeast = 100 * time.Millisecond
	redialMost  = 5 * time.Second
	dialMost    = 10 * time.Second // a try: a TCP peer that does not answer is not to hold up the next one
)

func newDialler(d *door, to string, dial func(context.Context) (net.Conn, error), guest func(net.Conn) *caller) *dialler {
	x := &dialler{to: to, dial: dial, guest: guest, log: d.log, gone: make(chan struct{}, 1), wait: redialLeast}
	x.ctx, x.end = context.WithCancel(context.Background())
	x.gone <- struct{}{}
	return x
}

func (x *dialler) accept() (*caller, error) {
	select {
	case <-x.gone:
	case <-x.ctx.Done():
		return nil, net.ErrClosed
	}
	if !x.at.IsZero() {
		if time.Since(x.at) > redialMost { // it was a guest, and not somebody who hangs up
			x.wait = redialLeast
		}
		if !x.pause() {
			return nil, net.ErrClosed
		}
	}
	for {
		ctx, cancel := context.WithTimeout(x.ctx, dialMost)
		c, err := x.dial(ctx)
		cancel()
		if err == nil {
			x.at = time.Now()
			if x.down {
				x.log.Info("guest's VMM answers", "at", x.to)
			}
			x.down = false
			g := x.guest(c)
			end := g.close
			g.close = sync.OnceFunc(func() {
				end()
				x.gone <- struct{}{}
			})
			return g, nil
		}
		if x.ctx.Err() != nil {
			return nil, net.ErrClosed
		}
		if !x.down { // once, until it answers
			x.log.Warn("guest's VMM does not answer; trying again and again", "at", x.to, "error", err)
		}
		x.down = true
		if !x.pause() {
			return nil, net.ErrClosed
		}
	}
}

// pause waits, longer each time, and reports false at the end.
func (x *dialler) pause() bool {
	t := time.NewTimer(x.wait)
	defer t.Stop()
	x.wait = min(2*x.wait, redialMost)
	select {
	case <-t.C:
		return true
	case <-x.ctx.Done():
		return false
	}
}

func (x *dialler) Close() error {
	x.end()
	return nil
}

func (x *dialler) Addr() net.Addr { return dialled(x.to) }

// dialled is an address that is not ours.
type dialled string

func (a dialled) Network() string { return "dial" }
func (a dialled) String() string  { return string(a) }

// dialTo reads an address to dial.
func dialTo(kind, rest string) (dial func(context.Context) (net.Conn, error), err error) {
	switch kind {
	case "vsock":
		cid, port, err := parseVsock(rest, false)
		if err != nil {
			return nil, err
		}
		return dialVsock(cid, port), nil
	case "unix":
		if rest == "" {
			return nil, usagef("no path")
		}
		if len(rest) > maxUnixPath {
			return nil, usagef("the path has %d bytes and a socket's may have %d: choose a shorter one, in /run or /tmp", len(rest), maxUnixPath)
		}
	default:
		host, port, err := net.SplitHostPort(rest)
		if err != nil || host == "" || port == "" {
			return nil, usagef("%q is no place to dial: want dial:%s:HOST:PORT", rest, kind)
		}
	}
	var d net.Dialer
	return func(ctx context.Context) (net.Conn, error) {
		c, err := d.DialContext(ctx, kind, rest)
		if err != nil {
			return nil, fmt.Errorf("cannot dial: %w", err)
		}
		return c, nil
	}, nil
}
