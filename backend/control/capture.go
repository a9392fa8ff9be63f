package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/capture"
)

// Captures have two ways to whom they are for. One that is asked for with "Accept: application/x-pcapng" is the answer's
// body, goes on for as long as somebody reads it, and takes no memory but its queue. Any other is kept in memory, with a
// bound, to be looked at and fetched later.

const (
	pcapngType = "application/x-pcapng" // as Wireshark registers it; IANA has none
	// captureID is the answer's header that names a capture which is streamed, so that it can be stopped: its body then ends
	// as a file does. captureEnd comes behind the body, a trailer, and says why it is over.
	captureID  = "Vmnetd-Capture"
	captureEnd = "Vmnetd-Capture-End"
	// lastWords is how long a client may take for what was captured when it is over: 8 MiB at most, a moment for one that
	// reads. A daemon that ends waits so long for one that does not.
	lastWords = 2 * time.Second
	// maxCaptureSeconds is a year: more is a mistake, and a time.Duration holds it.
	maxCaptureSeconds = 365 * 24 * 3600
)

// CaptureRequest is a capture to begin.
type CaptureRequest struct {
	Guest      string  `json:"guest,omitempty"`       // id, name, MAC or address; absent: all guests, also those to come
	Filter     string  `json:"filter,omitempty"`      // in tcpdump's language, as "tcp port 443"
	Flow       string  `json:"flow,omitempty"`        // a conversation's id, a name as *.example.com, or tcp:443
	Snaplen    int     `json:"snaplen,omitempty"`     // most bytes of a frame; 0: all
	MaxBytes   int64   `json:"max_bytes,omitempty"`   // of the file; 0: any, or 16 MiB of one that is kept
	MaxPackets int64   `json:"max_packets,omitempty"` // 0: any
	MaxSeconds float64 `json:"max_seconds,omitempty"` // 0: for ever
}

const captureExample = `{"guest":"g1","filter":"tcp port 443","max_seconds":60}`

func (s *Server) captureRoutes() []route {
	const id = "a capture's id, as c1"
	return []route{
		{path: "/v1/captures", on: verbs{
			"GET": {do: listCaptures, says: "Lists captures that run and those that are kept, oldest first", gives: []backend.CaptureInfo{}},
			"POST": {do: s.addCapture, says: "Begins a capture, kept in memory; with \"Accept: application/x-pcapng\" it is the answer's body, until the client goes or it is stopped",
				takes: CaptureRequest{}, gives: backend.CaptureInfo{}, code: http.StatusCreated}}},
		{path: "/v1/captures/{id}", id: id, on: verbs{
			"GET":    {do: s.getCapture, says: "Shows a capture", gives: backend.CaptureInfo{}, whole: true},
			"DELETE": {do: s.removeCapture, says: "Stops a capture, and forgets it if it was kept", whole: true}}},
		{path: "/v1/captures/{id}/stop", id: id, on: verbs{
			"POST": {do: s.stopCapture, says: "Stops a capture; one that is kept can still be fetched", gives: backend.CaptureInfo{}, whole: true}}},
		{path: "/v1/captures/{id}/file", id: id, on: verbs{
			"GET": {do: s.captureFile, says: "Fetches what a capture that is kept has by now, as a file of pcapng", as: pcapngType, whole: true}}},
		{path: "/v1/captures/{id}/stream", id: id, on: verbs{
			"GET": {do: s.captureStream, says: "Fetches what a capture that is kept has, and goes on until it is over", as: pcapngType, whole: true}}},
	}
}

func listCaptures(c *call) (reply, error) {
	list := []backend.CaptureInfo{}
	for _, x := range c.net.Captures() {
		list = append(list, x.Info())
	}
	return ok(list)
}

// capture finds one by its id, which no other network's has.
func (s *Server) capture(c *call) (*backend.Network, *backend.Capture, error) {
	id := c.PathValue("id")
	var there []string
	for _, n := range s.networks() {
		if c.query.Get("network") != "" && n != c.net {
			continue
		}
		for _, x := range n.Captures() {
			if x.ID() == id {
				return n, x, nil
			}
			there = append(there, x.ID())
		}
	}
	hint := "there is none; one that was not kept is gone when it is over"
	if len(there) > 0 {
		hint = "there is " + strings.Join(there, ", ")
	}
	return nil, nil, problem(http.StatusNotFound, hint, "no capture %q", short(id))
}

