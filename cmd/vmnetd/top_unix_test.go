//go:build unix

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/hinshun/vt10x"
	"golang.org/x/sys/unix"
)

// screen is a program in a terminal that is emulated.
type screen struct {
	t    *testing.T
	ptm  *os.File
	pts  *os.File
	term vt10x.Terminal
	cmd  *exec.Cmd
	done chan error
	read chan struct{}

	mu  sync.Mutex
	raw strings.Builder // all that came
}

func (l *cli) screen(cols, rows int, env []string, args ...string) *screen {
	l.t.Helper()
	ptm, pts, err := pty.Open()
	if err != nil {
		l.t.Fatal(err)
	}
	s := &screen{t: l.t, ptm: ptm, pts: pts, term: vt10x.New(vt10x.WithSize(cols, rows)), cmd: l.command(args...), done: make(chan error, 1), read: make(chan struct{})}
	if err := pty.Setsize(ptm, &pty.Winsize{Cols: uint16(cols), Rows: uint16(rows)}); err != nil {
		l.t.Fatal(err)
	}
	s.cmd.Env = append(s.cmd.Env, "TERM=xterm-256color", "LC_ALL=C.UTF-8")
	s.cmd.Env = append(s.cmd.Env, env...)
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = pts, pts, pts
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() { s.done <- s.cmd.Wait() }()
	go func() {
		defer close(s.read)
		b := make([]byte, 1<<16)
		for {
			n, err := ptm.Read(b)
			s.mu.Lock()
			s.raw.Write(b[:n])
			s.mu.Unlock()
			s.term.Write(b[:n])
			if err != nil {
				return
			}
		}
	}()
	l.t.Cleanup(func() {
		s.cmd.Process.Kill()
		s.done <- <-s.done
		pts.Close()
		ptm.Close()
		<-s.read
	})
	return s
}

func (s *screen) text() string {
	var lines []string
	for line := range strings.Lines(s.term.String()) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	return strings.Join(lines, "\n")
}

// shows waits until the pattern is on the screen, and returns the screen.
func (s *screen) shows(pattern string) string {
	s.t.Helper()
	re := regexp.MustCompile("(?m)" + pattern)
	for end := time.Now().Add(cliPatience); ; time.Sleep(20 * time.Millisecond) {
		if text := s.text(); re.MatchString(text) {
			return text
		} else if time.Now().After(end) {
			s.t.Fatalf("%q is not on the screen:\n%s", pattern, text)
		}
	}
}

func (s *screen) types(keys string) {
	s.t.Helper()
	if _, err := io.WriteString(s.ptm, keys); err != nil {
		s.t.Fatal(err)
	}
}

func (s *screen) ends(want int) {
	s.t.Helper()
	select {
	case err := <-s.done:
		s.done <- err
		if got := s.cmd.ProcessState.ExitCode(); got != want {
			s.t.Errorf("ended with %d, want %d:\n%s", got, want, s.text())
		}
	case <-time.After(cliPatience):
		s.t.Fatalf("did not end:\n%s", s.text())
	}
}

func (s *screen) resize(cols, rows int) {
	s.t.Helper()
	s.term.Resize(cols, rows)
	if err := pty.Setsize(s.ptm, &pty.Winsize{Cols: uint16(cols), Rows: uint16(rows)}); err != nil {
		s.t.Fatal(err)
	}
	s.cmd.Process.Signal(syscall.SIGWINCH) // as the kernel does for a session's foreground
}

func (s *screen) attributes() unix.Termios {
	s.t.Helper()
	a, err := unix.IoctlGetTermios(int(s.pts.Fd()), termGet)
	if err != nil {
		s.t.Fatal(err)
	}
	return *a
}

