package control

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/guestlog"
	"github.com/vmnetd/vmnetd/policy"
)

const (
	// maxBody: the largest honest request is a forward rule of some 300 bytes; a list of passt's rules has 8 KiB.
	maxBody = 64 << 10
	// maxHeader: a request line with an escaped socket path has under 1 KiB; net/http's own 1 MiB times 1000
	// clients would be a gigabyte.
	maxHeader = 16 << 10
	// A client on this machine sends its whole request at once. Five seconds forgive one that is being swapped in.
	headerTimeout = 5 * time.Second
	bodyTimeout   = 10 * time.Second
	// writeTimeout: a hundred thousand flows are 30 MB of JSON, seconds to a slow pager.
	writeTimeout = 60 * time.Second
	// idleTimeout: a client that keeps its connection polls more often than this.
	idleTimeout = 2 * time.Minute
	// maxNoise bounds what a request can put into a log line or an error.
	maxNoise = 200
)

// Server answers the API. Its fields must not change once Serve runs.
type Server struct {
	// Networks are what it shows. Their names differ.
	Networks []*backend.Network
	// Version is the program's own.
	Version string
	// Listen are the places where guests plug in, for Status.
	Listen []string
	// API are the places where it is answered, for Status.
	API []string
	// Logger hears who changed what. Default slog.Default.
	Logger *slog.Logger
	// Sandbox says which walls stand around the daemon, for Status. nil: it does not tell.
	Sandbox func() Sandbox
	// FlowLog says how the log of conversations does, for Status; it, or what it returns, may be nil: there is none.
	FlowLog func() *FlowLog
	// Profile opens /v1/debug/pprof/: Go's profiles of the process.
	Profile bool

	// Policies are the networks', by their names. A network that has none here has one of the program's own.
	Policies map[string]*policy.Policy

	// Reload, if not nil, reads the daemon's configuration again. Its errors are best a *Problem: see ReloadProblem.
	Reload func(context.Context) (Reload, error)
	// Lab, if not nil, is the lab that the daemon runs.
	Lab Lab

	came          came         // while it runs
	followers     atomic.Int64 // of events
	flowFollowers atomic.Int64
	tries         atomic.Int64 // of ports
	changing      sync.Mutex   // held while a policy is changed

	allowed func(peer) bool // nil: own uid and root. Tests put themselves outside.
}

// Serve answers on l until ctx is done, when it gives requests under way a second (they wait for nothing but
// memory), or until l fails. It closes l and returns when its goroutines have ended; nil after ctx.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	spare := &spareListener{Listener: l}
	return s.serveOn(ctx, spare, s.handler(), spare.refill, peerOf)
}

// serveOn answers on l. gone is called when a connection has ended, who tells whose one is.
func (s *Server) serveOn(ctx context.Context, l net.Listener, handler http.Handler, gone func(), who func(net.Conn) peer) error {
	// What the handlers' contexts derive from is cancelled last, so that nobody's request is cut for politeness.
	base, cancel := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), endingKey{}, ctx))
	defer cancel()
	var conns sync.WaitGroup
	h := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		// OPTIONS * has nothing to tell, and is answered as a path that there is not.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(guestlog.New(s.log().Handler()), slog.LevelWarn), // no descriptors, above all
		BaseContext:                  func(net.Listener) context.Context { return base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, who(c))
		},
		ConnState: func(c net.Conn, st http.ConnState) {
			switch st {
			case http.StateNew:
				conns.Add(1)
			case http.StateClosed, http.StateHijacked:
				gone()
				conns.Done()
			}
		},
	}
	failed := make(chan error, 1)
	go func() { failed <- h.Serve(l) }()
	select {
	case err := <-failed:
		h.Close()
		conns.Wait()
		return fmt.Errorf("control: %w", err)
	case <-ctx.Done():
	}
	grace, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	if h.Shutdown(grace) != nil {
		h.Close()
	}
	<-failed
	conns.Wait()
	return nil
}

func (s *Server) log() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.Default()
}

// call is a handler's view of a request.
type call struct {
	*http.Request
	net    *backend.Network
	server *Server
	route  *route
	query  url.Values // of the parameters that the operation has, each once and of its kind
	out    http.Header
	conn   *http.ResponseController
}

// reply is a handler's answer: a status code and what becomes JSON, nothing if nil; or a stream, or a download.
type reply struct {
	code int
	body any
}

type handler func(*call) (reply, error)

