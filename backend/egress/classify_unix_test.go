//go:build unix

package egress

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestClassify(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want Kind
	}{
		{nil, None},
		{syscall.ECONNREFUSED, Refused},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}, HostUnreachable},
		{fmt.Errorf("x: %w", syscall.ENETUNREACH), NetUnreachable},
		{syscall.EACCES, Prohibited},
		{syscall.ETIMEDOUT, Timeout},
		{context.DeadlineExceeded, Timeout},
		{os.ErrDeadlineExceeded, Timeout},
		{&net.OpError{Op: "dial", Err: timeoutError{}}, Timeout},
		{syscall.EMFILE, Exhausted},
		{syscall.ENFILE, Exhausted},
		{syscall.EADDRNOTAVAIL, Exhausted},
		{syscall.ENOBUFS, Exhausted},
		{errBusy, Exhausted},
		{fmt.Errorf("y: %w", ErrNoPing), Prohibited},
		{fmt.Errorf("z: %w", &UnreachableError{Kind: TooBig, MTU: 1280, Err: syscall.EMSGSIZE}), TooBig},
		{&UnreachableError{Kind: PortUnreachable, Err: syscall.ECONNREFUSED}, PortUnreachable},
		{context.Canceled, Other},
		{net.ErrClosed, Other},
		{io.EOF, Other},
	} {
		if got := Classify(tt.err); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
	seen := map[string]bool{}
	for k := None; k <= Other; k++ {
		if s := k.String(); s == "" || seen[s] {
			t.Errorf("kind %d is %q", k, s)
		} else {
			seen[s] = true
		}
	}
	if s := (Other + 1).String(); !strings.HasPrefix(s, "kind ") {
		t.Error(s)
	}
}

type timeoutError struct{}

func (timeoutError) Error() string { return "slow" }
func (timeoutError) Timeout() bool { return true }
