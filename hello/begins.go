package hello

// Begins says whether a datagram begins a QUIC connection, as a server sees it, and with which connection ID. The Initial
// packets with which a client goes on do not: they have an ID of the server's, which opens none of them. It is for
// conversations that were looked at: their client may begin another connection from the same port, with another name.
// Datagrams.Again tells the same of one conversation, and knows a hello that is repeated from another one. What is of a
// version that is not read could begin one, and so could what is behind too many packets to look.
func Begins(b []byte) (id []byte, begins bool) {
	for n := 0; ; n++ {
		p, ok := parseLong(b)
		switch {
		case !ok:
			return nil, false
		case p.version == nil || n == mostPackets:
			return p.to, true
		case p.isFirst():
			if _, _, _, ok := newInitialStream(p.version, p.to).unseal(p); ok {
				return p.to, true
			}
		}
		b = p.rest
	}
}
