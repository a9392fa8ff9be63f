//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/mdlayher/vsock"
	"github.com/vmnetd/vmnetd/e2e/space"
	framings "github.com/vmnetd/vmnetd/e2e/stream"
)

// tap carries frames between a TAP of its own and a stream, as gvforwarder does. It says
// {"attached": "ADDRESS"} and goes on until the stream ends.
func tap(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("tap", flag.ExitOnError)
	iface := fs.String("iface", "tap0", "`NAME` of the TAP")
	framing := fs.String("framing", "connect", "how to speak: qemu, connect, bare, hyperkit, vde")
	if err := parse(fs, args, "vsock:CID:PORT|unix:PATH", 1, 1); err != nil {
		return err
	}
	f, err := framings.ByName(*framing)
	if err != nil {
		return err
	}
	c, err := dialStream(ctx, fs.Arg(0))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := f.Greet(c); err != nil {
		return err
	}
	t, err := space.OpenTAP(*iface, false)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := say(map[string]string{"attached": fs.Arg(0)}); err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- up(c, t, f) }()
	go func() { ended <- down(t, c, f) }()
	select {
	case err = <-ended:
		if errors.Is(err, io.EOF) {
			err = nil
		}
	case <-ctx.Done():
	}
	return err
}

func up(c io.Writer, t io.Reader, f framings.Framing) error {
	buf := make([]byte, f.Prefix+65535+18)
	for {
		n, err := t.Read(buf[f.Prefix:])
		if err != nil {
			return fmt.Errorf("TAP: %w", err)
		}
		f.Put(buf, n)
		if _, err := c.Write(buf[:f.Prefix+n]); err != nil {
			return err
		}
	}
}

func down(t io.Writer, c io.Reader, f framings.Framing) error {
	r := bufio.NewReaderSize(c, 256<<10)
	frame := make([]byte, 65535+18)
	for {
		if _, err := io.ReadFull(r, frame[:f.Prefix]); err != nil {
			return err
		}
		n := f.Length(frame)
		if n > len(frame) {
			return fmt.Errorf("a frame of %d bytes", n)
		}
		if _, err := io.ReadFull(r, frame[:n]); err != nil {
			return err
		}
		t.Write(frame[:n]) // a TAP that is down drops it
	}
}

func dialStream(ctx context.Context, s string) (net.Conn, error) {
	kind, rest, _ := strings.Cut(s, ":")
	if kind == "vsock" {
		cid, port, _ := strings.Cut(rest, ":")
		a, err := strconv.ParseUint(cid, 10, 32)
		b, err2 := strconv.ParseUint(port, 10, 32)
		if err := errors.Join(err, err2); err != nil {
			return nil, err
		}
		c, err := vsock.DialContext(ctx, uint32(a), uint32(b), nil)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	if kind != "unix" {
		return nil, fmt.Errorf("%q: want vsock:CID:PORT or unix:PATH", s)
	}
	var d net.Dialer
	return d.DialContext(ctx, kind, rest)
}
