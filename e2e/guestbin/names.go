//go:build linux

package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// dnsReport is an answer, its records as zone file lines.
type dnsReport struct {
	Server    string   `json:"server"`
	Rcode     string   `json:"rcode,omitempty"`
	Answer    []string `json:"answer"`
	Authority []string `json:"authority,omitempty"`
	AA        bool     `json:"aa"`
	TC        bool     `json:"tc"`
	RA        bool     `json:"ra"`
	EDNS      int      `json:"edns,omitempty"` // the UDP size in the answer's OPT record
	Bytes     int      `json:"bytes"`
	Error     string   `json:"error,omitempty"`
	Seconds   float64  `json:"seconds"`
}

func query(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("dns", flag.ContinueOnError)
	server := fs.String("server", "", "`ADDR[:PORT]`; without it the first of /etc/resolv.conf")
	tcp := fs.Bool("tcp", false, "over TCP")
	edns := fs.Int("edns", 0, "say that we take answers of so many `bytes`")
	do := fs.Bool("do", false, "ask for DNSSEC records")
	timeout := fs.Duration("timeout", 10*time.Second, "for the answer")
	if err := parse(fs, args, "NAME [TYPE]", 1, 2); err != nil {
		return err
	}
	qtype := uint16(dns.TypeA)
	if fs.NArg() == 2 {
		var ok bool
		if qtype, ok = dns.StringToType[strings.ToUpper(fs.Arg(1))]; !ok {
			return fmt.Errorf("no DNS type %q", fs.Arg(1))
		}
	}
	if *server == "" {
		conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
		if err != nil {
			return err
		}
		if len(conf.Servers) == 0 {
			return fmt.Errorf("no nameserver in /etc/resolv.conf")
		}
		*server = conf.Servers[0]
	}
	if _, _, err := net.SplitHostPort(*server); err != nil {
		*server = net.JoinHostPort(strings.Trim(*server, "[]"), "53")
	}
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(fs.Arg(0)), qtype)
	if *edns > 0 || *do {
		m.SetEdns0(uint16(max(*edns, dns.MinMsgSize)), *do)
	}
	c := dns.Client{Timeout: *timeout}
	if *tcp {
		c.Net = "tcp"
	}
	began := time.Now()
	in, _, err := c.ExchangeContext(ctx, m, *server)
	r := dnsReport{Server: *server, Answer: []string{}, Seconds: time.Since(began).Seconds()}
	if err != nil {
		r.Error = err.Error()
		return say(r)
	}
	r.Rcode, r.AA, r.TC, r.RA, r.Bytes = dns.RcodeToString[in.Rcode], in.Authoritative, in.Truncated, in.RecursionAvailable, in.Len()
	for _, rr := range in.Answer {
		r.Answer = append(r.Answer, rr.String())
	}
	for _, rr := range in.Ns {
		r.Authority = append(r.Authority, rr.String())
	}
	if o := in.IsEdns0(); o != nil {
		r.EDNS = int(o.UDPSize())
	}
	return say(r)
}
