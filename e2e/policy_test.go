//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/e2e/traffic"
)

// greeting is what "guest hello" prints.
type greeting struct {
	Connected, Answered bool
	Said, Error         string
	Seconds             float64
}

// hello opens a conversation that says whom it is for.
func (g *guest) hello(t *testing.T, format string, args ...any) (r greeting) {
	t.Helper()
	g.json(t, &r, "guest hello "+format, args...)
	return r
}

// web is what the world has at all its addresses: TLS at 443 and HTTP at 80, which say whom they were asked for, and at
// UDP 443 and TCP 9000 and 853 somebody who says "heard".
type web struct{ conns, datagrams atomic.Int64 }

func startWeb(t *testing.T, n *netns) *web {
	t.Helper()
	w := &web{}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	hear := func(c net.Conn) (string, bool) {
		b := make([]byte, 100)
		n, err := c.Read(b)
		return string(b[:n]), err == nil
	}
	handlers := map[string]func(net.Conn){
		"443": func(c net.Conn) {
			s := tls.Server(c, conf)
			if _, ok := hear(s); ok {
				fmt.Fprint(s, "tls for "+s.ConnectionState().ServerName)
				s.Close()
			}
		},
		"80": func(c net.Conn) {
			r, err := http.ReadRequest(bufio.NewReader(c))
			if err == nil {
				fmt.Fprintf(c, "HTTP/1.0 200 OK\r\n\r\nhttp for %s", r.Host)
			}
		},
	}
	said := func(c net.Conn) {
		if _, ok := hear(c); ok {
			fmt.Fprint(c, "heard")
		}
	}
	handlers["9000"], handlers["853"] = said, said
	var running sync.WaitGroup
	for _, a := range []string{world4, world6, second4, second6} {
		for port, h := range handlers {
			var l net.Listener
			if err := n.Do(func() (err error) {
				l, err = net.Listen("tcp", net.JoinHostPort(a, port))
				return err
			}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			running.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					w.conns.Add(1)
					running.Go(func() {
						defer c.Close()
						c.SetDeadline(time.Now().Add(patience))
						h(c)
					})
				}
			})
		}
		pc := n.listenPacket(t, net.JoinHostPort(a, "443"))
		running.Go(func() {
			b := make([]byte, 2048)
			for {
				_, from, err := pc.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				w.datagrams.Add(1)
				pc.WriteToUDPAddrPort([]byte("heard"), from)
			}
		})
	}
	return w
}

// quicInitial is the first datagram of a QUIC client that asks for www.example.com.
func (g *guest) quicInitial(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "hello", "testdata", "clients", "quic-go-v1.hex"))
	if err != nil {
		t.Fatal(err)
	}
	g.run(t, "cat >/tmp/initial.hex <<'end'\n%s\nend", strings.TrimSpace(string(b)))
	return "/tmp/initial.hex"
}

func (g *guest) resolves(t *testing.T, name string, want ...string) {
	t.Helper()
	var all []string
	for _, qtype := range []string{"A", "AAAA"} {
		a := g.query(t, "%s %s", name, qtype)
		if a.Rcode != "NOERROR" {
			t.Fatalf("%s %s: %+v", name, qtype, a)
		}
		for _, rr := range a.Answer {
			f := strings.Fields(rr)
			all = append(all, f[len(f)-1])
		}
	}
	if got, want := strings.Join(all, " "), strings.Join(want, " "); got != want {
		t.Errorf("%s is %s, want %s", name, got, want)
	}
}

// refusals are a guest's, by reason.
func (g *guest) refusals(t *testing.T) map[string]uint64 {
	t.Helper()
	i, ok := g.info(t)
	if !ok {
		t.Fatal("the guest is not plugged in")
	}
	return i.Dropped
}

// refused says whether the guest heard a no, at once.
func refused(r greeting) bool {
	return !r.Connected && !r.Answered && r.Seconds < 4 && slices.Contains(noes, r.Error)
}

