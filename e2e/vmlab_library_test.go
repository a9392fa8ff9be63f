//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	vmlab "github.com/vmnetd/vmnetd/lab"
	"golang.org/x/sys/unix"
)

// A lab as a Go test of anybody's has it: in the test's own process, without root. Root starts the same test again as an
// ordinary user.

// libraryFile is: a network with vmnetd in it; two plain ones with a bridge between them that a node is; a wire.
//
//	web ── shop ── a        b ── plain ── bridge ── beyond ── d
//	                \______/ │      \
//	                 cable   c     sensor, which sees all and says nothing
const libraryFile = `name: library
networks:
  shop: {net: 10.30.0.0/24}
  plain: {uplink: false, net: 10.31.0.0/24, net6: "fd00:31::/64"}
  beyond: {uplink: false}
links:
  cable: {}
nodes:
  web:
    kind: netns
    interfaces: [shop]
    setup:
      - mount -t tmpfs www /srv
      - echo 'hello from web' >/srv/index.html
    command: [busybox, httpd, -f, -p, "80", -h, /srv]
    wait: tcp:80
  a: {kind: netns, interfaces: [shop, plain, cable]}
  b: {kind: netns, interfaces: [plain, cable]}
  c: {kind: netns, interfaces: [plain]}
  sensor: {kind: netns, interfaces: [{net: plain, mirror: true}]}
  bridge:
    kind: netns
    interfaces: [{net: plain, promiscuous: true}, {net: beyond, promiscuous: true}]
    setup:
      - ip link add br0 type bridge
      - ip addr flush dev eth0
      - ip link set eth0 master br0
      - ip link set eth1 master br0
      - ip link set br0 up
  d:
    kind: netns
    interfaces: [{net: beyond, address: [10.31.0.200/24, "fd00:31::200/64"]}]
`

const libraryEnv = "VMNETD_E2E_LAB_LIBRARY"

