package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
)

// historyLen is how many rates a guest's line of them shows at most, one a second: what is still before one's eyes.
const historyLen = 30

// history is what a guest moved lately.
type history struct {
	at       time.Time
	rx, tx   uint64
	up, down []float64 // bytes a second, the newest last
}

func (h *history) add(at time.Time, rx, tx uint64) {
	if !h.at.IsZero() && at.After(h.at) && rx >= h.rx && tx >= h.tx {
		s := at.Sub(h.at).Seconds()
		keep := func(list []float64, n uint64) []float64 {
			list = append(list, float64(n)/s)
			return list[max(0, len(list)-historyLen):]
		}
		h.up, h.down = keep(h.up, rx-h.rx), keep(h.down, tx-h.tx)
	}
	h.at, h.rx, h.tx = at, rx, tx
}

func (h *history) last() (up, down float64) {
	if n := len(h.up); n > 0 {
		return h.up[n-1], h.down[n-1]
	}
	return 0, 0
}

// asciiOnly says that the terminal's language has no block characters (POSIX 8.2: the first of these that is set counts).
func asciiOnly(env func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := env(name); v != "" {
			v = strings.ToLower(strings.ReplaceAll(v, "-", ""))
			return !strings.Contains(v, "utf8")
		}
	}
	return false
}

// spark draws rates as columns, the highest of them in full.
func spark(list []float64, width int, ascii bool) string {
	steps := []rune("▁▂▃▄▅▆▇█")
	if ascii {
		steps = []rune(" .:-=+*#")
	}
	list = list[max(0, len(list)-width):]
	most := 1.0
	for _, v := range list {
		most = max(most, v)
	}
	var b strings.Builder
	b.WriteString(strings.Repeat(" ", width-len(list)))
	for _, v := range list {
		b.WriteRune(steps[int(v/most*float64(len(steps)-1)+0.5)])
	}
	return b.String()
}

// rate is bytes a second, as little as there is room for.
func rate(v float64) string {
	if v < 1 {
		return "0"
	}
	return size(uint64(v))
}

// column is one of a view's. Of those for which there is no room the ones with the lowest keep go first; one with width 0
// has what is left.
type column[R any] struct {
	title       string
	width, keep int
	right       bool
	cell        func(R) string
}

// flexLeast is the least of a column that has what is left.
const flexLeast = 12

// layout draws a heading and rows within width.
func layout[R any](cols []column[R], rows []R, width int) (lines []string) {
	need := func() int {
		n := 0
		for i, c := range cols {
			n += cmp.Or(c.width, flexLeast)
			if i > 0 {
				n++
			}
		}
		return n
	}
	cols = slices.Clone(cols)
	for len(cols) > 1 && need() > width {
		least := 0
		for i, c := range cols {
			if c.keep < cols[least].keep {
				least = i
			}
		}
		cols = slices.Delete(cols, least, least+1)
	}
	flex := 0
	for _, c := range cols {
		if c.width == 0 {
			flex++
		}
	}
	for i := range cols {
		if cols[i].width == 0 {
			cols[i].width = flexLeast + max(0, width-need())/flex
			flex--
		}
	}
	line := func(text func(c column[R]) string) string {
		var b strings.Builder
		for i, c := range cols {
			if i > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(cell(text(c), c.width, c.right))
		}
		return cell(b.String(), width, false)
	}
	lines = append(lines, line(func(c column[R]) string { return c.title }))
	for _, r := range rows {
		lines = append(lines, line(func(c column[R]) string { return visible(c.cell(r)) }))
	}
	return lines
}

// cell is s in exactly width columns of the terminal.
func cell(s string, width int, right bool) string {
	s = ansi.Truncate(s, width, "…")
	gap := strings.Repeat(" ", max(0, width-ansi.StringWidth(s)))
	if right {
		return gap + s
	}
	return s + gap
}

type order[R any] struct {
	name string
	less func(a, b *R) int // the first one first
}

func most[N cmp.Ordered](a, b N) int { return cmp.Compare(b, a) }

