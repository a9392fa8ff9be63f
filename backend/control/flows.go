package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/flows"
)

const (
	// maxFlowFollowers: each has a descriptor, a goroutine or two, and a row of what it was told of each conversation, a
	// megabyte where there are ten thousand. A page or two, a terminal, and programs.
	maxFlowFollowers = 32
	// flowPace is how long changes are gathered before they are told: nobody's eye is faster, and of a conversation that
	// changes three times meanwhile it is told once.
	flowPace = 100 * time.Millisecond
	// bytesEvery is how often it is told which conversations have moved bytes.
	bytesEvery = time.Second
	// flowsAtOnce is how many of the present conversations are told in one event: some 80 KB.
	flowsAtOnce = 200
	// flowFlush is how much is gathered at most before it is written: what a unix socket takes at once.
	flowFlush = 64 << 10
	// anewAgain is how soon after the present conversations were told they are told again, to one that is too slow for what
	// comes: a list of ten thousand takes the daemon a tenth of a second.
	anewAgain = 2 * time.Second
)

func (s *Server) flowRoutes() []route {
	return []route{{path: "/v1/flows", on: verbs{
		"GET": {do: s.listFlows, says: "Lists conversations, oldest first, or tells what becomes of them", gives: []flows.Snapshot{}, streams: FlowEvent{},
			pages: flowPages,
			query: append([]param{guestParam,
				{name: "proto", says: "only of this protocol", one: []string{"tcp", "udp", "icmp", "icmp6"}},
				{name: "state", says: "only in this state; closed: those that have lately ended; refused: attempts that were lately refused", one: []string{"dialing", "open", "closing", "closed", "refused"}},
				{name: "direction", says: "only those begun by guests (out), or from outside (in)", one: []string{"in", "out"}}}, flowPickParams...)}}}}
}

// flowWish is which conversations a client wants.
type flowWish struct {
	guest, proto, state, direction string
	flowPick
}

func (w flowWish) has(f *flows.Snapshot) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	return is(w.guest, f.Guest) && is(w.proto, f.Proto.String()) && is(w.direction, f.Dir.String()) &&
		(w.state == "" || w.state == "refused" && f.Verdict == w.state || w.state == f.State) && w.flowPick.has(f)
}

func (c *call) flowWish() (w flowWish, err error) {
	w = flowWish{c.query.Get("guest"), c.query.Get("proto"), c.query.Get("state"), c.query.Get("direction"), c.flowPick()}
	if w.guest != "" {
		g, err := c.guest(w.guest)
		if err != nil {
			return w, err
		}
		w.guest = g.ID
	}
	return w, nil
}

func (s *Server) listFlows(c *call) (reply, error) {
	if follows(c.Header.Get("Accept")) {
		return s.followFlows(c)
	}
	if c.query.Has("sort") {
		return s.flowsInOrder(c)
	}
	list, err := c.flows()
	if err != nil {
		return reply{}, err
	}
	return ok(list)
}

// FlowEvent is what a follower of conversations is told. The events of the stream have these kinds as their names:
//
//	anew      forget all: the present conversations follow. So begins each stream that does not go on where another was
//	flows     some of them
//	listed    that were all
//	resumed   the stream goes on behind Last-Event-ID
//	opened    a conversation was let in, or somebody is asked about it
//	changed   its state, its verdict or its name
//	ended     it is over; its figures are the last ones. It may never have been told that it was opened
//	refused   an attempt was refused
//	bytes     once a second, those of which bytes have moved
//	lost      the client was too slow for so many changes; anew comes next
type FlowEvent struct {
	Kind    string      `json:"-"`
	Network string      `json:"network,omitempty"` // of bytes and lost
	Flows   []FlowEntry `json:"flows,omitempty"`   // of flows
	Flow    *FlowEntry  `json:"flow,omitempty"`    // of opened, changed, ended and refused
	Moved   []FlowBytes `json:"moved,omitempty"`   // of bytes
	Lost    uint64      `json:"lost,omitempty"`
}

// FlowEntry is a conversation of a network. IDs are of a network.
type FlowEntry struct {
	Network string `json:"network"`
	flows.Snapshot
}

// FlowBytes are a conversation's figures: its id, bytes from and to the guest, packets from and to the guest.
type FlowBytes [5]uint64

