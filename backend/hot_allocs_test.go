//go:build !race

package backend

// The race detector makes pools forget at random, so these run without it.

import (
	"fmt"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// none fails if f, which was warmed up, allocates.
func none(t *testing.T, f func()) {
	t.Helper()
	for range 50 {
		f()
	}
	if n := testing.AllocsPerRun(200, f); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

// A frame costs no allocation on its way to the stack.
func TestAllocsCarry(t *testing.T) {
	for _, fam := range hotFamilies {
		for _, name := range hotNames {
			t.Run(fmt.Sprintf("%s/%s", name, fam), func(t *testing.T) {
				p := hotPort(t)
				load(p.batch, hotBatches(p.net, fam)[name])
				p.nic.Attach(&deaf{})
				none(t, p.carry)
			})
		}
	}
}

// Nor on its way back.
func TestAllocsSend(t *testing.T) {
	for _, tt := range hotSplits {
		t.Run(tt.name, func(t *testing.T) {
			p := hotPort(t)
			pkt := tt.x.build()
			defer pkt.DecRef()
			var list stack.PacketBufferList
			for range 16 {
				list.PushBack(pkt.IncRef())
			}
			defer list.Reset()
			cut := p.cut
			var items []item
			none(t, func() {
				p.nic.WritePackets(list)
				items = p.queue.grab(items)
				for rest := items; len(rest) > 0; {
					n, _ := p.compose(rest, cut)
					p.queue.done(rest[:n])
					rest = rest[n:]
				}
			})
		})
	}
}