var (
	guestOrders = []order[topGuest]{
		{"rate", func(a, b *topGuest) int {
			return cmp.Or(most(a.up+a.down, b.up+b.down), strings.Compare(a.key(), b.key()))
		}},
		{"up", func(a, b *topGuest) int { return cmp.Or(most(a.up, b.up), strings.Compare(a.key(), b.key())) }},
		{"down", func(a, b *topGuest) int { return cmp.Or(most(a.down, b.down), strings.Compare(a.key(), b.key())) }},
		{"bytes", func(a, b *topGuest) int { return most(a.RxBytes+a.TxBytes, b.RxBytes+b.TxBytes) }},
		{"flows", func(a, b *topGuest) int { return cmp.Or(most(a.Flows, b.Flows), strings.Compare(a.key(), b.key())) }},
		{"drops", func(a, b *topGuest) int { return cmp.Or(most(a.drops, b.drops), strings.Compare(a.key(), b.key())) }},
		{"name", func(a, b *topGuest) int { return strings.Compare(guestName(a.GuestInfo), guestName(b.GuestInfo)) }},
	}
	flowOrders = []order[topFlow]{
		{"rate", func(a, b *topFlow) int { return cmp.Or(most(a.up+a.down, b.up+b.down), most(a.ID, b.ID)) }},
		{"up", func(a, b *topFlow) int { return cmp.Or(most(a.up, b.up), most(a.ID, b.ID)) }},
		{"down", func(a, b *topFlow) int { return cmp.Or(most(a.down, b.down), most(a.ID, b.ID)) }},
		{"bytes", func(a, b *topFlow) int {
			return cmp.Or(most(a.UpBytes+a.DownBytes, b.UpBytes+b.DownBytes), most(a.ID, b.ID))
		}},
		{"newest", func(a, b *topFlow) int { return most(a.ID, b.ID) }},
		{"guest", func(a, b *topFlow) int { return cmp.Or(strings.Compare(a.Guest, b.Guest), most(a.ID, b.ID)) }},
		{"to", func(a, b *topFlow) int {
			return cmp.Or(strings.Compare(a.name, b.name), a.Dst.Compare(b.Dst), most(a.ID, b.ID))
		}},
	}
	forwardOrders = []order[topForward]{
		{"rule", func(a, b *topForward) int {
			return cmp.Or(strings.Compare(a.network, b.network), strings.Compare(a.Text, b.Text))
		}},
		{"rate", func(a, b *topForward) int { return cmp.Or(most(a.rate, b.rate), strings.Compare(a.Text, b.Text)) }},
		{"open", func(a, b *topForward) int { return cmp.Or(most(a.Active, b.Active), strings.Compare(a.Text, b.Text)) }},
		{"bytes", func(a, b *topForward) int {
			return cmp.Or(most(a.ToGuest+a.ToClient, b.ToGuest+b.ToClient), strings.Compare(a.Text, b.Text))
		}},
	}
	topOrders = [3][]string{orderNames(guestOrders), orderNames(flowOrders), orderNames(forwardOrders)}
)

func orderNames[R any](list []order[R]) (names []string) {
	for _, o := range list {
		names = append(names, o.name)
	}
	return names
}

func sortBy[R any](list []*R, less func(a, b *R) int, reverse bool) {
	slices.SortStableFunc(list, func(a, b *R) int {
		if reverse {
			a, b = b, a
		}
		return less(a, b)
	})
}

func (g topGuest) text() string {
	parts := []string{g.network, g.ID, g.Name, g.MAC, g.Link}
	for _, a := range g.Addrs {
		parts = append(parts, a.String())
	}
	return strings.Join(parts, " ")
}

func (f topForward) text() string { return f.network + " " + f.Text + " " + f.State }

var (
	styleTitle  = lipgloss.NewStyle().Bold(true)
	styleHead   = lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Cyan)
	styleChosen = lipgloss.NewStyle().Reverse(true)
	styleFault  = lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Red)
	styleAsk    = lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Yellow)
	styleFaint  = lipgloss.NewStyle().Faint(true)
)

// Lines of the screen beside the table's rows: what daemon, the view, the heading, the foot.
const (
	topLines    = 4
	topMinWidth = 20
)

// rows is how many of the table there is room for.
func (m *top) rows() int { return max(0, m.height-topLines) }

// View implements tea.Model.
func (m *top) View() tea.View {
	v := tea.NewView(m.draw())
	v.AltScreen = true
	v.WindowTitle = "vmnetd top"
	return v
}

