package portforward

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
)

func parseAll(t *testing.T, texts ...string) (list []Rule) {
	t.Helper()
	for _, s := range texts {
		r, err := ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r...)
	}
	return list
}

func texts(table *Table) (list []string) {
	for _, s := range table.List() {
		list = append(list, s.Text)
	}
	return list
}

// Rules are exchanged in one step: who stays notices nothing, and neither do TCP conversations of who goes.
func TestReplace(t *testing.T) {
	guest := &fakeGuest{}
	guest.set("tcp", 80, server(t, echo))
	guest.set("tcp", 81, server(t, func(c *net.TCPConn) { c.Write([]byte("other")) }))
	var mu sync.Mutex
	var changes []string
	table := newTable(t, Config{Guest: guest, Changed: func(r Rule, added bool) {
		mu.Lock()
		defer mu.Unlock()
		changes = append(changes, fmt.Sprint(r, " ", added))
	}})
	stays, goes, moves := add(t, table, "0:80"), add(t, table, "0:80"), add(t, table, "0:80")
	var conns []net.Conn
	for _, r := range []Rule{stays, goes, moves} {
		c := dialHost(t, r)
		say(t, c, "before")
		hear(t, c, "before")
		conns = append(conns, c)
	}
	changes = nil
	moved := moves
	moved.GuestPort = 81
	bound, err := table.Replace(t.Context(), []Rule{goes, moves, {HostPort: 1, GuestPort: 1}}, []Rule{moved, {GuestPort: 80}})
	if err != nil || len(bound) != 2 || bound[0] != moved || bound[1].HostPort == 0 {
		t.Fatalf("%v, %v", bound, err)
	}
	if want := []string{fmt.Sprint(goes, " false"), fmt.Sprint(moves, " false"), fmt.Sprint(moved, " true"), fmt.Sprint(bound[1], " true")}; !slices.Equal(changes, want) {
		t.Errorf("told %q, want %q", changes, want)
	}
	for _, c := range conns {
		say(t, c, "after")
		hear(t, c, "after")
	}
	hear(t, dialHost(t, moved), "other")
	c := dialHost(t, bound[1])
	say(t, c, "new")
	hear(t, c, "new")
	if c, err := net.Dial("tcp", hostEnd(goes)); err == nil {
		c.Close()
		t.Error("what is gone still listens")
	}
	if got, want := texts(table), []string{stays.String(), moved.String(), bound[1].String()}; !slices.Equal(got, want) {
		t.Errorf("the table has %q, want %q", got, want)
	}
}

// When one of them cannot be added all is as before, also a rule whose host end was to be taken.
func TestReplaceFails(t *testing.T) {
	guest := &fakeGuest{}
	guest.set("tcp", 80, server(t, echo))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	for _, tt := range []struct {
		name string
		rule func(moves Rule) []Rule
		kind error
	}{
		{"Taken", func(moves Rule) []Rule {
			moves.GuestPort = 81
			return []Rule{{GuestPort: 80}, moves, {HostPort: uint16(port), GuestPort: 80}}
		}, ErrInUse},
		{"TakenLate", func(moves Rule) []Rule { // the second is tried when the first has the place
			moves.GuestPort = 81
			again := moves
			again.GuestPort = 82
			return []Rule{moves, again}
		}, ErrClash},
		{"Wrong", func(moves Rule) []Rule { return []Rule{moves, {HostPort: 1}} }, ErrRange},
		{"TooMany", func(moves Rule) []Rule { return []Rule{moves, {HostPort: 20000, GuestPort: 20000, Count: 5000}} }, ErrLimit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := newTable(t, Config{Guest: guest})
			stays, moves := add(t, table, "0:80"), add(t, table, "0:80")
			c := dialHost(t, moves)
			say(t, c, "before")
			hear(t, c, "before")
			before := texts(table)
			slices.Sort(before)
			_, err := table.Replace(t.Context(), []Rule{stays, moves}, tt.rule(moves))
			var e *Error
			if !errors.As(err, &e) || e.Kind != tt.kind {
				t.Fatalf("%v, want %v", err, tt.kind)
			}
			after := texts(table)
			slices.Sort(after)
			if !slices.Equal(before, after) {
				t.Errorf("the table has %q, had %q", after, before)
			}
			say(t, c, "after")
			hear(t, c, "after")
			for _, r := range []Rule{stays, moves} {
				c := dialHost(t, r)
				say(t, c, "new")
				hear(t, c, "new")
			}
			for _, text := range before { // its place is its own
				if _, err := table.Remove(text, true); err != nil {
					t.Error(err)
				}
			}
			if table.ports != 0 {
				t.Errorf("%d ports are counted of none", table.ports)
			}
		})
	}
	closed := New(Config{Guest: guest})
	closed.Close()
	if _, err := closed.Replace(t.Context(), nil, parseAll(t, "0:80")); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}
