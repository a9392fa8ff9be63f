package dhcp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

const spoofed = 100_000

func macOf(i int) MAC { return MAC{2, 0xbe, 0xef, byte(i >> 16), byte(i >> 8), byte(i)} }

// One guest shows 100,000 MACs and takes all it can; another's lease and a third's new one do not notice.
func TestSpoofedMACsHarmNobodyElse(t *testing.T) {
	l := newLab(t)
	victim, newcomer := bob.called("victim"), carol
	leases(victim, "10.0.2.15")(l)
	leases6(victim, "fd00:2::1000")(l)
	told("bound 10.0.2.15 victim", "bound fd00:2::1000 victim")(l)
	for i := range spoofed {
		w := who{guest: "evil", mac: macOf(i), name: "victim"}
		var payload []byte
		switch i % 4 {
		case 0:
			payload = msg4(w, dhcpv4.MessageTypeDiscover).ToBytes()
		case 1:
			payload = msg4(w, dhcpv4.MessageTypeDiscover, option(80)).ToBytes()
		case 2: // any address that it likes, the victim's too
			payload = msg4(w, dhcpv4.MessageTypeRequest, asking(fmt.Sprintf("10.0.2.%d", i%256))).ToBytes()
		case 3:
			payload = msg6(w, dhcpv6.MessageTypeSolicit, association(byte(i)), raw6(dhcpv6.OptionRapidCommit)).ToBytes()
		}
		var r *Reply
		var err error
		if i%4 == 3 {
			r, err = l.s.Handle6(context.Background(), w.guest, w.mac, linkLocal(w.mac), payload)
		} else {
			r, err = l.s.Handle4(context.Background(), w.guest, w.mac, payload)
		}
		if err != nil || r == nil {
			t.Fatalf("message %d: %v, %v; a guest over its share gives up its own", i, r, err)
		}
		if i%25_000 == 12_000 { // in the thick of it
			l.consistent()
			renews(victim, "10.0.2.15", acked("10.0.2.15"))(l)
			renews6(victim, "fd00:2::1000", replied("fd00:2::1000"))(l)
		}
	}
	l.consistent()
	evil := 0
	for _, le := range l.s.Leases() {
		if le.Guest == "evil" {
			evil++
		}
	}
	if evil != 2*DefaultPerGuest {
		t.Errorf("the guest holds %d addresses, want %d of each family", evil, DefaultPerGuest)
	}
	known("10.0.2.15", Bound, victim)(l)
	known("fd00:2::1000", Bound, victim)(l)
	if n := l.s.ByName("victim"); len(n) != 2 || n[0].Guest != "b" || n[1].Guest != "b" {
		t.Errorf("the name is %+v", n)
	}
	discovers(newcomer)(l)
	addr := l.m4.YourIPAddr.String()
	selects(newcomer, addr, acked(addr))(l)
	solicits(newcomer)(l)
	addr = l.m6.Options.OneIANA().Options.OneAddress().IPv6Addr.String()
	requests6(newcomer, addr, replied(addr))(l)
	// What it took frees itself.
	l.s.Detach("evil")
	waits(day)(l)
	l.s.Sweep()
	for _, le := range l.s.Leases() {
		if le.State == Bound || le.State == Offered {
			t.Errorf("%+v a day later", le)
		}
	}
}

// The cheaper spoofing tools leave the frame's MAC and change the one inside.
func TestSpoofedHardwareAddress(t *testing.T) {
	l := newLab(t)
	for i := range 1000 {
		w := alice.from(macOf(i))
		_, err := l.s.Handle4(context.Background(), "a", macA, msg4(w, dhcpv4.MessageTypeDiscover).ToBytes())
		var e *Error
		if !errors.As(err, &e) || e.Reason != Forged {
			t.Fatal(err)
		}
	}
	if n := len(l.s.Leases()); n != 0 {
		t.Errorf("%d addresses held", n)
	}
}

// A guest that comes, takes its share with new MACs, and goes, over and over, pays for it itself: a guest
// that is merely rebooting meanwhile has its address back.
func TestComingAndGoingPaysForItself(t *testing.T) {
	l := newLab(t)
	leases(bob, "10.0.2.15")(l)
	l.s.Detach("b")
	for visit := range 60 {
		g := fmt.Sprintf("evil-%d", visit)
		for i := range DefaultPerGuest {
			w := who{guest: g, mac: macOf(visit*DefaultPerGuest + i)}
			l.hear4(w, msg4(w, dhcpv4.MessageTypeDiscover, option(80)).ToBytes())
			if l.m4 == nil {
				t.Fatal(l.err)
			}
		}
		l.s.Detach(g)
		l.consistent()
	}
	leases(bob.through("b-again"), "10.0.2.15")(l)
}

