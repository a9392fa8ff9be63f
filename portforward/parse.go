package portforward

import (
	"net/netip"
	"slices"
	"strings"
)

const (
	// maxText: a passt list of maxRules ranges with addresses fits; a file
	// pasted by mistake does not.
	maxText = 8192
	// maxRules one string may become, excludes included: passt's own table
	// ends at 255, and every rule costs sockets.
	maxRules = 256
)

// ParseRule reads a rule, or a list of them, in any of the syntaxes of the
// package page. The rules come back normalized, in the order written. The
// error is an *Error of kind ErrSyntax, ErrRange or ErrPathTooLong.
func ParseRule(s string) ([]Rule, error) {
	rules, p := parse(s)
	if p != nil {
		return nil, p.of(s)
	}
	return rules, nil
}

func parse(s string) ([]Rule, *problem) {
	if len(s) > maxText {
		return nil, wrong(ErrSyntax, "%d bytes: a list of rules has at most %d", len(s), maxText)
	}
	s = strings.TrimPrefix(strings.TrimSpace(s), "hostfwd=")
	s, source, p := cutSource(s)
	if p != nil {
		return nil, p
	}
	if s == "" {
		return nil, wrong(ErrSyntax, "empty: write host-port:guest-port, as in 2222:22")
	}
	var rules []Rule
	if len(s) >= 5 && strings.EqualFold(s[:5], "unix:") {
		r, p := parseUnix(s[5:])
		if p != nil {
			return nil, p
		}
		rules = []Rule{r}
	} else if rules, p = parseList(s); p != nil {
		return nil, p
	}
	for i, r := range rules {
		r.Source = source
		if rules[i], p = r.normalize(); p != nil {
			return nil, p
		}
	}
	return rules, nil
}

// cutSource takes the trailing ,source=… off, the one option a rule has.
func cutSource(s string) (rest string, source Source, p *problem) {
	i := strings.LastIndex(s, ",source=")
	// A path may hold anything: only at the very end is it the option.
	if i < 0 || strings.ContainsAny(s[i+1:], ":-/,") {
		return s, SourceGateway, nil
	}
	source = Source(strings.ToLower(s[i+len(",source="):]))
	if source != SourceGateway && source != SourceClient {
		return s, "", wrong(ErrSyntax, "source=%s: write source=gateway or source=client", quote(string(source)))
	}
	return s[:i], source, nil
}

type portRange struct{ first, last uint16 }

func (a portRange) count() int { return int(a.last) - int(a.first) + 1 }

// parseList reads comma-separated items and passt's ~excludes. An address
// before a slash holds until the next one, as it does for passt.
func parseList(s string) ([]Rule, *problem) {
	var (
		rules   []Rule
		exclude []portRange
		carried netip.Addr
	)
	for item := range strings.SplitSeq(s, ",") {
		if text, ok := strings.CutPrefix(item, "~"); ok {
			pr, p := parseRange(text)
			if p != nil {
				return nil, p
			}
			exclude = append(exclude, pr)
			continue
		}
		r, addr, p := parseItem(item, carried)
		if p != nil {
			return nil, p
		}
		carried = addr
		rules = append(rules, r)
	}
	if len(rules) == 0 {
		return nil, wrong(ErrSyntax, "only excludes: name the ports they are taken from, as in 2000-5000,~3000-3010")
	}
	if len(exclude) > 0 {
		rules = without(rules, exclude)
		if len(rules) == 0 {
			return nil, wrong(ErrRange, "the excludes leave no port to forward")
		}
	}
	if len(rules) > maxRules {
		return nil, wrong(ErrSyntax, "%d rules in one string: at most %d", len(rules), maxRules)
	}
	return rules, nil
}

// without splits rules around the excluded host ports.
func without(rules []Rule, exclude []portRange) []Rule {
	slices.SortFunc(exclude, func(a, b portRange) int { return int(a.first) - int(b.first) })
	var out []Rule
	for _, r := range rules {
		first, end := int(r.HostPort), int(r.HostPort)+r.Count
		piece := func(from, to int) {
			if from < to {
				q := r
				q.HostPort, q.Count = uint16(from), to-from
				q.GuestPort = r.GuestPort + uint16(from-int(r.HostPort))
				out = append(out, q)
			}
		}
		for _, x := range exclude {
			if int(x.last) < first || int(x.first) >= end {
				continue
			}
			piece(first, int(x.first))
			first = int(x.last) + 1
		}
		piece(first, end)
	}
	return out
}

