package egress

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// childOf names, in the environment of a child process, the test that it runs.
const childOf = "EGRESS_TEST_CHILD"

// again runs this test once more in a child process, prepared by prepare, and
// says whether we are the child: the parent is to return.
func again(t *testing.T, prepare func(*exec.Cmd)) (child bool) {
	t.Helper()
	if os.Getenv(childOf) == t.Name() {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), childOf+"="+t.Name())
	prepare(cmd)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	switch {
	case err != nil && cmd.ProcessState == nil:
		t.Skipf("cannot start a child process in a network namespace of its own (needs root, or user namespaces): %v", err)
	case err != nil:
		t.Fatalf("in the child: %v", err)
	case strings.Contains(string(out), "--- SKIP: "+t.Name()+" "):
		t.Skip("the child skipped")
	case !strings.Contains(string(out), "--- PASS: "+t.Name()+" "):
		t.Fatal("the child ran nothing")
	}
	return false
}