// Everything at once, under the race detector: guests that live a normal life next to ones that do not,
// probes that take their time, an administrator, a saver. No guest ever sees its lease move.
func TestConcurrent(t *testing.T) {
	events := map[netip.Addr]Event{} // no lock: OnLease is called one at a time
	l := newLab(t, func(c *Config) {
		c.OnLease = func(le Lease, e Event) {
			if prev := events[le.Addr]; (prev == "" || prev == EventReleased || prev == EventRevoked || prev == EventDeclined || prev == EventExpired) && e != EventBound {
				t.Errorf("%v: %s after %q", le.Addr, e, prev)
			}
			events[le.Addr] = e
		}
		probe := c.InUse
		c.InUse = func(ctx context.Context, a netip.Addr, g string, m MAC) (string, bool) {
			time.Sleep(time.Duration(a.As16()[15]%4) * 50 * time.Microsecond) // answers come in another order than they were asked for
			return probe(ctx, a, g, m)
		}
	})
	path := filepath.Join(t.TempDir(), "leases.json")
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() { // well behaved
			w := who{guest: fmt.Sprint("good-", g), mac: MAC{2, 0, 0, 0, 1, byte(g)}, name: "vm"}
			var have netip.Addr
			for i := range 150 {
				m := msg4(w, dhcpv4.MessageTypeDiscover, option(80))
				if i%3 == 1 {
					m = msg4(w, dhcpv4.MessageTypeRequest, having(have.String()))
				}
				r, err := l.s.Handle4(context.Background(), w.guest, w.mac, m.ToBytes())
				if err != nil || r == nil || r.Type != "ACK" {
					t.Errorf("%s: %+v, %v", w.guest, r, err)
					return
				}
				got := r.Dst.Addr()
				if have.IsValid() && got != have {
					t.Errorf("%s: moved from %v to %v", w.guest, have, got)
				}
				have = got
				r, err = l.s.Handle6(context.Background(), w.guest, w.mac, linkLocal(w.mac), msg6(w, dhcpv6.MessageTypeSolicit, association(0), raw6(dhcpv6.OptionRapidCommit)).ToBytes())
				if err != nil || r == nil || r.Type != "REPLY" {
					t.Errorf("%s: %+v, %v", w.guest, r, err)
				}
			}
		})
		wg.Go(func() { // and not
			rnd := rand.New(rand.NewPCG(1, uint64(g)))
			for range 300 {
				w := who{guest: fmt.Sprint("evil-", g), mac: MAC{2, 0, 0, 0, 1, byte(rnd.IntN(20))}, name: "vm"} // others' MACs among them
				addr := fmt.Sprintf("10.0.2.%d", 15+rnd.IntN(60))
				m := msg4(w, dhcpv4.MessageType(1+rnd.IntN(8)))
				switch rnd.IntN(3) {
				case 0:
					having(addr)(m)
				case 1:
					asking(addr)(m)
				}
				_, _ = l.s.Handle4(context.Background(), w.guest, w.mac, m.ToBytes())
				if rnd.IntN(50) == 0 {
					l.s.Detach(w.guest)
				}
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			if err := l.s.Save(path); err != nil {
				t.Error(err)
			}
			l.s.Sweep()
			for _, le := range l.s.Leases() {
				if _, ok := l.s.Lookup(le.Addr); ok && le.Guest == "evil-1" {
					_ = l.s.Release(le.Addr)
				}
			}
		}
	})
	wg.Wait()
	l.consistent()
	if n, err := newLab(t).s.Load(path); n == 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// A callback may ask the server, and cause more events.
func TestCallbackCallsBack(t *testing.T) {
	var s *Server
	var seen []Event
	l := newLab(t, func(c *Config) {
		c.OnLease = func(le Lease, e Event) {
			seen = append(seen, e)
			if _, ok := s.Lookup(le.Addr); ok && e == EventBound {
				_ = s.Release(le.Addr)
			}
		}
	})
	s = l.s
	leases(alice, "10.0.2.15")(l)
	if fmt.Sprint(seen) != "[bound released]" {
		t.Error(seen)
	}
}

// The address that is being probed for one client is nobody else's meanwhile, and an administrator who
// takes it away in that moment is not overruled by the answer.
func TestChangesDuringAProbe(t *testing.T) {
	l := newLab(t)
	inner := false
	l.s.cfg.InUse = func(_ context.Context, a netip.Addr, guest string, mac MAC) (string, bool) {
		if inner {
			return "", false
		}
		inner = true
		defer func() { inner = false }()
		selects(bob, "10.0.2.15", naked("another client"))(l)
		discovers(bob, offered("10.0.2.16"))(l)
		if err := l.s.Release(a); err != nil {
			t.Error(err)
		}
		leases(carol, "10.0.2.15")(l)
		return "", false
	}
	r, err := l.s.Handle4(context.Background(), "a", macA, msg4(alice, dhcpv4.MessageTypeRequest, asking("10.0.2.15")).ToBytes())
	if err != nil || r.Type != "NAK" {
		t.Errorf("%+v, %v, want a NAK", r, err)
	}
	known("10.0.2.15", Bound, carol)(l)
	l.consistent()
}