func TestLabLibrary(t *testing.T) {
	file := os.Getenv(libraryEnv)
	if file == "" {
		t.Parallel()
		needTools(t, "tshark")
		s := newStudent(t)
		before := s.traces(t)
		cmd := s.command(selfAs(t, "library"), "-test.run=^TestLabLibrary$", "-test.v", "-test.timeout=2m")
		// With the race detector each program waits a second for its end, unless it is told not to.
		cmd.Env = append(cmd.Env, libraryEnv+"="+s.file(t, "library.yaml", libraryFile), "GORACE=atexit_sleep_ms=0")
		began := time.Now()
		out, err := s.run(cmd)
		if err != nil || !strings.Contains(out, "--- PASS: TestLabLibrary") {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("%v, as user %d, with all that its process is\n%s", time.Since(began).Round(time.Millisecond), s.uid, out)
		os.Remove(filepath.Join(s.home, "work", "library.yaml"))
		s.nothingLeft(t, before, traces{})
		return
	}
	if os.Getuid() == 0 {
		t.Fatal("this is root")
	}
	began := time.Now()
	l := vmlab.Up(t, file)
	t.Logf("%d nodes are up after %v", len(l.Nodes()), time.Since(began).Round(time.Millisecond))
	f := &frames{l: l}

	t.Run("Dial", func(t *testing.T) {
		web := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(address)
			return l.Node("web").Dial(ctx, network, port)
		}}}
		defer web.CloseIdleConnections()
		r, err := web.Get("http://web/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if string(body) != "hello from web\n" {
			t.Errorf("by Dial: %q", body)
		}
		if c, err := l.Node("web").Dial(t.Context(), "tcp", "81"); err == nil {
			c.Close()
			t.Error("somebody answers at port 81")
		} else if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("port 81: %v, want refused", err)
		}
	})
	t.Run("Output", func(t *testing.T) {
		out, err := l.Node("a").Output(t.Context(), "busybox", "wget", "-qO-", "http://web.internal/")
		if err != nil || string(out) != "hello from web\n" {
			t.Errorf("%q, %v", out, err)
		}
		if out, err := l.Node("a").Output(t.Context(), "sh", "-c", "echo so; echo because >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "because") {
			t.Errorf("%q, %v", out, err)
		}
		if code, err := l.Node("a").Exec(t.Context(), vmlab.Command{Args: []string{"sh", "-c", "exit 3"}}); code != 3 || err != nil {
			t.Errorf("exit status %d, %v", code, err)
		}
	})
	t.Run("Plain", func(t *testing.T) {
		// What a switch of wires and a chip passes: routing protocols' multicast, tags.
		f.passes(t, "a", "eth1", "b", "eth0", frame("01005e000005", "0800", ospfHello))
		f.passes(t, "a", "eth1", "b", "eth0", frame("ffffffffffff", "8100", "002a88b5"+zeros(46)))
		// Nothing of vmnetd's is in it.
		if out, err := l.Node("c").Output(t.Context(), "ping", "-c", "1", "-W", "1", "10.31.0.254"); err == nil {
			t.Errorf("somebody answers for what nobody is: %s", out)
		}
		for _, to := range []string{"10.31.0.200", "fd00:31::200"} {
			if out, err := l.Node("c").Output(t.Context(), "ping", "-c", "1", "-W", "20", to); err != nil {
				t.Errorf("by the bridge to %s: %v %s", to, err, out)
			}
		}
	})
	t.Run("Wire", func(t *testing.T) {
		f.passes(t, "a", "eth2", "b", "eth1", frame("0180c200000e", "88cc", lldp))
		f.passes(t, "b", "eth1", "a", "eth2", frame("0180c2000000", "0026", "424203"+zeros(43)))
		f.passes(t, "b", "eth1", "a", "eth2", frame("0200000000ff", "8100", "000788b5"+zeros(46)))
	})
	t.Run("Mirror", func(t *testing.T) {
		to := l.Node("b").Status().Interfaces[0].Addrs[0].String()
		// b is known to the switch from the answer to the first, so what goes to b is a bystander's no more.
		if _, err := l.Node("a").Output(t.Context(), "ping", "-c", "1", "-W", "20", to); err != nil {
			t.Fatal(err)
		}
		mark, forged := frame("ffffffffffff", "88b5", zeros(46)), frame("ffffffffffff", "88b6", zeros(46)) // for local experiments: IEEE 802
		const echo = "icmp"
		seen := f.listen(t, "sensor", "Capture started", "tshark", "-i", "eth0", "-c", "1", "-f", "icmp[icmptype] == icmp-echo")
		bystander := f.hear(t, "c", "eth0", echo, mark)
		if out, err := l.Node("a").Output(t.Context(), "ping", "-c", "3", "-i", "0.01", "-W", "20", to); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		if got := seen.wait(t); !strings.Contains(got, "Echo (ping) request") || !strings.Contains(got, to) {
			t.Errorf("the sensor sees %s", got)
		}
		f.send(t, "a", "eth1", mark)
		if got := bystander.wait(t); got != mark {
			t.Errorf("a bystander sees %s", got)
		}
		heard := f.hear(t, "b", "eth0", mark, forged)
		f.send(t, "sensor", "eth0", forged)
		f.send(t, "a", "eth1", mark)
		if got := heard.wait(t); got != mark {
			t.Errorf("the sensor is heard: %s", got)
		}
	})
}

const (
	// ospfHello is an IPv4 packet of protocol 89 to 224.0.0.5 with nothing right in it but that.
	ospfHello = "45c000280001000001590000" + "0a1f0001" + "e0000005" + "0201001401010101000000000000000000000000"
	lldp      = "0207040200000000010403070400000000060200780000" + "0000000000000000000000000000000000000000000000"
)

func zeros(n int) string { return strings.Repeat("00", n) }

// frame is an Ethernet frame in hexadecimal digits, without who sends it: that is the interface.
func frame(to, kind, rest string) string {
	return to + strings.Repeat("00", 6) + kind + rest
}

// frames sends and sees frames in the nodes of a lab.
type frames struct{ l *vmlab.Lab }

// passes says that a frame comes from one node to the other, whole.
func (f *frames) passes(t *testing.T, from, out, to, in, hexFrame string) {
	t.Helper()
	got := f.hear(t, to, in, hexFrame)
	f.send(t, from, out, hexFrame)
	got.wait(t)
}

// listener is a command in a node that ends with the first frame that it is there for.
type listener struct {
	what string
	out  bytes.Buffer
	done chan error
}

// hear returns once node listens for one of some frames, or for "icmp".
func (f *frames) hear(t *testing.T, node, iface string, what ...string) *listener {
	t.Helper()
	return f.listen(t, node, "listening", append([]string{os.Args[0], hearWord, iface}, what...)...)
}

