package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	wire "github.com/miekg/dns"
)

// lines is a log to look into.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *lines) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }
func (l *lines) count(s string) int          { return strings.Count(l.String(), s) }

// head is a DNS header: an ID of 0xbeef, flags, counts.
func head(flags uint16, counts ...uint16) []byte {
	b := []byte{0xbe, 0xef}
	b = binary.BigEndian.AppendUint16(b, flags)
	for i := range 4 {
		n := uint16(0)
		if i < len(counts) {
			n = counts[i]
		}
		b = binary.BigEndian.AppendUint16(b, n)
	}
	return b
}

const (
	qExample = "\x07example\x03com\x00\x00\x01\x00\x01"
	qWeb     = "\x03WEB\x08internal\x00\x00\x01\x00\x01"
	opt      = "\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"
)

// hostile is what a guest may send, by name, and what it gets: a code, or the
// reason why nothing.
var hostile = map[string]struct {
	msg  []byte
	want string
}{
	"empty":                         {nil, "short"},
	"one-byte":                      {[]byte{0}, "short"},
	"eleven-bytes":                  {head(0x0100, 1)[:11], "short"},
	"response":                      {slices.Concat(head(0x8180, 1), []byte(qExample)), "response"},
	"response-head":                 {head(0x8000), "response"},
	"no-question":                   {head(0x0100), "FORMERR"},
	"two-questions":                 {slices.Concat(head(0x0100, 2), []byte(qExample+qExample)), "FORMERR"},
	"65535-questions":               {slices.Concat(head(0x0100, 65535), []byte(qExample)), "FORMERR"},
	"question-missing":              {head(0x0100, 1), "FORMERR"},
	"question-cut-in-name":          {append(head(0x0100, 1), "\x07exam"...), "FORMERR"},
	"question-cut-in-type":          {append(head(0x0100, 1), "\x03com\x00\x00"...), "FORMERR"},
	"pointer-to-itself":             {append(head(0x0100, 1), "\xc0\x0c\x00\x01\x00\x01"...), "FORMERR"},
	"pointer-to-header":             {append(head(0x0100, 1), "\x03com\xc0\x00\x00\x01\x00\x01"...), "FORMERR"},
	"pointer-beyond":                {append(head(0x0100, 1), "\xff\xff\x00\x01\x00\x01"...), "FORMERR"},
	"reserved-label":                {append(head(0x0100, 1), "\x41com\x00\x00\x01\x00\x01"...), "FORMERR"},
	"name-of-256":                   {slices.Concat(head(0x0100, 1), []byte(strings.Repeat("\x3f"+strings.Repeat("a", 63), 4)+"\x00\x00\x01\x00\x01")), "FORMERR"},
	"name-of-255":                   {slices.Concat(head(0x0100, 1), []byte(strings.Repeat("\x3f"+strings.Repeat("a", 63), 3)+"\x3d"+strings.Repeat("a", 61)+"\x00\x00\x01\x00\x01")), "SERVFAIL"},
	"name-of-odd-bytes":             {append(head(0x0100, 1), "\x05\x00.\\\xff\"\x00\x00\x01\x00\x01"...), "SERVFAIL"},
	"127-labels":                    {slices.Concat(head(0x0100, 1), []byte(strings.Repeat("\x01a", 127)+"\x00\x00\x01\x00\x01")), "SERVFAIL"},
	"answer-in-query":               {append(head(0x0100, 1, 1), qExample+"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04\x01\x02\x03\x04"...), "FORMERR"},
	"65535-additional":              {append(head(0x0100, 1, 0, 0, 65535), qExample+opt...), "FORMERR"},
	"additional-pointer-loop":       {append(head(0x0100, 1, 0, 0, 1), qExample+"\xc0\x1d\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00"...), "SERVFAIL"},
	"additional-cut":                {append(head(0x0100, 1, 0, 0, 1), qExample+opt[:8]...), "FORMERR"},
	"additional-name-cut":           {append(head(0x0100, 1, 0, 0, 1), qExample+"\x05ab"...), "FORMERR"},
	"additional-pointer-cut":        {append(head(0x0100, 1, 0, 0, 1), qExample+"\xc0"...), "FORMERR"},
	"bytes-after":                   {append(head(0x0100, 1), qExample+"x"...), "FORMERR"},
	"two-opt":                       {append(head(0x0100, 1, 0, 0, 2), qExample+opt+opt...), "FORMERR"},
	"opt-with-a-name":               {append(head(0x0100, 1, 0, 0, 1), qExample+"\x01a"+opt...), "FORMERR"},
	"opt-rdata-beyond":              {append(head(0x0100, 1, 0, 0, 1), qExample+"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\xff\xff"...), "FORMERR"},
	"opt-65535-bytes-offered":       {append(head(0x0100, 1, 0, 0, 1), qExample+"\x00\x00\x29\xff\xff\x00\x00\x00\x00\x00\x00"...), "SERVFAIL"},
	"opt-giant":                     {slices.Concat(head(0x0100, 1, 0, 0, 1), []byte(qExample+"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\xf0\x00"), make([]byte, 0xf000)), "SERVFAIL"},
	"opt-version-1":                 {append(head(0x0100, 1, 0, 0, 1), qExample+"\x00\x00\x29\x04\xd0\x00\x01\x00\x00\x00\x00"...), "BADVERS"},
	"opt-version-255-of-local-name": {append(head(0x0100, 1, 0, 0, 1), qWeb+"\x00\x00\x29\x04\xd0\x00\xff\x00\x00\x00\x00"...), "BADVERS"},
	"opcode-iquery":                 {append(head(0x0900, 1), qExample...), "NOTIMP"},
	"opcode-notify":                 {append(head(0x2100, 1), qExample...), "NOTIMP"},
	"opcode-update":                 {append(head(0x2900, 1), qExample...), "NOTIMP"},
	"opcode-15":                     {append(head(0x7900, 1), qWeb...), "NOTIMP"},
	"class-chaos":                   {append(head(0x0100, 1), "\x07version\x04bind\x00\x00\x10\x00\x03"...), "REFUSED"},
	"class-any":                     {append(head(0x0100, 1), "\x03web\x08internal\x00\x00\x01\x00\xff"...), "REFUSED"},
	"class-0":                       {append(head(0x0100, 1), "\x03com\x00\x00\x01\x00\x00"...), "REFUSED"},
	"axfr":                          {append(head(0x0100, 1), "\x03com\x00\x00\xfc\x00\x01"...), "REFUSED"},
	"ixfr-with-soa":                 {append(head(0x0100, 1, 0, 1), "\x03com\x00\x00\xfb\x00\x01\xc0\x0c\x00\x06\x00\x01\x00\x00\x00\x00\x00\x00"...), "REFUSED"},
	"type-0":                        {append(head(0x0100, 1), "\x03com\x00\x00\x00\x00\x01"...), "SERVFAIL"},
	"local":                         {append(head(0x0100, 1), qWeb...), "NOERROR"},
	"local-no-recursion":            {append(head(0x0000, 1), qWeb...), "NOERROR"},
	"local-with-opt":                {append(head(0x0130, 1, 0, 0, 1), qWeb+"\x00\x00\x29\x00\x00\x00\x00\x80\x00\x00\x00"...), "NOERROR"},
	"root":                          {append(head(0x0100, 1), "\x00\x00\x02\x00\x01"...), "SERVFAIL"},
	"signed-by-tsig":                {append(head(0x0100, 1, 0, 0, 1), qExample+"\x01k\x00\x00\xfa\x00\xff\x00\x00\x00\x00\x00\x00"...), "SERVFAIL"},
	"reserved-header-bits":          {append(head(0x03ff, 1), qWeb...), "NOERROR"},
}

