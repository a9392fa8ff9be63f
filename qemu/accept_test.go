package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/link"
)

// What real clients begin with.
var (
	vpnkitHello   = slices.Concat([]byte("VMN3T\x16\x00\x00\x00"), []byte("0123456789abcdef0123456789abcdef01234567"))
	vpnkitCommand = slices.Concat([]byte{1}, []byte("c3d68012-0208-11ea-9fd7-f2189899ab08"), make([]byte, 4))
	vpnkit        = string(vpnkitHello) + string(vpnkitCommand)
	gvforwarder   = "POST /connect HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n\r\n"
)

// sides are two ends of a connection, with a descriptor and without.
var sides = map[string]func(testing.TB) (near, far net.Conn){
	"socket": func(t testing.TB) (net.Conn, net.Conn) {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		a, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close(); b.Close() })
		return a, b
	},
	"net.Pipe": func(t testing.TB) (net.Conn, net.Conn) {
		a, b := net.Pipe()
		t.Cleanup(func() { a.Close(); b.Close() })
		return a, b
	},
}

// Whatever a guest begins with, its frames are read whole, those too that came together with the handshake, and it
// hears what its handshake has for an answer and not a byte more.
func TestAccept(t *testing.T) {
	frame := pattern(86, 1) // in 16 bits little-endian it begins with a V
	qemuFrame := append([]byte{0, 0, 0, 86}, frame...)
	leFrame := append([]byte{86, 0}, frame...)
	longFrame := append([]byte{0x50, 0x4f}, pattern(0x4f50, 2)...) // "PO"
	granted := make([]byte, 258)
	granted[0] = 1
	binary.LittleEndian.PutUint16(granted[1:], 1500)
	binary.LittleEndian.PutUint16(granted[3:], 1518)
	copy(granted[5:], cardOf([]byte("c3d68012-0208-11ea-9fd7-f2189899ab08")))
	noCommand := make([]byte, 258)
	copy(noCommand, "\x02\x0fno such command")

	type door func(net.Conn, int) (link.Link, error)
	both := []door{Accept, AcceptHyperKit}
	for _, x := range []struct {
		name   string
		doors  []door
		sends  string // and then frames
		frames []byte
		hears  string // all of it, or with a trailing … its beginning
		err    string // "" where a wire comes of it
	}{
		{"QEMU", both[:1], "", qemuFrame, "", ""},
		{"no handshake", both[1:], "", leFrame, "", ""},
		{"no handshake and a length in capitals", both[1:], "", longFrame, "", ""},
		{"HyperKit", both, vpnkit, leFrame, string(vpnkitHello) + string(granted), ""},
		{"HyperKit with an address", both, string(vpnkitHello) + "\x08" + string(vpnkitCommand[1:]), leFrame, string(vpnkitHello) + string(granted), ""},
		{"HyperKit with another command", both, string(vpnkitHello) + "\x03" + string(vpnkitCommand[1:]), nil, string(vpnkitHello) + string(noCommand), "HyperKit wants 3"},
		{"HyperKit that ends", both, vpnkit[:60], nil, string(vpnkitHello), "command: unexpected EOF"},
		{"gvforwarder", both, gvforwarder, leFrame, "", ""},
		{"a bare request", both, "POST /connect HTTP/1.0\r\n\r\n", leFrame, "", ""},
		{"a request with a query", both, "POST /connect?x=1 HTTP/1.1\r\nHost: vm\r\n\r\n", leFrame, "", ""},
		{"GET", both, "GET /connect HTTP/1.1\r\nHost: x\r\n\r\n", nil, "HTTP/1.1 405 Method Not Allowed\r\nAllow: POST\r\n…", "POST /connect"},
		{"the API", both, "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", nil, "HTTP/1.1 404 …", "control socket"},
		{"a method of no RFC's", both[:1], "PATCH / HTTP/1.1\r\n\r\n", nil, "HTTP/1.1 404 …", "refused"},
		{"a body", both, "POST /connect HTTP/1.1\r\nContent-Length: 88\r\n\r\n", leFrame, "HTTP/1.1 400 …", "body"},
		{"two lengths", both, "POST /connect HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 88\r\n\r\n", leFrame, "HTTP/1.1 400 …", "body"},
		{"a list of lengths", both, "POST /connect HTTP/1.1\r\nContent-Length: 0, 88\r\n\r\n", leFrame, "HTTP/1.1 400 …", "body"},
		{"a chunked body", both, "POST /connect HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", leFrame, "HTTP/1.1 400 …", "body"},
		{"a length that has a space before its colon", both, "POST /connect HTTP/1.1\r\nContent-Length : 88\r\n\r\n", leFrame, "HTTP/1.1 400 …", "no header field"},
		{"a continued line", both, "POST /connect HTTP/1.1\r\nContent-Length: 0\r\n 88\r\n\r\n", leFrame, "HTTP/1.1 400 …", "no header field"},
		{"a continued line with a colon", both, "POST /connect HTTP/1.1\r\nX: 0\r\n Y: 88\r\n\r\n", leFrame, "HTTP/1.1 400 …", "no header field"},
		{"a line without CR", both, "POST /connect HTTP/1.1\nHost: x\r\n\r\n", nil, "HTTP/1.1 400 …", "control characters"},
		{"a NUL", both, "POST /connect HTTP/1.1\r\nHost: \x00\r\n\r\n", nil, "HTTP/1.1 400 …", "control characters"},
		{"an expectation", both, "POST /connect HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", nil, "HTTP/1.1 400 …", "body"},
		{"a page of another site", both, "POST /connect HTTP/1.1\r\nContent-Length: 0\r\nOrigin: http://evil.example\r\n\r\n", leFrame, "HTTP/1.1 403 …", "browser"},
		{"a browser", both, "POST /connect HTTP/1.1\r\nSec-Fetch-Mode: no-cors\r\n\r\n", leFrame, "HTTP/1.1 403 …", "browser"},
		{"HTTP/2", both[:1], "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", nil, "HTTP/1.1 400 …", "no request line"},
		{"no version", both, "POST /connect\r\n\r\n", nil, "HTTP/1.1 400 …", "no request line"},
		{"an endless head", both, "POST /connect HTTP/1.1\r\nX: " + strings.Repeat("y", 2*headMost), nil, "HTTP/1.1 431 …", "8192 bytes"},
		{"endless fields", both, "POST /connect HTTP/1.1\r\n" + strings.Repeat("X: y\r\n", headMost/4), nil, "HTTP/1.1 431 …", "8192 bytes"},
		{"a request that ends", both, gvforwarder[:30], nil, "", "unexpected EOF"},
		{"HyperKit's first letter alone", both[:1], "V", nil, "", "EOF"},
		{"nothing", both, "", nil, "", "EOF"},
	} {
		for i, accept := range x.doors {
			for side, conns := range sides {
				for _, bite := range []int{1 << 20, 1} {
					near, far := conns(t)
					go func() {
						all := append([]byte(x.sends), x.frames...)
						for len(all) > 0 {
							n := min(bite, len(all))
							if _, err := far.Write(all[:n]); err != nil {
								return // refused before its end
							}
							all = all[n:]
						}
						if x.frames == nil && side == "socket" {
							far.(*net.UnixConn).CloseWrite()
						} else if x.frames == nil {
							time.AfterFunc(50*time.Millisecond, func() { far.Close() }) // a pipe has no half
						}
					}()
					heard := make(chan string, 1)
					go func() {
						all, _ := io.ReadAll(far)
						heard <- string(all)
					}()
					l, err := accept(near, 0)
					if x.err != "" {
						if err == nil || !strings.Contains(err.Error(), x.err) {
							t.Errorf("%s, door %d, %s: error %v, want %q", x.name, i, side, err, x.err)
						}
						if l != nil {
							t.Errorf("%s, door %d, %s: a wire", x.name, i, side)
						}
					} else if err != nil {
						t.Errorf("%s, door %d, %s: %v", x.name, i, side, err)
					} else {
						b := &link.Batch{}
						want := frame
						if len(x.frames) > len(qemuFrame) {
							want = x.frames[2:]
						}
						if err := l.ReadFrames(b); err != nil || len(b.Frames) != 1 || !bytes.Equal(b.AppendTo(nil, b.Frames[0]), want) {
							t.Errorf("%s, door %d, %s: %d frames, %v", x.name, i, side, len(b.Frames), err)
						}
						l.Close()
					}
					got := <-heard // the near end is closed by now, whatever came of it
					begin, part := strings.CutSuffix(x.hears, "…")
					if side == "net.Pipe" && x.err != "" && x.frames == nil {
						continue // its far end was closed by time
					}
					if part && !strings.HasPrefix(got, begin) || !part && got != x.hears {
						t.Errorf("%s, door %d, %s: it hears %q, want %q", x.name, i, side, got, x.hears)
					}
				}
			}
		}
	}
}

