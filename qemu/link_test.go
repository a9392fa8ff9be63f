package qemu_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/qemu"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// conn is a connection without a descriptor whose bytes come from r and go to w.
type conn struct {
	io.Reader
	io.Writer
	closed chan struct{}
}

func (c *conn) Close() error                     { close(c.closed); return nil }
func (c *conn) LocalAddr() net.Addr              { return nil }
func (c *conn) RemoteAddr() net.Addr             { return nil }
func (c *conn) SetDeadline(time.Time) error      { return nil }
func (c *conn) SetReadDeadline(time.Time) error  { return nil }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

func over(r io.Reader) link.Link {
	return qemu.NewLink(&conn{Reader: r, Writer: io.Discard, closed: make(chan struct{})})
}

// announced is a frame of n bytes as it stands on the wire, filled with a byte of its own.
func announced(n int) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(n))
	return append(b, bytes.Repeat([]byte{byte(n) + 1}, n)...)
}

// readAll reads until the wire ends, as a network does, and says what came.
func readAll(l link.Link) (frames [][]byte, malformed int, err error) {
	var b link.Batch
	defer b.Release()
	for {
		b.Next()
		err := l.ReadFrames(&b)
		malformed += b.Malformed
		b.Malformed = 0
		if err != nil {
			return frames, malformed, err
		}
		if len(b.Frames) == 0 {
			return frames, malformed, errors.New("no frame and no error")
		}
		for _, s := range b.Frames {
			frames = append(frames, b.AppendTo(nil, s))
		}
	}
}

func TestFraming(t *testing.T) {
	cat := func(b ...[]byte) []byte { return bytes.Join(b, nil) }
	for _, tt := range []struct {
		name      string
		bytes     []byte
		sizes     []int
		malformed int
		err       error  // nil: io.EOF
		length    uint32 // of a FrameError
	}{
		{name: "nothing"},
		{name: "one", bytes: announced(60), sizes: []int{60}},
		{name: "the shortest", bytes: announced(14), sizes: []int{14}},
		{name: "zero length", bytes: cat(announced(0), announced(60)), sizes: []int{60}, malformed: 1},
		{name: "one byte", bytes: cat(announced(1), announced(60)), sizes: []int{60}, malformed: 1},
		{name: "too short", bytes: cat(announced(60), announced(13), announced(61)), sizes: []int{60, 61}, malformed: 1},
		{name: "only short ones", bytes: cat(announced(0), announced(13), announced(0)), malformed: 3},
		{name: "more than 64 KiB", bytes: cat(announced(65536), announced(60)), sizes: []int{65536, 60}},
		{name: "the longest", bytes: cat(announced(69632), announced(69632), announced(60)), sizes: []int{69632, 69632, 60}},
		{name: "too long", bytes: announced(69633), length: 69633},
		{name: "too long behind good ones", bytes: cat(announced(60), announced(61), announced(69633), announced(60)), sizes: []int{60, 61}, length: 69633},
		{name: "huge", bytes: []byte{0xff, 0xff, 0xff, 0xff}, length: 0xffffffff},
		{name: "another protocol", bytes: []byte("GET / HTTP/1.1\r\n"), length: 0x47455420},
		{name: "end in a length", bytes: cat(announced(60), []byte{0, 0}), sizes: []int{60}},
		{name: "end in a frame", bytes: cat(announced(60), announced(1000)[:500]), sizes: []int{60}},
		{name: "end behind a length", bytes: announced(1000)[:4]},
	} {
		check := func(t *testing.T, r io.Reader) {
			t.Helper()
			frames, malformed, err := readAll(over(r))
			var fe *qemu.FrameError
			switch {
			case tt.length != 0:
				if !errors.As(err, &fe) || fe.Length != tt.length || !strings.Contains(err.Error(), "69632") {
					t.Errorf("error %v, want a FrameError of %d", err, tt.length)
				}
			case err != io.EOF:
				t.Errorf("error %v, want EOF", err)
			}
			if malformed != tt.malformed {
				t.Errorf("%d malformed, want %d", malformed, tt.malformed)
			}
			if len(frames) != len(tt.sizes) {
				t.Fatalf("%d frames, want %d", len(frames), len(tt.sizes))
			}
			for i, f := range frames {
				if !bytes.Equal(f, announced(tt.sizes[i])[4:]) {
					t.Errorf("frame %d is another: %d bytes, want %d", i, len(f), tt.sizes[i])
				}
			}
		}
		t.Run(tt.name, func(t *testing.T) { check(t, bytes.NewReader(tt.bytes)) })
		t.Run(tt.name+", byte by byte", func(t *testing.T) { check(t, iotest.OneByteReader(bytes.NewReader(tt.bytes))) })
		if len(tt.bytes) < 500 {
			t.Run(tt.name+", cut in two anywhere", func(t *testing.T) {
				for i := range len(tt.bytes) {
					check(t, io.MultiReader(bytes.NewReader(tt.bytes[:i]), bytes.NewReader(tt.bytes[i:])))
				}
			})
		}
	}
}

// A peer that sends nothing but what is passed over does not make memory grow.
func TestMalformedFloodIsBounded(t *testing.T) {
	const runts = 1 << 20
	flood := bytes.Repeat(announced(13), runts)
	b := link.Batch{}
	live, most := 0, 0
	b.Alloc = func() link.Chunk {
		live++
		most = max(most, live)
		return link.Chunk{Mem: make([]byte, link.ChunkSize)}
	}
	b.Free = func(link.Chunk) { live-- }
	if err := over(bytes.NewReader(flood)).ReadFrames(&b); err != io.EOF {
		t.Fatalf("read: %v", err)
	}
	if b.Malformed != runts {
		t.Errorf("%d counted, want %d", b.Malformed, runts)
	}
	if most > 8 {
		t.Errorf("%d chunks were held at once for frames of 13 bytes", most)
	}
	b.Release()
	if live != 0 {
		t.Errorf("%d chunks are left", live)
	}
}