// nowhere makes every question to a resolver fail at once.
func nowhere(context.Context, string, netip.AddrPort) (net.Conn, error) {
	return nil, errors.New("nobody is there")
}

var somebody = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}

func TestHostileMessages(t *testing.T) {
	log := &lines{}
	s := slirp(t, Config{Resolvers: somebody, Dial: nowhere, Logger: slog.New(slog.NewTextHandler(log, nil))})
	for _, name := range slices.Sorted(maps.Keys(hostile)) {
		c := hostile[name]
		t.Run(name, func(t *testing.T) {
			before := s.Status()
			answers := make(chan []byte, 2)
			s.HandleUDP(t.Context(), "web", c.msg, func(b []byte) { answers <- b })
			if d := Drop(c.want); before.Dropped[d] != s.Status().Dropped[d] {
				if len(answers) > 0 {
					t.Errorf("answered %x", <-answers)
				}
				return
			}
			var b []byte
			select {
			case b = <-answers:
			case <-time.After(20 * time.Second):
				t.Fatalf("no answer, none counted as dropped; want %s", c.want)
			}
			var m wire.Msg
			if err := m.Unpack(b); err != nil {
				t.Fatalf("answer %x: %v", b, err)
			}
			code := wire.RcodeToString[m.Rcode]
			if m.Rcode == wire.RcodeBadVers {
				code = "BADVERS" // the codec calls 16 by its TSIG name
			}
			if o := m.IsEdns0(); o != nil {
				if o.Version() != 0 || o.UDPSize() != maxUDPAnswer || o.Do() != (c.msg[len(c.msg)-4] == 0x80) {
					t.Errorf("OPT: %v", o)
				}
			}
			if code != c.want || m.Id != 0xbeef || !m.Response {
				t.Errorf("answer %v; want %s", &m, c.want)
			}
			if len(b) > 3*len(c.msg)+128 {
				t.Errorf("%d bytes in, %d bytes out", len(c.msg), len(b))
			}
			// The same on a stream.
			if again := streamed(t, s, c.msg); again[3]&0xf != b[3]&0xf {
				t.Errorf("tcp: %x", again)
			}
		})
	}
	// One line that resolvers fail, and nothing a guest could have written.
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("%d lines in the log; want 2:\n%s", n, log)
	}
}

