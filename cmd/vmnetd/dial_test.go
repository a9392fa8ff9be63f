package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/guestlog"
)

// safeLog is where a door logs in a test.
type safeLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *safeLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *safeLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// open starts a door on a network, and ends both with the test.
func open(t *testing.T, f *framing, addr string) (*door, *safeLog) {
	t.Helper()
	said := &safeLog{}
	d, err := openDoor(f, addr, slog.New(guestlog.New(slog.NewTextHandler(said, nil))))
	if err != nil {
		t.Fatal(err)
	}
	n, err := backend.New(backend.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	d.places = make(chan struct{}, 512) // more than a test opens: one that has ended has its place for a moment longer
	doors, endDoors := context.WithCancel(context.Background())
	wires, endWires := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.serve(doors, wires, n) }()
	t.Cleanup(func() {
		endDoors()
		endWires()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the door goes on")
		}
		n.Close()
	})
	return d, said
}

// A VMM that listens is dialled when it is there, and again whenever it has gone. The log says it once.
func TestDialAndDialAgain(t *testing.T) {
	path := filepath.Join(shortDir(t), "vm")
	_, said := open(t, &qemuFraming, "dial:unix:"+strings.ReplaceAll(path, ",", ",,"))
	waitUntil(t.Fatalf, "a try that fails", func() bool { return strings.Contains(said.String(), "does not answer") })
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 3 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := whoHas(c, [4]byte{10, 0, 2, byte(50 + i)}, [4]byte{10, 0, 2, 2}); err != nil {
			t.Errorf("call %d: %v", i+1, err)
		}
		c.Close()
	}
	if n := strings.Count(said.String(), "does not answer"); n != 1 {
		t.Errorf("%d times in the log:\n%s", n, said)
	}
}

// A path is the same for a QEMU that is started elsewhere, and no longer than a socket's may be.
func TestDialPaths(t *testing.T) {
	t.Chdir(shortDir(t))
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	d, err := openDoor(&qemuFraming, "dial:unix:vm.sock", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if want := "dial:unix:" + filepath.Join(dir, "vm.sock"); d.addr != want || !strings.Contains(qemuLines(d), filepath.Join(dir, "vm.sock")) {
		t.Errorf("%s, want %s", d.addr, want)
	}
	var usage usageError
	if _, err := openDoor(&qemuFraming, "dial:unix:/"+strings.Repeat("x", maxUnixPath), nil); !errors.As(err, &usage) {
		t.Errorf("a path that is too long: %v", err)
	}
}

// One who hangs up at once is called less and less often.
func TestDialBacksOff(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open(t, &vdeFraming, "dial:tcp:"+l.Addr().String())
	var at []time.Time
	for range 4 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, time.Now())
		c.Close()
	}
	if a, b := at[1].Sub(at[0]), at[3].Sub(at[2]); a < redialLeast || b < 2*a {
		t.Errorf("called after %v and, two calls on, after %v", a, b)
	}
}

// Whoever does not come to the end of a handshake is in nobody's way, and what is wrong fills no log.
func TestHostileHandshakes(t *testing.T) {
	for _, f := range []*framing{&qemuFraming, &hyperkitFraming} {
		t.Run(f.name, func(t *testing.T) {
			d, said := open(t, f, "tcp:0")
			_, at, _ := strings.Cut(d.addr, ":")
			dial := func(say string) net.Conn {
				t.Helper()
				c, err := net.Dial("tcp", at)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				io.WriteString(c, say)
				return c
			}
			for _, slow := range []string{"", "V", "VMN3T\x16", "P", "POST /connect HTTP/1.1\r\nX: "} {
				for range 10 {
					dial(slow)
				}
			}
			for range 200 {
				c := dial("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				c.SetReadDeadline(time.Now().Add(20 * time.Second))
				if all, err := io.ReadAll(c); err != nil && !errors.Is(err, net.ErrClosed) || !strings.HasPrefix(string(all), "HTTP/1.1 404 ") {
					t.Fatalf("%q, %v", all, err)
				}
			}
			if n := strings.Count(said.String(), "\n"); n > 30 { // package guestlog passes 20 at once
				t.Errorf("%d lines in the log", n)
			}
			c := dial("POST /connect HTTP/1.1\r\nHost: vm\r\nContent-Length: 0\r\n\r\n")
			began := time.Now()
			if _, err := whoHas(sixteen{c}, [4]byte{10, 0, 2, 60}, [4]byte{10, 0, 2, 2}); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("a guest beside them waited %v", took)
			}
		})
	}
}

