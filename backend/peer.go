package backend

// Station 8, whom a mapping talks to (udp.go). Each peer is judged once, by the policy that is in force at its first
// datagram; again by another policy, at its next one. While somebody is asked, or it is not known yet whom a QUIC client
// names, the first few datagrams are held and the rest dropped: their senders send them again.
//
// A mapping's peers are under its mutex. Policies are asked without it.

import (
	"bytes"
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/hello"
)

const (
	// peersKept is how many of a mapping's peers are remembered as judged. Beyond it all are judged again.
	peersKept = 1024
	// peerHeld is how many datagrams of one peer are held: what is looked at of a QUIC conversation, at the most.
	peerHeld = hello.MostDatagrams
	// askHeld is the same where somebody is asked, who takes seconds: what is older is of no use by then, and clients
	// send the first two or three at once.
	askHeld = 4
	// heldBytes is how much of a guest's datagrams is held for all its peers: sixty QUIC clients that each begin with
	// three datagrams of an Ethernet's length.
	heldBytes = 256 << 10
	// rememberedBytes is how much of a guest's hellos is remembered, for helloTime, so that one that is sent again is told
	// from another one: a hundred of them. What is not remembered is looked at again.
	rememberedBytes = 256 << 10
	// peersAsked is about how many of a guest's peers somebody may be asked at a time: more than anybody answers. TCP
	// has flows.Limits.Dials.
	peersAsked = 64
)

type peerState uint8

const (
	peerOpen    peerState = iota
	peerAsked             // somebody is asked whether it may be
	peerSaying            // it is not known yet whom the guest names
	peerJudging           // it is, and the policy is asked
)

type peer struct {
	state   peerState
	gen     uint64 // of the policy (flows.Table.PolicyGen) that judged it
	verdict flows.Verdict
	shared  bool // by peers that nothing more is known of; it does not change

	said flows.Hello // once the guest has named somebody
	at   time.Time   // and when; in peerSaying, since when

	look *hello.Datagrams   // in peerSaying, and while it is remembered what was said
	kept int64              // bytes of that
	held [][]byte           // but in peerOpen
	stop context.CancelFunc // in peerAsked
}

// holds is how much a guest has held and is remembered of it, and about how many peers is asked.
type holds struct{ bytes, remembered, asked atomic.Int64 }

func (m *mapping) query(dst netip.AddrPort) flows.Query {
	return flows.Query{Guest: m.port.id, Proto: flows.UDP, Src: m.src, Dst: dst}
}

// take carries a datagram to dst, holds it, or says why not. payload is the caller's again when it returns. It reports
// false if the mapping has ended, and has not touched the datagram then.
func (m *mapping) take(dst netip.AddrPort, payload []byte) bool {
	gen := m.port.net.flows.PolicyGen()
	m.mu.Lock()
	if m.over {
		m.mu.Unlock()
		return false
	}
	x := m.peers[dst]
	if x != nil && (x.state != peerOpen || x.gen == gen) {
		m.pass(dst, x, payload)
		return true
	}
	if x == nil {
		m.mu.Unlock()
		m.begin(dst, nil, gen, m.port.net.flows.Judge(m.query(dst)), payload)
		return true
	}
	was := *x
	m.mu.Unlock()
	v := m.port.net.flows.JudgeRunning(m.query(dst), was.verdict)
	if v.Allow && was.said.How != flows.HelloNone {
		if w := inspect(v, was.said); !w.Allow {
			v = w
		}
	}
	m.begin(dst, x, gen, v, payload)
	return true
}

// begin goes on with a datagram whose peer was judged: for the first time, or again if it has run as was.
func (m *mapping) begin(dst netip.AddrPort, was *peer, gen uint64, v flows.Verdict, payload []byte) {
	if !v.Allow && v.Pending == nil {
		m.refuse(dst, was, len(payload), v)
		return
	}
	x := &peer{gen: gen, verdict: v}
	asked := &m.port.udp.holds.asked
	switch {
	case v.Pending != nil:
		if asked.Add(1) > peersAsked {
			asked.Add(-1)
			m.refuse(dst, was, len(payload), flows.Verdict{Reason: flows.ReasonRateLimit})
			return
		}
		x.state = peerAsked
	case v.Inspect == nil:
		x = m.plainOf(gen, v)
	case was == nil: // else its first bytes have gone: only what it begins anew is looked at
		x.state, x.look, x.at = peerSaying, new(hello.Datagrams), time.Now()
	}
	var ctx context.Context
	if v.Pending != nil {
		ctx, x.stop = context.WithCancel(m.port.ctx)
	}
	m.mu.Lock()
	if m.over {
		m.mu.Unlock()
		if v.Pending != nil {
			x.stop()
			asked.Add(-1)
		}
		m.port.drop(flows.ReasonEvicted)
		return
	}
	if was != nil && !x.shared {
		x.said, x.at, x.look, x.kept = was.said, was.at, was.look, was.kept
		was.look, was.kept = nil, 0
	}
	m.put(dst, x)
	m.pass(dst, x, payload)
	if v.Pending != nil { // not before the datagram is held: the answer may be there already
		m.port.goes("ask", func() {
			v := m.port.await(ctx, v)
			asked.Add(-1)
			m.answered(dst, x, v)
		})
	}
}