func FuzzHandleUDP(f *testing.F) {
	f.Fuzz(func(t *testing.T, msg []byte) {
		s := slirp(t, Config{Resolvers: somebody, Dial: nowhere})
		answers := make(chan []byte, 2)
		s.HandleUDP(t.Context(), "web", bytes.Clone(msg), func(b []byte) { answers <- b })
		st := s.Status()
		if st.Dropped[DropShort]+st.Dropped[DropResponse] > 0 {
			s.Close()
			if len(answers) > 0 {
				t.Fatalf("dropped and answered %x", <-answers)
			}
			return
		}
		b := <-answers
		if len(b) > maxUDPAnswer || b[0] != msg[0] || b[1] != msg[1] || b[2]&0x80 == 0 {
			t.Fatalf("answer %x to %x", b, msg)
		}
		var m wire.Msg
		if err := m.Unpack(b); err != nil {
			t.Fatalf("answer %x to %x: %v", b, msg, err)
		}
		if q, err := parseQuery(msg); err == nil {
			if !bytes.Equal(b[headerLen:q.qend], msg[headerLen:q.qend]) {
				t.Fatalf("question of %x came back as %x", msg, b)
			}
			if len(b) > q.limit() {
				t.Fatalf("%d bytes; the guest takes %d", len(b), q.limit())
			}
		}
		s.Close()
		if len(answers) > 0 {
			t.Fatal("answered twice")
		}
	})
}

// parrot is a resolver that answers to the right ID and question with
// whatever it was taught.
type parrot struct {
	net.Conn
	tail []byte
	in   []byte
}

