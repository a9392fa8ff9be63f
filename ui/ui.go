// Package ui is vmnetd's page: what guests do, live, and the means to change it, for a browser.
//
//	mux := http.NewServeMux()
//	mux.Handle("/", ui.Handler())
//	mux.Handle("/v1/", control.Guard(toTheDaemon, token, listener.Addr()))
//	mux.Handle("POST /enter", …) // see below
//
// It is a folder of HTML, CSS and ES modules as they were written: there is nothing to build, and the page asks its own
// origin and nobody else, which its Content-Security-Policy holds it to. What it shows it asks the API under /v1 for, with
// "Authorization: Bearer TOKEN". It keeps no secret in a cookie, since browsers send those to every port of a machine, and
// gets none in an address that stays: it is opened as /#key=KEY, posts to /enter with that key in the place of the token,
// and is answered with the token, once.
//
// What guests choose, names above all, becomes text and never markup. Without the daemon the page says so, and goes on
// when it is back.
//
// It does not know the daemon, serves no API and opens no socket: 'vmnetd ui' does.
package ui

import (
	"embed"
	"io/fs"
	"net/http"
)

//go:embed page
var page embed.FS

// Policy is the page's Content-Security-Policy: its own files, its own API, and nothing inline.
const Policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

// Handler serves the page at /. Anybody may see it: there is nothing of the daemon's in it.
func Handler() http.Handler {
	files, err := fs.Sub(page, "page")
	if err != nil {
		panic(err) // the embed line above is wrong
	}
	server := http.FileServerFS(files)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", Policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		// Another vmnetd at this port tomorrow may have another page, and all of it is a few kilobytes from this machine.
		h.Set("Cache-Control", "no-store")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "the page is only read", http.StatusMethodNotAllowed)
			return
		}
		server.ServeHTTP(w, r)
	})
}
