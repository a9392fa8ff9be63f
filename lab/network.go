package lab

// Station 3: a topology's network becomes a backend's, and what another file changes of it is changed in place where that
// can be.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"strconv"
	"sync"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/impair"
	"github.com/vmnetd/vmnetd/lab/topology"
	"github.com/vmnetd/vmnetd/policy"
	"github.com/vmnetd/vmnetd/portforward"
)

// ethernetMTU is what every card carries (IEEE 802.3).
const ethernetMTU = 1500

// network is one of the lab's that runs.
type network struct {
	*backend.Network                // Close ends all that is plugged in and waits for it
	policy           *policy.Policy // nil without an uplink: nothing goes out

	name  string
	seeds *seeds
	more  func(*backend.Config)
	log   *slog.Logger

	mu      sync.Mutex
	lab     *topology.Lab // whose it is as it runs
	plugged map[socket]*plug
	byGuest map[string]socket // by the guest's id
	serving []*server         // of NoCloud data
}

// socket is an interface's place in the network.
type socket struct{ node, iface string }

// plug is what is in one.
type plug struct {
	id   string // "" until it is known
	gone chan struct{}
}

// newNetwork starts the network of this name in l. Data of nodes with cloud-init is served in it from s. more, if not nil,
// is called with its configuration before it starts, for what the daemon has to add: a target of memory, say.
func newNetwork(l *topology.Lab, name string, s *seeds, log *slog.Logger, more func(*backend.Config)) (*network, error) {
	n := &network{name: name, seeds: s, more: more, log: log, lab: l, plugged: map[socket]*plug{}, byGuest: map[string]socket{}}
	c, err := n.config(l)
	if err != nil {
		return nil, err
	}
	t := networkOf(l, name)
	doc, err := t.Policy.Document()
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if n.Network, err = backend.New(c); err != nil {
		return nil, err
	}
	if !t.Uplink {
		return n, nil
	}
	// One of no rules as well, so that it can be tested, learned and set at any time.
	if n.policy, err = newPolicy(n.Network, doc); err != nil {
		return nil, errors.Join(fmt.Errorf("policy: %w", err), n.Network.Close())
	}
	n.SetPolicy(n.policy, false)
	if err := n.serveSeeds(l); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// newPolicy makes a policy that tells its questions as the network's events.
func newPolicy(n *backend.Network, d policy.Document) (*policy.Policy, error) {
	return policy.New(policy.Config{Document: d, Network: n.DefaultPolicy(), Local: n.IsLocalName, Identify: n.Identify,
		OnQuestion: func(q policy.Question) {
			e := backend.Event{Kind: backend.EventQuestion, Guest: q.Guest, Subject: strconv.FormatUint(q.ID, 10), Text: q.String()}
			if q.Outcome != "" {
				e.Kind = backend.EventAnswer
			}
			n.Note(e)
		},
		OnChange: func(policy.Document) {
			n.Note(backend.Event{Kind: backend.EventPolicy, Text: "an answer became a rule"})
		}})
}

// Close ends all that is plugged in and waits for it.
func (n *network) Close() error {
	err := n.Network.Close()
	n.mu.Lock()
	serving := n.serving
	n.serving = nil
	n.mu.Unlock()
	for _, s := range serving {
		s.close()
	}
	if n.policy != nil {
		err = errors.Join(err, n.policy.Close())
	}
	return err
}

func networkOf(l *topology.Lab, name string) *topology.Network {
	for i := range l.Networks {
		if l.Networks[i].Name == name {
			return &l.Networks[i]
		}
	}
	return nil
}

// config is the network's in l.
func (n *network) config(l *topology.Lab) (c backend.Config, err error) {
	t := networkOf(l, n.name)
	if t == nil {
		return c, fmt.Errorf("the lab has no network %s", n.name)
	}
	c = backend.Config{Name: t.Name, Prefix4: t.Prefix4, Prefix6: t.Prefix6, Isolate: t.Isolate, Wire: t.Wire, NoUplink: !t.Uplink,
		Impair: t.Impair, GuestNames: map[string]string{}, Logger: n.log}
	for name, value := range t.Limits {
		if err := c.Limits.Set(name, value); err != nil {
			return c, err
		}
	}
	called := map[string]bool{}
	for _, node := range l.Nodes {
		for _, f := range node.Interfaces {
			if f.Network != n.name {
				continue
			}
			name := node.Name
			if called[name] { // a name is one station's
				name += "-" + f.Name
			}
			called[name] = true
			c.GuestNames[f.MAC.String()] = name
			if t.Uplink && len(f.Addrs) > 0 {
				if c.Static == nil {
					c.Static = map[string][]netip.Addr{}
				}
				for _, a := range f.Addrs {
					c.Static[f.MAC.String()] = append(c.Static[f.MAC.String()], a.Addr())
				}
			}
		}
	}
	if t.Uplink {
		c.Gateway4, c.Gateway6, c.Domain, c.Resolvers = t.Gateway4, t.Gateway6, t.Domain, t.Resolvers
		c.NoHostLoopback, c.StrictLeases = t.NoHostLoopback, t.StrictLeases
		for _, s := range t.Forwards {
			rules, err := portforward.ParseRule(s)
			if err != nil {
				return c, fmt.Errorf("forward: %w", err)
			}
			c.Forwards = append(c.Forwards, rules...)
		}
		for _, s := range t.DNS {
			r, err := backend.ParseDNSRecord(s)
			if err != nil {
				return c, fmt.Errorf("dns-record: %w", err)
			}
			c.Records = append(c.Records, r)
		}
	}
	switch { // as the daemon has it: what every card carries, and more where a guest finds that its own does
	case !t.Uplink:
		c.MTU = t.MTU
	case t.MTU == 0:
		c.LargeMTU = backend.MaxMTU
	case t.MTU > ethernetMTU:
		c.LargeMTU, c.LargeNICs = t.MTU, true
	default:
		c.MTU = t.MTU
	}
	if n.more != nil {
		n.more(&c)
	}
	return c, nil
}

// change has the network as l has it, without another network being started: forwards, DNS, fixed addresses, limits, policy
// and impairments, its interfaces' as well. All of it is changed, or after an error nothing.
func (n *network) change(ctx context.Context, l *topology.Lab) error {
	c, err := n.config(l)
	if err != nil {
		return err
	}
	t := networkOf(l, n.name)
	doc, err := t.Policy.Document()
	if err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	done, err := n.Reload(ctx, c)
	if err != nil {
		return err
	}
	n.mu.Lock()
	before := n.lab
	n.mu.Unlock()
	if n.policy != nil && !reflect.DeepEqual(networkOf(before, n.name).Policy, t.Policy) {
		if err := n.policy.Replace(doc); err != nil {
			return errors.Join(fmt.Errorf("policy: %w", err), done.Undo())
		}
		n.SetPolicy(n.policy, true)
	}
	if t.Uplink {
		if err := n.serveSeeds(l); err != nil {
			return errors.Join(err, done.Undo())
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lab = l
	for s, p := range n.plugged {
		was, is := impairOf(before, n.name, s), impairOf(l, n.name, s)
		if p.id == "" || reflect.DeepEqual(was, is) {
			continue
		}
		if err := n.Impair(p.id, is); err != nil {
			n.log.Info("an interface is going while its impairment changes", "node", s.node, "interface", s.iface, "err", err)
		}
	}
	return nil
}

// impairOf is an interface's own.
func impairOf(l *topology.Lab, network string, s socket) *impair.Settings {
	if f := interfaceOf(l, network, s); f != nil {
		return f.Impair
	}
	return nil
}

func interfaceOf(l *topology.Lab, network string, s socket) *topology.Interface {
	for i := range l.Nodes {
		if l.Nodes[i].Name != s.node {
			continue
		}
		for j := range l.Nodes[i].Interfaces {
			if f := &l.Nodes[i].Interfaces[j]; f.Name == s.iface && f.Network == network {
				return f
			}
		}
	}
	return nil
}

// plug carries the frames of a node's interface until its wire ends, ctx does or the network is closed. What is plugged in
// there already is unplugged. It closes w.
func (n *network) plug(ctx context.Context, node string, iface *topology.Interface, w link.Link) error {
	s := socket{node, iface.Name}
	mine := &plug{gone: make(chan struct{})}
	n.mu.Lock()
	for old := n.plugged[s]; old != nil; old = n.plugged[s] {
		id := old.id
		n.mu.Unlock()
		if id != "" {
			n.Kick(id) // an error says that it has gone
		}
		select {
		case <-old.gone:
		case <-ctx.Done():
			w.Close()
			return ctx.Err()
		}
		n.mu.Lock()
	}
	n.plugged[s] = mine
	c := backend.PortConfig{Name: node + " " + iface.Name, Promiscuous: iface.Promiscuous, Mirror: iface.Mirror, Impair: iface.Impair}
	if f := interfaceOf(n.lab, n.name, s); f != nil { // as it is by now
		c.Impair = f.Impair
	}
	n.mu.Unlock()
	c.Plugged = func(id string) {
		n.mu.Lock()
		defer n.mu.Unlock()
		mine.id = id
		n.byGuest[id] = s
	}
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.plugged, s)
		delete(n.byGuest, mine.id)
		close(mine.gone)
	}()
	return n.ServePort(ctx, w, c)
}

// guest is the id of a node's interface that is plugged in, "" if it is not.
func (n *network) guest(node, iface string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.plugged[socket{node, iface}]; p != nil {
		return p.id
	}
	return ""
}

// node is the name of the node that a guest is, by the guest's id; "" if it is none of the lab's.
func (n *network) node(guest string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byGuest[guest].node
}
