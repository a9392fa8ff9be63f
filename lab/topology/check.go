package topology

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmnetd/vmnetd/config"
	"github.com/vmnetd/vmnetd/portforward"
)

// checkNetwork is what can be said of one by itself.
func (r *reader) checkNetwork(n *network, said map[string]place) {
	if !n.Uplink {
		for _, key := range []string{"gateway", "gateway6", "domain", "resolver", "policy", "forward", "dns-record", "limits", "no-host-loopback", "strict-leases"} {
			if at, ok := said[key]; ok {
				r.fail(at, "%s is an uplink's, and this network has none: leave it out, or want uplink: true", key)
			}
		}
		if n.MTU > 0 && n.MTU < leastMTU6 && n.Prefix6.IsValid() {
			r.fail(said["mtu"], "mtu: %d is less than IPv6 works with: want %d or more, or no net6", n.MTU, leastMTU6)
		}
		return
	}
	if n.MTU > 0 && n.MTU < leastMTU6 {
		r.fail(said["mtu"], "mtu: want %d (the least that IPv6 works with) to %d where there is an uplink, not %d", leastMTU6, mostMTU, n.MTU)
	}
	// As backend has them: sixteen addresses are the least for gateway, resolver and a pool, and guests make addresses of
	// their own in a /64 (RFC 4862 §5.5.3).
	if p := n.Prefix4; p.IsValid() && (p.Bits() < 8 || p.Bits() > 28) {
		r.fail(n.prefixAt[0], "net: %s: want a /8 to a /28 where there is an uplink", p)
	}
	if p := n.Prefix6; p.IsValid() && p.Bits() != 64 {
		r.fail(n.prefixAt[1], "net6: %s: want a /64 where there is an uplink", p)
	}
	for _, g := range []struct {
		key string
		a   netip.Addr
		p   netip.Prefix
		of  string
	}{{"gateway", n.Gateway4, n.Prefix4, "net"}, {"gateway6", n.Gateway6, n.Prefix6, "net6"}} {
		switch {
		case !g.a.IsValid():
		case g.a.Is6() != (g.of == "net6"):
			r.fail(said[g.key], "%s: %s is of the other family", g.key, g.a)
		case !g.p.IsValid():
			r.fail(said[g.key], "%s: %s wants %s: beside it", g.key, g.a, g.of)
		case !g.p.Contains(g.a) || g.a == g.p.Addr() || g.a == broadcast(g.p):
			r.fail(said[g.key], "%s: %s is no node's address in %s", g.key, g.a, g.p)
		}
	}
}

// settle finds out what kind a node is, and what of its keys does not fit.
func (r *reader) settle(n *node, faulty bool) {
	said := func(key string) bool { _, ok := n.said[key]; return ok }
	if n.Kind == "" && !said("kind") {
		for _, guess := range []struct {
			kind Kind
			keys []string
		}{{KindUML, []string{"uml"}}, {KindQEMU, []string{"disk", "kernel"}}, {KindNetns, []string{"command"}}} {
			if slices.ContainsFunc(guess.keys, said) {
				n.Kind = guess.kind
				break
			}
		}
		if n.Kind == "" && !faulty {
			r.fail(n.at, "%s: what kind is it? want kind: netns, qemu, uml or external", n.Base)
		}
	}
	if n.Kind == "" {
		return
	}
	for _, key := range sorted(n.said) {
		if list, ok := fits[key]; ok && !slices.Contains(list, n.Kind) {
			r.fail(n.said[key], "%s does not fit a node of kind %s: %s", key, n.Kind, wantKinds(list))
		}
	}
	if n.Restart && n.Command == nil && n.Kind == KindNetns {
		r.fail(n.said["restart"], "restart: there is no command to start again")
	}
	if n.Kind == KindQEMU || n.Kind == KindUML {
		r.settleGuest(n, said)
	}
	for _, f := range n.ifaces {
		if f.Door != "" && n.Kind != KindExternal {
			r.fail(f.at, "door: is for nodes of kind external: a %s node is plugged in by itself", n.Kind)
		}
		if f.Door != "" && n.of > 1 && slices.ContainsFunc(r.nodes, func(o *node) bool {
			return slices.ContainsFunc(o.ifaces, func(g *iface) bool { return g.Door == f.Door })
		}) {
			r.fail(f.at, "door: %s is there twice: want ${n} in it", f.Door)
		}
	}
}

