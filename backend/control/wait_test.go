package control

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/backendtest"
)

func TestPort(t *testing.T) {
	r := newRig(t)
	g := backendtest.Plug(t, r.net, backendtest.Config{Name: "web"}).Up(t)
	ctx, cancel := context.WithTimeout(context.Background(), backendtest.Patience)
	defer cancel()

	// Each port listens at one family only: of a guest that is named by name, either will do.
	six, err := g.Listen(netip.AddrPortFrom(g.Addr6(), 443))
	if err != nil {
		t.Fatal(err)
	}
	defer six.Close()
	four, err := g.Listen(netip.AddrPortFrom(g.Addr4(), 22))
	if err != nil {
		t.Fatal(err)
	}
	defer four.Close()
	echo, err := g.ListenPacket("udp4", g.Addr4().String()+":53")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if _, from, err := echo.ReadFrom(make([]byte, 10)); err == nil {
			echo.WriteTo([]byte("here"), from)
		}
	}()
	mute, err := g.ListenPacket("udp4", g.Addr4().String()+":54")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()

	at := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	for _, c := range []struct {
		guest, proto string
		port         uint16
		state        string
		answers      bool
		addr         netip.AddrPort
	}{
		{g.Addr6().String(), "tcp", 443, "open", true, at(g.Addr6(), 443)}, // it has not shown that yet
		{"web", "tcp", 22, "open", true, at(g.Addr4(), 22)},
		{"WEB", "", 443, "open", true, at(g.Addr6(), 443)},
		{g.MAC().String(), "tcp", 22, "open", true, at(g.Addr4(), 22)},
		{g.Addr6().String(), "tcp", 22, "refused", false, at(g.Addr6(), 22)},
		{g.Addr4().String(), "tcp", 443, "refused", false, at(g.Addr4(), 443)},
		{"web", "udp", 53, "open", true, at(g.Addr4(), 53)},
		{g.Addr4().String(), "udp", 54, "quiet", true, at(g.Addr4(), 54)},
		{g.Addr4().String(), "udp", 55, "refused", false, at(g.Addr4(), 55)},
	} {
		p, err := r.c.Port(ctx, c.guest, c.proto, c.port)
		if err != nil || p.State != c.state || p.Answers() != c.answers || p.Address != c.addr || p.Guest != "g1" {
			t.Errorf("%s:%d/%s: %+v, %v, want %s by %v", c.guest, c.port, c.proto, p, err, c.state, c.addr)
		}
	}
	<-answered
	// A listener finds a conversation that has ended, and that is all.
	for _, l := range []net.Listener{four, six} {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		c.Close()
	}

	for path, status := range map[string]int{
		"/v1/guests/web/port": 400, "/v1/guests/web/port?port=0": 400, "/v1/guests/web/port?port=65536": 400, "/v1/guests/web/port?port=ssh": 400, "/v1/guests/web/port?port=22&proto=sctp": 400,
		"/v1/guests/db/port?port=22": 404, "/v1/guests/10.0.2.77/port?port=22": 404, "/v1/guests/192.0.2.1/port?port=22": 404, "/v1/guests/web/port?port=22&prot=udp": 400,
	} {
		if resp, body := r.do("GET", path, "", ""); resp.StatusCode != status {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
	}

	// Tries are bounded, over all clients.
	r.srv.tries.Store(maxPortTries)
	var p *Problem
	if _, err := r.c.Port(ctx, "web", "tcp", 22); !errors.As(err, &p) || p.Status != http.StatusTooManyRequests || !strings.Contains(p.Detail, "64") {
		t.Errorf("one try too many: %v", err)
	}
	if n := r.srv.tries.Load(); n != maxPortTries {
		t.Errorf("%d tries are counted, want %d", n, maxPortTries)
	}
	r.srv.tries.Store(0)
}

// A network without an uplink says so, where else one would be waited for that cannot come.
func TestNoUplink(t *testing.T) {
	r := newRig(t)
	lan, err := backend.New(backend.Config{Name: "lan", NoUplink: true})
	if err != nil {
		t.Fatal(err)
	}
	defer lan.Close()
	r.srv.Add(lan, nil)
	for path, q := range map[string]url.Values{"guests/10.1.1.1/port": values("network", "lan", "port", "22"), "policy": values("network", "lan")} {
		var p *Problem
		if err := r.c.call(t.Context(), http.MethodGet, path, q, nil, nil); !errors.As(err, &p) || p.Status/100 != 4 || !strings.Contains(p.Detail+p.Hint, "no uplink") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
