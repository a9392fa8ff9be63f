//go:build linux

package e2e

import (
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// nameServer is the world's DNS server, at all its addresses, over UDP and TCP. Its zone:
//
//	www.example   A AAAA TXT MX SRV CAA HTTPS
//	big.example   TXT of 3,000 bytes
//	www.example.com    A AAAA, the world's; evil.example.com the same, other.example its second ones
//	rebind.example.com A AAAA, the world's and private ones
//	nx.example    NXDOMAIN    fail.example  SERVFAIL    mute.example  no answer
type nameServer struct {
	mu    sync.Mutex
	asked map[string]int // "www.example. A udp"
}

var zone = map[string][]string{
	"www.example.": {
		"A 192.0.2.1", "AAAA 2001:db8::1", `TXT "one" "two"`, "MX 10 mail.example.", "SRV 1 2 80 www.example.",
		`CAA 0 issue "ca.example"`, "HTTPS 1 . alpn=h2", "NAPTR 1 2 \"u\" \"sip\" \"!a!b!\" .",
	},
	"www.example.com.":    {"A 192.0.2.1", "AAAA 2001:db8::1"},
	"evil.example.com.":   {"A 192.0.2.1", "AAAA 2001:db8::1"},
	"other.example.":      {"A 198.51.100.1", "AAAA 2001:db8:1::1"},
	"rebind.example.com.": {"A 192.0.2.1", "A 192.168.7.7", "A 127.0.0.1", "A 10.0.2.2", "AAAA 2001:db8::1", "AAAA ::1", "AAAA fd12::7"},
	"big.example.":        {"TXT " + strings.Repeat(`"`+strings.Repeat("x", 200)+`" `, 15)},
}

func startNameServer(t *testing.T, n *netns) *nameServer {
	t.Helper()
	s := &nameServer{asked: map[string]int{}}
	for _, a := range []string{world4, world6} {
		at := net.JoinHostPort(a, "53")
		pc := n.listenPacket(t, at)
		var l net.Listener
		if err := n.Do(func() (err error) {
			l, err = net.Listen("tcp", at)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		for _, srv := range []*dns.Server{{PacketConn: pc, Handler: s.handler("udp")}, {Listener: l, Handler: s.handler("tcp")}} {
			ended := make(chan struct{})
			up := make(chan struct{})
			srv.NotifyStartedFunc = func() { close(up) }
			go func() {
				defer close(ended)
				srv.ActivateAndServe()
			}()
			<-up
			t.Cleanup(func() {
				srv.Shutdown()
				<-ended
			})
		}
	}
	return s
}

func (s *nameServer) handler(network string) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		name, qtype := strings.ToLower(q.Question[0].Name), dns.TypeToString[q.Question[0].Qtype]
		s.mu.Lock()
		s.asked[name+" "+qtype+" "+network]++
		s.mu.Unlock()
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable = true
		records, known := zone[name]
		switch {
		case name == "mute.example.":
			return
		case name == "fail.example.":
			m.Rcode = dns.RcodeServerFailure
		case !known:
			m.Rcode = dns.RcodeNameError
		}
		for _, r := range records {
			if strings.HasPrefix(r, qtype+" ") {
				rr, err := dns.NewRR(name + " 60 IN " + r)
				if err != nil {
					panic(err) // the zone above is wrong
				}
				m.Answer = append(m.Answer, rr)
			}
		}
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = int(o.UDPSize())
			m.SetEdns0(1232, o.Do())
		}
		if network == "tcp" {
			size = dns.MaxMsgSize
		}
		m.Truncate(size)
		w.WriteMsg(m)
	}
}

// count is how many questions came that contain the text.
func (s *nameServer) count(text string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for q, c := range s.asked {
		if strings.Contains(q, text) {
			n += c
		}
	}
	return n
}
