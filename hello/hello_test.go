package hello

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmnetd/vmnetd/flows"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func named(how flows.HelloKind, name string) flows.Hello { return flows.Hello{How: how, Name: name} }

// captured is what a client of Go's own writes before it reads.
func captured(client func(net.Conn)) []byte {
	var c deaf
	client(&c)
	return c.Bytes()
}

// deaf is a conn that ends where its user waits for an answer.
type deaf struct {
	net.Conn
	bytes.Buffer
}

func (*deaf) Read([]byte) (int, error)         { return 0, io.EOF }
func (d *deaf) Write(b []byte) (int, error)    { return d.Buffer.Write(b) }
func (*deaf) SetDeadline(time.Time) error      { return nil }
func (*deaf) SetReadDeadline(time.Time) error  { return nil }
func (*deaf) SetWriteDeadline(time.Time) error { return nil }
func (*deaf) Close() error                     { return nil }

func goHello(c *tls.Config) []byte {
	c.InsecureSkipVerify = c.ServerName == ""
	return captured(func(conn net.Conn) { tls.Client(conn, c).Handshake() })
}

// byByte looks after each byte, as the worst guest sends them, and says after how many it was known.
func byByte(b []byte) (h flows.Hello, more bool, after int) {
	var s Stream
	for i := range b {
		if h, more = s.Look(b[:i+1]); !more {
			return h, false, i + 1
		}
	}
	return h, true, len(b)
}

func TestTLSClients(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    *tls.Config
		want string
	}{
		{"tls 1.3", &tls.Config{ServerName: "Example.COM"}, "example.com"},
		{"tls 1.2", &tls.Config{ServerName: "a.b.example", MaxVersion: tls.VersionTLS12}, "a.b.example"},
		{"tls 1.0", &tls.Config{ServerName: "old.example", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10}, "old.example"},
		{"alpn", &tls.Config{ServerName: "h2.example", NextProtos: []string{"h2", "http/1.1"}}, "h2.example"},
		{"no name", &tls.Config{}, ""},
		{"a literal address, which has no place there", &tls.Config{ServerName: "192.0.2.1"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := goHello(tt.c)
			want := named(flows.HelloTLS, tt.want)
			var s Stream
			if h, more := s.Look(b); h != want || more {
				t.Errorf("whole: %v, %v; want %v", h, more, want)
			}
			if h, more, after := byByte(b); h != want || more || after != len(b) {
				t.Errorf("by byte: %v, %v after %d of %d; want %v", h, more, after, len(b), want)
			}
			if h, more, _ := byByte(b[:len(b)-1]); !more {
				t.Errorf("cut short: %v", h)
			}
			for _, size := range []int{1, 3, 100} { // more records than one
				if size == 1 && len(b) > 1000 {
					continue // more heads than Most has room for
				}
				if h, more, _ := byByte(records(b[5:], size)); h != want || more {
					t.Errorf("records of %d: %v, %v; want %v", size, h, more, want)
				}
			}
		})
	}
}

// records wraps a handshake message in records of a size.
func records(message []byte, size int) (out []byte) {
	for len(message) > 0 {
		n := min(size, len(message))
		out = append(out, 22, 3, 1, byte(n>>8), byte(n))
		out = append(out, message[:n]...)
		message = message[n:]
	}
	return out
}

func vec(size int, parts ...[]byte) []byte {
	b := bytes.Join(parts, nil)
	head := make([]byte, size)
	for i := range size {
		head[size-1-i] = byte(len(b) >> (8 * i))
	}
	return append(head, b...)
}

func ext(kind uint16, body []byte) []byte {
	return append([]byte{byte(kind >> 8), byte(kind)}, vec(2, body)...)
}

func sni(names ...string) []byte {
	var list []byte
	for _, n := range names {
		list = append(append(list, 0), vec(2, []byte(n))...)
	}
	return ext(0, vec(2, list))
}

func message(extensions ...[]byte) []byte {
	body := bytes.Join([][]byte{{3, 3}, make([]byte, 32), vec(1), vec(2, []byte{0x13, 1}), vec(1, []byte{0}), vec(2, extensions...)}, nil)
	return append([]byte{1}, vec(3, body)...)
}