// handler is the API for those whose socket says who they are.
func (s *Server) handler() http.Handler {
	api := s.api()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, _ := r.Context().Value(peerKey{}).(peer)
		if allowed := s.allowed; allowed == nil && !p.ours() || allowed != nil && !allowed(p) {
			s.log().Warn("control: refused", "peer", p.String())
			s.fail(w, r, problem(http.StatusForbidden, "run it as that user, or as root", "this daemon belongs to uid %d", os.Geteuid()))
			return
		}
		api.ServeHTTP(w, r)
	})
}

// api is the whole of it, for whoever may come in.
func (s *Server) api() http.Handler {
	mux := http.NewServeMux()
	var known []string
	for _, r := range s.routes() {
		mux.Handle(r.path, s.serve(r))
		known = append(known, r.path)
	}
	s.profiles(mux)
	s.metrics(mux)
	known = append(known, metricsPaths[0])
	hint := "there is " + strings.Join(known, ", ")
	none := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, problem(http.StatusNotFound, hint, "no such path: %s", short(r.URL.Path)))
	})
	return s.recovering(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// ServeMux answers itself what has another form, with a redirect in HTML: a doubled slash, a dot, CONNECT.
		if h, pattern := mux.Handler(r); pattern == "" || r.Method == http.MethodConnect || redirects(h) {
			none(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	}))
}

// redirects says whether a handler is one of net/http's that lead elsewhere.
func redirects(h http.Handler) bool { return reflect.TypeOf(h) == redirectType }

var redirectType = reflect.TypeOf(http.RedirectHandler("/", http.StatusMovedPermanently))

// recovering answers for a handler that panicked, and has the log tell: a fault of ours is one request's, not the daemon's.
func (s *Server) recovering(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &begun{ResponseWriter: w}
		defer func() {
			x := recover()
			if x == nil {
				return
			}
			s.log().Error("control: panic", "method", r.Method, "path", short(r.URL.Path), "panic", x, "stack", string(debug.Stack()))
			if out.done { // half an answer cannot become another one
				panic(http.ErrAbortHandler)
			}
			clear(w.Header())
			s.fail(w, r, problem(http.StatusInternalServerError, "it is a fault of the daemon's, and its log has more to report", "%s %s failed inside the daemon", r.Method, short(r.URL.Path)))
		}()
		h.ServeHTTP(out, r)
	})
}

// begun knows whether an answer has begun.
type begun struct {
	http.ResponseWriter
	done bool
}

func (b *begun) WriteHeader(code int) {
	b.done = true
	b.ResponseWriter.WriteHeader(code)
}

func (b *begun) Write(p []byte) (int, error) {
	b.done = true
	return b.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (b *begun) Unwrap() http.ResponseWriter { return b.ResponseWriter }

func (s *Server) serve(rt route) http.Handler {
	allow := strings.Join(rt.allow(), ", ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		op, ok := rt.on[method]
		switch {
		case !ok && method == http.MethodOptions:
			w.Header().Set("Allow", allow)
			w.WriteHeader(http.StatusNoContent)
			return
		case !ok:
			w.Header().Set("Allow", allow)
			s.fail(w, r, problem(http.StatusMethodNotAllowed, "it takes "+allow, "%s takes no %s", rt.path, short(r.Method)))
			return
		}
		rep, err := s.answer(rt, op, w, r)
		if method != http.MethodGet && !op.asks {
			s.logChange(r, rep, err)
		}
		if err != nil {
			s.fail(w, r, err)
			return
		}
		switch body := rep.body.(type) {
		case nil:
			w.WriteHeader(rep.code)
		case stream:
			s.stream(w, r, eventStream, body)
		case download:
			s.stream(w, r, body.typ, body.write)
		default:
			send(w, r, rep.code, "application/json", body)
		}
	})
}

func (s *Server) answer(rt route, op operation, w http.ResponseWriter, r *http.Request) (reply, error) {
	q, err := op.read(rt, r)
	if err != nil {
		return reply{}, err
	}
	n, err := s.network(q.Get("network"))
	if err != nil && (!op.whole || q.Get("network") != "") { // a lab may have no network yet
		return reply{}, err
	}
	r = r.WithContext(r.Context()) // net/http looks at its own one's body for what is unread, and would wait for that
	r.Body = http.MaxBytesReader(w, r.Body, cmp.Or(op.most, maxBody))
	c := &call{r, n, s, &rt, q, w.Header(), http.NewResponseController(w)}
	if q.Get("network") == "" && len(s.networks()) > 1 {
		return s.ofAll(rt, op, c)
	}
	// Before what is there is looked at: an ETag that is too old does no harm.
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		if err := c.tagged(); err != nil {
			return reply{}, err
		}
	}
	rep, err := op.do(c)
	if err != nil {
		return rep, err
	}
	if r.Method == http.MethodPut {
		if err := c.tagged(); err != nil {
			return rep, err
		}
	}
	return c.page(op, rep)
}

