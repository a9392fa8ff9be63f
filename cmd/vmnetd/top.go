package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/portforward"
)

// What 'vmnetd top' asks the daemon for, and what becomes of keys. topview.go draws it, topflows.go keeps the conversations.

const (
	// topEvery is how often the daemon is asked, and so what a rate is the mean of.
	topEvery = time.Second
	// topPatience is how long an answer may take before the screen says that there is none.
	topPatience = 5 * time.Second
)

func topCommand() *cobra.Command {
	in := &inspector{}
	var view topViewFlag
	c := in.lasting("top", "Watch guests, conversations and forwards in the terminal", cobra.NoArgs, func(ctx context.Context, c *control.Client, _ []string) error {
		if !term.IsTerminal(os.Stdin.Fd()) || !term.IsTerminal(os.Stdout.Fd()) {
			return hintError{errors.New("top needs a terminal, for its keys and its screen"),
				"for a script there is 'vmnetd vm ls -o json' and 'vmnetd flows --follow -o json'"}
		}
		if _, err := c.Status(ctx); err != nil { // said where it stays, not on a screen that goes
			return err
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		m := newTop(in, ctx)
		m.view = int(view)
		defer m.follow(false)
		_, err := tea.NewProgram(m, tea.WithContext(ctx)).Run()
		if errors.Is(err, tea.ErrInterrupted) {
			return exitError(130) // as a shell says it of SIGINT
		}
		return err
	})
	c.Long = `Watch guests, conversations and forwards in the terminal, with their rates, as they change. If the daemon goes away the screen
says so, and goes on when it is back.

  1 2 3, tab     guests, flows, forwards          s S   the next order, the one before
  up down j k    choose; enter: a guest's flows   r     the other way round
  /              filter by words; esc: no filter  p     pause
  K              end a guest's wire, after y      q     quit

Rates are bytes a second: up is from the guest. NO_COLOR is respected.`
	c.Example = "  vmnetd top\n  vmnetd top --view flows --network lab"
	c.Flags().Var(&view, "view", "begin with `VIEW`: guests, flows or forwards")
	for _, name := range []string{"output", "no-headers"} { // a screen has one form
		c.Flags().MarkHidden(name)
	}
	return c
}

// The views of top.
const (
	viewGuests = iota
	viewFlows
	viewForwards
)

var topViews = []string{"guests", "flows", "forwards"}

type topViewFlag int

func (v *topViewFlag) String() string { return topViews[*v] }
func (v *topViewFlag) Type() string   { return "view" }
func (v *topViewFlag) Set(s string) error {
	for i, name := range topViews {
		if s == name {
			*v = topViewFlag(i)
			return nil
		}
	}
	return errors.New(didYouMean(s, topViews))
}

// topGuest is a guest of a network, with what it moved lately.
type topGuest struct {
	network string
	backend.GuestInfo
	up, down float64
	drops    uint64
	past     *history
}

func (g topGuest) key() string { return g.network + " " + g.ID }

type topForward struct {
	network string
	portforward.Status
	rate float64
}

// topData is what the daemon has said at one moment.
type topData struct {
	at       time.Time
	status   control.Status
	guests   []topGuest
	forwards []topForward
	err      error
}

// top is the screen.
type top struct {
	in  *inspector
	ctx context.Context

	width, height int
	view          int
	order         [3]int  // by view
	reverse       [3]bool //
	chosen        [3]string
	at            [3]int // where the chosen one was
	first         [3]int // row on the screen
	filter        string
	typing        bool
	guest         string // in the flows' view: only of this one, a topGuest's key
	guestName     string
	paused        bool
	confirm       *topGuest // whose wire is to be ended, if y comes next
	note          string    // what came of it

	data   topData // shown
	failed error   // why there is nothing newer
	since  time.Time
	past   map[string]*history
	moved  map[string]movedAt // of forwards
	shown  struct {
		guests   []*topGuest
		flows    []*topFlow
		forwards []*topForward
	}
	flows *flowStore
	stop  func() // ends following the conversations
	ascii bool
	now   func() time.Time
}

type movedAt struct {
	n  uint64
	at time.Time
}

func newTop(in *inspector, ctx context.Context) *top {
	return &top{in: in, ctx: ctx, past: map[string]*history{}, moved: map[string]movedAt{}, flows: newFlowStore(), ascii: asciiOnly(os.Getenv), now: time.Now}
}

// client is one more of the daemon's, for what is asked meanwhile.
func (m *top) client() *control.Client {
	c := anotherClient(m.in.control)
	c.Network = m.in.network
	return c
}

// ask asks for all that is not followed.
func (m *top) ask() tea.Msg {
	ctx, cancel := context.WithTimeout(m.ctx, topPatience)
	defer cancel()
	c := m.client()
	defer c.Close()
	d := topData{}
	if d.status, d.err = c.Status(ctx); d.err != nil {
		return d
	}
	for _, n := range d.status.Networks {
		c.Network = n.Name
		guests, err := c.Guests(ctx)
		if err != nil {
			d.err = err
			return d
		}
		for _, g := range guests {
			one := topGuest{network: n.Name, GuestInfo: g}
			for _, count := range g.Dropped {
				one.drops += count
			}
			d.guests = append(d.guests, one)
		}
		forwards, err := c.Forwards(ctx)
		if err != nil {
			d.err = err
			return d
		}
		for _, f := range forwards {
			d.forwards = append(d.forwards, topForward{network: n.Name, Status: f})
		}
	}
	d.at = time.Now()
	return d
}

type topTick struct{}

// kicked is what came of ending a wire.
type kicked struct {
	name string
	err  error
}

func (m *top) kick(g topGuest) tea.Cmd {
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(m.ctx, topPatience)
		defer cancel()
		c := m.client()
		defer c.Close()
		c.Network = g.network
		return kicked{guestName(g.GuestInfo), c.Kick(ctx, g.ID)}
	}
}

