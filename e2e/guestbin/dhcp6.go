//go:build linux

package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
)

type dhcp6Address struct {
	Address   string  `json:"address"`
	Preferred float64 `json:"preferred"` // seconds
	Valid     float64 `json:"valid"`
}

type dhcp6Report struct {
	Type      string         `json:"type,omitempty"`
	Addresses []dhcp6Address `json:"addresses,omitempty"`
	DNS       []string       `json:"dns,omitempty"`
	Search    []string       `json:"search,omitempty"`
	Status    string         `json:"status,omitempty"`
	Summary   string         `json:"summary,omitempty"`
	Error     string         `json:"error,omitempty"`
	Seconds   float64        `json:"seconds"`
}

func dhcp6(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("dhcp6", flag.ContinueOnError)
	info := fs.Bool("info", false, "only ask for the settings (INFORMATION-REQUEST), not for an address")
	rapid := fs.Bool("rapid", false, "ask for an address in two messages (rapid commit)")
	timeout := fs.Duration("timeout", 5*time.Second, "for all of it")
	if err := parse(fs, args, "IFACE", 1, 1); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	iface, err := net.InterfaceByName(fs.Arg(0))
	if err != nil {
		return err
	}
	c, err := nclient6.New(fs.Arg(0), nclient6.WithTimeout(time.Second))
	if err != nil {
		return err
	}
	defer c.Close()
	began := time.Now()
	m, err := exchange(ctx, c, iface.HardwareAddr, *info, *rapid)
	r := dhcp6Report{Seconds: time.Since(began).Seconds()}
	if err != nil {
		r.Error = err.Error()
		return say(r)
	}
	r.Type, r.Summary = m.Type().String(), m.Summary()
	for _, ip := range m.Options.DNS() {
		r.DNS = append(r.DNS, ip.String())
	}
	if l := m.Options.DomainSearchList(); l != nil {
		r.Search = l.Labels
	}
	if s := m.Options.Status(); s != nil {
		r.Status = s.StatusCode.String()
	}
	for _, ia := range m.Options.IANA() {
		if s := ia.Options.Status(); s != nil {
			r.Status = s.StatusCode.String()
		}
		for _, a := range ia.Options.Addresses() {
			r.Addresses = append(r.Addresses, dhcp6Address{a.IPv6Addr.String(), a.PreferredLifetime.Seconds(), a.ValidLifetime.Seconds()})
		}
	}
	return say(r)
}

func exchange(ctx context.Context, c *nclient6.Client, mac net.HardwareAddr, info, rapid bool) (*dhcpv6.Message, error) {
	asked := dhcpv6.WithRequestedOptions(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList)
	switch {
	case info:
		m, err := dhcpv6.NewMessage(dhcpv6.WithClientID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: mac}), asked)
		if err != nil {
			return nil, err
		}
		m.MessageType = dhcpv6.MessageTypeInformationRequest
		return c.SendAndRead(ctx, c.RemoteAddr(), m, nclient6.IsMessageType(dhcpv6.MessageTypeReply))
	case rapid:
		return c.RapidSolicit(ctx, asked)
	}
	offer, err := c.Solicit(ctx, asked)
	if err != nil {
		return nil, fmt.Errorf("solicit: %w", err)
	}
	return c.Request(ctx, offer, asked)
}
