package backend

import "time"

// Traffic is what went over wires.
type Traffic struct {
	RxFrames, RxBytes uint64 // from guests
	TxFrames, TxBytes uint64 // to guests
}

func (t *Traffic) add(p *port) {
	t.RxFrames += p.rxFrames.Load()
	t.RxBytes += p.rxBytes.Load()
	t.TxFrames += p.txFrames.Load()
	t.TxBytes += p.txBytes.Load()
}

// Traffic returns what all guests have sent and got, those that are gone too: it never becomes less.
func (n *Network) Traffic() Traffic {
	n.seg.mu.RLock()
	defer n.seg.mu.RUnlock()
	t := n.seg.gone
	for _, p := range n.seg.ports {
		t.add(p)
	}
	return t
}

// Since is when the network began.
func (n *Network) Since() time.Time { return n.since }
