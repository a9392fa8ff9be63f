package policy_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/policy"
)

// A guest that may fetch packages, and nothing else.
func Example() {
	doc, err := policy.Parse(`
		preset sandbox
		allow tcp *.debian.org:80,443
	`)
	if err != nil {
		fmt.Println(err)
		return
	}
	p, err := policy.New(policy.Config{Document: doc, Network: flows.Default{
		Gateways: []netip.Addr{netip.MustParseAddr("10.0.2.2")},
		Local:    []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24")},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()

	deb := netip.MustParseAddr("151.101.2.132")
	to := flows.Query{Guest: "g1", Proto: flows.TCP, Dst: netip.AddrPortFrom(deb, 443)}
	fmt.Println("before it asked:", p.Judge(to).Allow)
	fmt.Println("may ask:", p.JudgeName("g1", "deb.debian.org", 1).Allow, p.JudgeName("g1", "evil.example", 1).Allow)
	p.Answered("g1", "deb.debian.org", []netip.Addr{deb}, time.Minute, false)
	v := p.Judge(to)
	fmt.Println("after:", v.Allow, "by", v.Rule)
	fmt.Println("saying so:", v.Inspect(flows.Hello{How: flows.HelloTLS, Name: "deb.debian.org"}).Allow)
	fmt.Println("saying another name:", v.Inspect(flows.Hello{How: flows.HelloTLS, Name: "evil.example"}).Reason)
	// Output:
	// before it asked: false
	// may ask: true false
	// after: true by rule 1: allow tcp *.debian.org:80,443
	// saying so: true
	// saying another name: other-name
}

func ExampleParse() {
	_, err := policy.Parse("preset sandbox\nallow tcp api.example.com:https\nalow udp any\n")
	fmt.Println(err)
	// Output:
	// policy line 2, column 27: port "https": want 1 to 65535, as 443, 80,443 or 5000-5010
	// policy line 3, column 1: "alow": want allow, reject, drop or ask to begin a rule, or preset, default, first-bytes, names or guest
}

// What a rule would do, before anybody comes.
func ExamplePolicy_Test() {
	doc, _ := policy.Parse("preset sandbox\nallow tcp api.example.com:443\nask tcp *.example.org:22")
	p, _ := policy.New(policy.Config{Document: doc})
	defer p.Close()
	for _, dst := range []string{"api.example.com:443", "git.example.org:22", "10.0.0.1:22", "evil.example:443"} {
		r, err := p.Test("g1", "tcp", dst)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(r)
	}
	// Output:
	// tcp api.example.com:443: allow, by rule 1: allow tcp api.example.com:443; first bytes must be TLS or HTTP and name api.example.com
	// tcp git.example.org:22: ask, by rule 2: ask tcp *.example.org:22
	// tcp 10.0.0.1:22: reject, by sandbox: reject any private (policy)
	// tcp evil.example:443: reject, by sandbox: default reject (name)
}

// Somebody is asked, and says yes for good.
func ExamplePolicy_Answer() {
	doc, _ := policy.Parse("preset sandbox\ndefault ask")
	p, _ := policy.New(policy.Config{Document: doc})
	defer p.Close()
	v := p.Judge(flows.Query{Guest: "g1", Proto: flows.TCP, Dst: netip.MustParseAddrPort("192.0.2.1:22")})
	for _, q := range p.Questions() {
		fmt.Println(q.Guest, "wants", q.Proto, q.Dst)
		if err := p.Answer(q.ID, policy.Reply{Allow: true, Scope: policy.Session}); err != nil {
			fmt.Println(err)
		}
	}
	fmt.Println((<-v.Pending).Allow)
	// Output:
	// g1 wants tcp 192.0.2.1:22
	// true
}
