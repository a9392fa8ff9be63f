package main

// What whoever supervises a daemon hands to it and hears of it: systemd, podman, a script. Sockets of systemd's are in
// activate.go, what it is told in notify.go, the pid file in pidfile_*.go, lines for its journal in journal.go.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend/control"
)

// readyPatience is how long a daemon that has all open may take until it answers: on a machine that swaps, seconds. It is
// less than the 90 s that systemd waits for a start (DefaultTimeoutStartSec).
const readyPatience = 30 * time.Second

// serviceFlags are those of daemons that somebody supervises.
type serviceFlags struct {
	ready   int
	pidFile string
}

func (f *serviceFlags) add(fs *pflag.FlagSet) {
	fs.IntVar(&f.ready, "ready-fd", -1, "`DESCRIPTOR` that a line, \"1\", is written to once guests can plug in and the control socket answers; then it is closed")
	fs.StringVar(&f.pidFile, "pid-file", "", "`FILE` that has the process's number while guests can plug in")
}

// service is what a daemon does for its supervisor. nil does nothing.
type service struct {
	ready   *os.File
	pidPath string
	pid     *pidFile
	systemd bool
	bell    *bell  // nil: systemd does not want to hear
	probe   *probe // nil: nobody wants to know whether we answer
	count   func() (nets, guests, flows int)

	changed chan struct{}      // a guest came or went
	stop    context.CancelFunc // of watch; nil: systemd was not told that we are ready
	watched sync.WaitGroup
}

// begin takes what was handed to us. It comes before anything is opened, and what cannot be is refused before others are
// disturbed. systemd is what 'vmnetd run' is not: a service that systemd started. Its command may be.
func (f *serviceFlags) begin(systemd bool) (*service, error) {
	s := &service{pidPath: f.pidFile, systemd: systemd, changed: make(chan struct{}, 1)}
	if f.ready >= 0 && f.ready < 3 {
		return nil, usagef("--ready-fd %d: it would be closed, and others write there: want 3 or more, as in 3>FILE", f.ready)
	}
	if f.ready >= 0 && runtime.GOOS == "windows" {
		return nil, usagef("--ready-fd %d: not on Windows, where descriptors have no numbers that are handed on", f.ready)
	}
	var err error
	if s.ready, err = handedFile(f.ready, "--ready-fd"); err != nil {
		return nil, err
	}
	if s.ready != nil {
		keepFromChildren(f.ready)
	}
	if s.pidPath != "" {
		if err := checkPIDFile(s.pidPath); err != nil {
			return nil, fmt.Errorf("--pid-file: %w", err)
		}
	}
	return s, nil
}

// opened is called when all sockets are open, and before the daemon shuts itself in: afterwards there are no new files
// and no new unix sockets. Who sees the pid file can connect.
func (s *service) opened(d *daemon) (err error) {
	if s == nil {
		return nil
	}
	s.count = d.count
	if s.bell != nil || s.ready != nil {
		// A control socket of systemd's may be closed to our user. We are asked without one then.
		s.probe, _ = newProbe(d.control)
	}
	if s.pidPath != "" {
		if s.pid, err = writePIDFile(s.pidPath); err != nil {
			return fmt.Errorf("--pid-file: %w", err)
		}
	}
	return nil
}

// up waits until the daemon answers, and tells.
func (s *service) up(d *daemon) error {
	if s == nil || s.ready == nil && s.bell == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyPatience)
	defer cancel()
	says, err := s.ask(ctx)
	if err != nil {
		return fmt.Errorf("the control socket does not answer: %w", err)
	}
	if s.ready != nil {
		_, err := s.ready.WriteString("1\n")
		if err := errors.Join(err, s.ready.Close()); err != nil {
			return fmt.Errorf("--ready-fd: %w", err)
		}
		s.ready = nil
	}
	if s.bell == nil {
		s.probe.close()
		return nil
	}
	s.bell.send(notifyReady, notifyStatus+says)
	var watch context.Context
	watch, s.stop = context.WithCancel(context.Background())
	s.watched.Go(func() { s.watch(watch, d.log, says) })
	return nil
}

