package guest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// conversation is what was said to an agent, and what it answered.
type conversation struct {
	io.Reader
	bytes.Buffer
}

func (c *conversation) Read(p []byte) (int, error) { return c.Reader.Read(p) }

func say(t testing.TB, a *Agent, requests string) string {
	t.Helper()
	c := &conversation{Reader: strings.NewReader(requests)}
	if err := a.Serve(c); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return c.String()
}

func TestAgent(t *testing.T) {
	for _, c := range []struct{ name, says, want string }{
		{"sync", `{"execute":"guest-sync","arguments":{"id":7}}` + "\n", `{"return":7}` + "\n"},
		{"sync of zero", `{"execute":"guest-sync","arguments":{"id":0}}` + "\n", `{"return":0}` + "\n"},
		{"delimited, behind the half of another", `{"execute":"gu` + "\xff" + `{"execute":"guest-sync-delimited","arguments":{"id":8}}` + "\n", "\xff" + `{"return":8}` + "\n"},
		{"ping, with an id", `{"execute":"guest-ping","id":[1]}` + "\n\n", `{"return":{},"id":[1]}` + "\n"},
		{"unknown", `{"execute":"guest-fsfreeze"}` + "\n", `{"error":{"class":"CommandNotFound","desc":"The command guest-fsfreeze has not been found"}}` + "\n"},
		{"no request", "[]\n", `{"error":{"class":"GenericError","desc":"not a request: want {\"execute\": …}"}}` + "\n"},
		{"too long", strings.Repeat("x", longestLine+1) + "\n" + `{"execute":"guest-ping"}` + "\n", `{"error":{"class":"GenericError","desc":"not a request: want {\"execute\": …}"}}` + "\n" + `{"return":{}}` + "\n"},
		{"no path", `{"execute":"guest-exec"}` + "\n", `{"error":{"class":"GenericError","desc":"guest-exec: no path"}}` + "\n"},
		{"nobody's PID", `{"execute":"guest-exec-status","arguments":{"pid":1}}` + "\n", `{"error":{"class":"GenericError","desc":"guest-exec-status: no command with PID 1"}}` + "\n"},
		{"no machine of its own", `{"execute":"guest-shutdown"}` + "\n", `{"error":{"class":"GenericError","desc":"this machine is not the agent's to switch off"}}` + "\n"},
		{"end without a newline", `{"execute":"guest-ping"}`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := say(t, &Agent{}, c.says); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
	var mode string
	a := &Agent{Shutdown: func(m string) error { mode = m; return nil }}
	if got := say(t, a, `{"execute":"guest-shutdown","arguments":{"mode":"reboot"}}`+"\n"); got != "" || mode != "reboot" {
		t.Errorf("shutdown: %q, mode %q", got, mode)
	}
	if got := say(t, a, `{"execute":"guest-info"}`+"\n"); !strings.Contains(got, `"guest-exec","enabled":true`) {
		t.Errorf("info: %s", got)
	}
	if got := say(t, a, `{"execute":"guest-network-get-interfaces"}`+"\n"); !strings.Contains(got, `"127.0.0.1"`) {
		t.Errorf("interfaces: %s", got)
	}
}

// Commands and what they write are bounded; what has been asked for is forgotten.
func TestAgentExec(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no sh")
	}
	a := &Agent{}
	run := func(script string) int {
		t.Helper()
		b, _ := json.Marshal(map[string]any{"execute": "guest-exec", "arguments": map[string]any{
			"path": "sh", "arg": []string{"-c", script}, "env": []string{"PATH=/bin:/usr/bin", "A=b"}, "capture-output": true,
			"input-data": base64.StdEncoding.EncodeToString([]byte("input"))}})
		var r struct {
			Return struct{ PID int }
			Error  *failure
		}
		if err := json.Unmarshal([]byte(say(t, a, string(b)+"\n")), &r); err != nil {
			t.Fatal(err)
		}
		if r.Error != nil {
			return -1
		}
		return r.Return.PID
	}
	status := func(pid int) execStatus {
		t.Helper()
		b, _ := json.Marshal(map[string]any{"execute": "guest-exec-status", "arguments": map[string]int{"pid": pid}})
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			var r struct {
				Return execStatus
				Error  *failure
			}
			if err := json.Unmarshal([]byte(say(t, a, string(b)+"\n")), &r); err != nil || r.Error != nil {
				t.Fatal(err, r.Error)
			}
			if r.Return.Exited {
				return r.Return
			}
		}
		t.Fatal("it does not end")
		return execStatus{}
	}
	s := status(run(`cat; echo " $A"; echo no >&2; exit 5`))
	out, _ := base64.StdEncoding.DecodeString(s.Out)
	complaint, _ := base64.StdEncoding.DecodeString(s.Err)
	if s.ExitCode == nil || *s.ExitCode != 5 || s.Signal != nil || string(out) != "input b\n" || string(complaint) != "no\n" {
		t.Errorf("%+v: %q, %q", s, out, complaint)
	}
	if s := status(run("head -c 5000000 /dev/zero")); !s.OutTruncated || base64.StdEncoding.DecodedLen(len(s.Out)) > mostOutput+2 {
		t.Errorf("%d bytes in base64, truncated %v", len(s.Out), s.OutTruncated)
	}
	// What is left in the background with its output open does not keep it.
	if s := status(run("sleep 3 & echo here")); s.ExitCode == nil || *s.ExitCode != 0 || s.Out != base64.StdEncoding.EncodeToString([]byte("here\n")) {
		t.Errorf("%+v", s)
	}
	pids := map[int]bool{}
	for range mostCommands {
		pids[run("exit 0")] = true
	}
	if pids[-1] || run("exit 0") != -1 {
		t.Errorf("more than %d commands, or fewer", mostCommands)
	}
	for pid := range pids {
		status(pid)
	}
	status(run("exit 0"))
}

