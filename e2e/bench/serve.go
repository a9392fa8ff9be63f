//go:build linux

package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/e2e/traffic"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"
)

// serve is the far side of the loads: echoes, datagrams counted and sent, and a DNS server. It runs until it is ended.
func serve([]string) error {
	failed := make(chan error)
	run := func(f func() error) { go func() { failed <- f() }() }
	for port, f := range map[int]func(net.Conn){echoPort: echoAll, floodPort: answerFlood} {
		l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			return err
		}
		run(func() error {
			for {
				c, err := l.Accept()
				if err != nil {
					return err
				}
				go func() { defer c.Close(); f(c) }()
			}
		})
	}
	for port, f := range map[int]func(*net.UDPConn) error{echoPort: func(c *net.UDPConn) error { return traffic.EchoUDP(c) }, floodPort: countFlood, 53: answerNames} {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		if err != nil {
			return err
		}
		run(func() error { return f(c) })
	}
	return <-failed
}

// echoAll gives back what comes. A small buffer: thousands are held open.
func echoAll(c net.Conn) {
	b := make([]byte, 512)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

// floods are the datagrams that came, by their mark.
var floods struct {
	sync.Mutex
	conn  *net.UDPConn
	count map[uint64]int
	from  map[uint64]net.Addr
}

func countFlood(c *net.UDPConn) error {
	floods.Lock()
	floods.conn, floods.count, floods.from = c, map[uint64]int{}, map[uint64]net.Addr{}
	floods.Unlock()
	for in := newInbox(c); ; {
		if err := in.each(func(b []byte, from net.Addr) {
			if len(b) < 8 {
				return
			}
			mark := binary.BigEndian.Uint64(b)
			floods.Lock()
			defer floods.Unlock()
			floods.count[mark]++
			if floods.from[mark] == nil {
				floods.from[mark] = from
			}
		}); err != nil {
			return err
		}
	}
}

// answerFlood answers "count MARK" with how many came, and "flood MARK MILLISECONDS SIZE" by sending, with how many.
func answerFlood(c net.Conn) {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	var mark uint64
	var ms, size int
	if n, _ := fmt.Sscanf(line, "flood %d %d %d", &mark, &ms, &size); n == 3 {
		fmt.Fprintln(c, sendFlood(mark, time.Duration(ms)*time.Millisecond, max(size, 8)))
	} else if n, _ := fmt.Sscanf(line, "count %d", &mark); n == 1 {
		time.Sleep(settle)
		floods.Lock()
		defer floods.Unlock()
		fmt.Fprintln(c, floods.count[mark])
	}
}

func sendFlood(mark uint64, d time.Duration, size int) (sent int) {
	began := time.Now()
	var to net.Addr
	for to == nil { // its first datagram may be behind the question
		floods.Lock()
		to = floods.from[mark]
		floods.Unlock()
		if time.Since(began) > patience {
			return 0
		}
		time.Sleep(time.Millisecond)
	}
	msgs := make([]ipv4.Message, batch)
	for i := range msgs {
		msgs[i] = ipv4.Message{Buffers: [][]byte{make([]byte, size)}, Addr: to}
	}
	pc := ipv4.NewPacketConn(floods.conn)
	for began = time.Now(); time.Since(began) < d; {
		n, err := pc.WriteBatch(msgs, 0)
		if err != nil && !errors.Is(err, net.ErrClosed) {
			continue // an ICMP error for one sent before
		}
		sent += n
	}
	return sent
}

// answerNames answers every question for an address with 192.0.2.53.
func answerNames(c *net.UDPConn) error {
	b := make([]byte, 1500)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return err
		}
		var m dnsmessage.Message
		if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60},
				Body:   &dnsmessage.AResource{A: netip.MustParseAddr("192.0.2.53").As4()},
			}}
		}
		if out, err := m.Pack(); err == nil {
			_, _ = c.WriteToUDPAddrPort(out, from)
		}
	}
}