// listen returns once the command has said a word on its standard error.
func (f *frames) listen(t *testing.T, node, word string, args ...string) *listener {
	t.Helper()
	l := &listener{what: node + ": " + strings.Join(args, " "), done: make(chan error, 1)}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	said := &ready{word: word, is: make(chan struct{})}
	go func() {
		defer cancel()
		code, err := f.l.Node(node).Exec(ctx, vmlab.Command{Args: args, Stdout: &l.out, Stderr: said})
		if err == nil && code != 0 {
			err = fmt.Errorf("exit status %d: %s", code, said.String())
		}
		l.done <- err
	}()
	select {
	case <-said.is:
	case err := <-l.done:
		t.Fatalf("%s: %v: %s", l.what, err, said.String())
	case <-time.After(patience):
		t.Fatalf("%s: not within %v: %s", l.what, patience, said.String())
	}
	return l
}

func (l *listener) wait(t *testing.T) string {
	t.Helper()
	select {
	case err := <-l.done:
		if err != nil {
			t.Fatalf("%s: %v", l.what, err)
		}
	case <-time.After(patience):
		t.Fatalf("%s: nothing within %v", l.what, patience)
	}
	return l.out.String()
}

// ready waits for a word in what is written to it.
type ready struct {
	output
	word string
	is   chan struct{}
	said bool
}

func (r *ready) Write(b []byte) (int, error) {
	r.output.Write(b)
	if !r.said && strings.Contains(r.String(), r.word) {
		r.said = true
		close(r.is)
	}
	return len(b), nil
}

func (f *frames) send(t *testing.T, node, iface, hexFrame string) {
	t.Helper()
	if out, err := f.l.Node(node).Output(t.Context(), os.Args[0], sendWord, iface, hexFrame); err != nil {
		t.Fatalf("%s sends at %s: %v: %s", node, iface, err, out)
	}
}

// Words that make this binary, in a node, one who sends a frame or hears one.
const sendWord, hearWord = "vmlab-send", "vmlab-hear"

func init() {
	if len(os.Args) < 4 {
		return
	}
	var do func(*net.Interface, ...string) error
	switch os.Args[1] {
	case sendWord:
		do = sendFrame
	case hearWord:
		do = hearFrame
	default:
		return
	}
	ifi, err := net.InterfaceByName(os.Args[2])
	if err == nil {
		err = do(ifi, os.Args[3:]...)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func sendFrame(ifi *net.Interface, what ...string) error {
	b, err := hex.DecodeString(what[0])
	if err != nil {
		return err
	}
	copy(b[6:12], ifi.HardwareAddr)
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	return unix.Sendto(s, b, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index})
}

// hearFrame prints which of some frames comes first, whoever sends it; of "icmp" any echo request of IPv4.
func hearFrame(ifi *net.Interface, what ...string) error {
	all := int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})) // htons
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if err := unix.SetsockoptInt(s, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return err
	}
	if err := unix.Bind(s, &unix.SockaddrLinklayer{Ifindex: ifi.Index, Protocol: uint16(all)}); err != nil {
		return err
	}
	// What is addressed to others, too, if it comes here.
	if err := unix.SetsockoptPacketMreq(s, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(ifi.Index), Type: unix.PACKET_MR_PROMISC}); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "listening")
	buf, oob := make([]byte, 1<<16), make([]byte, 256)
	for {
		n, on, _, from, err := unix.Recvmsg(s, buf, oob, 0)
		if err != nil {
			return err
		}
		if at, ok := from.(*unix.SockaddrLinklayer); !ok || at.Pkttype == unix.PACKET_OUTGOING || n < 14 {
			continue
		}
		b := retagged(buf[:n], oob[:on])
		for _, w := range what {
			// Ethernet's payload is 46 bytes at least, so that a short one has a tail.
			if h := hex.EncodeToString(b); w != "icmp" && len(h) >= len(w) && h[:12] == w[:12] && h[24:len(w)] == w[24:] ||
				w == "icmp" && b[12] == 8 && b[13] == 0 && n > 34 && b[23] == unix.IPPROTO_ICMP && b[34] == 8 {
				fmt.Print(w)
				return nil
			}
		}
	}
}

// retagged puts back the VLAN tag that the kernel has taken out of a frame: tpacket_auxdata of packet(7).
func retagged(b, oob []byte) []byte {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return b
	}
	for _, m := range list {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < 20 {
			continue
		}
		status, tag, kind := binary.NativeEndian.Uint32(m.Data), binary.NativeEndian.Uint16(m.Data[16:]), binary.NativeEndian.Uint16(m.Data[18:])
		if status&unix.TP_STATUS_VLAN_VALID == 0 {
			continue
		}
		with := append([]byte{}, b[:12]...)
		with = binary.BigEndian.AppendUint16(with, kind)
		with = binary.BigEndian.AppendUint16(with, tag)
		return append(with, b[12:]...)
	}
	return b
}