// top in a terminal, over a daemon with a guest that transfers.
func TestTop(t *testing.T) {
	l := newCLI(t, "-p", "0:7")
	g := l.plug("web")
	l.plug("db")
	host := serveHost(t, talkSlowly)
	ctx, cancel := context.WithTimeout(context.Background(), cliPatience)
	defer cancel()
	c, err := g.Dial(ctx, "tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() { defer close(read); io.Copy(io.Discard, c) }()
	defer func() { c.Close(); <-read }()

	s := l.screen(110, 24, nil, "top")
	before := s.attributes()
	s.shows(`\[1 guests\]  2 flows  3 forwards   by rate`)
	text := s.shows(`^g1 +web +10\.0\.2\.15 .* [0-9.]+[kM] +[ ▁▂▃▄▅▆▇█]*[▁▂▃▄▅▆▇█]{3} +1 +\d+ `) // a rate, its line, one flow
	if !regexp.MustCompile(`(?m)^GUEST +NAME +ADDRESS +UP/s +DOWN/s +FLOWS +DROPS +SINCE$`).MatchString(text) {
		t.Errorf("heading:\n%s", text)
	}
	if !strings.Contains(text, "2 guests") || !regexp.MustCompile(`down [0-9.]+[kM]/s`).MatchString(text) {
		t.Errorf("title:\n%s", text)
	}
	t.Logf("\n%s", text)

	// Its conversation, with a rate and by the guest's name.
	s.types("2")
	text = s.shows(fmt.Sprintf(`^web +tcp +out +10\.0\.2\.15:\d+ +10\.0\.2\.2:%d .* [0-9.]+[kM] .* open`, host.Port()))
	t.Logf("\n%s", text)
	s.types("/udp\r")
	s.shows(`nothing with udp in it; esc shows all`)
	s.types("\x1b")
	s.shows(`^web +tcp`)
	s.types("s")
	s.shows(`by up`)
	s.types("r")
	s.shows(`by up, reversed`)
	s.types("rSp")
	s.shows(`by rate   PAUSED`)
	s.types("p")
	// Forwards.
	s.types("3")
	s.shows(`^127\.0\.0\.1:\d+:7/tcp +listening +present +0`)
	// A guest's conversations alone.
	s.types("1")
	s.shows(`\[1 guests\]`)
	s.types("ssssss") // by name
	s.shows(`by name`)
	s.shows(`^g2 +db .*\n(.*\n)*g1 +web `)
	s.types("j\r")
	s.shows(`of web`)
	s.shows(`^web +tcp`)

	// A small terminal has fewer columns, a tiny one says so, and both come back.
	s.types("1")
	s.resize(40, 8)
	text = s.shows(`^NAME +UP/s +DOWN/s`)
	for line := range strings.Lines(text) {
		if len([]rune(strings.TrimRight(line, "\n"))) > 40 {
			t.Errorf("a line of more than 40: %q", line)
		}
	}
	s.resize(12, 3)
	s.shows(`too small`)
	s.resize(110, 24)
	s.shows(`^GUEST +NAME +ADDRESS`)

	// A guest's wire ends after a confirmation, and not without.
	s.types("/web\r")
	s.shows(`^g1 +web`)
	s.types("K")
	s.shows(`end the wire of web \(g1\)\? y or n`)
	s.types("n")
	s.shows(`nothing was ended`)
	if _, err := l.c.Guest(ctx, "web"); err != nil {
		t.Errorf("after n: %v", err)
	}
	s.types("K")
	s.shows(`y or n`)
	s.types("y")
	s.shows(`the wire of web was ended`)
	select {
	case <-g.Gone():
	case <-ctx.Done():
		t.Error("the wire has not ended")
	}
	s.types("\x1b")
	s.shows(`1 guests`)

	// The daemon goes, and comes back.
	l.d.Process.Kill()
	l.d.ends(-1)
	s.shows(`^no answer for \d+s, asked every second: no daemon at `)
	l.start()
	l.plug("again")
	s.shows(`^g1 +again`)

	// Both ways out leave the terminal as it was.
	s.types("q")
	s.ends(0)
	if after := s.attributes(); after != before {
		t.Errorf("the terminal's attributes are %+v, were %+v", after, before)
	}
	s.altScreenLeft()
	s = l.screen(80, 24, []string{"NO_COLOR=1"}, "top", "--view", "forwards")
	s.shows(`no port forward`)
	s.types("\x03")
	s.ends(0)
	s.altScreenLeft()
	s.mu.Lock()
	defer s.mu.Unlock()
	if coloured := regexp.MustCompile(`\x1b\[[0-9;]*\b(3[0-7]|4[0-7]|9[0-7]|38;5|48;5)[0-9;]*m`).FindString(s.raw.String()); coloured != "" {
		t.Errorf("NO_COLOR, and %q is sent", coloured)
	}
}

// altScreenLeft waits for what gives the terminal back: the program may end before all that it wrote is read here.
func (s *screen) altScreenLeft() {
	s.t.Helper()
	raw := ""
	last := func(seq string) int { return strings.LastIndex(raw, seq) }
	for end := time.Now().Add(cliPatience); ; time.Sleep(20 * time.Millisecond) {
		s.mu.Lock()
		raw = s.raw.String()
		s.mu.Unlock()
		if last("\x1b[?1049l") > last("\x1b[?1049h") && last("\x1b[?25h") >= last("\x1b[?25l") {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("the other screen or the hidden cursor stays: %q", raw[max(0, len(raw)-300):])
		}
	}
}

// talkSlowly sends a few hundred kilobytes a second: a rate, and no load.
func talkSlowly(c net.Conn) {
	b := make([]byte, 16<<10)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// What guests call themselves does not reach the terminal with anything that it obeys.
func TestTopHostile(t *testing.T) {
	m := newTop(&inspector{}, context.Background())
	m.width, m.height = 200, 20
	const evil = "\x1b]0;owned\x07\u009b2J\u202ebad\x7f\r\n\x00"
	d := topData{at: time.Now()}
	d.status.Networks = append(d.status.Networks, networkNamed(evil))
	one := topGuest{network: evil}
	one.ID, one.Name, one.MAC, one.Link = "g1", evil, evil, evil
	d.guests = append(d.guests, one)
	f := topForward{network: evil}
	f.Text, f.LastError, f.State = evil, evil, evil
	d.forwards = append(d.forwards, f)
	m.take(d)
	x := flowEntry(1)
	x.Network, x.Name, x.Names, x.Rule = evil, evil, []string{evil}, evil
	m.flows.take(flowsEvent("flows", x), time.Now())
	m.flows.take(flowsEvent("listed"), time.Now())
	clean := func(what string) {
		t.Helper()
		// Only SGR, which is ours, may be there.
		left := regexp.MustCompile(`\x1b\[[0-9;]*m`).ReplaceAllString(m.draw(), "")
		if i := strings.IndexFunc(left, func(r rune) bool { return r != '\n' && visible(string(r)) != string(r) }); i >= 0 {
			t.Errorf("%s: %q reaches the terminal", what, left[i:min(len(left), i+20)])
		}
	}
	for view := range topViews {
		m.view = view
		m.arrange()
		clean(topViews[view])
	}
	m.view = viewGuests
	m.arrange()
	m.move(0)
	m.confirm = m.chosenGuest()
	clean("question")
	m.confirm = nil
	m.Update(kicked{evil, nil})
	clean("answer")
	m.guestName, m.guest, m.view, m.filter = evil, "x", viewFlows, visible(evil)
	m.arrange()
	clean("filter")
	m.take(topData{err: fmt.Errorf("%s", evil)})
	clean("fault")
}

// Ten thousand conversations are drawn, sorted and kept within a few of a second's hundredths.
func TestTopMany(t *testing.T) {
	m := newTop(&inspector{}, context.Background())
	m.width, m.height, m.view = 120, 40, viewFlows
	const n = 10000
	now := time.Now()
	m.now = func() time.Time { return now.Add(topEvery) }
	for part := range slices.Chunk(slices.Collect(func(yield func(uint64) bool) {
		for i := range uint64(n) {
			if !yield(i + 1) {
				return
			}
		}
	}), 200) {
		e := flowsEvent("flows")
		for _, id := range part {
			e.Flows = append(e.Flows, flowEntry(id))
		}
		m.flows.take(e, now)
	}
	m.flows.take(flowsEvent("listed"), now)
	moved := flowsEvent("bytes")
	moved.Network = "default"
	for id := uint64(1); id <= n; id += 2 {
		moved.Moved = append(moved.Moved, [5]uint64{id, 1000 * id, 500, 1, 1})
	}
	m.flows.take(moved, now.Add(topEvery))
	began := time.Now()
	const turns = 5
	for range turns {
		m.arrange()
		m.draw()
	}
	each := time.Since(began) / turns
	t.Logf("%v for %d conversations", each, n)
	if each > 10*time.Second { // some 20 ms here
		t.Errorf("%v to draw %d conversations: it is done every second", each, n)
	}
	if got := m.shown.flows[0]; got.ID != n-1 || got.up < 9_000_000 || m.count() != n {
		t.Errorf("the fastest of %d is %+v", m.count(), got)
	}
	if !strings.Contains(m.draw(), "1 to 36 of 10000") {
		t.Error(m.draw())
	}
	m.move(n)
	if !strings.Contains(m.draw(), "9965 to 10000 of 10000") {
		t.Error(m.draw())
	}
	m.filter = "10.0.2.15:10077"
	m.arrange()
	if m.count() != 1 {
		t.Errorf("%d are found", m.count())
	}
	// At rest there is no rate.
	if list := m.flows.pick("", nil, now.Add(time.Minute)); slices.ContainsFunc(list, func(f *topFlow) bool { return f.up+f.down > 0 }) {
		t.Error("one that has not moved for a minute has a rate")
	}
}

func TestTopNoTerminal(t *testing.T) {
	l := newCLI(t)
	if _, complaint, status := l.run("top"); status != 1 || !strings.Contains(complaint, "top needs a terminal") || !strings.Contains(complaint, "vmnetd flows --follow -o json") {
		t.Errorf("status %d, %s", status, complaint)
	}
	s := l.screen(80, 24, nil, "top", "--control", "nosuch")
	s.shows(`no daemon at nosuch`)
	s.ends(1)
}

func TestSpark(t *testing.T) {
	for _, c := range []struct {
		list  []float64
		ascii bool
		want  string
	}{
		{nil, false, "     "}, {[]float64{0, 10, 5}, false, "  ▁█▅"}, {[]float64{9, 9, 0, 1, 2, 3, 4}, false, "▁▃▅▆█"}, {[]float64{0, 10, 5}, true, "   #="},
	} {
		if got := spark(c.list, 5, c.ascii); got != c.want {
			t.Errorf("%v: %q, want %q", c.list, got, c.want)
		}
	}
	for _, c := range []struct {
		env  map[string]string
		want bool
	}{{nil, false}, {map[string]string{"LANG": "C"}, true}, {map[string]string{"LANG": "C", "LC_ALL": "de_DE.UTF-8"}, false}, {map[string]string{"LC_CTYPE": "en_US.utf8"}, false}} {
		if got := asciiOnly(func(k string) string { return c.env[k] }); got != c.want {
			t.Errorf("%v: %v", c.env, got)
		}
	}
}
