package control

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestGuard(t *testing.T) {
	const token = "correct-horse"
	var came *http.Request
	at := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080}
	h := Guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { came = r }), token, at)
	ask := func(method, target string, header ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, target, nil)
		r.Host = "127.0.0.1:8080"
		for i := 0; i < len(header); i += 2 {
			if header[i] == "Host" {
				r.Host = header[i+1]
				continue
			}
			r.Header.Add(header[i], header[i+1])
		}
		came = nil
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	bearer := []string{"Authorization", "Bearer " + token}
	for _, c := range []struct {
		name   string
		header []string
		status int
	}{
		{"the token", bearer, 200},
		{"the scheme in another case (RFC 9110 §11.1)", []string{"Authorization", "bearer " + token}, 200},
		{"none", nil, 401},
		{"another", []string{"Authorization", "Bearer wrong"}, 401},
		{"half of it", []string{"Authorization", "Bearer correct"}, 401},
		{"an empty one", []string{"Authorization", "Bearer "}, 401},
		{"Basic", []string{"Authorization", "Basic " + token}, 401},
		{"the token as a cookie", []string{"Cookie", "vmnetd-8080=" + token}, 401},
		{"by localhost", append([]string{"Host", "localhost:8080"}, bearer...), 200},
		{"by IPv6", append([]string{"Host", "[::1]:8080"}, bearer...), 200},
		{"another port", append([]string{"Host", "127.0.0.1:8081"}, bearer...), 421},
		{"no port", append([]string{"Host", "127.0.0.1"}, bearer...), 421},
		{"no host", append([]string{"Host", ""}, bearer...), 421},
		{"a rebound name", append([]string{"Host", "attacker.example:8080"}, bearer...), 421},
		{"a name that begins well", append([]string{"Host", "localhost.attacker.example:8080"}, bearer...), 421},
		{"a name that begins as an address", append([]string{"Host", "127.0.0.1.nip.example:8080"}, bearer...), 421},
		{"another address", append([]string{"Host", "192.0.2.1:8080"}, bearer...), 421},
		{"any address", append([]string{"Host", "0.0.0.0:8080"}, bearer...), 421},
		{"its own origin", append([]string{"Origin", "http://127.0.0.1:8080"}, bearer...), 200},
		{"another origin", append([]string{"Origin", "http://attacker.example"}, bearer...), 403},
		{"another port's origin", append([]string{"Origin", "http://127.0.0.1:9090"}, bearer...), 403},
		{"localhost's origin at 127.0.0.1", append([]string{"Origin", "http://localhost:8080"}, bearer...), 403},
		{"an origin by https", append([]string{"Origin", "https://127.0.0.1:8080"}, bearer...), 403},
		{"no origin to speak of", append([]string{"Origin", "null"}, bearer...), 403},
		{"an empty origin", append([]string{"Origin", ""}, bearer...), 403},
		{"two origins", append([]string{"Origin", "http://127.0.0.1:8080", "Origin", "http://attacker.example"}, bearer...), 403},
		{"typed", append([]string{"Sec-Fetch-Site", "none"}, bearer...), 200},
		{"by its own page", append([]string{"Sec-Fetch-Site", "same-origin"}, bearer...), 200},
		{"by another port's page", append([]string{"Sec-Fetch-Site", "same-site"}, bearer...), 403},
		{"by another site's page", append([]string{"Sec-Fetch-Site", "cross-site"}, bearer...), 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := ask("GET", "/v1/status", c.header...)
			if w.Code != c.status || (came != nil) != (c.status == 200) {
				t.Fatalf("%d %s, handler asked: %v; want %d", w.Code, w.Body, came != nil, c.status)
			}
			if c.status == 200 {
				if came.Header.Get("Authorization") != "" {
					t.Error("the token was passed on")
				}
				return
			}
			var p Problem
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Status != c.status || p.Detail == "" || p.Hint == "" || w.Header().Get("Connection") != "close" {
				t.Errorf("%s (%v), %v", w.Body, err, w.Header())
			}
			if c.status == 401 && !strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "Bearer") {
				t.Errorf("401 without a challenge: %v", w.Header())
			}
		})
	}

	w := ask("GET", "/login?token="+token)
	cookies := w.Result().Cookies()
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/" || len(cookies) != 1 {
		t.Fatalf("login: %d %v", w.Code, w.Header())
	}
	c := cookies[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Domain != "" || c.Path != "/" || strings.Contains(c.Value, token) {
		t.Errorf("cookie %+v", c)
	}
	if w := ask("POST", "/v1/forwards", "Cookie", c.Name+"="+c.Value); w.Code != 200 || came == nil || came.Header.Get("Cookie") != "" {
		t.Errorf("with the cookie: %d %s, passed on: %v", w.Code, w.Body, came)
	}
	if w := ask("GET", "/", "Cookie", c.Name+"=x", "Cookie", c.Name+"="+c.Value); w.Code != 200 {
		t.Errorf("with a stranger's cookie of the same name beside it: %d", w.Code)
	}
	if w := ask("POST", "/v1/forwards", "Cookie", c.Name+"="+c.Value, "Sec-Fetch-Site", "cross-site"); w.Code != 403 {
		t.Errorf("another site's form with the cookie: %d", w.Code)
	}
	for _, target := range []string{"/login", "/login?token=", "/login?token=wrong", "/login?token=wrong&token=" + token} {
		if w := ask("GET", target); w.Code != 401 || len(w.Result().Cookies()) > 0 {
			t.Errorf("GET %s: %d %v", target, w.Code, w.Header())
		}
	}
	if w := ask("POST", "/login?token="+token); w.Code != 405 || len(w.Result().Cookies()) > 0 {
		t.Errorf("POST /login: %d", w.Code)
	}
	if w := ask("GET", "/login?token="+token, "Sec-Fetch-Site", "cross-site"); w.Code != 403 || len(w.Result().Cookies()) > 0 {
		t.Errorf("another site's link to /login: %d", w.Code)
	}
	other := Guard(http.NotFoundHandler(), token, at)
	r := httptest.NewRequest("GET", "/", nil)
	r.Host = "localhost:8080"
	r.AddCookie(c)
	w = httptest.NewRecorder()
	if other.ServeHTTP(w, r); w.Code != 401 {
		t.Errorf("the cookie of a program that has ended: %d", w.Code)
	}
	open := Guard(http.NotFoundHandler(), "", at)
	for _, a := range []string{"Bearer ", "Bearer", ""} {
		r := httptest.NewRequest("GET", "/login?token=", nil)
		r.Host = "localhost:8080"
		r.Header.Set("Authorization", a)
		w = httptest.NewRecorder()
		if open.ServeHTTP(w, r); w.Code != 401 {
			t.Errorf("no token set, %q given: %d", a, w.Code)
		}
	}
}

// With a real client and its jar, at a real listener.
func TestGuardLogin(t *testing.T) {
	srv := httptest.NewUnstartedServer(nil)
	srv.Config.Handler = Guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "the page at "+r.URL.Path) }), "t0ken", srv.Listener.Addr())
	srv.Start()
	defer srv.Close()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := srv.Client()
	c.Jar = jar
	for _, x := range []struct {
		path, body string
		status     int
	}{{"/", "token is missing", 401}, {"/login?token=t0ken", "the page at /", 200}, {"/v1/guests", "the page at /v1/guests", 200}} {
		resp, err := c.Get(srv.URL + x.path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != x.status || !strings.Contains(string(b), x.body) {
			t.Errorf("GET %s: %d %s (%v)", x.path, resp.StatusCode, b, err)
		}
	}
}
