package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
)

func query(p flows.Proto, port int) flows.Query {
	return flows.Query{Guest: "g", Proto: p, Src: netip.AddrPortFrom(netip.MustParseAddr("10.0.2.15"), uint16(port)), Dst: netip.MustParseAddrPort("198.51.100.1:443")}
}

// open lets a conversation in that nobody carries.
func open(t *testing.T, n *backend.Network, p flows.Proto, port int) *flows.Flow {
	t.Helper()
	f, v := n.Flows().Open(query(p, port), nil)
	if f == nil {
		t.Fatalf("not let in: %+v", v)
	}
	return f
}

// view is what a client makes of the stream.
type view struct {
	flows   map[string]FlowEntry // those there are, by network and id
	ended   []FlowEntry
	refused []FlowEntry
	kinds   map[string]int
	listed  bool
	lost    uint64
}

func (v *view) take(e FlowEvent) {
	key := func(f *FlowEntry) string { return fmt.Sprint(f.Network, " ", f.ID) }
	v.kinds[e.Kind]++
	v.lost += e.Lost
	switch e.Kind {
	case "anew":
		v.flows, v.listed = map[string]FlowEntry{}, false
	case "flows":
		for _, f := range e.Flows {
			v.flows[key(&f)] = f
		}
	case "listed", "resumed":
		v.listed = true
	case "opened", "changed":
		v.flows[key(e.Flow)] = *e.Flow
	case "ended":
		delete(v.flows, key(e.Flow))
		v.ended = append(v.ended, *e.Flow)
	case "refused":
		v.refused = append(v.refused, *e.Flow)
	case "bytes":
		for _, m := range e.Moved {
			k := fmt.Sprint(e.Network, " ", m[0])
			f, ok := v.flows[k]
			if !ok {
				continue
			}
			f.UpBytes, f.DownBytes, f.UpPkts, f.DownPkts = m[1], m[2], m[3], m[4]
			v.flows[k] = f
		}
	}
}

var errEnough = errors.New("enough")

// watch follows until done says that the view is as it should be.
func watch(t *testing.T, c *Client, w FlowFilter, done func(v *view) bool) *view {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	v := &view{kinds: map[string]int{}}
	err := c.FollowFlows(ctx, w, func(e FlowEvent) error {
		v.take(e)
		if v.listed && done(v) {
			return errEnough
		}
		return nil
	})
	if err != errEnough {
		t.Fatalf("FollowFlows: %v; seen: %v, %d there, %d ended, %d refused", err, v.kinds, len(v.flows), len(v.ended), len(v.refused))
	}
	return v
}

