package control

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/backendtest"
)

// Two networks with the same prefix and guests with the same address, in one daemon.
func TestSeveralNetworks(t *testing.T) {
	lab, err := backend.New(backend.Config{Name: "lab", Logger: slog.New(slog.DiscardHandler), Egress: &backendtest.Egress{},
		Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	r := newRig(t, func(s *Server) { s.Networks = append(s.Networks, lab) })
	backendtest.Plug(t, r.net, backendtest.Config{Name: "web"}).Up(t)
	backendtest.Plug(t, lab, backendtest.Config{Name: "web"}).Up(t)
	only := backendtest.Plug(t, lab, backendtest.Config{Name: "db"}).Up(t)

	list := func(path string) (all []map[string]any) {
		t.Helper()
		resp, body := r.do("GET", path, "", "")
		if resp.StatusCode != 200 {
			t.Fatalf("GET %s: %d %s", path, resp.StatusCode, body)
		}
		if err := json.Unmarshal([]byte(body), &all); err != nil {
			t.Fatalf("GET %s: %v in %s", path, err, body)
		}
		return all
	}
	of := func(all []map[string]any, network string) (n int) {
		for _, o := range all {
			if o["network"] == network {
				n++
			}
		}
		return n
	}
	for _, c := range []struct {
		path       string
		first, lab int
	}{
		{"/v1/guests", 1, 2},
		{"/v1/leases", 1, 2},
		{"/v1/flows", 0, 0},
		{"/v1/forwards", 0, 0},
	} {
		all := list(c.path)
		if of(all, "default") != c.first || of(all, "lab") != c.lab || len(all) != c.first+c.lab {
			t.Errorf("%s of all: %v, want %d of default and %d of lab", c.path, all, c.first, c.lab)
		}
		if got := list(c.path + "?network=lab"); len(got) != c.lab || of(got, "lab") != 0 {
			t.Errorf("%s of lab: %v, want %d", c.path, got, c.lab)
		}
	}
	if all := list("/v1/dns?name=web.internal"); of(all, "default") == 0 || of(all, "lab") == 0 {
		t.Errorf("names of all: %v", all)
	}
	list("/v1/flows?guest=db") // which is in one of them
	if resp, body := r.do("GET", "/v1/flows?guest=nobody", "", ""); resp.StatusCode != 404 {
		t.Errorf("flows of a guest that is nowhere: %d %s", resp.StatusCode, body)
	}

	// What is one network's is not guessed, not even where only one would do.
	for _, c := range [][2]string{
		{"GET", "/v1/guests/db"}, {"DELETE", "/v1/guests/db"}, {"DELETE", "/v1/leases/10.0.2.15"},
		{"DELETE", "/v1/forwards/tcp:127.0.0.1:1"}, {"DELETE", "/v1/dns?name=x"},
	} {
		resp, body := r.do(c[0], c[1], "", "")
		if resp.StatusCode != http.StatusConflict || !strings.Contains(body, "default, lab") {
			t.Errorf("%s %s: %d %s, want 409 and the names", c[0], c[1], resp.StatusCode, body)
		}
	}
	if resp, body := r.do("POST", "/v1/dns", "application/json", `{"name":"a","type":"A","value":"10.0.2.20"}`); resp.StatusCode != http.StatusConflict {
		t.Errorf("a record for none: %d %s", resp.StatusCode, body)
	}

	ctx := context.Background()
	c := NewClient(r.path)
	defer c.Close()
	var p *Problem
	if _, err := c.AddForward(ctx, "127.0.0.1:0:80"); !errors.As(err, &p) || p.Status != http.StatusConflict {
		t.Errorf("a forward into none: %v", err)
	}
	c.Network = "lab"
	f, err := c.AddForward(ctx, "127.0.0.1:0:80")
	if err != nil {
		t.Fatal(err)
	}
	if in, out := lab.Forwards().List(), r.net.Forwards().List(); len(in) != 1 || len(out) != 0 {
		t.Errorf("a forward into lab: lab has %d, default %d", len(in), len(out))
	}
	if err := c.RemoveForward(ctx, f[0].ID, true); err != nil {
		t.Error(err)
	}
	if err := c.Kick(ctx, "db"); err != nil {
		t.Error(err)
	}
	<-only.Gone()
	if st, err := c.Status(ctx); err != nil || len(st.Networks) != 1 || st.Networks[0].Name != "lab" {
		t.Errorf("status of lab: %+v, %v", st.Networks, err)
	}
	c.Network = ""
	if st, err := c.Status(ctx); err != nil || len(st.Networks) != 2 || st.Networks[0].Name != "default" {
		t.Errorf("status of all: %+v, %v", st.Networks, err)
	}
}
