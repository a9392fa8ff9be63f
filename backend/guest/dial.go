package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/vmnetd/vmnetd/backend/sockets"
)

// dnsWait is how long a resolver has for an answer, and dnsTries how often each is asked: resolv.conf(5)'s defaults.
const (
	dnsWait  = 5 * time.Second
	dnsTries = 2
)

// DialContext is package net's, from the guest: network is tcp or udp, or one of a family, tcp4; address is HOST:PORT,
// whose HOST the network's DNS resolves.
func (g *Guest) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		var op *net.OpError
		if !errors.As(err, &op) {
			err = &net.OpError{Op: "dial", Net: network, Err: err}
		}
		return nil, err
	}
	kind, family, err := sockets.Split(network)
	if err != nil {
		return fail(err)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fail(err)
	}
	num, err := net.DefaultResolver.LookupPort(ctx, network, port)
	if err != nil {
		return fail(err)
	}
	addrs, err := g.lookup(ctx, host, family)
	if err != nil {
		return fail(err)
	}
	for _, a := range addrs {
		dst := netip.AddrPortFrom(a, uint16(num))
		var c net.Conn
		if kind == "tcp" {
			c, err = g.DialTCP(ctx, netip.AddrPort{}, dst)
		} else {
			c, err = g.dialUDP(dst)
		}
		if err == nil || ctx.Err() != nil {
			if err != nil {
				return fail(err)
			}
			return c, nil
		}
	}
	return fail(err)
}

// DialTCP opens a conversation from an address and port of the guest's, either of which may be zero.
func (g *Guest) DialTCP(ctx context.Context, src, dst netip.AddrPort) (*sockets.TCPConn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer g.hear(dst, cancel)()
	return sockets.DialTCP(ctx, g.stack, src, dst)
}

// DialUDP opens a socket with one peer, from an address and port that may be zero.
func (g *Guest) DialUDP(src, dst netip.AddrPort) (*sockets.UDPConn, error) {
	return sockets.OpenUDP(g.stack, src, dst)
}

// udpConn is one that hears that its peer is prohibited.
type udpConn struct {
	*sockets.UDPConn
	unhear func()
}

func (c *udpConn) Close() error {
	c.unhear()
	return c.UDPConn.Close()
}

func (g *Guest) dialUDP(dst netip.AddrPort) (net.Conn, error) {
	c, err := g.DialUDP(netip.AddrPort{}, dst)
	if err != nil {
		return nil, err
	}
	return &udpConn{c, g.hear(dst, c.Fail)}, nil
}

// Listen is package net's, on the guest: address is HOST:PORT, HOST an address of the guest's or none for all.
func (g *Guest) Listen(network, address string) (net.Listener, error) {
	at, err := g.local(network, address, "tcp")
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	return g.ListenTCP(at)
}

// ListenTCP is Listen, without words. The zero address is any of both families.
func (g *Guest) ListenTCP(at netip.AddrPort) (*sockets.Listener, error) {
	return sockets.ListenTCP(g.stack, at)
}

// ListenPacket is package net's, on the guest, for UDP.
func (g *Guest) ListenPacket(network, address string) (net.PacketConn, error) {
	at, err := g.local(network, address, "udp")
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	return g.DialUDP(at, netip.AddrPort{})
}

func (g *Guest) local(network, address, want string) (at netip.AddrPort, err error) {
	kind, family, err := sockets.Split(network)
	if err != nil || kind != want {
		return at, net.UnknownNetworkError(network)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return at, err
	}
	num, err := net.DefaultResolver.LookupPort(context.Background(), network, port)
	if err != nil {
		return at, err
	}
	var a netip.Addr
	switch {
	case host == "" && family == "4":
		a = netip.IPv4Unspecified()
	case host == "" && family == "6":
		a = netip.IPv6Unspecified()
	case host != "":
		if a, err = netip.ParseAddr(host); err != nil {
			return at, err
		}
		if family == "4" && !a.Is4() || family == "6" && !a.Is6() {
			return at, &net.AddrError{Err: "not an IPv" + family + " address", Addr: host}
		}
		if family == "" && a == netip.IPv6Unspecified() {
			a = netip.Addr{} // as package net's: all
		}
	}
	return netip.AddrPortFrom(a, uint16(num)), nil
}

