package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/flows"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("VMNETD_TEST_ASK"); path != "" { // another user's process: see TestStranger
		_, err := NewClient(path).Status(context.Background())
		fmt.Println(err)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// rig is a network with its API on a socket.
type rig struct {
	t    *testing.T
	net  *backend.Network
	srv  *Server
	path string
	c    *Client
	http *http.Client
	log  *logBuffer
	stop func() // tells the server to end
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newRig(t *testing.T, change ...func(*Server)) *rig {
	t.Helper()
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "c.sock"), log: &logBuffer{}}
	logger := slog.New(slog.NewTextHandler(r.log, nil))
	n, err := backend.New(backend.Config{Logger: logger, Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}})
	if err != nil {
		t.Fatal(err)
	}
	r.net = n
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	r.srv = &Server{Networks: []*backend.Network{n}, Version: "test", Listen: []string{"qemu unix:/x"}, Logger: logger}
	for _, f := range change {
		f(r.srv)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	served := make(chan error, 1)
	go func() { served <- r.srv.Serve(ctx, l) }()
	r.c = NewClient(r.path)
	r.http = r.c.http
	t.Cleanup(func() {
		r.c.Close()
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return r
}

// do sends one request and returns the answer with its body read.
func (r *rig) do(method, path, typ, body string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, "http://vmnetd"+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if typ != "" {
		req.Header.Set("Content-Type", typ)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	asDescribed(r.t, req, resp, string(b))
	return resp, string(b)
}

// guest plugs one in that has asked DHCP for an address.
func (r *rig) guest(mac string, hostname string) (id string, wire link.Link) {
	r.t.Helper()
	wire, host := link.Pipe(64)
	done := make(chan error, 1)
	go func() { done <- r.net.Serve(context.Background(), host, "pipe "+hostname) }()
	r.t.Cleanup(func() {
		wire.Close()
		<-done
	})
	hw, err := net.ParseMAC(mac)
	if err != nil {
		r.t.Fatal(err)
	}
	offer := r.dhcp(wire, hw, hostname, 1, netip.Addr{})
	r.dhcp(wire, hw, hostname, 3, offer)
	for _, g := range r.net.Guests() {
		if g.MAC == mac {
			return g.ID, wire
		}
	}
	r.t.Fatalf("no guest has %s: %+v", mac, r.net.Guests())
	return "", nil
}

// dhcp sends a DISCOVER (kind 1) or a REQUEST (3) and returns the address in the answer (RFC 2131 §2).
func (r *rig) dhcp(wire link.Link, mac net.HardwareAddr, hostname string, kind byte, want netip.Addr) netip.Addr {
	r.t.Helper()
	msg := make([]byte, 236)
	msg[0], msg[1], msg[2], msg[10] = 1, 1, 6, 0x80 // a request, Ethernet, six bytes, answer by broadcast
	copy(msg[4:], "xid0")
	copy(msg[28:], mac)
	msg = append(msg, 99, 130, 83, 99, 53, 1, kind, 12, byte(len(hostname)))
	msg = append(msg, hostname...)
	if want.IsValid() {
		msg = append(append(msg, 50, 4), want.AsSlice()...)
		msg = append(append(msg, 54, 4), r.net.Config().Gateway4.AsSlice()...)
	}
	msg = append(msg, 255)
	udp := binary.BigEndian.AppendUint16(nil, 68)
	udp = binary.BigEndian.AppendUint16(udp, 67)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(msg)))
	udp = append(append(udp, 0, 0), msg...) // no checksum (RFC 768)
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255}
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(udp)))
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	frame := slices.Concat([]byte{255, 255, 255, 255, 255, 255}, mac, []byte{8, 0}, ip, udp)
	if _, err := wire.WriteFrames([]link.Frame{link.NewFrame(frame)}); err != nil {
		r.t.Fatal(err)
	}
	var b link.Batch
	for {
		if err := wire.ReadFrames(&b); err != nil {
			r.t.Fatalf("waiting for DHCP's answer: %v", err)
		}
		for _, span := range b.Frames {
			f := b.AppendTo(nil, span)
			const at = 14 + 20 + 8
			if len(f) > at+240 && f[12] == 8 && f[13] == 0 && f[23] == 17 && binary.BigEndian.Uint16(f[36:]) == 68 {
				return netip.AddrFrom4([4]byte(f[at+16 : at+20]))
			}
		}
		b.Next()
	}
}

const js = "application/json"

