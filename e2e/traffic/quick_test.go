package traffic

import (
	"bytes"
	"testing"
	"testing/iotest"
)

// The sum is of the bytes, however they are cut, and of nothing else.
func TestQuickSum(t *testing.T) {
	for _, n := range []int64{0, 1, 7, 8, 9, 1000, quickPiece, 2*quickPiece + 13} {
		var wire bytes.Buffer
		var s Report
		if err := s.SendQuick(&wire, 5, n); err != nil || s.Sent != n || int64(wire.Len()) != n {
			t.Fatalf("%d bytes: sent %d, %v", n, s.Sent, err)
		}
		body := wire.Bytes()
		sum := func(b []byte) string {
			var r Report
			if err := r.ReceiveQuick(iotest.HalfReader(bytes.NewReader(b))); err != nil || r.Received != int64(len(b)) {
				t.Fatalf("received %d of %d, %v", r.Received, len(b), err)
			}
			return r.ReceivedHash
		}
		if got := sum(body); got != s.SentHash {
			t.Errorf("%d bytes: sent %s, received %s", n, s.SentHash, got)
		}
		if n < 2*quickPiece {
			continue
		}
		cut := func(a, b int) []byte { return append(bytes.Clone(body[:a]), body[b:]...) }
		flipped := bytes.Clone(body)
		flipped[1234] ^= 1
		swapped := append(append(bytes.Clone(body[1024:2048]), body[:1024]...), body[2048:]...)
		for name, b := range map[string][]byte{
			"a lost KiB": cut(1024, 2048), "a lost byte": cut(99, 100), "a torn end": body[:len(body)-1], "a longer end": append(bytes.Clone(body), 0),
			"a doubled KiB": append(bytes.Clone(body[:1024]), body...), "a flipped bit": flipped, "a swap": swapped,
		} {
			if sum(b) == s.SentHash {
				t.Errorf("%s has the same sum", name)
			}
		}
	}
}
