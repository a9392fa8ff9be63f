package control

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

// FuzzGuard: nobody comes in but with the token or the cookie, by a loopback address, and from no other page.
func FuzzGuard(f *testing.F) {
	const token = "correct-horse-battery"
	came := false
	g := newGuard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { came = true }), token, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080})
	g.session = "session"
	f.Fuzz(func(t *testing.T, target, host, origin, site, auth, cookie string) {
		r, err := requestOf("GET", "/", "")
		if err != nil {
			return
		}
		if r.URL, err = r.URL.Parse(target); err != nil {
			return
		}
		r.Host = host
		for name, v := range map[string]string{"Origin": origin, "Sec-Fetch-Site": site, "Authorization": auth, "Cookie": cookie} {
			if v != "" {
				r.Header.Set(name, v)
			}
		}
		came = false
		w := httptest.NewRecorder()
		g.serve(w, r)
		if !came {
			if w.Code == 200 || w.Header().Get("Set-Cookie") != "" && r.URL.Query().Get("token") != token {
				t.Fatalf("%q: %d %v", target, w.Code, w.Header())
			}
			return
		}
		if !strings.Contains(auth, token) && !strings.Contains(cookie, "vmnetd-8080=") {
			t.Fatalf("in without a secret: %q %q", auth, cookie)
		}
		if origin != "" && origin != "http://"+host || site != "" && site != "none" && site != "same-origin" {
			t.Fatalf("in from another page: %q %q at %q", origin, site, host)
		}
		name, port, err := net.SplitHostPort(host)
		a, _ := netip.ParseAddr(name)
		if err != nil || port != "8080" || !strings.EqualFold(name, "localhost") && !a.IsLoopback() {
			t.Fatalf("in by the host %q", host)
		}
	})
}
