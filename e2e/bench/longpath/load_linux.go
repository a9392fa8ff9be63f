package main

// The load: conversations that carry bytes one way for as long as they are let, counted where they arrive.

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	port = "7777"
	// readSize is what one read or write takes: more than a batch of the path.
	readSize = 256 << 10
	// dialTime lets a SYN, its answer and what asks for neighbours be lost some times over.
	dialTime = 20 * time.Second
)

// outcome is what a measurement gave.
type outcome struct {
	goodput     float64 // bits a second
	retransmits uint32  // of the sender, if it is a kernel
	lost        int64   // frames that the path lost
	overflowed  int64   // frames that its queue had no room for
}

// transfer has streams conversations carry bytes from the client (up) or to it, passes over the first moments, and
// counts for a time.
func transfer(w *world, up bool, streams int, skip, count time.Duration) (o outcome, err error) {
	var l net.Listener
	if err := w.server.Do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(w.address, port))
		return err
	}); err != nil {
		return o, err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns, senders []net.Conn
	var received atomic.Int64
	defer func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.(*net.TCPConn).SetLinger(0) // what is on its way may take long
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	}()
	work := func(c net.Conn, sends bool) {
		mu.Lock()
		conns = append(conns, c)
		if sends {
			senders = append(senders, c)
		}
		mu.Unlock()
		wg.Add(1)
		go func() {
			defer wg.Done()
			b := make([]byte, readSize)
			for {
				var n int
				var err error
				if sends {
					_, err = c.Write(b)
				} else {
					n, err = c.Read(b)
					received.Add(int64(n))
				}
				if err != nil {
					return
				}
			}
		}()
	}
	failed := make(chan error, 1)
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// The client begins with a byte: only then have both handshakes been done.
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				c.Close()
				select {
				case failed <- err:
				default:
				}
				continue
			}
			work(c, !up)
		}
	}()
	for range streams {
		c, err := w.client.Dial("tcp", net.JoinHostPort(w.address, port), dialTime)
		if err != nil {
			return o, err
		}
		if _, err := c.Write([]byte{0}); err != nil {
			c.Close()
			return o, err
		}
		work(c, up)
	}
	time.Sleep(skip)
	at, from := time.Now(), received.Load()
	time.Sleep(count)
	n, took := received.Load()-from, time.Since(at)
	select {
	case err := <-failed:
		return o, err
	default:
	}
	o.goodput = float64(n) * 8 / took.Seconds()
	mu.Lock()
	for _, c := range senders {
		o.retransmits += retransmits(c)
	}
	mu.Unlock()
	for _, l := range w.imp.lines {
		o.lost += l.lost.Load()
		o.overflowed += l.overflowed.Load()
	}
	if n == 0 {
		return o, fmt.Errorf("nothing arrived in %v", took)
	}
	return o, nil
}

func retransmits(c net.Conn) (n uint32) {
	rc, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0
	}
	rc.Control(func(fd uintptr) {
		if i, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = i.Total_retrans
		}
	})
	return n
}