// Init implements tea.Model.
func (m *top) Init() tea.Cmd {
	m.follow(m.view == viewFlows)
	return m.ask
}

// Update implements tea.Model.
func (m *top) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case topData:
		m.take(msg)
		return m, tea.Tick(topEvery, func(time.Time) tea.Msg { return topTick{} })
	case topTick:
		return m, m.ask
	case kicked:
		m.note = "the wire of " + msg.name + " was ended"
		if msg.err != nil {
			m.note = msg.err.Error()
		}
	case tea.PasteMsg:
		if m.typing {
			m.filter += visible(msg.Content)
			m.arrange()
		}
	case tea.KeyPressMsg:
		return m, m.key(msg)
	}
	return m, nil
}

// take takes what the daemon said.
func (m *top) take(d topData) {
	if d.err != nil {
		if m.failed == nil {
			m.since = m.now()
		}
		m.failed = d.err
		return
	}
	if m.data.status.PID != d.status.PID { // another daemon: nothing of before is comparable
		m.past, m.moved = map[string]*history{}, map[string]movedAt{}
	}
	m.failed = nil
	seen := map[string]*history{}
	for i := range d.guests {
		g := &d.guests[i]
		h := m.past[g.key()]
		if h == nil {
			h = &history{}
		}
		h.add(d.at, g.RxBytes, g.TxBytes)
		g.past = h
		g.up, g.down = h.last()
		seen[g.key()] = h
	}
	m.past = seen
	moved := map[string]movedAt{}
	for i := range d.forwards {
		f := &d.forwards[i]
		key := f.network + " " + f.ID
		now := movedAt{f.ToGuest + f.ToClient, d.at}
		if old, ok := m.moved[key]; ok && now.n >= old.n && d.at.After(old.at) {
			f.rate = float64(now.n-old.n) / d.at.Sub(old.at).Seconds()
		}
		moved[key] = now
	}
	m.moved = moved
	if !m.paused {
		m.data = d
		m.arrange()
	} else {
		m.data.status.PID = d.status.PID
	}
}

// follow begins or ends to follow the conversations, which is done while they are looked at.
func (m *top) follow(on bool) {
	switch {
	case on && m.stop == nil:
		ctx, cancel := context.WithCancel(m.ctx)
		done := make(chan struct{})
		c := m.client()
		go func() {
			defer close(done)
			defer c.Close()
			m.flows.follow(ctx, c)
		}()
		m.stop = func() { cancel(); <-done }
	case !on && m.stop != nil:
		m.stop()
		m.stop = nil
	}
}

func (m *top) show(view int) {
	m.view, m.note = view, ""
	m.follow(view == viewFlows)
	m.arrange()
}

