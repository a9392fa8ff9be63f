// Package policy decides which conversations guests may have, by rules that people write: by address and by name, with
// presets to begin from. A Policy is a flows.Policy and a flows.NamePolicy; it carries no bytes and opens no sockets.
//
//	doc, err := policy.Parse(`
//		preset sandbox
//		allow tcp *.debian.org:80,443
//		allow tcp api.example.com:443
//	`)
//	…
//	p, err := policy.New(policy.Config{Document: doc, Network: flows.Default{Gateways: gateways, Local: prefixes}})
//	…
//	v := p.Judge(flows.Query{Guest: "g1", Proto: flows.TCP, Src: src, Dst: dst}) // of a conversation
//	v = p.JudgeName("g1", "deb.debian.org", 1)                                   // of a question to the resolver
//	addrs = p.Answered("g1", "deb.debian.org", addrs, ttl, false)                // of what it answered
//
// # Rules
//
// A policy is a list of rules; the first that matches decides. Behind them come those of a preset, and a last word.
//
//	allow tcp api.example.com:443        one name
//	allow tcp *.debian.org:80,443        all names below one; * is all names
//	allow udp 10.0.0.0/8:5000-5010       addresses and ranges of ports
//	allow tcp [2001:db8::]/32:22
//	reject any private                   words: any, public, host (the gateway, behind which is the host's loopback),
//	                                     private, loopback, link-local, metadata (clouds'), doh (well-known resolvers)
//	drop icmp
//	ask tcp *.example.org:443            hold the conversation, and ask somebody
//	allow tcp host:5432 guest=db*        of some guests only: by id, by name or by MAC
//	drop in tcp any:22                   port forwards are judged apart: what nothing says of them is let in
//
// reject answers at once (RST, ICMP "prohibited"), drop never does. ParseRule and Parse tell the whole syntax. A guest's
// name and MAC are what it says itself unless leases are strict, so a rule by name or MAC keeps nobody out who lies.
//
// # Presets
//
//	open       libslirp's freedom, and what flows.Default does: everything but link-local addresses
//	sandbox    what the rules name and nothing else
//	offline    other guests, the network's own names, and forwards
//	restrict   QEMU's restrict=on: forwards. Not even local names; TCP gets a RST and all else is lost. What DHCP says
//	           is not changed, and pings of the gateway are its own stack's to answer
//
// In all but open, guards hold: a rule that lets in opens the host, private, link-local and metadata addresses and
// well-known resolvers only if it names nothing beside them. So any and 0.0.0.0/0 do not reach 10.0.0.5, and 10.0.0.5,
// 10.0.0.0/8 and private do; private does not reach the gateway or metadata, and host and metadata do. Ports 53 and 853
// are opened only by a rule that lists them by themselves.
//
// Nothing opens what is never a destination (loopback, multicast, broadcast, IPv4-mapped), an address of the guests' own
// network but the gateway's, or the host's loopback where Config.Network closes it. An IPv6 address that has an IPv4
// address in it (NAT64, 6to4) matches rules for either, and is closed where a rule closes the IPv4 one.
//
// # Names
//
// A rule with a name matches an address if an answer that this guest was given for that name had it, for as long as the
// answer lives, but 5 minutes at least. Answers that run out end no conversation. 4096 addresses are kept for a
// guest, those used last.
//
// A guest may resolve a name if any conversation with it would be let in or asked about: by a rule that has the name,
// or by the last word. Names say things to whoever answers for them, so where guards hold a rule for any address opens
// none; allow tcp *:22 is the way to write that. Other names get REFUSED, or NXDOMAIN on request.
//
// A public name opens nothing private, and where guards hold such addresses are removed from the answer (rebinding),
// unless a rule reaches them by address. The network's own names may point anywhere.
//
// # First bytes
//
// Several names live at one address. What a rule with a name let in on ports 80, 443, 8080 and 8443 has to say in
// its first bytes whom it wants: TLS's or QUIC's server name, HTTP's Host. It must be a name that opened this address for
// this guest, and one that the rules let in on this port. Who names nobody is refused where first-bytes is strict, as
// it is in all presets but open, and let in where it is loose. On other ports nothing is looked at, since servers of
// many protocols (ssh, SMTP, databases) speak first, or the client names nobody; a rule may say checked, tls or http to
// have its ports looked at, and unchecked to have them left alone.
//
// Encrypted Client Hello would hide the name. Its keys come by DNS, and package dns takes them out of what guests get
// while a policy has a say in names.
//
// # What this does not stop
//
//   - Domain fronting: inside TLS a client can ask for another name that the same server has. So can further requests of
//     an HTTP connection. Where a content network serves a name that is let in, guests may reach others there.
//   - Encrypted Client Hello with keys that the guest had from elsewhere: only the outer name is seen.
//   - A resolver over HTTPS, or any proxy, at a name or address that is let in. The list of well-known ones is short.
//   - What is told through names that may be resolved: with *.example.com, whoever runs example.com's servers hears
//     whatever a guest asks for below it.
//   - On ports where first bytes are not looked at, all names of an address.
//   - The host's other addresses. A rule for any public address reaches what the host itself serves on one.
//   - Guests among themselves: their frames do not come here. Isolating them is the network's to do.
//
// # Asking and learning
//
// A rule that asks holds a conversation for 30 seconds at most, until Answer was called (Questions, Config.OnQuestion);
// further ones to the same place wait for the same answer. Learn records what guests want, and LearnedText makes a policy
// of it. Test says what would become of a conversation, by which rule. Audit hears every decision.
//
// Replace puts another document in force at once. All memory is bounded, whatever guests ask for.
//
// # Cost
//
// Rules are compiled for each set of guests that they tell apart. A decision is some map lookups, whether there are 10
// rules or 10,000, and is made when a conversation begins.
package policy
