package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend/control"
)

// The API over TCP, beside the control socket: for programs that speak HTTP to an address only. Whoever has the token
// comes in, as whoever can open the socket's file does there.

const (
	// tokenEnv has a token for the commands, and tokenFileEnv names a file with one.
	tokenEnv, tokenFileEnv = "VMNETD_TOKEN", "VMNETD_TOKEN_FILE"
	// minToken: 16 letters, or 80 bits if they are as random as ours, which have 26.
	minToken = 16
	// maxToken is beyond what a person would paste, and within what a request's head may have.
	maxToken = 4096
)

// apiFlags are the flags of whoever answers over TCP.
type apiFlags struct{ specs []string }

func (f *apiFlags) add(fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.specs, "api", nil, "answer the API at `tcp:127.0.0.1:PORT[,token-file=PATH]`, too, or at tcp:[::1]:PORT, to whoever has the token in the file, which is made if it is not there (default $XDG_RUNTIME_DIR/vmnetd/api.token); may be repeated")
}

// apiPort is a port where the API answers.
type apiPort struct {
	*net.TCPListener
	token, file string
	option      string // what a client has to say behind the address, if the file is not where it looks
}

func (a *apiPort) String() string { return "tcp:" + a.Addr().String() }

// open opens what the flags name.
func (f *apiFlags) open() (list []*apiPort, err error) {
	defer func() {
		if err != nil {
			for _, a := range list {
				a.Close()
			}
			list = nil
		}
	}()
	for _, spec := range f.specs {
		a, err := openAPI(spec)
		if err != nil {
			var usage usageError
			if errors.As(err, &usage) {
				return list, usagef("--api %s: %w", spec, usage.error)
			}
			return list, fmt.Errorf("--api %s: %w", spec, err)
		}
		list = append(list, a)
	}
	return list, nil
}

func openAPI(spec string) (*apiPort, error) {
	parts := splitCommas(spec)
	at, err := apiAddress(parts[0])
	if err != nil {
		return nil, err
	}
	return apiAt(parts[1:], func() (*net.TCPListener, error) { return net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)) })
}

// apiAt answers where listen does, by what stands behind an address.
func apiAt(options []string, listen func() (*net.TCPListener, error)) (_ *apiPort, err error) {
	file, option := "", ""
	for _, o := range options {
		name, value, ok := strings.Cut(o, "=")
		if name != "token-file" || !ok || value == "" || file != "" {
			return nil, usagef("%q: want token-file=PATH, once (a comma in a path is written twice)", o)
		}
		file = value
	}
	l, err := listen()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if file == "" {
		dir, err := makeRuntimeDir()
		if err != nil {
			return nil, err
		}
		file = filepath.Join(dir, "api.token")
	}
	if file, err = filepath.Abs(file); err != nil {
		return nil, err
	}
	if len(options) > 0 {
		option = ",token-file=" + qemuEscape(file)
	}
	token, err := ownToken(file)
	if err != nil {
		return nil, err
	}
	return &apiPort{l, token, file, option}, nil
}

// apiAddress reads an address on the loopback.
func apiAddress(s string) (netip.AddrPort, error) {
	var none netip.AddrPort
	at, ok := strings.CutPrefix(s, "tcp:")
	if !ok {
		return none, usagef("%q: want tcp:127.0.0.1:PORT (the control socket, which is always there, is --control's)", s)
	}
	if port, ok := strings.CutPrefix(at, "localhost:"); ok {
		at = "127.0.0.1:" + port
	}
	ap, err := netip.ParseAddrPort(at)
	switch {
	case err != nil:
		return none, usagef("%q: want tcp:127.0.0.1:PORT, tcp:[::1]:PORT or tcp:localhost:PORT; port 0 is any free one", s)
	case !ap.Addr().IsLoopback() || ap.Addr().Is4In6():
		return none, usagef("%s is no loopback address: others could read the token on its way, and try some. From another machine, come by ssh -L", ap.Addr())
	}
	return ap, nil
}

// ownToken reads the token in a file that is ours alone. It makes one if there is no such file.
func ownToken(path string) (string, error) {
	token, err := readToken(path, true)
	if !errors.Is(err, fs.ErrNotExist) {
		return token, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) { // a daemon that starts beside us was first, or it is a link that leads nowhere
		if token, err := readToken(path, true); err == nil {
			return token, nil
		}
	}
	if err != nil {
		return "", err
	}
	token = rand.Text()
	_, err = io.WriteString(f, token+"\n")
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		os.Remove(path)
		return "", err
	}
	return token, nil
}

