package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/guestlog"
	"github.com/vmnetd/vmnetd/ui"
)

func uiCommand() *cobra.Command {
	var listen, path string
	var noOpen bool
	c := &cobra.Command{
		Use:   "ui",
		Short: "Show a daemon in the browser, live, and change it there",
		Long: `Show a daemon in the browser: guests and their rates, flows and why some were refused, forwards, names, captures, events.

It serves the page on the loopback until it is interrupted, and asks the daemon's control socket for whoever has the link
that it prints. A link is good once: the browser's tab keeps what it got for it, and another link is printed for the next.
The page needs nothing from elsewhere. While the daemon is away it says so, and it goes on when it is back.

From another machine: ssh -L 8123:127.0.0.1:8123 HOST vmnetd ui --no-open --listen 127.0.0.1:8123`,
		Args: args(cobra.NoArgs),
	}
	f := c.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:0", "`ADDRESS:PORT` of the loopback to serve the page at; port 0 is any free one")
	f.BoolVar(&noOpen, "no-open", false, "do not start a browser")
	f.StringVar(&path, "control", "", "`PATH` of the daemon's control socket (default $VMNETD_CONTROL, else $XDG_RUNTIME_DIR/vmnetd/control.sock)")
	c.RunE = func(c *cobra.Command, _ []string) error {
		socket := controlPath(path)
		if strings.HasPrefix(socket, "tcp:") {
			return usagef("ui asks a control socket, and not %s: name the socket's file with --control", socket)
		}
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		signals := make(chan os.Signal, 1)
		notify(signals, endSignals)
		go func() {
			select {
			case <-signals:
				stop()
			case <-ctx.Done():
			}
		}()
		l, err := loopback(ctx, listen)
		if err != nil {
			return err
		}
		p := newPage(socket, l.Addr(), func(link string, first bool) {
			if first {
				fmt.Fprintf(c.OutOrStdout(), "the page is at %s\n", link)
			} else {
				fmt.Fprintf(c.OutOrStdout(), "opened; for another browser: %s\n", link)
			}
		})
		if !noOpen {
			browse(ctx, p.link())
		}
		return p.serve(ctx, l)
	}
	return c
}

// loopback listens where nobody but this machine can connect.
func loopback(ctx context.Context, at string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		return nil, usagef("--listen %s: want ADDRESS:PORT, as 127.0.0.1:8123", at)
	}
	if a, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !a.IsLoopback()) {
		return nil, usagef("--listen %s: the page is for this machine: 127.0.0.1:%s, [::1]:%s; from another one by ssh -L", at, port, port)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", at)
	if err != nil {
		return nil, fmt.Errorf("--listen %s: %w", at, err)
	}
	return l, nil
}

// webPage is what a browser sees: the page, for anybody; the daemon's API behind a token; and the way to the token, which a
// key opens once.
//
// The token is no cookie: browsers send those to all ports of a machine, other users' among them. Nor is it in the link,
// which other users can read on the browser's command line: who takes the key first has it, and the one who comes second,
// its owner, is told.
type webPage struct {
	at    net.Addr
	token string
	tell  func(link string, first bool)
	mux   *http.ServeMux

	mu    sync.Mutex
	key   string
	enter http.Handler // guarded by the key
}

func newPage(controlSocket string, at net.Addr, tell func(link string, first bool)) *webPage {
	p := &webPage{at: at, token: rand.Text(), tell: tell, mux: http.NewServeMux()}
	api := control.Guard(toDaemon(controlSocket), p.token, at)
	p.mux.Handle("/", ui.Handler())
	p.mux.Handle("/v1/", api)
	p.mux.Handle("/metrics", api)
	p.mux.HandleFunc("POST /enter", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		h := p.enter
		p.mu.Unlock()
		h.ServeHTTP(w, r)
	})
	p.mu.Lock()
	p.next()
	p.mu.Unlock()
	tell(p.link(), true)
	return p
}

// next makes another key. Called with p.mu held.
func (p *webPage) next() {
	key := rand.Text()
	p.key = key
	p.enter = control.Guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		used := p.key != key
		if !used {
			p.next()
		}
		p.mu.Unlock()
		if used {
			problem(w, http.StatusUnauthorized, "this link has been used", "open the one that was printed last")
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		io.WriteString(w, p.token)
		p.tell(p.link(), false)
	}), key, p.at)
}

// link is good once. What is behind # no browser sends anywhere.
func (p *webPage) link() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return "http://" + p.at.String() + "/#key=" + p.key
}

func (p *webPage) serve(ctx context.Context, l net.Listener) error {
	s := &http.Server{
		Handler: p.mux,
		// A browser on this machine sends its request at once; a guest may reach this port, too, and is not waited for.
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute, // the page asks every second
		MaxHeaderBytes:    16 << 10,        // as the control socket's
		ErrorLog:          slog.NewLogLogger(guestlog.New(slog.Default().Handler()), slog.LevelWarn),
	}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	err := s.Serve(l)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("the page: %w", err)
}

// toDaemon hands requests on to the control socket, and answers as the API does when nobody is there.
func toDaemon(path string) http.Handler {
	return &httputil.ReverseProxy{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", path)
			},
			DisableCompression: true,
		},
		FlushInterval: -1, // each event as it comes
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "vmnetd"})
			for _, h := range []string{"Origin", "Referer", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest", "Cookie"} {
				r.Out.Header.Del(h) // the guard has looked at them; to the daemon it is this program that asks
			}
			r.Out.Header.Set("User-Agent", "vmnetd-ui/"+versionString())
		},
		ModifyResponse: func(r *http.Response) error {
			r.Header.Set("X-Content-Type-Options", "nosniff")
			r.Header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
			r.Header.Set("Cross-Origin-Resource-Policy", "same-origin")
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() != nil {
				return // nobody is there to be told
			}
			var op *net.OpError
			if errors.As(err, &op) && op.Op == "dial" {
				err = &control.NoDaemonError{Path: path, Err: op.Err}
			}
			problem(w, http.StatusBadGateway, err.Error(), "start it with 'vmnetd serve'")
		},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // a browser that leaves is no news
	}
}

func problem(w http.ResponseWriter, status int, detail, hint string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(&control.Problem{Title: http.StatusText(status), Status: status, Detail: detail, Hint: hint})
}

// browse opens a browser where there is one to be seen. That there is none is no fault: the link is printed.
func browse(ctx context.Context, link string) {
	var line []string
	switch {
	case runtime.GOOS == "darwin":
		line = []string{"open", link}
	case runtime.GOOS == "windows":
		line = []string{"rundll32", "url.dll,FileProtocolHandler", link}
	case os.Geteuid() == 0: // browsers do not like to be root's
		return
	case os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != "":
		line = []string{"xdg-open", link}
	default:
		return
	}
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Cancel = func() error { return nil } // the browser outlives us
	if cmd.Start() == nil {
		go cmd.Wait()
	}
}
