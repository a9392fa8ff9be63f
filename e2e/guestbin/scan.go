//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// scanned is what is behind a port that takes connections.
type scanned struct {
	Open map[int]string `json:"open"` // and how it answers an HTTP request
	Lost int            `json:"lost"` // ports that did not answer in time
}

// scan connects to every TCP port of an address.
func scan(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("scan", flag.ContinueOnError)
	first := fs.Int("first", 1, "port")
	last := fs.Int("last", 65535, "port")
	most := fs.Duration("most", 5*time.Second, "how long a port may take")
	if err := parse(fs, args, "ADDR", 1, 1); err != nil {
		return err
	}
	r := scanned{Open: map[int]string{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	ports := make(chan int)
	for range 64 { // as many at once
		wg.Go(func() {
			d := net.Dialer{Timeout: *most}
			for port := range ports {
				c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(fs.Arg(0), fmt.Sprint(port)))
				var late net.Error
				switch {
				case errors.As(err, &late) && late.Timeout():
					mu.Lock()
					r.Lost++
					mu.Unlock()
				case err == nil:
					c.SetDeadline(time.Now().Add(2 * time.Second)) // what does not speak HTTP says nothing
					fmt.Fprint(c, "GET /v1/status HTTP/1.0\r\n\r\n")
					b, _ := io.ReadAll(io.LimitReader(c, 4096))
					c.Close()
					mu.Lock()
					r.Open[port] = string(b)
					mu.Unlock()
				}
			}
		})
	}
	for port := *first; port <= *last; port++ {
		ports <- port
	}
	close(ports)
	wg.Wait()
	return say(r)
}
