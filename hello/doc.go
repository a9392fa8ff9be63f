// Package hello reads whom a conversation's first bytes name: the server name of a TLS ClientHello, the host of an HTTP
// request, the server name in a QUIC Initial. It reads only; nothing is changed, answered or kept.
//
//	var s hello.Stream // of one TCP conversation
//	for {
//		k, err := guest.Read(b[n:]) // b is hello.Most long
//		if err != nil { … }
//		n += k
//		h, more := s.Look(b[:n])
//		if !more {
//			return h // flows.Hello: how it was said, and the name
//		}
//	}
//
//	var d hello.Datagrams // of one UDP conversation
//	if d.Again(datagram) { // the first ones, and what begins another connection
//		h, more := d.Look(datagram)
//		…
//	}
//
// # What is read
//
//	TLS 1.0 to 1.3   server_name (RFC 6066 §3), over any number of records; SSLv2's form names nobody
//	HTTP/1.x         the authority of the request's target, else Host (RFC 9112 §3.2)
//	HTTP/2           in clear: known by its preface, and unclear. Clients may wait for the server's SETTINGS before
//	                 the first request (RFC 9113 §3.4), so who waited for the request would wait for ever
//	QUIC 1 and 2     server_name in the ClientHello of the Initial packets (RFC 9001, RFC 9369)
//
// All else is flows.HelloNone, said at the first byte, or of text in the first line, that shows it. Names are in lower
// case, without a final dot; a literal address is a name too, in netip's form.
//
// # One name, none, or unclear
//
// What has no name where a name could be (a ClientHello without server_name, a request without Host) is of its protocol
// and names nobody. What two servers could read as two names is flows.HelloPart: two server_name extensions or two names
// in one, two Host fields, a Host that is not the target's authority, a name that is none, folded lines, space before a
// colon, lengths that contradict each other, records between, CRYPTO frames that overlap and differ, a QUIC version that
// is not read, more than is read. So a guest can hide its name, and cannot give one here and another one to the server in
// the same message.
//
// # What it does not do
//
// It sees the first message only. Later requests of an HTTP connection can name others, as can the second ClientHello
// that a server may ask for (RFC 8446 §4.1.4; it must be for the same name, and few servers check). Inside TLS, nothing
// is seen: a server that serves many names may be asked for another one there (domain fronting), and of Encrypted
// Client Hello (RFC 9849) the outer name is what is seen, the public one of whoever runs the server. Browsers send a
// dummy of that extension at all times (GREASE), so its presence tells nothing. A client that waits for the server to
// speak first (SMTP's and IMAP's STARTTLS) has said nothing yet, and what it says first is of no protocol read here. A
// QUIC connection whose beginning was not seen (its port's mapping ran out meanwhile) is HelloNone. DTLS is not read.
//
// # Files
//
//	stream.go   which protocol a stream is of, and how long it is waited for
//	tls.go      ClientHello, over records
//	http.go     request line and fields
//	quic.go     Initial packets
//	begins.go   which datagrams begin another connection
//	name.go     what is a name
package hello