// parseItem reads one rule without its option. carried is the address that an
// item without one of its own takes over from the list; the returned address
// is the one the next item takes.
func parseItem(s string, carried netip.Addr) (Rule, netip.Addr, *problem) {
	bad := func(p *problem) (Rule, netip.Addr, *problem) { return Rule{}, carried, p }
	if s == "" {
		return bad(wrong(ErrSyntax, "an empty item in the list: write host-port:guest-port, as in 2222:22"))
	}
	if key, _, ok := strings.Cut(s, "="); ok {
		return bad(wrong(ErrSyntax, "no option %s: the one there is comes last, ,source=client or ,source=gateway", quote(key)))
	}
	if len(s) >= 5 && strings.EqualFold(s[:5], "unix:") {
		return bad(wrong(ErrSyntax, "a unix rule in a list: its path may hold commas, so it stands alone"))
	}
	rest, proto, p := cutProto(s)
	if p != nil {
		return bad(p)
	}
	if strings.ContainsRune(rest, '/') {
		r, addr, p := parseSlash(rest, carried)
		r.Proto = proto
		return r, addr, p
	}
	if head, _, ok := strings.Cut(rest, ":"); ok {
		switch lower := Proto(strings.ToLower(head)); lower {
		case "", TCP, UDP:
			if proto != "" {
				return bad(wrong(ErrSyntax, "a protocol in front and one behind (/%s): write one of them", proto))
			}
			r, p := parseQEMU(rest[len(head)+1:])
			r.Proto = lower
			return r, carried, p
		}
	}
	r, p := parseFields(rest)
	r.Proto = proto
	if !r.Host.IsValid() {
		r.Host = carried
	}
	return r, carried, p
}

// cutProto takes docker's /tcp or /udp off the end.
func cutProto(s string) (rest string, proto Proto, p *problem) {
	i := strings.LastIndexByte(s, '/')
	tail := strings.ToLower(s[i+1:])
	switch {
	case tail == "all" || tail == "auto" || tail == "none":
		return "", "", wrong(ErrSyntax, "%s: passt's word; name the ports", tail)
	case i < 0 || tail == "" || strings.ContainsFunc(tail, func(c rune) bool { return !isLetter(c) }):
		return s, "", nil
	case tail == string(TCP) || tail == string(UDP):
		return s[:i], Proto(tail), nil
	}
	return "", "", wrong(ErrSyntax, "protocol %s: a rule ends in /tcp or /udp", quote(tail))
}

// parseSlash reads passt's [addr/]ports[:[guest/]ports].
func parseSlash(s string, carried netip.Addr) (Rule, netip.Addr, *problem) {
	r := Rule{Host: carried}
	head, rest, _ := strings.Cut(s, "/")
	// A colon in something that is no address: the slash is the guest's.
	_, err := netip.ParseAddr(strings.Trim(head, "[]"))
	if err == nil || !strings.ContainsRune(head, ':') {
		a, p := parseHost(head)
		if p != nil {
			return r, carried, p
		}
		r.Host, carried = a, a
	} else {
		rest = s
	}
	from, to, twoEnds := strings.Cut(rest, ":")
	if !twoEnds {
		to = from
	}
	if i := strings.LastIndexByte(to, '/'); twoEnds && i >= 0 {
		var p *problem
		if r.Guest, p = parseGuest(to[:i]); p != nil {
			return r, carried, p
		}
		to = to[i+1:]
	}
	p := r.setPorts(from, to)
	return r, carried, p
}

