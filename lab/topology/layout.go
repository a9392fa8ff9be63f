package topology

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// # Layout
//
// Networks are bars in channels, nodes boxes in rows between them. From the networks with an uplink on, which are in the first
// channel, a node is in the row below the first of its networks, and a network in the channel below the first of its nodes:
// since nodes are only in networks, and networks only of nodes, no line goes further than to the next channel. A row that is
// too wide becomes several, and a network has a bar in each channel that it has somebody next to, with a trunk at the left.

const (
	rowWidth    = 1240 // of boxes, at most: what a page of text has room for at half size
	boxGap      = 26
	boxHeight   = 50
	margin      = 24
	charWidth   = 6.4  // of small text: a monospace font's is 0.6 of its size, 10.5
	nameWidth   = 8.2  // of a box's name, in bold
	lineStep    = 13.0 // from one line of small text to the next
	gutter      = 18.0 // between trunks
	worldHeight = 24.0
	titleHeight = margin + 30.0
	shownText   = 34 // runes of a text, so that one long word does not make the picture
)

type picture struct {
	lab      *Lab
	rows     [][]*box
	channels []*channel
	width    float64
	height   float64
	left     float64 // where boxes begin, right of the trunks
}

type box struct {
	node   *Node
	layer  int
	order  float64
	leaf   bool
	row    int
	x, y   float64
	w      float64
	ports  []*port
	detail string
}

type port struct {
	box    *box
	f      *Interface
	net    int
	up     bool
	dx     float64 // from the box's left
	labels []string
	marked int // so many of its last labels are its impairment
}

func (p *port) x() float64 { return p.box.x + p.dx }

type channel struct {
	y, height float64
	bars      []*bar
	above     float64 // room for the labels of the row above, below that row
	below     float64
}

type bar struct {
	net    int
	n      *Network
	ports  []*port
	x0, x1 float64
	y      float64
	track  int
	trunk  int // 1, 2, …; 0: none
	labels []label
	labelX float64
}

// label is a line of text.
type label struct{ text, class string }

func width(s string, each float64) float64 { return float64(len([]rune(s))) * each }

func short(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8Error || !strconv.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if r := []rune(s); len(r) > shownText {
		return string(r[:shownText-1]) + "…"
	}
	return s
}

const utf8Error = '\uFFFD'

func (l *Lab) picture() *picture {
	p := &picture{lab: l}
	p.fold(p.layers())
	p.sort()
	p.place()
	p.nudge()
	p.wire()
	return p
}

// layers finds each node's row and each network's channel.
func (p *picture) layers() (boxes []*box) {
	l := p.lab
	index := map[string]int{}
	for i, n := range l.Networks {
		index[n.Name] = i
	}
	layerOf := make([]int, len(l.Networks))
	for i := range layerOf {
		layerOf[i] = -1
	}
	members := make([][]int, len(l.Networks))
	for i := range l.Nodes {
		b := &box{node: &l.Nodes[i], layer: -1, order: float64(i)}
		boxes = append(boxes, b)
		for j := range b.node.Interfaces {
			f := &b.node.Interfaces[j]
			if net, ok := index[f.Network]; ok {
				b.ports = append(b.ports, &port{box: b, f: f, net: net})
				members[net] = append(members[net], i)
			}
		}
	}
	next := 0.0
	spread := func(queue []int) {
		for len(queue) > 0 {
			net := queue[0]
			queue = queue[1:]
			for _, m := range members[net] {
				b := boxes[m]
				if b.layer >= 0 {
					continue
				}
				b.layer, b.order = layerOf[net]+1, next
				next++
				for _, q := range b.ports {
					if layerOf[q.net] < 0 {
						layerOf[q.net] = b.layer + 1
						queue = append(queue, q.net)
					}
				}
			}
		}
	}
	var roots []int
	for i, n := range l.Networks {
		if n.Uplink {
			layerOf[i] = 0
			roots = append(roots, i)
		}
	}
	spread(roots)
	for _, wire := range []bool{false, true} { // networks first: a link is between
		for i, n := range l.Networks {
			if n.Wire == wire && layerOf[i] < 0 {
				layerOf[i] = 0
				spread([]int{i})
			}
		}
	}
	for _, b := range boxes {
		if b.layer < 0 {
			b.layer, b.order = 1, next
			next++
		}
		b.leaf = true
		for _, q := range b.ports {
			q.up = layerOf[q.net] < b.layer
			b.leaf = b.leaf && q.up
		}
		b.measure(&l.Networks)
	}
	return boxes
}

