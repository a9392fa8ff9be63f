// Package flows is what a conversation is: who talks to whom, in what state, how much, and why it was let in or not.
//
// Every conversation of every guest, and every one that the host opens into a guest, passes one door: [Table.Open].
// It asks the [Policy], enforces the [Limits] and returns a [Flow], which its owner counts bytes into and ends. What
// was refused is counted by [Reason], from one closed list that logs, API and metrics share.
//
//	t := flows.NewTable(flows.Limits{}, nil)
//	f, v := t.Open(flows.Query{Guest: "g1", Proto: flows.TCP, Src: src, Dst: dst}, nil)
//	if !v.Allow {
//		return v.Reason
//	}
//	f.SetState(flows.Open)
//	f.Up.Add(1448)
//	f.End(flows.ReasonClosed)
//
// It moves no bytes and opens no sockets.
package flows

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"
)

// Proto is an IP protocol number (IANA protocol-numbers).
type Proto uint8

// The protocols that a guest can have conversations in.
const (
	ICMP   Proto = 1
	TCP    Proto = 6
	UDP    Proto = 17
	ICMPv6 Proto = 58
)

func (p Proto) String() string {
	switch p {
	case ICMP:
		return "icmp"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case ICMPv6:
		return "icmp6"
	}
	return fmt.Sprintf("proto-%d", uint8(p))
}

// MarshalText makes a Proto its name in JSON.
func (p Proto) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is MarshalText's inverse.
func (p *Proto) UnmarshalText(b []byte) error {
	for _, q := range []Proto{ICMP, TCP, UDP, ICMPv6} {
		if string(b) == q.String() {
			*p = q
			return nil
		}
	}
	var n uint8
	if _, err := fmt.Sscanf(string(b), "proto-%d", &n); err != nil {
		return fmt.Errorf("protocol %q: want tcp, udp, icmp or icmp6", b)
	}
	*p = Proto(n)
	return nil
}

// Direction tells who began a conversation.
type Direction uint8

const (
	Out Direction = iota // the guest did
	In                   // the host did, through a port forward
)

func (d Direction) String() string {
	if d == In {
		return "in"
	}
	return "out"
}

// MarshalText makes a Direction its name in JSON.
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is MarshalText's inverse.
func (d *Direction) UnmarshalText(b []byte) error {
	switch string(b) {
	case "out":
		*d = Out
	case "in":
		*d = In
	default:
		return fmt.Errorf("direction %q: want in or out", b)
	}
	return nil
}

// State is where a flow is in its life. It only moves forward.
//
//	Dialing   admitted; the far side has not answered. The oldest may be ended to make room (Limits.Dials).
//	Open      both sides are there and bytes move.
//	Closing   one side has said that it sends no more.
//	Closed    over; the flow has left the table and keeps its last figures.
type State int32

const (
	Dialing State = iota
	Open
	Closing
	Closed
)

func (s State) String() string {
	switch s {
	case Dialing:
		return "dialing"
	case Open:
		return "open"
	case Closing:
		return "closing"
	}
	return "closed"
}

// Query is a conversation that asks to be let in, as the guest sees it: no alias is translated yet.
type Query struct {
	Guest string         // id of the guest
	Proto Proto          //
	Dir   Direction      //
	Src   netip.AddrPort // who began it
	Dst   netip.AddrPort // whom it wants; the port is 0 for ICMP
	Rule  string         // the port forward that it came through, for In

	// Host is the far end as the host knows it, where that is another address than the guest sees: what an alias stands
	// for, or a port forward's client. It is for people; no policy judges by it.
	Host netip.AddrPort
}

// Counter counts one direction of a flow. Both fields may be read at any time.
type Counter struct {
	Bytes   atomic.Uint64 // payload, without headers
	Packets atomic.Uint64 // datagrams; for TCP, the number of transfers
}

// Add counts one transfer of n bytes.
func (c *Counter) Add(n int) {
	c.Bytes.Add(uint64(n))
	c.Packets.Add(1)
}

// Flow is one conversation. Its exported fields do not change after Open; its methods may be called by anybody.
type Flow struct {
	ID     uint64
	Query  // who with whom
	Opened time.Time
	Up     Counter // from the guest
	Down   Counter // to the guest

	table *Table
	state atomic.Int32
	last  atomic.Int64 // when it last moved, in nanoseconds since the table began
	onEnd func(Reason) // under no lock; called once, when the table ends the flow

	verdict atomic.Pointer[Verdict] // in force
	first   Verdict                 // the one that opened it
	said    atomic.Pointer[Hello]
	names   []string      // what the guest's DNS answers called Dst when it began; newest first
	reason  atomic.Uint32 // why it ended
	ended   atomic.Int64  // when, as last; 0 before
	endedAt atomic.Int64  // and in nanoseconds since 1970
	elem    lruElem       // guarded by table.mu
	moved   int64         // guarded by table.mu; `last` when its place in the LRU order was last set
}

// State is where the flow is now.
func (f *Flow) State() State { return State(f.state.Load()) }

// SetState moves the flow forward. A move backward is ignored, so that racing callers cannot revive a flow.
func (f *Flow) SetState(s State) {
	for {
		old := f.state.Load()
		if int32(s) <= old {
			return
		}
		if f.state.CompareAndSwap(old, int32(s)) {
			f.table.moved(f.Proto, State(old), s)
			if old == int32(Dialing) {
				f.table.dialed(f)
			}
			f.table.changed(Changed, f)
			return
		}
	}
}

// Verdict is what let the flow in, or asks about it, as it was last judged.
func (f *Flow) Verdict() Verdict { return *f.verdict.Load() }