// key does what a key says.
func (m *top) key(msg tea.KeyPressMsg) tea.Cmd {
	k := msg.String()
	if k == "ctrl+c" {
		return tea.Quit
	}
	if m.confirm != nil {
		g := *m.confirm
		m.confirm = nil
		if k == "y" || k == "Y" {
			return m.kick(g)
		}
		m.note = "nothing was ended"
		return nil
	}
	if m.typing {
		switch k {
		case "enter":
			m.typing = false
		case "esc":
			m.typing, m.filter = false, ""
		case "backspace":
			if r := []rune(m.filter); len(r) > 0 {
				m.filter = string(r[:len(r)-1])
			}
		default:
			m.filter += visible(msg.Text)
		}
		m.arrange()
		return nil
	}
	m.note = ""
	page := max(1, m.rows()-1)
	switch k {
	case "q":
		return tea.Quit
	case "1", "2", "3":
		m.show(int(k[0] - '1'))
	case "tab", "right", "l":
		m.show((m.view + 1) % len(topViews))
	case "shift+tab", "left", "h":
		m.show((m.view + len(topViews) - 1) % len(topViews))
	case "up", "k":
		m.move(-1)
	case "down", "j":
		m.move(1)
	case "pgup":
		m.move(-page)
	case "pgdown":
		m.move(page)
	case "home", "g":
		m.move(-m.count())
	case "end", "G":
		m.move(m.count())
	case "s":
		m.order[m.view] = (m.order[m.view] + 1) % len(topOrders[m.view])
		m.arrange()
	case "S":
		m.order[m.view] = (m.order[m.view] + len(topOrders[m.view]) - 1) % len(topOrders[m.view])
		m.arrange()
	case "r":
		m.reverse[m.view] = !m.reverse[m.view]
		m.arrange()
	case "p", "space":
		m.paused = !m.paused
	case "/":
		m.typing = true
	case "esc":
		m.filter, m.guest, m.guestName = "", "", ""
		m.arrange()
	case "enter":
		if g := m.chosenGuest(); g != nil {
			m.guest, m.guestName = g.key(), guestName(g.GuestInfo)
			m.show(viewFlows)
		}
	case "K":
		if m.confirm = m.chosenGuest(); m.confirm == nil {
			m.note = "choose a guest first, in the guests' view"
		}
	}
	return nil
}

// chosenGuest is nil where none is.
func (m *top) chosenGuest() *topGuest {
	if m.view != viewGuests || m.at[viewGuests] >= len(m.shown.guests) {
		return nil
	}
	g := *m.shown.guests[m.at[viewGuests]] // as it is now
	return &g
}

// count is how many rows the view has.
func (m *top) count() int {
	return [...]int{len(m.shown.guests), len(m.shown.flows), len(m.shown.forwards)}[m.view]
}

// keyAt names a row of the view, also when it stands elsewhere later.
func (m *top) keyAt(i int) string {
	switch m.view {
	case viewGuests:
		return m.shown.guests[i].key()
	case viewFlows:
		return m.shown.flows[i].key()
	}
	return m.shown.forwards[i].network + " " + m.shown.forwards[i].ID
}

func (m *top) move(by int) {
	if m.count() == 0 {
		return
	}
	m.at[m.view] = min(max(0, m.at[m.view]+by), m.count()-1)
	m.chosen[m.view] = m.keyAt(m.at[m.view])
}

// arrange picks and sorts what is shown, and finds the chosen row again.
func (m *top) arrange() {
	words := filterWords(m.filter)
	m.shown.guests = m.shown.guests[:0:0]
	for i := range m.data.guests {
		if g := &m.data.guests[i]; matchesWords(words, g.text) {
			m.shown.guests = append(m.shown.guests, g)
		}
	}
	sortBy(m.shown.guests, guestOrders[m.order[viewGuests]].less, m.reverse[viewGuests])
	m.shown.forwards = m.shown.forwards[:0:0]
	for i := range m.data.forwards {
		if f := &m.data.forwards[i]; matchesWords(words, f.text) {
			m.shown.forwards = append(m.shown.forwards, f)
		}
	}
	sortBy(m.shown.forwards, forwardOrders[m.order[viewForwards]].less, m.reverse[viewForwards])
	if m.view == viewFlows {
		if !m.paused || m.shown.flows == nil {
			m.shown.flows = m.flows.pick(m.guest, words, m.now())
		}
		sortBy(m.shown.flows, flowOrders[m.order[viewFlows]].less, m.reverse[viewFlows])
	}
	if n := m.count(); n > 0 {
		at := min(m.at[m.view], n-1)
		for i := range n {
			if m.keyAt(i) == m.chosen[m.view] {
				at = i
				break
			}
		}
		if m.chosen[m.view] != "" {
			m.at[m.view] = at
			m.chosen[m.view] = m.keyAt(at)
		} else {
			m.at[m.view] = 0
		}
	}
}

// fault is what the screen says of a daemon that does not answer.
func (m *top) fault() string {
	if m.failed == nil {
		return ""
	}
	return fmt.Sprintf("no answer for %s, asked every second: %s", while(m.now().Sub(m.since)), visible(m.failed.Error()))
}
