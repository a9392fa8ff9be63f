package netns_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/netns"
)

// How does a program give a command a network of its own? Here the other end of the wire only counts; backend's Serve
// would be a network, and Configure would ask it for a lease.
func Example() {
	ctx := context.Background()
	var said strings.Builder
	cmd := exec.Command("cat", "/proc/net/route")
	cmd.Stdout = &said
	held, err := netns.Hold(cmd, netns.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer held.Close()
	if err := cmd.Start(); err != nil {
		fmt.Println(err, netns.WhyNoNamespaces())
		return
	}
	tap, err := netns.Attach(ctx, netns.Config{PID: cmd.Process.Pid, Name: "eth0", MTU: 65520})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer tap.Close()
	tap.AddAddr(netip.MustParsePrefix("192.0.2.15/24"))
	tap.AddRoute(netip.MustParseAddr("192.0.2.2"))
	if err := held.Go(); err != nil { // now it is cat
		fmt.Println(err)
		return
	}
	cmd.Wait()
	fmt.Println(strings.Contains(said.String(), "eth0\t00000000\t020200C0")) // by 192.0.2.2

	var b link.Batch
	err = tap.ReadFrames(&b) // the kernel looks for a router
	fmt.Println(len(b.Frames) > 0, err)
	// Prints:
	// true
	// true <nil>
}

// An example with an output comment would run, and fail, where there can be no TAP.
func TestExample(t *testing.T) {
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Skip(err)
	} else {
		f.Close()
	}
	Example()
}