func (r *reader) settleGuest(n *node, said func(string) bool) {
	needs := func(key string, other ...string) {
		if said(key) && !slices.ContainsFunc(other, said) {
			r.fail(n.said[key], "%s wants %s beside it", key, strings.Join(other, " or "))
		}
	}
	small := n.Disk == "" && n.Kernel == "" && (n.Kind == KindQEMU || n.Initrd == "")
	needs("disk-format", "disk")
	needs("overlay", "disk")
	if n.Kind == KindQEMU {
		needs("initrd", "kernel")
		needs("cloud-init", "disk", "kernel")
		if !small { // which has a kernel
			needs("append", "kernel")
		}
	}
	n.Overlay = n.Disk != "" && (n.overlay == nil || *n.overlay)
	if n.Disk != "" && !n.Overlay {
		if n.of > 1 {
			r.fail(n.said["overlay"], "overlay: %d nodes cannot write to one disk: leave it out", n.of)
		}
		for _, o := range r.nodes {
			if o.Disk == n.Disk && o.Base != n.Base && !o.Overlay {
				r.fail(n.diskAt, "disk: %s writes to it, too (line %d): want overlay: true", o.Name, o.diskAt.Line)
			}
		}
	}
	switch {
	case small && said("agent") && !n.Agent:
		r.fail(n.said["agent"], "agent: the small guest has one: leave it out")
	case small:
		n.Agent = true
	case n.Forwarding:
		r.fail(n.said["forwarding"], "forwarding: with a kernel or disk of its own, the guest says so itself: leave it out")
	}
	if len(n.Setup) > 0 && !n.Agent {
		r.fail(n.said["setup"], "setup is run by the guest's agent: %s", wantAgent(n.Kind))
	}
}

// check is what can be said once all is read.
func (r *reader) check() {
	r.plug()
	for _, n := range r.nodes {
		r.checkAddrs(n)
		r.checkOverlaps(n)
		r.checkRoutes(n)
		// cloud-init's data come over HTTP from vmnetd's side of a network.
		if n.CloudInit != nil && !slices.ContainsFunc(n.ifaces, func(f *iface) bool { return f.net == nil || f.net.Uplink && !f.Mirror }) {
			r.fail(n.said["cloud-init"], "cloud-init: its data are served in networks with an uplink, and %s is in none: want an interface in one", n.Name)
		}
	}
	r.checkTwice()
	r.checkAfter()
	for _, n := range r.networks {
		r.checkEnds(n)
		r.checkForwards(n)
	}
	for i, n := range r.networks { // a door is a socket: two cannot be one
		for _, o := range r.networks[:i] {
			if n.Uplink && o.Uplink && n.Prefix4.IsValid() && o.Prefix4.IsValid() && n.Domain != "" && n.Domain == o.Domain && n.Prefix4 == o.Prefix4 {
				r.fail(n.prefixAt[0], "net: %s is network %s's, of the same domain: want another", n.Prefix4, o.Name)
			}
		}
	}
}

// plug finds each interface's network.
func (r *reader) plug() {
	var names, links []string
	for _, n := range r.networks {
		if n.Wire {
			links = append(links, n.Name)
		} else {
			names = append(names, n.Name)
		}
	}
	for _, n := range r.nodes {
		for _, f := range n.ifaces {
			if f.Network == "" {
				continue
			}
			f.net = r.byName[f.Network]
			switch {
			case f.net == nil && f.link:
				r.unknown(f.netAt, "link", f.Network, links)
			case f.net == nil:
				r.unknown(f.netAt, "network", f.Network, slices.Concat(names, links))
			case f.link && !f.net.Wire:
				r.fail(f.netAt, "%s is a network and no link: want net: %s", f.Network, f.Network)
				f.net = nil
			case f.net.Wire && (f.Promiscuous || f.Mirror):
				r.fail(f.at, "promiscuous and mirror are for networks: over a link everything passes")
			case f.Promiscuous && f.Mirror:
				r.fail(f.at, "an interface is promiscuous or a mirror: leave one out")
			case f.Mirror && len(f.addrs) > 0:
				r.fail(f.addrsAt, "a mirror sends nothing, and has no address")
			}
			if f.net != nil && f.net.Wire {
				f.net.ends = append(f.net.ends, f.netAt)
			}
		}
	}
}

