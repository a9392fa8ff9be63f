package topology

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// made is the lab, once nothing is wrong with the file but what shows as it is given out.
func (r *reader) made() *Lab {
	r.allotPrefixes()
	r.allotMACs()
	for _, n := range r.networks {
		r.allotAddrs(n, n.Prefix4)
		r.allotAddrs(n, n.Prefix6)
	}
	l := &Lab{Name: r.name}
	for _, n := range r.networks {
		l.Networks = append(l.Networks, n.Network)
	}
	for _, n := range r.nodes {
		for _, f := range n.ifaces {
			n.Interfaces = append(n.Interfaces, f.Interface)
		}
		l.Nodes = append(l.Nodes, n.Node)
	}
	return l
}

// allotPrefixes gives networks with an uplink that have no IPv4 prefix one each, 10.0.2.0/24 first as everywhere in vmnetd:
// a node may be in two of them. Their IPv6 prefixes the backend makes from these.
func (r *reader) allotPrefixes() {
	next := 2
	taken := func(p netip.Prefix) bool {
		for _, n := range r.networks {
			if n.Prefix4.IsValid() && n.Prefix4.Overlaps(p) {
				return true
			}
		}
		for _, n := range r.nodes {
			for _, f := range n.ifaces {
				for _, a := range f.Addrs {
					if a.Overlaps(p) {
						return true
					}
				}
			}
		}
		return false
	}
	for _, n := range r.networks {
		for n.Uplink && !n.Prefix4.IsValid() {
			if next == 1<<16 {
				r.fail(n.at, "network %s: nothing of 10.0.0.0/8 is left: want net:", n.Name)
				return
			}
			if p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(next >> 8), byte(next), 0}), 24); !taken(p) {
				n.Prefix4 = p
			}
			next++
		}
	}
}

// allotMACs gives each interface one from what it is called, in QEMU's range: the same file makes the same, on every machine,
// and adding a node changes nobody's. What two come to by chance the first in the file has, and the other has another.
func (r *reader) allotMACs() {
	taken := map[string]bool{}
	for _, n := range r.nodes {
		for _, f := range n.ifaces {
			if f.MAC != nil {
				taken[f.MAC.String()] = true
			}
		}
	}
	for _, n := range r.nodes {
		for _, f := range n.ifaces {
			for try := uint32(0); f.MAC == nil; try++ {
				sum := sha256.Sum256(binary.BigEndian.AppendUint32(fmt.Appendf(nil, "%s\x00%s\x00%s\x00", r.name, n.Name, f.Name), try))
				if m := (net.HardwareAddr{0x52, 0x54, 0x00, sum[0], sum[1], sum[2]}); !taken[m.String()] {
					taken[m.String()], f.MAC = true, m
				}
			}
		}
	}
}

// inTurn are the nodes in the order in which they get addresses: those of a count behind the others, first all their first
// ones, so that a larger count changes nobody's.
func (r *reader) inTurn() []*node {
	number := map[string]int{}
	turn := map[*node]int{}
	for _, n := range r.nodes {
		if n.of > 0 {
			number[n.Base]++
			turn[n] = number[n.Base]
		}
	}
	nodes := slices.Clone(r.nodes)
	slices.SortStableFunc(nodes, func(a, b *node) int { return turn[a] - turn[b] })
	return nodes
}

// allotAddrs gives those interfaces of a network without an uplink an address of p that have none of its family: the lowest
// that are free, in turn.
func (r *reader) allotAddrs(n *network, p netip.Prefix) {
	if n.Uplink || !p.IsValid() {
		return
	}
	taken := map[netip.Addr]bool{}
	if p.Addr().Is4() && p.Bits() < 31 { // RFC 3021
		taken[p.Addr()], taken[broadcast(p)] = true, true
	}
	if p.Addr().Is6() && p.Bits() < 127 { // the routers' anycast address (RFC 4291 §2.6.1, RFC 6164)
		taken[p.Addr()] = true
	}
	var want []*iface
	for _, node := range r.inTurn() {
		for _, f := range node.ifaces {
			if f.net != n {
				continue
			}
			has := f.Mirror || f.noAddrs
			for _, a := range f.Addrs {
				taken[a.Addr()] = true
				has = has || p.Contains(a.Addr())
			}
			if !has {
				want = append(want, f)
			}
		}
	}
	a := p.Addr()
	for _, f := range want {
		for taken[a] {
			a = a.Next()
		}
		if !p.Contains(a) {
			at := n.prefixAt[0]
			if p.Addr().Is6() {
				at = n.prefixAt[1]
			}
			r.fail(at, "%s has no room for the %d interfaces of %s that want an address: want a shorter prefix", p, len(want), n.Name)
			return
		}
		f.Addrs = append(f.Addrs, netip.PrefixFrom(a, p.Bits()))
		taken[a] = true
	}
}
