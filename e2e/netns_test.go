//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vmnetd/vmnetd/e2e/traffic"
	"github.com/vmnetd/vmnetd/e2e/vm"
	"github.com/vmnetd/vmnetd/e2e/vm/channel"
	"golang.org/x/sys/unix"
)

// Network namespaces as guests, each of the user nobody, who has no capability and makes them himself: daemon and guest
// are his, and the interface is the daemon's.

// netnsRow is a container that is there before vmnetd: its own root, its own DHCP client.
var netnsRow = transport{name: "netns-attach", needs: needTUN, starts: inOwnNamespace, single: true, door: attachDoor, bytes: 100_000_000, parallel: 200}

func init() { transports = append(transports, netnsRow) }

func needTUN(t *testing.T) {
	t.Helper()
	needTools(t, "unshare")
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip(err)
	}
}

// attachDoor starts the row's one guest and a daemon that attaches it.
func attachDoor(r transport, t *testing.T, l *lab, args ...string) (*daemon, attach) {
	t.Helper()
	const name = "alpha"
	k := startOwnGuest(t, name)
	d := &daemon{lab: l, control: l.path("control.sock")}
	cmd := l.command(t, append([]string{"serve", "--control", d.control,
		"--netns", fmt.Sprintf("pid:%d,ifname=eth0,mac=%s,configure=no", k.cmd.Process.Pid, vm.MAC(name, 0))}, args...)...)
	l.openTUN(t, cmd)
	d.begin(t, cmd)
	return d, attach{guest: k}
}

func inOwnNamespace(t *testing.T, _ *lab, at attach, name string, _ net.HardwareAddr) Guest {
	t.Helper()
	g := &guest{Guest: at.guest, name: name}
	g.run(t, "%s", dhcpUp(name))
	return at.guest
}

// openTUN lets a command open /dev/net/tun, as every user may on most systems.
func (l *lab) openTUN(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	node := l.path("tun")
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	if err := os.Chmod(node, 0o666); err != nil {
		t.Fatal(err)
	}
	cmd.Args[2] = "mount --bind '" + node + "' /dev/net/tun && " + cmd.Args[2]
}

// bareGuestEnv makes the test's own binary a guest that has no wire yet: "NAME ROOT", or nothing for one in the host's
// own files.
const bareGuestEnv = "VMNETD_E2E_BARE_GUEST"

