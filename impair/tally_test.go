package impair

import (
	"encoding/binary"
	"encoding/hex"
	"testing"
)

// A profile is what synthetic-network's programs read: 2048 slots of packets, bits and far end, the least byte first, each
// in the slot that MurmurHash3's finalizer picks.
func TestTally(t *testing.T) {
	var tally Tally
	frame := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const ether = "525400020202525400010101"
	tcp4 := frame(ether + "0800" + "45000034591a4000400600000a000202c0a8007b" + "00500bb8") // 10.0.2.2:80 to 192.168.0.123:3000
	udp6 := frame(ether + "86dd" + "6000000000081140" + "20010db8000000000000000000000001" + "20010db8000000000000000000000002" + "0035d431")
	arp := frame(ether + "0806" + "0001080006040001525400010101c0a8007b0000000000000a000202")
	for _, c := range []struct {
		frame   []byte
		up      bool
		packets int
		bytes   int
	}{
		{tcp4, false, 1, 66}, {tcp4, false, 3, 4000}, {tcp4, true, 1, 10}, {udp6, false, 1, 200}, {arp, false, 1, 42}, {nil, false, 1, 42},
	} {
		tally.Add(c.up, Count(c.frame, c.up, c.packets, c.bytes))
	}
	type slot struct{ packets, bits, id uint64 }
	want := map[bool]map[int]slot{
		false: { // what the guest gets: by its source
			int(tallySlotOf(0x0050_0006_0202000a)): {4, (90 + 4072) * 8, 0x0050_0006_0202000a},
			int(tallySlotOf(0x0035_0011_00000000)): {1, 224 * 8, 0x0035_0011_00000000},
			0:                                      {2, 2 * 84 * 8, 0}, // the finalizer leaves 0 as it is
		},
		true: {int(tallySlotOf(0x0bb8_0006_7b00a8c0)): {1, 84 * 8, 0x0bb8_0006_7b00a8c0}},
	}
	for up, slots := range want {
		b := tally.Profile(up)
		if len(b) != 2048*24 {
			t.Fatalf("%d bytes", len(b))
		}
		for i := range 2048 {
			s := b[i*24:]
			got := slot{binary.LittleEndian.Uint64(s), binary.LittleEndian.Uint64(s[8:]), binary.LittleEndian.Uint64(s[16:])}
			if got != slots[i] {
				t.Errorf("up %v: slot %d is %x, want %x", up, i, got, slots[i])
			}
		}
	}
	// MurmurHash3's fmix64(1) is b456bcfc34c2cb2c.
	if got := tallySlotOf(1); got != 0xb456bcfc34c2cb2c%2048 {
		t.Errorf("slot %#x", got)
	}
}