// plainOf is a peer that is allowed and nothing more.
func (m *mapping) plainOf(gen uint64, v flows.Verdict) *peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.plain == nil || m.plain.gen != gen || m.plain.verdict.Rule != v.Rule {
		m.plain = &peer{gen: gen, verdict: v, shared: true}
	}
	return m.plain
}

// pass carries a datagram to a peer, or holds it. Called with m.mu held, which it gives up.
func (m *mapping) pass(dst netip.AddrPort, x *peer, payload []byte) {
	if x.state == peerOpen && x.verdict.Inspect != nil && m.beginsAnew(x, payload) {
		x.state, x.at = peerSaying, time.Now()
	}
	if x.state == peerOpen {
		m.mu.Unlock()
		m.send(dst, payload)
		return
	}
	ok := m.hold(x, payload)
	saying := ok && x.state == peerSaying
	if saying {
		m.saying.Store(true)
	}
	m.mu.Unlock()
	if !ok {
		m.port.drop(flows.ReasonQueueFull)
	} else if saying {
		m.look(dst, x, payload)
	}
}

// put remembers a peer. Called with m.mu held.
func (m *mapping) put(dst netip.AddrPort, x *peer) {
	if len(m.peers) >= peersKept {
		for a, y := range m.peers { // those that nothing is lost of
			if y.state == peerOpen && y.verdict.Inspect == nil {
				m.forget(y)
				delete(m.peers, a)
			}
		}
		if len(m.peers) >= peersKept {
			m.forgetPeers()
		}
	}
	if y := m.peers[dst]; y != nil && y != x {
		m.release(y)
	}
	m.peers[dst] = x
	delete(m.shut, dst)
}

// forgetPeers forgets all, with what is held of them. Called with m.mu held.
func (m *mapping) forgetPeers() {
	for _, x := range m.peers {
		m.release(x)
	}
	clear(m.peers)
}

// release lets go of what is held and remembered of a peer. Called with m.mu held.
func (m *mapping) release(x *peer) {
	m.unhold(x)
	m.forget(x)
}

// unhold returns what is held of a peer. Called with m.mu held.
func (m *mapping) unhold(x *peer) [][]byte {
	held := x.held
	for _, b := range held {
		m.port.udp.holds.bytes.Add(-int64(len(b) + itemCost))
	}
	x.held = nil
	if x.stop != nil {
		x.stop()
	}
	return held
}

// hold keeps a datagram, if there is room. Called with m.mu held.
func (m *mapping) hold(x *peer, payload []byte) bool {
	most := peerHeld
	if x.state == peerAsked {
		most = askHeld
	}
	if len(x.held) >= most {
		return false
	}
	size, sum := int64(len(payload)+itemCost), &m.port.udp.holds.bytes
	if sum.Add(size) > heldBytes {
		sum.Add(-size)
		return false
	}
	x.held = append(x.held, bytes.Clone(payload))
	return true
}

// remember keeps what a peer's client has said, if there is room. Called with m.mu held.
func (m *mapping) remember(x *peer) {
	n, sum := int64(x.look.Holds()), &m.port.udp.holds.remembered
	sum.Add(n - x.kept)
	if x.kept = n; n == 0 || sum.Load() > rememberedBytes {
		m.forget(x)
		return
	}
	m.saying.Store(true) // for the sweep
}

// forget undoes remember. Called with m.mu held.
func (m *mapping) forget(x *peer) {
	m.port.udp.holds.remembered.Add(-x.kept)
	x.look, x.kept = nil, 0
}

// beginsAnew says whether a datagram begins a QUIC connection that was not looked at, or one with another hello under the
// ID of one that was, and readies x to look at it. Called with m.mu held.
func (m *mapping) beginsAnew(x *peer, payload []byte) bool {
	if len(payload) == 0 || payload[0]&0xc0 != 0xc0 { // RFC 9000 §17.2: no long header
		return false
	}
	if x.look != nil {
		return x.look.Again(payload)
	}
	_, begins := hello.Begins(payload)
	if begins {
		x.look = new(hello.Datagrams)
	}
	return begins
}

// look looks at a datagram of a peer that was held, and has the policy judge once it is known whom the guest names.
func (m *mapping) look(dst netip.AddrPort, x *peer, payload []byte) {
	m.mu.Lock()
	if m.peers[dst] != x || x.state != peerSaying {
		m.mu.Unlock()
		return
	}
	h, more := x.look.Look(payload)
	if more {
		m.mu.Unlock()
		return
	}
	x.state, x.said, x.at = peerJudging, h, time.Now()
	m.remember(x)
	v := x.verdict
	m.mu.Unlock()

	m.flow.SetSaid(h)
	w := inspect(v, h)
	if !w.Allow {
		m.refuse(dst, x, len(payload), w)
		return
	}
	m.let(dst, x)
}