func (p *parrot) Write(b []byte) (int, error)     { p.in = bytes.Clone(b); return len(b), nil }
func (p *parrot) SetDeadline(time.Time) error     { return nil }
func (p *parrot) SetReadDeadline(time.Time) error { return nil }
func (p *parrot) Close() error                    { return nil }
func (p *parrot) Read(b []byte) (int, error) {
	if p.in == nil || len(p.tail) < 10 {
		return 0, io.EOF
	}
	out := slices.Concat(p.in[:2], p.tail[:10])
	if q, err := parseQuery(p.in); err == nil {
		out = append(out, p.in[headerLen:q.qend]...)
	}
	p.in = nil
	return copy(b, append(out, p.tail[10:]...)), nil
}

// FuzzAnswer: whatever a resolver says, the guest gets one answer that fits.
func FuzzAnswer(f *testing.F) {
	f.Fuzz(func(t *testing.T, tail []byte) {
		s := slirp(t, Config{Resolvers: somebody, Dial: func(context.Context, string, netip.AddrPort) (net.Conn, error) {
			return &parrot{tail: tail}, nil
		}})
		if err := s.Add("alias CNAME example.com."); err != nil {
			t.Fatal(err)
		}
		for _, ask := range []string{"example.com TXT", "alias.internal TXT"} {
			answers := make(chan []byte, 2)
			m := question(ask, edns(600))
			s.HandleUDP(t.Context(), "web", packed(t, m), func(b []byte) { answers <- b })
			b := <-answers
			if len(b) > 600 || len(b) < headerLen || binary.BigEndian.Uint16(b) != m.Id || b[2]&0x80 == 0 {
				t.Fatalf("%s: answer %x", ask, b)
			}
		}
	})
}

// A flood holds what the limits say and no more, and shuts out no other guest.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Config{Resolvers: somebody, Dial: deaf, Limits: Limits{PerGuest: 100, InAll: 150, Spared: 5, Try: time.Hour}})
		base := runtime.NumGoroutine()
		answers := make(chan []byte, 1000)
		flood := func(guest string, n int) {
			q := packed(t, question("example.com A"))
			for range n {
				s.HandleUDP(t.Context(), guest, q, func(b []byte) { answers <- b })
			}
			synctest.Wait()
		}
		for _, step := range []struct {
			guest    string
			n        int
			inFlight int
			dropped  map[Drop]uint64
		}{
			{"a", 10_000, 100, map[Drop]uint64{DropGuestFull: 9_900}},
			{"b", 10_000, 150, map[Drop]uint64{DropGuestFull: 9_900, DropFull: 9_950}},
			{"quiet", 5, 155, map[Drop]uint64{DropGuestFull: 9_900, DropFull: 9_950}},
			{"quiet", 1, 155, map[Drop]uint64{DropGuestFull: 9_900, DropFull: 9_951}},
		} {
			flood(step.guest, step.n)
			st := s.Status()
			if st.InFlight != step.inFlight {
				t.Errorf("%s: %d in flight; want %d", step.guest, st.InFlight, step.inFlight)
			}
			for d, n := range st.Dropped {
				if n != step.dropped[d] {
					t.Errorf("%s: %d dropped for %q; want %d", step.guest, n, d, step.dropped[d])
				}
			}
			// Each in flight: itself, its try, and the deaf end of the test's.
			if n := runtime.NumGoroutine() - base; n > 3*step.inFlight+10 {
				t.Errorf("%s: %d goroutines for %d questions", step.guest, n, step.inFlight)
			}
		}
		// Local names are answered all the same.
		local := 0
		s.HandleUDP(t.Context(), "a", packed(t, question("localhost A")), func([]byte) { local++ })
		if local != 1 {
			t.Error("no local answer during a flood")
		}
		time.Sleep(5 * time.Second) // of the bubble: all have their SERVFAIL
		synctest.Wait()
		if st := s.Status(); st.InFlight != 0 || len(answers) != 155 || st.ServFail != 155 {
			t.Errorf("afterwards %d in flight, %d answers, %d SERVFAIL; want 0, 155, 155", st.InFlight, len(answers), st.ServFail)
		}
		if len(s.waiting.by) != 0 {
			t.Errorf("guests without questions are kept: %v", s.waiting.by)
		}
		s.Close()
	})
}

