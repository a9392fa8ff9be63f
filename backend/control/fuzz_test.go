package control

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/policy"
)

// FuzzForwardRules: what is read as rules is normal, and what is not is the client's fault.
func FuzzForwardRules(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		rules, err := forwardRules(b)
		if err != nil {
			var p *Problem
			if !errors.As(err, &p) || p.Status < 400 || p.Status >= 500 {
				t.Fatalf("%q: %v", b, err)
			}
			return
		}
		for _, r := range rules {
			if n, err := r.Normalize(); err != nil || n != r {
				t.Fatalf("%q: %v is not normal (%v)", b, r, err)
			}
		}
	})
}

// FuzzRequest: whatever is asked, the answer is JSON or nothing, and never the daemon's failure.
func FuzzRequest(f *testing.F) {
	n, err := backend.New(backend.Config{
		Logger: slog.New(slog.DiscardHandler), Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { n.Close() })
	rules, err := NewPolicy(n, policy.Document{}, nil)
	if err != nil {
		f.Fatal(err)
	}
	n.SetPolicy(rules, false)
	s := &Server{Networks: []*backend.Network{n}, Policies: map[string]*policy.Policy{"default": rules}, Logger: slog.New(slog.DiscardHandler), allowed: func(peer) bool { return true }}
	h := s.handler()
	f.Fuzz(func(t *testing.T, method, target, body string) {
		if (method == "POST" || method == "PUT") && !strings.HasPrefix(target, "/v1/dns") && !strings.HasPrefix(target, "/v1/policy") {
			return // port forwards open sockets of this machine
		}
		if !strings.HasPrefix(target, "/") || strings.ContainsAny(target+method, " \r\n\t") || method == "" {
			return // net/http has refused it by then
		}
		r, err := requestOf(method, target, body)
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		b := w.Body.Bytes()
		if w.Code >= 500 {
			t.Fatalf("%s %q %q: %d %s", method, target, body, w.Code, b)
		}
		if typ := w.Header().Get("Content-Type"); strings.Contains(typ, "json") && method != "HEAD" && !json.Valid(b) {
			t.Fatalf("%s %q %q: %s", method, target, body, b)
		}
	})
}

func requestOf(method, target, body string) (r *http.Request, err error) {
	defer func() { // httptest.NewRequest panics for what is no request line
		if recover() != nil {
			err = errors.New("no request")
		}
	}()
	r = httptest.NewRequest(method, target, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	return r, nil
}
