package hello

import (
	"bytes"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

// firstOf runs a command that connects to addr, which its arguments say as ADDR, and looks at what it sends as it
// comes. The command hears nothing and is ended.
func firstOf(t *testing.T, args ...string) flows.Hello {
	t.Helper()
	path, err := exec.LookPath(args[0])
	if err != nil {
		t.Skipf("%s is not here", args[0])
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "PORT", port)
	}
	cmd := exec.Command(path, args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	in, err := cmd.StdinPipe() // left open: openssl ends with it
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); in.Close(); cmd.Wait() }()
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second))
	c, err := l.Accept()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, &out)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	var s Stream
	b, n := make([]byte, Most), 0
	for {
		k, err := c.Read(b[n:])
		n += k
		if h, more := s.Look(b[:n]); !more {
			t.Logf("%d bytes", n)
			return h
		}
		if err != nil {
			if err != io.EOF {
				t.Error(err)
			}
			t.Fatalf("%v: undecided after %q\n%s", args, b[:n], &out)
		}
	}
}

func TestPrograms(t *testing.T) {
	tls := func(name string) flows.Hello { return named(flows.HelloTLS, name) }
	for _, tt := range []struct {
		cmd  string
		want flows.Hello
	}{
		{"openssl s_client -connect 127.0.0.1:PORT -servername WWW.example.com", tls("www.example.com")},
		{"openssl s_client -connect 127.0.0.1:PORT -noservername", tls("")},
		{"openssl s_client -connect 127.0.0.1:PORT -tls1_2 -servername www.example.com", tls("www.example.com")},
		{"openssl s_client -connect 127.0.0.1:PORT -servername www.example.com -split_send_frag 20 -max_send_frag 512 -alpn h2", tls("www.example.com")},
		{"curl -sk --connect-to ::127.0.0.1:PORT https://www.example.com/", tls("www.example.com")},
		{"curl -sk --connect-to ::127.0.0.1:PORT https://www.example.com./", tls("www.example.com")},
		{"curl -sk --connect-to ::127.0.0.1:PORT https://192.0.2.1/", tls("")},
		{"curl -s --connect-to ::127.0.0.1:PORT http://www.Example.com/", named(flows.HelloHTTP, "www.example.com")},
		{"curl -s --connect-to ::127.0.0.1:PORT -0 http://www.example.com:8080/x", named(flows.HelloHTTP, "www.example.com")},
		{"curl -s http://127.0.0.1:PORT/", named(flows.HelloHTTP, "127.0.0.1")},
		{"curl -s -x http://127.0.0.1:PORT http://www.example.com/", named(flows.HelloHTTP, "www.example.com")},
		{"curl -s -x http://127.0.0.1:PORT https://www.example.com/", named(flows.HelloHTTP, "www.example.com")},
		{"curl -s --connect-to ::127.0.0.1:PORT --http2-prior-knowledge http://www.example.com/", unclear},
		{"curl -s --connect-to ::127.0.0.1:PORT --http2 http://www.example.com/", named(flows.HelloHTTP, "www.example.com")},
		{"curl -s --connect-to ::127.0.0.1:PORT ws://www.example.com/", named(flows.HelloHTTP, "www.example.com")},
	} {
		t.Run(strings.ReplaceAll(tt.cmd, "/", "_"), func(t *testing.T) {
			if strings.Contains(tt.cmd, "ws:") {
				if out, err := exec.Command("curl", "--version").Output(); err == nil && !bytes.Contains(out, []byte(" ws ")) {
					t.Skip("this curl knows no WebSocket")
				}
			}
			if h := firstOf(t, strings.Fields(tt.cmd)...); h != tt.want {
				t.Errorf("%v, want %v", h, tt.want)
			}
		})
	}
}
