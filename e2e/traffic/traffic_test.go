package traffic

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEnd(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{nil, "eof"},
		{io.EOF, "eof"},
		{fmt.Errorf("read: %w", syscall.ECONNRESET), "reset"},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, "refused"},
		{os.NewSyscallError("connect", syscall.EHOSTUNREACH), "host-unreachable"},
		{os.NewSyscallError("connect", syscall.ENETUNREACH), "net-unreachable"},
		{os.NewSyscallError("connect", syscall.ETIMEDOUT), "timeout"},
		{os.ErrDeadlineExceeded, "timeout"},
		{net.ErrClosed, "closed"},
		{errors.New("else"), "error"},
	} {
		if got := End(tt.err); got != tt.want {
			t.Errorf("End(%v) = %q, want %q", tt.err, got, tt.want)
		}
	}
}

func dial(t *testing.T, h Handler) (*Server, net.Conn) {
	t.Helper()
	s, err := Serve("tcp", "127.0.0.1:0", h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	// Far more than loopback takes, so that a fault is an error and not a hang.
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return s, c
}

func TestSinkAnswersWithWhatItGot(t *testing.T) {
	s, c := dial(t, Sink)
	const n = 1<<20 + 7
	var r Report
	if err := r.Send(c, 42, n); err != nil {
		t.Fatal(err)
	}
	if err := closeWrite(c); err != nil {
		t.Fatal(err)
	}
	var there Report
	if err := json.NewDecoder(c).Decode(&there); err != nil {
		t.Fatal(err)
	}
	if r.Sent != n || there.Received != n || r.SentHash != there.ReceivedHash || r.SentHash != Hash(42, n) {
		t.Errorf("sent %+v, the sink saw %+v", r, there)
	}
	if done := <-s.Done; done.End != "eof" || done.Received != n {
		t.Errorf("the server reports %+v", done)
	}
}

func TestSourceAndEcho(t *testing.T) {
	const n = 300_000
	_, c := dial(t, Source(7, n))
	var r Report
	if err := r.Receive(c); err != nil {
		t.Fatal(err)
	}
	if r.Received != n || r.ReceivedHash != Hash(7, n) {
		t.Errorf("received %+v", r)
	}

	_, c = dial(t, Echo)
	go func() {
		_, _ = io.Copy(c, Bytes(9, n))
		_ = closeWrite(c)
	}()
	r = Report{}
	if err := r.Receive(c); err != nil {
		t.Fatal(err)
	}
	if r.ReceivedHash != Hash(9, n) {
		t.Errorf("the echo gave %+v", r)
	}
}

func TestResetIsSeenAsReset(t *testing.T) {
	_, c := dial(t, Reset(3))
	if _, err := c.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	_, err := io.ReadAll(c)
	if End(err) != "reset" {
		t.Errorf("ended with %v (%s), want reset", err, End(err))
	}
}

func TestStreamIsChecked(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const enough = 64 << 10
	s, c := dial(t, CheckFrom(func(n int64) {
		if n >= enough {
			cancel()
		}
	}))
	if err := Stream(ctx, c, 0, func(int64) {}); !errors.Is(err, context.Canceled) {
		t.Fatalf("Stream: %v", err)
	}
	c.Close()
	if r := <-s.Done; r.End != "eof" || r.Received < enough {
		t.Errorf("the checker reports %+v", r)
	}
}

func TestStreamKeepsItsRate(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var n int64
	_ = Stream(ctx, io.Discard, 100*blockSize, func(done int64) { n = done })
	// 20 blocks are due in 200 ms; a loaded machine may manage fewer, none may manage more.
	if n < blockSize || n > 21*blockSize {
		t.Errorf("wrote %d bytes in 200 ms at %d a second", n, 100*blockSize)
	}
}

func TestCheckFinds(t *testing.T) {
	good := func() []byte {
		b := make([]byte, 4*blockSize)
		for i := range 4 {
			block(b[i*blockSize:], uint64(i))
		}
		return b
	}
	for _, tt := range []struct {
		name string
		in   func() []byte
		want string // part of the error; "" for none
	}{
		{"a good stream", good, ""},
		{"a flipped bit", func() []byte { b := good(); b[2*blockSize+100] ^= 1; return b }, "block 2: byte 100"},
		{"a lost block", func() []byte { b := good(); return append(b[:blockSize], b[2*blockSize:]...) }, "block 1"},
		{"a doubled block", func() []byte { b := good(); return append(b[:blockSize:blockSize], b...) }, "block 1"},
		{"a torn end", func() []byte { b := good(); return b[:len(b)-1] }, "in block 3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Check(bytes.NewReader(tt.in()), func(int64) {})
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestEchoUDP(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- EchoUDP(pc) }()
	c, err := net.Dial("udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 65535)
	for _, n := range []int{0, 1, 1472, 65507} {
		want := make([]byte, n)
		_, _ = io.ReadFull(Bytes(uint64(n), int64(n)), want)
		if _, err := c.Write(want); err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		got, err := c.Read(b)
		if err != nil || !bytes.Equal(b[:got], want) {
			t.Errorf("%d bytes came back as %d, error %v", n, got, err)
		}
	}
	pc.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