// First is the verdict that opened the flow, or asked about it.
func (f *Flow) First() Verdict { return f.first }

// SetVerdict has another verdict in force: the answer to the one that was pending, or a new policy's.
func (f *Flow) SetVerdict(v Verdict) {
	f.verdict.Store(&v)
	f.table.changed(Changed, f)
}

// Said is whom the guest's first bytes named; false if nobody has looked.
func (f *Flow) Said() (Hello, bool) {
	if h := f.said.Load(); h != nil {
		return *h, true
	}
	return Hello{}, false
}

// SetSaid notes whom the guest's first bytes name.
func (f *Flow) SetSaid(h Hello) {
	f.said.Store(&h)
	f.table.changed(Changed, f)
}

// Names are what DNS answers that the guest was given called Dst when the conversation began, newest first: guesses, since
// one address may have many names.
func (f *Flow) Names() []string { return f.names }

// Age is how long the flow has been, or was.
func (f *Flow) Age() time.Duration {
	if end := f.ended.Load(); end != 0 {
		return time.Duration(end) - f.Opened.Sub(f.table.epoch)
	}
	return time.Since(f.Opened)
}

// stop notes when the flow ended, and why.
func (f *Flow) stop(r Reason) {
	now := time.Now()
	f.reason.Store(uint32(r))
	f.endedAt.Store(now.UnixNano())
	f.ended.Store(max(1, int64(now.Sub(f.table.epoch))))
}

// Reason is why the flow ended; ReasonNone before that.
func (f *Flow) Reason() Reason { return Reason(f.reason.Load()) }

// Touch says that the flow moved now. It keeps a UDP flow from being the least recently used.
func (f *Flow) Touch() { f.table.touch(f) }

// Idle is how long ago the flow last moved.
func (f *Flow) Idle() time.Duration {
	now := time.Duration(f.ended.Load())
	if now == 0 {
		now = f.table.since()
	}
	return now - time.Duration(f.last.Load())
}

// End takes the flow out of the table. The first reason counts; later calls do nothing.
func (f *Flow) End(r Reason) { f.table.end(f, r, false) }

// Cut ends the flow and tells its owner, who closes what it holds.
func (f *Flow) Cut(r Reason) { f.table.end(f, r, true) }

// Snapshot is a flow's figures at one moment, as the API shows them.
type Snapshot struct {
	ID        uint64         `json:"id"`
	Guest     string         `json:"guest"`
	Proto     Proto          `json:"proto"`
	Dir       Direction      `json:"direction"`
	Src       netip.AddrPort `json:"src"`
	Dst       netip.AddrPort `json:"dst"`
	Host      netip.AddrPort `json:"host,omitzero"`         // the far end as the host knows it, if that is another
	Rule      string         `json:"rule,omitempty"`        // the port forward
	Policy    string         `json:"policy_rule,omitempty"` // the policy's rule that let it in, or asks
	Verdict   string         `json:"verdict"`               // allowed, asked (somebody is) or refused
	Names     []string       `json:"names,omitempty"`       // what the guest's DNS answers called dst, newest first
	Name      string         `json:"name,omitempty"`        // whom the guest's first bytes named
	Hello     string         `json:"hello,omitempty"`       // what they were: tls, http, quic, none; empty: nobody looked
	Waits     string         `json:"waits,omitempty"`       // what it is held for: answer or hello
	State     string         `json:"state"`
	Reason    string         `json:"reason,omitempty"` // why it ended, or was refused
	Opened    time.Time      `json:"opened"`
	Ended     time.Time      `json:"ended,omitzero"`
	IdleMS    int64          `json:"idle_ms"`
	UpBytes   uint64         `json:"up_bytes"`
	DownBytes uint64         `json:"down_bytes"`
	UpPkts    uint64         `json:"up_packets"`
	DownPkts  uint64         `json:"down_packets"`
	Missed    uint64         `json:"missed,omitempty"` // refused attempts of the guest before this one that are not told
}

// Snapshot copies the flow's figures.
func (f *Flow) Snapshot() Snapshot {
	s := Snapshot{
		ID: f.ID, Guest: f.Guest, Proto: f.Proto, Dir: f.Dir, Src: f.Src, Dst: f.Dst, Host: f.Host, Rule: f.Rule, Names: f.names,
		State: f.State().String(), Opened: f.Opened, IdleMS: f.Idle().Milliseconds(),
		UpBytes: f.Up.Bytes.Load(), DownBytes: f.Down.Bytes.Load(),
		UpPkts: f.Up.Packets.Load(), DownPkts: f.Down.Packets.Load(),
	}
	v := f.verdict.Load()
	s.Policy = v.Rule
	if h, ok := f.Said(); ok {
		s.Name, s.Hello = h.Name, h.How.String()
	} else if v.Pending != nil {
		s.Waits = "answer"
	} else if v.Inspect != nil && f.Dir == Out && f.State() >= Open {
		s.Waits = "hello"
	}
	r := f.Reason()
	switch {
	case r.Refusal():
		s.Verdict = "refused"
	case v.Pending != nil:
		s.Verdict = "asked"
	case v.Allow:
		s.Verdict = "allowed"
	default:
		s.Verdict = "refused"
	}
	if f.ended.Load() != 0 {
		s.Reason, s.Waits = r.String(), ""
		s.Ended = time.Unix(0, f.endedAt.Load())
	}
	return s
}

// MarshalJSON shows a flow as its Snapshot.
func (f *Flow) MarshalJSON() ([]byte, error) { return json.Marshal(f.Snapshot()) }