// readToken reads a file that nobody else can read or could have written. Root asks daemons of other users with their
// tokens, but its own is not opened by theirs.
func readToken(path string, own bool) (string, error) {
	f, err := openWithoutWaiting(path) // a FIFO would hold us up
	if errors.Is(err, errNotRegular) {
		return "", fmt.Errorf("%s is no plain file", path)
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return "", err
	case !fi.Mode().IsRegular():
		return "", fmt.Errorf("%s is no plain file", path)
	case !owned(fi) && (own || os.Getuid() != 0):
		return "", hintError{fmt.Errorf("the token in %s is somebody else's", path), "name a file of your own, or one that is not there yet"}
	case fi.Mode().Perm()&0o077 != 0 && hasModes:
		return "", hintError{fmt.Errorf("the token in %s is open to others (mode %04o, want 0600)", path, fi.Mode().Perm()), "if nobody has read it: chmod 600 " + shellQuote(path) + "; else remove it, and another is made"}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", err
	}
	b = bytes.TrimSpace(b)
	if len(b) < minToken || len(b) > maxToken || bytes.ContainsFunc(b, func(r rune) bool { return r > unicode.MaxASCII || unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		return "", fmt.Errorf("%s has no token: want %d to %d letters in one word; or remove it, and one is made", path, minToken, maxToken)
	}
	return string(b), nil
}

// newClient makes a client of what --control or the environment names, with the token if it is a TCP port.
func newClient(where string) (*control.Client, error) {
	where = controlPath(where)
	if !strings.HasPrefix(where, "tcp:") {
		return control.NewClient(where), nil
	}
	parts := splitCommas(where)
	file := os.Getenv(tokenFileEnv)
	for _, o := range parts[1:] {
		path, ok := strings.CutPrefix(o, "token-file=")
		if !ok {
			return nil, usagef("%s: %q: want token-file=PATH", where, o)
		}
		file = path
	}
	c := control.NewClient(parts[0])
	if c.Token = os.Getenv(tokenEnv); c.Token != "" && len(parts) == 1 {
		return c, nil
	}
	if file == "" {
		file = filepath.Join(runtimeDir(), "api.token")
	}
	token, err := readToken(file, false)
	if err != nil {
		return nil, hintError{fmt.Errorf("the token for %s: %w", parts[0], err), "it is in the file that the daemon named when it started: say $" + tokenFileEnv + ", " + parts[0] + ",token-file=PATH, or the token itself in $" + tokenEnv}
	}
	c.Token = token
	return c, nil
}

// anotherClient is newClient for what has been asked before, or of which nobody hears. Without a token the daemon says that
// there has to be one.
func anotherClient(where string) *control.Client {
	c, err := newClient(where)
	if err != nil {
		c = control.NewClient(splitCommas(controlPath(where))[0])
	}
	return c
}

// openAPI opens the API's ports.
func (d *daemon) openAPI(f *apiFlags) (err error) {
	list, err := f.open()
	d.api = append(d.api, list...) // behind systemd's
	return err
}

// closedToGuests are the API's ports, which no guest may reach at the gateway's address.
func (d *daemon) closedToGuests() (list []netip.AddrPort) {
	for _, a := range d.api {
		ap := a.Addr().(*net.TCPAddr).AddrPort()
		list = append(list, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	}
	return append(list, d.qos.door()...)
}

// apiPlaces are where the API answers, for status.
func (d *daemon) apiPlaces() []string {
	list := []string{"unix:" + d.control}
	for _, a := range d.api {
		list = append(list, a.String()+", token in "+a.file)
	}
	return list
}

// serveAPI answers at the ports until ctx is done.
func (d *daemon) serveAPI(ctx context.Context, srv *control.Server) {
	for _, a := range d.api {
		d.controlling.Go(func() {
			if err := srv.ServeTCP(ctx, a.TCPListener, a.token, a.file); err != nil {
				d.failed <- err
			}
		})
	}
}

// closeAPI is for a start that did not come to serveAPI.
func (d *daemon) closeAPI() {
	for _, a := range d.api {
		a.Close()
	}
}

// tellAPI prints where the API answers.
func (d *daemon) tellAPI(out io.Writer) {
	for _, a := range d.api {
		fmt.Fprintf(out, "api http://%s, token in %s\n  vmnetd status --control %s\n", a.Addr(), a.file, shellQuote(a.String()+a.option))
	}
	for _, at := range d.qos.door() {
		fmt.Fprintf(out, "qos http://%s/qos\n", at)
	}
}