// noes are a RST, and what Linux makes of ICMP's and ICMPv6's "prohibited".
var noes = []string{"refused", "host-unreachable", "prohibited"}

// TestPolicySandbox: names that are allowed, at the addresses that answers gave for them and for those names alone.
func TestPolicySandbox(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	w := startWeb(t, l.world)
	l.host.ip(t, "addr add 169.254.169.254/32 dev lo")
	l.host.ip(t, "addr add 192.168.7.7/32 dev lo")
	rows := []string{net.JoinHostPort("169.254.169.254", "80"), net.JoinHostPort("192.168.7.7", "80")}
	for _, a := range rows {
		l.host.serve(t, "tcp", a, traffic.Sink)
	}
	loop4, loop6 := l.host.serve(t, "tcp", "127.0.0.1:0", traffic.Sink), l.host.serve(t, "tcp", "[::1]:0", traffic.Sink)
	d := l.serve(t, "--policy", "sandbox", "--allow", "tcp www.example.com:80,443,9000", "--allow", "udp www.example.com:443",
		"--allow", "tcp rebind.example.com:9000", "--policy-audit")
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	gw := d.gateway(t)
	initial := g.quicInitial(t)

	for _, a := range []string{world4, world6} {
		if r := g.hello(t, "-name www.example.com %s", net.JoinHostPort(a, "443")); !refused(r) {
			t.Errorf("%s before its name was resolved: %+v", a, r)
		}
	}
	g.resolves(t, "www.example.com", world4, world6)
	for _, a := range []string{world4, world6} {
		tlsAt, httpAt := net.JoinHostPort(a, "443"), net.JoinHostPort(a, "80")
		for _, c := range []struct{ args, said string }{
			{"-name www.example.com " + tlsAt, "tls for www.example.com"},
			{"-name WWW.Example.com " + tlsAt, "tls for WWW.Example.com"},
			{"-as http -name www.example.com " + httpAt, "http for www.example.com"},
			{"-as http -name www.example.com:80 " + httpAt, "http for www.example.com:80"},
			{"-as udp -hex " + initial + " " + tlsAt, "heard"},
		} {
			if r := g.hello(t, "%s", c.args); !r.Answered || r.Said != c.said {
				t.Errorf("hello %s: %+v, want %q", c.args, r, c.said)
			}
		}
		// The same address, in somebody else's name, or in nobody's: the server hears no byte of it.
		before := w.datagrams.Load()
		for _, args := range []string{
			"-name evil.example.com " + tlsAt, "-name '' " + tlsAt, "-as text " + tlsAt,
			"-as http -name evil.example.com " + httpAt, "-as http " + httpAt,
			"-timeout 1s -as udp " + tlsAt,
		} {
			if r := g.hello(t, "%s", args); r.Answered {
				t.Errorf("hello %s: %+v, want no answer", args, r)
			} else if !strings.Contains(args, "udp") && (!r.Connected || r.Error != "reset") {
				t.Errorf("hello %s: %+v, want it reset once its first bytes were there", args, r)
			}
		}
		if n := w.datagrams.Load(); n != before {
			t.Errorf("%d datagrams of no name came through", n-before)
		}
	}
	if a := g.query(t, "evil.example.com"); a.Rcode != "REFUSED" || len(a.Answer) > 0 {
		t.Errorf("a name that is not allowed: %+v", a)
	}
	if n := l.dns.count("evil.example.com"); n != 0 {
		t.Errorf("%d questions for a name that is not allowed went upstream", n)
	}

	// Addresses that no name opened, and those that none can.
	for _, to := range append([]string{
		net.JoinHostPort(second4, "443"), net.JoinHostPort(second6, "443"), net.JoinHostPort(world4, "853"), net.JoinHostPort(world6, "853"),
		target(gw.gw4.String(), loop4.Addr()), target(gw.gw6.String(), loop6.Addr()),
	}, rows...) {
		if r := g.hello(t, "-as text %s", to); r.Connected {
			t.Errorf("%s: %+v, want refused", to, r)
		}
	}
	for _, server := range []string{world4, world6} {
		for _, how := range []string{"", "-tcp"} {
			if a := g.query(t, "-timeout 1s %s -server %s www.example.com", how, server); a.Rcode != "" {
				t.Errorf("another resolver, %s %s: %+v", server, how, a)
			}
		}
	}
	if _, _, code, _ := g.try(t, "ping -c 1 -W 1 %s", world4); code == 0 {
		t.Error("a ping is answered")
	}
	// Of an answer that points inside, the guest gets what does not.
	g.resolves(t, "rebind.example.com", world4, world6)

	dropped := g.refusals(t)
	for _, r := range []string{"policy", "other-name", "name", "rebinding"} {
		if dropped[r] == 0 {
			t.Errorf("nothing was counted as %s: %v", r, dropped)
		}
	}
	for _, c := range []struct {
		proto, to, verdict string
	}{
		{"tcp", "www.example.com:443", "allow"}, {"tcp", "evil.example.com:443", "reject"}, {"udp", world4 + ":53", "reject"},
		{"tcp", "169.254.169.254:80", "reject"}, {"icmp", world6, "reject"},
	} {
		out, errs, code := d.cli("policy", "test", "alpha", c.proto, c.to, "-o", "json")
		if !strings.Contains(out, `"verdict": "`+c.verdict+`"`) || (code == 0) != (c.verdict == "allow") {
			t.Errorf("policy test %s %s: %d %s%s, want %s", c.proto, c.to, code, out, errs, c.verdict)
		}
	}
	for _, want := range []string{"name=www.example.com", "name=evil.example.com", "other-name", "rebinding", "verdict=allow", "verdict=reject"} {
		if !strings.Contains(d.log.String(), want) {
			t.Errorf("no audit line has %q", want)
		}
	}
}