// What a client knows that follows is what the table has, through each of a conversation's states.
func TestFollowFlows(t *testing.T) {
	r := newRig(t)
	tab := r.net.Flows()
	tab.SetLimits(flows.Limits{FlowRate: 1e5})
	const present = 2*flowsAtOnce + 50
	for i := range present {
		open(t, r.net, flows.UDP, 1000+i)
	}
	step := 0
	var x *flows.Flow
	v := watch(t, r.c, FlowFilter{}, func(v *view) bool {
	again:
		switch {
		case step == 0:
			if len(v.flows) != present || v.kinds["flows"] != 3 {
				t.Errorf("%d conversations in %d events", len(v.flows), v.kinds["flows"])
			}
			x = open(t, r.net, flows.TCP, 1)
		case step == 1 && v.kinds["opened"] == 1:
			x.SetState(flows.Open)
			x.Up.Add(100)
			x.Down.Add(2000)
		case step == 2 && v.kinds["changed"] == 1:
		case step == 3 && v.flows[fmt.Sprint("default ", x.ID)].DownBytes == 2000:
			x.Down.Add(1)
		case step == 4 && v.kinds["bytes"] > 0 && v.flows[fmt.Sprint("default ", x.ID)].DownBytes == 2001:
			x.End(flows.ReasonReset)
			tab.SetPolicy(noMore{})
			tab.Open(query(flows.TCP, 2), nil)
		case step == 5 && len(v.ended) == 1 && len(v.refused) == 1:
			return true
		default:
			return false
		}
		step++
		goto again
	})
	if e := v.ended[0]; e.ID != x.ID || e.DownBytes != 2001 || e.UpPkts != 1 || e.Reason != "reset" || e.Verdict != "allowed" || e.State != "closed" || e.Ended.IsZero() {
		t.Errorf("ended: %+v", e)
	}
	if e := v.refused[0]; e.Src.Port() != 2 || e.Reason != "policy" || e.Policy != "no more" || e.Verdict != "refused" {
		t.Errorf("refused: %+v", e)
	}
	if len(v.flows) != present || v.kinds["anew"] != 1 || v.lost != 0 {
		t.Errorf("in the end %d are there: %v", len(v.flows), v.kinds)
	}

	// And the list says the same of what is over.
	closed, err := r.c.Flows(t.Context(), FlowFilter{State: "closed", Proto: "tcp"})
	if err != nil || len(closed) != 2 || !reflect.DeepEqual(closed[0], v.ended[0].Snapshot) {
		t.Errorf("closed: %+v, %v; want %+v", closed, err, v.ended[0])
	}
	refused, err := r.c.Flows(t.Context(), FlowFilter{State: "refused"})
	if err != nil || len(refused) != 1 || !reflect.DeepEqual(refused[0], v.refused[0].Snapshot) {
		t.Errorf("refused: %+v, %v", refused, err)
	}
	tab.EndAll(flows.ReasonShutdown)
}

type noMore struct{}

func (noMore) Judge(flows.Query) flows.Verdict { return flows.Verdict{Reject: true, Rule: "no more"} }

// A stream that asks for some hears of those only.
func TestFollowFlowsFilter(t *testing.T) {
	r := newRig(t)
	id, _ := r.guest("52:54:00:00:00:01", "web")
	mine := query(flows.TCP, 1)
	mine.Guest = id
	f, _ := r.net.Flows().Open(mine, nil)
	other := open(t, r.net, flows.TCP, 2)
	for _, tt := range []struct {
		name   string
		filter FlowFilter
		there  int
		ended  int
	}{
		{"a guest's by its name", FlowFilter{Guest: "web"}, 1, 1},
		{"a protocol", FlowFilter{Proto: "udp"}, 0, 0},
		{"a direction", FlowFilter{Direction: "out"}, 2, 2},
		{"refused ones", FlowFilter{State: "refused"}, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if f.State() == flows.Closed {
				f, _ = r.net.Flows().Open(mine, nil)
				other = open(t, r.net, flows.TCP, 2)
			}
			began := false
			v := watch(t, r.c, tt.filter, func(v *view) bool {
				if !began {
					began = true
					if len(v.flows) != tt.there {
						t.Errorf("%d are there, want %d", len(v.flows), tt.there)
					}
					f.End(flows.ReasonClosed)
					other.End(flows.ReasonClosed)
					q := mine // passes all of the filters but the protocol's
					if tt.filter.Proto != "" {
						q.Proto = flows.UDP
					}
					r.net.Flows().Refused(q, flows.Verdict{Reason: flows.ReasonPolicy})
				}
				return len(v.refused) == 1
			})
			if len(v.ended) != tt.ended {
				t.Errorf("%d have ended, want %d", len(v.ended), tt.ended)
			}
		})
	}
	var p *Problem
	for _, w := range []FlowFilter{{State: "open"}, {State: "closed"}, {Guest: "nobody"}, {Proto: "sctp"}} {
		if err := r.c.FollowFlows(t.Context(), w, nil); !errors.As(err, &p) || p.Status/100 != 4 || p.Hint == "" {
			t.Errorf("%+v: %v", w, err)
		}
	}
}

