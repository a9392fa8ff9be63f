package control

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/backend"
)

const (
	// beat is how often a stream of events says that it is still there: well within what anybody takes for dead.
	beat = 15 * time.Second
	// slowWrite is how long a follower may leave its socket full. What it misses then it is told the number of; after it
	// the connection is ended, and it may come back with Last-Event-ID.
	slowWrite = 10 * time.Second
	// newNetworks is how often a follower of all looks for networks that came with a reload: somebody who watches sees no
	// delay, and it is one lock.
	newNetworks = time.Second
	// maxFollowers: a descriptor and two goroutines each; a page, a program and a terminal for every guest of a big lab.
	maxFollowers = 64
)

// endingKey finds the context that ends when the server is told to: streams have no end of their own.
type endingKey struct{}

// listEvents answers for all networks that the request means, since they are put in order.
func (s *Server) listEvents(c *call) (reply, error) {
	nets := s.networks()
	if c.query.Get("network") != "" {
		nets = []*backend.Network{c.net}
	}
	since, err := c.since()
	if err != nil {
		return reply{}, err
	}
	if !follows(c.Header.Get("Accept")) {
		list := []backend.Event{}
		for _, n := range nets {
			list = append(list, n.Events().List(since)...)
		}
		slices.SortFunc(list, func(a, b backend.Event) int { return cmp.Compare(a.ID, b.ID) })
		return reply{http.StatusOK, list}, nil
	}
	if s.followers.Add(1) > maxFollowers {
		s.followers.Add(-1)
		return reply{}, problem(http.StatusServiceUnavailable, "end one of them", "%d follow the events already", maxFollowers)
	}
	return reply{http.StatusOK, stream(func(ctx context.Context, w http.ResponseWriter) {
		defer s.followers.Add(-1)
		streamEvents(ctx, w, func() []*backend.Network { return s.networksOf(c) }, since)
	})}, nil
}

// since is the event after which the client wants them.
func (c *call) since() (uint64, error) {
	v := c.query.Get("since")
	if id := c.Header.Get("Last-Event-ID"); id != "" { // a browser's, that comes back
		v = id
	}
	if v == "" {
		return 0, nil
	}
	id, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		return 0, problem(http.StatusBadRequest, "an event's id, or microseconds since 1970", "since=%q", short(v))
	}
	return id, nil
}

// follows says whether a client asks for a stream: by name, since one that takes anything wants an answer that ends.
func follows(accept string) bool {
	for part := range strings.SplitSeq(accept, ",") {
		if t, _, err := mime.ParseMediaType(part); err == nil && t == eventStream {
			return true
		}
	}
	return false
}

const eventStream = "text/event-stream"

// stream is a reply's body that goes on until its client or the server ends.
type stream func(ctx context.Context, w http.ResponseWriter)

// streamEvents writes events as they come: HTML's "9.2 Server-sent events", with the kind as the event's name, and
// "lost" with a number where the client was too slow. Networks may come meanwhile.
func streamEvents(ctx context.Context, w http.ResponseWriter, nets func() []*backend.Network, since uint64) {
	ctx, cancel := context.WithCancel(ctx)
	type told struct {
		event backend.Event
		lost  uint64
	}
	events := make(chan told)
	var followers sync.WaitGroup
	defer followers.Wait()
	defer cancel()
	followed := map[*backend.Network]bool{}
	follow := func() {
		for _, n := range nets() {
			if followed[n] {
				continue
			}
			followed[n] = true
			f := n.Events().Follow(since)
			followers.Go(func() {
				for {
					e, err := f.Next(ctx)
					if err != nil {
						return
					}
					select {
					case events <- told{e, f.Lost()}:
					case <-ctx.Done():
						return
					}
				}
			})
		}
	}
	follow()
	look := time.NewTicker(newNetworks)
	defer look.Stop()
	out := http.NewResponseController(w)
	var b bytes.Buffer
	send := func() bool {
		out.SetWriteDeadline(time.Now().Add(slowWrite))
		_, err := w.Write(b.Bytes())
		b.Reset()
		return err == nil && out.Flush() == nil
	}
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	b.WriteString(": vmnetd's events\n\n")
	for send() {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			b.WriteString(":\n\n")
		case <-look.C:
			follow()
		case e := <-events:
			if e.lost > 0 {
				fmt.Fprintf(&b, "event: lost\ndata: {\"network\":%q,\"lost\":%d}\n\n", e.event.Network, e.lost)
			}
			j, err := json.Marshal(e.event)
			if err != nil {
				return
			}
			fmt.Fprintf(&b, "id: %d\nevent: %s\ndata: %s\n\n", e.event.ID, e.event.Kind, j)
		}
	}
}

// Events are the events after the one with the ID since, oldest first; 0 for all that are kept.
func (c *Client) Events(ctx context.Context, since uint64) (list []backend.Event, err error) {
	return list, c.call(ctx, "GET", "events", sinceValues(since), nil, &list)
}

func sinceValues(since uint64) map[string][]string {
	if since == 0 {
		return nil
	}
	return values("since", strconv.FormatUint(since, 10))
}

// FollowEvents calls f for each event after the one with the ID since, as they come, until f returns an error, which is
// then its own, ctx ends or the daemon does (io.EOF). lost is how many are missing before this one, since this client
// was too slow.
func (c *Client) FollowEvents(ctx context.Context, since uint64, f func(e backend.Event, lost uint64) error) error {
	var lost uint64
	return c.follow(ctx, "events", sinceValues(since), maxBody, func(kind string, data []byte) error {
		if kind == "lost" {
			var l struct {
				Lost uint64 `json:"lost"`
			}
			if err := json.Unmarshal(data, &l); err != nil {
				return c.garbled("events", err)
			}
			lost += l.Lost
			return nil
		}
		var e backend.Event
		if err := json.Unmarshal(data, &e); err != nil {
			return c.garbled("events", err)
		}
		missing := lost
		lost = 0
		return f(e, missing)
	})
}

// follow calls f for each event of a stream, of which no line is longer than most bytes, until f returns an error, which is
// then its own, ctx ends or the daemon does (io.EOF).
func (c *Client) follow(ctx context.Context, path string, q url.Values, most int, f func(kind string, data []byte) error) error {
	resp, err := c.send(ctx, "GET", path, q, nil, eventStream)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	kind := ""
	in := bufio.NewScanner(resp.Body)
	in.Buffer(nil, most)
	// A line that the daemon's end has cut is none.
	in.Split(func(data []byte, _ bool) (int, []byte, error) { return bufio.ScanLines(data, false) })
	for in.Scan() {
		if v, ok := bytes.CutPrefix(in.Bytes(), []byte("event: ")); ok {
			kind = string(v)
		}
		if data, ok := bytes.CutPrefix(in.Bytes(), []byte("data: ")); ok {
			if err := f(kind, data); err != nil {
				return err
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := in.Err(); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return c.garbled(path, err)
	}
	return io.EOF
}

// garbled is a stream that cannot be read.
func (c *Client) garbled(path string, err error) error {
	return fmt.Errorf("control socket %s: %s: %w", c.path, path, err)
}
