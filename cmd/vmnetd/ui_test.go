package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/control"
)

// servePage serves the page for a control socket, and returns its address and the links that it told.
func servePage(t *testing.T, control string) (at string, links chan string) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	l, err := loopback(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	links = make(chan string, 8)
	p := newPage(control, l.Addr(), func(link string, _ bool) { links <- link })
	ended := make(chan error, 1)
	go func() { ended <- p.serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return "http://" + l.Addr().String(), links
}

func request(t *testing.T, method, url string, header ...string) (status int, body string) {
	t.Helper()
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
			continue
		}
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// A link is good once, for who comes from the page itself; what it gives opens the API, which answers nobody else.
func TestPageLink(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "c.sock")
	at, links := servePage(t, socket)
	link := <-links
	_, key, _ := strings.Cut(link, "#key=")
	if !strings.HasPrefix(link, at+"/#key=") || len(key) < 26 { // 128 bits in base32
		t.Fatalf("the link is %s", link)
	}
	if status, body := request(t, "GET", at+"/"); status != 200 || !strings.Contains(body, "<title>vmnetd") {
		t.Errorf("the page: %d, %.100q", status, body)
	}
	for _, c := range []struct {
		name   string
		want   int
		header []string
	}{
		{"no key", 401, nil},
		{"another key", 401, []string{"Authorization", "Bearer " + strings.Repeat("A", len(key))}},
		{"another page's", 403, []string{"Authorization", "Bearer " + key, "Origin", "http://evil.example"}},
		{"another port's page", 403, []string{"Authorization", "Bearer " + key, "Sec-Fetch-Site", "same-site"}},
		{"by a name that leads here", 421, []string{"Authorization", "Bearer " + key, "Host", "evil.example"}},
	} {
		if status, body := request(t, "POST", at+"/enter", c.header...); status != c.want {
			t.Errorf("enter, %s: %d, want %d: %s", c.name, status, c.want, body)
		}
	}
	status, token := request(t, "POST", at+"/enter", "Authorization", "Bearer "+key, "Origin", at)
	if status != 200 || len(token) < 26 || token == key {
		t.Fatalf("enter: %d, %q", status, token)
	}
	if status, _ := request(t, "POST", at+"/enter", "Authorization", "Bearer "+key); status != 401 {
		t.Errorf("enter with a key that was used: %d", status)
	}
	if next := <-links; next == link || !strings.Contains(next, "#key=") {
		t.Errorf("the next link is %s", next)
	}
	for _, path := range []string{"/v1/status", "/metrics", "/v1/events"} {
		for _, c := range []struct {
			name   string
			want   int
			header []string
		}{
			{"no token", 401, nil},
			{"the key for the token", 401, []string{"Authorization", "Bearer " + key}},
			{"the token, for another page", 403, []string{"Authorization", "Bearer " + token, "Origin", "http://127.0.0.1:1"}},
			{"the token, and no daemon", 502, []string{"Authorization", "Bearer " + token}},
		} {
			status, body := request(t, "GET", at+path, c.header...)
			var p control.Problem
			if status != c.want || json.Unmarshal([]byte(body), &p) != nil || p.Detail == "" || p.Hint == "" {
				t.Errorf("%s, %s: %d, want %d: %s", path, c.name, status, c.want, body)
			}
			if c.want == 502 && !strings.Contains(p.Detail, "no such socket") {
				t.Errorf("%s: %s", path, p.Detail)
			}
		}
	}
}

// What the daemon says comes through as it is said, with nothing of the browser's secrets in what it is asked.
func TestPageProxy(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	more := make(chan struct{})
	daemon := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, h := range []string{"Authorization", "Cookie", "Origin", "Sec-Fetch-Site"} {
			if v := r.Header.Get(h); v != "" {
				t.Errorf("the daemon gets %s: %s", h, v)
			}
		}
		if r.Header.Get("Last-Event-ID") != "7" || r.URL.RawQuery != "guest=g1" || !strings.HasPrefix(r.Header.Get("User-Agent"), "vmnetd-ui/") {
			t.Errorf("the daemon gets %s %v", r.URL, r.Header)
		}
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: 1\n\n")
		http.NewResponseController(w).Flush()
		<-more
		io.WriteString(w, "data: 2\n\n")
	})}
	go daemon.Serve(l)
	t.Cleanup(func() { daemon.Close() })
	at, links := servePage(t, socket)
	_, key, _ := strings.Cut(<-links, "#key=")
	_, token := request(t, "POST", at+"/enter", "Authorization", "Bearer "+key)

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", at+"/v1/flows?guest=g1", nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"Authorization": "Bearer " + token, "Last-Event-ID": "7", "Accept": "text/event-stream", "Origin": at, "Sec-Fetch-Site": "same-origin", "Cookie": "a=b"} {
		r.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	for _, want := range []string{"data: 1\n", "\n", "data: 2\n", "\n"} {
		if want == "data: 2\n" {
			close(more) // the first event had to come without it
		}
		if line, err := in.ReadString('\n'); err != nil || line != want {
			t.Fatalf("%q, %v; want %q", line, err, want)
		}
	}
	if got := resp.Header.Get("X-Content-Type-Options"); got != "nosniff" {
		t.Errorf("X-Content-Type-Options: %q", got)
	}
}

func TestPageListen(t *testing.T) {
	for _, bad := range []string{"0.0.0.0:0", ":0", "192.0.2.1:0", "example.com:0", "8080", "[::]:0"} {
		if l, err := loopback(t.Context(), bad); err == nil {
			l.Close()
			t.Errorf("--listen %s is taken", bad)
		} else if !strings.Contains(err.Error(), "--listen "+bad) {
			t.Errorf("--listen %s: %v", bad, err)
		}
	}
	for _, good := range []string{"127.0.0.1:0", "localhost:0", "127.0.0.7:0"} {
		l, err := loopback(t.Context(), good)
		if err != nil {
			t.Errorf("--listen %s: %v", good, err)
			continue
		}
		l.Close()
	}
}

func TestUIUsage(t *testing.T) {
	for _, args := range [][]string{{"--control", "tcp:127.0.0.1:1"}, {"--listen", "0.0.0.0:0"}, {"--listen", "127.0.0.1"}} {
		if status := vmnetd(append([]string{"ui", "--no-open"}, args...)); status != exitUsage {
			t.Errorf("%s: status %d", args, status)
		}
	}
}
