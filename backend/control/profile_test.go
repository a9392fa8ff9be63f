package control

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestProfiles(t *testing.T) {
	off, on := newRig(t), newRig(t, func(s *Server) { s.Profile = true })
	ask := func(r *rig, method, path string) (int, string, string) {
		t.Helper()
		req, err := http.NewRequest(method, "http://vmnetd/v1/debug/pprof/"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := r.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header.Get("Content-Type"), string(b)
	}
	for _, path := range []string{"", "heap", "profile?seconds=1", "cmdline", "trace"} {
		var p Problem
		code, kind, body := ask(off, "GET", path)
		if code != http.StatusNotFound || kind != "application/problem+json" || json.Unmarshal([]byte(body), &p) != nil || !strings.Contains(p.Hint, "--pprof") {
			t.Errorf("%s, not switched on: %d %s %s", path, code, kind, body)
		}
	}
	for path, want := range map[string]string{"": "goroutine", "goroutine?debug=1": "goroutine profile: total", "cmdline": "control", "symbol": "num_symbols"} {
		if code, _, body := ask(on, "GET", path); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s, want %q", path, code, body, want)
		}
	}
	if code, _, _ := ask(on, "GET", "nosuch"); code != http.StatusNotFound {
		t.Errorf("a profile that there is not: %d", code)
	}
	for _, path := range []string{"", "heap", "symbol"} {
		if code, _, body := ask(on, "POST", path); code != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: %d %s", path, code, body)
		}
	}
}