// followFlows answers for all networks that the request means, in one stream.
func (s *Server) followFlows(c *call) (reply, error) {
	w := flowWish{proto: c.query.Get("proto"), state: c.query.Get("state"), direction: c.query.Get("direction"), flowPick: c.flowPick()}
	if c.paged() || c.query.Has("sort") || c.query.Has("min_bytes") {
		return reply{}, problem(http.StatusBadRequest, "without limit, after, sort and min_bytes", "a stream has no pages and no order, and a conversation's bytes change")
	}
	if w.state != "" && w.state != "refused" {
		return reply{}, problem(http.StatusBadRequest, "without state, or with state=refused", "a stream tells of each change of state, and so not of one state only")
	}
	guest := c.query.Get("guest")
	if guest != "" {
		found := false
		var missing error
		for _, n := range s.networksOf(c) {
			one := *c
			one.net = n
			_, err := one.guest(guest)
			found, missing = found || err == nil, errors.Join(missing, err)
		}
		if !found {
			return reply{}, missing
		}
	}
	if s.flowFollowers.Add(1) > maxFlowFollowers {
		s.flowFollowers.Add(-1)
		return reply{}, problem(http.StatusServiceUnavailable, "end one of them", "%d follow the conversations already", maxFlowFollowers)
	}
	return reply{http.StatusOK, stream(func(ctx context.Context, out http.ResponseWriter) {
		defer s.flowFollowers.Add(-1)
		f := flowStream{ctx: ctx, wish: w, out: out, ctl: http.NewResponseController(out), wake: make(chan struct{}, 1)}
		from := c.Header.Get("Last-Event-ID")
		for {
			nets := s.networksOf(c)
			f.follow(nets, from, func(n *backend.Network) (string, bool) {
				if guest == "" {
					return "", true
				}
				one := *c
				one.net = n
				g, err := one.guest(guest)
				return g.ID, err == nil
			})
			f.run(func() bool { return slices.Equal(nets, s.networksOf(c)) })
			f.close()
			if f.failed || ctx.Err() != nil {
				return
			}
			from = "" // other networks: all begins anew
		}
	})}, nil
}

// networksOf are those that a request means.
func (s *Server) networksOf(c *call) []*backend.Network {
	name := c.query.Get("network")
	if name == "" {
		return s.networks()
	}
	if n, err := s.network(name); err == nil {
		return []*backend.Network{n}
	}
	return nil // it is gone, and may come back
}

// flowStream is one client that follows.
type flowStream struct {
	ctx    context.Context
	wish   flowWish
	out    http.ResponseWriter
	ctl    *http.ResponseController
	wake   chan struct{}
	b      bytes.Buffer
	failed bool // the client has gone, or does not read

	nets   []*flowNet
	stop   context.CancelFunc
	wg     sync.WaitGroup
	listed time.Time // when all were last told
}

// flowNet is one network that is followed.
type flowNet struct {
	name  string // as JSON
	guest string // the only one that is wanted
	table *flows.Table
	*flows.Follower
	rows  map[*flows.Flow]*flowRow
	fresh []*flows.Flow // to be told of at the end of this turn
}

// flowRow is what was told of a conversation.
type flowRow struct {
	moved uint64 // packets of both directions
	kind  flows.ChangeKind
	fresh bool // it is in flowNet.fresh
	told  bool // else it was not what the client wants, and may become that
}

// follow begins to follow networks, behind the place from if that is one of theirs and still kept.
func (f *flowStream) follow(nets []*backend.Network, from string, guest func(*backend.Network) (string, bool)) {
	ctx, stop := context.WithCancel(f.ctx)
	f.stop, f.nets = stop, nil
	for _, n := range nets {
		g, ok := guest(n)
		if !ok {
			continue
		}
		name, _ := json.Marshal(n.Config().Name)
		f.nets = append(f.nets, &flowNet{name: string(name), guest: g, table: n.Flows(), rows: map[*flows.Flow]*flowRow{}})
	}
	if places := f.places(from); places != nil {
		for i, n := range f.nets {
			n.Follower = n.table.FollowFrom(places[i])
		}
	}
	resumed := true
	for _, n := range f.nets {
		if n.Follower == nil {
			resumed = false
			n.Follower = n.table.Follow()
		}
		f.wg.Go(func() {
			for n.Wait(ctx) == nil {
				select {
				case f.wake <- struct{}{}:
				default:
				}
				select {
				case <-time.After(flowPace):
				case <-ctx.Done():
					return // what has changed meanwhile would have Wait go on returning
				}
			}
		})
	}
	if !resumed {
		f.anew()
		return
	}
	for _, n := range f.nets {
		for _, x := range n.table.All() {
			if n.wants(f, x) {
				s := x.Snapshot()
				n.rows[x] = &flowRow{moved: s.UpPkts + s.DownPkts, told: n.has(f, &s)}
			}
		}
	}
	f.b.WriteString("event: resumed\ndata: {}\n\n")
	f.flush()
}