func TestEndpoints(t *testing.T) {
	r := newRig(t)
	id, _ := r.guest("52:54:00:00:00:01", "web")
	f, v := r.net.Flows().Open(flows.Query{Guest: id, Proto: flows.TCP, Dir: flows.Out,
		Src: netip.MustParseAddrPort("10.0.2.15:40000"), Dst: netip.MustParseAddrPort("192.0.2.1:443")}, nil)
	if f == nil {
		t.Fatal(v)
	}
	defer f.End(flows.ReasonClosed)
	file := r.path + ".file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// Each line sees what those above it have left.
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		has                      string // in the answer
		hasNot                   string
	}{
		{"status", "GET", "/v1/status", "", 200, `"version":"test"`, ""},
		{"status has the network", "GET", "/v1/status?network=default", "", 200, `"prefix4":"10.0.2.0/24"`, ""},
		{"status of another network", "GET", "/v1/status?network=no", "", 404, `there is default`, ""},
		{"status by HEAD", "HEAD", "/v1/status", "", 200, "", "version"},
		{"guests", "GET", "/v1/guests", "", 200, `"mac":"52:54:00:00:00:01"`, ""},
		{"guest by id", "GET", "/v1/guests/" + id, "", 200, `"name":"web"`, ""},
		{"guest by name", "GET", "/v1/guests/WEB", "", 200, `"id":"` + id + `"`, ""},
		{"guest by MAC", "GET", "/v1/guests/52-54-00-00-00-01", "", 200, `"id":"` + id + `"`, ""},
		{"guest by address", "GET", "/v1/guests/10.0.2.15", "", 200, `"id":"` + id + `"`, ""},
		{"no such guest", "GET", "/v1/guests/nobody", "", 404, `there is ` + id, ""},
		{"flows", "GET", "/v1/flows", "", 200, `"dst":"192.0.2.1:443"`, ""},
		{"flows of a guest", "GET", "/v1/flows?guest=web&proto=tcp&state=dialing&direction=out", "", 200, `"dst":"192.0.2.1:443"`, ""},
		{"flows of another protocol", "GET", "/v1/flows?proto=udp", "", 200, "[]", "192.0.2.1"},
		{"flows of another state", "GET", "/v1/flows?state=open", "", 200, "[]", "192.0.2.1"},
		{"flows, the other way", "GET", "/v1/flows?direction=in", "", 200, "[]", "192.0.2.1"},
		{"flows of nobody", "GET", "/v1/flows?guest=nobody", "", 404, "no guest", ""},
		{"flows of a strange protocol", "GET", "/v1/flows?proto=sctp", "", 400, "one of tcp, udp", ""},
		{"forwards", "GET", "/v1/forwards", "", 200, "[]", "null"},
		{"add by text", "POST", "/v1/forwards", `{"rule":"127.0.0.1:0:22"}`, 201, `"id":"tcp:127.0.0.1:`, `:0"`},
		{"add a list", "POST", "/v1/forwards", `{"rule":"unix:` + r.path + `.fwd-:80"}`, 201, `"id":"unix:`, ""},
		{"add by object", "POST", "/v1/forwards", `{"rule":{"proto":"udp","host_port":0,"guest_port":53}}`, 201, `"id":"udp:127.0.0.1:`, ""},
		{"add what clashes", "POST", "/v1/forwards", `{"rule":"unix:` + r.path + `.fwd-:81"}`, 409, "is taken by", ""},
		{"add over a file", "POST", "/v1/forwards", `{"rule":"unix:` + file + `-:81"}`, 409, "socket", ""},
		{"remove", "DELETE", "/v1/forwards/unix:" + strings.ReplaceAll(r.path, "/", "%2F") + ".fwd?cut=true", "", 204, "", ""},
		{"remove again", "DELETE", "/v1/forwards/unix:" + strings.ReplaceAll(r.path, "/", "%2F") + ".fwd", "", 404, "no rule", ""},
		{"remove by half", "DELETE", "/v1/forwards/x?cut=maybe", "", 400, "true or false", ""},
		{"leases", "GET", "/v1/leases", "", 200, `"addr":"10.0.2.15"`, ""},
		{"release what is no address", "DELETE", "/v1/leases/web", "", 400, "no address", ""},
		{"release what is not leased", "DELETE", "/v1/leases/10.0.2.77", "", 404, "no lease", ""},
		{"release", "DELETE", "/v1/leases/10.0.2.15", "", 204, "", ""},
		{"released", "GET", "/v1/leases", "", 200, "", `"state":"bound"`},
		{"dns", "GET", "/v1/dns", "", 200, `"gateway.internal."`, ""},
		{"dns add", "POST", "/v1/dns", `{"name":"db","type":"A","value":"10.0.2.20","ttl":60}`, 204, "", ""},
		{"dns added", "GET", "/v1/dns?name=DB.internal&type=a", "", 200, `"value":"10.0.2.20","ttl":60`, "gateway"},
		{"dns remove another", "DELETE", "/v1/dns?name=db&type=A&value=10.0.2.21", "", 404, "", ""},
		{"dns remove a value of no type", "DELETE", "/v1/dns?name=db&value=10.0.2.20", "", 400, "without its type", ""},
		{"dns remove", "DELETE", "/v1/dns?name=db&type=A", "", 204, "", ""},
		{"dns remove again", "DELETE", "/v1/dns?name=db", "", 404, "", ""},
		{"dns remove the gateway", "DELETE", "/v1/dns?name=gateway.internal", "", 404, "", ""},
		{"dns remove what?", "DELETE", "/v1/dns", "", 400, "no name", ""},
		{"kick", "DELETE", "/v1/guests/" + id, "", 204, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.t = t
			typ := ""
			if c.body != "" {
				typ = js
			}
			resp, body := r.do(c.method, c.path, typ, c.body)
			if resp.StatusCode != c.status || !strings.Contains(body, c.has) || c.hasNot != "" && strings.Contains(body, c.hasNot) {
				t.Fatalf("%s %s: %d %s\nwant %d with %q without %q", c.method, c.path, resp.StatusCode, body, c.status, c.has, c.hasNot)
			}
			checkForm(t, resp, body)
		})
	}
	r.t = t
	wait(t, "the kicked guest to be gone", func() bool { return len(r.net.Guests()) == 0 })
	if resp, body := r.do("DELETE", "/v1/guests/"+id, "", ""); resp.StatusCode != 404 {
		t.Errorf("kicking who has gone: %d %s", resp.StatusCode, body)
	}
	if log := r.log.String(); !strings.Contains(log, "control: change") || !strings.Contains(log, fmt.Sprintf("pid %d", os.Getpid())) && runtime.GOOS == "linux" {
		t.Errorf("the log does not tell who changed what:\n%s", log)
	}
}

