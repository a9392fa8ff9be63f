package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/vmnetd/vmnetd/backend/control"
	"go.uber.org/goleak"
)

// TestMain gives scripts two programs: vmnetd, and a VMM that goes by QEMU's name.
func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){
		"vmnetd":             main,
		"qemu-system-x86_64": func() { os.Exit(fakeQEMU(os.Args[1:])) },
		"vmm":                func() { os.Exit(fakeQEMU(os.Args[1:])) },
		"vfkit":              func() { os.Exit(fakeVfkit(os.Args[1:])) },
		"krunkit":            func() { os.Exit(fakeVfkit(os.Args[1:])) },
	})
}

// afterTests clean up what several tests share.
var afterTests []func()

type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	for _, f := range afterTests {
		f()
	}
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		// A socket's path has 107 bytes at most, and a test's own folder may be long.
		WorkdirRoot: shortDir(t),
		Setup: func(env *testscript.Env) error {
			run := filepath.Join(env.WorkDir, "run")
			env.Setenv("XDG_RUNTIME_DIR", run)
			env.Setenv("VMNETD_CONTROL", "")
			env.Setenv("GORACE", noRaceSleep)
			return os.Mkdir(run, 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": cmdExits, "ready": cmdReady, "until": cmdUntil, "listfiles": cmdListFiles, "mode": cmdMode,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// noRaceSleep: with -race a program waits a second at its end for reports, and scripts run a hundred programs.
const noRaceSleep = "atexit_sleep_ms=0"

func shortDir(t *testing.T) string {
	d, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

// exits STATUS PROGRAM [ARGUMENT]...: it ends with exactly that status.
func cmdExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// ready [CONTROL]: a daemon answers there.
func cmdReady(ts *testscript.TestScript, _ bool, args []string) {
	path := filepath.Join(ts.Getenv("XDG_RUNTIME_DIR"), "vmnetd", "control.sock")
	if len(args) > 0 {
		path = ts.MkAbs(args[0])
	}
	c := control.NewClient(path)
	defer c.Close()
	waitUntil(ts.Fatalf, "daemon at "+path, func() bool {
		_, err := c.Status(context.Background())
		return err == nil
	})
}

// until PATTERN PROGRAM [ARGUMENT]...: run it until it prints that.
func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	re := regexp.MustCompile(args[0])
	waitUntil(ts.Fatalf, strings.Join(args, " "), func() bool {
		ts.Check(ts.Exec(args[1], args[2:]...))
		return re.MatchString(ts.ReadFile("stdout")) != neg
	})
}

// listfiles DIR [FILE]...: this and nothing else is under it.
func cmdListFiles(ts *testscript.TestScript, _ bool, args []string) {
	root := ts.MkAbs(args[0])
	got := []string{}
	ts.Check(filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		if p != root {
			got = append(got, strings.TrimPrefix(p, root+"/"))
		}
		return err
	}))
	if !slices.Equal(got, args[1:]) {
		ts.Fatalf("%s has %q, want %q", args[0], got, args[1:])
	}
}

// mode MODE FILE...: their permissions.
func cmdMode(ts *testscript.TestScript, _ bool, args []string) {
	for _, f := range args[1:] {
		fi, err := os.Lstat(ts.MkAbs(f))
		ts.Check(err)
		if got := fmt.Sprintf("%04o", fi.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s, want %s", f, got, args[0])
		}
	}
}

func waitUntil(fatalf func(string, ...any), what string, is func() bool) {
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			fatalf("waited in vain for %s", what)
		}
	}
}

// fakeQEMU is a VMM as far as vmnetd sees one: it takes QEMU's -netdev, sends frames, and has a -then for how it
// ends: "exit:7", "kill", "status" (asks the daemon first), "wait" (says "up", then which signals come, until TERM), "gone" (until its wire ends).
func fakeQEMU(args []string) int {
	if slices.Contains(args, "--version") {
		v := os.Getenv("FAKE_QEMU_VERSION")
		if v == "" {
			v = "7.2.22"
		}
		if v != "none" {
			fmt.Printf("QEMU emulator version %s (Debian)\n", v)
		}
		return 0
	}
	fmt.Println("args", strings.Join(args, " "))
	var c net.Conn
	var err error
	then, own := "exit:0", "10.0.2.99"
	for i := 0; i+1 < len(args); i++ {
		switch args[i] {
		case "-netdev":
			c, err = fakeNetdev(args[i+1])
		case "-then":
			then = args[i+1]
		case "-ip":
			own = args[i+1]
		}
	}
	if c == nil && os.Getenv("VMNETD_FD") != "" && err == nil {
		c, err = fakeNetdev("socket,fd=" + os.Getenv("VMNETD_FD"))
	}
	if err != nil {
		fmt.Println("wire", err)
		return 3
	}
	if c != nil {
		defer c.Close()
		mac, err := whoHas(c, netip.MustParseAddr(own).As4(), [4]byte{10, 0, 2, 2})
		if err != nil {
			fmt.Println("wire", err)
			return 3
		}
		fmt.Println("gateway", mac)
	}
	what, n, _ := strings.Cut(then, ":")
	code, _ := strconv.Atoi(n)
	switch what {
	case "status":
		said, err := exec.Command("vmnetd", "status").CombinedOutput()
		fmt.Printf("%s", said)
		if err != nil {
			return 3
		}
	case "kill":
		p, _ := os.FindProcess(os.Getpid())
		p.Kill()
		select {}
	case "gone":
		fmt.Println("up")
		io.Copy(io.Discard, c)
		fmt.Println("wire ended")
	case "wait":
		signals := make(chan os.Signal, 100)
		notify(signals, passSignals)
		defer signal.Stop(signals)
		fmt.Println("up")
		for s := range signals {
			fmt.Println("signal", s)
			if s.String() == "terminated" {
				break
			}
		}
	}
	return code
}

func fakeNetdev(s string) (net.Conn, error) {
	o := parseOption(s, 0, "type")
	if p := o.get("addr.path"); p != "" {
		return net.Dial("unix", p)
	}
	if p := o.get("addr.port"); p != "" {
		return net.Dial("tcp", net.JoinHostPort(o.get("addr.host"), p))
	}
	fd, err := strconv.Atoi(o.get("addr.str") + o.get("fd"))
	if err != nil {
		return nil, fmt.Errorf("no descriptor in %q", s)
	}
	_, c, err := inherited(fd)
	return c, err
}

// whoHas asks for an address by ARP (RFC 826), with QEMU's framing on c, as a guest with the address own.
func whoHas(c net.Conn, own, ip [4]byte) (net.HardwareAddr, error) {
	mac := []byte{0x52, 0x54, 0, 0xaa, 0xbb, own[3]}
	frame := slices.Concat([]byte{0, 0, 0, 42}, []byte{255, 255, 255, 255, 255, 255}, mac, []byte{8, 6},
		[]byte{0, 1, 8, 0, 6, 4, 0, 1}, mac, own[:], make([]byte, 6), ip[:])
	if _, err := c.Write(frame); err != nil {
		return nil, err
	}
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	defer c.SetReadDeadline(time.Time{})
	for {
		var n [4]byte
		if _, err := io.ReadFull(c, n[:]); err != nil {
			return nil, err
		}
		f := make([]byte, binary.BigEndian.Uint32(n[:]))
		if _, err := io.ReadFull(c, f); err != nil {
			return nil, err
		}
		if len(f) >= 42 && f[12] == 8 && f[13] == 6 && f[21] == 2 && bytes.Equal(f[28:32], ip[:]) {
			return net.HardwareAddr(f[22:28]), nil
		}
	}
}
