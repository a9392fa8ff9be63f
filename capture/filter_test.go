package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var (
	macA, macB = []byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}, []byte{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee}
	broadcast  = []byte{255, 255, 255, 255, 255, 255}
)

func ether(dst, src []byte, typ uint16, rest ...byte) []byte {
	b := append(append([]byte(nil), dst...), src...)
	return append(binary.BigEndian.AppendUint16(b, typ), rest...)
}

func tagged(frame []byte, tpid, tci uint16) []byte {
	b := binary.BigEndian.AppendUint16(append([]byte(nil), frame[:12]...), tpid)
	return append(binary.BigEndian.AppendUint16(b, tci), frame[12:]...)
}

// ipv4 is a packet with options and a fragment's offset.
func ipv4(proto byte, src, dst string, options int, frag uint16, rest []byte) []byte {
	b := make([]byte, 20+options)
	b[0] = byte(0x40 | len(b)/4)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(rest)))
	binary.BigEndian.PutUint16(b[6:], frag)
	b[8], b[9] = 64, proto
	copy(b[12:], netip.MustParseAddr(src).AsSlice())
	copy(b[16:], netip.MustParseAddr(dst).AsSlice())
	for i := range options {
		b[20+i] = 1
	}
	return append(b, rest...)
}

func ipv6(next byte, src, dst string, rest []byte) []byte {
	b := make([]byte, 40)
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(rest)))
	b[6], b[7] = next, 64
	copy(b[8:], netip.MustParseAddr(src).AsSlice())
	copy(b[24:], netip.MustParseAddr(dst).AsSlice())
	return append(b, rest...)
}

func ports(src, dst uint16, n int) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, src), dst)
	return append(b, make([]byte, n)...)
}

func tcpFlags(src, dst uint16, flags byte, n int) []byte {
	b := append(ports(src, dst, 16), make([]byte, n)...)
	b[12], b[13] = 0x50, flags
	return b
}

func arpFor(op byte, spa, tpa string) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, macA...)
	b = append(b, netip.MustParseAddr(spa).AsSlice()...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, netip.MustParseAddr(tpa).AsSlice()...)
}

// frames are one of each that filters tell apart, whole and cut.
func frames() (list [][]byte, whole int) {

	add := func(typ uint16, p []byte) []byte {
		f := ether(macB, macA, typ, p...)
		list = append(list, f)
		return f
	}
	var tag [][]byte
	for _, d := range []string{"10.0.2.2", "93.184.216.34", "224.0.0.251", "192.168.1.7", "10.1.0.0"} {
		for _, flags := range []byte{2, 0x12, 0x10, 0x11, 4, 0xc2} {
			tag = append(tag, add(etherIP, ipv4(6, "10.0.2.15", d, 0, 0, tcpFlags(40000, 443, flags, 30))))
		}
		add(etherIP, ipv4(6, d, "10.0.2.15", 12, 0, tcpFlags(80, 8005, 0x18, 100)))
		add(etherIP, ipv4(17, "10.0.2.15", d, 0, 0, ports(5353, 53, 60)))
		add(etherIP, ipv4(17, "10.0.2.15", d, 0, 0x2000, ports(5353, 53, 600)))
		add(etherIP, ipv4(17, "10.0.2.15", d, 0, 0x00b9, ports(80, 53, 60)))
		add(etherIP, ipv4(132, d, "10.0.2.15", 4, 0, ports(443, 53, 60)))
		add(etherIP, ipv4(1, "10.0.2.15", d, 0, 0, []byte{8, 0, 1, 2, 3, 4, 5, 6}))
		add(etherIP, ipv4(1, d, "10.0.2.15", 0, 0, []byte{3, 1, 1, 2, 3, 4, 5, 6}))
		add(etherIP, ipv4(2, "10.0.2.15", d, 4, 0, make([]byte, 8)))
		add(etherARP, arpFor(1, "10.0.2.15", d))
		add(etherRARP, arpFor(3, d, "10.0.2.15"))
	}
	for _, p := range []byte{50, 51, 103, 112, 47} {
		add(etherIP, ipv4(p, "10.0.2.15", "10.0.2.2", 0, 0, make([]byte, 40)))
		add(etherIP6, ipv6(p, "fd00::15", "fd00::2", make([]byte, 40)))
	}
	for _, d := range []string{"fd00::2", "2001:db8::1", "ff02::fb", "fe80::1"} {
		tag = append(tag, add(etherIP6, ipv6(6, "fd00::15", d, tcpFlags(40000, 443, 2, 30))))
		add(etherIP6, ipv6(6, d, "fd00::15", tcpFlags(80, 8005, 0x18, 100)))
		add(etherIP6, ipv6(17, "fd00::15", d, ports(5353, 53, 60)))
		add(etherIP6, ipv6(132, "fd00::15", d, ports(5353, 53, 60)))
		add(etherIP6, ipv6(58, "fd00::15", d, []byte{128, 0, 1, 2, 3, 4, 5, 6}))
		add(etherIP6, ipv6(58, "fd00::15", d, []byte{135, 0, 1, 2, 3, 4, 5, 6}))
		for _, next := range []byte{6, 17, 58, 132, 1} {
			add(etherIP6, ipv6(protoFrag, "fd00::15", d, append([]byte{next, 0, 0, 1, 0, 0, 0, 1}, ports(40000, 443, 60)...)))
		}
	}
	for _, f := range tag {
		one := tagged(f, 0x8100, 7)
		list = append(list, one, tagged(one, 0x88a8, 0x2064), tagged(f, 0x9100, 0xf000))
	}
	list = append(list, ether(broadcast, macA, etherARP, arpFor(1, "10.0.2.15", "10.0.2.2")...), ether([]byte{1, 0, 0x5e, 0, 0, 1}, macB, 0x88cc, 1, 2, 3),
		ether(macA, macB, 100, make([]byte, 60)...), ether(macA, macB, etherIP, ipv4(17, "8.8.8.8", "10.0.2.15", 0, 0, ports(53, 1025, 1400))...))
	whole = len(list)
	for _, f := range list {
		for _, n := range []int{14, 18, 20, 30, 36, 50, 56} {
			if n < len(f) {
				list = append(list, f[:n])
			}
		}
	}
	return list, whole
}

