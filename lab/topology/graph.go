package topology

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/vmnetd/vmnetd/impair"
	"github.com/vmnetd/vmnetd/portforward"
)

// Graph is the lab for a terminal: each network with what is in it, then the links.
func (l *Lab) Graph() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s, %s\n", l.Name, count(len(l.Nodes), "node"), count(len(l.Networks), "network"))
	ends := l.ends()
	for _, n := range l.Networks {
		if n.Wire {
			continue
		}
		b.WriteString("\n")
		bar := "═╤═ "
		if n.Uplink {
			bar = "═╪═ "
			b.WriteString("this machine and the world\n")
			for _, s := range n.doors() {
				fmt.Fprintf(&b, " │  %s\n", s)
			}
		}
		fmt.Fprintf(&b, "%s%s\n", bar, strings.Join(append([]string{n.Name}, n.about()...), "   "))
		writeEnds(&b, ends[n.Name])
	}
	for _, n := range l.Networks {
		if n.Wire {
			fmt.Fprintf(&b, "\n─── %s\n", strings.Join(append([]string{n.Name}, n.about()...), "   "))
			writeEnds(&b, ends[n.Name])
		}
	}
	var alone []string
	for _, n := range l.Nodes {
		if len(n.Interfaces) == 0 {
			alone = append(alone, n.Name+" ("+string(n.Kind)+")")
		}
	}
	if alone != nil {
		fmt.Fprintf(&b, "\nin no network: %s\n", strings.Join(alone, ", "))
	}
	return b.String()
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// end is a node's interface, where it is in a network.
type end struct {
	node *Node
	i    int
}

func (e end) iface() *Interface { return &e.node.Interfaces[e.i] }

func (l *Lab) ends() map[string][]end {
	ends := map[string][]end{}
	for i := range l.Nodes {
		n := &l.Nodes[i]
		for j, f := range n.Interfaces {
			ends[f.Network] = append(ends[f.Network], end{n, j})
		}
	}
	return ends
}

