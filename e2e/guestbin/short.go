//go:build linux

package main

import (
	"bytes"
	"context"
	"flag"
	"io"
	"net"
	"time"

	"github.com/vmnetd/vmnetd/e2e/traffic"
)

// shortReport counts how short conversations ended.
type shortReport struct {
	Done  int            `json:"done"`  // every byte came back
	Wrong int            `json:"wrong"` // other bytes did
	Ends  map[string]int `json:"ends,omitempty"`
}

// short holds many short conversations with an echo server, one after the other, without a process for each.
func short(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("short", flag.ContinueOnError)
	count := fs.Int("count", 100, "how many")
	size := fs.Int64("size", 300, "`bytes` each way in each")
	every := fs.Duration("every", 0, "begin one in each such time; 0 as soon as the one before has ended")
	seed := fs.Uint64("seed", 1, "of the first one's bytes; each next has the next")
	if err := parse(fs, args, "ADDR:PORT", 1, 1); err != nil {
		return err
	}
	r := shortReport{Ends: map[string]int{}}
	began := time.Now()
	for i := 0; i < *count && ctx.Err() == nil; i++ {
		select {
		case <-time.After(time.Until(began.Add(time.Duration(i) * *every))):
		case <-ctx.Done():
		}
		want, _ := io.ReadAll(traffic.Bytes(*seed+uint64(i), *size))
		got, err := echoed(ctx, fs.Arg(0), want)
		switch {
		case err != nil:
			r.Ends[traffic.End(err)]++
		case !bytes.Equal(got, want):
			r.Wrong++
		default:
			r.Done++
		}
	}
	return say(r)
}

// echoed sends b, ends its half and reads what comes back.
func echoed(ctx context.Context, address string, b []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })() // long past: wake everything
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return nil, err
	}
	return io.ReadAll(c)
}