// filters are what is compared with libpcap.
var filters = []string{
	"ip", "ip6", "arp", "rarp", "tcp", "udp", "sctp", "icmp", "icmp6", "igmp", "pim", "ah", "esp", "vrrp", "not ip", "!tcp",
	"host 10.0.2.2", "src host 10.0.2.15", "dst host 10.0.2.15", "src 10.0.2.15", "dst 10.0.2.2", "host fd00::2", "src host fd00::15", "dst 2001:db8::1",
	"src or dst host 10.0.2.2", "src and dst host 10.0.2.15", "dst or src 10.0.2.2", "src and dst net 10.0.0.0/8",
	"ip host 10.0.2.2", "arp host 10.0.2.2", "rarp host 10.0.2.2", "ip6 host fd00::2", "arp src host 10.0.2.15", "arp dst 192.168.1.7", "ip src 10.0.2.15 and ip dst 10.0.2.2",
	"net 10.0.2.0/24", "net 10", "net 192.168", "net 192.168.1", "net 10.1.0.0", "src net 10.0.0.0/8", "dst net 224.0.0.0/4", "net 10.0.0.0 mask 255.0.0.0", "net 0.0.0.0/0",
	"net fd00::/64", "dst net ff00::/8", "ip6 net 2001:db8::/32", "arp net 10.0.2.0/24",
	"port 53", "port 443", "src port 443", "dst port 443", "tcp port 443", "udp port 53", "sctp port 53", "tcp src port 80", "tcp dst port 8005", "udp dst port 53", "src or dst port 80", "src and dst port 53",
	"portrange 8000-8010", "tcp portrange 400-500", "udp src portrange 5000-6000", "portrange 8010-8000", "port http", "port domain", "tcp port https",
	"ether host 52:54:00:12:34:56", "ether src 52:54:00:12:34:56", "ether dst 5a:94:ef:e4:0c:ee", "ether broadcast", "ether multicast", "broadcast", "multicast", "ip multicast", "ip6 multicast",
	"ether proto 0x0806", `ether proto \ip`, `ether proto \arp`, "ether proto 0x88cc", "ip proto 17", `ip proto \tcp`, "ip6 proto 58", `ip6 proto \udp`, "proto 6", `proto \icmp`, "proto 50", "ip proto 2",
	"less 64", "greater 100", "len > 100", "len <= 64", "len = 74", "len != 74",
	"vlan", "vlan 7", "vlan 100", "vlan and tcp", "vlan and host 10.0.2.2", "vlan 7 and port 443", "vlan and vlan", "vlan 100 and vlan 7 and tcp", "not vlan", "vlan and ip6", "tcp or vlan and udp or tcp", "vlan 4095",
	"tcp and host 10.0.2.2", "tcp or udp", "tcp and port 443 or udp", "udp or tcp and port 443", "udp or (tcp and port 443)", "not tcp and not udp", "not (tcp or udp)", "ip and not net 10.0.2.2/32",
	"port 53 or 443", "host 10.0.2.2 or 93.184.216.34", "tcp port 80 or 443", "not host 10.0.2.2 and 192.168.1.7", "src host 10.0.2.15 and dst port 443", "tcp && port 443 || icmp", "host (10.0.2.2 or 192.168.1.7)", "tcp port (80 or 443) and not src net 10.0.2.0/24",
	"tcp[13] & 2 != 0", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "tcp[tcpflags] == tcp-syn", "tcp[tcpflags] & (tcp-syn|tcp-ack) == (tcp-syn|tcp-ack)", "tcp[0:2] = 443", "tcp[tcpflags] & tcp-rst != 0",
	"icmp[icmptype] = icmp-echo", "icmp[icmptype] != icmp-echo", "icmp[0] == 3", "icmp6[icmp6type] = icmp6-echo", "icmp6[0] = 135", "ip[9] = 17", "ip[2:2] > 100", "ip[6:2] & 0x1fff != 0", "ip[0] & 0xf > 5", "ether[0] & 1 = 1", "ether[12:2] = 0x800",
	"ip6[6] = 6", "ip6[4:2] > 60", "arp[6:2] = 1", "udp[4:2] = 0", "udp[2:2] - 50 = 3", "((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0", "ip[16:4] = 0x0a000202", "ip[ip[0] & 0xf] = 0", "len - 14 > 60",
	"tcp[2:2] > 400 and tcp[2:2] < 500", "6 = ip[9]", "ip[8] * 2 = 128", "ip[8] / 2 = 32", "ip[8] % 7 = 1", "ip[8] ^ 64 = 0", "ip[9] | 1 = 7", "1 << 4 = 16", "ip[ether[5]] = 64", "ip[200] = 0 or tcp", "tcp or ip[200] = 0", "not ip[200] = 1", "udp and ip[200] = 0 or arp",
	"tcp[13] = 2 or (icmp[0] = 8)", "(tcp) and (((port 443)))", "(ip[9] = 6) and (tcp[13] = 2)", "(tcp[13] & 2) != 0", "not (tcp[13] & 2 != 0)", "ether host 52:54:00:12:34:56 and not arp", "ip proto 47",
}