// checkForm holds for each answer: JSON or nothing, and errors are whole problems.
func checkForm(t *testing.T, resp *http.Response, body string) {
	t.Helper()
	typ := resp.Header.Get("Content-Type")
	switch {
	case resp.StatusCode >= 400:
		var p Problem
		d := json.NewDecoder(strings.NewReader(body))
		d.DisallowUnknownFields()
		if err := d.Decode(&p); typ != "application/problem+json" || err != nil || p.Status != resp.StatusCode || p.Title == "" || p.Detail == "" {
			t.Errorf("error of type %q: %s (%v)", typ, body, err)
		}
		if len(body) > 2000 {
			t.Errorf("an error of %d bytes", len(body))
		}
	case resp.StatusCode == 204:
		if body != "" {
			t.Errorf("204 with a body: %q", body)
		}
	case typ != js || resp.Request.Method != "HEAD" && !json.Valid([]byte(body)):
		t.Errorf("answer of type %q: %s", typ, body)
	}
}

func TestHostileRequests(t *testing.T) {
	r := newRig(t)
	mb := strings.Repeat("x", 1<<20)
	for _, c := range []struct {
		name, method, path, typ, body string
		status                        int
		has                           string
	}{
		{"no such path", "GET", "/v1/nothing", "", "", 404, "/v1/guests"},
		{"no path", "GET", "/", "", "", 404, ""},
		{"a long path", "GET", "/v1/" + mb[:8000], "", "", 404, "…"},
		{"another version", "GET", "/v2/status", "", "", 404, ""},
		{"wrong method", "DELETE", "/v1/forwards", "", "", 405, "GET, HEAD, OPTIONS, POST, PUT"},
		{"strange method", "BREW", "/v1/status", "", "", 405, "GET, HEAD"},
		{"misspelt filter", "GET", "/v1/flows?gest=g1", "", "", 400, "guest"},
		{"filter twice", "GET", "/v1/flows?guest=a&guest=b", "", "", 400, "2 times"},
		{"filter where none is", "GET", "/v1/leases?all=1", "", "", 400, "network"},
		{"no type", "POST", "/v1/forwards", "", `{"rule":"0:22"}`, 415, "Content-Type"},
		{"a form", "POST", "/v1/forwards", "application/x-www-form-urlencoded", `rule=0:22`, 415, ""},
		{"text", "POST", "/v1/forwards", "text/plain", `{"rule":"0:22"}`, 415, ""},
		{"a broken type", "POST", "/v1/forwards", ";;;", `{"rule":"0:22"}`, 415, ""},
		{"nothing", "POST", "/v1/forwards", js, "", 400, "empty"},
		{"no JSON", "POST", "/v1/forwards", js, "rule", 400, ""},
		{"half a JSON", "POST", "/v1/forwards", js, `{"rule":"0:2`, 400, ""},
		{"two JSONs", "POST", "/v1/forwards", js, `{"rule":"0:22"}{"rule":"0:23"}`, 400, "more follows"},
		{"a list", "POST", "/v1/forwards", js, `["0:22"]`, 400, ""},
		{"null", "POST", "/v1/forwards", js, `null`, 400, "no rule"},
		{"unknown field", "POST", "/v1/forwards", js, `{"rule":"0:22","guest":"web"}`, 400, "unknown field"},
		{"unknown field in a rule", "POST", "/v1/forwards", js, `{"rule":{"hostport":22,"guest_port":22}}`, 422, "hostport"},
		{"rule a number", "POST", "/v1/forwards", js, `{"rule":22}`, 400, "neither"},
		{"rule a list", "POST", "/v1/forwards", js, `{"rule":["0:22"]}`, 400, "neither"},
		{"port a text", "POST", "/v1/forwards", js, `{"rule":{"host_port":"22","guest_port":22}}`, 422, ""},
		{"port 70000", "POST", "/v1/forwards", js, `{"rule":{"host_port":70000,"guest_port":22}}`, 422, "70000"},
		{"port 70000 as text", "POST", "/v1/forwards", js, `{"rule":"70000:22"}`, 422, "65535"},
		{"port -1", "POST", "/v1/forwards", js, `{"rule":{"host_port":-1,"guest_port":22}}`, 422, ""},
		{"port 1e3", "POST", "/v1/forwards", js, `{"rule":{"host_port":1.5,"guest_port":22}}`, 422, ""},
		{"guest port 0", "POST", "/v1/forwards", js, `{"rule":"2222:0"}`, 422, ""},
		{"no host of ours", "POST", "/v1/forwards", js, `{"rule":"192.0.2.1:2222:22"}`, 422, ""},
		{"protocol 7", "POST", "/v1/forwards", js, `{"rule":{"proto":7,"guest_port":22}}`, 422, ""},
		{"1 MB", "POST", "/v1/forwards", js, `{"rule":"` + mb + `"}`, 413, "65536"},
		{"64 KiB of brackets", "POST", "/v1/dns", js, strings.Repeat("[", 65000), 400, ""},
		{"64 KiB of rule", "POST", "/v1/forwards", js, `{"rule":"` + mb[:65000] + `"}`, 422, ""},
		{"a NUL", "POST", "/v1/forwards", js, `{"rule":"22\u0000:22"}`, 422, ""},
		{"bytes that are no UTF-8", "POST", "/v1/forwards", js, "{\"rule\":\"\xff\xfe\"}", 422, ""},
		{"dns: no name", "POST", "/v1/dns", js, `{"type":"A","value":"10.0.2.20"}`, 422, "missing"},
		{"dns: name and more", "POST", "/v1/dns", js, `{"name":"a 5 A 10.0.2.9 ;","type":"A","value":"10.0.2.20"}`, 422, "not one word"},
		{"dns: two lines", "POST", "/v1/dns", js, `{"name":"a","type":"A","value":"10.0.2.20\nb A 10.0.2.21"}`, 422, ""},
		{"dns: a directive", "POST", "/v1/dns", js, `{"name":"$GENERATE","type":"1-9","value":"a$ A 10.0.2.$"}`, 422, ""},
		{"dns: no type that is", "POST", "/v1/dns", js, `{"name":"a","type":"B","value":"10.0.2.20"}`, 422, ""},
		{"dns: no address", "POST", "/v1/dns", js, `{"name":"a","type":"A","value":"ten"}`, 422, ""},
		{"dns: ttl a text", "POST", "/v1/dns", js, `{"name":"a","type":"A","value":"10.0.2.20","ttl":"1"}`, 400, ""},
		{"dns: ttl too large", "POST", "/v1/dns", js, `{"name":"a","type":"A","value":"10.0.2.20","ttl":4294967296}`, 400, ""},
		{"dns: in the query", "POST", "/v1/dns?name=a", js, `{"name":"a","type":"A","value":"10.0.2.20"}`, 400, "body"},
		{"lease: IPv4 in IPv6", "DELETE", "/v1/leases/::ffff:10.0.2.99", "", "", 404, ""},
		{"lease: with zone", "DELETE", "/v1/leases/fe80::1%25eth0", "", "", 404, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.t = t
			resp, body := r.do(c.method, c.path, c.typ, c.body)
			if resp.StatusCode != c.status || !strings.Contains(body, c.has) {
				t.Errorf("%d %s\nwant %d with %q", resp.StatusCode, body, c.status, c.has)
			}
			checkForm(t, resp, body)
			if c.status == 405 && resp.Header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
		})
	}
	r.t = t
	if list := r.net.Forwards().List(); len(list) != 0 {
		t.Errorf("port forwards came of it: %+v", list)
	}
	for _, rec := range r.net.DNSRecords() {
		if rec.Source == "admin" {
			t.Errorf("a DNS record came of it: %+v", rec)
		}
	}
	for line := range strings.Lines(r.log.String()) {
		if len(line) > 2000 {
			t.Errorf("a log line of %d bytes: %.100s…", len(line), line)
		}
	}
}