// After a handshake on a socket the descriptor carries the frames, as without one.
func TestAcceptKeepsTheDescriptor(t *testing.T) {
	for name, hello := range map[string]string{"QEMU": "\x00", "gvforwarder": gvforwarder, "HyperKit": vpnkit} {
		near, far := sides["socket"](t)
		far.Write([]byte(hello))
		l, err := Accept(near, 0)
		if err != nil {
			t.Fatal(err)
		}
		if c := l.(interface{ conn() net.Conn }).conn(); c != near {
			t.Errorf("%s: over %T", name, c)
		}
	}
}

// A guest that says nothing is one without a handshake, and loses nothing by it.
func TestAcceptOfASilentGuest(t *testing.T) {
	defer func(d time.Duration) { silence = d }(silence)
	silence = 20 * time.Millisecond
	for side, conns := range sides {
		for i, accept := range []func(net.Conn, int) (link.Link, error){Accept, AcceptHyperKit} {
			near, far := conns(t)
			l, err := accept(near, 0)
			if err != nil {
				t.Fatalf("%s: %v", side, err)
			}
			frame := pattern(60, 1)
			go far.Write(append(every[i].length(nil, len(frame)), frame...))
			b := &link.Batch{}
			if err := l.ReadFrames(b); err != nil || len(b.Frames) != 1 || !bytes.Equal(b.AppendTo(nil, b.Frames[0]), frame) {
				t.Errorf("%s, door %d: %d frames, %v", side, i, len(b.Frames), err)
			}
			l.Close()
		}
	}
}