// Over TCP a question past the limits is told so, not lost; one connection
// holds no more than the pipeline and is left unread past it.
func TestFloodTCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Config{Resolvers: somebody, Dial: deaf, Limits: Limits{PerGuest: 70, Try: time.Hour}})
		q := packed(t, question("example.com A", edns(1232)))
		var conns []net.Conn
		dial := func() net.Conn {
			near, far := net.Pipe()
			conns = append(conns, near)
			go s.ServeConn(t.Context(), "a", far)
			return near
		}
		c := dial()
		sent := 0
		go func() {
			for range 500 {
				if _, err := c.Write(append([]byte{0, byte(len(q))}, q...)); err != nil {
					return
				}
				sent++
			}
		}()
		synctest.Wait()
		if st := s.Status(); st.InFlight != pipeline || sent != pipeline+1 {
			t.Errorf("%d in flight of %d taken; want %d of %d", st.InFlight, sent, pipeline, pipeline+1)
		}
		c2 := dial()
		for i := range 10 {
			go func() { _, _ = c2.Write(append([]byte{0, byte(len(q))}, q...)) }()
			synctest.Wait()
			if i < 70-pipeline {
				continue
			}
			var m wire.Msg
			if err := m.Unpack(readOn(t, c2)); err != nil || m.Rcode != wire.RcodeServerFailure || m.IsEdns0().Option[0].(*wire.EDNS0_EDE).InfoCode != wire.ExtendedErrorCodeNotReady {
				t.Errorf("question %d: %v %v", i, err, &m)
			}
		}
		if st := s.Status(); st.Dropped[DropGuestFull] != 4 || st.InFlight != 70 {
			t.Errorf("%+v", st)
		}
		s.Close()
		for _, c := range conns {
			c.Close()
		}
		if st := s.Status(); st.InFlight != 0 || st.Conns != 0 {
			t.Errorf("after Close: %+v", st)
		}
	})
}

func TestConnLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Config{Resolvers: somebody, Dial: deaf, Limits: Limits{Conns: 3, ConnsInAll: 4}})
		var open []net.Conn
		for _, c := range []struct {
			guest string
			drop  Drop
		}{
			{"a", ""}, {"a", ""}, {"a", ""}, {"a", DropConnGuest},
			{"b", ""}, {"b", ""}, {"b", DropConnFull}, {"quiet", ""},
		} {
			before := s.Status()
			near, far := net.Pipe()
			open = append(open, near)
			go s.ServeConn(t.Context(), c.guest, far)
			synctest.Wait()
			st := s.Status()
			if c.drop == "" && st.Conns != before.Conns+1 || c.drop != "" && st.Dropped[c.drop] != before.Dropped[c.drop]+1 {
				t.Errorf("%v: %+v", c, st)
			}
			if _, err := near.Write(nil); (err != nil) != (c.drop != "") {
				t.Errorf("%v: write: %v", c, err)
			}
		}
		for _, c := range open {
			c.Close()
		}
		synctest.Wait()
		if st := s.Status(); st.Conns != 0 {
			t.Errorf("%d connections left", st.Conns)
		}
		s.Close()
	})
}

