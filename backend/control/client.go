package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/portforward"
)

// Client asks a daemon. Its methods may be called by anybody at any time. Their errors are a *[Problem] from the
// daemon, a *[NoDaemonError], or what the connection or ctx says.
type Client struct {
	// Network is the one meant, of a daemon with several. Without it lists are of all, and the rest is refused.
	Network string

	// Token opens a daemon's TCP port.
	Token string

	path  string // of the socket, or tcp:HOST:PORT
	base  string // of addresses
	http  *http.Client
	wrong error // the path cannot be one
}

// NewClient returns a client of the daemon whose control socket is path, or whose API is at tcp:HOST:PORT, which takes a
// Token. It connects when it is first used.
func NewClient(path string) *Client {
	c := &Client{path: path, base: "http://vmnetd"} // the host is never looked up; it only has to be there
	network, at := "unix", path
	if tcp, ok := strings.CutPrefix(path, "tcp:"); ok {
		network, at, c.base = "tcp", tcp, "http://"+tcp
		host, port, err := net.SplitHostPort(tcp)
		a, _ := netip.ParseAddr(host)
		if err != nil || port == "" || !a.IsLoopback() && host != "localhost" {
			c.wrong = fmt.Errorf("%s: want tcp:127.0.0.1:PORT, tcp:[::1]:PORT or tcp:localhost:PORT: the token would be for all to read on the way to another machine", path)
		}
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, at)
			},
			DisableCompression: true, // nothing is saved on one machine
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the API has none
	}
	return c
}

// Close lets go of connections that are kept for the next call.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// NoDaemonError is a control socket at which nobody answers.
type NoDaemonError struct {
	Path string
	Err  error
}

func (e *NoDaemonError) Error() string {
	switch {
	case errors.Is(e.Err, fs.ErrNotExist):
		return fmt.Sprintf("no daemon at %s: there is no such socket", e.Path)
	case strings.HasPrefix(e.Path, "tcp:"):
		return fmt.Sprintf("no daemon at %s: %v", e.Path, e.Err)
	case errors.Is(e.Err, syscall.ECONNREFUSED):
		return fmt.Sprintf("no daemon at %s: the socket is left over from one that has gone", e.Path)
	case errors.Is(e.Err, fs.ErrPermission):
		return fmt.Sprintf("the daemon at %s belongs to somebody else: permission denied", e.Path)
	}
	return fmt.Sprintf("no daemon at %s: %v", e.Path, e.Err)
}

func (e *NoDaemonError) Unwrap() error { return e.Err }

// call sends in, if not nil, and reads the answer into out, if not nil.
func (c *Client) call(ctx context.Context, method, path string, q url.Values, in, out any) error {
	resp, err := c.send(ctx, method, path, q, in, "application/json")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("control socket %s: answer to %s %s: %w", c.path, method, path, err)
	}
	return nil
}