func TestTLSByHand(t *testing.T) {
	edit := func(b []byte, at int, v ...byte) []byte { b = bytes.Clone(b); copy(b[at:], v); return b }
	one := func(exts ...[]byte) []byte { return records(message(exts...), 1<<14) }
	unnamed := named(flows.HelloTLS, "")
	plain := one(sni("example.com"))
	for _, tt := range []struct {
		name  string
		b     []byte
		want  flows.Hello
		more  bool
		after int // 0: all
	}{
		{"plain", plain, named(flows.HelloTLS, "example.com"), false, 0},
		{"trailing dot", one(sni("Example.com.")), named(flows.HelloTLS, "example.com"), false, 0},
		{"underscore", one(sni("_dmarc.x_y.example")), named(flows.HelloTLS, "_dmarc.x_y.example"), false, 0},
		{"address", one(sni("192.0.2.1")), named(flows.HelloTLS, "192.0.2.1"), false, 0},
		{"address of six", one(sni("2001:DB8:0::1")), named(flows.HelloTLS, "2001:db8::1"), false, 0},
		{"zone", one(sni("fe80::1%eth0")), unclear, false, 0},
		{"two dots", one(sni("example.com..")), unclear, false, 0},
		{"empty label", one(sni("a..b")), unclear, false, 0},
		{"only a dot", one(sni(".")), unclear, false, 0},
		{"empty", one(sni("")), unclear, false, 0},
		{"zero byte", one(sni("good.example\x00.evil.example")), unclear, false, 0},
		{"not ascii", one(sni("bücher.example")), unclear, false, 0},
		{"a-label", one(sni("xn--bcher-kva.example")), named(flows.HelloTLS, "xn--bcher-kva.example"), false, 0},
		{"space", one(sni("example.com ")), unclear, false, 0},
		{"port", one(sni("example.com:443")), unclear, false, 0},
		{"long label", one(sni(strings.Repeat("a", 64) + ".example")), unclear, false, 0},
		{"longest label", one(sni(strings.Repeat("a", 63) + ".example")), named(flows.HelloTLS, strings.Repeat("a", 63)+".example"), false, 0},
		{"long name", one(sni(strings.Repeat("a.", 127) + "b")), unclear, false, 0},
		{"longest name", one(sni(strings.Repeat("a.", 126) + "b")), named(flows.HelloTLS, strings.Repeat("a.", 126)+"b"), false, 0},
		{"two names", one(sni("a.example", "b.example")), unclear, false, 0},
		{"the same name twice", one(sni("a.example", "a.example")), unclear, false, 0},
		{"no names", one(ext(0, vec(2))), unclear, false, 0},
		{"another type of name", one(ext(0, vec(2, []byte{1}, vec(2, []byte("a.example"))))), unclear, false, 0},
		{"two extensions", one(sni("a.example"), sni("b.example")), unclear, false, 0},
		{"a name and an empty one", one(sni("a.example"), ext(0, nil)), unclear, false, 0},
		{"byte after the list", one(ext(0, append(vec(2, []byte{0}, vec(2, []byte("a.example"))), 0))), unclear, false, 0},
		{"after others", one(ext(0x0a0a, nil), ext(16, []byte{0, 3, 2, 'h', '2'}), sni("a.example")), named(flows.HelloTLS, "a.example"), false, 0},
		{"the outer name of ECH", one(ext(0xfe0d, make([]byte, 200)), sni("public.example")), named(flows.HelloTLS, "public.example"), false, 0},
		{"no extensions", records(append([]byte{1}, vec(3, []byte{3, 1}, make([]byte, 32), vec(1), vec(2, []byte{0, 5}), vec(1, []byte{0}))...), 1<<14), unnamed, false, 0},
		{"extensions too long", edit(plain, 5+4+2+32+1+4+2, 0xff), unclear, false, 0},
		{"hello shorter than it says", edit(plain, 8, plain[8]-1), unclear, false, 0},
		{"version 2", edit(plain, 9, 2), unclear, false, 0},
		{"server hello", edit(plain, 5, 2), flows.Hello{}, false, 6},
		{"alert before", append([]byte{21, 3, 1, 0, 2, 1, 0}, plain...), unclear, false, 2},
		{"no record", []byte{22, 2, 1}, flows.Hello{}, false, 2},
		{"nor this", []byte{25, 3, 1}, flows.Hello{}, false, 1},
		{"first bytes only", plain[:3], flows.Hello{}, true, 0},
		{"record of nothing", []byte{22, 3, 1, 0, 0}, unclear, false, 5},
		{"record too long", []byte{22, 3, 1, 0x40, 1}, unclear, false, 5},
		{"something between", append(records(message(sni("a.example"))[:20], 20), 20, 3, 1, 0, 1, 1), unclear, false, 27},
		{"hello too long", []byte{22, 3, 1, 0x40, 0, 1, 0, 0x40, 1}, unclear, false, 9},
		{"hello as long as may be", records(message(sni("big.example"), ext(21, make([]byte, mostHello-2-32-1-4-2-2-20-4))), 1<<14),
			named(flows.HelloTLS, "big.example"), false, 0},
		{"more heads than there is room for", records(message(sni("a.example"), ext(21, make([]byte, 4000))), 1), unclear, false, Most},
		{"ssl 2", []byte{0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10}, unnamed, false, 5},
		{"ssl 2, truly", []byte{0x80, 0x2e, 1, 0, 2, 0, 0x15}, unnamed, false, 5},
		{"not ssl 2", []byte{0x80, 0x2e, 2}, flows.Hello{}, false, 3},
		{"nor this", []byte{0x80, 0x2e, 1, 0, 3}, flows.Hello{}, false, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, more, after := byByte(tt.b)
			if tt.after == 0 {
				tt.after = len(tt.b)
			}
			if h != tt.want || more != tt.more || after != tt.after {
				t.Errorf("%v, %v after %d of %d; want %v, %v after %d", h, more, after, len(tt.b), tt.want, tt.more, tt.after)
			}
			var s Stream
			if h, more := s.Look(tt.b); h != tt.want || more != tt.more {
				t.Errorf("whole: %v, %v; want %v, %v", h, more, tt.want, tt.more)
			}
		})
	}
}

