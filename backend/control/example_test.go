package control_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/policy"
)

// A network whose guests reach one name and nothing else, and the program hears what they tried.
func ExampleNewPolicy() {
	n, err := backend.New(backend.Config{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer n.Close()
	doc, err := policy.Parse(`
		preset sandbox
		allow tcp api.example.com:443
	`)
	if err != nil {
		fmt.Println(err)
		return
	}
	p, err := control.NewPolicy(n, doc, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	n.SetPolicy(p, true) // from now on, and for conversations that run

	fmt.Println(p.Test("web", "tcp", "api.example.com:443"))
	v := n.Flows().Judge(flows.Query{Guest: "web", Proto: flows.TCP, Dst: netip.MustParseAddrPort("192.0.2.1:443")})
	fmt.Println(v.Allow, v.Reason)
	// Output:
	// tcp api.example.com:443: allow, by rule 1: allow tcp api.example.com:443; first bytes must be TLS or HTTP and name api.example.com <nil>
	// false policy
}
