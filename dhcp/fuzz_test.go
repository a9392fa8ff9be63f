package dhcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

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
	if n := len(l.s.Leases()); n > 2+2*4 {
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
	all := wanting(1, 3, 6, 12, 15, 26, 28, 51, 54, 58, 59, 119)
	for _, m := range []*dhcpv4.DHCPv4{ // name: what it is
		msg4(alice, dhcpv4.MessageTypeDiscover),
		msg4(alice.called("vm").as("\xffid"), dhcpv4.MessageTypeDiscover, all, option(80), option(57, 5, 0xdc)),
		msg4(alice, dhcpv4.MessageTypeRequest, asking("10.0.2.16"), server("10.0.2.2"), all),
		msg4(alice, dhcpv4.MessageTypeRequest, asking("10.0.2.15")),
		msg4(alice, dhcpv4.MessageTypeRequest, having("10.0.2.15")),
		msg4(alice, dhcpv4.MessageTypeDecline, asking("10.0.2.15"), server("10.0.2.2")),
		msg4(alice, dhcpv4.MessageTypeRelease, having("10.0.2.15"), server("10.0.2.2")),
		msg4(alice, dhcpv4.MessageTypeInform, having("10.0.2.200"), all),
		msg4(alice, dhcpv4.MessageTypeNone),
		msg4(alice, dhcpv4.MessageTypeDiscover, option(81, []byte("\x04\x00\x00\x03web\x00")...), option(12, []byte("$(reboot)\x00\n")...)),
		msg4(alice, dhcpv4.MessageTypeDiscover, option(82, 1, 2, 3, 4), option(52, 3)),
	} {
		f.Add(m.ToBytes())
	}
	f.Add([]byte{})
	f.Add(append(msg4(alice, dhcpv4.MessageTypeDiscover).ToBytes()[:240], 0xff, 0x10))                            // what broke passt: 255 with a length
	f.Add(append(msg4(alice, dhcpv4.MessageTypeDiscover).ToBytes()[:240], bytes.Repeat([]byte{61, 255}, 600)...)) // options that run over the end
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
	base := fuzzSeedServer()
	ours := raw6(dhcpv6.OptionServerID, base.duid...)
	for _, m := range []*dhcpv6.Message{
		msg6(alice.called("vm"), dhcpv6.MessageTypeSolicit, association(1), raw6(dhcpv6.OptionORO, 0, 23, 0, 24)),
		msg6(alice, dhcpv6.MessageTypeSolicit, association(1), association(2), raw6(dhcpv6.OptionRapidCommit)),
		msg6(alice, dhcpv6.MessageTypeRequest, association(1, "fd00:2::1000"), ours),
		msg6(alice, dhcpv6.MessageTypeRenew, association(1, "fd00:2::1000", "fd00:2::1001"), ours),
		msg6(alice, dhcpv6.MessageTypeRebind, association(1, "2001:db8::1")),
		msg6(alice, dhcpv6.MessageTypeRelease, association(1, "fd00:2::1000"), ours),
		msg6(alice, dhcpv6.MessageTypeDecline, association(1, "fd00:2::1000"), ours),
		msg6(alice, dhcpv6.MessageTypeConfirm, association(1, "fd00:2::1000")),
		msg6(alice, dhcpv6.MessageTypeInformationRequest, raw6(dhcpv6.OptionORO, 0, 23, 0, 32)),
		msg6(alice, dhcpv6.MessageTypeSolicit, raw6(dhcpv6.OptionIAPD, make([]byte, 12)...), raw6(dhcpv6.OptionIATA, 0, 0, 0, 1)),
		msg6(alice, dhcpv6.MessageTypeSolicit, raw6(dhcpv6.OptionDomainSearchList, 1, 'a', 0, 0xc0, 0)),
		msg6(alice, dhcpv6.MessageTypeSolicit, raw6(dhcpv6.OptionRelayMsg, 12, 0)),
	} {
		f.Add(m.ToBytes())
	}
	f.Add([]byte{12, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0})
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

func fuzzSeedServer() *Server {
	s, err := New(qemu())
	if err != nil {
		panic(err)
	}
	return s
}

func FuzzState(f *testing.F) {
	for _, s := range []string{
		``, `{}`, `{"version":1}`, `{"version":1,"leases":null}`, `{"version":1,"leases":[null]}`, `{"version":1}x`,
		`{"version":1,"leases":[{"addr":"10.0.2.15","mac":"52:54:00:00:00:0a","client_id":"ff01","guest":"a","hostname":"vm","name":"vm","state":"bound","start":"2026-09-01T12:00:00Z","expires":"2026-09-02T12:00:00Z"}]}`,
		`{"version":1,"leases":[{"addr":"fd00:2::1000","mac":"52:54:00:00:00:0a","client_id":"00030001525400000a0a","iaid":7,"state":"released","expires":"2026-09-02T12:00:00Z"}]}`,
		`{"version":1,"leases":[{"addr":"10.0.2.15","mac":"00:00:00:00:00:00","guest":"x","state":"declined","expires":"9999-12-31T23:59:59Z"}]}`,
		`{"version":1,"leases":[{"addr":"::ffff:10.0.2.15","mac":"x","state":"bound"}]}`,
	} {
		f.Add([]byte(s))
	}
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
		again, err := json.Marshal(state{stateVersion, got})
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
