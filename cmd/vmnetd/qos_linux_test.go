package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/backend/guest"
	"github.com/vmnetd/vmnetd/qemu"
)

// A program of synthetic-network's plays a bad line to a guest through the daemon, in its own words, sees who talks to whom,
// and takes the line off again.
func TestQoSPort(t *testing.T) {
	p := program(t, "vmnetd", "serve", "--qos", "tcp:127.0.0.1:0").ordinary() // in its sandbox, which lets a line have its timers
	sock, ctl := filepath.Join(p.run, "q.sock"), filepath.Join(p.run, "c.sock")
	p.Args = append(p.Args, "--qemu", "unix:"+sock, "--control", ctl)
	p.start()
	at := strings.TrimSuffix(strings.TrimPrefix(p.says("qos http://"), "qos "), "/qos")
	ask := func(method, path, body string) string {
		t.Helper()
		req, err := http.NewRequest(method, at+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s %s: %s %s, %v", method, path, resp.Status, b, err)
		}
		return string(b)
	}
	defer http.DefaultClient.CloseIdleConnections()

	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echoes(t, tcp)
	wire, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	g, err := guest.New(t.Context(), qemu.NewLink(wire), guest.Config{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	port := tcp.Addr().(*net.TCPAddr).Port
	out, err := g.DialContext(t.Context(), "tcp", fmt.Sprintf("10.0.2.2:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	out.SetDeadline(time.Now().Add(60 * time.Second))
	echo := func() time.Duration {
		t.Helper()
		began := time.Now()
		if _, err := out.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		return time.Since(began)
	}
	echo()

	// What its client posts after default_link.ingress.latency(200) and addFlow('web', {ip: '10.0.2.2', protocol: 'tcp', …}).
	const rest = `"loss":0,"jitter":0,"jitter_strength":0,"reorder_packets":false`
	line := func(latency int) string {
		return fmt.Sprintf(`{"rate":100000000,"loss":0,"latency":%d,"jitter":0,"jitter_strength":0,"reorder_packets":false}`, latency)
	}
	post := fmt.Sprintf(`{"default_link":{"ingress":%s,"egress":%s},"flows":[{"label":"web","flow":{"ip":33685514,"protocol":6,"port_min":%d,"port_max":%d},"link":{"ingress":%s,"egress":%s}}]}`,
		line(200), line(0), port, port, line(300), line(0))
	if got := ask("POST", "/qos", post); got != "OK" {
		t.Errorf("%q, want OK", got)
	}
	var said, want any
	if json.Unmarshal([]byte(ask("GET", "/qos", "")), &said) != nil || json.Unmarshal([]byte(post), &want) != nil || fmt.Sprint(said) != fmt.Sprint(want) {
		t.Errorf("it says %v, want %v", said, want)
	}
	if d := echo(); d < 300*time.Millisecond {
		t.Errorf("there and back in %v, want 300 ms", d)
	}
	c := control.NewClient(ctl)
	defer c.Close()
	i, err := c.Impairment(t.Context(), "web")
	if err != nil || len(i.Settings.Flows) != 1 || i.Settings.Flows[0].Match.String() != fmt.Sprintf("10.0.2.2:tcp:%d", port) {
		t.Errorf("the daemon has %+v, %v", i.Settings, err)
	}

	// packets of this conversation, as its client reads them.
	packets := func(name string) (packets, bits uint64) {
		t.Helper()
		b := []byte(ask("GET", "/top/"+name+".profile", ""))
		if len(b) != 2048*24 {
			t.Fatalf("%d bytes, want 2048 slots of 24", len(b))
		}
		id := uint64(port)<<48 | 6<<32 | 33685514
		for ; len(b) >= 24; b = b[24:] {
			if binary.LittleEndian.Uint64(b[16:]) == id {
				return binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
			}
		}
		return 0, 0
	}
	for _, name := range []string{"ingress", "egress"} {
		before, bits := packets(name)
		if before < 3 || bits < before*84*8 { // the least frame, with all that Ethernet adds
			t.Errorf("%s: %d packets, %d bits", name, before, bits)
		}
		echo()
		if after, more := packets(name); after <= before || more < bits+84*8 {
			t.Errorf("%s: %d packets, %d bits after %d and %d", name, after, more, before, bits)
		}
	}
	if got := ask("POST", "/qos", fmt.Sprintf(`{"default_link":{"ingress":%[1]s,"egress":%[1]s},"flows":[]}`, `{"rate":10000000000,"latency":0,`+rest+`}`)); got != "OK" {
		t.Error(got)
	}
	waitUntil(t.Fatalf, "the line is as it was", func() bool { return echo() < 200*time.Millisecond })
}