func (s *Server) addCapture(c *call) (reply, error) {
	var r CaptureRequest
	if err := c.decode(&r, captureExample); err != nil {
		return reply{}, err
	}
	if r.MaxSeconds < 0 || r.MaxSeconds > maxCaptureSeconds {
		return reply{}, problem(http.StatusUnprocessableEntity, "from 0, for ever, to a year", "max_seconds is %v", r.MaxSeconds)
	}
	if r.Guest != "" {
		g, err := c.guest(r.Guest)
		if err != nil {
			return reply{}, err
		}
		r.Guest = g.ID
	}
	var w capture.Writer
	body := &captureBody{ready: make(chan struct{})}
	streamed := accepts(c.Header.Get("Accept"), pcapngType)
	if streamed {
		w = body
	}
	x, err := c.net.StartCapture(backend.CaptureConfig{Guest: r.Guest, Filter: r.Filter, Flow: r.Flow, Snaplen: r.Snaplen, MaxBytes: r.MaxBytes,
		MaxPackets: r.MaxPackets, MaxTime: time.Duration(r.MaxSeconds * float64(time.Second)), Program: strings.TrimSpace("vmnetd " + s.Version)}, w)
	if err != nil {
		return reply{}, captureProblem(err)
	}
	if !streamed {
		return reply{http.StatusCreated, x.Info()}, nil
	}
	return reply{http.StatusOK, download{pcapngType, func(ctx context.Context, w http.ResponseWriter) {
		w.Header().Set(captureID, x.ID())
		body.w, body.out = w, http.NewResponseController(w)
		body.out.SetWriteDeadline(time.Time{}) // it goes on for as long as it does, and who does not read misses frames
		close(body.ready)
		defer context.AfterFunc(ctx, x.Stop)()
		<-x.Ending()
		late := time.AfterFunc(lastWords, func() { body.out.SetWriteDeadline(time.Now()) })
		<-x.Done()
		late.Stop()
		body.out.SetWriteDeadline(time.Now().Add(lastWords))
		i := x.Info()
		end := i.End
		if i.Error != "" {
			end += ": " + i.Error
		}
		w.Header().Set(http.TrailerPrefix+captureEnd, end)
	}}}, nil
}

// captureProblem gives a capture's errors their status codes.
func captureProblem(err error) error {
	var f *capture.FilterError
	switch {
	case errors.As(err, &f):
		return problem(http.StatusUnprocessableEntity, "tcpdump's language, as: host 10.0.2.15 and tcp port 443", "%s", short(err.Error()))
	case errors.Is(err, backend.ErrNoGuest):
		return problem(http.StatusNotFound, "it may just have gone", "%s", short(err.Error()))
	case errors.Is(err, backend.ErrCaptureWish):
		return problem(http.StatusUnprocessableEntity, "as "+captureExample, "%s", short(err.Error()))
	case errors.Is(err, backend.ErrCapturesFull):
		return problem(http.StatusServiceUnavailable, "stop one, remove one that is kept, or ask for less with max_bytes", "%s", err.Error())
	}
	return err
}

// accepts says whether a client asks for a type by name.
func accepts(accept, want string) bool {
	for part := range strings.SplitSeq(accept, ",") {
		if t, _, err := mime.ParseMediaType(part); err == nil && t == want {
			return true
		}
	}
	return false
}

// captureBody is an answer's body that a capture is written to, once the answer has begun.
type captureBody struct {
	ready chan struct{} // closed when it has
	w     http.ResponseWriter
	out   *http.ResponseController
}

func (b *captureBody) Write(p []byte) (int, error) {
	<-b.ready
	n, err := b.w.Write(p)
	if err == nil {
		err = b.out.Flush()
	}
	return n, err
}

func (s *Server) getCapture(c *call) (reply, error) {
	_, x, err := s.capture(c)
	if err != nil {
		return reply{}, err
	}
	return reply{http.StatusOK, x.Info()}, nil
}

func (s *Server) removeCapture(c *call) (reply, error) {
	n, x, err := s.capture(c)
	if err != nil {
		return reply{}, err
	}
	n.ForgetCapture(x)
	return done, nil
}