func init() {
	v, ok := os.LookupEnv(bareGuestEnv)
	if !ok {
		return
	}
	if err := beBareGuest(strings.Fields(v)); err != nil {
		fmt.Fprintln(os.Stderr, "bare guest:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func beBareGuest(f []string) error {
	syscall.CloseOnExec(3)
	if len(f) == 2 {
		name, root := f[0], f[1]
		at := func(p string) string { return root + p }
		if err := errors.Join(
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("/dev", at("/dev"), "", unix.MS_BIND|unix.MS_REC, ""),
			unix.Mount("proc", at("/proc"), "proc", 0, ""),
			unix.Mount("sys", at("/sys"), "sysfs", 0, ""),
			unix.Mount("run", at("/run"), "tmpfs", 0, ""),
			unix.Mount("tmp", at("/tmp"), "tmpfs", 0, ""),
			unix.Chroot(root),
			os.Chdir("/"),
			unix.Sethostname([]byte(name)),
		); err != nil {
			return err
		}
		os.Clearenv()
		os.Setenv("PATH", "/bin")
		os.Setenv("HOME", "/")
	}
	os.Unsetenv(bareGuestEnv)
	return channel.Serve(os.NewFile(3, "talk"))
}

// selfAs is the test's own binary by another name, where nobody can execute it: go test's folder is closed to him.
func selfAs(t *testing.T, name string) string {
	t.Helper()
	selfOnce.Lock()
	defer selfOnce.Unlock()
	path := filepath.Join(base, "self", name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

var selfOnce sync.Mutex

// startOwnGuest starts a guest in namespaces that nobody makes, with a user namespace above them.
func startOwnGuest(t *testing.T, name string) *kernelGuest {
	t.Helper()
	root, err := guestRoot()
	if err != nil {
		t.Fatal(err)
	}
	talk, theirs := socketPair(t)
	k := &kernelGuest{gone: make(chan struct{})}
	k.cmd = exec.Command("setpriv", "--reuid", fmt.Sprint(nobody), "--regid", fmt.Sprint(nobody), "--clear-groups", "--inh-caps=-all", "--",
		"unshare", "--user", "--map-root-user", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", selfAs(t, "guest"))
	k.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), bareGuestEnv + "=" + name + " " + root}
	k.cmd.ExtraFiles = []*os.File{theirs}
	k.cmd.Dir = "/"
	var said output
	k.cmd.Stdout, k.cmd.Stderr = &said, &said
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { k.cmd.Wait(); close(k.gone) }()
	theirs.Close()
	conn, err := net.FileConn(talk)
	if err != nil {
		t.Fatal(err)
	}
	talk.Close()
	k.client = channel.NewClient(conn)
	t.Cleanup(func() {
		k.client.Close()
		k.cmd.Process.Kill()
		<-k.gone
		if t.Failed() && said.String() != "" {
			t.Logf("guest %s: %s", name, said.String())
		}
	})
	// unshare has the namespaces once its child answers.
	(&guest{Guest: k, name: name}).run(t, "true")
	return k
}

// TestRunNetns: nobody gives a command a network, by one word.
func TestRunNetns(t *testing.T) {
	t.Parallel()
	need(t)
	needTUN(t)
	root, err := guestRoot()
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	talk, theirs := socketPair(t)
	d := &daemon{lab: l, control: l.path("control.sock")}
	mac := vm.MAC("alpha", 0)
	cmd := l.command(t, "run", "--netns", "--sandbox-folder", l.dir, "--mac", mac.String(), "--control", d.control, "--", selfAs(t, "alpha"))
	l.openTUN(t, cmd)
	cmd.Env = append(cmd.Env, bareGuestEnv+"=")
	for i, e := range cmd.Env {
		if p, ok := strings.CutPrefix(e, "PATH="); ok {
			cmd.Env[i] = "PATH=" + p + ":" + root + "/bin" // for the guest's program
		}
	}
	cmd.ExtraFiles = []*os.File{theirs}
	d.process = l.start(t, cmd)
	theirs.Close()
	conn, err := net.FileConn(talk)
	if err != nil {
		t.Fatal(err)
	}
	talk.Close()
	k := &kernelGuest{client: channel.NewClient(conn)}
	t.Cleanup(func() { k.client.Close() })
	b := &bench{lab: l, daemon: d, g: &guest{Guest: k, name: "alpha", mac: mac, row: netnsRow, d: d}}
	b.g.run(t, "true")
	b.gateway = d.gateway(t)
	b.g.addr6 = b.g.slaac(t, d.status(t).Networks[0].Prefix6)
	b.g.run(t, "ping -c 1 -W 5 %s", b.gw6) // nothing else has told the network of it
	info, ok := b.g.info(t)
	if !ok || len(info.Addrs) == 0 || !slices.Contains(info.Addrs, b.g.addr6) {
		t.Fatalf("vm ls: %+v, want %s", info, b.g.addr6)
	}
	b.g.addr4 = info.Addrs[0]
	for what, want := range map[string]string{
		"id -u; id -g":                                "65534\n65534\n",
		"grep CapEff /proc/self/status":               "CapEff:\t0000000000000000\n",
		"cat /proc/sys/net/ipv4/ip_forward":           "0\n",
		"cat /etc/resolv.conf":                        fmt.Sprintf("search internal\nnameserver %s\nnameserver %s\n", b.dns4, b.dns6),
		"ip -o link show eth0 | grep -o 'mtu [0-9]*'": "mtu 65520\n",
	} {
		if got := b.g.run(t, "%s", what); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	leases := ask[[]struct {
		Addr      netip.Addr
		MAC, Name string
	}](t, d, "leases", "ls")
	if !slices.ContainsFunc(leases, func(x struct {
		Addr      netip.Addr
		MAC, Name string
	}) bool {
		return x.Addr == b.g.addr4 && x.Name == "alpha" && x.MAC == mac.String()
	}) {
		t.Errorf("leases ls: %+v", leases)
	}
	for _, s := range scenarios {
		switch s.name {
		case "Configuration", "OtherGuest", "TCPParallel": // of a DHCP client, a second guest and a /tmp that are not there
			continue
		}
		t.Run(s.name, func(t *testing.T) { s.run(t, b) })
	}
	k.client.Close() // the command ends
	if code := d.end(t, patience); code != 0 {
		t.Errorf("exit status %d: %s", code, d.log.String())
	}
}

// TestNetnsGuests: namespaces and a guest in QEMU's framing on one network. What a namespace's kernel leaves to do on its
// frames is done by the time they reach the other, and goes as it is from namespace to namespace.
func TestNetnsGuests(t *testing.T) {
	t.Parallel()
	need(t)
	needTUN(t)
	l := newLab(t)
	names := []string{"alpha", "bravo"}
	d := &daemon{lab: l, control: l.path("control.sock"), unix: l.path("q.sock")}
	args := []string{"serve", "--control", d.control, "--qemu", "unix:" + d.unix}
	var guests []*guest
	for _, name := range names {
		k := startOwnGuest(t, name)
		args = append(args, "--netns", fmt.Sprintf("pid:%d,ifname=eth0,mac=%s,configure=no", k.cmd.Process.Pid, vm.MAC(name, 0)))
		guests = append(guests, &guest{Guest: k, name: name, mac: vm.MAC(name, 0), row: netnsRow, d: d})
	}
	cmd := l.command(t, args...)
	l.openTUN(t, cmd)
	d.begin(t, cmd)
	for _, g := range guests {
		g.run(t, "%s", dhcpUp(g.name))
		g.configured(t)
	}
	guests = append(guests, kernelUnix.boot(t, d, attach{unix: d.unix}, "charlie"))
	const n = 5_000_000
	for _, mtu := range []int{65520, 1500} {
		for _, g := range guests {
			g.run(t, "ip link set eth0 mtu %d", mtu)
		}
		for _, from := range guests {
			for _, to := range guests {
				if from == to {
					continue
				}
				for _, a := range []netip.Addr{to.addr4, to.addr6} {
					port, sink := to.listen(t, "guest listen sink :0")
					var r traffic.Report
					from.json(t, &r, "guest tcp -timeout 30s -send %d -seed 3 %s", n, netip.AddrPortFrom(a, port))
					var got traffic.Report
					sink.next(t, &got)
					if r.End != "eof" || got.Received != n || got.ReceivedHash != traffic.Hash(3, n) {
						t.Errorf("%s to %s at %s, MTU %d: %d of %d bytes, hash right: %v, end %q (%s)", from.name, to.name, a, mtu, got.Received, n, got.ReceivedHash == traffic.Hash(3, n), r.End, r.Error)
					}
					sink.Kill()
				}
			}
		}
	}
	for _, g := range guests {
		info, _ := g.info(t)
		if info.Dropped["malformed"] > 0 {
			t.Errorf("%s: dropped %v", g.name, info.Dropped)
		}
	}
}
