package topology

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// hues is how many colours networks have, in the order of the file, in light and in dark: told apart by most who see colours otherwise
// (after Okabe and Ito 2008, without the two that text is in).
const hues = 6

const style = `
svg { --bg: #ffffff; --text: #1f2328; --soft: #59636e; --box: #f6f8fa; --edge: #d1d9e0; --world: #eaeef2; --bad: #9a5b00;
 --h0: #0072b2; --h1: #00835c; --h2: #a8478a; --h3: #b35a00; --h4: #2c7fb8; --h5: #6b5fb5;
 --ready: #1a7f37; --wait: #9a6700; --fail: #cf222e; --idle: #818b98 }
@media (prefers-color-scheme: dark) { svg { --bg: #0d1117; --text: #e6edf3; --soft: #9198a1; --box: #151b23; --edge: #3d444d; --world: #1c232c; --bad: #e3b341;
 --h0: #58a6ff; --h1: #3fc48d; --h2: #e58fc8; --h3: #f0a35e; --h4: #76c7f0; --h5: #b3a5f5;
 --ready: #3fb950; --wait: #d29922; --fail: #f85149; --idle: #656c76 } }
text { font: 10.5px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: var(--soft); paint-order: stroke; stroke: var(--bg); stroke-width: 4px; stroke-linejoin: round }
.in { stroke: none }
.name { font: 600 13.5px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--text) }
.title { font: 600 16px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--text) }
.net { font-weight: 600; fill: var(--text) }
.bad { fill: var(--bad) }
.line { fill: none; stroke-width: 1.6 }
.impaired { stroke-dasharray: 5 3 }
.mirror { stroke-dasharray: 1.5 3 }
.bar { stroke-width: 5; stroke-linecap: round }
.cord { stroke-width: 2.4; fill: none }
.under { stroke: var(--bg); stroke-width: 7; fill: none }
.box { fill: var(--box); stroke: var(--edge); stroke-width: 1.2 }
.world { fill: var(--world); stroke: var(--edge) }
`

// SVG is a picture of the lab, that looks right on a light page and on a dark one. With a Status nodes have the colours of
// their states, and addresses that they have been seen with; it may be nil. The same lab and states make the same bytes.
func (l *Lab) SVG(st *Status) []byte {
	if st != nil {
		l = l.seen(st)
	}
	p := l.picture()
	states := map[string]NodeStatus{}
	if st != nil {
		for _, n := range st.Nodes {
			states[n.Name] = n
		}
	}
	w := &drawing{}
	p.width = max(p.width, 2*margin+width(l.Name, 10), 240)
	w.put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %v %v" width="%v" height="%v" role="img">`, p.width, p.height, p.width, p.height)
	w.put(`<title>%v</title><style>%v</style>`, escape("lab "+l.Name), style)
	w.put(`<rect width="100%%" height="100%%" rx="8" fill="var(--bg)"/>`)
	w.text(margin, margin+12, "title", l.Name)
	p.drawWorld(w)
	p.drawBars(w)
	for _, row := range p.rows {
		for _, b := range row {
			s, ok := states[b.node.Name]
			b.draw(w, s, ok)
		}
	}
	p.drawLabels(w)
	w.put(`</svg>`)
	return w.Bytes()
}

// seen is the lab with the addresses that interfaces have now.
func (l *Lab) seen(st *Status) *Lab {
	to := *l
	to.Nodes = slices.Clone(l.Nodes)
	for i := range to.Nodes {
		n := &to.Nodes[i]
		j := slices.IndexFunc(st.Nodes, func(s NodeStatus) bool { return s.Name == n.Name })
		if j < 0 {
			continue
		}
		n.Interfaces = slices.Clone(n.Interfaces)
		for k := range n.Interfaces {
			f := &n.Interfaces[k]
			at := slices.IndexFunc(st.Nodes[j].Interfaces, func(s InterfaceStatus) bool { return s.Name == f.Name })
			if at < 0 {
				continue
			}
			f.Addrs = slices.Clone(f.Addrs)
			for _, a := range st.Nodes[j].Interfaces[at].Addrs {
				known := slices.ContainsFunc(f.Addrs, func(q netip.Prefix) bool { return q.Addr() == a })
				if !known && !a.IsLinkLocalUnicast() && len(f.Addrs) < mostSeen {
					f.Addrs = append(f.Addrs, netip.PrefixFrom(a, a.BitLen()))
				}
			}
		}
	}
	return &to
}

