package dhcp

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"

	"github.com/vmnetd/vmnetd/state"
)

// stateVersion changes when an older daemon could not read the file.
const stateVersion = 1

// maxState bounds the file that is read: two full tables at about 500 bytes a lease, four times over.
const maxState = 16 << 20

// file is what is in it: what Leases returns but for offers, which end within seconds anyhow.
type file struct {
	Version int     `json:"version"`
	Leases  []Lease `json:"leases"`
}

// Save writes the leases to a file that is whole at any moment: a new file is written and synced, then takes
// the old one's place. It does nothing if the leases are what they were at the last Save to this file, so
// a caller may call it once a second, and once more before the end; what a crash between two calls loses is
// made good by a client's next renewal, for a free address is confirmed to whoever says it had it.
func (s *Server) Save(path string) error {
	s.saving.Lock()
	defer s.saving.Unlock()
	s.Sweep()
	s.mu.Lock()
	gen := s.gen
	if g, ok := s.saved[path]; ok && g == gen {
		s.mu.Unlock()
		return nil
	}
	st := file{Version: stateVersion, Leases: []Lease{}}
	for _, t := range s.tables() {
		for _, l := range t.sorted() {
			if l.State != Offered {
				st.Leases = append(st.Leases, l)
			} else if r := t.byAddr[l.Addr]; r.kept {
				l.State = Expired
				st.Leases = append(st.Leases, l)
			}
		}
	}
	s.mu.Unlock()
	b, err := json.MarshalIndent(st, "", "\t")
	if err != nil {
		return fmt.Errorf("dhcp: save leases: %w", err)
	}
	if err := state.WriteFile(path, append(b, '\n')); err != nil {
		return fmt.Errorf("dhcp: save leases: %w", err)
	}
	s.mu.Lock()
	s.saved[path] = gen
	s.mu.Unlock()
	return nil
}

// Load takes over the leases of a file and returns how many. A file that is not there is an empty one. A
// damaged file is renamed to path + ".damaged" and reported; the server goes on without it. Leases that the
// configuration no longer allows are left out. Call it before the first message; OnLease is told of every
// lease that still runs.
func (s *Server) Load(path string) (int, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("dhcp: load leases: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	f.Close()
	if err != nil {
		return 0, fmt.Errorf("dhcp: load leases: %w", err)
	}
	ls, err := decodeState(b)
	if err != nil {
		aside := path + ".damaged"
		if rerr := os.Rename(path, aside); rerr != nil {
			return 0, fmt.Errorf("dhcp: load leases: %s is damaged (%w) and cannot be set aside: %w", path, err, rerr)
		}
		return 0, fmt.Errorf("dhcp: load leases: %s is damaged and was set aside as %s: %w", path, aside, err)
	}
	n := s.restore(ls)
	s.flush()
	return n, nil
}

// decodeState reads a state file. Every field of what it returns is in bounds; whether the leases fit the
// configuration is restore's to say.
func decodeState(b []byte) ([]Lease, error) {
	if len(b) > maxState {
		return nil, fmt.Errorf("larger than %d bytes", maxState)
	}
	var st file
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&st); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("more after the leases, at byte %d", d.InputOffset())
	}
	if st.Version != stateVersion {
		return nil, fmt.Errorf("version %d, want %d", st.Version, stateVersion)
	}
	seen := make(map[netip.Addr]bool, len(st.Leases))
	for i, l := range st.Leases {
		id, err := hex.DecodeString(l.ClientID)
		switch {
		case !l.Addr.IsValid() || l.Addr.Zone() != "" || l.Addr.Is4In6():
			return nil, fmt.Errorf("lease %d: address %q", i, clip(l.Addr.String()))
		case seen[l.Addr]:
			return nil, fmt.Errorf("lease %d: %v is there twice", i, l.Addr)
		case err != nil:
			return nil, fmt.Errorf("lease %d: client_id %q: want hexadecimal digits", i, clip(l.ClientID))
		case len(id) > 255:
			return nil, fmt.Errorf("lease %d: client_id of %d bytes, want at most 255", i, len(id))
		case l.Addr.Is6() && l.State != Declined && (len(id) < 3 || len(id) > maxDUID):
			return nil, fmt.Errorf("lease %d: DUID of %d bytes, want 3 to %d", i, len(id), maxDUID)
		case l.State != Declined && !l.MAC.unicast():
			return nil, fmt.Errorf("lease %d: MAC %v", i, l.MAC)
		case len(l.Guest) > 1024: // a socket's path and a name, at most
			return nil, fmt.Errorf("lease %d: guest of %d characters", i, len(l.Guest))
		case Label(l.Hostname) != l.Hostname || Label(l.Name) != l.Name:
			return nil, fmt.Errorf("lease %d: host name %q, name %q: want DNS labels", i, clip(l.Hostname), clip(l.Name))
		case !slices.Contains([]State{Bound, Released, Expired, Declined}, l.State):
			return nil, fmt.Errorf("lease %d: state %q", i, clip(string(l.State)))
		}
		seen[l.Addr] = true
	}
	return st.Leases, nil
}

// restore puts leases into the tables, the oldest first: it holds a disputed name.
func (s *Server) restore(ls []Lease) int {
	ls = slices.Clone(ls)
	slices.SortStableFunc(ls, func(a, b Lease) int { return a.Start.Compare(b.Start) })
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	n := 0
	for _, l := range ls {
		t := s.table(l.Addr)
		if t == nil || t.byAddr[l.Addr] != nil || len(t.byAddr) >= maxRecords || t.barred(l.Addr, l.MAC) != "" {
			continue
		}
		id, _ := hex.DecodeString(l.ClientID) // decodeState has seen to it
		c := client{guest: l.Guest, mac: l.MAC, id: string(id), host: l.Hostname}
		if l.Addr.Is6() && l.State != Declined {
			c.duid = c.id
			c.id += string([]byte{byte(l.IAID >> 24), byte(l.IAID >> 16), byte(l.IAID >> 8), byte(l.IAID)})
		}
		// A shorter lease time since, or a clock that was wrong, must not make a lease longer than one given now.
		limit := s.cfg.LeaseTime
		if l.State == Declined {
			limit = QuarantineTime
		}
		until := l.Expires
		if until.After(now.Add(limit)) {
			until = now.Add(limit)
		}
		st := l.State
		if !until.After(now) {
			if st == Declined {
				continue
			}
			if st == Bound {
				st = Expired
			}
		}
		r := t.insert(l.Addr, c, st, until)
		r.kept, r.start = st != Declined, l.Start
		r.name, r.named = l.Name, l.Hostname
		if st == Bound {
			s.name(r)
			s.notify(r, EventBound)
		}
		n++
	}
	return n
}
