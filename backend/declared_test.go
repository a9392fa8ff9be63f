package backend

import (
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/vmnetd/vmnetd/backend/backendtest"
)

// FuzzDeclaredMTU: no packet breaks the look for a SYN's segment size, and what comes of it is a SYN's.
func FuzzDeclaredMTU(f *testing.F) {
	f.Fuzz(func(t *testing.T, v6 bool, ip []byte) {
		kind := etherIPv4
		if v6 {
			kind = etherIPv6
		}
		n := declaredMTU(kind, ip)
		if n == 0 {
			return
		}
		p := backendtest.Parse(append(make([]byte, 12, 14+len(ip)), append([]byte{byte(kind >> 8), byte(kind)}, ip...)...))
		if n > 65535+60 || len(ip) < 40 {
			t.Fatalf("%d of % x", n, ip)
		}
		hl := header.IPv4MinimumSize
		if v6 {
			hl = header.IPv6MinimumSize
		}
		if ip[hl+13]&byte(header.TCPFlagSyn) == 0 || p.TCP != nil && p.Offset > 0 {
			t.Fatalf("%d of %v", n, p)
		}
	})
}

// FuzzFragment4: the fragments of a packet are short enough and carry what it carried.
func FuzzFragment4(f *testing.F) {
	f.Fuzz(func(t *testing.T, options uint8, offset uint16, more bool, mtu uint16, payload []byte) {
		hl := header.IPv4MinimumSize + int(options%11)*4
		if int(mtu) < 68 || len(payload) > 65535-hl || len(payload) == 0 { // RFC 791: every module takes 68
			return
		}
		offset &^= 7
		if int(offset)+len(payload) > 65535 {
			return
		}
		packet := make([]byte, hl, hl+len(payload))
		h := header.IPv4(packet)
		h.Encode(&header.IPv4Fields{TotalLength: uint16(hl + len(payload)), ID: 7, TTL: 64, Protocol: 17})
		h.SetHeaderLength(uint8(hl))
		flags := uint8(0)
		if more {
			flags = header.IPv4FlagMoreFragments
		}
		h.SetFlagsFragmentOffset(flags, offset)
		packet = append(packet, payload...)
		at := 0
		list := fragment4(packet, int(mtu))
		for i, b := range list {
			g := header.IPv4(b)
			part := b[hl:]
			last := i == len(list)-1
			if len(b) > int(mtu) || int(g.TotalLength()) != len(b) || !g.IsChecksumValid() || int(g.FragmentOffset()) != int(offset)+at ||
				(g.Flags()&header.IPv4FlagMoreFragments != 0) != (more || !last) || string(part) != string(payload[at:at+len(part)]) {
				t.Fatalf("fragment %d of %d: %d bytes at %d", i, len(list), len(b), g.FragmentOffset())
			}
			at += len(part)
		}
		if at != len(payload) {
			t.Fatalf("%d of %d bytes", at, len(payload))
		}
	})
}