// measure finds out how wide a box is: its name, and its interfaces side by side on either edge.
func (b *box) measure(networks *[]Network) {
	b.detail = short(b.node.detail())
	b.w = max(84, width(short(b.node.Name), nameWidth)+width(string(b.node.Kind), charWidth)+58, width(b.detail, charWidth)+26)
	var edges [2][]*port
	for _, q := range b.ports {
		q.labels = append([]string{q.f.Name}, addrTexts(q.f)...)
		if q.f.Promiscuous {
			q.labels[0] += " promiscuous"
		}
		if q.f.Mirror {
			q.labels[0] += " mirror"
		}
		if q.f.Impair != nil {
			lines := impairLines(q.f.Impair, false)
			q.labels, q.marked = append(q.labels, lines...), len(lines)
		}
		for i, s := range q.labels {
			q.labels[i] = short(s)
		}
		side := 0
		if !q.up {
			side = 1
		}
		edges[side] = append(edges[side], q)
	}
	for _, list := range edges {
		at := 16.0
		for _, q := range list {
			q.dx = at
			at += q.labelWidth() + 16
		}
		b.w = max(b.w, at-4)
	}
}

// slot is where on its edge the next port has its room, or the box ends.
func (q *port) slot() float64 {
	end := q.box.w - 10
	for _, o := range q.box.ports {
		if o.up == q.up && o.dx > q.dx {
			end = min(end, o.dx-16)
		}
	}
	return q.box.x + end
}

func (q *port) labelWidth() float64 {
	w := 0.0
	for _, s := range q.labels {
		w = max(w, width(s, charWidth))
	}
	return w
}

// detail is the line below a node's name.
func (n *Node) detail() string {
	var list []string
	switch n.Kind {
	case KindNetns:
		if len(n.Command) == 3 && n.Command[0] == "/bin/sh" && n.Command[1] == "-c" {
			list = append(list, n.Command[2])
		} else if len(n.Command) > 0 {
			list = append(list, strings.Join(n.Command, " "))
		}
	case KindQEMU, KindUML:
		switch {
		case n.Disk != "":
			list = append(list, base(n.Disk))
		case n.Kernel != "":
			list = append(list, base(n.Kernel))
		case n.UML != "":
			list = append(list, base(n.UML))
		case n.Kind == KindQEMU:
			list = append(list, "small guest")
		}
		if n.Memory > 0 {
			list = append(list, fmt.Sprintf("%d MiB", n.Memory))
		}
		if n.CPUs > 1 {
			list = append(list, fmt.Sprintf("%d CPUs", n.CPUs))
		}
	case KindExternal:
		list = append(list, "plugged in by hand")
	}
	if n.Forwarding {
		list = append([]string{"routes"}, list...)
	}
	return strings.Join(list, ", ")
}