func (s *Server) stopCapture(c *call) (reply, error) {
	_, x, err := s.capture(c)
	if err != nil {
		return reply{}, err
	}
	x.Stop()
	if x.Info().Kept { // whose writer waits for nobody
		<-x.Done()
	}
	return reply{http.StatusOK, x.Info()}, nil
}

func (s *Server) kept(c *call) (*backend.Capture, error) {
	_, x, err := s.capture(c)
	if err != nil {
		return nil, err
	}
	if !x.Info().Kept {
		return nil, problem(http.StatusConflict, "it goes to whoever began it; begin another", "capture %s is not kept", x.ID())
	}
	return x, nil
}

func (s *Server) captureFile(c *call) (reply, error) {
	x, err := s.kept(c)
	if err != nil {
		return reply{}, err
	}
	return reply{http.StatusOK, download{pcapngType, func(ctx context.Context, w http.ResponseWriter) {
		r, n := x.Kept()
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", x.ID()+".pcapng"))
		if c.Method != http.MethodHead {
			io.Copy(w, r)
		}
	}}}, nil
}

func (s *Server) captureStream(c *call) (reply, error) {
	x, err := s.kept(c)
	if err != nil {
		return reply{}, err
	}
	return reply{http.StatusOK, download{pcapngType, func(ctx context.Context, w http.ResponseWriter) {
		w.Header().Set(captureID, x.ID())
		if c.Method == http.MethodHead {
			return
		}
		out := http.NewResponseController(w)
		out.SetWriteDeadline(time.Time{})
		defer context.AfterFunc(ctx, func() { out.SetWriteDeadline(time.Now().Add(lastWords)) })()
		x.CopyKept(ctx.Done(), flushing{w, out}) // a client that has gone hears nothing
	}}}, nil
}

// flushing sends each write at once.
type flushing struct {
	io.Writer
	out *http.ResponseController
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	if err == nil {
		err = f.out.Flush()
	}
	return n, err
}

// Captures are those that run and those that are kept, oldest first.
func (c *Client) Captures(ctx context.Context) (list []backend.CaptureInfo, err error) {
	return list, c.call(ctx, "GET", "captures", nil, nil, &list)
}

// Capture is one of them.
func (c *Client) Capture(ctx context.Context, id string) (i backend.CaptureInfo, err error) {
	return i, c.call(ctx, "GET", "captures/"+url.PathEscape(id), nil, nil, &i)
}

// AddCapture begins a capture that is kept in the daemon's memory.
func (c *Client) AddCapture(ctx context.Context, r CaptureRequest) (i backend.CaptureInfo, err error) {
	return i, c.call(ctx, "POST", "captures", nil, r, &i)
}

// StopCapture ends one. Kept ones stay.
func (c *Client) StopCapture(ctx context.Context, id string) (i backend.CaptureInfo, err error) {
	return i, c.call(ctx, "POST", "captures/"+url.PathEscape(id)+"/stop", nil, nil, &i)
}

// RemoveCapture ends one and forgets it.
func (c *Client) RemoveCapture(ctx context.Context, id string) error {
	return c.call(ctx, "DELETE", "captures/"+url.PathEscape(id), nil, nil, nil)
}

// CaptureStream is a capture that runs for as long as it is read. Its bytes are pcapng.
type CaptureStream struct {
	io.ReadCloser
	ID   string
	resp *http.Response
}

// End is why it was over, once all of it has been read: stopped, size, packets, time, gone, failed.
func (s *CaptureStream) End() string { return s.resp.Trailer.Get(captureEnd) }

// StreamCapture begins a capture that is read as it happens. Closing it ends it, at any byte; to have it end as a file does,
// stop it (StopCapture) and read on to the end.
func (c *Client) StreamCapture(ctx context.Context, r CaptureRequest) (*CaptureStream, error) {
	resp, err := c.send(ctx, "POST", "captures", nil, r, pcapngType)
	if err != nil {
		return nil, err
	}
	return &CaptureStream{resp.Body, resp.Header.Get(captureID), resp}, nil
}

// CaptureFile is what a capture that is kept has by now; with follow also what it comes to have, until it is over.
func (c *Client) CaptureFile(ctx context.Context, id string, follow bool) (io.ReadCloser, error) {
	what := "/file"
	if follow {
		what = "/stream"
	}
	resp, err := c.send(ctx, "GET", "captures/"+url.PathEscape(id)+what, nil, nil, pcapngType)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