// parseFields reads docker's [address:]ports:[guest:]ports, and ports alone.
func parseFields(s string) (Rule, *problem) {
	var r Rule
	fields, p := splitFields(s)
	if p != nil {
		return r, p
	}
	if len(fields) > 4 {
		return r, wrong(ErrSyntax, "%d fields: at most address:ports:guest:ports, with an IPv6 address or a MAC in brackets, [fd00::15] or [52:54:00:12:34:56]", len(fields))
	}
	// Four fields, or three with something that is no port in front.
	if n := len(fields); n == 4 || n >= 2 && !isPorts(fields[0]) {
		if n == 2 {
			return r, wrong(ErrSyntax, "%s is no port: write host-port:guest-port, as in 2222:22, or address:host-port:guest-port", quote(fields[0]))
		}
		if r.Host, p = parseHost(fields[0]); p != nil {
			return r, p
		}
		fields = fields[1:]
		if fields[0] == "" {
			fields[0] = "0" // docker's 127.0.0.1::22, any free port
		}
	}
	if len(fields) == 3 {
		if r.Guest, p = parseGuest(fields[1]); p != nil {
			return r, p
		}
		if r.Guest == "" {
			return r, wrong(ErrSyntax, "an empty guest: leave its colon out for the default guest")
		}
	}
	return r, r.setPorts(fields[0], fields[len(fields)-1])
}

// parseQEMU reads what follows tcp: or udp: in [address]:port-[guest]:port.
func parseQEMU(s string) (Rule, *problem) {
	var r Rule
	const form = "write tcp:127.0.0.1:2222-:22, with IPv6 addresses in brackets"
	host, rest, p := cutBracketed(s)
	if p != nil {
		return r, p
	}
	rest, ok := strings.CutPrefix(rest, ":")
	if !ok {
		return r, wrong(ErrSyntax, "no : between host address and port: %s", form)
	}
	if host != "" {
		if r.Host, p = parseHost(host); p != nil {
			return r, p
		}
	}
	port, rest, ok := strings.Cut(rest, "-")
	if !ok {
		return r, wrong(ErrSyntax, "no - between host and guest: %s", form)
	}
	guest, rest, p := cutBracketed(rest)
	if p != nil {
		return r, p
	}
	gport, ok := strings.CutPrefix(rest, ":")
	if !ok {
		return r, wrong(ErrSyntax, "no : before the guest's port: %s (this syntax has no ranges: for those write 127.0.0.1:8000-8010:9000-9010)", form)
	}
	if r.Guest, p = parseGuest(guest); p != nil {
		return r, p
	}
	if strings.ContainsAny(gport, ":-") {
		return r, wrong(ErrSyntax, "guest end %s: an IPv6 address or a MAC goes in brackets, and this syntax has no ranges", quote(guest+":"+gport))
	}
	return r, r.setPorts(port, gport)
}

// parseUnix reads what follows unix: in /path-[guest]:port. The path ends at
// the last dash before the guest, so a guest with a dash of its own goes in
// brackets, and a path may hold what it likes.
func parseUnix(s string) (Rule, *problem) {
	const form = "write unix:/absolute/path-:80, or unix:/absolute/path-[guest]:80"
	r := Rule{Proto: Unix}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return r, wrong(ErrSyntax, "no : before the guest's port: %s", form)
	}
	head, gport := s[:i], s[i+1:]
	dash := strings.LastIndexByte(head, '-')
	if strings.HasSuffix(head, "]") {
		dash = strings.LastIndex(head, "-[")
	}
	if dash < 0 {
		return r, wrong(ErrSyntax, "no - between path and guest: %s", form)
	}
	var p *problem
	r.Path = head[:dash]
	if r.Guest, p = parseGuest(head[dash+1:]); p != nil {
		return r, p
	}
	r.GuestPort, p = parsePort(gport)
	return r, p
}

// setPorts reads both ends' ports, which must be equally many.
func (r *Rule) setPorts(host, guest string) *problem {
	h, p := parseRange(host)
	if p != nil {
		return p
	}
	g, p := parseRange(guest)
	if p != nil {
		return p
	}
	if h.count() != g.count() {
		return wrong(ErrRange, "%d host ports (%s) for %d guest ports (%s): a range maps one to one", h.count(), host, g.count(), guest)
	}
	if g.first == 0 {
		return wrong(ErrRange, "guest port %s: port 0 cannot be reached in a guest; write 1 to 65535", guest)
	}
	r.HostPort, r.GuestPort, r.Count = h.first, g.first, h.count()
	return nil
}

func isPorts(s string) bool {
	return s != "" && strings.Trim(s, "0123456789-") == ""
}

