//go:build linux

package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/vmnetd/vmnetd/e2e/traffic"
)

func tcp(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("tcp", flag.ContinueOnError)
	send := fs.Int64("send", 0, "send `N` bytes, counted and hashed")
	seed := fs.Uint64("seed", 1, "the seed of the bytes")
	end := fs.String("close", "write", "after sending: `write` ends our half and reads on, none reads on, full closes, reset breaks off")
	quick := fs.Bool("quick", false, "bytes and sums that an emulated processor makes fast")
	show := fs.Bool("show", false, "print what came back as text, too")
	timeout := fs.Duration("timeout", 30*time.Second, "for all of it")
	if err := parse(fs, args, "ADDR:PORT", 1, 1); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	r := struct {
		traffic.Report
		Text string `json:"text,omitempty"`
	}{}
	began := time.Now()
	err := func() error {
		var d net.Dialer
		nc, err := d.DialContext(ctx, "tcp", fs.Arg(0))
		if err != nil {
			return err
		}
		c := nc.(*net.TCPConn)
		defer c.Close()
		stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) }) // long past: wake everything
		defer stop()
		r.Local, r.Remote = c.LocalAddr().String(), c.RemoteAddr().String()
		// Read while sending: an echo of more than the buffers hold would stop otherwise.
		var text limited
		write, read := r.Send, r.Receive
		if *quick {
			write, read = r.SendQuick, r.ReceiveQuick
		}
		received := make(chan error, 1)
		if *end == "write" || *end == "none" {
			go func() { received <- read(io.TeeReader(c, &text)) }()
		}
		if err := write(c, *seed, *send); err != nil {
			return err
		}
		switch *end {
		case "write":
			if err := c.CloseWrite(); err != nil {
				return err
			}
		case "none":
		case "full":
			return nil
		case "reset":
			return c.SetLinger(0)
		default:
			return fmt.Errorf("-close=%s: want write, none, full or reset", *end)
		}
		err = <-received
		if *show {
			r.Text = string(text)
		}
		return err
	}()
	r.Finish(err, began)
	return say(r)
}

// limited keeps the first 4 KiB of what is written to it: enough for a banner or a page.
type limited []byte

func (l *limited) Write(b []byte) (int, error) {
	*l = append(*l, b[:min(len(b), 4096-len(*l))]...)
	return len(b), nil
}

// progressLine is what stream prints while it runs.
type progressLine struct {
	Bytes int64 `json:"bytes"`
	At    int64 `json:"at"` // by the guest's clock, in nanoseconds since 1970: lines come late
}

func stream(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("stream", flag.ContinueOnError)
	dir := fs.String("dir", "up", "`up` sends to the peer, down checks what the peer sends")
	rate := fs.Int64("rate", 0, "`bytes` a second, 0 for as fast as it goes")
	every := fs.Duration("every", 100*time.Millisecond, "between progress lines")
	if err := parse(fs, args, "ADDR:PORT", 1, 1); err != nil {
		return err
	}
	began := time.Now()
	var r traffic.Report
	var bytes atomic.Int64
	err := func() error {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", fs.Arg(0))
		if err != nil {
			return err
		}
		defer c.Close()
		stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) }) // long past: wake everything
		defer stop()
		r.Local, r.Remote = c.LocalAddr().String(), c.RemoteAddr().String()
		done := make(chan error, 1)
		switch *dir {
		case "up":
			go func() { done <- traffic.Stream(ctx, c, *rate, bytes.Store) }()
		case "down":
			go func() { done <- traffic.Check(c, bytes.Store) }()
		default:
			return fmt.Errorf("-dir=%s: want up or down", *dir)
		}
		tick := time.NewTicker(*every)
		defer tick.Stop()
		for {
			select {
			case err := <-done:
				return err
			case <-tick.C:
				if err := say(progressLine{bytes.Load(), time.Now().UnixNano()}); err != nil {
					return err
				}
			}
		}
	}()
	if *dir == "up" {
		r.Sent = bytes.Load()
	} else {
		r.Received = bytes.Load()
	}
	r.Finish(err, began)
	return say(r)
}

func listen(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("listen", flag.ContinueOnError)
	n := fs.Int64("n", 1<<20, "source: send `N` bytes; reset: read N bytes before the reset")
	seed := fs.Uint64("seed", 1, "source: the seed of the bytes")
	rate := fs.Int64("rate", 0, "stream: `bytes` a second, 0 for as fast as it goes")
	if err := parse(fs, args, "MODE ADDR:PORT", 2, 2); err != nil {
		return err
	}
	h, ok := map[string]traffic.Handler{
		"echo":   traffic.Echo,
		"sink":   traffic.Sink,
		"source": traffic.Source(*seed, *n),
		"hold":   traffic.Hold,
		"reset":  traffic.Reset(*n),
		"stream": traffic.StreamTo(*rate),
		"check":  traffic.CheckFrom(nil),
	}[fs.Arg(0)]
	if !ok {
		return fmt.Errorf("mode %q: want echo, sink, source, hold, reset, stream or check", fs.Arg(0))
	}
	s, err := traffic.Serve("tcp", fs.Arg(1), h)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := say(listening{s.Addr().String()}); err != nil {
		return err
	}
	for {
		select {
		case r := <-s.Done:
			if err := say(r); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// listening is a server's first line: a test waits for it.
type listening struct {
	Listening string `json:"listening"`
}
