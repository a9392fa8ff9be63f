package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	wire "github.com/miekg/dns"
)

// What we read of one UDP answer. The query offered maxUDPAnswer at most; a
// server that sends more than this is cut, and that counts as truncated.
const upstreamBuffer = 4096

// Rounds over the servers unless resolv.conf says otherwise: RES_DFLRETRY of
// resolv.h, one repeat for a lost datagram.
const defaultAttempts = 2

var (
	errNoResolver = errors.New("the host has no resolver")
	errSilent     = errors.New("no resolver answered in time")
)

// upstreamMessage is q as it leaves: an ID nobody can foresee, and no offer
// of more bytes than may go back to a guest by UDP, so that the resolver
// truncates rather than the road (fragments are lost on it).
func (q *query) upstreamMessage() []byte {
	msg := append([]byte(nil), q.raw...)
	_, _ = rand.Read(msg[:2]) // never fails (crypto/rand)
	if q.hasOPT() && !q.signed && q.udpSize() > maxUDPAnswer {
		binary.BigEndian.PutUint16(msg[q.optAt+3:], maxUDPAnswer)
	}
	return msg
}

// A try is one question to one server.
type try struct {
	server int // its place in the order of this query
	msg    []byte
	err    error
}

// forward asks the host's resolvers in turn. A server that is silent for
// s.try gets company, not the sack: the first good answer wins, so a slow
// first server costs nothing but a datagram to the second. A server that
// said no (SERVFAIL, REFUSED, unreachable) is not asked again. When nobody
// says better, the first server's no is the answer.
//
// whole: the caller can take an answer of any size, so a truncated one is
// fetched again over TCP.
func (s *Server) forward(ctx context.Context, q *query, whole bool) ([]byte, error) {
	rs := s.resolvers.Load()
	n := len(rs.servers)
	if n == 0 {
		return nil, errNoResolver
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.Total)
	var tries sync.WaitGroup
	defer func() { cancel(); tries.Wait() }()

	first := 0
	if rs.rotate {
		first = int(s.rotor.Add(1) % uint64(n))
	}
	patience := s.limits.Try
	if rs.try > 0 {
		// Only ever shorter: the guest's own clock runs.
		patience = min(patience, rs.try)
	}
	attempts := rs.attempts
	if attempts == 0 {
		attempts = defaultAttempts
	}
	tcp := rs.tcp || len(q.raw) > maxUDPAnswer

	results := make(chan try, n*attempts)
	settled := make([]bool, n)
	next, pending := 0, 0
	launch := func() bool {
		for next < n*attempts {
			i := next % n
			next++
			if settled[i] {
				continue
			}
			server := rs.servers[(first+i)%n]
			pending++
			tries.Go(func() {
				defer func() {
					if r := recover(); r != nil {
						results <- try{i, nil, &beside{r, debug.Stack()}}
					}
				}()
				msg, err := s.exchange(ctx, server, q, tcp, whole)
				results <- try{i, msg, err}
			})
			return true
		}
		return false
	}

	var refusal *try
	var lastErr error
	out := func() ([]byte, error) {
		if refusal != nil {
			return refusal.msg, nil
		}
		if lastErr == nil || ctx.Err() != nil {
			lastErr = errSilent
		}
		return nil, lastErr
	}
	launch()
	stagger := time.NewTimer(patience)
	defer stagger.Stop()
	for {
		select {
		case <-ctx.Done():
			return out()
		case <-stagger.C:
			if launch() {
				stagger.Reset(patience)
			}
		case r := <-results:
			pending--
			if e := (*beside)(nil); errors.As(r.err, &e) {
				panic(e)
			}
			if ctx.Err() != nil {
				return out()
			}
			if r.err == nil && !saysNo(r.msg) {
				return r.msg, nil
			}
			settled[r.server] = true
			if r.err != nil {
				lastErr = r.err
			} else if refusal == nil || r.server < refusal.server {
				refusal = &r
			}
			if launch() {
				stagger.Reset(patience)
			} else if pending == 0 {
				return out()
			}
		}
	}
}

