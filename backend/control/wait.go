package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/portforward"
)

// PortState is what became of a try to reach a port of a guest.
type PortState struct {
	Guest   string         `json:"guest"` // its id
	Proto   string         `json:"proto"`
	Port    uint16         `json:"port"`
	State   string         `json:"state"`            // open, quiet (UDP: not refused, and no answer), refused, silent
	Address netip.AddrPort `json:"address,omitzero"` // of the guest, that was tried; of several the one that did best
	Detail  string         `json:"detail"`           // the same for people
}

// Answers says that whoever connects now has somebody at the far end, as far as can be known.
func (p PortState) Answers() bool { return p.State == portOpen || p.State == portQuiet }

// The states of a port, the best first.
const (
	portOpen    = "open"
	portQuiet   = "quiet"
	portRefused = "refused"
	portSilent  = "silent"
)

var portStates = []string{portOpen, portQuiet, portRefused, portSilent}

const (
	// portTime is how long a port may take to answer: a SYN is sent again after one second and after three (RFC 6298), so
	// two may be lost.
	portTime = 4 * time.Second
	// quietTime is how long nothing comes back from a UDP port that nobody has refused: a guest's ICMP takes less.
	quietTime = time.Second
	// maxPortTries at once, over all clients: each is up to two conversations with a guest, and there is no hurry.
	maxPortTries = 64
)

func (s *Server) waitRoutes() []route {
	return []route{{path: "/v1/guests/{guest}/port", id: guestID, on: verbs{"GET": {do: s.tryPort,
		says: "Connects to a port of a guest, as a forward would, sends nothing (to UDP an empty datagram), and says within seconds what became of it", gives: PortState{},
		query: []param{{name: "port", says: "the port, from 1 to 65535", is: 0}, {name: "proto", says: "the protocol, tcp if it is not said", one: []string{"tcp", "udp"}}}}}}}
}

func (s *Server) tryPort(c *call) (reply, error) {
	port, err := strconv.ParseUint(c.query.Get("port"), 10, 16)
	if err != nil || port == 0 {
		return reply{}, problem(http.StatusBadRequest, "as /v1/guests/web/port?port=22", "%q is no port", short(c.query.Get("port")))
	}
	if c.net.Config().NoUplink {
		return reply{}, problem(http.StatusUnprocessableEntity, "ask from one of its guests: in a lab, 'vmnetd lab exec NODE -- …'", "network %s: %v: nothing comes in", c.net.Config().Name, backend.ErrNoUplink)
	}
	ref := c.PathValue("guest")
	g, err := c.guest(ref)
	if a, wrong := netip.ParseAddr(ref); err != nil && (wrong != nil || !inNetwork(c.net, a)) {
		return reply{}, err
	} // an address that nobody has shown yet is asked for
	p := PortState{Guest: g.ID, Proto: "tcp", Port: uint16(port), State: portSilent, Detail: "it has not said who it is yet"}
	if c.query.Get("proto") == "udp" {
		p.Proto = "udp"
	}
	if s.tries.Add(1) > maxPortTries {
		s.tries.Add(-1)
		return reply{}, problem(http.StatusTooManyRequests, "again in a second", "%d ports are tried already", maxPortTries)
	}
	defer s.tries.Add(-1)
	ctx, cancel := context.WithTimeout(c.Context(), portTime)
	defer cancel()
	addrs := portAddrs(g, ref)
	tried := make(chan PortState, len(addrs))
	for _, a := range addrs {
		go func(p PortState) { tried <- p.try(ctx, c.net, a) }(p)
	}
	for range addrs {
		t := <-tried
		if better(t, p) || !p.Address.IsValid() {
			p = t
		}
		if p.State == portOpen {
			cancel()
		}
	}
	if err != nil {
		if g, err = c.guest(ref); err != nil {
			return reply{}, err
		}
		p.Guest = g.ID
	}
	return reply{http.StatusOK, p}, nil
}

func inNetwork(n *backend.Network, a netip.Addr) bool {
	cfg := n.Config()
	return cfg.Prefix4.Contains(a.Unmap()) || cfg.Prefix6.Contains(a)
}

func better(a, b PortState) bool {
	return slices.Index(portStates, a.State) < slices.Index(portStates, b.State)
}

// portAddrs are where a guest is tried: at the address that it was named by, else at one of each family.
func portAddrs(g backend.GuestInfo, ref string) (list []netip.Addr) {
	if a, err := netip.ParseAddr(ref); err == nil {
		return []netip.Addr{a.Unmap().WithZone("")}
	}
	for _, is4 := range []bool{true, false} {
		if i := slices.IndexFunc(g.Addrs, func(a netip.Addr) bool { return a.Is4() == is4 && !a.IsLinkLocalUnicast() }); i >= 0 {
			list = append(list, g.Addrs[i])
		}
	}
	return list
}

// try connects once.
func (p PortState) try(ctx context.Context, n *backend.Network, a netip.Addr) PortState {
	p.Address = netip.AddrPortFrom(a, p.Port)
	conn, err := n.DialContext(ctx, p.Proto, p.Address.String())
	if err == nil {
		if p.Proto == "udp" {
			err = askUDP(ctx, conn)
		}
		conn.Close()
	}
	switch {
	case err == nil:
		p.State, p.Detail = portOpen, "it answers"
	case errors.Is(err, os.ErrDeadlineExceeded) && p.Proto == "udp":
		p.State, p.Detail = portQuiet, "no answer, and not refused"
	case errors.Is(err, syscall.ECONNREFUSED):
		p.State, p.Detail = portRefused, "refused: nothing listens there"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		p.State, p.Detail = portSilent, fmt.Sprintf("no answer in %v: it may be booting, or have a firewall", portTime)
	case errors.Is(err, portforward.ErrNoGuest):
		p.State, p.Detail = portSilent, "nobody has this address"
	default:
		p.State, p.Detail = portSilent, short(err.Error())
	}
	return p
}

// askUDP sends a datagram and waits for what comes of it.
func askUDP(ctx context.Context, conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(quietTime))
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(nil); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1<<16)) // whatever a datagram has
	return err
}

// Port tries a port of a guest, named by id, name, MAC or address; proto is tcp or udp.
func (c *Client) Port(ctx context.Context, guest, proto string, port uint16) (p PortState, err error) {
	return p, c.call(ctx, http.MethodGet, "guests/"+url.PathEscape(guest)+"/port", values("port", fmt.Sprint(port), "proto", proto), nil, &p)
}