// sixteen makes lengths of 32 bits big-endian, which whoHas speaks, of a wire with 16 little-endian.
type sixteen struct{ net.Conn }

func (s sixteen) Write(b []byte) (int, error) {
	_, err := s.Conn.Write(append([]byte{b[3], b[2]}, b[4:]...))
	return len(b), err
}

func (s sixteen) Read(b []byte) (int, error) {
	if len(b) != 4 { // of whoHas: a length, then a frame
		return s.Conn.Read(b)
	}
	var n [2]byte
	if _, err := io.ReadFull(s.Conn, n[:]); err != nil {
		return 0, err
	}
	copy(b, []byte{0, 0, n[1], n[0]})
	return 4, nil
}

func TestVsockAddresses(t *testing.T) {
	for _, c := range []struct {
		in        string
		listen    bool
		cid, port uint32
	}{
		{"1024", true, cidAny, 1024}, {"any:1024", true, cidAny, 1024}, {"local:7", true, 1, 7}, {"2:1024", false, 2, 1024},
		{"host:1024", false, 2, 1024}, {"3:4294967294", false, 3, 4294967294},
	} {
		cid, port, err := parseVsock(c.in, c.listen)
		if err != nil || cid != c.cid || port != c.port {
			t.Errorf("%s: %d, %d, %v", c.in, cid, port, err)
		}
	}
	for _, in := range []string{"", ":", "1:", "x:1", "1:x", "1:4294967295", "4294967296:1", "-1:1", "1:2:3"} {
		for _, listen := range []bool{true, false} {
			var usage usageError
			if cid, port, err := parseVsock(in, listen); !errors.As(err, &usage) {
				t.Errorf("%q: %d, %d, %v", in, cid, port, err)
			}
		}
	}
	for _, in := range []string{"1024", "any:1024", "4294967295:1"} {
		if _, _, err := parseVsock(in, false); err == nil {
			t.Errorf("%q can be dialled", in)
		}
	}
}

func TestLines(t *testing.T) {
	for _, c := range []struct {
		lines func(*door) string
		addr  string
		want  []string
	}{
		{qemuLines, "dial:unix:/run/a,b", []string{"server=on,addr.type=unix,addr.path=/run/a,,b", "looked for at unix:/run/a,b"}},
		{qemuLines, "dial:tcp:192.0.2.1:7000", []string{"server=on,addr.type=inet,addr.host=192.0.2.1,addr.port=7000"}},
		{qemuLines, "vsock:any:1024", []string{"gvforwarder -url vsock://2:1024/connect"}},
		{hyperkitLines, "unix:/run/h.sock", []string{"gvforwarder -url unix:///run/h.sock\n", "virtio-vpnkit,path=/run/h.sock"}},
		{hyperkitLines, "tcp:127.0.0.1:7000", []string{"guests plug in at tcp:127.0.0.1:7000\n"}},
		{vdeLines, "unix:/run/v.sock", []string{"dpipe vde_plug SWITCH = socat - UNIX-CONNECT:/run/v.sock"}},
		{vdeLines, "dial:unix:/run/v.sock", []string{"looked for at unix:/run/v.sock"}},
		{vdeLines, "vsock:local:5", []string{"at vsock:local:5\n"}},
	} {
		got := c.lines(&door{addr: c.addr})
		for _, w := range c.want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: %q lacks %q", c.addr, got, w)
			}
		}
		if strings.Contains(got, "%!") || !strings.HasSuffix(got, "\n") {
			t.Errorf("%s: %q", c.addr, got)
		}
	}
}

// FuzzParseAddress: what is read of an address is all that was in it.
func FuzzParseAddress(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAddress(s)
		if err != nil {
			return
		}
		twice := func(s string) string { return strings.ReplaceAll(s, ",", ",,") }
		back := twice(a.kind)
		if a.rest != "" {
			back += ":" + twice(a.rest)
		}
		for name, value := range a.options {
			back += "," + twice(name) + "=" + twice(value)
		}
		if b, err := parseAddress(back); err != nil || fmt.Sprint(a) != fmt.Sprint(b) {
			t.Fatalf("%q is %+v, and %q %+v, %v", s, a, back, b, err)
		}
	})
}