func TestHTTPClient(t *testing.T) {
	for _, tt := range []struct{ url, host, want string }{
		{"http://Example.com/a?b", "", "example.com"},
		{"http://example.com:8080/", "", "example.com"},
		{"http://[2001:db8::1]:8080/", "", "2001:db8::1"},
		{"http://192.0.2.1/", "", "192.0.2.1"},
		{"http://192.0.2.1/", "virtual.example.", "virtual.example"},
	} {
		b := captured(func(c net.Conn) {
			r, _ := http.NewRequest("POST", tt.url, strings.NewReader("a=b"))
			r.Host = tt.host
			r.Write(c)
		})
		want := named(flows.HelloHTTP, tt.want)
		if h, more, _ := byByte(b); h != want || more {
			t.Errorf("%q: %v, %v; want %v", b, h, more, want)
		}
	}
}

func TestHTTPByHand(t *testing.T) {
	none, unnamed := flows.Hello{}, named(flows.HelloHTTP, "")
	a := named(flows.HelloHTTP, "a.example")
	for _, tt := range []struct {
		b    string
		want flows.Hello
		left int // bytes that it was known before
	}{
		{"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", a, 0},
		{"GET / HTTP/1.1\r\nAccept: */*\r\nhOST:\tA.Example.:80 \t\r\n\r\nbody", a, 4},
		{"GET / HTTP/1.1\nHost: a.example\n\n", a, 0},
		{"\r\n\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n", a, 0},
		{"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", a, 0},
		{"GET http://a.example:80/ HTTP/1.1\r\nHost: a.example\r\n\r\n", a, 0},
		{"GET http://a.example/ HTTP/1.0\r\n\r\n", a, 0},
		{"GET http://a.example HTTP/1.1\r\n\r\n", a, 0},
		{"GET http://a.example?x HTTP/1.1\r\n\r\n", a, 0},
		{"GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n", unclear, 0},
		{"GET http://b.example\\@a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", unclear, 0},
		{"GET http://x@a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", unclear, 0},
		{"GET http://a.example/ HTTP/1.1\r\nHost:\r\n\r\n", unclear, 0},
		{"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", a, 0},
		{"CONNECT a.example:443 HTTP/1.1\r\nHost: proxy.example\r\n\r\n", unclear, 0},
		{"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n\r\n", named(flows.HelloHTTP, "2001:db8::1"), 0},
		{"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", a, 0},
		{"GET * HTTP/1.1\r\nHost: a.example\r\n\r\n", unclear, 19},
		{"GET a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", unclear, 19},
		{"GET / HTTP/1.0\r\n\r\n", unnamed, 0},
		{"GET / HTTP/1.1\r\n\r\n", unnamed, 0},
		{"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n", unclear, 2},
		{"GET / HTTP/1.1\r\nHost: a.example\r\nhost: a.example\r\n\r\n", unclear, 2},
		{"GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n", unclear, 0},
		{"GET / HTTP/1.1\r\nHost: a.example\r\n b.example\r\n\r\n", unclear, 2},
		{"GET / HTTP/1.1\r\n Host: a.example\r\n\r\n", unclear, 2},
		{"GET / HTTP/1.1\r\nX: y\r\n Host: a.example\r\n\r\n", unclear, 2},
		{"GET / HTTP/1.1\r\nHost : a.example\r\n\r\n", unclear, 2},
		{"GET / HTTP/1.1\r\nHost\r\n\r\n", unclear, 2},
		{"GET / HTTP/1.1\r\n: a.example\r\n\r\n", unclear, 2},
		{"GET / HTTP/1.1\r\nHost: a.example\rHost: b.example\r\n\r\n", unclear, 2},
		{"GET / HTTP/1.1\r\nHost: a.example\x00\r\n\r\n", unclear, 2},
		{"GET / HTTP/1.1\r\nHost: a.example:http\r\n\r\n", unclear, 0},
		{"GET / HTTP/1.1\r\nHost: a.example:80:80\r\n\r\n", unclear, 0},
		{"GET / HTTP/1.1\r\nHost: [192.0.2.1]\r\n\r\n", unclear, 0},
		{"GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", unclear, 0},
		{"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", unclear, 0},
		{"GET / HTTP/1.1\r\nHost: a%2eexample\r\n\r\n", unclear, 0},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", unclear, 8},
		{"GET / HTTP/3.0\r\nHost: a.example\r\n\r\n", unclear, 19},
		{"GET / HTTP/1.10\r\nHost: a.example\r\n\r\n", unclear, 19},
		{"GET / HTTP/1.\r\nHost: a.example\r\n\r\n", unclear, 19},
		{"GET  / HTTP/1.1\r\n", unclear, 0},
		{"GET /\vx\fHTTP/1.1\r\n", unclear, 0},
		{"GET / http/1.1\r\n", unclear, 0},
		{"GET / HTTP/1.1 \r\n", unclear, 0},
		{"GET /a b HTTP/1.1\r\n", unclear, 0},
		{"GET /\r\n", none, 0},
		{"GET /\x00", none, 0},
		{"GET\t/ HTTP/1.1\r\n", unclear, 0},
		{" GET / HTTP/1.1\r\n", none, 16},
		{"SSH-2.0-OpenSSH_9.9\r\n", none, 1},
		{"EHLO mail.example\r\n", none, 0},
		{"OPTIONS rtsp://a.example RTSP/1.0\r\n", none, 0},
		{"\x00", none, 0},
		{strings.Repeat("A", 33) + " / HTTP/1.1\r\n", none, 13},
		{strings.Repeat("A", 32) + " / HTTP/1.1\r\nHost: a.example\r\n\r\n", a, 0},
		{"GET /" + strings.Repeat("a", Most), unclear, 5},
		{strings.Repeat("\n", Most), none, 0},
		{"GET / HTTP/1.1\r\nHost:\r\n\r\n", unnamed, 0},
		{"GET / HTTP/1.1\r\nHost: a.example\r\nX: " + strings.Repeat("a", Most-16-17-3), unclear, 0},
	} {
		t.Run(fmt.Sprintf("%.60q", tt.b), func(t *testing.T) {
			h, more, after := byByte([]byte(tt.b))
			if h != tt.want || more || len(tt.b)-after != tt.left {
				t.Errorf("%v, %v with %d bytes left; want %v with %d", h, more, len(tt.b)-after, tt.want, tt.left)
			}
			var s Stream
			if h, more := s.Look([]byte(tt.b)); h != tt.want || more {
				t.Errorf("whole: %v, %v; want %v", h, more, tt.want)
			}
		})
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The worst guest sends the longest hello in the smallest records, a byte at a time: it must not cost more than its
// length, however often it is looked at.
func BenchmarkStreamByByte(b *testing.B) {
	big := message(sni("a.example"), ext(21, make([]byte, mostHello-100)))
	small := message(sni("a.example"), ext(21, make([]byte, 2700)))
	request := "GET /" + strings.Repeat("a", 3000) + " HTTP/1.1\r\nHost: a.example\r\n" + strings.Repeat("X: "+strings.Repeat("a", 1000)+"\r\n", 13)
	for _, bb := range []struct {
		name string
		b    []byte
	}{{"one-record", records(big, 1<<14)}, {"tiny-records", records(small, 1)}, {"request", []byte(request)}, {"empty-lines", bytes.Repeat([]byte{'\n'}, Most)}} {
		b.Run(bb.name, func(b *testing.B) {
			b.SetBytes(int64(len(bb.b)))
			for b.Loop() {
				byByte(bb.b)
			}
		})
	}
}

func BenchmarkStreamWhole(b *testing.B) {
	for name, hello := range map[string][]byte{
		"tls":  goHello(&tls.Config{ServerName: "www.example.com"}),
		"http": []byte("GET /index.html HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n"),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var s Stream
				s.Look(hello)
			}
		})
	}
}