// A handshake that goes on for ever ends all the same.
func TestAcceptTakesItsTime(t *testing.T) {
	defer func(d time.Duration) { handshakeTime = d }(handshakeTime)
	const short = 100 * time.Millisecond
	handshakeTime = short
	for side, conns := range sides {
		for name, slow := range map[string]string{"request": gvforwarder, "greeting": vpnkit} {
			near, far := conns(t)
			done := make(chan error, 1)
			go func() {
				_, err := AcceptHyperKit(near, 0)
				done <- err
			}()
			go func() {
				for i := range len(slow) {
					if _, err := far.Write([]byte(slow[i : i+1])); err != nil {
						return
					}
					time.Sleep(short / 10)
				}
			}()
			go io.Copy(io.Discard, far)
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), "not done within") {
					t.Errorf("%s, %s: %v", side, name, err)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("%s, %s: it goes on", side, name)
			}
			far.Close()
		}
	}
}

// Close from outside ends the wait for a first byte.
func TestAcceptCanBeEnded(t *testing.T) {
	for side, conns := range sides {
		near, _ := conns(t)
		done := make(chan error, 1)
		go func() {
			_, err := Accept(near, 0)
			done <- err
		}()
		time.AfterFunc(20*time.Millisecond, func() { near.Close() })
		if err := <-done; !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%s: %v", side, err)
		}
	}
}

func TestCardOf(t *testing.T) {
	a, b := cardOf([]byte("one")), cardOf([]byte("two"))
	if a.String() == b.String() || a.String() != cardOf([]byte("one")).String() || a[0]&3 != 2 {
		t.Errorf("%v, %v", a, b)
	}
}

// FuzzAccept: whatever comes first, it ends, and what is behind a handshake is read as frames or not at all.
func FuzzAccept(f *testing.F) {
	f.Fuzz(func(t *testing.T, in []byte, any bool) {
		if len(in) > 1<<17 {
			return
		}
		accept := AcceptHyperKit
		if any {
			accept = Accept
		}
		var out bytes.Buffer
		l, err := accept(closing{halves{Reader: bytes.NewReader(in), Writer: &out}}, 0)
		if (l == nil) == (err == nil) {
			t.Fatalf("%v and %v", l, err)
		}
		if out.Len() > 1000 {
			t.Fatalf("an answer of %d bytes", out.Len())
		}
		if l == nil {
			return
		}
		if b := out.Bytes(); len(b) > 0 && (len(b) != initLen+replyLen || !bytes.Equal(b[:initLen], in[:initLen])) {
			t.Fatalf("a wire, after an answer of %q", b)
		}
		batch, total := &link.Batch{}, 0
		for {
			batch.Next()
			if err := l.ReadFrames(batch); err != nil {
				break
			}
			for _, s := range batch.Frames {
				total += s.Len()
			}
		}
		if total > len(in) {
			t.Fatalf("%d bytes became %d", len(in), total)
		}
	})
}

func (s *stream) conn() net.Conn { return s.c }

type closing struct{ halves }

func (closing) Close() error                    { return nil }
func (closing) SetReadDeadline(time.Time) error { return os.ErrNoDeadline }
