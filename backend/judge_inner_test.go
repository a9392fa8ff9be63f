package backend

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

// A policy that forgets what it was asked keeps nobody waiting for ever.
func TestAwaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &port{ctx: t.Context()}
		begun := time.Now()
		v := p.await(context.Background(), flows.Verdict{Pending: make(chan flows.Verdict), Rule: "ask"})
		if v.Allow || !v.Reject || v.Reason != flows.ReasonUnanswered || v.Rule != "ask" {
			t.Errorf("%+v, want it refused as unanswered", v)
		}
		if took := time.Since(begun); took != askTime {
			t.Errorf("after %v, want %v", took, askTime)
		}
	})
}