// writeEnds lists interfaces in columns.
func writeEnds(b *strings.Builder, ends []end) {
	var rows [][]string
	var width []int
	for _, e := range ends {
		row := []string{e.node.Name, string(e.node.Kind), e.iface().Name, strings.Join(addrTexts(e.iface()), " "), strings.Join(e.notes(), ", ")}
		rows = append(rows, row)
		for i, s := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len([]rune(s)))
		}
	}
	for i, row := range rows {
		branch := " ├─ "
		if i == len(rows)-1 {
			branch = " └─ "
		}
		var line strings.Builder
		line.WriteString(branch)
		for j, s := range row {
			line.WriteString(s + strings.Repeat(" ", width[j]-len([]rune(s))))
			if width[j] > 0 {
				line.WriteString("  ")
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}

// addrTexts are an interface's addresses, without their prefixes' lengths, which are the network's.
func addrTexts(f *Interface) (list []string) {
	for _, a := range f.Addrs {
		list = append(list, a.Addr().String())
	}
	return list
}

// notes are what is special about an interface.
func (e end) notes() (list []string) {
	f := e.iface()
	if f.Promiscuous {
		list = append(list, "promiscuous")
	}
	if f.Mirror {
		list = append(list, "mirror")
	}
	if f.Impair != nil {
		list = append(list, impairText(f.Impair, false))
	}
	return list
}

// about is what a network is, after its name.
func (n *Network) about() (list []string) {
	for _, p := range []netip.Prefix{n.Prefix4, n.Prefix6} {
		if p.IsValid() {
			list = append(list, p.String())
		}
	}
	return append(list, n.traits()...)
}

func (n *Network) traits() (list []string) {
	if n.MTU > 0 {
		list = append(list, fmt.Sprintf("MTU %d", n.MTU))
	}
	if n.Isolate {
		list = append(list, "isolated")
	}
	if n.Impair != nil {
		list = append(list, impairText(n.Impair, n.Wire))
	}
	return list
}

// doors are a network's ways in and out: forwards, policy.
func (n *Network) doors() (list []string) {
	for _, s := range n.Forwards {
		rules, err := portforward.ParseRule(s)
		if err != nil {
			list = append(list, s)
			continue
		}
		for _, r := range rules {
			list = append(list, forwardText(r))
		}
	}
	if n.Policy.Preset != "" {
		list = append(list, "policy "+n.Policy.Preset)
	}
	for i, s := range n.Policy.Allow {
		if i == shownRules && len(n.Policy.Allow) > shownRules+1 {
			list = append(list, fmt.Sprintf("and %d more rules", len(n.Policy.Allow)-i))
			break
		}
		list = append(list, rule(s))
	}
	if n.Policy.Rules != "" {
		list = append(list, "policy by rules of its own")
	}
	if n.NoHostLoopback {
		list = append(list, "no host loopback")
	}
	return list
}

// shownRules of a policy are shown: it is a picture.
const shownRules = 4

func forwardText(r portforward.Rule) string {
	ports := func(first uint16) string {
		if r.Count > 1 {
			return fmt.Sprintf("%d-%d", first, int(first)+r.Count-1)
		}
		return strconv.Itoa(int(first))
	}
	from := ports(r.HostPort)
	switch {
	case r.Path != "":
		from = "unix:" + r.Path
	case r.HostPort == 0:
		from = "any port"
	}
	if r.Host.IsValid() && !r.Host.IsLoopback() {
		from = netip.AddrPortFrom(r.Host, 0).String()
		from = strings.TrimSuffix(from, "0") + ports(r.HostPort)
	}
	to := r.Guest
	if to != "" {
		to += ":"
	} else {
		to = "port "
	}
	text := from + " → " + to + ports(r.GuestPort)
	if r.Proto == portforward.UDP {
		text += "/udp"
	}
	return text
}

// impairText is a bad line in few words: a preset's name, or what it does.
func impairText(s *impair.Settings, wire bool) string {
	return strings.Join(impairLines(s, wire), "; ")
}

// impairLines has one for each direction, if they are not the same.
func impairLines(s *impair.Settings, wire bool) (list []string) {
	if s.None() {
		return []string{"no impairment"}
	}
	plain := *s
	plain.Seed = 0
	if wire {
		plain.Down = plain.Up
	}
	for _, p := range impair.Presets() {
		if q := p.Settings(); q.String() == plain.String() {
			return []string{p.Name}
		}
	}
	up, down := wayText(&plain.Up), wayText(&plain.Down)
	if up == down {
		if up != "" {
			list = append(list, up)
		}
	} else {
		if down != "" {
			list = append(list, "down "+down)
		}
		if up != "" {
			list = append(list, "up "+up)
		}
	}
	if len(plain.Flows) > 0 {
		list = append(list, count(len(plain.Flows), "flow")+" of its own")
	}
	return list
}

func wayText(w *impair.Way) string {
	var list []string
	if w.Rate > 0 {
		list = append(list, rateText(w.Rate))
	}
	if w.Trace != nil {
		list = append(list, "trace "+w.Trace.Name)
	}
	if w.Latency > 0 || w.Jitter > 0 {
		s := durationText(w.Latency)
		if w.Jitter > 0 {
			s += " ± " + durationText(w.Jitter)
		}
		list = append(list, s)
	}
	loss := w.Loss
	if w.Gilbert != nil {
		loss = w.Gilbert.Mean()
	}
	for _, share := range []struct {
		p    float64
		what string
	}{{loss, "lost"}, {w.Reorder, "reordered"}, {w.Duplicate, "twice"}, {w.Corrupt, "damaged"}} {
		if share.p > 0 {
			list = append(list, strconv.FormatFloat(math.Round(share.p*1e4)/100, 'f', -1, 64)+" % "+share.what)
		}
	}
	if w.FlapEvery > 0 {
		list = append(list, "flapping")
	}
	if len(w.Steps) > 0 {
		list = append(list, "changing")
	}
	return strings.Join(list, ", ")
}

func durationText(d time.Duration) string {
	return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', -1, 64) + " ms"
}

func rateText(bits int64) string {
	f, unit := float64(bits), "bit/s"
	for _, u := range []string{"kbit/s", "Mbit/s", "Gbit/s"} {
		if f < 1000 {
			break
		}
		f, unit = f/1000, u
	}
	return strconv.FormatFloat(math.Round(f*100)/100, 'f', -1, 64) + " " + unit
}
