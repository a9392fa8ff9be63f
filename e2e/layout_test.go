package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/vmnetd/vmnetd/"
	gvisor = "gvisor.dev/gvisor"
)

// room is one package, and what it may import of ours, gVisor counted as ours. Tests may import
// what their room may, the room itself, and what stands in tests.
type room struct {
	path    string
	imports []string
	tests   []string
	why     string
}

// rooms is the house. Who needs another import changes the row and its reason, in the same commit.
var rooms = []room{
	{"impair", nil, nil,
		"a bad line as a function of (frame, now): exact in any time, usable around any wire"},
	{"backend/link", []string{"impair"}, []string{"qemu"},
		"the wire's seam: every transport and the backend stand on it, so it stands on nothing but the engine of its own Impair; what that costs is measured around a real wire"},
	{"capture", []string{"backend/link"}, nil,
		"what crosses any wire, as a file: whose frames they are it asks, so a program can capture without a network"},
	{"backend/egress", nil, nil,
		"the way out's seam: a second egress (a proxy, a remote exit) must not drag a network stack in"},
	{"backend/checksum", nil, []string{gvisor},
		"arithmetic on bytes; its tests compare it with gVisor's"},
	{"flows", nil, nil,
		"what a conversation is, for all rooms: knowing one of them would make a circle"},
	{"flowlog", []string{"flows"}, nil,
		"what becomes of a table's conversations, as lines in a file: it follows the table as anybody does"},
	{"guestlog", nil, nil,
		"a handler for any logger: it does not know who logs"},
	{"state", nil, nil,
		"files that survive a restart: it does not know what is in them"},
	{"dhcp", []string{"state"}, nil,
		"a function of (request, now): usable, and testable, without a network"},
	{"dns", nil, nil,
		"as dhcp: names come in by callbacks, conns are handed in"},
	{"hello", []string{"flows"}, nil,
		"whom first bytes name: a function of bytes, whoever carries them; flows for the words that it answers in"},
	{"policy", []string{"flows"}, []string{"backend", "backend/backendtest"},
		"rules and names become verdicts: an engine that a program can use without a network, and try on paper; what it costs is measured with one"},
	{"config", nil, nil,
		"a file's words and where they stand: what they mean the flags know, so it reads for any program"},
	{"portforward", []string{"flows"}, nil,
		"rules and their table; a guest is dialled through a callback, so it needs no stack"},
	{"qemu", []string{"backend/link"}, nil,
		"bytes become frames: framing knows no addresses, so neither the backend nor gVisor"},
	{"vfkit", []string{"backend/link"}, nil,
		"as qemu, for datagrams"},
	{"netns", []string{"backend/link"}, nil,
		"as qemu, for a TAP"},
	{"cage", nil, nil,
		"walls around any program: what it is for, it must not know"},
	{"backend/sockets", []string{gvisor}, nil,
		"package net over a gVisor stack, for whoever has one: it knows no network"},
	{"backend", []string{"impair", "capture", "backend/link", "backend/egress", "backend/checksum", "backend/sockets", "flows", "hello", "dhcp", "dns", "portforward", "state", "guestlog", gvisor},
		[]string{"backend/backendtest", "backend/guest", "qemu"},
		"wires the rooms together; transports come to it as links (a test may take a real one), control looks at it from outside"},
	{"backend/guest", []string{"backend/link", "backend/egress", "backend/sockets", gvisor}, []string{"backend", "portforward", "qemu"},
		"the far end of a wire, for programs: it sees a network as a guest does, and may come from another machine"},
	{"backend/backendtest", []string{"backend/link", "backend/egress", "backend/guest", "backend/sockets", gvisor}, []string{"backend", "qemu"},
		"a guest as tests want it: it sees a network as a guest does, by its wire, and never the backend behind it"},
	{"backend/control", []string{"backend", "lab/topology", "impair", "capture", "policy", "guestlog", "flows", "portforward", "backend/link"}, []string{"backend/backendtest"},
		"the only place that knows HTTP; what it shows it asks the backend for, so the stack can change under it"},
	{"lab/topology", []string{"config", "impair", "flows", "dns", "policy", "portforward"}, nil,
		"a file becomes a lab that is right in itself: what its words mean their own rooms say, and nothing is started, so no network"},
	{"lab", []string{"lab/topology", "lab/guest", "impair", "backend", "backend/link", "netns", "qemu", "vfkit", "policy", "portforward", "flows", "dns"},
		[]string{"backend/backendtest", "backend/guest", "lab/examples"},
		"machines on networks, as a whole, in any program: it is to networks what cmd is, without flags, files of state or HTTP"},
	{"lab/guest", nil, nil,
		"makes the small Linux of guests and speaks in it: what boots it, and whose network it sees, it does not know"},
	{"lab/guest/agent", []string{"lab/guest"}, nil,
		"linked into the small guest: what it is told, and nothing of networks"},
	{"lab/examples", nil, nil,
		"files that a user starts from: whoever writes them out or runs them reads them here"},
	{"ui", nil, nil,
		"files for a browser, and their headers: what they show, the browser asks the API for"},
	{"cmd/vmnetd", []string{"backend", "lab", "lab/topology", "lab/examples", "lab/guest", "impair", "capture", "backend/control", "guestlog", "backend/link", "backend/egress", "flows", "flowlog", "dhcp", "dns", "portforward", "qemu", "vfkit", "netns", "cage", "policy", "config", "ui"},
		[]string{"backend/backendtest", "backend/guest"},
		"flags become a configuration, listeners become links; gVisor's types stay in backend"},
	{"e2e", nil, []string{"e2e/vm", "e2e/vm/channel", "e2e/traffic", "e2e/space", "e2e/stream", "backend", "backend/control", "flows", "impair", "portforward", "backend/guest", "qemu", "lab", "lab/topology", "lab/examples", "lab/guest"},
		"proof from outside: the built binary; of ours only the API's client and its words (flows and rules among them), and what makes guests; a lab as a test of anybody's has it; those that a browser looks at are programs"},
	{"e2e/vm", []string{"e2e/vm/channel", "lab/guest"}, []string{"e2e/traffic"},
		"makes guests for any network: vmnetd's own code must not be able to help it; what unpacks a kernel knows of no network"},
	{"e2e/vm/channel", nil, nil,
		"linked into the guest"},
	{"e2e/traffic", nil, nil,
		"linked into the guest: what checks vmnetd shares no code with it"},
	{"e2e/space", nil, nil,
		"network namespaces, for tests and benchmarks: it knows of no network in them"},
	{"e2e/bench", []string{"e2e/space", "e2e/traffic", "e2e/vm"}, nil,
		"what a user measures, with built binaries: vmnetd is a peer like the others, so no code of its own"},
	{"e2e/bench/longpath", []string{"e2e/space"}, nil,
		"as e2e/bench, over a path that delays and loses"},
	{"e2e/stream", nil, nil,
		"the guests' side of the stream framings: sharing package qemu's would share its mistakes"},
	{"e2e/guestbin", []string{"e2e/vm/channel", "e2e/traffic", "e2e/space", "e2e/stream"}, nil,
		"the guest's program: a client that shared vmnetd's parsers would share their mistakes"},
	{"contrib/release", nil, nil,
		"builds what is handed out: it runs before there is anything of ours"},
	{"e2e/demo", []string{"e2e/vm"}, nil,
		"what a user does, with the built binary"},
}

