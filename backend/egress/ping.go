package egress

import (
	"bytes"
	"encoding/binary"
)

// Echo messages, RFC 792 and RFC 4443 4: type, code, checksum, identifier,
// sequence number, payload.
const (
	echoHeader   = 8
	echoRequest4 = 8
	echoReply4   = 0
	echoRequest6 = 128
	echoReply6   = 129
)

// appendEcho appends an echo request without its checksum, which the system
// computes, as it does the identifier.
func appendEcho(b []byte, v6 bool, seq uint16, payload []byte) []byte {
	typ := byte(echoRequest4)
	if v6 {
		typ = echoRequest6
	}
	b = append(b, typ, 0, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, seq)
	return append(b, payload...)
}

// answers says whether msg, an ICMP message, is the echo reply to the request
// with this sequence number and payload. The identifier was the system's.
func answers(msg []byte, v6 bool, seq uint16, payload []byte) bool {
	typ := byte(echoReply4)
	if v6 {
		typ = echoReply6
	}
	return len(msg) == echoHeader+len(payload) && msg[0] == typ && msg[1] == 0 &&
		binary.BigEndian.Uint16(msg[6:]) == seq && bytes.Equal(msg[echoHeader:], payload)
}