// TestPolicyOffline: no way out; in by forwards, across to other guests, and local names.
func TestPolicyOffline(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	startWeb(t, l.world)
	d := l.serve(t, "--policy", "offline")
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	o := kernelUnix.boot(t, d, attach{unix: d.unix}, "bravo")
	gw := d.gateway(t)
	for _, a := range []string{world4, world6} {
		if r := g.hello(t, "-as text %s", net.JoinHostPort(a, "9000")); !refused(r) {
			t.Errorf("%s: %+v", a, r)
		}
	}
	loop := l.host.serve(t, "tcp", "127.0.0.1:0", traffic.Sink)
	if r := g.ends(t, target(gw.gw4.String(), loop.Addr())); !slices.Contains(noes, r.End) {
		t.Errorf("the host: %q", r.End)
	}
	if a := g.query(t, "www.example.com"); a.Rcode != "REFUSED" {
		t.Errorf("a name of the world's: %+v", a)
	}
	if a := g.query(t, "bravo.internal"); !a.has(o.addr4.String()) {
		t.Errorf("a guest's name: %+v", a)
	}
	for _, a := range []netip.Addr{o.addr4, o.addr6} {
		port, _ := o.listen(t, "guest listen echo '[::]:0'")
		if r := g.ends(t, netip.AddrPortFrom(a, port).String()); r.End != "eof" || r.Received != 100 {
			t.Errorf("the other guest at %s: %+v", a, r)
		}
	}
	// A closed guest is reached by forwards all the same.
	for _, a := range []netip.Addr{g.addr4, g.addr6} {
		port, _ := g.listen(t, "guest listen echo '[::]:0'")
		f := d.forward(t, "127.0.0.1:0:%s:%d", bracketed(a), port)[0]
		c, err := l.host.dial("tcp", fmt.Sprintf("127.0.0.1:%d", f.Rule.HostPort))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		fmt.Fprint(c, "in")
		b := make([]byte, 2)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "in" {
			t.Errorf("the forward to %s: %q, %v", a, b, err)
		}
		c.Close()
	}
}