func (s *Server) network(name string) (*backend.Network, error) {
	var names []string
	for _, n := range s.networks() {
		own := n.Config().Name
		if name == "" || own == name {
			return n, nil
		}
		names = append(names, own)
	}
	if len(names) == 0 {
		return nil, problem(http.StatusNotFound, "", "there is no network here")
	}
	return nil, problem(http.StatusNotFound, "there is "+strings.Join(names, ", "), "no network %q", short(name))
}

func (s *Server) logChange(r *http.Request, rep reply, err error) {
	p, _ := r.Context().Value(peerKey{}).(peer)
	args := []any{"method", r.Method, "path", short(r.URL.RequestURI()), "peer", p.String(), "agent", short(r.UserAgent())}
	if by, ok := r.Context().Value(guardKey{}).(string); ok {
		args = append(args, "by", by)
	}
	if err != nil {
		s.log().Info("control: change refused", append(args, "error", short(err.Error()))...)
		return
	}
	s.log().Info("control: change", append(args, "status", rep.code)...)
}

// fail sends err as a problem. What is none is the daemon's own failure.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var p *Problem
	if !errors.As(err, &p) {
		p = problem(http.StatusInternalServerError, "the daemon's log may say more", "%v", err)
		s.log().Error("control: failed", "method", r.Method, "path", short(r.URL.Path), "error", err)
	}
	if p.Status == http.StatusRequestEntityTooLarge || p.Status == http.StatusRequestTimeout {
		w.Header().Set("Connection", "close") // the rest of the body is not waited for
	}
	said := *p
	said.Instance = instance(r)
	send(w, r, p.Status, "application/problem+json", &said)
}

// instance names a request in a problem.
func instance(r *http.Request) string {
	u := url.URL{Path: short(r.URL.Path)}
	return u.EscapedPath()
}

func send(w http.ResponseWriter, r *http.Request, code int, typ string, body any) {
	w.Header().Set("Content-Type", typ)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	if r.Method != http.MethodHead {
		json.NewEncoder(w).Encode(body) // a client that has gone hears nothing, and nobody else needs to
	}
}

// stream answers with what goes on until the client or the server ends.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, typ string, f stream) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if ending, ok := ctx.Value(endingKey{}).(context.Context); ok {
		defer context.AfterFunc(ending, cancel)()
	}
	w.Header().Set("Content-Type", typ)
	w.Header().Set("Cache-Control", "no-store")
	http.NewResponseController(w).SetReadDeadline(time.Time{}) // it says no more, and may hang up whenever it likes
	if r.Method == http.MethodHead {
		cancel()
	}
	f(ctx, w)
}

// decode reads a request's body into v, strictly: a field that is misspelt must not become a default.
func (c *call) decode(v any, example string) error {
	b, err := c.read(example)
	if err != nil {
		return err
	}
	return strict(b, v, example)
}

func (c *call) read(example string) ([]byte, error) {
	// Besides keeping types apart, this is what no web page's form can send.
	if t, _, err := mime.ParseMediaType(c.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return nil, problem(http.StatusUnsupportedMediaType, `send JSON with "Content-Type: application/json", as `+example,
			"content type %q is not read", short(c.Header.Get("Content-Type")))
	}
	b, err := io.ReadAll(c.Body)
	var tooBig *http.MaxBytesError
	switch {
	case errors.As(err, &tooBig):
		return nil, problem(http.StatusRequestEntityTooLarge, "as "+example, "a body of more than %d bytes", tooBig.Limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, problem(http.StatusRequestTimeout, "send it at once", "the body did not come within %v", bodyTimeout)
	case err != nil:
		return nil, problem(http.StatusBadRequest, "as "+example, "the body cannot be read: %v", err)
	}
	return b, nil
}

func strict(b []byte, v any, example string) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var p *Problem
		if errors.As(forwardProblem(err), &p) {
			return p
		}
		if errors.Is(err, io.EOF) {
			err = errors.New("it is empty")
		}
		return problem(http.StatusBadRequest, "as "+example, "the body is not what is wanted: %s", short(err.Error()))
	}
	if _, err := d.Token(); err != io.EOF {
		return problem(http.StatusBadRequest, "one request, one value", "more follows behind the JSON value")
	}
	return nil
}

func short(s string) string {
	if len(s) > maxNoise {
		return strings.ToValidUTF8(s[:maxNoise], "") + "…"
	}
	return s
}