// What a stream asks for may be known of a conversation later than its beginning.
func TestFollowFlowsByName(t *testing.T) {
	r := newRig(t)
	var x, other *flows.Flow
	v := watch(t, r.c, FlowFilter{Name: "debian"}, func(v *view) bool {
		switch {
		case x == nil:
			other = open(t, r.net, flows.TCP, 1)
			other.Up.Add(100)
			x = open(t, r.net, flows.TCP, 2)
			x.SetSaid(flows.Hello{Name: "deb.debian.org"})
		case v.kinds["opened"] == 1 && x.State() != flows.Closed:
			other.SetState(flows.Open)
			other.End(flows.ReasonClosed)
			x.End(flows.ReasonClosed)
		}
		return len(v.ended) > 0
	})
	if v.ended[0].ID != x.ID || v.kinds["opened"] != 1 || v.kinds["changed"] != 0 || v.kinds["bytes"] != 0 {
		t.Errorf("%d ended, want %d: %v", v.ended[0].ID, x.ID, v.kinds)
	}
}

// stream asks as a browser does that comes back.
func (r *rig) stream(ctx context.Context, last string) *sse {
	r.t.Helper()
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://vmnetd/v1/flows", nil)
	req.Header.Set("Accept", "text/event-stream")
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { resp.Body.Close() })
	if ct := resp.Header.Get("Content-Type"); ct != eventStream || resp.StatusCode != 200 {
		r.t.Fatalf("%d %s", resp.StatusCode, ct)
	}
	return &sse{r.t, bufio.NewReader(resp.Body), ""}
}

// sse reads a stream as HTML says.
type sse struct {
	t    *testing.T
	in   *bufio.Reader
	last string // the last event's id
}

// next returns the next event's name and data.
func (s *sse) next() (name, data string) {
	s.t.Helper()
	for {
		line, err := s.in.ReadString('\n')
		if err != nil {
			s.t.Fatal(err)
		}
		line = strings.TrimSuffix(line, "\n")
		if v, ok := strings.CutPrefix(line, "event: "); ok {
			name = v
		}
		if v, ok := strings.CutPrefix(line, "id: "); ok {
			s.last = v
		}
		if v, ok := strings.CutPrefix(line, "data: "); ok {
			data = v
		}
		if line == "" {
			if data != "" {
				return name, data
			}
			name = ""
		}
	}
}

func (s *sse) want(name string) (data string) {
	s.t.Helper()
	got, data := s.next()
	if got != name {
		s.t.Fatalf("%s %s, want %s", got, data, name)
	}
	return data
}

// A browser that comes back soon hears what it missed, and nothing twice; one that comes with another daemon's place, or
// none, begins anew.
func TestFollowFlowsResumes(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	s := r.stream(ctx, "")
	s.want("anew")
	s.want("listed")
	x := open(t, r.net, flows.TCP, 1)
	s.want("opened")
	open(t, r.net, flows.TCP, 2)
	s.want("opened") // and with it the place behind the first, at least
	last := s.last
	cancel()
	x.End(flows.ReasonClosed)
	open(t, r.net, flows.TCP, 3)

	s = r.stream(t.Context(), last)
	s.want("resumed")
	var heard []string
	for len(heard) < 2 {
		name, data := s.next()
		if name == "opened" && strings.Contains(data, `"src":"10.0.2.15:2"`) {
			continue // it was told, and perhaps its place was not
		}
		heard = append(heard, name)
	}
	if strings.Join(heard, " ") != "ended opened" {
		t.Errorf("missed meanwhile: %q", heard)
	}
	for _, bad := range []string{"0.0", "x", last + "," + last, strings.Replace(last, ".", "0.", 1), last + "99999", strings.Repeat("9", 5000)} {
		s = r.stream(t.Context(), bad)
		s.want("anew")
		if data := s.want("flows"); strings.Count(data, `"id":`) != 2 {
			t.Errorf("%.50s: %s", bad, data)
		}
		s.want("listed")
	}
	r.net.Flows().EndAll(flows.ReasonShutdown)
}