func FuzzAgent(f *testing.F) {
	for _, s := range []string{"", "{}\n", "\xff\xff\n", `{"execute":"guest-sync-delimited","arguments":{"id":1e400}}` + "\n", `{"execute":"guest-ping","id":{"a":[]}}` + "\n",
		`{"execute":"guest-exec-status","arguments":{"pid":-1}}` + "\n", `{"execute":"guest-shutdown","arguments":{"mode":3}}` + "\n", `{"execute":"guest-exec","arguments":{"path":"","input-data":"*"}}` + "\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, requests string) {
		a := &Agent{start: func(*exec.Cmd) error { return errors.New("not here") }}
		for _, line := range strings.Split(strings.TrimSuffix(say(t, a, requests), "\n"), "\n") {
			line = strings.TrimPrefix(line, "\xff")
			if line != "" && !json.Valid([]byte(line)) {
				t.Errorf("the answer %q is no JSON", line)
			}
		}
	})
}

// Names from a file are words for the shell, whatever is in them.
func TestNodeScript(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip(err)
	}
	n := &Node{Name: "a'; echo broken; '", Forwarding: true, Interfaces: []Interface{
		{Name: "eth0", MAC: []byte{2, 0, 0, 0, 0, 1}, DHCP: true, RA: true, MTU: 9000},
		{Name: "in$(echo broken)", MAC: []byte{2, 0, 0, 0, 0, 2}, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fd00::1/64")}},
	}, Routes: []Route{{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.0.0.2")}, {netip.MustParsePrefix("fd01::/16"), netip.MustParseAddr("fd00::2")}}}
	stubs := "hostname() { echo \"host $1\"; }\nset_sys() { echo \"sys $*\"; }\nrename() { echo \"rename $*\"; }\nip() { echo \"ip $*\"; }\ndhcp() { echo \"dhcp $*\"; }\nroutes() { :; }\n"
	out, err := exec.Command(sh, "-c", stubs+strings.ReplaceAll(n.script(), "[ -e ", "[ -n ")+n.routes()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := `host a'; echo broken; '
sys net/ipv4/ip_forward 1
sys net/ipv6/conf/all/forwarding 1
rename 02:00:00:00:00:01 eth0 old0
rename 02:00:00:00:00:02 in$(echo broken) old1
sys net/ipv6/conf/eth0/router_solicitation_delay 0
sys net/ipv6/conf/eth0/accept_ra 2
ip link set eth0 mtu 9000
ip link set eth0 up
dhcp eth0 100 a'; echo broken; '
sys net/ipv6/conf/in$(echo broken)/router_solicitation_delay 0
sys net/ipv6/conf/in$(echo broken)/accept_dad 0
ip link set in$(echo broken) up
ip -4 addr add 10.0.0.1/24 broadcast + dev in$(echo broken)
ip -6 addr add fd00::1/64 dev in$(echo broken)
ip -4 route replace 0.0.0.0/0 via 10.0.0.2
ip -6 route replace fd01::/16 via fd00::2
`
	if string(out) != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}

// Images: as many as are kept, the newest; whole or not at all.
func TestKeep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "[no] pattern")
	var last string
	for _, body := range []string{"a", "b", "c", "a"} {
		path, err := Keep(dir, "x-", []byte(body), 2)
		if err != nil {
			t.Fatal(err)
		}
		last = path
	}
	all, err := os.ReadDir(dir)
	if err != nil || len(all) != 2 { // nor is one half written
		t.Errorf("%v, %v; want two", all, err)
	}
	if path, err := OneOf(filepath.Dir(dir), "none", "*/x-*"); err != nil || !there(path) {
		t.Errorf("%s, %v", path, err)
	}
	if !there(last) {
		t.Error("the newest is not there")
	}
}