// connect makes the connection to systemd. It comes after descriptors that we were handed: its own must not be taken for
// one of them.
func (s *service) connect(log *slog.Logger) { s.bell = newBell(log) }

// pidFolder is where the pid file is, if there is one.
func (s *service) pidFolder() string {
	if s == nil || s.pid == nil {
		return ""
	}
	return filepath.Dir(s.pid.path)
}

// guestCame is told of each.
func (d *daemon) guestCame() {
	d.forgetting.guestCame()
	d.service.touch()
}

// touch says that a guest came or went.
func (s *service) touch() {
	if s == nil || s.bell == nil {
		return
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// ending is called when the daemon begins to.
func (s *service) ending() {
	if s == nil {
		return
	}
	if s.stop != nil {
		s.stop()
		s.watched.Wait()
		s.bell.send(notifyStopping)
	}
	s.probe.close()
}

// end is the very end, with what the command line comes to.
func (s *service) end(err error) {
	if s == nil {
		return
	}
	if s.ready != nil {
		s.ready.Close() // without a line: who waits there knows
	}
	if err != nil && s.systemd {
		if s.bell == nil {
			s.bell = newBell(slog.New(slog.DiscardHandler))
		}
		s.bell.send(notifyStatus + "failed: " + err.Error())
	}
	s.bell.close()
}

// remove takes the pid file away.
func (s *service) remove() {
	if s != nil && s.pid != nil {
		s.pid.remove()
	}
}

// ask has the daemon say how it is, through its control socket where it can.
func (s *service) ask(ctx context.Context) (string, error) {
	if s.probe != nil {
		st, err := s.probe.status(ctx)
		if err == nil {
			n, guests, flows := len(st.Networks), 0, 0
			for _, x := range st.Networks {
				guests, flows = guests+x.Guests, flows+x.Flows
			}
			return statusLine(n, guests, flows), nil
		}
		if ctx.Err() != nil {
			return "", err
		}
		// The connection has ended, and there can be no new one in the sandbox.
	}
	says := make(chan string, 1) // one that a lock keeps may come when nobody waits any more
	go func() { says <- statusLine(s.count()) }()
	select {
	case l := <-says:
		return l, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// statusLine leaves conversations out: their number is another one each time, and a line of systemctl's is no place to
// follow it.
func statusLine(nets, guests, _ int) string {
	many := func(n int, what string) string {
		if n != 1 {
			what += "s"
		}
		return fmt.Sprintf("%d %s", n, what)
	}
	return many(guests, "guest") + " in " + many(nets, "network")
}

// count is for who asks without the control socket.
func (d *daemon) count() (nets, guests, flows int) {
	for _, n := range d.networks() {
		st := n.Status()
		nets, guests, flows = nets+1, guests+st.Guests, flows+st.Flows
	}
	return nets, guests, flows
}

// probe is a client of our own control socket, over a connection that was made before the sandbox.
type probe struct{ http *http.Client }

func newProbe(path string) (*probe, error) {
	c, err := net.DialTimeout("unix", path, time.Second) // we listen there: it waits for nobody
	if err != nil {
		return nil, err
	}
	first := make(chan net.Conn, 1)
	first <- c
	return &probe{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			select {
			case c := <-first:
				return c, nil
			default:
				return (&net.Dialer{}).DialContext(ctx, "unix", path)
			}
		},
		MaxConnsPerHost:    1,
		DisableCompression: true, // nothing is saved within one process
	}}}, nil
}

func (p *probe) status(ctx context.Context) (st control.Status, err error) {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://vmnetd/v1/status", nil)
	if err != nil {
		return st, err
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return st, errors.New(resp.Status)
	}
	return st, json.NewDecoder(resp.Body).Decode(&st)
}

func (p *probe) close() {
	if p != nil {
		p.http.CloseIdleConnections()
	}
}