// TestFilterAsTcpdump has tcpdump judge the same frames.
func TestFilterAsTcpdump(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	if err != nil {
		t.Skip("no tcpdump: e2e/deps.sh test installs it")
	}
	all, whole := frames()
	classic := func(list [][]byte) []byte { // a libpcap file, whose times are the frames' numbers
		b := append32(nil, 0xa1b2c3d4, 2|4<<16, 0, 0, 262144, 1)
		for i, f := range list {
			b = append(append32(b, uint32(i), 0, uint32(len(f)), uint32(len(f))), f...)
		}
		return b
	}
	file := filepath.Join(t.TempDir(), "frames.pcap")
	if err := os.WriteFile(file, classic(all), 0o600); err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, text := range filters {
		cmd := exec.Command(tcpdump, "-Z", "root", "-r", file, "-w", "-", "--", text)
		if os.Geteuid() != 0 {
			cmd = exec.Command(tcpdump, "-r", file, "-w", "-", "--", text)
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("tcpdump %q: %v: %s", text, err, stderr.String())
			continue
		}
		want := map[uint32]bool{}
		for b := out[24:]; len(b) >= 16; b = b[16+le.Uint32(b[8:]):] {
			want[le.Uint32(b)] = true
		}
		f, err := ParseFilter(text)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		for i, fr := range all {
			if i >= whole && strings.HasPrefix(text, "host ") && strings.Contains(text, " or ") {
				continue // cut within an address: libpcap's optimizer looks at one for both hosts before the other
			} else if got := f.Match(fr, false); got != want[uint32(i)] {
				t.Errorf("%q: frame %d, % x: %v, tcpdump says %v", text, i, fr[:min(len(fr), 60)], got, want[uint32(i)])
				break
			}
			compared++
		}
	}
	t.Logf("%d filters, %d frames: %d verdicts alike", len(filters), len(all), compared)
}

func TestFilterShallow(t *testing.T) {
	all, _ := frames()
	for _, text := range filters {
		f, err := ParseFilter(text)
		if err != nil {
			continue
		}
		for _, fr := range all {
			p := packet{b: fr[:min(len(fr), f.depth)], n: len(fr)}
			if f.run(&p) != f.Match(fr, false) {
				t.Fatalf("%q: the first %d bytes of % x do not do", text, f.depth, fr)
			}
		}
	}
}

