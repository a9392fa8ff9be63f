package control

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/backendtest"
)

func TestEvents(t *testing.T) {
	lab, err := backend.New(backend.Config{Name: "lab", Logger: slog.New(slog.DiscardHandler), Egress: &backendtest.Egress{},
		Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	r := newRig(t, func(s *Server) { s.Networks = append(s.Networks, lab) })
	r.net.Note(backend.Event{Kind: backend.EventPolicy, Text: "one"})
	lab.Note(backend.Event{Kind: backend.EventPolicy, Text: "two"})
	r.net.Note(backend.Event{Kind: backend.EventPolicy, Text: "three"})
	list, err := r.c.Events(t.Context(), 0)
	if err != nil || len(list) != 3 || list[0].Network != "default" || list[1].Network != "lab" || list[2].Text != "three" {
		t.Fatalf("events: %+v, %v", list, err)
	}
	if since, err := r.c.Events(t.Context(), list[1].ID); err != nil || len(since) != 1 || since[0] != list[2] {
		t.Errorf("since the second: %+v, %v", since, err)
	}
	one := NewClient(r.path)
	defer one.Close()
	one.Network = "lab"
	if of, err := one.Events(t.Context(), 0); err != nil || len(of) != 1 || of[0].Text != "two" {
		t.Errorf("of lab: %+v, %v", of, err)
	}
	for _, c := range []struct {
		path string
		code int
	}{{"/v1/events?since=x", 400}, {"/v1/events?since=-1", 400}, {"/v1/events?kind=x", 400}, {"/v1/events?network=nope", 404}, {"/v1/events", 200}} {
		if resp, body := r.do("GET", c.path, "", ""); resp.StatusCode != c.code || resp.StatusCode == 200 && !strings.HasPrefix(body, `[{"network":"default","id":`) {
			t.Errorf("%s: %d %s", c.path, resp.StatusCode, body)
		}
	}

	// Followed: those that are kept first, then as they come, of both networks.
	enough := errors.New("enough")
	n := 0
	err = r.c.FollowEvents(t.Context(), list[1].ID, func(e backend.Event, lost uint64) error {
		n++
		switch {
		case lost != 0:
			t.Errorf("%d lost", lost)
		case n == 1:
			if e != list[2] {
				t.Errorf("first %+v, want %+v", e, list[2])
			}
			lab.Note(backend.Event{Kind: backend.EventPolicy, Text: "four"})
		case n == 2:
			if e.Text != "four" || e.Network != "lab" {
				t.Errorf("second %+v", e)
			}
			return enough
		}
		return nil
	})
	if err != enough {
		t.Errorf("FollowEvents: %v", err)
	}
}

// The stream as a browser reads it, that comes back.
func TestEventStream(t *testing.T) {
	r := newRig(t)
	r.net.Note(backend.Event{Kind: backend.EventPolicy, Text: "one"})
	r.net.Note(backend.Event{Kind: backend.EventPolicy, Text: "two\nlines"})
	first := r.net.Events().List(0)[0].ID
	req, _ := http.NewRequest("GET", "http://vmnetd/v1/events?since=0", nil)
	req.Header.Set("Accept", "text/event-stream;q=1, application/json")
	req.Header.Set("Last-Event-ID", strconv.FormatUint(first, 10))
	resp, err := r.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" || resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, ct)
	}
	in := bufio.NewReader(resp.Body)
	var got []string
	for len(got) < 6 {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSuffix(line, "\n"))
	}
	if got[0][0] != ':' || got[1] != "" || !strings.HasPrefix(got[2], "id: ") || got[3] != "event: policy" ||
		!strings.HasPrefix(got[4], `data: {"network":"default",`) || !strings.Contains(got[4], `two\nlines`) || got[5] != "" {
		t.Errorf("stream: %q", got)
	}
}

// A network that comes while events are followed is heard, from its first one on.
func TestEventsOfNewNetwork(t *testing.T) {
	lab, err := backend.New(backend.Config{Name: "lab", Logger: slog.New(slog.DiscardHandler), Egress: &backendtest.Egress{},
		Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	lab.Note(backend.Event{Kind: backend.EventPolicy, Text: "before it came"})
	r := newRig(t)
	r.net.Note(backend.Event{Kind: backend.EventPolicy, Text: "first"})
	enough := errors.New("enough")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err = r.c.FollowEvents(ctx, 0, func(e backend.Event, lost uint64) error {
		if e.Network == "lab" {
			return enough
		}
		r.srv.Add(lab, nil)
		return nil
	})
	if err != enough {
		t.Errorf("the new network's event does not come: %v", err)
	}
}

// A stream ends with its server, at once, and with its client.
func TestEventStreamEnds(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.net.Note(backend.Event{Kind: backend.EventPolicy, Text: "one"})
	r.net.Note(backend.Event{Kind: backend.EventPolicy, Text: "two"})
	err := r.c.FollowEvents(ctx, 0, func(backend.Event, uint64) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a client that goes: %v", err)
	}
	for deadline := time.Now().Add(30 * time.Second); r.srv.followers.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server still streams to a client that has gone")
		}
	}
	began := time.Now()
	err = r.c.FollowEvents(t.Context(), 0, func(backend.Event, uint64) error { r.stop(); return nil })
	if err != io.EOF || time.Since(began) > 900*time.Millisecond { // less than the second that Serve gives others
		t.Errorf("a server that ends: %v after %v", err, time.Since(began))
	}
}

func TestEventFollowersBounded(t *testing.T) {
	r := newRig(t)
	r.srv.followers.Store(maxFollowers)
	err := r.c.FollowEvents(t.Context(), 0, nil)
	var p *Problem
	if !errors.As(err, &p) || p.Status != http.StatusServiceUnavailable {
		t.Errorf("one more than there may be: %v", err)
	}
	r.srv.followers.Store(0)
}

// Somebody who asks for a stream and does not read it stops nobody, and is told how much is missing when it reads on.
func TestEventStreamUnread(t *testing.T) {
	r := newRig(t)
	reads := make(chan bool)
	followed := make(chan uint64, 1)
	go func() {
		var seen, missed uint64
		r.c.FollowEvents(t.Context(), 0, func(e backend.Event, lost uint64) error {
			if seen == 0 {
				<-reads
			}
			seen++
			missed += lost
			if e.Text == "last" {
				followed <- seen + missed
				return io.EOF
			}
			return nil
		})
	}()
	const all = 20000 // some megabytes: more than sockets hold
	text := strings.Repeat("x", 300)
	for range all - 1 {
		r.net.Note(backend.Event{Kind: backend.EventPolicy, Text: text})
	}
	if _, err := r.c.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(reads)
	r.net.Note(backend.Event{Kind: backend.EventPolicy, Text: "last"})
	if n := <-followed; n > all || n < 2000 {
		t.Errorf("%d seen and missed, of %d", n, all)
	}
}