func (m *top) draw() string {
	switch {
	case m.width == 0:
		return "" // nobody has said yet how large it is
	case m.width < topMinWidth || m.height < topLines+1:
		return cell("too small", m.width, false)
	}
	fit := func(s string) string { return cell(s, m.width, false) }
	lines := []string{styleTitle.Render(fit(m.titleLine())), m.viewLine(fit)}
	var table []string
	from := m.window()
	several := len(m.data.status.Networks) > 1
	switch m.view {
	case viewGuests:
		table = layout(m.guestColumns(several), part(m.shown.guests, from, m.rows()), m.width)
	case viewFlows:
		table = layout(m.flowColumns(several), part(m.shown.flows, from, m.rows()), m.width)
	case viewForwards:
		table = layout(forwardColumns(several), part(m.shown.forwards, from, m.rows()), m.width)
	}
	lines = append(lines, styleHead.Render(table[0]))
	for i, l := range table[1:] {
		switch {
		case m.failed != nil:
			l = styleFaint.Render(l)
		case from+i == m.at[m.view]:
			l = styleChosen.Render(l)
		}
		lines = append(lines, l)
	}
	if len(table) == 1 && m.rows() > 0 {
		lines = append(lines, styleFaint.Render(fit(m.nothing())))
	}
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	return strings.Join(append(lines[:m.height-1], m.footLine(fit)), "\n")
}

func part[R any](list []R, from, n int) []R {
	from = min(from, len(list))
	return list[from:min(len(list), from+n)]
}

// window is the first row on the screen, moved as little as shows the chosen one.
func (m *top) window() int {
	first, at, n := &m.first[m.view], m.at[m.view], m.rows()
	*first = min(max(*first, at-n+1), at)
	*first = max(0, min(*first, m.count()-n))
	return *first
}

func (m *top) nothing() string {
	if m.data.at.IsZero() {
		return "asking the daemon"
	}
	if m.filter != "" {
		return "nothing with " + m.filter + " in it; esc shows all"
	}
	return [...]string{"no guest is plugged in", "no conversation", "no port forward"}[m.view]
}

func (m *top) titleLine() string {
	st := m.data.status
	up, down, flows := 0.0, 0.0, 0
	for _, g := range m.data.guests {
		up, down = up+g.up, down+g.down
	}
	var names []string
	for _, n := range st.Networks {
		names = append(names, n.Name)
		flows += n.Flows
	}
	since := ""
	if len(st.Networks) > 0 {
		since = ", up " + ago(st.Networks[0].Since)
	}
	return visible(fmt.Sprintf("vmnetd %s%s  network %s  %d guests  %d flows  up %s/s  down %s/s", st.Version, since, strings.Join(names, ","),
		len(m.data.guests), flows, rate(up), rate(down)))
}

func (m *top) viewLine(fit func(string) string) string {
	var tabs []string
	for i, name := range topViews {
		tab := fmt.Sprintf("%d %s", i+1, name)
		if i == m.view {
			tab = "[" + tab + "]"
		}
		tabs = append(tabs, tab)
	}
	s := strings.Join(tabs, "  ") + "   by " + topOrders[m.view][m.order[m.view]]
	if m.reverse[m.view] {
		s += ", reversed"
	}
	if m.view == viewFlows && m.guest != "" {
		s += "   of " + visible(m.guestName)
	}
	if m.filter != "" && !m.typing {
		s += "   /" + m.filter
	}
	if m.paused {
		s += "   PAUSED"
	}
	if n := m.count(); n > m.rows() {
		s += fmt.Sprintf("   %d to %d of %d", m.window()+1, min(n, m.window()+m.rows()), n)
	}
	return fit(s)
}

func (m *top) footLine(fit func(string) string) string {
	switch {
	case m.confirm != nil:
		return styleAsk.Render(fit(fmt.Sprintf("end the wire of %s (%s)? y or n", visible(guestName(m.confirm.GuestInfo)), m.confirm.ID)))
	case m.typing:
		return fit("/" + m.filter + "_")
	case m.failed != nil:
		return styleFault.Render(fit(m.fault()))
	case m.note != "":
		return styleAsk.Render(fit(visible(m.note)))
	}
	return styleFaint.Render(fit("q quit  tab view  s sort  r reverse  / filter  p pause  enter its flows  K end wire"))
}

