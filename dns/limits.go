package dns

import "time"

// Use is how far a guest uses one of its limits: now, at most, and how often it was past it.
type Use struct {
	Now, Most int
	Hits      uint64
}

// SetGuest gives a guest limits of its own, of questions that wait and of TCP connections, and has what it uses counted
// until Forget. 0 is the server's limit.
func (s *Server) SetGuest(guest string, questions, conns int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting.set(guest, questions)
	s.open.set(guest, conns)
}

// Forget lets go of what SetGuest keeps.
func (s *Server) Forget(guest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting.own, guest)
	delete(s.open.own, guest)
}

// Use returns what a guest that SetGuest named uses.
func (s *Server) Use(guest string) (questions, conns Use) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting.use(guest), s.open.use(guest)
}

// ownGate is what is kept of one guest.
type ownGate struct {
	limit, most int
	hits        uint64

	left float64 // of the questions of a second
	at   time.Time
}

// allow takes one of the questions of a second.
func (o *ownGate) allow(perSecond float64, now time.Time) bool {
	o.left = min(perSecond, o.left+perSecond*now.Sub(o.at).Seconds()) // at first since ever: all of them
	o.at = now
	if o.left < 1 {
		return false
	}
	o.left--
	return true
}

func (g *gate) set(guest string, limit int) {
	o := g.own[guest]
	if o == nil {
		o = &ownGate{}
		if g.own == nil {
			g.own = make(map[string]*ownGate)
		}
		g.own[guest] = o
	}
	if o.limit = limit; limit <= 0 {
		o.limit = g.perGuest
	}
}

func (g *gate) use(guest string) Use {
	u := Use{Now: g.by[guest]}
	if o := g.own[guest]; o != nil {
		u.Most, u.Hits = o.most, o.hits
	}
	return u
}