// saysNo is what sends glibc to the next server too (res_send.c): a server
// that cannot or will not answer, and one that only refers elsewhere.
func saysNo(msg []byte) bool {
	switch int(msg[3] & 0x0f) {
	case wire.RcodeServerFailure, wire.RcodeRefused, wire.RcodeNotImplemented:
		return true
	case wire.RcodeSuccess:
		authoritative, recursive := msg[2]&0x04 != 0, msg[3]&0x80 != 0
		noAnswer := binary.BigEndian.Uint16(msg[6:]) == 0 && binary.BigEndian.Uint16(msg[10:]) == 0
		return noAnswer && !authoritative && !recursive && !truncated(msg)
	}
	return false
}

func truncated(msg []byte) bool { return msg[2]&0x02 != 0 }

// exchange asks one server, over TCP if told or if that is the only way to
// get the answer whole.
func (s *Server) exchange(ctx context.Context, server netip.AddrPort, q *query, tcp, whole bool) ([]byte, error) {
	if !tcp {
		msg, err := s.ask(ctx, "udp", server, q)
		if err != nil || !whole || !truncated(msg) {
			return msg, err
		}
	}
	return s.ask(ctx, "tcp", server, q)
}

// ask sends q once from a socket of its own, so that both its port and its
// ID are fresh (RFC 5452 section 9.2), and reads until the answer to it.
func (s *Server) ask(ctx context.Context, network string, server netip.AddrPort, q *query) ([]byte, error) {
	conn, err := s.dial(ctx, network, server)
	if err != nil {
		return nil, fmt.Errorf("resolver %v: %w", server, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	msg := q.upstreamMessage()
	read := readDatagram
	out := msg
	if network == "tcp" {
		read = readMessage
		// One write: some servers want length and message in one segment
		// (RFC 7766 section 8).
		out = append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
	}
	if _, err := conn.Write(out); err != nil {
		return nil, fmt.Errorf("resolver %v: %s: %w", server, network, err)
	}
	for {
		in, err := read(conn)
		if err != nil {
			return nil, fmt.Errorf("resolver %v: %s: %w", server, network, err)
		}
		if len(in) < headerLen || in[0] != msg[0] || in[1] != msg[1] || in[2]&0xf8 != 0x80 {
			continue // not for us, or forged: the true one may still come
		}
		if q.sameQuestion(in) {
			return in, nil
		}
		if in[3]&0x0f == wire.RcodeFormatError && binary.BigEndian.Uint16(in[4:]) == 0 {
			// A server that does not know EDNS may say only this much
			// (RFC 6891 section 7); the guest then asks without.
			return q.pack(q.answer(wire.RcodeFormatError)), nil
		}
	}
}

func readDatagram(conn net.Conn) ([]byte, error) {
	buf := buffers.Get().(*[upstreamBuffer]byte)
	defer buffers.Put(buf)
	n, err := conn.Read(buf[:])
	if err != nil {
		return nil, err
	}
	if n == len(buf) {
		buf[2] |= 0x02 // TC: this read may have cut it
	}
	return append([]byte(nil), buf[:n]...), nil
}

var buffers = sync.Pool{New: func() any { return new([upstreamBuffer]byte) }}

// readMessage reads one message with its length before it (RFC 1035 section
// 4.2.2). It keeps memory for bytes that came, not for bytes announced.
func readMessage(r net.Conn) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	want := int(binary.BigEndian.Uint16(head[:]))
	buf := make([]byte, 0, min(want, minUDPAnswer))
	for len(buf) < want {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := r.Read(buf[len(buf):min(cap(buf), want)])
		buf = buf[:len(buf)+n]
		if err != nil && len(buf) < want {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return buf, nil
}