// A connection that does not get on with it ends after Limits.Idle, whatever
// it has sent so far.
func TestStalls(t *testing.T) {
	q := packed(t, question("localhost A"))
	framed := append([]byte{0, byte(len(q))}, q...)
	for _, c := range []struct {
		name string
		say  func(c net.Conn) // then nothing
		ends time.Duration
	}{
		{"nothing sent", func(net.Conn) {}, 10 * time.Second},
		{"half a length", func(c net.Conn) { _, _ = c.Write([]byte{0xff}) }, 10 * time.Second},
		{"a length and no message", func(c net.Conn) { _, _ = c.Write([]byte{0xff, 0xff}) }, 10 * time.Second},
		{"a message cut short", func(c net.Conn) { _, _ = c.Write(framed[:len(framed)-1]) }, 10 * time.Second},
		{"a byte now and then", func(c net.Conn) {
			for _, b := range framed {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, 10 * time.Second},
		{"a question, then nothing", func(c net.Conn) {
			time.Sleep(3 * time.Second)
			_, _ = c.Write(framed)
			_, _ = readMessage(c)
		}, 13 * time.Second},
		{"answers not taken", func(c net.Conn) { _, _ = c.Write(framed) }, 10 * time.Second},
		{"a length of nothing", func(c net.Conn) { _, _ = c.Write([]byte{0, 0}) }, 0},
		{"a response", func(c net.Conn) {
			_, _ = c.Write(append([]byte{0, 12}, head(0x8000)...))
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, Config{Resolvers: somebody, Dial: deaf})
				near, far := net.Pipe()
				said := make(chan struct{})
				go func() { defer close(said); c.say(near) }()
				begun := time.Now()
				s.ServeConn(t.Context(), "web", far)
				if took := time.Since(begun); took != c.ends {
					t.Errorf("ended after %v; want %v", took, c.ends)
				}
				near.Close()
				<-said
				s.Close()
			})
		})
	}
}

// An announced length takes no memory before its bytes come.
func TestReadMessageMemory(t *testing.T) {
	near, far := net.Pipe()
	go func() { _, _ = near.Write([]byte{0xff, 0xff, 1, 2, 3}); near.Close() }()
	b, err := readMessage(far)
	if !errors.Is(err, io.ErrUnexpectedEOF) || b != nil {
		t.Errorf("%v %v", b, err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 4000)
	near, far = net.Pipe()
	go func() {
		_, _ = near.Write(binary.BigEndian.AppendUint16(nil, uint16(len(want))))
		for i := 0; i < len(want); i += 999 {
			_, _ = near.Write(want[i:min(i+999, len(want))])
		}
	}()
	if b, err := readMessage(far); err != nil || !bytes.Equal(b, want) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// Several questions on one connection; the answers come as they are ready,
// and also after the guest has closed its sending side.
func TestPipelining(t *testing.T) {
	fastDone := make(chan struct{})
	u := startUpstream(t, "127.0.0.1", func(w wire.ResponseWriter, m *wire.Msg) {
		if strings.HasPrefix(m.Question[0].Name, "slow") {
			<-fastDone
		}
		r := new(wire.Msg)
		r.SetReply(m)
		r.RecursionAvailable = true
		r.Answer = []wire.RR{rr(t, m.Question[0].Name+" A 192.0.2.1")}
		_ = w.WriteMsg(r)
	})
	s := start(t, Config{Resolvers: []netip.AddrPort{u.addr}, Limits: Limits{Try: time.Minute, Total: time.Minute}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := l.Accept()
		if err == nil {
			s.ServeConn(context.Background(), "web", c)
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var order []string
	next := func(b []byte) {
		var m wire.Msg
		if err := m.Unpack(b); err != nil || len(m.Answer) != 1 {
			t.Fatalf("%v %v", err, &m)
		}
		order = append(order, m.Question[0].Name)
	}
	next(askOn(t, c, packed(t, question("slow.example A")), packed(t, question("fast.example A"))))
	next(askOn(t, c, packed(t, question("localhost A"))))
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	close(fastDone)
	next(readOn(t, c))
	if want := []string{"fast.example.", "localhost.", "slow.example."}; !slices.Equal(order, want) {
		t.Errorf("answers in the order %q; want %q", order, want)
	}
	if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
		t.Errorf("after the last answer: %x %v; want the end", b, err)
	}
	<-served
}

// Close and the end of a guest's context end what waits, and nobody is
// answered after.
func TestCloseWhileWaiting(t *testing.T) {
	for _, how := range []string{"close", "context"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, Config{Resolvers: somebody, Dial: deaf})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				near, far := net.Pipe()
				served := make(chan struct{})
				go func() { s.ServeConn(ctx, "web", far); close(served) }()
				q := packed(t, question("example.com A"))
				go func() { _, _ = near.Write(append([]byte{0, byte(len(q))}, q...)) }()
				late := func([]byte) { t.Error("answered after the end") }
				for range 10 {
					s.HandleUDP(ctx, "web", q, late)
				}
				synctest.Wait()
				if n := s.Status().InFlight; n != 11 {
					t.Fatalf("%d in flight; want 11", n)
				}
				begun := time.Now()
				if how == "close" {
					s.Close()
				} else {
					cancel()
				}
				<-served
				synctest.Wait()
				if st := s.Status(); st.InFlight != 0 || st.Conns != 0 || time.Since(begun) != 0 {
					t.Errorf("after %v: %+v", time.Since(begun), st)
				}
				near.Close()
				s.Close()
				s.Close()
				s.HandleUDP(t.Context(), "web", q, late)
				if n := s.Status().Dropped[DropClosed]; n != 1 {
					t.Errorf("%d dropped as closed; want 1", n)
				}
			})
		})
	}
}