func parseRange(s string) (portRange, *problem) {
	lo, hi, ok := strings.Cut(s, "-")
	first, p := parsePort(lo)
	if p != nil {
		return portRange{}, p
	}
	if !ok {
		return portRange{first, first}, nil
	}
	last, p := parsePort(hi)
	switch {
	case p != nil:
		return portRange{}, p
	case last < first:
		return portRange{}, wrong(ErrRange, "range %s runs backwards: write %d-%d", s, last, first)
	case first == 0:
		return portRange{}, wrong(ErrRange, "range %s starts at 0, which means any free port: name the first port", s)
	}
	return portRange{first, last}, nil
}

// parsePort takes plain decimal only. QEMU reads 010 as 8 and 0x50 as 80, the
// others read 010 as 10: what has two readings is refused.
func parsePort(s string) (uint16, *problem) {
	if s == "" {
		return 0, wrong(ErrSyntax, "a port is missing")
	}
	if i := strings.IndexFunc(s, func(c rune) bool { return c < '0' || c > '9' }); i >= 0 {
		if strings.HasPrefix(strings.ToLower(s), "0x") {
			return 0, wrong(ErrSyntax, "port %s is hexadecimal: write it in decimal", quote(s))
		}
		return 0, wrong(ErrSyntax, "port %s is not a number: write 0 to 65535 in decimal", quote(s))
	}
	if len(s) > 1 && s[0] == '0' {
		return 0, wrong(ErrSyntax, "port %s starts with 0: octal for QEMU, decimal for others; write it without", quote(s))
	}
	n := 0
	for _, c := range s {
		if n = n*10 + int(c-'0'); n > 65535 {
			return 0, wrong(ErrRange, "port %s: ports end at 65535", quote(s))
		}
	}
	return uint16(n), nil
}

// parseHost reads the address to bind, with or without brackets.
func parseHost(s string) (netip.Addr, *problem) {
	text, inBrackets := unbracket(s)
	a, err := netip.ParseAddr(text)
	switch {
	case err == nil && inBrackets && !a.Is6():
		return a, wrong(ErrSyntax, "host address %s: brackets are for IPv6", quote(s))
	case err == nil:
		return a, nil
	case text == "":
		return a, wrong(ErrSyntax, "a host address is missing: leave its separator out for 127.0.0.1")
	case text == "*":
		return a, wrong(ErrSyntax, "host address *: write 0.0.0.0 for every IPv4 address, [::] for every IPv6 address")
	case text[0] == '%':
		return a, wrong(ErrSyntax, "host address %s: an interface alone cannot be bound to; write one of its addresses", quote(s))
	}
	return a, wrong(ErrSyntax, "host address %s is not an IP address: host names are not looked up to bind to (which of their addresses would it be?); write 127.0.0.1, [::1] or another address of this host", quote(s))
}

// parseGuest takes the brackets off a guest's name; normalize judges the rest.
func parseGuest(s string) (string, *problem) {
	text, inBrackets := unbracket(s)
	switch {
	case inBrackets && text == "":
		return "", wrong(ErrSyntax, "empty brackets where a guest should be named")
	case !inBrackets && strings.ContainsAny(text, ":[]"):
		return "", wrong(ErrSyntax, "guest %s: an IPv6 address or a MAC goes in brackets", quote(s))
	}
	return text, nil
}

func unbracket(s string) (text string, inBrackets bool) {
	if len(s) >= 2 && s[0] == '[' && s[len(s)-1] == ']' {
		return s[1 : len(s)-1], true
	}
	return s, false
}

// cutBracketed splits before the first colon outside brackets.
func cutBracketed(s string) (head, rest string, p *problem) {
	i := 0
	if strings.HasPrefix(s, "[") {
		if i = strings.IndexByte(s, ']'); i < 0 {
			return "", "", wrong(ErrSyntax, "%s: a [ without its ]", quote(s))
		}
	}
	if j := strings.IndexByte(s[i:], ':'); j >= 0 {
		return s[:i+j], s[i+j:], nil
	}
	return s, "", nil
}

// splitFields splits at the colons outside brackets.
func splitFields(s string) ([]string, *problem) {
	var fields []string
	for {
		head, rest, p := cutBracketed(s)
		if p != nil {
			return nil, p
		}
		fields = append(fields, head)
		if rest == "" {
			return fields, nil
		}
		s = rest[1:]
	}
}
