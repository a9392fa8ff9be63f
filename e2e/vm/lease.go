package vm

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Lease is what DHCP told eth0, as udhcpc understood it.
type Lease struct {
	Addr   netip.Prefix
	Router netip.Addr   // the zero Addr without one
	Server netip.Addr   // who gave it
	DNS    []netip.Addr // in order
	Time   time.Duration
	MTU    int    // 0 when none was told
	Domain string // option 15
	Search string // option 119
	// All has everything by udhcpc's own names.
	All map[string]string
}

// again is how often a state in the guest is looked at: the round trip of a command is some 20 ms
// under emulation, and what is waited for takes longer.
const again = 50 * time.Millisecond

// Lease waits until eth0 has a lease.
func (g *Guest) Lease(ctx context.Context) (Lease, error) {
	var out string
	err := g.until(ctx, "no DHCP lease", "cat /run/udhcpc.log", func() (bool, error) {
		var code int
		var err error
		out, code, err = g.Run(ctx, "cat /run/lease 2>/dev/null")
		return code == 0, err
	})
	if err != nil {
		return Lease{}, err
	}
	return parseLease(out)
}

// until calls f until it is done. When ctx ends first, the error says what was missing and what
// the command hint printed.
func (g *Guest) until(ctx context.Context, missing, hint string, f func() (bool, error)) error {
	for {
		done, err := f()
		if err == nil && !done {
			select {
			case <-time.After(again):
				continue
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		}
		if err != nil && ctx.Err() != nil {
			// ctx has ended; the hint needs a moment of its own.
			more, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			said, _, _ := g.Run(more, hint)
			return fmt.Errorf("guest %s: %s: %w: %s", g.Name, missing, context.Cause(ctx), strings.TrimSpace(said))
		}
		return err
	}
}

func parseLease(env string) (Lease, error) {
	l := Lease{All: map[string]string{}}
	sc := bufio.NewScanner(strings.NewReader(env))
	for sc.Scan() {
		if k, v, ok := strings.Cut(sc.Text(), "="); ok {
			l.All[k] = v
		}
	}
	addr, err := netip.ParseAddr(l.All["ip"])
	if err != nil {
		return l, fmt.Errorf("lease without an address: %w", err)
	}
	bits, err := strconv.Atoi(l.All["mask"])
	if err != nil {
		return l, fmt.Errorf("lease without a mask: %w", err)
	}
	l.Addr = netip.PrefixFrom(addr, bits)
	// The rest is optional: what is missing or odd stays at its zero value, and in All.
	l.Server, _ = netip.ParseAddr(l.All["serverid"])
	if r := strings.Fields(l.All["router"]); len(r) > 0 {
		l.Router, _ = netip.ParseAddr(r[0])
	}
	for _, d := range strings.Fields(l.All["dns"]) {
		if a, err := netip.ParseAddr(d); err == nil {
			l.DNS = append(l.DNS, a)
		}
	}
	secs, _ := strconv.ParseInt(l.All["lease"], 10, 64)
	l.Time = time.Duration(secs) * time.Second
	l.MTU, _ = strconv.Atoi(l.All["mtu"])
	l.Domain, l.Search = l.All["domain"], l.All["search"]
	return l, nil
}

// IPv6 waits until eth0 has an IPv6 address beyond the link, tested for duplicates and ready for
// use, and returns all of those.
func (g *Guest) IPv6(ctx context.Context) ([]netip.Prefix, error) {
	var found []netip.Prefix
	err := g.until(ctx, "no IPv6 address", "ip -6 addr; ip -6 route", func() (bool, error) {
		out, err := g.Output(ctx, "cat /proc/net/if_inet6")
		if err == nil {
			found, err = parseIfInet6(out, "eth0")
		}
		return len(found) > 0, err
	})
	return found, err
}

// parseIfInet6 reads the kernel's list: address, index, prefix length, scope, flags, name.
func parseIfInet6(s, iface string) ([]netip.Prefix, error) {
	const (
		scopeHost, scopeLink = 0x10, 0x20
		notYet               = 0x40 | 0x08 // IFA_F_TENTATIVE, IFA_F_DADFAILED
	)
	var found []netip.Prefix
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) != 6 || f[5] != iface {
			continue
		}
		raw, err := hex.DecodeString(f[0])
		if err != nil || len(raw) != 16 {
			return nil, fmt.Errorf("if_inet6: odd address %q", f[0])
		}
		addr, _ := netip.AddrFromSlice(raw)
		bits, err1 := strconv.ParseUint(f[2], 16, 8)
		scope, err2 := strconv.ParseUint(f[3], 16, 8)
		flags, err3 := strconv.ParseUint(f[4], 16, 16)
		if err1 != nil || err2 != nil || err3 != nil {
			return nil, fmt.Errorf("if_inet6: odd line %q", line)
		}
		if scope == scopeHost || scope == scopeLink || flags&notYet != 0 {
			continue
		}
		found = append(found, netip.PrefixFrom(addr, int(bits)))
	}
	return found, nil
}

// Decode runs a command that prints JSON and reads the first object of it into v.
func (g *Guest) Decode(ctx context.Context, v any, command string) error {
	out, err := g.Output(ctx, command)
	if err != nil {
		return err
	}
	if err := json.NewDecoder(strings.NewReader(out)).Decode(v); err != nil {
		return fmt.Errorf("guest %s: %s: %w in %q", g.Name, command, err, out)
	}
	return nil
}
