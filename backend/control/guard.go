package control

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// Guard stands before a handler that is reached over TCP, where there is no file's mode and no peer's uid: any user of
// this machine can connect, and any page that a browser on it shows can try to. at is where the listener is, on the
// loopback. A request comes through if
//
//   - its Host is localhost or a loopback address, with at's port: not a name that somebody's DNS points here (421);
//   - no page of another origin made it: Origin and Sec-Fetch-Site are absent or of this place (403);
//   - it has the token, as "Authorization: Bearer TOKEN" or by a cookie (401).
//
// The cookie is for browsers: /login?token=TOKEN, opened once, sets it and leads to /. It is no token, is not shown to
// scripts, goes with no request from another site, and is worth nothing once the program has ended. A browser sends it
// to other ports of the same address, too, so its name has the port.
//
// What comes through has neither the token nor the cookie any more. next is not asked about /login.
func Guard(next http.Handler, token string, at net.Addr) http.Handler {
	return http.HandlerFunc(newGuard(next, token, at).serve)
}

type guard struct {
	next                         http.Handler
	token, port, cookie, session string
	refused                      func(*http.Request, *Problem) // hears of it, unless nil
}

func newGuard(next http.Handler, token string, at net.Addr) *guard {
	_, port, _ := net.SplitHostPort(at.String())
	return &guard{next: next, token: token, port: port, cookie: "vmnetd-" + port, session: rand.Text()}
}

// loginPath sets the cookie.
const loginPath = "/login"

func (g *guard) serve(w http.ResponseWriter, r *http.Request) {
	r, p := g.admit(w, r)
	if p != nil {
		p.Instance = instance(r)
		if p.Status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer realm="vmnetd"`) // RFC 6750 §3
		}
		if g.refused != nil {
			g.refused(r, p)
		}
		// Who is nobody keeps no connection, and is not read from any further.
		w.Header().Set("Connection", "close")
		send(w, r, p.Status, "application/problem+json", p)
		return
	}
	if r.URL.Path == loginPath {
		http.SetCookie(w, &http.Cookie{Name: g.cookie, Value: g.session, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
		w.Header().Set("Referrer-Policy", "no-referrer") // the address has the token
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Location", "/")
		w.WriteHeader(http.StatusSeeOther)
		return
	}
	g.next.ServeHTTP(w, r)
}

// admit returns the request without what is secret in it, or why it does not come in.
func (g *guard) admit(w http.ResponseWriter, r *http.Request) (*http.Request, *Problem) {
	if !g.here(r.Host) {
		return r, problem(http.StatusMisdirectedRequest, "ask for localhost:"+g.port+" or 127.0.0.1:"+g.port,
			"the request is for host %q, which is not here", short(r.Host))
	}
	if o, ok := r.Header["Origin"]; ok && (len(o) != 1 || o[0] != "http://"+r.Host) {
		return r, problem(http.StatusForbidden, "pages of other places have no business here", "a page of %q asks", short(strings.Join(o, ", ")))
	}
	// W3C Fetch Metadata: same-site is another port of this machine, none is what a person typed or clicked outside.
	if s, ok := r.Header["Sec-Fetch-Site"]; ok && (len(s) != 1 || s[0] != "same-origin" && s[0] != "none") {
		return r, problem(http.StatusForbidden, "open the address itself", "a page of another place asks: Sec-Fetch-Site is %q", short(strings.Join(s, ", ")))
	}
	by := ""
	if r.URL.Path == loginPath {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			return r, problem(http.StatusMethodNotAllowed, "it takes GET", "%s takes no %s", loginPath, short(r.Method))
		}
		if given := r.URL.Query().Get("token"); given != "" && same(given, g.token) {
			by = "token"
		}
	} else if scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "Bearer") && same(strings.TrimSpace(given), g.token) {
		by = "token"
	} else {
		for _, c := range r.CookiesNamed(g.cookie) {
			if same(c.Value, g.session) {
				by = "cookie"
			}
		}
	}
	if by == "" || g.token == "" {
		return r, problem(http.StatusUnauthorized, `send "Authorization: Bearer TOKEN", or open `+loginPath+"?token=TOKEN in a browser; the program said at its start where the token is",
			"the token is missing or another one")
	}
	in := r.WithContext(context.WithValue(r.Context(), guardKey{}, by))
	in.Header = r.Header.Clone()
	in.Header.Del("Authorization")
	in.Header.Del("Cookie")
	return in, nil
}

// here says whether a Host header means this listener: a browser that was led here by a name of another's sends that.
func (g *guard) here(host string) bool {
	name, port, err := net.SplitHostPort(host)
	if err != nil { // a port that is the scheme's own is not sent
		name, port = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"), "80"
	}
	if port != g.port {
		return false
	}
	if strings.EqualFold(name, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(name)
	return err == nil && a.IsLoopback() && a.Zone() == ""
}

// same compares in a time that tells nothing but the lengths.
func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// guardKey finds what let a request in: "token" or "cookie".
type guardKey struct{}