// Guests bring about failures at will; the log says so once a minute at most.
func TestHealthLog(t *testing.T) {
	log := &lines{}
	now := time.Unix(0, 0)
	fail := true
	u := behave(t, "192.0.2.1")
	s := start(t, Config{
		Resolvers: []netip.AddrPort{u.addr},
		Now:       func() time.Time { return now },
		Logger:    slog.New(slog.NewTextHandler(log, nil)),
		Dial: func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
			if fail {
				return nil, errors.New("network is down")
			}
			return net.Dial(network, dst.String())
		},
	})
	for range 20 {
		overUDP(t, s, question("example.com A"))
		fail = !fail
	}
	if st := s.Status(); st.ServFail != 10 || !strings.Contains(st.LastError, "network is down") || !st.LastErrorAt.Equal(now) {
		t.Errorf("%+v", st)
	}
	if n := log.count("do not answer"); n != 1 || log.count("answer again") != 0 {
		t.Errorf("log:\n%s", log)
	}
	now = now.Add(logEvery)
	fail = false
	overUDP(t, s, question("example.com A"))
	if log.count("answer again") != 1 {
		t.Errorf("log:\n%s", log)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		conf Config
		text string
	}{
		{Config{Domain: "."}, "no domain"},
		{Config{Domain: strings.Repeat("a", 64)}, "no domain"},
		{Config{Zones: []string{""}}, "no domain"},
		{Config{Prefixes: []netip.Prefix{{}}}, "no prefix"},
		{Config{Gateway: []netip.Addr{{}}}, "gateway"},
		{Config{Host: addrs("fe80::1%eth0")}, "gateway's or the host's"},
		{Config{Resolvers: []netip.AddrPort{{}}}, "without an address"},
		{Config{Limits: Limits{PerGuest: -1}}, "limit of -1"},
		{Config{Limits: Limits{Total: -1}}, "limit of -1ns"},
	} {
		if s, err := New(c.conf); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%+v: %v; want an error with %q", c.conf, err, c.text)
			if err == nil {
				s.Close()
			}
		}
	}
}

func ExampleServer_HandleUDP() {
	s, err := New(Config{Gateway: []netip.Addr{netip.MustParseAddr("10.0.2.2")}, Resolvers: []netip.AddrPort{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	ask := new(wire.Msg)
	ask.SetQuestion("gateway.internal.", wire.TypeA)
	datagram, _ := ask.Pack()
	s.HandleUDP(context.Background(), "web", datagram, func(answer []byte) {
		var m wire.Msg
		_ = m.Unpack(answer)
		fmt.Println(m.Answer[0].(*wire.A).A)
	})
	// Output: 10.0.2.2
}
