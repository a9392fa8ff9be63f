//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/e2e/traffic"
)

// forward adds rules while the daemon runs, and takes them away with the test.
func (d *daemon) forward(t *testing.T, format string, args ...any) []control.Forward {
	t.Helper()
	added := ask[[]control.Forward](t, d, "forward", "add", fmt.Sprintf(format, args...))
	t.Cleanup(func() {
		for _, f := range added {
			d.cli("forward", "rm", "--cut", f.ID) // the test may have done so
		}
	})
	return added
}

// at is where a forward listens.
func at(f control.Forward) string {
	return netip.AddrPortFrom(f.Rule.Host, f.Rule.HostPort).String()
}

// talk is one conversation from the host: bytes there, the end of ours, and what came back.
func (n *netns) talk(t *testing.T, network, address string, send []byte) (got []byte, err error) {
	t.Helper()
	c, err := n.dial(network, address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if network == "udp" {
		if _, err := c.Write(send); err != nil {
			return nil, err
		}
		buf := make([]byte, 65535)
		n, err := c.Read(buf)
		return buf[:n], err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(send)
		if err == nil {
			err = c.(interface{ CloseWrite() error }).CloseWrite()
		}
		sent <- err
	}()
	got, err = io.ReadAll(c)
	if serr := <-sent; err == nil {
		err = serr
	}
	return got, err
}

func pattern(seed uint64, n int64) []byte {
	b, _ := io.ReadAll(traffic.Bytes(seed, n))
	return b
}

func testForwards(t *testing.T, b *bench) {
	port, _ := b.g.listen(t, "guest listen echo :0")
	udpPort, _ := b.g.listen(t, "guest udp-echo :0")
	host := b.lab.host
	data := pattern(3, b.g.row.bytes/20)
	echoes := func(network, address string, send []byte) {
		t.Helper()
		got, err := host.talk(t, network, address, send)
		if err != nil || !bytes.Equal(got, send) {
			t.Errorf("%s %s: %d of %d bytes came back, the right ones: %v, %v", network, address, len(got), len(send), bytes.Equal(got, send), err)
		}
	}
	// Each family on the host's side to each on the guest's.
	for _, hostAddr := range []string{"127.0.0.1", "::1"} {
		for _, guestAddr := range []string{b.g.addr4.String(), b.g.addr6.String(), "alpha", strings.ReplaceAll(b.g.mac.String(), ":", "-")} {
			w := guestAddr
			if strings.Contains(w, ":") {
				w = "[" + w + "]"
			}
			f := b.forward(t, "%s:%s:%d/tcp", net.JoinHostPort(hostAddr, "0"), w, port)
			echoes("tcp", at(f[0]), data)
			f = b.forward(t, "%s:%s:%d/udp", net.JoinHostPort(hostAddr, "0"), w, udpPort)
			for _, size := range []int64{10, 1472, 60000} {
				echoes("udp", at(f[0]), pattern(4, size))
			}
		}
	}
	// A socket file.
	path := b.lab.path("forward.sock")
	f := b.forward(t, "unix:%s-alpha:%d", path, port)
	echoes("unix", path, data)
	b.must(t, "forward", "rm", f[0].ID)
	if _, err := os.Lstat(path); err == nil {
		t.Errorf("%s is still there after the rule was removed", path)
	}
	// A range. The guest's ports are taken by one server each.
	ports := b.g.run(t, "for p in 7101 7102 7103; do guest listen echo :$p >/dev/null & echo $! >>/tmp/range; done")
	_ = ports
	defer b.g.run(t, "kill $(cat /tmp/range); rm /tmp/range")
	b.forward(t, "9101-9103:alpha:7101-7103")
	for p := 9101; p <= 9103; p++ {
		wait(t, "a port of the range", func() error {
			got, err := host.talk(t, "tcp", fmt.Sprintf("127.0.0.1:%d", p), []byte("hello"))
			if err == nil && string(got) != "hello" {
				err = fmt.Errorf("%q came back", got)
			}
			return err
		})
	}
	// A rule that has gone, and what clashes.
	f = b.forward(t, "0:alpha:%d", port)
	echoes("tcp", at(f[0]), []byte("there"))
	if _, errs, code := b.cli("forward", "add", fmt.Sprintf("%d:alpha:%d", f[0].Rule.HostPort, port)); code == 0 || !strings.Contains(errs, strconv.Itoa(int(f[0].Rule.HostPort))) {
		t.Errorf("a clash: exit status %d, %q", code, errs)
	}
	list := ask[[]struct {
		ID       string
		Accepted uint64
		ToGuest  uint64 `json:"bytes_to_guest"`
		ToClient uint64 `json:"bytes_to_client"`
	}](t, b.daemon, "forward", "ls")
	found := false
	for _, s := range list {
		found = found || s.ID == f[0].ID && s.Accepted == 1 && s.ToGuest == 5 && s.ToClient == 5
	}
	if !found {
		t.Errorf("forward ls: %+v, want %s with one conversation of 5 bytes each way", list, f[0].ID)
	}
	b.must(t, "forward", "rm", f[0].ID)
	if _, err := host.talk(t, "tcp", at(f[0]), []byte("gone")); traffic.End(err) != "refused" {
		t.Errorf("a removed rule's port: %v, want refused", err)
	}
	if _, errs, code := b.cli("forward", "rm", f[0].ID); code == 0 || errs == "" {
		t.Errorf("removing it again: exit status %d, %q", code, errs)
	}
	// A port that another program has.
	taken := host.serve(t, "tcp", "127.0.0.1:0", traffic.Echo)
	if _, errs, code := b.cli("forward", "add", fmt.Sprintf("%d:alpha:%d", taken.Port(), port)); code == 0 || !strings.Contains(errs, "in use") {
		t.Errorf("another program's port: exit status %d, %q", code, errs)
	}
	if _, errs, code := b.cli("forward", "add", "80:alpha:80"); code == 0 || !strings.Contains(errs, "privileged") && !strings.Contains(errs, "1024") {
		t.Errorf("a privileged port: exit status %d, %q", code, errs)
	}
}

// testForwardSyntax: the ways that people know are all understood, and print as one.
func testForwardSyntax(t *testing.T, b *bench) {
	for _, tt := range []struct{ rule, text string }{
		{"tcp:127.0.0.1:9201-:22", "127.0.0.1:9201:22/tcp"},
		{"tcp::9202-10.0.2.15:22", "127.0.0.1:9202:10.0.2.15:22/tcp"},
		{"udp:127.0.0.1:9203-:53", "127.0.0.1:9203:53/udp"},
		{"9204:22", "127.0.0.1:9204:22/tcp"},
		{"9205", "127.0.0.1:9205:9205/tcp"},
		{"127.0.0.1/9206:22", "127.0.0.1:9206:22/tcp"},
		{"127.0.0.1:9207:22/tcp", "127.0.0.1:9207:22/tcp"},
		{"[::1]:9208:22/udp", "[::1]:9208:22/udp"},
		{"9210-9212", "127.0.0.1:9210-9212:9210-9212/tcp"},
		{"unix:" + b.lab.path("syntax.sock") + "-:80", "unix:" + b.lab.path("syntax.sock") + "-:80"},
	} {
		f := b.forward(t, "%s", tt.rule)
		if len(f) != 1 || f[0].Text != tt.text {
			t.Errorf("%s: became %+v, want %s", tt.rule, f, tt.text)
		}
	}
	for _, bad := range []string{"", "0", "70000:22", "9220-9210", "1.2.3:22:22", "tcp:127.0.0.1:9230-", "9231:22/sctp", "9232:nobody home:22"} {
		if out, errs, code := b.cli("forward", "add", "--", bad); code == 0 || errs == "" {
			t.Errorf("%q is taken: %s", bad, out)
		}
	}
}

func testForwardEnds(t *testing.T, b *bench) {
	host := b.lab.host
	// Refused by the guest: the client sees a reset, never a clean end.
	f := b.forward(t, "0:alpha:9")
	if got, err := host.talk(t, "tcp", at(f[0]), []byte("hello")); traffic.End(err) != "reset" && traffic.End(err) != "refused" {
		t.Errorf("a guest that refuses: %q, %v, want a reset", got, err)
	}
	// A guest that is not there: the same, soon, and the rule stays.
	for _, absent := range []string{"10.0.2.99", "nobody", "52-54-00-ff-ff-ff"} {
		began := time.Now()
		f := b.forward(t, "0:%s:80", absent)
		if got, err := host.talk(t, "tcp", at(f[0]), []byte("hello")); traffic.End(err) != "reset" && traffic.End(err) != "refused" {
			t.Errorf("absent guest %s: %q, %v, want a reset", absent, got, err)
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("absent guest %s: it took %v", absent, d)
		}
	}
	// The guest's reset is the client's.
	port, _ := b.g.listen(t, "guest listen -n 5 reset :0")
	f = b.forward(t, "0:alpha:%d", port)
	if got, err := host.talk(t, "tcp", at(f[0]), []byte("hello")); traffic.End(err) != "reset" {
		t.Errorf("a guest that resets: %q, %v, want a reset", got, err)
	}
	// The client's reset is the guest's.
	port, hold := b.g.listen(t, "guest listen hold :0")
	f = b.forward(t, "0:alpha:%d", port)
	c, err := host.dial("tcp", at(f[0]))
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("hello"))
	wait(t, "the guest has it", func() error {
		for _, fl := range b.flows(t, "--direction", "in", "--state", "open") {
			if fl.DownBytes == 5 {
				return nil
			}
		}
		return fmt.Errorf("no such flow")
	})
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	var r traffic.Report
	hold.next(t, &r)
	if r.End != "reset" || r.Received != 5 {
		t.Errorf("a client that resets: %+v, want a reset after 5 bytes", r)
	}
	// Half-close both ways: the server answers after the client's end.
	port, _ = b.g.listen(t, "guest listen sink :0")
	f = b.forward(t, "0:alpha:%d", port)
	if got, err := host.talk(t, "tcp", at(f[0]), pattern(1, 50000)); err != nil || !strings.Contains(string(got), traffic.Hash(1, 50000)) {
		t.Errorf("half-close by the client: %q, %v", got, err)
	}
	port, _ = b.g.listen(t, "guest listen -n 50000 -seed 2 source :0")
	f = b.forward(t, "0:alpha:%d", port)
	if got, err := host.talk(t, "tcp", at(f[0]), []byte("late")); err != nil || !bytes.Equal(got, pattern(2, 50000)) {
		t.Errorf("half-close by the guest: %d bytes, %v", len(got), err)
	}
}

