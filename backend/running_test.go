package backend_test

import (
	"errors"
	"syscall"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	. "github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
)

// shutting lets nobody in who begins, and everybody go on whom the first policy let in.
type shutting struct{}

func (shutting) Judge(flows.Query) flows.Verdict {
	return flows.Verdict{Reject: true, Reset: true, Reason: flows.ReasonPolicy}
}

func (shutting) JudgeRunning(q flows.Query, was flows.Verdict) flows.Verdict {
	// Of peers that datagrams go to, no more is kept than that they were let in.
	if was.Allow && (was.Rule == "first" || q.Proto == flows.UDP) {
		return was
	}
	return flows.Verdict{Reason: flows.ReasonPolicy}
}

// What runs may be judged otherwise than what begins: the policy is told what the verdict was.
func TestSetPolicyRunning(t *testing.T) {
	every(t, func(t *testing.T, c carrier, f family) {
		n, g := c.up(t, backend.Config{Policy: policyFunc(func(flows.Query) flows.Verdict { return flows.Verdict{Allow: true, Rule: "first"} })})
		guest, host := meet(t, g, f)
		peer, dst := f.udp(t)
		hop := g.GatewayMAC(t)
		say := func(what string) {
			t.Helper()
			g.Send(g.Via(hop, dst.Addr(), UDP{SrcPort: 4000, DstPort: dst.Port()}, Payload(what)))
			if b, _ := readHost(t, peer); string(b) != what {
				t.Fatalf("host read %q, want %q", b, what)
			}
		}
		say("before")
		if ended := n.SetPolicy(shutting{}, true); ended != 0 {
			t.Errorf("%d ended, want none", ended)
		}
		guest.Write([]byte("still"))
		arrives(t, host, []byte("still"))
		say("still")
		if _, err := g.Dial(patience(t), "tcp", f.listen(t, echo)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial under the new policy: %v, want refused", err)
		}
		if ended := n.SetPolicy(closedTo{}, true); ended != 2 {
			t.Errorf("%d ended, want the conversation and the datagrams'", ended)
		}
	})
}