func bracketed(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// TestPolicyLive: a policy is set while conversations run. They go on, unless it says now.
func TestPolicyLive(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	startWeb(t, l.world)
	d := l.serve(t)
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	for _, a := range []string{world4, world6} {
		s := l.world.serve(t, "tcp", net.JoinHostPort(a, "0"), traffic.Sink)
		j := g.begin(t, "guest stream -rate 1000000 %s", s.Addr())
		var progress struct {
			Bytes int64
			End   string
		}
		moves := func(what string) {
			t.Helper()
			j.next(t, &progress)
			from := progress.Bytes
			for n := 0; progress.Bytes <= from; n++ {
				if j.next(t, &progress); progress.End != "" || n > 100 {
					t.Fatalf("%s: %s: the transfer ended or stands: %+v", a, what, progress)
				}
			}
		}
		moves("open")
		d.must(t, "policy", "set", "sandbox")
		if r := g.hello(t, "-as text %s", net.JoinHostPort(a, "9000")); !refused(r) {
			t.Errorf("%s: a new conversation under another policy: %+v", a, r)
		}
		moves("another policy")
		if f := d.flows(t); len(f) != 1 {
			t.Errorf("%d conversations, want the one that runs: %+v", len(f), f)
		}
		d.must(t, "policy", "set", "sandbox", "--now")
		report(t, s) // and the server's end of it
		wait(t, "the conversation's end", func() error {
			if f := d.flows(t); len(f) != 0 {
				return fmt.Errorf("%+v", f)
			}
			return nil
		})
		for progress.End == "" {
			j.next(t, &progress)
		}
		if progress.End != "reset" {
			t.Errorf("%s: the guest saw %q, want reset", a, progress.End)
		}
		d.must(t, "policy", "set", "open", "--now")
		if r := g.hello(t, "-as text %s", net.JoinHostPort(a, "9000")); !r.Answered {
			t.Errorf("%s: open again: %+v", a, r)
		}
	}
	// Rules of one guest, which has them by its name.
	cmd := exec.Command(must(vmnetd())(t), "policy", "set", "--guest", "alpha", "-", "--control", d.control)
	cmd.Stdin = strings.NewReader("preset sandbox\nallow tcp " + second4 + ":9000\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	o := kernelUnix.boot(t, d, attach{unix: d.unix}, "bravo")
	for _, c := range []struct {
		g    *guest
		to   string
		want bool
	}{{g, world4, false}, {g, second4, true}, {o, world4, true}, {o, second4, true}} {
		if r := c.g.hello(t, "-as text %s", net.JoinHostPort(c.to, "9000")); r.Answered != c.want {
			t.Errorf("%s to %s: %+v, want %v", c.g.name, c.to, r, c.want)
		}
	}
	show := d.must(t, "policy", "show")
	if !strings.Contains(show, "guest alpha\n") || !strings.Contains(show, second4+":9000") {
		t.Errorf("policy show: %s", show)
	}
	d.must(t, "policy", "set", "--guest", "alpha", "none")
	if show := d.must(t, "policy", "show"); strings.Contains(show, "alpha") {
		t.Errorf("policy show: %s", show)
	}
	n := 0
	for _, e := range ask[[]backend.Event](t, d, "events", "--kind", "policy") {
		if e.Kind == backend.EventPolicy {
			n++
		}
	}
	if n != 8 {
		t.Errorf("%d events of policies, want 8", n)
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestPolicyLearn: what a guest did makes a policy under which it can do that again, and nothing else.
func TestPolicyLearn(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	startWeb(t, l.world)
	d := l.serve(t)
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	initial := g.quicInitial(t)
	d.must(t, "policy", "learn", "start")
	work := func() (failed []string) {
		g.resolves(t, "www.example.com", world4, world6)
		for _, a := range []string{world4, world6} {
			at := net.JoinHostPort(a, "443")
			for _, args := range []string{"-name www.example.com " + at, "-as udp -hex " + initial + " " + at,
				"-as text " + net.JoinHostPort(map[string]string{world4: second4, world6: second6}[a], "9000")} {
				if r := g.hello(t, "%s", args); !r.Answered {
					failed = append(failed, args)
				}
			}
		}
		return failed
	}
	if f := work(); f != nil {
		t.Fatalf("while it is learnt: %v", f)
	}
	text := d.must(t, "policy", "learn", "stop")
	for _, want := range []string{"www.example.com:443", second4 + ":9000", second6} {
		if !strings.Contains(text, want) {
			t.Errorf("%s was not learnt: %s", want, text)
		}
	}
	file := filepath.Join(t.TempDir(), "learnt")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d.must(t, "policy", "set", file, "--now")
	if f := work(); f != nil {
		t.Errorf("under what was learnt, %v fail: %s", f, text)
	}
	for _, args := range []string{"-name evil.example.com " + world4 + ":443", "-as text " + world4 + ":9000", "-as text " + second4 + ":853"} {
		if r := g.hello(t, "%s", args); r.Answered {
			t.Errorf("%s was never done: %+v", args, r)
		}
	}
	if again := d.must(t, "policy", "show"); strings.TrimSpace(again) == "" {
		t.Error("no policy")
	}
}

// TestPolicyAsk: a destination is held while somebody is asked, and the answer holds as long as it says.
func TestPolicyAsk(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	startWeb(t, l.world)
	d := l.serve(t, "--policy", "sandbox", "--allow", "ask tcp any:9000", "--allow", "ask tcp *.example.com:443")
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	try := func(to string) *job { return g.begin(t, "guest hello -timeout 60s -as text %s", to) }
	outcome := func(j *job) (r greeting) {
		t.Helper()
		end := make(chan struct{})
		go func() {
			defer close(end)
			j.lines.Scan()
		}()
		select {
		case <-end:
		case <-time.After(2 * patience):
			t.Fatal("no end")
		}
		if err := json.Unmarshal(j.lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	question := func(to string) (q control.Question) {
		t.Helper()
		wait(t, "the question about "+to, func() error {
			for _, q = range ask[[]control.Question](t, d, "policy", "ask", "--list") {
				if q.Dst.String() == to {
					return nil
				}
			}
			return errors.New("it is not asked")
		})
		return q
	}
	// Nobody answers this one; the rest goes on meanwhile.
	late := try(net.JoinHostPort(second6, "853"))
	if r := outcome(late); r.Connected {
		t.Errorf("what no rule asks about: %+v", r)
	}
	late = try(net.JoinHostPort(second6, "9000"))
	question(net.JoinHostPort(second6, "9000"))

	// By somebody at a terminal, who is shown it and types.
	cmd := exec.Command(must(vmnetd())(t), "policy", "ask", "--control", d.control)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said output
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stdin.Close()
		cmd.Wait()
	}()
	wait(t, "the one that nobody answers is shown", func() error {
		if s := said.String(); !strings.Contains(s, "Allow?") || !strings.Contains(s, second6) {
			return errors.New(s)
		}
		return nil
	})

	yes := try(net.JoinHostPort(world4, "9000"))
	q := question(net.JoinHostPort(world4, "9000"))
	if q.Network != "default" || q.Guest == "" || !strings.Contains(q.Rule, "ask tcp") || q.Held != 1 {
		t.Errorf("question: %+v", q)
	}
	id := strconv.FormatUint(q.ID, 10)
	if _, errs, code := d.cli("policy", "answer", id, "alow"); code != 2 || !strings.Contains(errs, "did you mean allow?") {
		t.Errorf("an answer that is none: %d %s", code, errs)
	}
	d.must(t, "policy", "answer", id, "allow")
	if r := outcome(yes); !r.Answered {
		t.Errorf("after a yes: %+v", r)
	}
	if r := outcome(try(net.JoinHostPort(world4, "9000"))); !r.Answered { // and is not asked again
		t.Errorf("after a yes for the session: %+v", r)
	}
	if _, errs, code := d.cli("policy", "answer", id, "allow"); code != 1 || !strings.Contains(errs, id) {
		t.Errorf("the same question again: %d %s", code, errs)
	}

	no := try(net.JoinHostPort(world6, "9000"))
	d.must(t, "policy", "answer", strconv.FormatUint(question(net.JoinHostPort(world6, "9000")).ID, 10), "deny", "--for", "once")
	if r := outcome(no); r.Connected || r.Answered {
		t.Errorf("after a no: %+v", r)
	}

	if r := outcome(late); r.Connected || r.Seconds < 25 || r.Seconds > 45 {
		t.Errorf("without an answer: %+v, want it refused after 30 s", r)
	}
	once := try(net.JoinHostPort(world6, "9000")) // asked again: the no was for once
	question(net.JoinHostPort(world6, "9000"))
	wait(t, "the next one is shown", func() error {
		if s := said.String(); strings.Count(s, "Allow?") < 2 || !strings.Contains(s, "too late") || !strings.Contains(s, "alpha") || !strings.Contains(s, world6) {
			return errors.New(s)
		}
		return nil
	})
	fmt.Fprintln(stdin, "perhaps")
	fmt.Fprintln(stdin, "y always")
	if r := outcome(once); !r.Answered {
		t.Errorf("after a yes that was typed: %+v; %s", r, said.String())
	}
	if s := said.String(); !strings.Contains(s, "want y or n") {
		t.Errorf("perhaps is an answer: %s", s)
	}
	wait(t, "a rule of it", func() error {
		if s := d.must(t, "policy", "show"); !strings.Contains(s, world6) {
			return errors.New(s)
		}
		return nil
	})
	if n := g.refusals(t)["unanswered"]; n == 0 {
		t.Errorf("unanswered: %d", n)
	}
	kinds := map[backend.EventKind]int{}
	for _, e := range ask[[]backend.Event](t, d, "events") {
		kinds[e.Kind]++
	}
	if kinds[backend.EventQuestion] < 4 || kinds[backend.EventAnswer] < 4 {
		t.Errorf("events: %v", kinds)
	}
}

// TestEventsFollowed: what happens is told as it happens.
func TestEventsFollowed(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	d := l.serve(t)
	cmd := exec.Command(must(vmnetd())(t), "events", "--follow", "-o", "json", "--control", d.control)
	var said output
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	saw := func(want ...string) {
		t.Helper()
		wait(t, "events", func() error {
			s := said.String()
			for _, w := range want {
				i := strings.Index(s, w)
				if i < 0 {
					return fmt.Errorf("no %s in %s", w, said.String())
				}
				s = s[i:]
			}
			return nil
		})
	}
	g := kernelUnix.boot(t, d, attach{unix: d.unix}, "alpha")
	saw(`"kind":"guest-in"`, `"kind":"lease"`, "alpha")
	f := d.forward(t, "127.0.0.1:0:22")[0]
	d.must(t, "forward", "rm", f.ID)
	saw(`"kind":"forward-added"`, f.ID, `"kind":"forward-removed"`)
	g.run(t, "guest hello -timeout 1s -as text 169.254.169.254:80")
	saw(`"kind":"refused"`, `"reason":"link-local"`)
	g.Kill()
	saw(`"kind":"guest-gone"`)
	list := ask[[]backend.Event](t, d, "events", "--kind", "guest-gone", "--since", "10m")
	if len(list) != 1 || list[0].Guest != "g1" || list[0].Network != "default" {
		t.Errorf("events of one kind: %+v", list)
	}
	if _, errs, code := d.cli("events", "--kind", "guest-gon"); code != 2 || !strings.Contains(errs, "did you mean guest-gone?") {
		t.Errorf("a kind that is none: %d %s", code, errs)
	}
	d.cmd.Process.Signal(os.Interrupt)
	d.end(t, patience)
	if err := cmd.Wait(); err == nil || !bytes.Contains([]byte(said.String()), []byte("the daemon has ended")) {
		t.Errorf("at the daemon's end: %v %s", err, said.String())
	}
}
