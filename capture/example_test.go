package capture_test

import (
	"bytes"
	"fmt"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/capture"
)

func Example() {
	filter, err := capture.ParseFilter("arp or tcp port 443")
	if err != nil {
		fmt.Println(err)
		return
	}
	vmm, host := link.Pipe(16)
	defer vmm.Close()
	wire := capture.Around(host) // what a network serves
	defer wire.Close()

	var file bytes.Buffer
	s := capture.Start(&file, capture.Options{Filter: filter, Application: "example"})
	s.Add(wire, func() capture.Interface { return capture.Interface{Name: "vm1", Description: "the example's"} })

	arp := make([]byte, 42)
	arp[12], arp[13] = 0x08, 0x06
	other := make([]byte, 60)
	vmm.WriteFrames([]link.Frame{link.NewFrame(arp), link.NewFrame(other)})
	var b link.Batch
	for n := 0; n < 2; n += len(b.Frames) {
		b.Next()
		if err := wire.ReadFrames(&b); err != nil {
			fmt.Println(err)
			return
		}
	}
	s.Stop()
	err = s.Wait()
	f, why := s.Figures()
	fmt.Println(f.Packets, "of", f.Seen, "frames,", why, err)

	_, err = capture.ParseFilter("tcp prt 443")
	fmt.Println(err)
	// Output:
	// 1 of 2 frames, stopped <nil>
	// filter: at 5, "prt 443": want host, net, port or portrange behind tcp, or and
}
