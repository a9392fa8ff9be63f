package backend_test

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend"
)

// cpu is how much of the processor this process has had, in nanoseconds.
func cpu() int64 {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkBeside is a transfer beside idle conversations of the same guest: 16 MiB each time, to the guest and from it.
// What is reported is the processor's time for all of this process, so for both ends too.
func BenchmarkBeside(b *testing.B) {
	f := families[0]
	for _, idle := range []int{0, 100, 5000} {
		for _, way := range []string{"down", "up"} {
			b.Run(fmt.Sprintf("%d/%s", idle, way), func(b *testing.B) {
				var most unix.Rlimit
				if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &most); err != nil || uint64(descriptors(b)+2*idle+100) > most.Cur {
					b.Skip("too few descriptors")
				}
				_, g := carriers[1].up(b, backend.Config{})
				to := f.listen(b, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
				var wg sync.WaitGroup
				for range 16 {
					wg.Go(func() {
						for range idle / 16 {
							c, err := g.Dial(patience(b), "tcp", to)
							if err != nil {
								b.Error(err)
								return
							}
							b.Cleanup(func() { c.Close() })
						}
					})
				}
				wg.Wait()
				guest, host := meet(b, g, f)
				from, into := io.Writer(host), io.Reader(guest)
				if way == "up" {
					from, into = guest, host
				}
				const size = 16 << 20
				chunk, sink := make([]byte, 1<<20), make([]byte, 256<<10)
				move := func() {
					wg.Go(func() {
						for range size / len(chunk) {
							if _, err := from.Write(chunk); err != nil {
								b.Error(err)
								return
							}
						}
					})
					for got := 0; got < size; {
						n, err := into.Read(sink)
						if err != nil {
							b.Fatal(err)
						}
						got += n
					}
					wg.Wait()
				}
				move()
				b.SetBytes(size)
				took := cpu()
				for b.Loop() {
					move()
				}
				b.ReportMetric(float64(cpu()-took)/1e9/(float64(b.N)*size/(1<<30)), "cpu-s/GiB")
			})
		}
	}
}