// HTTPClient speaks HTTP from the guest. Close its idle connections when it is done with.
func (g *Guest) HTTPClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy, t.DialContext = nil, g.DialContext
	return &http.Client{Transport: t}
}

// LookupNetIP asks the network's DNS for a name's addresses, IPv4's first.
func (g *Guest) LookupNetIP(ctx context.Context, host string) ([]netip.Addr, error) {
	return g.lookup(ctx, host, "")
}

// lookup resolves for a family, "4", "6" or any. Addresses that there is no route to come last.
func (g *Guest) lookup(ctx context.Context, host, family string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		a = a.Unmap()
		if family == "4" && !a.Is4() || family == "6" && !a.Is6() {
			return nil, &net.AddrError{Err: "not an IPv" + family + " address", Addr: host}
		}
		return []netip.Addr{a}, nil
	}
	g.mu.Lock()
	search := append([]string(nil), g.search...)
	g.mu.Unlock()
	names := []string{dns.Fqdn(host)}
	if !strings.HasSuffix(host, ".") {
		for _, s := range search {
			names = append(names, dns.Fqdn(host+"."+s))
		}
		if !strings.Contains(host, ".") && len(names) > 1 { // ndots:1
			names = append(names[1:], names[0])
		}
	}
	var last error
	for _, name := range names {
		var answers [2][]netip.Addr
		var errs [2]error
		var wg sync.WaitGroup
		for i, q := range []struct {
			family string
			typ    uint16
		}{{"4", dns.TypeA}, {"6", dns.TypeAAAA}} {
			if family == "" || family == q.family {
				wg.Go(func() { answers[i], errs[i] = g.query(ctx, name, q.typ) })
			}
		}
		wg.Wait()
		all := append(answers[0], answers[1]...)
		if len(all) > 0 {
			return all, nil
		}
		if err := errors.Join(errs[:]...); err != nil {
			last = err
		}
	}
	e := &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	if last != nil {
		e.Err, e.IsNotFound, e.UnwrapErr = last.Error(), false, last
	}
	return nil, e
}

// query asks one question, by UDP and then, where the answer is cut short, by TCP.
func (g *Guest) query(ctx context.Context, name string, typ uint16) ([]netip.Addr, error) {
	m := new(dns.Msg)
	m.SetQuestion(name, typ)
	m.SetEdns0(1232, false) // what no path fragments (RFC 9715 §3.1)
	err := errors.New("the network named no resolver")
	for range dnsTries {
		for _, s := range g.DNS() {
			var r *dns.Msg
			r, err = g.exchange(ctx, "udp", s, m)
			if err == nil && r.Truncated {
				r, err = g.exchange(ctx, "tcp", s, m)
			}
			if err != nil {
				if ctx.Err() != nil {
					return nil, err
				}
				continue
			}
			if r.Rcode != dns.RcodeSuccess && r.Rcode != dns.RcodeNameError {
				err = fmt.Errorf("resolver %s: %s", s, dns.RcodeToString[r.Rcode])
				continue
			}
			var addrs []netip.Addr
			for _, rr := range r.Answer {
				var ip net.IP
				switch rr := rr.(type) {
				case *dns.A:
					ip = rr.A
				case *dns.AAAA:
					ip = rr.AAAA
				}
				if a, ok := netip.AddrFromSlice(ip); ok {
					addrs = append(addrs, a.Unmap())
				}
			}
			return addrs, nil
		}
	}
	return nil, err
}

func (g *Guest) exchange(ctx context.Context, network string, server netip.Addr, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, dnsWait)
	defer cancel()
	c, err := g.DialContext(ctx, network, netip.AddrPortFrom(server, 53).String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Now()) })()
	client := dns.Client{Net: network, Timeout: dnsWait}
	r, _, err := client.ExchangeWithConnContext(ctx, m, &dns.Conn{Conn: c, UDPSize: 1232})
	return r, err
}
