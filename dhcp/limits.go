package dhcp

// Use is how far a guest uses its share: addresses of the family that it has most of, now and at most, and how often it
// asked for one more.
type Use struct {
	Now, Most int
	Hits      uint64
}

// SetGuest gives a guest a share of its own, in addresses of each family, and has what it uses counted until Forget. 0 is
// the server's.
func (s *Server) SetGuest(guest string, perGuest int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tables() {
		o := t.own[guest]
		if o == nil {
			o = &ownShare{}
			if t.own == nil {
				t.own = make(map[string]*ownShare)
			}
			t.own[guest] = o
		}
		o.limit = perGuest
	}
}

// Forget lets go of what SetGuest keeps.
func (s *Server) Forget(guest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tables() {
		delete(t.own, guest)
	}
}

// Use returns what a guest that SetGuest named uses, and how much it may.
func (s *Server) Use(guest string) (u Use, share int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tables() {
		if g := t.guests[guest]; g != nil {
			u.Now = max(u.Now, len(g.records))
		}
		if o := t.own[guest]; o != nil {
			u.Most = max(u.Most, o.most, u.Now)
			u.Hits += o.hits
		}
		share = max(share, t.share(guest))
	}
	return u, share
}

// ownShare is what is kept of one guest in one family.
type ownShare struct {
	limit, most int
	hits        uint64
}

// share is how many addresses of the family a guest may hold.
func (t *table) share(guest string) int {
	if o := t.own[guest]; o != nil && o.limit > 0 {
		return o.limit
	}
	return t.perGuest
}

// share6 is a guest's share of IPv6 addresses.
func (s *Server) share6(guest string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.v6.share(guest)
}
