//go:build linux

package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/vmnetd/vmnetd/e2e/traffic"
)

// udpReport counts what became of the datagrams.
type udpReport struct {
	Local    string         `json:"local,omitempty"`
	Sent     int            `json:"sent"`
	Answered int            `json:"answered"` // with the same bytes
	Wrong    int            `json:"wrong"`    // with others
	Errors   map[string]int `json:"errors,omitempty"`
	Froms    map[string]int `json:"from,omitempty"` // who answered
	Seconds  float64        `json:"seconds"`
}

func udp(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("udp", flag.ContinueOnError)
	size := fs.Int("size", 64, "`bytes` of payload in each, 0 to 65507")
	count := fs.Int("count", 1, "how many, one after the other's answer")
	from := fs.Int("from", 0, "our `port`, 0 for any")
	flows := fs.Bool("flows", false, "a new source port for each")
	wait := fs.Duration("wait", 2*time.Second, "for each answer; 0 waits for none")
	if err := parse(fs, args, "ADDR:PORT", 1, 1); err != nil {
		return err
	}
	if *size < 0 || *size > 65507 {
		return fmt.Errorf("-size %d: a UDP datagram over IPv4 holds 0 to 65507 bytes", *size)
	}
	r := udpReport{Errors: map[string]int{}, Froms: map[string]int{}}
	began := time.Now()
	var c *net.UDPConn
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	buf := make([]byte, 65535)
	for i := 0; i < *count && ctx.Err() == nil; i++ {
		if c == nil || *flows {
			if c != nil {
				c.Close()
			}
			d := net.Dialer{}
			if *from != 0 {
				d.LocalAddr = &net.UDPAddr{Port: *from}
			}
			nc, err := d.DialContext(ctx, "udp", fs.Arg(0))
			if err != nil {
				return err
			}
			c = nc.(*net.UDPConn)
			r.Local = c.LocalAddr().String()
		}
		want := make([]byte, *size)
		_, _ = io.ReadFull(traffic.Bytes(uint64(i), int64(*size)), want)
		if _, err := c.Write(want); err != nil {
			r.Errors[traffic.End(err)]++
			continue
		}
		r.Sent++
		if *wait == 0 {
			continue
		}
		if err := c.SetReadDeadline(time.Now().Add(*wait)); err != nil {
			return err
		}
		n, peer, err := c.ReadFromUDPAddrPort(buf)
		switch {
		case err != nil:
			r.Errors[traffic.End(err)]++
		case bytes.Equal(buf[:n], want):
			r.Answered++
			r.Froms[peer.String()]++
		default:
			r.Wrong++
		}
	}
	r.Seconds = time.Since(began).Seconds()
	return say(r)
}

func udpEcho(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("udp-echo", flag.ContinueOnError)
	if err := parse(fs, args, "ADDR:PORT", 1, 1); err != nil {
		return err
	}
	pc, err := net.ListenPacket("udp", fs.Arg(0))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { pc.Close() })
	defer stop()
	if err := say(listening{pc.LocalAddr().String()}); err != nil {
		return err
	}
	return traffic.EchoUDP(pc)
}