// What tcpdump does not take, or says otherwise.
func TestFilterOwn(t *testing.T) {
	all, _ := frames()
	for own, other := range map[string]string{"10.0.2.2": "host 10.0.2.2", "net 10/8": "net 10.0.0.0/8", "HOST 10.0.2.2 AND TCP": "host 10.0.2.2 and tcp"} {
		a, err := ParseFilter(own)
		b, err2 := ParseFilter(other)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		for _, fr := range all {
			if a.Match(fr, false) != b.Match(fr, false) {
				t.Errorf("%q is not %q", own, other)
				break
			}
		}
	}
}

func TestFilterDirection(t *testing.T) {
	f, err := ParseFilter("inbound and arp")
	if err != nil {
		t.Fatal(err)
	}
	a := ether(broadcast, macA, etherARP, arpFor(1, "10.0.2.15", "10.0.2.2")...)
	if !f.Match(a, false) || f.Match(a, true) {
		t.Error("inbound is another way")
	}
}

// Errors say where, and what would be right.
func TestFilterErrors(t *testing.T) {
	for text, want := range map[string]string{
		"host":                   "at its end: want an address",
		"host example.com":       `at 6, "example.com": want an address: names are not looked up`,
		"tcp prt 80":             `at 5, "prt 80": want host, net, port`,
		"foo":                    `at 1, "foo": want host, net`,
		"tcp and":                "at its end: something is missing",
		"(tcp or udp":            `at its end: want ")"`,
		"tcp)":                   `at 4, ")": want and, or`,
		"port 70000":             `at 6, "70000": a port is up to 65535`,
		"portrange 80":           `at 11, "80": want two ports`,
		"net 10.0.2.15/24":       "want 10.0.2.0/24",
		"net 10.0.2.0/33":        "is up to 32",
		"host 10.0.2.0/24":       "want net before",
		"host 52:54:00:12:34:56": "want ether host",
		"ether host 10.0.2.2":    "want a MAC",
		"icmp port 3":            "has no ports",
		"tcp[13":                 `want "]"`,
		"tcp[13:3] = 2":          "want 1, 2 or 4 bytes",
		"tcp[13] & 2":            "want a comparison",
		"host 10.0.2.2 $ tcp":    `at 15, "$ tcp": '$' means nothing here`,
		"vlan 5000":              "up to 4095",
		"ip6 host 10.0.2.2":      "has no IPv4 address",
		"ip host fd00::1":        "has no IPv6 address",
		"host fe80::1%eth0":      "want and, or, or the end",
		"ip broadcast":           "there is ether broadcast",
		"foo[1] = 2":             "not a number",
		strings.Repeat("(", 200) + "tcp" + strings.Repeat(")", 200): "in one another",
		strings.Repeat("tcp or ", 2000) + "tcp":                     "8192 bytes at most",
	} {
		_, err := ParseFilter(text)
		var e *FilterError
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
	if f, err := ParseFilter(" "); f != nil || err != nil {
		t.Errorf("the empty filter: %v, %v", f, err)
	}
}

func FuzzParseFilter(f *testing.F) {
	for _, text := range filters {
		f.Add(text, []byte("\x52\x54\x00\x12\x34\x56\x5a\x94\xef\xe4\x0c\xee\x08\x00\x45\x00"))
	}
	f.Add("((((ip[ip[ip[0]]:4]))))=-(-1)", []byte(nil))
	f.Add("host \\tcp and port \\port or ::", make([]byte, 60))
	f.Add(strings.Repeat("not ", 90)+"tcp", make([]byte, 60))
	f.Add("ip[4294967295:4] / (ip[0]-ip[0]) > 0", make([]byte, 60))
	f.Fuzz(func(t *testing.T, text string, frame []byte) {
		flt, err := ParseFilter(text)
		if err != nil {
			var e *FilterError
			if !errors.As(err, &e) || e.At < 0 || e.At > len(text) {
				t.Fatalf("%v", err)
			}
			_ = fmt.Sprint(err)
			return
		}
		if flt == nil {
			return
		}
		whole := flt.Match(frame, false)
		p := packet{b: frame[:min(len(frame), flt.depth)], n: len(frame)}
		if flt.run(&p) != whole {
			t.Fatalf("%q looks further than %d", text, flt.depth)
		}
	})
}

func BenchmarkFilter(b *testing.B) {
	fr := ether(macB, macA, etherIP, ipv4(6, "10.0.2.15", "93.184.216.34", 0, 0, tcpFlags(40000, 443, 16, 1400))...)
	for _, text := range []string{"tcp port 443", "host 10.0.2.15 and not port 22", "tcp[tcpflags] & tcp-syn != 0"} {
		f, err := ParseFilter(text)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(text, func(b *testing.B) {
			p := packet{b: fr, n: len(fr)}
			for b.Loop() {
				f.run(&p)
			}
		})
	}
}
