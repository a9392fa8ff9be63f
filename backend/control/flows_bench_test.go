package control

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/flows"
)

// sinkWriter is a client that reads everything at once.
type sinkWriter struct {
	head  http.Header
	bytes int
}

func (w *sinkWriter) Header() http.Header              { return w.head }
func (w *sinkWriter) WriteHeader(int)                  {}
func (w *sinkWriter) Write(b []byte) (int, error)      { w.bytes += len(b); return len(b), nil }
func (w *sinkWriter) Flush()                           {}
func (w *sinkWriter) SetWriteDeadline(time.Time) error { return nil }

// benchStream is a stream that nobody runs but the benchmark, with ten thousand conversations there.
func benchStream(b *testing.B) (*flowStream, *backend.Network, []*flows.Flow) {
	n, err := backend.New(backend.Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { n.Close() })
	n.Flows().SetLimits(flows.Limits{FlowRate: 1e9, UDP: 1e6, Total: 1e6, Flows: 1e6})
	var here []*flows.Flow
	for i := range 10000 {
		x, v := n.Flows().Open(query(flows.UDP, i), nil)
		if x == nil {
			b.Fatal(v)
		}
		here = append(here, x)
	}
	w := &sinkWriter{head: http.Header{}}
	f := &flowStream{ctx: context.Background(), out: w, ctl: http.NewResponseController(w), wake: make(chan struct{}, 1)}
	f.follow([]*backend.Network{n}, "", func(*backend.Network) (string, bool) { return "", true })
	b.Cleanup(f.close)
	return f, n, here
}

// A hundred conversations that begin, open and end between two turns: a thousand a second.
func BenchmarkFollowChanges(b *testing.B) {
	f, n, _ := benchStream(b)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for i := range 100 {
			x, _ := n.Flows().Open(query(flows.TCP, i), nil)
			x.SetState(flows.Open)
			x.End(flows.ReasonClosed)
		}
		b.StartTimer()
		f.changes()
		f.flush()
	}
}

// Ten thousand conversations, a tenth of which has moved in the last second.
func BenchmarkFollowBytes(b *testing.B) {
	f, _, here := benchStream(b)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for i := range 1000 {
			here[i*10].Up.Add(1000)
		}
		b.StartTimer()
		f.bytes()
		f.flush()
	}
}

// All of ten thousand, as at the beginning.
func BenchmarkFollowAnew(b *testing.B) {
	f, _, _ := benchStream(b)
	b.ReportAllocs()
	for b.Loop() {
		f.listed = time.Time{}
		f.anew()
	}
}