// mostSeen addresses are shown of an interface: guests with privacy extensions (RFC 8981) have several.
const mostSeen = 3

type drawing struct{ bytes.Buffer }

// put writes a line. Numbers have one digit behind the point: the same on every machine.
func (w *drawing) put(format string, args ...any) {
	for i, a := range args {
		if x, ok := a.(float64); ok {
			args[i] = strconv.FormatFloat(math.Round(x*10)/10, 'f', -1, 64)
		}
	}
	fmt.Fprintf(w, format, args...)
	w.WriteByte('\n')
}

func (w *drawing) text(x, y float64, class, s string) {
	w.put(`<text x="%v" y="%v" class="%v">%v</text>`, x, y, class, escape(s))
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}

func hue(net int) string { return fmt.Sprintf("var(--h%d)", net%hues) }

// drawWorld is what uplinks lead to.
func (p *picture) drawWorld(w *drawing) {
	y := titleHeight
	from, to := 0.0, 0.0
	for _, k := range p.channels[0].bars {
		if k.n.Uplink {
			if to == 0 || k.x0 < from {
				from = k.x0
			}
			to = max(to, k.x1)
			to = max(to, k.labelX+k.labelWidth())
		}
	}
	if to == 0 {
		return
	}
	to = max(to, from+210)
	p.width = max(p.width, to+margin)
	w.put(`<rect x="%v" y="%v" width="%v" height="%v" rx="12" class="world"/>`, from-6, y, to-from+12, worldHeight)
	w.put(`<text x="%v" y="%v" class="in" text-anchor="middle">this machine and the world</text>`, (from+to)/2, y+16)
	for _, k := range p.channels[0].bars {
		if !k.n.Uplink {
			continue
		}
		x := k.x0 + 6
		if k.trunk > 0 {
			x = k.x0
			w.put(`<path d="M%v %vV%v" class="bar" stroke="%v"/>`, x, y+worldHeight, k.y, hue(k.net))
			continue
		}
		w.put(`<path d="M%v %vV%v" class="cord" stroke="%v"/>`, x, y+worldHeight, k.y, hue(k.net))
		w.put(`<path d="M%v %vl4 7h-8z" fill="%v"/>`, x, y+worldHeight+1, hue(k.net))
	}
}

// drawBars are networks with the lines to their interfaces. Upper ones first: a line that crosses a bar goes over it, with
// some room at its sides.
func (p *picture) drawBars(w *drawing) {
	trunks := map[int][2]float64{}
	var nets []int
	for _, ch := range p.channels {
		for _, k := range ch.bars {
			if k.trunk == 0 {
				continue
			}
			t, ok := trunks[k.net]
			if !ok {
				t = [2]float64{k.y, k.y}
				nets = append(nets, k.net)
			}
			trunks[k.net] = [2]float64{min(t[0], k.y), max(t[1], k.y)}
		}
	}
	for _, ch := range p.channels {
		for _, k := range ch.bars {
			if k.n.Wire {
				continue
			}
			dash := ""
			if k.n.Isolate {
				dash = ` stroke-dasharray="14 8"`
			}
			w.put(`<path d="M%v %vH%v" class="bar" stroke="%v"%v/>`, k.x0, k.y, k.x1, hue(k.net), dash)
		}
	}
	for _, net := range nets {
		for _, ch := range p.channels {
			for _, k := range ch.bars {
				if k.net == net {
					w.put(`<path d="M%v %vV%v" class="bar" stroke="%v"/>`, k.x0, trunks[net][0], trunks[net][1], hue(net))
					goto next
				}
			}
		}
	next:
	}
	for _, ch := range p.channels {
		for _, k := range ch.bars {
			if k.n.Wire {
				p.drawWire(w, k)
				continue
			}
			for _, q := range k.ports {
				class := "line"
				switch {
				case q.f.Mirror:
					class += " mirror"
				case q.f.Impair != nil || k.n.Impair != nil:
					class += " impaired"
				}
				if p.crosses(ch, q, k) {
					w.put(`<path d="M%v %vV%v" class="under"/>`, q.x(), q.edge(), k.y)
				}
				w.put(`<path d="M%v %vV%v" class="%v" stroke="%v"/>`, q.x(), q.edge(), k.y, class, hue(k.net))
				w.put(`<circle cx="%v" cy="%v" r="3.4" fill="%v"/>`, q.x(), k.y, hue(k.net))
			}
		}
	}
}

