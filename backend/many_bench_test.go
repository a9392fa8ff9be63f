package backend

import (
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// What it costs a guest to have five thousand conversations when the buffers are shared anew, in a cache that a transfer
// has filled with other things.
func BenchmarkSettle(b *testing.B) {
	p := hotPort(b)
	fam := hotFamilies[0]
	for range 5000 {
		ep, err := p.stack.NewEndpoint(tcp.ProtocolNumber, fam.proto, new(waiter.Queue))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(ep.Abort)
		p.buffers.join(ep, tcpBuffer, nil)
	}
	other := make([]byte, 16<<20)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for i := range other {
			other[i]++
		}
		b.StartTimer()
		p.buffers.settle()
	}
}