// testForwardSource: the guest sees the gateway, or with source=client who it really was.
func testForwardSource(t *testing.T, b *bench) {
	port, j := b.g.listen(t, "guest listen sink :0")
	for _, tt := range []struct{ bind, dial, guest, source, want string }{
		{"192.0.2.2", host4, "alpha", "gateway", b.gw4.String()},
		{"192.0.2.2", host4, "alpha", "client", world4},
		{"2001:db8::2", host6, b.g.addr6.String(), "gateway", b.gw6.String()},
		{"2001:db8::2", host6, b.g.addr6.String(), "client", world6},
		{"127.0.0.1", "", "alpha", "client", b.gw4.String()}, // a loopback address means nothing to the guest
	} {
		guest := tt.guest
		if strings.Contains(guest, ":") {
			guest = "[" + guest + "]"
		}
		f := b.forward(t, "%s:%s:%d/tcp,source=%s", net.JoinHostPort(tt.bind, "0"), guest, port, tt.source)
		from, to := b.world, at(f[0])
		if tt.dial == "" {
			from = b.lab.host
		}
		if _, err := from.talk(t, "tcp", to, []byte("who am I")); err != nil {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		var r traffic.Report
		j.next(t, &r)
		// A server that listens on :: sees IPv4 peers mapped.
		if got := strings.ReplaceAll(r.Remote, "::ffff:", ""); !strings.HasPrefix(got, strings.TrimSuffix(net.JoinHostPort(tt.want, ""), ":")) {
			t.Errorf("to %s from %s with source=%s: the guest saw %s, want %s", tt.guest, map[bool]string{true: "the world", false: "the host"}[tt.dial != ""], tt.source, r.Remote, tt.want)
		}
	}
	// The same for datagrams: nc in the guest would not say, so the echo must come back at least.
	udpPort, _ := b.g.listen(t, "guest udp-echo :0")
	for _, source := range []string{"gateway", "client"} {
		f := b.forward(t, "192.0.2.2:0:alpha:%d/udp,source=%s", udpPort, source)
		if got, err := b.world.talk(t, "udp", at(f[0]), []byte("hello")); err != nil || string(got) != "hello" {
			t.Errorf("UDP with source=%s: %q, %v", source, got, err)
		}
	}
}

// testOtherGuest: guests on one network reach one another, by name and both families.
func testOtherGuest(t *testing.T, b *bench) {
	if b.other == nil {
		t.Skip("one guest alone on this wire")
	}
	port, _ := b.other.listen(t, "guest listen sink :0")
	for qtype, a := range map[string]netip.Addr{"A": b.other.addr4, "AAAA": b.other.addr6} {
		if got := b.g.query(t, "bravo.internal %s", qtype); !got.has(a.String()) {
			t.Errorf("bravo.internal %s: %+v, want %s", qtype, got, a)
		}
		b.g.run(t, "ping -c 1 -W 5 %s", a)
		var r traffic.Report
		b.g.json(t, &r, "guest tcp -send 200000 -seed 5 -show %s", netip.AddrPortFrom(a, port))
		if r.End != "eof" {
			t.Errorf("to bravo at %s: %+v", a, r)
		}
	}
	b.g.run(t, "ping -c 1 -W 5 bravo")
	if n := len(b.flows(t, "--guest", "bravo", "--direction", "in")); n != 0 {
		t.Errorf("%d flows of bravo's: what guests say to one another is none", n)
	}
}