// let sends what is held of a peer and all that comes after.
func (m *mapping) let(dst netip.AddrPort, x *peer) {
	m.mu.Lock()
	if m.peers[dst] != x {
		m.mu.Unlock()
		return
	}
	x.state = peerOpen
	held := m.unhold(x)
	m.mu.Unlock()
	for _, b := range held {
		m.send(dst, b)
	}
}

// answered goes on with a peer about which somebody was asked.
func (m *mapping) answered(dst netip.AddrPort, x *peer, v flows.Verdict) {
	if dst == m.flow.Dst {
		m.flow.SetVerdict(v)
	}
	m.mu.Lock()
	if m.peers[dst] != x { // it was forgotten meanwhile
		m.mu.Unlock()
		return
	}
	n := 0
	if len(x.held) > 0 {
		n = len(x.held[0])
	}
	if !v.Allow {
		m.mu.Unlock()
		m.refuse(dst, x, n, v)
		return
	}
	x.verdict = v
	m.forget(x)
	if v.Inspect == nil {
		m.mu.Unlock()
		m.flow.SetState(flows.Open)
		m.let(dst, x)
		return
	}
	x.state, x.look, x.at = peerSaying, new(hello.Datagrams), time.Now()
	held := x.held
	m.mu.Unlock()
	m.flow.SetState(flows.Open)
	for _, b := range held {
		m.look(dst, x, b)
	}
}

// refuse drops what is held of a peer, if it is x, and says so to the guest. A mapping that has no peer left ends.
func (m *mapping) refuse(dst netip.AddrPort, x *peer, n int, v flows.Verdict) {
	m.mu.Lock()
	if x != nil && m.peers[dst] != x {
		m.mu.Unlock()
		return
	}
	if x != nil {
		m.release(x)
		delete(m.peers, dst)
	}
	last := len(m.peers) == 0
	m.mu.Unlock()
	switch {
	case !last:
		m.port.drop(v.Reason)
		m.port.net.flows.Refused(m.query(dst), v)
	case m.flow.State() != flows.Closed: // else it is counted
		m.port.drops[v.Reason].Add(1)
		m.flow.End(v.Reason)
		m.port.udp.end(m)
	}
	m.port.udp.reject(m.src, dst, n, v)
}

// expire drops what is held for a client that did not go on. Called by the sweep.
func (m *mapping) expire() {
	if !m.saying.Swap(false) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for dst, x := range m.peers {
		if x.state != peerSaying && x.kept == 0 {
			continue
		}
		if time.Since(x.at) <= helloTime {
			m.saying.Store(true)
			continue
		}
		if x.state != peerSaying {
			m.forget(x)
			continue
		}
		m.release(x)
		delete(m.peers, dst)
		m.port.drop(flows.ReasonHello)
	}
}

// rejudge judges the peers of all mappings again, and ends those that are not allowed any more. It adds the flows that it
// has judged so to seen.
func (u *udpSide) rejudge(seen map[*flows.Flow]bool) (ended int) {
	u.mu.Lock()
	var ms []*mapping
	for _, m := range u.mappings {
		ms = append(ms, m)
	}
	u.mu.Unlock()
	for _, m := range ms {
		seen[m.flow] = true
		ended += m.rejudge()
	}
	return ended
}

func (m *mapping) rejudge() (ended int) {
	n := m.port.net
	m.mu.Lock()
	type judged struct {
		*peer
		was flows.Verdict
	}
	peers := make(map[netip.AddrPort]judged, len(m.peers))
	for a, x := range m.peers {
		peers[a] = judged{x, x.verdict}
	}
	m.mu.Unlock()
	for dst, y := range peers {
		x := y.peer
		gen := n.flows.PolicyGen()
		v := n.flows.JudgeRunning(m.query(dst), y.was)
		m.mu.Lock()
		if m.peers[dst] != x {
			m.mu.Unlock()
			continue
		}
		state, said := x.state, x.said
		ok := v.Allow && v.Pending == nil && state != peerAsked
		if ok && state == peerSaying { // held, and so judged by this policy
			x.gen, x.verdict = gen, v
			m.mu.Unlock()
			continue
		}
		m.mu.Unlock()
		ok = ok && inspect(v, said).Allow
		m.mu.Lock()
		switch {
		case m.peers[dst] != x:
		case ok && !x.shared:
			x.gen, x.verdict = gen, v
		case ok: // it is judged again with its next datagram
		default:
			m.release(x)
			delete(m.peers, dst)
			m.shut[dst] = struct{}{}
			ended++
		}
		m.mu.Unlock()
	}
	m.mu.Lock()
	over := ended > 0 && (len(m.peers) == 0 || len(m.shut) > peersKept)
	m.shuts.Store(len(m.shut) > 0)
	m.mu.Unlock()
	for i := range ended {
		if i == 0 && over {
			m.flow.End(flows.ReasonPolicy)
			m.port.udp.end(m)
		} else {
			n.flows.Count(flows.ReasonPolicy)
		}
	}
	return ended
}

// mayHear says whether the guest may still hear from a peer: one that running conversations were ended with may not be.
func (m *mapping) mayHear(from netip.AddrPort) bool {
	if !m.shuts.Load() {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_, shut := m.shut[from]
	return !shut
}
