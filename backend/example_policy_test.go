package backend_test

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/flows"
)

// onlyAPI is a program's own policy: guests reach one server, by the name that they are to know it by, and nothing else.
type onlyAPI struct{ server netip.AddrPort }

// Judge is called for each new conversation, and must not wait; who has to think about it gives a Verdict.Pending.
func (p onlyAPI) Judge(q flows.Query) flows.Verdict {
	switch {
	case q.Dir == flows.In:
		return flows.Verdict{Allow: true, Rule: "the host's own"}
	case q.Dst != p.server:
		return flows.Verdict{Reject: true, Reset: true, Reason: flows.ReasonPolicy, Rule: "nothing else"}
	}
	return flows.Verdict{Allow: true, Rule: "the API", Inspect: p.named}
}

// named is called once it is known whom the guest's first bytes name. Nothing of them has left.
func (onlyAPI) named(h flows.Hello) flows.Verdict {
	return flows.Verdict{Allow: h.Name == "api.example", Reason: flows.ReasonHello}
}

// How do I decide myself what guests may reach? Any flows.Policy will do, and it can be changed while guests run.
func ExampleNetwork_SetPolicy() {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "this is ", r.Host) }))
	defer web.Close()
	n := quiet(backend.Config{})
	defer n.Close()
	vm := plugIn(n, "vm")
	defer vm.Close()

	// The gateway stands for this host.
	server := netip.AddrPortFrom(n.Config().Gateway4, uint16(web.Listener.Addr().(*net.TCPAddr).Port))
	n.SetPolicy(onlyAPI{server}, true)

	client := vm.HTTPClient()
	defer client.CloseIdleConnections()
	for _, name := range []string{"api.example", "other.example"} {
		r, err := http.NewRequest("GET", "http://"+server.String(), nil)
		if err != nil {
			log.Fatal(err)
		}
		r.Host, r.Close = name, true
		answer, err := client.Do(r)
		if err != nil {
			fmt.Println(name, "was refused")
			continue
		}
		b, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		fmt.Printf("%s\n", b)
	}
	fmt.Println(n.Flows().Counts()["other-name"], "refused for its name")
	// Output:
	// this is api.example
	// other.example was refused
	// 1 refused for its name
}
