//go:build unix

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/control"
)

// TestAPIAttacked: what a client may say wrong, through the command. Each is answered as it should be, or put out; nothing is
// lost, others are answered meanwhile, and nothing is left of it.
func TestAPIAttacked(t *testing.T) {
	p := program(t, "vmnetd", "serve", "--api", "tcp:127.0.0.1:0").start()
	at := strings.Split(strings.TrimPrefix(p.says("api http://"), "api http://"), ",")[0]
	sock := filepath.Join(p.run, "vmnetd", "control.sock")
	c := control.NewClient(sock)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	kept, err := c.AddForward(ctx, "127.0.0.1:0:22")
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(p.run, "vmnetd", "api.token"))
	if err != nil {
		t.Fatal(err)
	}
	auth := "Host: " + at + "\r\nAuthorization: Bearer " + strings.TrimSpace(string(token)) + "\r\n"
	const js = "Content-Type: application/json\r\n"
	body := func(method, path, b string) string {
		return fmt.Sprintf("%s %s HTTP/1.1\r\n%%H%sContent-Length: %d\r\n\r\n%s", method, path, js, len(b), b)
	}
	for _, x := range []struct {
		name, said string
		codes      []int // of the answers, in their order
	}{
		{"HTTP/1.0", "GET /v1/status HTTP/1.0\r\n%H\r\n", []int{200}},
		{"an absolute address", "GET http://elsewhere.example/v1/status HTTP/1.1\r\n%H\r\n", []int{200}},
		{"three at once", strings.Repeat("GET /v1/status HTTP/1.1\r\n%H\r\n", 3), []int{200, 200, 200}},
		{"a wrong one between", "GET /v1/status HTTP/1.1\r\n%H\r\nGET /v1/x HTTP/1.1\r\n%H\r\nGET /v1/guests HTTP/1.1\r\n%H\r\n", []int{200, 404, 200}},
		{"a doubled slash", "GET //v1/status HTTP/1.1\r\n%H\r\n", []int{404}},
		{"dots", "GET /v1/../v1/status HTTP/1.1\r\n%H\r\n", []int{404}},
		{"dots, escaped", "GET /v1/%2e%2e/v1/status HTTP/1.1\r\n%H\r\n", []int{404}},
		{"a penguin", "GET /v1/guests/%F0%9F%90%A7 HTTP/1.1\r\n%H\r\n", []int{404}},
		{"bytes that are no text", "GET /v1/guests/%ff%fe%00%0d%0a HTTP/1.1\r\n%H\r\n", []int{404}},
		{"half an escape", "GET /v1/guests/%f HTTP/1.1\r\n%H\r\n", []int{400}},
		{"half an escape in the query", "GET /v1/flows?guest=%f HTTP/1.1\r\n%H\r\n", []int{400}},
		{"a semicolon in the query", "GET /v1/flows?guest=a;proto=tcp HTTP/1.1\r\n%H\r\n", []int{400}},
		{"OPTIONS of a path", "OPTIONS /v1/flows HTTP/1.1\r\n%H\r\n", []int{204}},
		{"OPTIONS of all", "OPTIONS * HTTP/1.1\r\n%H\r\n", []int{404}},
		{"CONNECT", "CONNECT 127.0.0.1:22 HTTP/1.1\r\n%H\r\n", []int{404}},
		{"TRACE", "TRACE /v1/status HTTP/1.1\r\n%H\r\n", []int{405}},
		{"an upgrade", "GET /v1/status HTTP/1.1\r\n%HConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", []int{200}},
		{"HTTP/2 at once", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{404}},
		{"no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", []int{400}},
		{"a long header", "GET /v1/status HTTP/1.1\r\n%HX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", []int{431}},
		{"two lengths", "POST /v1/dns HTTP/1.1\r\n%H" + js + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", []int{400}},
		{"a negative length", "POST /v1/dns HTTP/1.1\r\n%H" + js + "Content-Length: -1\r\n\r\n{}", []int{400}},
		{"chunks and a trailer", "POST /v1/dns HTTP/1.1\r\n%H" + js + "Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n", []int{422}},
		{"chunks that are none", "POST /v1/dns HTTP/1.1\r\n%H" + js + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}", []int{400}},
		{"a body with GET, and another request", "GET /v1/status HTTP/1.1\r\n%HContent-Length: 5\r\n\r\nhelloGET /v1/guests HTTP/1.1\r\n%H\r\n", []int{200, 200}},
		{"no JSON", body("POST", "/v1/forwards", "hello"), []int{400}},
		{"wrong types", body("POST", "/v1/forwards", `{"rule":{"proto":[],"host_port":"x"}}`), []int{422}},
		{"depth", body("POST", "/v1/forwards", `{"rule":`+strings.Repeat(`{"a":`, 9000)+"1"+strings.Repeat("}", 9001)), []int{422}},
		{"depth of a policy", body("PUT", "/v1/policy", strings.Repeat("[", 1<<20)), []int{400}},
		{"a huge body", "POST /v1/dns HTTP/1.1\r\n%H" + js + "Content-Length: 99999999999\r\n\r\n" + strings.Repeat("x", 100<<10), []int{413}},
		{"a rule that is a rule's path away", body("PUT", "/v1/forwards/tcp:127.0.0.1:1", `{"rule":"2:2"}`), []int{422}},
		{"no forwards, if they were others", "PUT /v1/forwards HTTP/1.1\r\n%HIf-Match: \"x\"\r\n" + js + "Content-Length: 12\r\n\r\n{\"rules\":[]}", []int{412}},
		{"odd conditions", "PUT /v1/forwards HTTP/1.1\r\n%HIf-Match: ,,,\"\r\nIf-None-Match: *\r\n" + js + "Content-Length: 12\r\n\r\n{\"rules\":[]}", []int{412}},
	} {
		for _, tcp := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/tcp=%v", x.name, tcp), func(t *testing.T) {
				network, addr, head, codes := "unix", sock, "Host: x\r\n", x.codes
				if tcp {
					network, addr, head = "tcp", at, auth
					if strings.Contains(x.said, "elsewhere.example") || strings.HasPrefix(x.said, "CONNECT") || strings.HasPrefix(x.said, "PRI") {
						codes = []int{421} // the address's host is the request's, or there is none
					}
				}
				conn, err := net.Dial(network, addr)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(30 * time.Second))
				go io.WriteString(conn, strings.ReplaceAll(x.said, "%H", head)) // a server that has heard enough stops reading
				in := bufio.NewReader(conn)
				method, _, _ := strings.Cut(x.said, " ")
				for _, want := range codes {
					resp, err := http.ReadResponse(in, &http.Request{Method: method})
					if err != nil {
						t.Fatal(err)
					}
					b, err := io.ReadAll(resp.Body)
					if err != nil {
						t.Fatal(err)
					}
					if resp.StatusCode != want {
						t.Fatalf("%d %.300s, want %d", resp.StatusCode, b, want)
					}
					if typ := resp.Header.Get("Content-Type"); strings.Contains(typ, "json") && !json.Valid(b) {
						t.Errorf("%s: %.300s", typ, b)
					}
				}
			})
		}
	}

	// A thousand who connect and say nothing, half of a head, or half of a body.
	count := 1000
	if runtime.GOOS != "linux" {
		count = 200 // descriptors are few elsewhere
	}
	before := descriptors(t, p.Process.Pid)
	var crowd []net.Conn
	leave := func() {
		for _, c := range crowd {
			c.Close()
		}
	}
	defer leave()
	for i := range count {
		network, addr, head := "unix", sock, "Host: x\r\n"
		if i%4 == 0 {
			network, addr, head = "tcp", at, auth
		}
		c, err := net.DialTimeout(network, addr, 10*time.Second)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		crowd = append(crowd, c)
		io.WriteString(c, []string{"", "GET /v1/sta", "GET /v1/status HTTP/1.1\r\n" + head, "POST /v1/dns HTTP/1.1\r\n" + head + js + "Content-Length: 1000\r\n\r\n{"}[i/4%4])
	}
	if _, err := c.Status(ctx); err != nil {
		t.Errorf("with a crowd at the door: %v", err)
	}
	fresh := control.NewClient(sock)
	defer fresh.Close()
	if list, err := fresh.Forwards(ctx); err != nil || len(list) != 1 || list[0].ID != kept[0].ID {
		t.Errorf("a new client: %+v, %v", list, err)
	}
	// The slow ones are put out: this one has sent half a head.
	crowd[5].SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.Copy(io.Discard, crowd[5]); err != nil {
		t.Errorf("half a head is waited for: %v", err)
	}
	leave()
	c.Close()
	fresh.Close()
	waitUntil(t.Fatalf, "nothing to be left of them", func() bool { return descriptors(t, p.Process.Pid) <= before })
	goroutines := func() int {
		conn, err := net.Dial("unix", sock)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n")
		b, _ := io.ReadAll(conn)
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "go_goroutines "); ok {
				n, _ := strconv.Atoi(strings.TrimSpace(v))
				return n
			}
		}
		t.Fatalf("no go_goroutines in %.300s", b)
		return 0
	}
	waitUntil(t.Fatalf, "their goroutines to end", func() bool { return goroutines() < 60 })
	records, err := c.DNS(ctx)
	for _, r := range records {
		if r.Source == "admin" {
			t.Errorf("a record came of it: %+v", r)
		}
	}
	if list, err2 := c.Forwards(ctx); err != nil || err2 != nil || len(list) != 1 {
		t.Errorf("afterwards: %+v, %v, %v", list, err, err2)
	}
	if log := p.err.String(); strings.Contains(log, "control: panic") {
		t.Errorf("it panicked:\n%s", log)
	}
}

// descriptors is how many a process has, where the system tells.
func descriptors(t *testing.T, pid int) int {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil && runtime.GOOS == "linux" {
		t.Fatal(err)
	}
	return len(list)
}
