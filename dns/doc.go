// Package dns answers the guests of a virtual network: local zones first, the
// host's resolvers for the rest.
//
//	s, err := dns.New(dns.Config{
//		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24")},
//		Gateway:  []netip.Addr{netip.MustParseAddr("10.0.2.2")},
//		Host:     []netip.Addr{netip.MustParseAddr("10.0.2.2")},
//	})
//	if err != nil { … }
//	defer s.Close()
//	s.SetHost("52:54:00:12:34:56", "web", netip.MustParseAddr("10.0.2.15"))
//	s.HandleUDP(ctx, "web", datagram, func(answer []byte) { … }) // what came to UDP port 53
//	s.ServeConn(ctx, "web", conn)                                // who connected to TCP port 53
//
// # What is ours
//
// These names are answered here, in any letter case, for every type: one that
// they have not got is NODATA (no error, an SOA), and nobody upstream hears
// of it.
//
//	NAME.internal, NAME             a guest, by the host name of its lease
//	gateway.internal                the gateway; also gateway.docker.internal,
//	                                gateway.containers.internal
//	host.internal                   the host; also host.docker.internal,
//	                                host.containers.internal, host.lima.internal,
//	                                host.minikube.internal
//	localhost, *.localhost          127.0.0.1 and ::1 (RFC 6761)
//	whatever Add was given          A, AAAA, CNAME, TXT, SRV, MX, PTR, HTTPS, …
//
// In these zones all other names are ours too, and do not exist (NXDOMAIN):
//
//	docker.internal, containers.internal, lima.internal, minikube.internal
//	resolver.arpa                   or guests would go round us (RFC 9462)
//	Config.Domain                   if it is not internal
//	the reverse names of Config.Prefixes, 127.0.0.0/8 and ::1
//
// The rest of internal is not: clouds and companies have names there
// (metadata.google.internal), so what we do not know we pass on. A bare NAME
// is ours but for the types that make up a zone (NS, SOA, DS, DNSKEY, …), so
// that a guest called "com" is no harm to com. An alias (CNAME) of ours that
// points outside is followed by the host's resolvers.
//
// # What goes to the host's resolvers
//
// Everything else of class IN, of every type, byte for byte but for the ID
// and a UDP size above 1232 (RFC 5625: a proxy that knows nothing breaks
// nothing); the answer comes back the same way, with the guest's ID and the
// guest's spelling of the name. SERVFAIL, NXDOMAIN and REFUSED stay what they
// are. The next resolver is asked when one is silent, unreachable, or says
// SERVFAIL, REFUSED or NOTIMP, as glibc does; if none says better, the first
// one's answer counts. If all are silent the guest has SERVFAIL after
// Limits.Total; if the host names none, at once.
//
// Which resolvers: those of /etc/resolv.conf, its options timeout, attempts,
// rotate and use-vc included, followed through renames, links and rewriting.
//
// Refused here: zone transfers and classes other than IN (REFUSED), opcodes
// other than QUERY (NOTIMP), anything but one question (FORMERR), EDNS
// versions other than 0 (BADVERS). Messages shorter than a header, and
// responses, get no answer. ANY of a local name gets RFC 8482's HINFO.
//
// # Who has a say in names
//
// Config.Names, if there is somebody, is asked before each question is
// answered, and told the addresses of each answer before its guest is. What
// is not allowed is NXDOMAIN or REFUSED and reaches no resolver, whatever its
// type; addresses that are not allowed are taken out, and an answer of which
// none are left is NODATA. So that nothing leads past that, records of other
// names than the one asked for and its aliases are taken out, and of HTTPS
// and SVCB records the hints, the keys of Encrypted Client Hello and those
// that lead to other names: clients then ask for A and AAAA, and say in clear
// whom they talk to. A guest that validates DNSSEC itself sees that such an
// answer was changed. What a guest says in the names that it may ask for, and
// what their zones answer it in TXT and the like, stays between the two.
//
// # What a guest can make it hold
//
// See Limits. An answer over UDP is at most 1232 bytes, or what the guest
// says it takes if that is less, and goes back to where the question came
// from. No goroutine or memory is kept for a question past the limits, and no
// byte of a guest's reaches the log.
//
// # What it does not do
//
// It keeps no cache (the host's resolver has one), does not validate DNSSEC
// (DO, AD and CD pass through), reads neither /etc/hosts nor nsswitch.conf,
// knows no per-domain resolvers of macOS, and follows no resolvers on Windows,
// where Config.Resolvers must name them.
//
// # Files
//
//	query.go       a guest's message: checked, and its answer cut to size
//	local.go       the table of local names
//	forward.go     the host's resolvers: who is asked when, and who is believed
//	resolvconf.go  which they are
//	names.go       who has a say in names, and what is taken out of answers
//	server.go      the doors, the limits, the counts
package dns
