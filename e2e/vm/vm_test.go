package vm_test

import (
	"testing"
	"time"
	"os"
	"fmt"

	"github.com/vmnetd/vmnetd/e2e/vm"
)

func TestTry(t *testing.T) {
	b := time.Now()
	g := vm.Boot(t, vm.Config{Name: "alpha", NICs: []vm.NIC{{Netdev: vm.User("")}}})
	fmt.Fprintln(os.Stderr, "ready", time.Since(b), g.Accel)
	l := g.WaitLease(t)
	fmt.Fprintf(os.Stderr, "lease %v %+v\n", time.Since(b), l)
	fmt.Fprintln(os.Stderr, g.WaitIPv6(t), time.Since(b))
	b = time.Now()
	for range 10 { g.Must(t, "true") }
	fmt.Fprintln(os.Stderr, "10 true", time.Since(b))
	fmt.Fprintln(os.Stderr, g.Must(t, "ip a; ip r; ip -6 r; cat /run/udhcpc.log /etc/resolv.conf; ps; free; wget -qO- http://localhost/; guest ra eth0; guest dhcp6 eth0; guest dns localhost; ping -c 1 10.0.2.2; dmesg | tail -5; cat /proc/sys/kernel/random/entropy_avail"))
	fmt.Fprintln(os.Stderr, g.Console())
	t.Log(g.PowerOff(t.Context()))
}