func frames(sizes ...int) (fs []link.Frame, wire []byte) {
	for i, n := range sizes {
		b := announced(n)[4:]
		f := link.NewFrame(b[:min(n, 14+i%3)])
		for rest := b[min(n, 14+i%3):]; len(rest) > 0; {
			k := min(len(rest), 700)
			f.Body = append(f.Body, rest[:k])
			rest = rest[k:]
		}
		fs = append(fs, f)
		wire = append(wire, announced(n)...)
	}
	return fs, wire
}

func TestWriteFrames(t *testing.T) {
	var many []int
	for i := range 3000 { // more than one system call takes
		many = append(many, 60+i%1400)
	}
	for _, tt := range []struct {
		name  string
		sizes []int
	}{{"none", nil}, {"one", []int{60}}, {"in pieces", []int{1514, 65550, 14, 60}}, {"many", many}} {
		t.Run(tt.name, func(t *testing.T) {
			fs, want := frames(tt.sizes...)
			t.Run("without a descriptor", func(t *testing.T) {
				var got bytes.Buffer
				l := qemu.NewLink(&conn{Reader: strings.NewReader(""), Writer: &got, closed: make(chan struct{})})
				for range 2 { // a second time from the same frames: they were borrowed
					got.Reset()
					if n, err := l.WriteFrames(fs); n != len(fs) || err != nil {
						t.Fatalf("%d, %v", n, err)
					}
					if !bytes.Equal(got.Bytes(), want) {
						t.Errorf("%d bytes on the wire, want %d, or others", got.Len(), len(want))
					}
				}
			})
			t.Run("to a peer that reads slowly", func(t *testing.T) {
				a, b := pair(t)
				if u, ok := a.(*net.UnixConn); ok {
					u.SetWriteBuffer(4096)
				}
				l := qemu.NewLink(a)
				if u, ok := a.(*net.UnixConn); ok {
					u.SetWriteBuffer(4096) // NewLink has set its own
				}
				got := make(chan []byte)
				go func() { g, _ := io.ReadAll(iotest.HalfReader(b)); got <- g }()
				if n, err := l.WriteFrames(fs); n != len(fs) || err != nil {
					t.Fatalf("%d, %v", n, err)
				}
				l.Close()
				if g := <-got; !bytes.Equal(g, want) {
					t.Errorf("%d bytes came, want %d, or others", len(g), len(want))
				}
			})
		})
	}
}

func pair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
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
}

// Close wakes a reader and a writer that waits for its peer; afterwards all is net.ErrClosed. The same over a socket
// and over net.Pipe, which has no descriptor.
func TestClose(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func() (net.Conn, net.Conn)
	}{
		{"socket", func() (net.Conn, net.Conn) { return pair(t) }},
		{"net.Pipe", net.Pipe},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := tt.make()
			defer b.Close()
			l := qemu.NewLink(a)
			read, wrote := make(chan error), make(chan error)
			go func() { read <- l.ReadFrames(&link.Batch{}) }()
			go func() {
				fs, _ := frames(65000)
				for {
					if _, err := l.WriteFrames(fs); err != nil {
						wrote <- err
						return
					}
				}
			}()
			one := make([]byte, 1)
			b.Read(one) // both are under way
			l.Close()
			for what, c := range map[string]chan error{"read": read, "write": wrote} {
				if err := <-c; !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if err := l.ReadFrames(&link.Batch{}); !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("read after close: %v", err)
			}
			if err := l.Close(); err != nil {
				t.Errorf("closed twice: %v", err)
			}
		})
	}
}

func TestNetPipe(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	l := qemu.NewLink(b)
	defer l.Close()
	go func() {
		w := announced(60)
		for i := range w {
			a.Write(w[i : i+1])
		}
		a.Close()
	}()
	got, _, err := readAll(l)
	if len(got) != 1 || !bytes.Equal(got[0], announced(60)[4:]) || err != io.EOF {
		t.Errorf("%d frames, %v", len(got), err)
	}
}

// What a stream of bytes says does not depend on how it is cut, nothing is lost and nothing is made up.
func FuzzRead(f *testing.F) {
	for _, n := range []int{0, 1, 13, 14, 60, 1514, 69632, 69633} {
		f.Add(announced(n), uint16(1))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, uint16(3))
	f.Add(append(announced(60), announced(1000)[:99]...), uint16(7))
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) {
		if len(b) > 1<<20 {
			return
		}
		whole, bad, err := readAll(over(bytes.NewReader(b)))
		k := min(int(cut), len(b))
		parts, bad2, err2 := readAll(over(io.MultiReader(bytes.NewReader(b[:k]), iotest.HalfReader(bytes.NewReader(b[k:])))))
		if fmt.Sprint(err) != fmt.Sprint(err2) || len(whole) != len(parts) {
			t.Fatalf("whole: %d frames, %v; cut: %d frames, %v", len(whole), err, len(parts), err2)
		}
		used := 0
		for i := range whole {
			if !bytes.Equal(whole[i], parts[i]) || len(whole[i]) < 14 || len(whole[i]) > link.MaxFrame {
				t.Fatalf("frame %d differs, or has %d bytes", i, len(whole[i]))
			}
			used += 4 + len(whole[i])
		}
		if used+4*bad > len(b) || bad != bad2 && err == io.EOF {
			t.Fatalf("%d bytes gave %d bytes of frames and %d malformed", len(b), used, bad)
		}
	})
}
