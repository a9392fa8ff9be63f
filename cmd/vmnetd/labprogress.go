package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/charmbracelet/x/term"
	"github.com/vmnetd/vmnetd/lab/topology"
)

// progress shows how a lab's nodes come: on a terminal a line for each, which changes; else a line for each change.
type progress struct {
	w      io.Writer
	lab    string
	live   func() (width, height int, ok bool) // of the terminal; not ok: there is none
	lines  int                                 // that stand there
	states map[string]string
	last   topology.Status
}

func newProgress(w io.Writer, lab string) *progress {
	p := &progress{w: w, lab: lab, states: map[string]string{}, live: func() (int, int, bool) { return 0, 0, false }}
	if f, ok := w.(*os.File); ok && term.IsTerminal(f.Fd()) {
		p.live = func() (int, int, bool) {
			width, height, err := term.GetSize(f.Fd())
			return width, height, err == nil && width > 0
		}
	}
	return p
}

// line is a node now.
func (p *progress) line(n topology.NodeStatus, live bool) string {
	s := fmt.Sprintf("%s: %s", n.Name, n.State)
	switch {
	case n.State == topology.StateReady && n.ReadyAfter > 0:
		s += fmt.Sprintf(" in %.1f s", n.ReadyAfter.Seconds())
	case n.State == topology.StateStarting && live && !n.Started.IsZero():
		s += fmt.Sprintf(" for %.0f s", time.Since(n.Started).Seconds())
	}
	if more := nodeSays(n); more != "" && n.State != topology.StateReady {
		s += ", " + more
	}
	return inOneLine(s)
}

// inOneLine is a text of several lines, as some errors are, in one.
func inOneLine(s string) string { return visible(strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ")) }

func (p *progress) show(st topology.Status) {
	p.last = st
	width, height, live := p.live()
	live = live && len(st.Nodes) < height-1 // what has scrolled away cannot change
	var b strings.Builder
	if live && p.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.lines)
	}
	p.lines = 0
	for _, n := range st.Nodes {
		s := p.line(n, live)
		if live {
			if r := []rune(s); len(r) > width-1 {
				s = string(r[:max(width-1, 0)])
			}
			b.WriteString("\r\x1b[K" + s + "\n")
			p.lines++
		} else if p.states[n.Name] != s {
			p.states[n.Name] = s
			b.WriteString(s + "\n")
		}
	}
	if live {
		b.WriteString("\x1b[J")
	}
	io.WriteString(p.w, b.String())
}

// missing are those that are not ready, and what they wait for.
func (p *progress) missing() string {
	var parts []string
	for _, n := range p.last.Nodes {
		if n.State != topology.StateReady && n.State != topology.StateEnded {
			parts = append(parts, p.line(n, false))
		}
	}
	return strings.Join(parts, "; ")
}

// done leaves what stands there.
func (p *progress) done() { p.lines = 0 }