// TestLayout keeps the table of rooms, for every system that we build for: a file for one system
// is no way round it.
func TestLayout(t *testing.T) {
	byPath := map[string]room{}
	for _, r := range rooms {
		if _, twice := byPath[r.path]; twice {
			t.Errorf("%s has two rows", r.path)
		}
		if r.why == "" {
			t.Errorf("%s: no reason", r.path)
		}
		byPath[r.path] = r
	}
	for _, system := range []string{"linux", "darwin", "windows"} {
		t.Run(system, func(t *testing.T) {
			for _, p := range list(t, system) {
				r, ok := byPath[p.path]
				if !ok {
					t.Errorf("%s is in no row: what is it for, and what may it import?", p.path)
					continue
				}
				check := func(kind string, imports, may []string) {
					for _, i := range imports {
						if !slices.Contains(may, i) {
							t.Errorf("%s imports %s%s; it may import %v: %s", p.path, i, kind, may, r.why)
						}
					}
				}
				check("", p.imports, r.imports)
				check(" in its tests", p.tests, slices.Concat(r.imports, r.tests, []string{r.path}))
			}
		})
	}
}

// A room's name says what it is for; these say nothing.
func TestNoLumberRooms(t *testing.T) {
	for _, p := range list(t, "linux") {
		for _, part := range strings.Split(p.path, "/") {
			switch part {
			case "pkg", "utils", "util", "types", "common", "helpers", "misc":
				t.Errorf("%s: no sentence can say what %s is for", p.path, part)
			}
		}
	}
}

// The table itself must be able to refuse.
func TestOurs(t *testing.T) {
	got := ours([]string{"fmt", "gvisor.dev/gvisor/pkg/tcpip", "gvisor.dev/gvisor/pkg/buffer", module + "dhcp", "golang.org/x/sys/unix", module + "backend/link"})
	if want := []string{"backend/link", "dhcp", gvisor}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

type imported struct {
	path           string
	imports, tests []string
}

// list asks the go tool, which knows about build tags what a reader of files would have to guess.
func list(t *testing.T, system string) []imported {
	t.Helper()
	top, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = top
	cmd.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list for %s: %v\n%s", system, err, &complaint)
	}
	var all []imported
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath                         string
			Imports, TestImports, XTestImports []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, imported{
			path:    strings.TrimPrefix(p.ImportPath, module),
			imports: ours(p.Imports),
			tests:   ours(slices.Concat(p.TestImports, p.XTestImports)),
		})
	}
	if len(all) < 5 {
		t.Fatalf("go list for %s found %d packages: is this the module?", system, len(all))
	}
	return all
}

// ours keeps the imports that the table is about.
func ours(imports []string) []string {
	var kept []string
	for _, i := range imports {
		if p, ok := strings.CutPrefix(i, module); ok {
			kept = append(kept, p)
		} else if i == gvisor || strings.HasPrefix(i, gvisor+"/") {
			kept = append(kept, gvisor)
		}
	}
	slices.Sort(kept)
	return slices.Compact(kept)
}