// base is a file's name, on whatever system the lab was read.
func base(path string) string { return path[strings.LastIndexAny(path, `/\`)+1:] }

// fold makes rows of the layers: leaves first, so that who is in the next channel, too, is next to it.
func (p *picture) fold(boxes []*box) {
	layers := map[int][]*box{}
	most := 0
	for _, b := range boxes {
		layers[b.layer] = append(layers[b.layer], b)
		most = max(most, b.layer)
	}
	for layer := 1; layer <= most; layer += 2 {
		list := layers[layer]
		slices.SortStableFunc(list, func(a, b *box) int { return cmp.Compare(a.order, b.order) })
		total := -float64(boxGap)
		for _, b := range list {
			total += b.w + boxGap
		}
		if total <= rowWidth {
			p.rows = append(p.rows, list)
			continue
		}
		var leaves, others []*box
		for _, b := range list {
			if b.leaf {
				leaves = append(leaves, b)
			} else {
				others = append(others, b)
			}
		}
		for _, part := range [][]*box{leaves, others} {
			p.rows = append(p.rows, even(part)...)
		}
	}
	for i, row := range p.rows {
		for _, b := range row {
			b.row = i
		}
	}
}

// even splits boxes into as few rows as they need, of about as many each.
func even(list []*box) (rows [][]*box) {
	widest := 0.0
	for _, b := range list {
		widest = max(widest, b.w)
	}
	if len(list) == 0 {
		return nil
	}
	each := max(1, int((rowWidth+boxGap)/(widest+boxGap)))
	n := (len(list) + each - 1) / each
	each = (len(list) + n - 1) / n
	return slices.Collect(slices.Chunk(list, each))
}

// reach are the positions of those that share a network with q in another row.
func (p *picture) reach(q *port, rows ...int) (at []float64) {
	for _, r := range rows {
		if r < 0 || r >= len(p.rows) {
			continue
		}
		for _, b := range p.rows[r] {
			for _, o := range b.ports {
				if o.net == q.net {
					at = append(at, o.x())
				}
			}
		}
	}
	return at
}

// sort orders rows so that who belongs together is near: sweeps by mean position, down and up.
func (p *picture) sort() {
	best, least := p.orders(), p.spans()
	for sweep := range 8 {
		for i := range p.rows {
			r, from := i, i-1
			if sweep%2 == 1 {
				r = len(p.rows) - 1 - i
				from = r + 1
			}
			p.pack()
			key := map[*box]float64{}
			for _, b := range p.rows[r] {
				var all []float64
				for _, q := range b.ports {
					all = append(all, p.reach(q, from)...)
				}
				key[b] = b.x + b.w/2
				if len(all) > 0 {
					key[b] = mean(all)
				}
			}
			slices.SortStableFunc(p.rows[r], func(a, b *box) int { return cmp.Compare(key[a], key[b]) })
		}
		if s := p.spans(); s < least-1 {
			best, least = p.orders(), s
		}
	}
	p.rows = best
	p.pack()
}

func (p *picture) orders() [][]*box {
	rows := make([][]*box, len(p.rows))
	for i, r := range p.rows {
		rows[i] = slices.Clone(r)
	}
	return rows
}

// spans is how long all bars are, about.
func (p *picture) spans() (total float64) {
	p.pack()
	low, high := map[int]float64{}, map[int]float64{}
	for _, row := range p.rows {
		for _, b := range row {
			for _, q := range b.ports {
				if _, ok := low[q.net]; !ok {
					low[q.net], high[q.net] = q.x(), q.x()
				}
				low[q.net], high[q.net] = min(low[q.net], q.x()), max(high[q.net], q.x())
			}
		}
	}
	for net, x := range high {
		total += math.Round(x - low[net]) // whole numbers: the order of a map does not matter
	}
	return total
}

// pack puts boxes one beside the other, rows around one middle.
func (p *picture) pack() {
	for _, row := range p.rows {
		total := -float64(boxGap)
		for _, b := range row {
			total += b.w + boxGap
		}
		x := -total / 2
		for _, b := range row {
			b.x = x
			x += b.w + boxGap
		}
	}
}

func mean(list []float64) float64 {
	sum := 0.0
	for _, x := range list {
		sum += x
	}
	return sum / float64(len(list))
}

// place moves boxes to where their lines are straight, as far as their neighbours let them.
func (p *picture) place() {
	for pass := range 6 {
		for i := range p.rows {
			r, from := i, []int{i - 1}
			if pass%2 == 1 {
				r = len(p.rows) - 1 - i
				from = []int{r + 1}
			}
			row := p.rows[r]
			want := make([]float64, len(row))
			for j, b := range row {
				var all []float64
				for _, q := range b.ports {
					if at := p.reach(q, from...); len(at) > 0 {
						all = append(all, mean(at)-q.dx)
					}
				}
				want[j] = math.NaN()
				if len(all) > 0 {
					want[j] = mean(all)
				}
			}
			beside(row, want)
			settleRow(row, want)
		}
	}
	least := math.Inf(1)
	for _, row := range p.rows {
		for _, b := range row {
			least = min(least, b.x)
		}
	}
	for _, row := range p.rows {
		for _, b := range row {
			b.x = math.Round(b.x - least)
		}
	}
}

// nudge keeps a line from above and one from below to another network from lying on one another.
func (p *picture) nudge() {
	for r := 1; r < len(p.rows); r++ {
		for _, b := range p.rows[r] {
			for _, q := range b.ports {
				for q.up && slices.ContainsFunc(p.rows[r-1], func(o *box) bool {
					return slices.ContainsFunc(o.ports, func(a *port) bool {
						return !a.up && a.net != q.net && math.Abs(a.x()-q.x()) < 4
					})
				}) {
					q.dx += 7
				}
			}
		}
	}
}

// beside puts those that want nothing beside those that do, or leaves the row as it is.
func beside(row []*box, want []float64) {
	first := slices.IndexFunc(want, func(x float64) bool { return !math.IsNaN(x) })
	if first < 0 {
		for i, b := range row {
			want[i] = b.x
		}
		return
	}
	for i := first - 1; i >= 0; i-- {
		want[i] = want[i+1] - row[i].w - boxGap
	}
	for i := first + 1; i < len(row); i++ {
		if math.IsNaN(want[i]) {
			want[i] = want[i-1] + row[i-1].w + boxGap
		}
	}
}

// settleRow has boxes near to where they are wanted, in their order and apart.
func settleRow(row []*box, want []float64) {
	right, left := slices.Clone(want), slices.Clone(want)
	for i := 1; i < len(row); i++ {
		right[i] = max(right[i], right[i-1]+row[i-1].w+boxGap)
	}
	for i := len(row) - 2; i >= 0; i-- {
		left[i] = min(left[i], left[i+1]-row[i].w-boxGap)
	}
	for i, b := range row {
		b.x = (left[i] + right[i]) / 2
	}
}

// wire makes bars, and gives everything its height.
func (p *picture) wire() {
	p.channels = make([]*channel, len(p.rows)+1)
	for i := range p.channels {
		p.channels[i] = &channel{}
	}
	of := map[[2]int]*bar{}
	bars := make([]int, len(p.lab.Networks)) // how many a network has
	join := func(c, net int) *bar {
		if b := of[[2]int{c, net}]; b != nil {
			return b
		}
		n := &p.lab.Networks[net]
		b := &bar{net: net, n: n, x0: math.Inf(1), x1: math.Inf(-1)}
		of[[2]int{c, net}] = b
		p.channels[c].bars = append(p.channels[c].bars, b)
		bars[net]++
		return b
	}
	for r, row := range p.rows {
		for _, b := range row {
			for _, q := range b.ports {
				c := r
				if !q.up {
					c = r + 1
				}
				k := join(c, q.net)
				k.ports = append(k.ports, q)
				k.x0, k.x1 = min(k.x0, q.x()), max(k.x1, q.x())
				if !k.n.Wire {
					k.x1 = max(k.x1, q.slot())
				}
				room := float64(len(q.labels))*lineStep + 10
				if q.up {
					p.channels[c].below = max(p.channels[c].below, room)
				} else {
					p.channels[c].above = max(p.channels[c].above, room)
				}
			}
		}
	}
	trunks := 0
	for net := range p.lab.Networks {
		if bars[net] == 0 { // nobody is in it
			k := join(0, net)
			k.x0, k.x1 = 0, 60
			for _, o := range p.channels[0].bars {
				if o != k && len(o.ports) == 0 {
					k.x0 = max(k.x0, o.x1+200)
					k.x1 = k.x0 + 60
				}
			}
		}
		if n := p.lab.Networks[net]; n.Uplink && of[[2]int{0, net}] == nil {
			k := join(0, net)
			k.x0, k.x1 = 0, 0
		}
		if bars[net] > 1 {
			trunks++
			for c := range p.channels {
				if k := of[[2]int{c, net}]; k != nil {
					k.trunk = trunks
				}
			}
		}
	}
	p.left = margin + float64(trunks)*gutter
	for _, row := range p.rows {
		for _, b := range row {
			b.x += p.left
		}
	}
	named := map[int]bool{}
	y := titleHeight
	if slices.ContainsFunc(p.lab.Networks, func(n Network) bool { return n.Uplink }) {
		y += worldHeight + 6
	}
	for c, ch := range p.channels {
		ch.y = y
		for _, k := range ch.bars {
			if !math.IsInf(k.x0, 0) {
				k.x0, k.x1 = k.x0+p.left, k.x1+p.left
			}
			if !k.n.Wire {
				k.x0, k.x1 = k.x0-10, k.x1+10
			}
			if k.n.Uplink && c == 0 && k.trunk == 0 {
				k.x0 -= 14
			}
			if k.trunk > 0 {
				k.x0 = margin + float64(k.trunk-1)*gutter + 4
			}
			k.labelX = k.x0 + 6
			if k.trunk > 0 && c == 0 { // right of all trunks
				k.labelX = p.left
			} else if k.n.Uplink && c == 0 {
				k.labelX = k.x0 + 16
			}
			if k.n.Wire {
				k.labelX = k.x0 + 8
			}
			if !named[k.net] {
				named[k.net] = true
				k.labels = k.n.labels()
				if !k.n.Wire {
					k.x1 = max(k.x1, k.labelX+k.labelWidth()+4)
					for _, q := range k.ports { // a label right of the first line from above has room
						if !q.up {
							k.x1 = max(k.x1, min(q.x()+8+k.labelWidth()+4, k.labelX+2*k.labelWidth()))
							break
						}
					}
				}
			}
		}
		p.tracks(ch)
		ch.clear()
		y += ch.height
		if c < len(p.rows) {
			for _, b := range p.rows[c] {
				b.y = y
				p.width = max(p.width, b.x+b.w)
			}
			y += boxHeight
		}
		for _, k := range ch.bars {
			p.width = max(p.width, k.x1, k.labelX+k.labelWidth())
		}
	}
	p.width += margin
	p.height = y + margin
}

// clear moves labels along their bars, out of the way of lines.
func (ch *channel) clear() {
	type line struct{ x, from, to float64 }
	var lines []line
	for _, k := range ch.bars {
		for _, q := range k.ports {
			if q.up {
				lines = append(lines, line{q.x(), k.y, math.Inf(1)})
			} else {
				lines = append(lines, line{q.x(), math.Inf(-1), k.y})
			}
		}
	}
	slices.SortFunc(lines, func(a, b line) int { return cmp.Compare(a.x, b.x) })
	for _, k := range ch.bars {
		if len(k.labels) == 0 || k.x1-k.x0 < 20 {
			continue
		}
		w := k.labelWidth()
		high := k.labelTop()
		free := func(x float64) bool {
			return x >= margin && !slices.ContainsFunc(lines, func(l line) bool { return l.x > x-7 && l.x < x+w+4 && l.from < k.y-6 && l.to > high }) &&
				!slices.ContainsFunc(ch.bars, func(o *bar) bool {
					return o != k && len(o.labels) > 0 && o.labelX < x+w+4 && x < o.labelX+o.labelWidth()+4 && o.labelTop() < k.y && high < o.y
				})
		}
		if free(k.labelX) {
			continue
		}
		var places []float64
		for _, l := range lines {
			if x := l.x + 8; x > k.labelX && !k.n.Wire && x+w <= max(k.x1, k.labelX+w) {
				places = append(places, x)
			}
		}
		if k.n.Wire { // on either side
			places = []float64{k.x1 + 8, k.x0 - w - 8}
		}
		if at := slices.IndexFunc(places, free); at >= 0 {
			k.labelX = places[at]
		}
	}
}

// labelTop is the upper edge of a bar's text.
func (k *bar) labelTop() float64 { return k.y - 8 - float64(len(k.labels))*lineStep }

func (k *bar) labelWidth() float64 {
	w := 0.0
	for _, s := range k.labels {
		w = max(w, width(s.text, charWidth+0.3))
	}
	return w
}

// labels are what stands above a network's bar, or beside a link.
func (n *Network) labels() (list []label) {
	if n.Uplink {
		for _, s := range n.doors() {
			list = append(list, label{short(s), ""})
		}
	}
	name := short(n.Name)
	for _, p := range []netip.Prefix{n.Prefix4, n.Prefix6} {
		if p.IsValid() && !n.Wire {
			name += "  " + p.String()
		}
	}
	list = append(list, label{name, "net"})
	if n.Wire { // narrow
		for _, p := range []netip.Prefix{n.Prefix4, n.Prefix6} {
			if p.IsValid() {
				list = append(list, label{p.String(), ""})
			}
		}
	}
	plain := *n
	plain.Impair = nil
	if t := plain.traits(); t != nil {
		list = append(list, label{strings.Join(t, ", "), ""})
	}
	if n.Impair != nil {
		for _, s := range impairLines(n.Impair, n.Wire) {
			list = append(list, label{short(s), "bad"})
		}
	}
	return list
}

// tracks gives bars that lie beside one another in x different heights.
func (p *picture) tracks(ch *channel) {
	if len(ch.bars) == 0 {
		ch.height = ch.above + ch.below + 16
		return
	}
	side := func(k *bar) int { // those with somebody above only are next to them
		s := 0
		for _, q := range k.ports {
			if q.up {
				s = max(s, 1)
			} else {
				s = min(s, -1)
			}
		}
		return s
	}
	slices.SortStableFunc(ch.bars, func(a, b *bar) int { return cmp.Or(side(a)-side(b), cmp.Compare(a.x0, b.x0), a.net-b.net) })
	type span struct{ from, to float64 }
	var tracks [][]span
	var heights []float64
	for _, k := range ch.bars {
		from, to := k.x0-5, k.x1+5
		if len(k.labels) > 0 {
			to = max(to, k.labelX+k.labelWidth()+5)
		}
		for k.track = 0; ; k.track++ {
			if k.track == len(tracks) {
				tracks, heights = append(tracks, nil), append(heights, 0)
			}
			if !slices.ContainsFunc(tracks[k.track], func(s span) bool { return from < s.to && s.from < to }) {
				break
			}
		}
		tracks[k.track] = append(tracks[k.track], span{from, to})
		heights[k.track] = max(heights[k.track], float64(len(k.labels))*lineStep+16)
	}
	y := ch.y + ch.above
	ys := make([]float64, len(tracks))
	for i, h := range heights {
		y += h
		ys[i] = y
	}
	for _, k := range ch.bars {
		k.y = ys[k.track]
	}
	ch.height = y - ch.y + ch.below + 8
}