func (r *reader) unknown(at place, what, name string, known []string) {
	if r.src.Full() {
		r.fail(at, "no %s %.40q", what, name)
		return
	}
	r.fail(at, "no %s %.40q: %s", what, name, config.DidYouMean(name, known))
}

func (r *reader) checkEnds(n *network) {
	switch len(n.ends) {
	case 2:
	case 0:
		if n.Wire {
			r.fail(n.at, "link %s has no ends: want two interfaces with link: %s", n.Name, n.Name)
		}
	case 1:
		r.fail(n.at, "link %s has one end, in line %d: want two interfaces with link: %s", n.Name, n.ends[0].Line, n.Name)
	default:
		r.fail(n.ends[2], "link %s has %d ends: it joins two interfaces; want a network for more", n.Name, len(n.ends))
	}
}

// checkAddrs reads addresses: ADDRESS/BITS, or without its bits those of its network.
func (r *reader) checkAddrs(n *node) {
	for _, f := range n.ifaces {
		for _, s := range f.addrs {
			p, err := f.addr(s.text)
			if err == nil && f.net != nil {
				err = f.fitsNetwork(p)
			}
			if err != nil {
				r.fail(s.at, "address: %s", err)
				continue
			}
			if slices.Contains(f.Addrs, p) {
				r.fail(s.at, "address: %s is there twice", p)
				continue
			}
			f.Addrs, f.addrAt = append(f.Addrs, p), append(f.addrAt, s.at)
		}
	}
}

// subnet is a network's prefix of an address's family.
func (n *network) subnet(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return n.Prefix4
	}
	return n.Prefix6
}

func (f *iface) addr(s string) (p netip.Prefix, err error) {
	a, err := netip.ParseAddr(s)
	if err == nil && a.Zone() == "" {
		var own netip.Prefix
		if f.net != nil {
			own = f.net.subnet(a)
		}
		if !own.IsValid() && f.net != nil {
			return p, fmt.Errorf("%s is without its prefix's length, and network %s has no prefix of its family: want %s/24, say", a, f.net.Name, a)
		}
		if own.IsValid() {
			p = netip.PrefixFrom(a, own.Bits())
		} else {
			p = netip.PrefixFrom(a, a.BitLen())
		}
	} else if p, err = netip.ParsePrefix(s); err != nil {
		return p, fmt.Errorf("want one as 10.1.0.7/24 or fd00:1::7, not %.60q", s)
	}
	if a := p.Addr(); a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return p, fmt.Errorf("%s is no node's", a)
	}
	return p, nil
}

// fitsNetwork says what is wrong with an address in its network.
func (f *iface) fitsNetwork(p netip.Prefix) error {
	a, own := p.Addr(), f.net.subnet(p.Addr())
	if a.Is6() && a.IsLinkLocalUnicast() && !f.net.Uplink {
		return nil
	}
	switch {
	case !own.IsValid() && f.net.Uplink:
		return fmt.Errorf("%s: network %s has no prefix of its family in the file: want %s there", a, f.net.Name, netKey(a))
	case !own.IsValid():
		own = p.Masked()
	case !own.Contains(a):
		return fmt.Errorf("%s is not in network %s, which has %s", a, f.net.Name, own)
	case p.Bits() != own.Bits():
		return fmt.Errorf("%s: network %s has a /%d: want %s/%d, or %s", p, f.net.Name, own.Bits(), a, own.Bits(), a)
	}
	switch {
	case a.Is4() && own.Bits() < 31 && a == own.Masked().Addr(): // RFC 3021: a /31 has no such
		return fmt.Errorf("%s is the network's own", a)
	case a.Is4() && own.Bits() < 31 && a == broadcast(own):
		return fmt.Errorf("%s is the network's broadcast address", a)
	}
	if gateway, resolver := f.net.services(a); a == gateway {
		return fmt.Errorf("%s is the gateway's: want another", a)
	} else if a == resolver {
		return fmt.Errorf("%s is where names are resolved: want another", a)
	}
	return nil
}

func netKey(a netip.Addr) string {
	if a.Is4() {
		return "net"
	}
	return "net6"
}

