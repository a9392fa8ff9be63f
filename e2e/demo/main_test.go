package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/e2e/vm"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within is what the demo may take, by its promise, once packages are there.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestDemo(t *testing.T) {
	vm.Need(t)
	bin := filepath.Join(t.TempDir(), "vmnetd")
	if said, err := exec.Command("go", "build", "-o", bin, "github.com/vmnetd/vmnetd/cmd/vmnetd").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	if _, _, err := vm.Image(t.Context(), t.Logf); err != nil { // packages are there
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := show(within(t), &out, bin)
	t.Log("\n" + out.String())
	if err != nil {
		t.Error(err)
	}
}

// A vmnetd that gives QEMU's own network to its guest and answers no command: the demo must say
// what happened and what did not, and fail.
func TestDemoSaysWhatDidNotHappen(t *testing.T) {
	vm.Need(t)
	fake := filepath.Join(t.TempDir(), "vmnetd")
	script := `#!/bin/sh
[ "$1" = run ] || { echo "no $1 here" >&2; exit 1; }
while [ "$1" != -- ]; do shift; done
shift
"$@" -nic user,model=virtio-net-pci
`
	if err := os.WriteFile(fake, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := show(within(t), &out, fake)
	if err == nil || !strings.HasPrefix(err.Error(), "did not happen: DHCP lease, ") {
		t.Errorf("error %v, want what did not happen", err)
	}
	for _, want := range []string{
		`(?m)^  FAIL  DHCP lease +vmnetd leases ls -o json: exit status 1: no leases here$`,
		`(?m)^  ok    ping of the gateway +10\.0\.2\.2 answers in `,
		`(?m)^  ok    IPv6 address +fec0::`,
		`(?m)^  FAIL  flow table`,
		`(?m)^  ok    its end`,
	} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("no %s", want)
		}
	}
	if t.Failed() {
		t.Log("\n" + out.String())
	}
}

func TestNoVmnetd(t *testing.T) {
	if err := show(t.Context(), os.Stderr, "no/such/vmnetd"); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("error %v, want one that says make build", err)
	}
}
