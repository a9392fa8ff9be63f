package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
)

// onTCP has the rig's server answer at a loopback address, too.
func (r *rig) onTCP(at, token string) *net.TCPListener {
	r.t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort(at)))
	if err != nil {
		r.t.Skipf("%s: %v", at, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- r.srv.ServeTCP(ctx, l, token, "the-file") }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			r.t.Errorf("ServeTCP: %v", err)
		}
	})
	return l
}

// Over TCP the API is the same, and the log tells which token changed what.
func TestTCP(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(at, func(t *testing.T) {
			r := newRig(t)
			l := r.onTCP(at, "t0ken")
			ctx := context.Background()
			c := NewClient("tcp:" + l.Addr().String())
			c.Token = "t0ken"
			defer c.Close()
			if st, err := c.Status(ctx); err != nil || st.Version != "test" {
				t.Fatalf("status: %+v, %v", st, err)
			}
			if err := c.AddDNS(ctx, DNSRequest{Name: "db", Type: "A", Value: "10.0.2.20"}); err != nil {
				t.Fatal(err)
			}
			log := r.log.String()
			if !strings.Contains(log, "control: change") || !strings.Contains(log, `token the-file"`) || !strings.Contains(log, `peer="`+strings.TrimSuffix(l.Addr().String(), "]")[:4]) || !strings.Contains(log, "agent=vmnetd") {
				t.Errorf("the log does not tell who changed what:\n%s", log)
			}
			done := errors.New("done")
			since := uint64(time.Now().Add(-time.Minute).UnixMicro())
			r.net.Note(backend.Event{Kind: backend.EventPolicy, Text: "here"})
			if err := c.FollowEvents(ctx, since, func(backend.Event, uint64) error { return done }); err != done {
				t.Errorf("events: %v", err)
			}

			bad := NewClient("tcp:" + l.Addr().String())
			bad.Token = "wrong"
			defer bad.Close()
			var p *Problem
			if _, err := bad.Status(ctx); !errors.As(err, &p) || p.Status != 401 || p.Hint == "" {
				t.Errorf("another token: %v", err)
			}
			if log := r.log.String(); !strings.Contains(log, "control: refused") {
				t.Errorf("the log has no refusal:\n%s", log)
			}
			for _, h := range []http.Header{{"Host": {"attacker.example"}}, {"Origin": {"http://attacker.example"}}, {"Sec-Fetch-Site": {"cross-site"}}} {
				req, _ := http.NewRequest("GET", "http://"+l.Addr().String()+"/v1/status", nil)
				req.Header = h.Clone()
				req.Header.Set("Authorization", "Bearer t0ken")
				if host := h.Get("Host"); host != "" {
					req.Host = host
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 421 && resp.StatusCode != 403 {
					t.Errorf("%v: %d %s", h, resp.StatusCode, b)
				}
				checkForm(t, resp, string(b))
			}
			http.DefaultClient.CloseIdleConnections()
		})
	}
}

func TestTCPRefuses(t *testing.T) {
	s := &Server{Logger: slog.New(slog.DiscardHandler)}
	for _, c := range []struct{ at, token, why string }{{"0.0.0.0:0", "t", "not a loopback"}, {"127.0.0.1:0", "", "no token"}} {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.at)))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.ServeTCP(context.Background(), l, c.token, "x"); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s with token %q: %v", c.at, c.token, err)
		}
		if _, err := l.Accept(); err == nil {
			t.Errorf("%s is still open", c.at)
		}
	}
	for _, at := range []string{"tcp:192.0.2.1:80", "tcp:example.com:80", "tcp:127.0.0.1"} {
		c := NewClient(at)
		c.Token = "t"
		if _, err := c.Status(context.Background()); err == nil || !strings.Contains(err.Error(), "tcp:127.0.0.1:PORT") {
			t.Errorf("client of %s: %v", at, err)
		}
	}
}

// Strangers who connect to the port take no more than its places, are put out, and do not hold up those at the socket.
func TestTCPCrowd(t *testing.T) {
	r := newRig(t)
	l := r.onTCP("127.0.0.1:0", "t0ken")
	var crowd []net.Conn
	defer func() {
		for _, c := range crowd {
			c.Close()
		}
	}()
	for range maxTCP + 50 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		crowd = append(crowd, c)
	}
	if _, err := r.c.Status(context.Background()); err != nil {
		t.Errorf("at the socket, meanwhile: %v", err)
	}
	// Who waits behind them is heard when the silent ones have been put out.
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	c := NewClient("tcp:" + l.Addr().String())
	c.Token = "t0ken"
	defer c.Close()
	if _, err := c.Status(ctx); err != nil {
		t.Errorf("behind a crowd: %v", err)
	}
}

// The log has the peer's program, where it can be seen.
func TestPeerCommand(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("other systems do not tell")
	}
	r := newRig(t)
	if err := r.c.AddDNS(context.Background(), DNSRequest{Name: "db", Type: "A", Value: "10.0.2.20"}); err != nil {
		t.Fatal(err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`peer="uid %d pid %d (%s)" agent=vmnetd`, os.Getuid(), os.Getpid(), strings.TrimSpace(string(comm)))
	if log := r.log.String(); !strings.Contains(log, want) {
		t.Errorf("no %s in\n%s", want, log)
	}
}