// services are the addresses that vmnetd has itself in a network with an uplink, of one family.
func (n *network) services(of netip.Addr) (gateway, resolver netip.Addr) {
	p := n.subnet(of)
	if !n.Uplink || !p.IsValid() {
		return
	}
	gateway, resolver = n.Gateway4, nth(p, 3)
	if of.Is6() {
		gateway = n.Gateway6
	}
	if !gateway.IsValid() {
		gateway = nth(p, 2)
	}
	return gateway, resolver
}

func nth(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// broadcast is a prefix's last address.
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// prefixes are those that a node reaches by an interface itself.
func (f *iface) prefixes() (list []netip.Prefix) {
	if f.net == nil {
		return nil
	}
	for _, p := range []netip.Prefix{f.net.Prefix4, f.net.Prefix6} {
		if p.IsValid() {
			list = append(list, p)
		}
	}
	for _, p := range f.Addrs {
		if p = p.Masked(); !slices.Contains(list, p) && !p.Addr().IsLinkLocalUnicast() {
			list = append(list, p)
		}
	}
	return list
}

// checkOverlaps: a node that has the same addresses on two sides does not know where to send.
func (r *reader) checkOverlaps(n *node) {
	for i, f := range n.ifaces {
		for _, g := range n.ifaces[:i] {
			if f.net == nil || g.net == nil || f.net == g.net || f.Mirror || g.Mirror {
				continue
			}
			for _, p := range f.prefixes() {
				for _, q := range g.prefixes() {
					if p.Overlaps(q) {
						r.fail(f.netAt, "%s is in %s (%s) and in %s (%s), which overlap: want other prefixes", n.Base, f.Network, p, g.Network, q)
						return
					}
				}
			}
		}
	}
}

func (r *reader) checkRoutes(n *node) {
	for i, route := range n.Routes {
		known, own, open := false, false, false
		for _, f := range n.ifaces {
			if f.net == nil {
				return // of which it was told
			}
			open = open || f.net.Uplink && !f.net.subnet(route.Via).IsValid()
			for _, p := range f.prefixes() {
				known = known || p.Contains(route.Via)
			}
			for _, p := range f.Addrs {
				own = own || p.Addr() == route.Via
			}
		}
		switch {
		case own:
			r.fail(n.routes[i], "routes: %s is %s's own address", route.Via, n.Name)
		case !known && !open:
			r.fail(n.routes[i], "routes: %s is in none of %s's networks: want a neighbour's address", route.Via, n.Name)
		}
	}
}

// checkTwice finds MACs, addresses and doors that two have.
func (r *reader) checkTwice() {
	type owner struct {
		name string
		line int
	}
	macs, doors := map[string]owner{}, map[string]owner{}
	addrs := map[*network]map[netip.Addr]owner{}
	for _, n := range r.nodes {
		hint := ""
		if n.of > 1 {
			hint = ", with ${n} in it for each of a count its own"
		}
		for _, f := range n.ifaces {
			me := n.Name + "'s " + f.Name
			if f.MAC != nil {
				if o, ok := macs[f.MAC.String()]; ok {
					r.fail(f.macAt, "mac: %s is %s, too (line %d): want another%s", f.MAC, o.name, o.line, hint)
				} else {
					macs[f.MAC.String()] = owner{me, f.macAt.Line}
				}
			}
			if f.Door != "" {
				if o, ok := doors[f.Door]; ok && n.of < 2 {
					r.fail(f.at, "door: %s is %s, too (line %d): want another", f.Door, o.name, o.line)
				}
				doors[f.Door] = owner{me, f.at.Line}
			}
			if f.net == nil {
				continue
			}
			if addrs[f.net] == nil {
				addrs[f.net] = map[netip.Addr]owner{}
			}
			for i, p := range f.Addrs {
				at := f.addrAt[i]
				if o, ok := addrs[f.net][p.Addr()]; ok {
					r.fail(at, "address: %s is %s, too (line %d): want another%s", p.Addr(), o.name, o.line, hint)
				} else {
					addrs[f.net][p.Addr()] = owner{me, at.Line}
				}
			}
		}
	}
}

// checkAfter finds nodes by their names, or by that of a count, and circles.
func (r *reader) checkAfter() {
	byName, bases := map[string]*node{}, map[string][]string{}
	for _, n := range r.nodes {
		byName[n.Name] = n
		if n.of > 0 {
			bases[n.Base] = append(bases[n.Base], n.Name)
		}
	}
	at := map[[2]string]place{}
	for _, n := range r.nodes {
		for _, s := range n.after {
			list := bases[s.text]
			if byName[s.text] != nil {
				list = []string{s.text}
			}
			if list == nil {
				r.unknown(s.at, "node", s.text, slices.Concat(sorted(byName), sorted(bases)))
			}
			for _, name := range list {
				if name == n.Name {
					r.fail(s.at, "after: %s cannot start after itself", n.Name)
					continue
				}
				if !slices.Contains(n.After, name) {
					n.After = append(n.After, name)
					at[[2]string{n.Name, name}] = s.at
				}
			}
		}
	}
	done := map[string]bool{}
	var path []string
	var walk func(n *node) bool
	walk = func(n *node) bool {
		if i := slices.Index(path, n.Name); i >= 0 {
			circle := append(slices.Clone(path[i:]), n.Name)
			if len(circle) > 10 {
				circle = slices.Concat(circle[:8], []string{"…"}, circle[len(circle)-1:])
			}
			r.fail(at[[2]string{path[len(path)-1], n.Name}], "after: none of these can start first: %s (each after the next)", strings.Join(circle, ", "))
			return false
		}
		if done[n.Name] {
			return true
		}
		path = append(path, n.Name)
		for _, name := range n.After {
			if !walk(byName[name]) {
				return false
			}
		}
		path = path[:len(path)-1]
		done[n.Name] = true
		return true
	}
	for _, n := range r.nodes {
		if path = path[:0]; !walk(n) {
			return // one circle tells
		}
	}
}

// checkForwards reads them, and looks for the nodes that they name.
func (r *reader) checkForwards(n *network) {
	var here []string
	bases := map[string]int{}
	for _, node := range r.nodes {
		if slices.ContainsFunc(node.ifaces, func(f *iface) bool { return f.net == n }) {
			here = append(here, node.Name)
			if node.of > 0 {
				bases[node.Base]++
			}
		}
	}
	known := func(guest string, at place) {
		name := strings.ToLower(strings.TrimSuffix(guest, "."))
		name = strings.TrimSuffix(name, "."+n.domain())
		switch {
		case slices.Contains(here, name):
		case bases[name] > 0:
			r.fail(at, "forward: %s is %d nodes: want one of them, %s1 say", name, bases[name], name)
		case slices.ContainsFunc(r.nodes, func(o *node) bool { return o.Name == name }):
			r.fail(at, "forward: node %s has no interface in network %s", name, n.Name)
		case r.src.Full():
			r.fail(at, "forward: no node %.40q", guest)
		default:
			r.fail(at, "forward: no node %.40q in network %s: %s", guest, n.Name, config.DidYouMean(name, here))
		}
	}
	type port struct {
		text string
		line int
	}
	ports := map[portforward.Rule]port{}
	for _, s := range n.forwards {
		rules, err := portforward.ParseRule(s.text)
		if err != nil {
			var e *portforward.Error
			if errors.As(err, &e) {
				r.fail(s.at, "forward: %.60q: %s", s.text, e.Text)
			} else {
				r.fail(s.at, "forward: %s", err)
			}
			continue
		}
		n.Forwards = append(n.Forwards, s.text)
		for _, rule := range rules {
			guest := rule.Guest
			if a, err := netip.ParseAddr(guest); err == nil {
				if p := n.subnet(a); p.IsValid() && !p.Contains(a) {
					r.fail(s.at, "forward: %s is not in network %s, which has %s", a, n.Name, p)
				}
			} else if guest == "" && len(here) != 1 {
				r.fail(s.at, "forward: %.60q: to which node? want HOSTPORT:NODE:PORT", s.text)
			} else if guest != "" && !strings.Contains(guest, ":") {
				known(guest, s.at)
			}
			key := portforward.Rule{Proto: rule.Proto, Host: rule.Host, HostPort: rule.HostPort, Path: rule.Path}
			if o, ok := ports[key]; ok && (rule.HostPort != 0 || rule.Path != "") {
				r.fail(s.at, "forward: %s has the same port of the host (line %d): want another", o.text, o.line)
			}
			ports[key] = port{s.text, s.at.Line}
		}
	}
}

// domain is where its nodes' names are.
func (n *network) domain() string {
	if n.Domain != "" {
		return strings.ToLower(n.Domain)
	}
	return "internal" // backend's
}
