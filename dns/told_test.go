package dns

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

// Who listens hears what guests get, from wherever it comes, and what Names took away it does not hear. It changes nothing.
func TestTold(t *testing.T) {
	for _, judged := range []bool{false, true} {
		t.Run(fmt.Sprintf("judged=%v", judged), func(t *testing.T) {
			u := zone(t, []string{"ns.example. 60 A 192.0.2.53"}, "b.example. 60 A 192.0.2.1", "b.example. 60 A 10.1.2.3", "a.example. 30 CNAME b.example.", "c.example. 60 A 192.0.2.9")
			var mu sync.Mutex
			var told []string
			c := Config{Resolvers: []netip.AddrPort{u.addr}, Limits: patient, Told: func(guest, name string, addrs []netip.Addr) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, fmt.Sprint(guest, " ", name, " ", addrs))
			}}
			world := "web a.example [192.0.2.1 10.1.2.3]"
			if judged {
				c.Names = func() Names { return &register{drop: private} }
				world = "web a.example [192.0.2.1]"
			}
			s := slirp(t, c)
			for _, tt := range []struct{ question, told string }{
				{"A.example A", world},
				{"web A", "web web [10.0.2.15]"},
				{"web.internal AAAA", "web web.internal [fd00:0:0:2::15]"},
				{"web.internal TXT", ""},
				{"nobody.internal A", ""},
			} {
				overUDP(t, s, question(tt.question))
				mu.Lock()
				if got := strings.Join(told, "; "); got != tt.told {
					t.Errorf("%s: told %q, want %q", tt.question, got, tt.told)
				}
				told = nil
				mu.Unlock()
			}
			if !judged { // every byte is the resolver's, readable or not
				q, err := parseQuery(packed(t, question("a.example A")))
				if err != nil {
					t.Fatal(err)
				}
				for _, raw := range [][]byte{packed(t, question("a.example A")), {1, 2, 3}, bytes.Repeat([]byte{0xc0}, 100)} {
					if out := s.siftRaw("web", q, bytes.Clone(raw)); !bytes.Equal(out, raw) {
						t.Errorf("%x became %x", raw, out)
					}
				}
			}
		})
	}
}
