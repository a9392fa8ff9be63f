//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// partEnv makes this binary one of its parts, a process in a namespace.
const partEnv = "VMNETD_BENCH_PART"

func bePart(name string, args []string) error {
	f, ok := map[string]func([]string) error{"join": join, "serve": serve, "load": load}[name]
	if !ok {
		return errors.New("no such part")
	}
	return f(args)
}

// netBufSize is what QEMU reads at once, and the longest frame: NET_BUFSIZE, include/net/net.h.
const netBufSize = 4096 + 65536

// join SOCKET [GREETING] carries frames between the TAP at descriptor 3 and a socket of QEMU's stream framing, as QEMU does for a
// guest (net/stream.c): a frame a write toward the backend, up to netBufSize a read from it. Both ways block, each in
// its own thread.
func join(args []string) error {
	const tap = 3
	s, err := dialUnix(args[0])
	if err != nil {
		return err
	}
	if len(args) > 1 {
		if _, err := unix.Write(s, []byte(args[1])); err != nil {
			return err
		}
	}
	ended := make(chan error, 2)
	go func() {
		b := make([]byte, 4+netBufSize)
		for {
			n, err := unix.Read(tap, b[4:])
			if err != nil {
				if errors.Is(err, unix.EINTR) {
					continue
				}
				ended <- fmt.Errorf("TAP: %w", err)
				return
			}
			binary.BigEndian.PutUint32(b, uint32(n))
			for out := b[:4+n]; len(out) > 0; {
				n, err := unix.Write(s, out)
				if err != nil && !errors.Is(err, unix.EINTR) {
					ended <- fmt.Errorf("backend: %w", err)
					return
				}
				out = out[max(n, 0):]
			}
		}
	}()
	go func() {
		b := make([]byte, 2*(4+netBufSize)) // the rest of a frame, and the longest read behind it
		have := 0
		for {
			n, err := unix.Read(s, b[have:have+netBufSize])
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n == 0 {
				ended <- fmt.Errorf("the backend closed its socket: %w", errors.Join(io.EOF, err))
				return
			}
			have += n
			in := b[:have]
			for len(in) >= 4 {
				n := binary.BigEndian.Uint32(in)
				if n > netBufSize {
					ended <- fmt.Errorf("the backend announces a frame of %d bytes", n)
					return
				}
				if len(in) < 4+int(n) {
					break
				}
				_, _ = unix.Write(tap, in[4:4+n]) // a TAP that is down, or finds no memory, drops it
				in = in[4+n:]
			}
			have = copy(b, in)
		}
	}()
	return <-ended
}

// dialUnix waits for a backend to listen.
func dialUnix(path string) (int, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		if err = unix.Connect(s, &unix.SockaddrUnix{Name: path}); err == nil {
			return s, nil
		}
		unix.Close(s)
		if time.Now().After(deadline) {
			return -1, &os.PathError{Op: "connect", Path: path, Err: err}
		}
	}
}