func (f *flowStream) close() {
	f.stop()
	f.wg.Wait()
	for _, n := range f.nets {
		n.Close()
	}
}

// place is where the stream is, as an event's id: of each network its table and the place there. Before an empty line it
// is an event that has nothing but an id, which clients keep and do not show (HTML, "9.2.6 Interpreting an event stream").
func (f *flowStream) place() {
	f.b.WriteString("id: ")
	for i, n := range f.nets {
		if i > 0 {
			f.b.WriteByte(',')
		}
		fmt.Fprintf(&f.b, "%s.%d", n.table.Epoch(), n.At())
	}
	f.b.WriteByte('\n')
}

// places reads what place wrote, nil if it is of other tables.
func (f *flowStream) places(id string) []uint64 {
	var list []uint64
	for i, one := range strings.Split(id, ",") {
		epoch, at, _ := strings.Cut(one, ".")
		n, err := strconv.ParseUint(at, 10, 64)
		if err != nil || i >= len(f.nets) || epoch != f.nets[i].table.Epoch() {
			return nil
		}
		list = append(list, n)
	}
	if len(list) != len(f.nets) {
		return nil
	}
	return list
}

// run tells until the client or a network ends, or there are others than same says.
func (f *flowStream) run(same func() bool) {
	second := time.NewTicker(bytesEvery)
	defer second.Stop()
	last := time.Now()
	for !f.failed {
		select {
		case <-f.ctx.Done():
			return
		case <-f.wake:
			f.changes()
		case <-second.C:
			if !same() {
				return
			}
			f.bytes()
			if time.Since(last) > beat {
				f.b.WriteString(":\n\n")
			}
		}
		if f.b.Len() > 0 {
			f.flush()
			last = time.Now()
		}
	}
}

func (f *flowStream) flush() {
	if f.failed || f.b.Len() == 0 {
		f.b.Reset()
		return
	}
	f.ctl.SetWriteDeadline(time.Now().Add(slowWrite))
	_, err := f.out.Write(f.b.Bytes())
	f.b.Reset()
	f.failed = err != nil || f.ctl.Flush() != nil
}

// anew tells of all present conversations. The followers are there already, so that each one's end is told.
func (f *flowStream) anew() {
	if wait := anewAgain - time.Since(f.listed); wait > 0 && !f.listed.IsZero() {
		select {
		case <-time.After(wait):
		case <-f.ctx.Done():
			return
		}
		for _, n := range f.nets { // all that is older than the list
			for list, _ := n.Take(); len(list) > 0; list, _ = n.Take() {
			}
		}
	}
	f.b.WriteString("event: anew\ndata: {}\n\n")
	for _, n := range f.nets {
		clear(n.rows)
		n.fresh = n.fresh[:0]
		count := 0
		for _, x := range n.table.All() {
			s := x.Snapshot()
			if !n.has(f, &s) {
				continue
			}
			n.rows[x] = &flowRow{moved: s.UpPkts + s.DownPkts, told: true}
			if count%flowsAtOnce == 0 {
				if count > 0 {
					f.b.WriteString("]}\n\n")
					f.flush()
				}
				f.b.WriteString("event: flows\ndata: {\"flows\":[")
			} else {
				f.b.WriteByte(',')
			}
			f.entry(n, &s)
			count++
		}
		if count > 0 {
			f.b.WriteString("]}\n\n")
		}
	}
	f.listed = time.Now()
	f.place()
	f.b.WriteString("event: listed\ndata: {}\n\n")
	f.flush()
}

// entry writes a conversation as JSON, with its network.
func (f *flowStream) entry(n *flowNet, s *flows.Snapshot) {
	f.b.WriteString(`{"network":`)
	f.b.WriteString(n.name)
	if j, err := json.Marshal(s); err == nil && len(j) > 2 {
		f.b.WriteByte(',')
		f.b.Write(j[1:])
		return
	}
	f.b.WriteByte('}')
}

func (f *flowStream) tell(n *flowNet, kind flows.ChangeKind, s *flows.Snapshot) {
	fmt.Fprintf(&f.b, "event: %s\ndata: {\"flow\":", kind)
	f.entry(n, s)
	f.b.WriteString("}\n\n")
	if f.b.Len() >= flowFlush {
		f.flush()
	}
}

