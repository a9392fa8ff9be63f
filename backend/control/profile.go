package control

import (
	"net/http"
	"net/http/pprof"
	"time"
)

const profilePath = "/v1/debug/pprof/"

// profiles adds Go's own handlers, or one that says how to have them. They may slow the daemon down, and what they
// tell is of its inside, so they are there when they were asked for.
func (s *Server) profiles(mux *http.ServeMux) {
	if !s.Profile {
		mux.HandleFunc(profilePath, func(w http.ResponseWriter, r *http.Request) {
			s.fail(w, r, problem(http.StatusNotFound, "start the daemon with --pprof", "no profiles: they are not switched on"))
		})
		return
	}
	get := func(path string, h http.HandlerFunc) {
		mux.Handle(profilePath+path, http.StripPrefix("/v1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				w.Header().Set("Allow", "GET, HEAD")
				s.fail(w, r, problem(http.StatusMethodNotAllowed, "it takes GET, HEAD", "%s takes no %s", profilePath+path, short(r.Method)))
				return
			}
			http.NewResponseController(w).SetReadDeadline(time.Time{}) // a profile takes longer than a request's body may
			h(w, r)
		})))
	}
	get("", pprof.Index) // and the profiles by name: heap, goroutine, allocs, …
	get("cmdline", pprof.Cmdline)
	get("profile", pprof.Profile)
	get("symbol", pprof.Symbol)
	get("trace", pprof.Trace)
}
