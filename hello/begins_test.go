package hello

import (
	"bytes"
	"testing"
)

// What a client's first datagrams begin is told from what it goes on with, wherever in a datagram it is.
func TestBegins(t *testing.T) {
	id := []byte("12345678")
	for _, version := range []uint32{1, 0x6b3343cf} {
		first := initial{version: version, to: "3132333435363738", frames: crypto(0, message(sni("a.example"))), pad: 1200}.seal(t)
		// With an ID that the server chose, keys stay those of the first one.
		on := bytes.Replace(first, id, []byte("chosenid"), 1)
		early := bytes.Clone(first)
		early[0] ^= 0x10 // 0-RTT follows the Initial type in both versions
		if version == 1 {
			early[0] = 0xd0
		} else {
			early[0] = 0xe0
		}
		early = withoutToken(early)
		for name, tt := range map[string]struct {
			b    []byte
			want bool
		}{
			"first":              {first, true},
			"goes on":            {on, false},
			"0-RTT":              {early, false},
			"0-RTT before first": {append(bytes.Clone(early), first...), true},
			"many":               {bytes.Repeat(early, mostPackets+1), true},
			"short header":       {append([]byte{0x40}, first[1:]...), false},
			"nothing":            {nil, false},
			"cut":                {first[:20], false},
			"a version unread":   {append([]byte{0xc3, 0xff, 0, 0, 29, 8}, append(bytes.Clone(id), 0, 0, 0)...), true},
		} {
			got, ok := Begins(tt.b)
			if ok != tt.want || ok && !bytes.Equal(got, id) {
				t.Errorf("version %x, %s: %q, %v; want %v", version, name, got, ok, tt.want)
			}
		}
	}
}

// withoutToken takes the token's length out, which only an Initial has.
func withoutToken(b []byte) []byte {
	at := 5 + 1 + int(b[5])
	at += 1 + int(b[at])
	return append(bytes.Clone(b[:at]), b[at+1:]...)
}
