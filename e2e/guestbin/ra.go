//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv6"
)

type raPrefix struct {
	Prefix     string `json:"prefix"`
	OnLink     bool   `json:"on_link"`
	Autonomous bool   `json:"autonomous"`
	Valid      uint32 `json:"valid"` // seconds
	Preferred  uint32 `json:"preferred"`
}

// raReport is a router advertisement (RFC 4861 section 4.2, RFC 8106 for RDNSS and DNSSL).
type raReport struct {
	From           string     `json:"from,omitempty"`
	HopLimit       int        `json:"hop_limit"`
	Managed        bool       `json:"managed"`
	Other          bool       `json:"other"`
	RouterLifetime uint16     `json:"router_lifetime"`
	MTU            uint32     `json:"mtu,omitempty"`
	SourceMAC      string     `json:"source_mac,omitempty"`
	Prefixes       []raPrefix `json:"prefixes,omitempty"`
	RDNSS          []string   `json:"rdnss,omitempty"`
	DNSSL          []string   `json:"dnssl,omitempty"`
	Error          string     `json:"error,omitempty"`
	Seconds        float64    `json:"seconds"`
}

func solicitRouter(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("ra", flag.ContinueOnError)
	quiet := fs.Bool("quiet", false, "do not ask, only wait for one")
	timeout := fs.Duration("timeout", 5*time.Second, "for an answer")
	if err := parse(fs, args, "IFACE", 1, 1); err != nil {
		return err
	}
	iface, err := net.InterfaceByName(fs.Arg(0))
	if err != nil {
		return err
	}
	pc, err := net.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return err
	}
	defer pc.Close()
	p := ipv6.NewPacketConn(pc)
	var only ipv6.ICMPFilter
	only.SetAll(true)
	only.Accept(ipv6.ICMPTypeRouterAdvertisement)
	if err := errors.Join(
		p.SetICMPFilter(&only),
		p.SetControlMessage(ipv6.FlagInterface|ipv6.FlagHopLimit, true),
		p.SetMulticastHopLimit(255), // RFC 4861 section 4.1: anything else is dropped
		p.SetMulticastInterface(iface),
		p.SetReadDeadline(time.Now().Add(*timeout)),
	); err != nil {
		return err
	}
	began := time.Now()
	if !*quiet {
		solicit := append([]byte{133, 0, 0, 0, 0, 0, 0, 0, 1, 1}, iface.HardwareAddr...)
		routers := &net.IPAddr{IP: net.ParseIP("ff02::2"), Zone: iface.Name}
		if _, err := p.WriteTo(solicit, nil, routers); err != nil {
			return err
		}
	}
	b := make([]byte, 65535)
	for {
		n, cm, from, err := p.ReadFrom(b)
		if err != nil {
			return say(raReport{Error: err.Error(), Seconds: time.Since(began).Seconds()})
		}
		if cm == nil || cm.IfIndex != iface.Index || cm.HopLimit != 255 {
			continue
		}
		r := parseRA(b[:n])
		r.From, r.Seconds = from.String(), time.Since(began).Seconds()
		return say(r)
	}
}

func parseRA(b []byte) raReport {
	if len(b) < 16 {
		return raReport{Error: "shorter than a router advertisement"}
	}
	r := raReport{
		HopLimit: int(b[4]), Managed: b[5]&0x80 != 0, Other: b[5]&0x40 != 0,
		RouterLifetime: binary.BigEndian.Uint16(b[6:]),
	}
	for o := b[16:]; len(o) >= 8; {
		n := int(o[1]) * 8
		if n == 0 || n > len(o) {
			r.Error = "an option that is longer than the message or empty"
			return r
		}
		opt := o[:n]
		o = o[n:]
		switch {
		case opt[0] == 1: // source link-layer address
			r.SourceMAC = net.HardwareAddr(opt[2:8]).String()
		case opt[0] == 3 && n == 32: // prefix information
			a, _ := netip.AddrFromSlice(opt[16:32])
			r.Prefixes = append(r.Prefixes, raPrefix{
				Prefix: netip.PrefixFrom(a, int(opt[2])).String(),
				OnLink: opt[3]&0x80 != 0, Autonomous: opt[3]&0x40 != 0,
				Valid: binary.BigEndian.Uint32(opt[4:]), Preferred: binary.BigEndian.Uint32(opt[8:]),
			})
		case opt[0] == 5:
			r.MTU = binary.BigEndian.Uint32(opt[4:])
		case opt[0] == 25: // RDNSS
			for i := 8; i+16 <= n; i += 16 {
				a, _ := netip.AddrFromSlice(opt[i : i+16])
				r.RDNSS = append(r.RDNSS, a.String())
			}
		case opt[0] == 31: // DNSSL, padded with zeros
			for i := 8; i < n && opt[i] != 0; {
				name, next, err := dns.UnpackDomainName(opt, i)
				if err != nil {
					r.Error = "DNSSL: " + err.Error()
					return r
				}
				r.DNSSL = append(r.DNSSL, name)
				i = next
			}
		}
	}
	return r
}