// Clients that connect and say nothing, or half of it, hold up nobody, and are put out at the end.
func TestHalfOpenClients(t *testing.T) {
	r := newRig(t)
	for i, said := range []string{"", "GET /v1/sta", "GET /v1/status HTTP/1.1\r\nHost: x\r\n",
		"POST /v1/forwards HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"rule\":",
		"\x00\x00\x00\x40not HTTP", strings.Repeat("A", 20000)} {
		c, err := net.Dial("unix", r.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, said); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	for range 10 {
		if _, err := r.c.Status(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(r.net.Forwards().List()); got != 0 {
		t.Errorf("%d port forwards of half a request", got)
	}
}

// A header longer than any honest one is refused before it is stored.
func TestLongHeader(t *testing.T) {
	r := newRig(t)
	req, _ := http.NewRequest("GET", "http://vmnetd/v1/status", nil)
	req.Header.Set("X", strings.Repeat("x", 64<<10))
	resp, err := r.http.Do(req)
	if err != nil {
		return // cut off while we were sending
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestParallelClients(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	const clients = 1000
	var wg sync.WaitGroup
	errs := make(chan error, clients)
	start := make(chan struct{})
	for i := range clients {
		wg.Go(func() {
			c := NewClient(r.path) // a connection each
			defer c.Close()
			<-start
			if i%10 > 0 {
				_, err := c.Guests(ctx)
				errs <- err
				return
			}
			added, err := c.AddForward(ctx, "0:22")
			if err == nil && len(added) != 1 {
				err = fmt.Errorf("added %d rules", len(added))
			}
			if err == nil {
				err = c.RemoveForward(ctx, added[0].ID, true)
			}
			errs <- err
		})
	}
	close(start)
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if list := r.net.Forwards().List(); len(list) != 0 {
		t.Errorf("%d port forwards are left", len(list))
	}
}

func TestClient(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id, _ := r.guest("52:54:00:00:00:02", "my-vm")
	st, err := r.c.Status(ctx)
	if err != nil || len(st.Networks) != 1 || st.Networks[0].Guests != 1 || st.PID != os.Getpid() || st.Listen[0] != "qemu unix:/x" {
		t.Errorf("Status: %+v, %v", st, err)
	}
	g, err := r.c.Guest(ctx, "my-vm")
	if err != nil || g.ID != id || g.Since.IsZero() || !slices.Contains(g.Addrs, netip.MustParseAddr("10.0.2.15")) {
		t.Errorf("Guest: %+v, %v", g, err)
	}
	leases, err := r.c.Leases(ctx)
	if err != nil || len(leases) != 1 || leases[0].MAC != "52:54:00:00:00:02" || leases[0].Name != "my-vm" ||
		leases[0].State != "bound" || time.Until(leases[0].Expires) < time.Minute || leases[0].Guest != id {
		t.Errorf("Leases: %+v, %v", leases, err)
	}
	// Whatever a lease has is in our picture of it.
	_, body := r.do("GET", "/v1/leases", "", "")
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&leases); err != nil {
		t.Errorf("Lease lacks a field: %v in %s", err, body)
	}
	sock := filepath.Join(t.TempDir(), "w.sock")
	added, err := r.c.AddForward(ctx, "unix:"+sock+"-[my-vm]:80")
	if err != nil || len(added) != 1 || added[0].ID != "unix:"+sock || added[0].Rule.Guest != "my-vm" {
		t.Fatalf("AddForward: %+v, %v", added, err)
	}
	fwds, err := r.c.Forwards(ctx)
	if err != nil || len(fwds) != 1 || fwds[0].ID != added[0].ID || fwds[0].Rule != added[0].Rule {
		t.Errorf("Forwards: %+v, %v", fwds, err)
	}
	if err := r.c.RemoveForward(ctx, added[0].ID, false); err != nil {
		t.Errorf("RemoveForward: %v", err)
	}
	var p *Problem
	if err := r.c.RemoveForward(ctx, added[0].ID, false); !errors.As(err, &p) || p.Status != 404 {
		t.Errorf("RemoveForward again: %v", err)
	}
	if err := r.c.AddDNS(ctx, DNSRequest{Name: "db", Type: "AAAA", Value: "fd00::1"}); err != nil {
		t.Errorf("AddDNS: %v", err)
	}
	recs, err := r.c.DNS(ctx)
	if err != nil || !slices.ContainsFunc(recs, func(r backend.DNSRecord) bool { return r.Name == "db.internal." && r.Value == "fd00::1" }) {
		t.Errorf("DNS: %+v, %v", recs, err)
	}
	if err := r.c.RemoveDNS(ctx, "db", "", ""); err != nil {
		t.Errorf("RemoveDNS: %v", err)
	}
	if fl, err := r.c.Flows(ctx, FlowFilter{Proto: "udp"}); err != nil || len(fl) != 0 {
		t.Errorf("Flows: %+v, %v", fl, err)
	}
	if err := r.c.ReleaseLease(ctx, netip.MustParseAddr("10.0.2.15")); err != nil {
		t.Errorf("ReleaseLease: %v", err)
	}
	if err := r.c.Kick(ctx, id); err != nil {
		t.Errorf("Kick: %v", err)
	}
	other := NewClient(r.path)
	defer other.Close()
	other.Network = "other"
	if _, err := other.Guests(ctx); !errors.As(err, &p) || p.Status != 404 || p.Hint == "" {
		t.Errorf("guests of another network: %v", err)
	}
}

func TestNobodyThere(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "there is no such socket", stale: "left over", file: "no daemon",
	} {
		_, err := NewClient(path).Status(context.Background())
		var none *NoDaemonError
		if !errors.As(err, &none) || none.Path != path || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// Another HTTP server, or one that is none, is told from a daemon.
func TestSomebodyElseThere(t *testing.T) {
	for name, answer := range map[string]string{
		"HTTP":     "HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 4\r\nConnection: close\r\n\r\nhuh?",
		"not HTTP": "220 smtp ESMTP\r\n",
		"empty":    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
	} {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			c.Read(make([]byte, 4096))
			io.WriteString(c, answer)
		}()
		if _, err := NewClient(path).Status(context.Background()); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		l.Close()
		<-done
	}
}

func TestRefusedPeer(t *testing.T) {
	r := newRig(t, func(s *Server) { s.allowed = func(peer) bool { return false } })
	_, err := r.c.Status(context.Background())
	var p *Problem
	if !errors.As(err, &p) || p.Status != http.StatusForbidden {
		t.Errorf("a stranger got %v", err)
	}
	for p, want := range map[peer]bool{
		{}: true, {known: true, uid: 0}: true, {known: true, uid: os.Geteuid()}: true,
		{known: true, uid: -1}: false, {known: true, uid: os.Geteuid() + 1}: false,
	} {
		if p.ours() != want {
			t.Errorf("%+v: ours is %v", p, p.ours())
		}
	}
}

// The daemon refuses another user even where the socket's mode would let him in.
func TestStranger(t *testing.T) {
	if os.Geteuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("only root can be somebody else")
	}
	r := newRig(t)
	exe := filepath.Join(t.TempDir(), "ask")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{r.path, exe} {
		for d := filepath.Dir(p); strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
			os.Chmod(d, 0o755)
		}
	}
	os.Chmod(r.path, 0o666)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "VMNETD_TEST_ASK="+r.path)
	beSomebodyElse(cmd)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "belongs to uid 0") {
		t.Errorf("%s (%v)", out, err)
	}
	if !strings.Contains(r.log.String(), "uid 65534") {
		t.Errorf("not logged:\n%s", r.log)
	}
}

// wait waits for a state, not for a time.
func wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