func (n *flowNet) has(f *flowStream, s *flows.Snapshot) bool {
	return (n.guest == "" || n.guest == s.Guest) && f.wish.has(s)
}

// wants is has without a snapshot, where state does not matter.
func (n *flowNet) wants(f *flowStream, x *flows.Flow) bool {
	w := &f.wish
	return (n.guest == "" || n.guest == x.Guest) && (w.proto == "" || w.proto == x.Proto.String()) &&
		(w.direction == "" || w.direction == x.Dir.String())
}

func movedOf(x *flows.Flow) uint64 { return x.Up.Packets.Load() + x.Down.Packets.Load() }

// changes tells what has come. What a conversation went through since the last turn is told once.
func (f *flowStream) changes() {
	lost := uint64(0)
	for _, n := range f.nets {
		for {
			list, missed := n.Take()
			if missed > 0 {
				lost += missed
				fmt.Fprintf(&f.b, "event: lost\ndata: {\"network\":%s,\"lost\":%d}\n\n", n.name, missed)
			}
			for _, c := range list {
				f.change(n, c)
			}
			if len(list) == 0 {
				break
			}
		}
		for _, x := range n.fresh {
			if r := n.rows[x]; r != nil && lost == 0 { // else all are told again
				r.fresh = false
				s := x.Snapshot()
				r.moved = s.UpPkts + s.DownPkts
				has := f.wish.has(&s)
				switch {
				case f.wish.state != "" || !has && !r.told:
				case !r.told:
					f.tell(n, flows.Opened, &s)
				default: // also that it is no longer what the client wants
					f.tell(n, r.kind, &s)
				}
				r.told = r.told || has
			}
		}
		clear(n.fresh)
		n.fresh = n.fresh[:0]
	}
	if lost > 0 {
		f.anew()
		return
	}
	if f.b.Len() > 0 {
		f.place()
		f.b.WriteByte('\n')
	}
}

func (f *flowStream) change(n *flowNet, c flows.Change) {
	if !n.wants(f, c.Flow) {
		return
	}
	switch c.Kind {
	case flows.Opened, flows.Changed:
		r := n.rows[c.Flow]
		if r == nil {
			r = &flowRow{}
			n.rows[c.Flow] = r
			c.Kind = flows.Opened
		}
		if !r.fresh {
			r.fresh, r.kind = true, c.Kind
			n.fresh = append(n.fresh, c.Flow)
		}
		return
	}
	r := n.rows[c.Flow]
	delete(n.rows, c.Flow)
	s := c.Flow.Snapshot()
	s.Missed = c.Missed
	if f.wish.has(&s) || r != nil && r.told {
		f.tell(n, c.Kind, &s)
	}
}

// bytes tells which conversations have moved bytes.
func (f *flowStream) bytes() {
	if f.wish.state != "" {
		return
	}
	for _, n := range f.nets {
		any := false
		for x, r := range n.rows {
			now := movedOf(x)
			if !r.told || now == r.moved {
				continue
			}
			r.moved = now
			if any {
				f.b.WriteByte(',')
			} else {
				fmt.Fprintf(&f.b, "event: bytes\ndata: {\"network\":%s,\"moved\":[", n.name)
				any = true
			}
			b := f.b.AvailableBuffer()
			b = append(b, '[')
			for i, v := range [...]uint64{x.ID, x.Up.Bytes.Load(), x.Down.Bytes.Load(), x.Up.Packets.Load(), x.Down.Packets.Load()} {
				if i > 0 {
					b = append(b, ',')
				}
				b = strconv.AppendUint(b, v, 10)
			}
			f.b.Write(append(b, ']'))
		}
		if any {
			f.b.WriteString("]}\n\n")
		}
	}
}

// FollowFlows calls f for each event of the conversations that w picks: first for all that there are, then for what
// becomes of them, until f returns an error, which is then its own, ctx ends or the daemon does (io.EOF).
func (c *Client) FollowFlows(ctx context.Context, w FlowFilter, f func(FlowEvent) error) error {
	// A line has all that moved within a second: it is as long as there are conversations.
	return c.follow(ctx, "flows", w.values(), math.MaxInt, func(kind string, data []byte) error {
		e := FlowEvent{}
		if err := json.Unmarshal(data, &e); err != nil {
			return c.garbled("flows", err)
		}
		e.Kind = kind
		return f(e)
	})
}
