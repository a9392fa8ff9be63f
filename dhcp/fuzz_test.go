package dhcp

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

// The seeds are testdata/fuzz/*, named for what they are; go test runs them all.

// fuzzLab has a lease to be attacked and names to be taken.
func fuzzLab(t *testing.T) *lab {
	l := newLab(t, func(c *Config) {
		c.PerGuest = 4
		c.Static = map[MAC]Reservation{macC: {Addr: ip("10.0.2.50"), Addr6: ip("fd00:2::50"), Hostname: "web"}}
	})
	leases(bob.called("victim"), "10.0.2.15")(l)
	leases6(bob.called("victim"), "fd00:2::1000")(l)
	return l
}

// after checks what holds whatever was said.
func after(l *lab, r *Reply, err error) {
	l.Helper()
	l.consistent()
	known("10.0.2.15", Bound, bob)(l)
	known("fd00:2::1000", Bound, bob)(l)
	if n := len(l.s.Leases()); n > 2+2*4 /* two leases of bob's, a share of each family */ {
		l.Errorf("%d records after one guest's message", n)
	}
	if err != nil {
		var e *Error
		if !errors.As(err, &e) || e.Detail == "" || len(err.Error()) > 250 {
			l.Errorf("error %q", err)
		}
		if r != nil {
			l.Error("a reply and an error")
		}
	}
	if r != nil && (len(r.Payload) > 1472 || !r.Dst.IsValid() || r.MAC == MAC{}) {
		l.Errorf("%d bytes to %v at %v", len(r.Payload), r.Dst, r.MAC)
	}
}

func FuzzHandle4(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		l := fuzzLab(t)
		for range 2 { // the second meets what the first left
			r, err := l.s.Handle4(context.Background(), "a", macA, b)
			after(l, r, err)
			if r != nil {
				if _, err := dhcpv4.FromBytes(r.Payload); err != nil {
					t.Errorf("answer cannot be read: %v", err)
				}
			}
		}
		discovers(carol, offered("10.0.2.50"))(l)
	})
}

func FuzzHandle6(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		l := fuzzLab(t)
		for range 2 {
			r, err := l.s.Handle6(context.Background(), "a", macA, linkLocal(macA), b)
			after(l, r, err)
			if r != nil {
				if _, err := dhcpv6.MessageFromBytes(r.Payload); err != nil {
					t.Errorf("answer cannot be read: %v", err)
				}
			}
		}
		solicits(carol, advertised("fd00:2::50"))(l)
	})
}

func FuzzState(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		ls, err := decodeState(b)
		if err != nil {
			if err.Error() == "" || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q", err)
			}
			return
		}
		l := newLab(t)
		n := l.s.restore(ls)
		l.s.flush()
		l.consistent()
		got := l.s.Leases()
		if n > len(ls) || n < len(got) {
			t.Errorf("%d taken over of %d, %d there", n, len(ls), len(got))
		}
		// What was read is written so that it is read again.
		again, err := json.Marshal(file{stateVersion, got})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeState(again); err != nil {
			t.Errorf("%v in what was written: %s", err, again)
		}
		for _, le := range got {
			if le.Expires.After(l.clock().Add(day)) {
				t.Errorf("%v ends %v", le.Addr, le.Expires)
			}
		}
		discovers(who{guest: "new", mac: MAC{2, 9, 9, 9, 9, 9}})(l)
		if l.m4 == nil && len(ls) < 200 {
			t.Errorf("no offer: %v", l.err)
		}
		l.mu.Lock()
		l.now = l.now.Add(2 * day)
		l.mu.Unlock()
		l.s.Sweep()
		l.consistent()
		for _, le := range l.s.Leases() {
			if le.State == Bound || le.State == Declined {
				t.Errorf("%+v never ends", le)
			}
		}
	})
}