// A client that does not read holds nobody; when it reads again, it learns how much it missed and gets all anew.
func TestFollowFlowsUnread(t *testing.T) {
	r := newRig(t)
	tab := r.net.Flows()
	tab.SetLimits(flows.Limits{FlowRate: 1e6, Total: 1e5, UDP: 1e5})
	reads := make(chan bool)
	follows := make(chan bool, 1)
	seen := make(chan *view, 1)
	const last = 1000
	go func() {
		v := &view{kinds: map[string]int{}}
		first := true
		err := io.EOF // which a client gets, too, that does not read for long enough: it comes back
		for err == io.EOF {
			err = r.c.FollowFlows(t.Context(), FlowFilter{}, func(e FlowEvent) error {
				if v.take(e); v.listed && first {
					first = false
					follows <- true
					<-reads
				}
				if v.listed && v.kinds["anew"] > 1 && len(v.flows) == last {
					seen <- v
					return errEnough
				}
				return nil
			})
		}
	}()
	<-follows
	// The first wave is more than sockets hold: who tells of it waits. Each of the next is more than is kept meanwhile.
	for range 3 {
		for i := range 6000 {
			open(t, r.net, flows.UDP, i).End(flows.ReasonClosed)
		}
		time.Sleep(2 * flowPace)
	}
	for i := range last {
		open(t, r.net, flows.UDP, i)
	}
	if _, err := r.c.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(reads)
	select {
	case v := <-seen: // all anew, since much was lost
		t.Logf("%d lost: %v", v.lost, v.kinds)
	case <-time.After(30 * time.Second):
		t.Error("it never heard of all, or of what it lost")
	}
	tab.EndAll(flows.ReasonShutdown)
}

func TestFollowFlowsEnds(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	if err := r.c.FollowFlows(ctx, FlowFilter{}, func(FlowEvent) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that goes: %v", err)
	}
	for deadline := time.Now().Add(30 * time.Second); r.srv.flowFollowers.Load() != 0 || r.net.Flows().Followers() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server still streams to a client that has gone")
		}
	}
	r.srv.flowFollowers.Store(maxFlowFollowers)
	var p *Problem
	if err := r.c.FollowFlows(t.Context(), FlowFilter{}, nil); !errors.As(err, &p) || p.Status != http.StatusServiceUnavailable {
		t.Errorf("one more than there may be: %v", err)
	}
	r.srv.flowFollowers.Store(0)
	if resp, body := r.do("HEAD", "/v1/flows", "", ""); resp.StatusCode != 200 || body != "" {
		t.Errorf("HEAD: %d %s", resp.StatusCode, body)
	}
	if err := r.c.FollowFlows(t.Context(), FlowFilter{}, func(FlowEvent) error { r.stop(); return nil }); err != io.EOF {
		t.Errorf("a server that ends: %v", err)
	}
}

// Conversations of all networks come in one stream, each with its network's name.
func TestFollowFlowsOfAll(t *testing.T) {
	lab, err := backend.New(backend.Config{Name: "lab", Logger: slog.New(slog.DiscardHandler), Egress: &backendtest.Egress{},
		Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	r := newRig(t, func(s *Server) { s.Networks = append(s.Networks, lab) })
	open(t, r.net, flows.TCP, 1)
	open(t, lab, flows.TCP, 2)
	step := 0
	v := watch(t, r.c, FlowFilter{}, func(v *view) bool {
		if step++; step == 1 {
			open(t, lab, flows.TCP, 3).Up.Add(7)
		}
		return len(v.flows) == 3
	})
	for key, port := range map[string]uint16{"default 1": 1, "lab 1": 2, "lab 2": 3} {
		if v.flows[key].Src.Port() != port {
			t.Errorf("%s: %+v", key, v.flows)
		}
	}
	one := NewClient(r.path)
	defer one.Close()
	one.Network = "lab"
	if v := watch(t, one, FlowFilter{}, func(v *view) bool { return true }); len(v.flows) != 2 {
		t.Errorf("of lab: %+v", v.flows)
	}
	lab.Flows().EndAll(flows.ReasonShutdown)
	r.net.Flows().EndAll(flows.ReasonShutdown)
}
