package link_test

import (
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/qemu"
)

// wires are two ends of a QEMU socket, the first as it is or in an Impaired with nothing set.
func wires(t *testing.T, impaired bool) (a, b link.Link) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	x, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	y, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a, b = qemu.NewLink(x), qemu.NewLink(y)
	if impaired {
		if a, err = link.Impair(a, nil); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// carry moves so many batches of 32 full frames over a and back.
func carry(t *testing.T, a, b link.Link, batches int) {
	t.Helper()
	frames := make([]link.Frame, 32)
	for i := range frames {
		frames[i] = link.NewFrame(make([]byte, 1514))
	}
	for _, ends := range [][2]link.Link{{a, b}, {b, a}} {
		in := &link.Batch{}
		for range batches {
			if _, err := ends[0].WriteFrames(frames); err != nil {
				t.Fatal(err)
			}
			for got := 0; got < len(frames); got += len(in.Frames) {
				in.Next()
				if err := ends[1].ReadFrames(in); err != nil {
					t.Fatal(err)
				}
			}
		}
		in.Release()
	}
}

// used is this thread's processor time: what else the machine does is not in it.
func used(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// What is not set takes no memory for each frame. What time it takes is measured by hand:
// VMNETD_MEASURE=1 go test -run TestImpairNothing -v ./backend/link
func TestImpairNothing(t *testing.T) {
	bare, far := wires(t, false)
	wrapped, other := wires(t, true)
	carry(t, bare, far, 10)
	carry(t, wrapped, other, 10)
	of := func(a, b link.Link) float64 { return testing.AllocsPerRun(10, func() { carry(t, a, b, 100) }) }
	if was, is := of(bare, far), of(wrapped, other); is > was+100 { // of 200 batches
		t.Errorf("%.0f allocations for 200 batches, %.0f without an Impaired", is, was)
	}
	if os.Getenv("VMNETD_MEASURE") == "" {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var ratios []float64
	for range 101 { // in turns, so that what else the machine does hits both alike
		took := func(a, b link.Link) float64 {
			began := used(t)
			carry(t, a, b, 100)
			return (used(t) - began).Seconds()
		}
		x, y := took(bare, far), took(wrapped, other)
		y, x = min(y, took(wrapped, other)), min(x, took(bare, far))
		ratios = append(ratios, x/y)
	}
	slices.Sort(ratios)
	t.Logf("processor time per byte with nothing set, the bare wire's of it: median %.3f, quartiles %.3f to %.3f", ratios[50], ratios[25], ratios[75])
	if ratios[50] < 0.97 {
		t.Errorf("median %.3f, want 0.99 on a quiet machine", ratios[50])
	}
}