func (m *top) guestColumns(several bool) []column[*topGuest] {
	cols := []column[*topGuest]{
		{title: "GUEST", width: 5, keep: 4, cell: func(g *topGuest) string { return g.ID }},
		{title: "NAME", keep: 9, cell: func(g *topGuest) string { return cmp.Or(g.Name, g.MAC) }},
		{title: "ADDRESS", width: 15, keep: 5, cell: func(g *topGuest) string {
			if len(g.Addrs) == 0 {
				return "-"
			}
			return g.Addrs[0].String()
		}},
		{title: "UP/s", width: 7, keep: 8, right: true, cell: func(g *topGuest) string { return rate(g.up) }},
		{title: "", width: historyLen / 2, keep: 1, cell: func(g *topGuest) string { return spark(g.past.up, historyLen/2, m.ascii) }},
		{title: "DOWN/s", width: 7, keep: 8, right: true, cell: func(g *topGuest) string { return rate(g.down) }},
		{title: "", width: historyLen / 2, keep: 2, cell: func(g *topGuest) string { return spark(g.past.down, historyLen/2, m.ascii) }},
		{title: "FLOWS", width: 6, keep: 7, right: true, cell: func(g *topGuest) string { return fmt.Sprint(g.Flows) }},
		{title: "DROPS", width: 6, keep: 6, right: true, cell: func(g *topGuest) string { return size(g.drops) }},
		{title: "SINCE", width: 7, keep: 3, right: true, cell: func(g *topGuest) string { return ago(g.Since) }},
	}
	if several {
		cols = slices.Insert(cols, 0, column[*topGuest]{title: "NETWORK", width: 8, keep: 4, cell: func(g *topGuest) string { return g.network }})
	}
	return cols
}

func (m *top) flowColumns(several bool) []column[*topFlow] {
	now := m.now()
	names := map[string]string{}
	for _, g := range m.data.guests {
		names[g.key()] = cmp.Or(g.Name, g.ID)
	}
	cols := []column[*topFlow]{
		{title: "GUEST", width: 10, keep: 6, cell: func(f *topFlow) string { return cmp.Or(names[f.Network+" "+f.Guest], f.Guest) }},
		{title: "PROTO", width: 5, keep: 5, cell: func(f *topFlow) string { return f.Proto.String() }},
		{title: "WAY", width: 3, keep: 3, cell: func(f *topFlow) string { return f.Dir.String() }},
		{title: "FROM", width: 21, keep: 1, cell: func(f *topFlow) string { return f.Src.String() }},
		{title: "TO", keep: 9, cell: func(f *topFlow) string {
			if f.name != "" {
				return fmt.Sprintf("%s:%d", f.name, f.Dst.Port())
			}
			return f.Dst.String()
		}},
		{title: "UP/s", width: 7, keep: 8, right: true, cell: func(f *topFlow) string { return rate(f.up) }},
		{title: "DOWN/s", width: 7, keep: 8, right: true, cell: func(f *topFlow) string { return rate(f.down) }},
		{title: "BYTES", width: 7, keep: 4, right: true, cell: func(f *topFlow) string { return size(f.UpBytes + f.DownBytes) }},
		{title: "STATE", width: 7, keep: 5, cell: func(f *topFlow) string { return cmp.Or(f.Waits, f.State) }},
		{title: "IDLE", width: 6, keep: 2, right: true, cell: func(f *topFlow) string {
			if f.up+f.down > 0 {
				return "0s"
			}
			return while(f.idle(now))
		}},
		{title: "AGE", width: 6, keep: 2, right: true, cell: func(f *topFlow) string { return ago(f.Opened) }},
	}
	if several {
		cols = slices.Insert(cols, 0, column[*topFlow]{title: "NETWORK", width: 8, keep: 3, cell: func(f *topFlow) string { return f.Network }})
	}
	return cols
}

func forwardColumns(several bool) []column[*topForward] {
	cols := []column[*topForward]{
		{title: "RULE", keep: 9, cell: func(f *topForward) string { return f.Text }},
		{title: "STATE", width: 11, keep: 8, cell: func(f *topForward) string { return f.State }},
		{title: "GUEST", width: 7, keep: 7, cell: func(f *topForward) string { return string(f.Guest) }},
		{title: "OPEN", width: 5, keep: 6, right: true, cell: func(f *topForward) string { return fmt.Sprint(f.Active) }},
		{title: "ACCEPTED", width: 8, keep: 3, right: true, cell: func(f *topForward) string { return fmt.Sprint(f.Accepted) }},
		{title: "REFUSED", width: 7, keep: 3, right: true, cell: func(f *topForward) string { return fmt.Sprint(f.Refused) }},
		{title: "RATE/s", width: 7, keep: 5, right: true, cell: func(f *topForward) string { return rate(f.rate) }},
		{title: "BYTES", width: 7, keep: 4, right: true, cell: func(f *topForward) string { return size(f.ToGuest + f.ToClient) }},
		{title: "LAST ERROR", width: 20, keep: 1, cell: func(f *topForward) string { return cmp.Or(f.LastError, "-") }},
	}
	if several {
		cols = slices.Insert(cols, 0, column[*topForward]{title: "NETWORK", width: 8, keep: 4, cell: func(f *topForward) string { return f.network }})
	}
	return cols
}