// edge is where a port is, in height.
func (q *port) edge() float64 {
	if q.up {
		return q.box.y
	}
	return q.box.y + boxHeight
}

// crosses says that a line goes over a bar of another network.
func (p *picture) crosses(ch *channel, q *port, own *bar) bool {
	return slices.ContainsFunc(ch.bars, func(k *bar) bool {
		low, high := min(own.y, q.edge()), max(own.y, q.edge())
		return k != own && k.y > low && k.y < high && k.x0 <= q.x() && q.x() <= k.x1
	})
}

// drawWire is a link: one line from end to end.
func (p *picture) drawWire(w *drawing, k *bar) {
	class := "cord"
	impaired := k.n.Impair != nil
	for _, q := range k.ports {
		impaired = impaired || q.f.Impair != nil
	}
	if impaired {
		class += " impaired"
	}
	if len(k.ports) == 2 {
		a, b := k.ports[0], k.ports[1]
		w.put(`<path d="M%v %vV%vH%vV%v" class="%v" stroke-linejoin="round" stroke="%v"/>`, a.x(), a.edge(), k.y, b.x(), b.edge(), class, hue(k.net))
		return
	}
	for _, q := range k.ports { // of a file that was not checked, or over several channels
		w.put(`<path d="M%v %vV%vH%v" class="%v" stroke="%v"/>`, q.x(), q.edge(), k.y, k.x0, class, hue(k.net))
	}
}

// drawLabels come last: lines go below them.
func (p *picture) drawLabels(w *drawing) {
	for _, ch := range p.channels {
		for _, k := range ch.bars {
			for i, s := range k.labels {
				y := k.y - 8 - float64(len(k.labels)-1-i)*lineStep
				if s.class != "net" {
					w.text(k.labelX, y, s.class, s.text)
					continue
				}
				name, prefixes, _ := strings.Cut(s.text, "  ")
				w.put(`<text x="%v" y="%v" xml:space="preserve"><tspan class="net">%v</tspan>  %v</text>`, k.labelX, y, escape(name), escape(prefixes))
			}
			for _, q := range k.ports {
				for i, s := range q.labels {
					class := ""
					if i >= len(q.labels)-q.marked {
						class = "bad"
					}
					y := q.box.y - 7 - float64(len(q.labels)-1-i)*lineStep
					if !q.up {
						y = q.box.y + boxHeight + 14 + float64(i)*lineStep
					}
					w.text(q.x()+6, y, class, s)
				}
			}
		}
	}
}

// draw is a node.
func (b *box) draw(w *drawing, st NodeStatus, known bool) {
	edge, tip := "", b.node.Name+", "+string(b.node.Kind)
	colour := ""
	if known {
		colour = map[State]string{StateReady: "ready", StateEnded: "idle", StateFailed: "fail", StateStarting: "wait", StateWaiting: "idle", StateStopping: "wait"}[st.State]
		if colour == "" {
			colour = "idle"
		}
		edge = fmt.Sprintf(` style="stroke: var(--%s); stroke-width: 2"`, colour)
		tip += ", " + string(st.State)
		if st.Error != "" {
			tip += ": " + st.Error
		}
	}
	w.put(`<g><title>%v</title>`, escape(tip))
	radius := 6
	if b.node.Kind == KindNetns {
		radius = 14 // what is no machine
	}
	dash := ""
	if b.node.Kind == KindExternal {
		dash = ` stroke-dasharray="6 4"`
	}
	w.put(`<rect x="%v" y="%v" width="%v" height="%d" rx="%d" class="box"%v%v/>`, b.x, b.y, b.w, boxHeight, radius, dash, edge)
	y := b.y + 21
	if b.detail == "" {
		y = b.y + boxHeight/2 + 5
	}
	w.text(b.x+13, y, "name in", short(b.node.Name))
	kind := string(b.node.Kind)
	if known {
		w.put(`<circle cx="%v" cy="%v" r="4" fill="var(--%v)"/>`, b.x+b.w-14, y-4, colour)
		w.put(`<text x="%v" y="%v" text-anchor="end" class="in">%v</text>`, b.x+b.w-22, y, escape(kind))
	} else {
		w.put(`<text x="%v" y="%v" text-anchor="end" class="in">%v</text>`, b.x+b.w-12, y, escape(kind))
	}
	if b.detail != "" {
		w.text(b.x+13, b.y+38, "in", b.detail)
	}
	w.put(`</g>`)
}