// send sends in, if not nil, and returns an answer that says that it was done.
func (c *Client) send(ctx context.Context, method, path string, q url.Values, in any, accept string) (*http.Response, error) {
	if c.Network != "" {
		if q == nil {
			q = url.Values{}
		}
		q.Set("network", c.Network)
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	if c.wrong != nil {
		return nil, c.wrong
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/v1/"+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("User-Agent", "vmnetd")
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	req.URL.RawQuery = q.Encode()
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return nil, &NoDaemonError{c.path, op.Err}
		}
		return nil, fmt.Errorf("control socket %s: %w", c.path, err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		p := &Problem{Status: resp.StatusCode, Title: http.StatusText(resp.StatusCode)}
		t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
		if t != "application/problem+json" || json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(p) != nil {
			p.Detail = fmt.Sprintf("%s at %s: is that vmnetd's control socket?", resp.Status, c.path)
		}
		return nil, p
	}
	return resp, nil
}

// Status is the daemon and its networks; only Network, if that is set.
func (c *Client) Status(ctx context.Context) (st Status, err error) {
	return st, c.call(ctx, "GET", "status", nil, nil, &st)
}

// Guests are plugged in.
func (c *Client) Guests(ctx context.Context) (list []backend.GuestInfo, err error) {
	return list, c.call(ctx, "GET", "guests", nil, nil, &list)
}

// Guest finds one by id, name, MAC or address.
func (c *Client) Guest(ctx context.Context, ref string) (g backend.GuestInfo, err error) {
	return g, c.call(ctx, "GET", "guests/"+url.PathEscape(ref), nil, nil, &g)
}

// Kick ends a guest's wire.
func (c *Client) Kick(ctx context.Context, ref string) error {
	return c.call(ctx, "DELETE", "guests/"+url.PathEscape(ref), nil, nil, nil)
}

// FlowFilter picks conversations. Empty fields pick all.
type FlowFilter struct {
	Guest, Proto, State, Direction string
	Name                           string // in a name of theirs
	Address                        string // or prefix, at either end
	Port                           uint16 // of the destination
	Verdict, Reason                string
	MinBytes                       uint64
	Sort                           string // bytes, up, down, opened or idle, the largest first, in place of the oldest
	Limit                          int    // at most so many
}

func (f FlowFilter) values() url.Values {
	q := values("guest", f.Guest, "proto", f.Proto, "state", f.State, "direction", f.Direction, "name", f.Name, "address", f.Address,
		"verdict", f.Verdict, "reason", f.Reason, "sort", f.Sort)
	if f.Port > 0 {
		q.Set("port", strconv.Itoa(int(f.Port)))
	}
	if f.MinBytes > 0 {
		q.Set("min_bytes", strconv.FormatUint(f.MinBytes, 10))
	}
	return q
}

// Flows are the conversations that f picks, oldest first. They are one answer's, as they were at one time: a guest may open
// more between two pages than a page has, and following pages would not end.
func (c *Client) Flows(ctx context.Context, f FlowFilter) (list []flows.Snapshot, err error) {
	q := f.values()
	if f.Limit > 0 && f.Limit <= maxPage {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	err = c.call(ctx, "GET", "flows", q, nil, &list)
	if f.Limit > 0 && len(list) > f.Limit {
		list = list[:f.Limit]
	}
	return list, err
}

// values makes a query of keys and values, without those that are empty.
func values(kv ...string) url.Values {
	q := url.Values{}
	for i := 0; i < len(kv); i += 2 {
		if kv[i+1] != "" {
			q.Set(kv[i], kv[i+1])
		}
	}
	return q
}

// Forwards is the table of port forwards.
func (c *Client) Forwards(ctx context.Context) (list []portforward.Status, err error) {
	return list, c.call(ctx, "GET", "forwards", nil, nil, &list)
}

// AddForward adds rules in any of portforward's syntaxes, all or none, and returns them with the ports they got.
func (c *Client) AddForward(ctx context.Context, rule string) (list []Forward, err error) {
	return list, c.call(ctx, "POST", "forwards", nil, map[string]string{"rule": rule}, &list)
}

// RemoveForward removes one, by its id or by its text. TCP conversations that it let in go on unless they are cut.
func (c *Client) RemoveForward(ctx context.Context, id string, cut bool) error {
	q := url.Values{}
	if cut {
		q.Set("cut", "true")
	}
	return c.call(ctx, "DELETE", "forwards/"+url.PathEscape(id), q, nil, nil)
}

// Leases are the addresses given out.
func (c *Client) Leases(ctx context.Context) (list []Lease, err error) {
	return list, c.call(ctx, "GET", "leases", nil, nil, &list)
}

// ReleaseLease frees an address.
func (c *Client) ReleaseLease(ctx context.Context, a netip.Addr) error {
	return c.call(ctx, "DELETE", "leases/"+url.PathEscape(a.String()), nil, nil, nil)
}

// DNS are the local records.
func (c *Client) DNS(ctx context.Context) (list []backend.DNSRecord, err error) {
	return list, c.call(ctx, "GET", "dns", nil, nil, &list)
}

// AddDNS adds a local record.
func (c *Client) AddDNS(ctx context.Context, r DNSRequest) error {
	return c.call(ctx, "POST", "dns", nil, r, nil)
}

// RemoveDNS removes the records of a name; typ and value, where not empty, make the choice narrower.
func (c *Client) RemoveDNS(ctx context.Context, name, typ, value string) error {
	return c.call(ctx, "DELETE", "dns", values("name", name, "type", typ, "value", value), nil, nil)
}

// Networks are the daemon's, with the configuration that is in force; only Network, if that is set.
func (c *Client) Networks(ctx context.Context) (list []Network, err error) {
	return list, c.call(ctx, "GET", "networks", nil, nil, &list)
}

// PutForward has a rule in force: it is added, left as it is, or leads to another place from now on.
func (c *Client) PutForward(ctx context.Context, r portforward.Rule) (f Forward, err error) {
	return f, c.call(ctx, "PUT", "forwards/"+url.PathEscape(r.ID()), nil, map[string]portforward.Rule{"rule": r}, &f)
}
