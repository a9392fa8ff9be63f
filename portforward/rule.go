package portforward

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Proto is what a rule listens for on the host.
type Proto string

// The protocols of a rule. A Unix rule listens on a stream socket file and
// reaches the guest by TCP.
const (
	TCP  Proto = "tcp"
	UDP  Proto = "udp"
	Unix Proto = "unix"
)

// Source says whose address the guest sees as the other end.
type Source string

const (
	// SourceGateway: the network's gateway, whoever the client is. The default.
	SourceGateway Source = "gateway"
	// SourceClient: the client's real address. A client whose address means
	// nothing in the guest's network (loopback, link-local) is still shown as
	// the gateway: the guest's answer could not find its way back.
	SourceClient Source = "client"
)

// Rule is one port forward. The zero value of a field means its default;
// Normalize fills them in, and two normalized rules are the same rule exactly
// when they are ==.
type Rule struct {
	// Proto: "" is TCP.
	Proto Proto
	// Host is the address to bind: the zero Addr is 127.0.0.1. 0.0.0.0 and ::
	// open the port to the world, each for its own family only.
	Host netip.Addr
	// HostPort: 0 lets the system pick; Table.Add's reply says which.
	HostPort uint16
	// Path is the socket file of a Unix rule, absolute. Host, HostPort and
	// Count are then unused.
	Path string
	// Count is how many consecutive ports the rule forwards: 0 is 1.
	Count int
	// Guest names the guest: an IP address, a lease's host name or a MAC
	// (12:34:56:78:9a:bc). "" is the network's default guest address.
	Guest string
	// GuestPort is the first port in the guest, never 0.
	GuestPort uint16
	// Source: "" is SourceGateway.
	Source Source
}

// defaultHost is the only address that nobody but this machine can reach.
var defaultHost = netip.AddrFrom4([4]byte{127, 0, 0, 1})

const (
	// maxName and maxLabel are a DNS name's (RFC 1035, 2.3.4), as the guest's
	// name is its lease's.
	maxName, maxLabel = 253, 63
	// maxZone is IFNAMSIZ without its NUL.
	maxZone = 15
)

// Normalize fills in the defaults, brings every field to its one canonical
// spelling and says what is wrong with the rule, if anything is. The error is
// an *Error.
func (r Rule) Normalize() (Rule, error) {
	n, p := r.normalize()
	if p != nil {
		return Rule{}, p.of(r.String())
	}
	return n, nil
}

func (r Rule) normalize() (Rule, *problem) {
	r = r.filled()
	var p *problem
	if r.Guest, p = normalGuest(r.Guest); p != nil {
		return r, p
	}
	if r.GuestPort == 0 {
		return r, wrong(ErrRange, "port 0 cannot be reached in a guest: write 1 to 65535")
	}
	if r.Source != SourceGateway && r.Source != SourceClient {
		return r, wrong(ErrSyntax, "source is %s: write gateway or client", quote(string(r.Source)))
	}
	switch r.Proto {
	case TCP, UDP:
		return r.normalizePorts()
	case Unix:
		return r.normalizeUnix()
	}
	return r, wrong(ErrSyntax, "protocol %s: a rule is tcp, udp or unix", quote(string(r.Proto)))
}

// filled puts the defaults where nothing was said.
func (r Rule) filled() Rule {
	if r.Proto == "" {
		r.Proto = TCP
	}
	if r.Source == "" {
		r.Source = SourceGateway
	}
	if r.Count == 0 {
		r.Count = 1
	}
	if r.Proto != Unix && !r.Host.IsValid() {
		r.Host = defaultHost
	}
	return r
}

func (r Rule) normalizePorts() (Rule, *problem) {
	if r.Path != "" {
		return r, wrong(ErrSyntax, "a %s rule has no socket path: that is for unix", r.Proto)
	}
	var p *problem
	if r.Host, p = normalHost(r.Host); p != nil {
		return r, p
	}
	last := 65535
	switch {
	case r.Count < 1 || r.Count > last:
		return r, wrong(ErrRange, "a range of %d ports: 1 to %d can be", r.Count, last)
	case r.HostPort == 0 && r.Count > 1:
		return r, wrong(ErrRange, "port 0 means any free port and cannot start a range: name the first port")
	case int(r.HostPort)+r.Count-1 > last:
		return r, wrong(ErrRange, "host ports %d to %d: ports end at %d", r.HostPort, int(r.HostPort)+r.Count-1, last)
	case int(r.GuestPort)+r.Count-1 > last:
		return r, wrong(ErrRange, "guest ports %d to %d: ports end at %d", r.GuestPort, int(r.GuestPort)+r.Count-1, last)
	}
	return r, nil
}

func (r Rule) normalizeUnix() (Rule, *problem) {
	switch {
	case r.Host.IsValid() || r.HostPort != 0:
		return r, wrong(ErrSyntax, "a unix rule has a socket path and no host address or port")
	case r.Count != 1:
		return r, wrong(ErrRange, "a unix rule is one socket and has no range")
	case r.Source == SourceClient:
		return r, wrong(ErrSyntax, "source=client: a unix socket's client has no address to show")
	case r.Path == "":
		return r, wrong(ErrSyntax, "missing unix socket path: write unix:/absolute/path-:80")
	case r.Path[0] != '/':
		return r, wrong(ErrSyntax, "unix socket path %s is not absolute: start it with /", quote(r.Path))
	case !utf8.ValidString(r.Path) || strings.ContainsFunc(r.Path, func(c rune) bool { return !unicode.IsPrint(c) }):
		return r, wrong(ErrSyntax, "unix socket path %s has bytes that do not print", quote(r.Path))
	}
	r.Path = path.Clean(r.Path)
	if len(r.Path) > maxUnixPath {
		return r, wrong(ErrPathTooLong, "unix socket path of %d bytes: this system takes %d, use a shorter folder", len(r.Path), maxUnixPath)
	}
	return r, nil
}

// normalHost: an address a socket can be bound to.
func normalHost(a netip.Addr) (netip.Addr, *problem) {
	a = a.Unmap() // ::ffff:127.0.0.1 is 127.0.0.1 and must clash with it
	zone := a.Zone()
	switch {
	case a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return a, wrong(ErrSyntax, "host address %s is not one host's: write a unicast address", quote(a.String()))
	case zone != "" && !a.IsLinkLocalUnicast():
		return a, wrong(ErrSyntax, "host address %s: only a link-local address (fe80::…) takes an interface", quote(a.String()))
	case zone != "" && (len(zone) > maxZone || strings.ContainsFunc(zone, badInZone)):
		return a, wrong(ErrSyntax, "host address %s: %s is not an interface's name", quote(a.String()), quote(zone))
	case zone == "" && a.Is6() && a.IsLinkLocalUnicast():
		return a, wrong(ErrSyntax, "host address %s is link-local: name its interface, as in [%s%%eth0]", a, a)
	}
	return a, nil
}

// badInZone: what would make the canonical print ambiguous, or a log line odd.
func badInZone(c rune) bool {
	return c > unicode.MaxASCII || !unicode.IsPrint(c) || strings.ContainsRune(" /:,[]%", c)
}

// normalGuest brings a guest's name to one spelling: an address as netip
// prints it, a MAC in lower case with colons, a name in lower case.
func normalGuest(g string) (string, *problem) {
	if g == "" {
		return "", nil
	}
	if a, err := netip.ParseAddr(g); err == nil {
		a = a.Unmap()
		switch {
		case a.Zone() != "":
			return g, wrong(ErrSyntax, "guest address %s: the guest's network has no interfaces to name", quote(g))
		case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			return g, wrong(ErrSyntax, "guest address %s is not one guest's: write the address it has in its network, or leave it out", quote(g))
		}
		return a.String(), nil
	}
	if mac, ok := parseMAC(g); ok {
		if mac[0]&1 != 0 || mac == [6]byte{} {
			return g, wrong(ErrSyntax, "guest MAC %s is not one card's", quote(g))
		}
		return net.HardwareAddr(mac[:]).String(), nil
	}
	return normalName(g)
}

func normalName(g string) (string, *problem) {
	switch {
	case len(g) > maxName:
		return g, wrong(ErrSyntax, "guest name of %d bytes: a host name has at most %d", len(g), maxName)
	case !strings.ContainsFunc(g, isLetter):
		return g, wrong(ErrSyntax, "guest %s is neither an address nor a MAC, and a name needs a letter", quote(g))
	}
	for label := range strings.SplitSeq(g, ".") {
		ok := label != "" && len(label) <= maxLabel && label[0] != '-' && label[len(label)-1] != '-'
		if !ok || strings.ContainsFunc(label, func(c rune) bool {
			return !isLetter(c) && (c < '0' || c > '9') && c != '-' && c != '_'
		}) {
			return g, wrong(ErrSyntax, "guest %s is neither an address, a MAC (52-54-00-12-34-56 or [52:54:00:12:34:56]) nor a host name", quote(g))
		}
	}
	return strings.ToLower(g), nil
}

func isLetter(c rune) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

// parseMAC reads 52:54:00:12:34:56 or 52-54-00-12-34-56 and nothing else that
// net.ParseMAC would: a guest may well be called 5254.0012.3456.
func parseMAC(s string) (mac [6]byte, ok bool) {
	if len(s) != 17 || (s[2] != ':' && s[2] != '-') {
		return mac, false
	}
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(mac) {
		return mac, false
	}
	return [6]byte(hw), true
}

// String is the canonical print, which ParseRule reads back to the same rule:
//
//	127.0.0.1:2222:22/tcp
//	127.0.0.1:8000-8010:web:9000-9010/tcp
//	[::1]:2222:[fd00::15]:22/udp,source=client
//	unix:/run/web.sock-:80
func (r Rule) String() string {
	r = r.filled()
	var b strings.Builder
	if r.Proto == Unix {
		fmt.Fprintf(&b, "unix:%s-%s:%d", r.Path, bracketed(r.Guest, ":-"), r.GuestPort)
	} else {
		fmt.Fprintf(&b, "%s:%s:", bracketed(r.Host.String(), ":"), ports(r.HostPort, r.Count))
		if r.Guest != "" {
			fmt.Fprintf(&b, "%s:", bracketed(r.Guest, ":"))
		}
		fmt.Fprintf(&b, "%s/%s", ports(r.GuestPort, r.Count), r.Proto)
	}
	if r.Source != SourceGateway {
		fmt.Fprintf(&b, ",source=%s", r.Source)
	}
	return b.String()
}

// ID names the rule by its host end, which no other rule of a table has, in
// the form QEMU's hostfwd_remove takes: tcp:127.0.0.1:2222,
// udp:[::1]:8000-8010, unix:/run/web.sock.
func (r Rule) ID() string {
	r = r.filled()
	if r.Proto == Unix {
		return "unix:" + r.Path
	}
	return fmt.Sprintf("%s:%s:%s", r.Proto, bracketed(r.Host.String(), ":"), ports(r.HostPort, r.Count))
}

func bracketed(s, when string) string {
	if strings.ContainsAny(s, when) {
		return "[" + s + "]"
	}
	return s
}

func ports(first uint16, count int) string {
	if count <= 1 {
		return strconv.Itoa(int(first))
	}
	return fmt.Sprintf("%d-%d", first, int(first)+count-1)
}

// clashes says whether two normalized rules want the same host end.
func (r Rule) clashes(o Rule) bool {
	if r.Proto != o.Proto {
		return false
	}
	if r.Proto == Unix {
		return r.Path == o.Path
	}
	if r.HostPort == 0 || o.HostPort == 0 {
		return false // picked by the system among the free ones
	}
	if int(r.HostPort)+r.Count <= int(o.HostPort) || int(o.HostPort)+o.Count <= int(r.HostPort) {
		return false
	}
	if r.Host == o.Host {
		return true
	}
	// A wildcard takes its whole family.
	return r.Host.Is4() == o.Host.Is4() && (r.Host.IsUnspecified() || o.Host.IsUnspecified())
}

// ruleJSON is a Rule on the wire: each field by name, those at rest left out.
type ruleJSON struct {
	Proto     Proto  `json:"proto"`
	Host      string `json:"host,omitempty"`
	HostPort  uint16 `json:"host_port,omitempty"`
	Path      string `json:"path,omitempty"`
	Count     int    `json:"count,omitempty"`
	Guest     string `json:"guest,omitempty"`
	GuestPort uint16 `json:"guest_port"`
	Source    Source `json:"source,omitempty"`
}

// MarshalJSON writes an object:
//
//	{"proto":"tcp","host":"127.0.0.1","host_port":2222,"count":1,"guest_port":22,"source":"gateway"}
func (r Rule) MarshalJSON() ([]byte, error) {
	r = r.filled()
	j := ruleJSON{
		Proto: r.Proto, HostPort: r.HostPort, Path: r.Path, Count: r.Count,
		Guest: r.Guest, GuestPort: r.GuestPort, Source: r.Source,
	}
	if r.Host.IsValid() {
		j.Host = r.Host.String()
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads the object MarshalJSON writes, with the same defaults as
// everywhere, or a string in any of ParseRule's syntaxes that is one rule. The
// result is normalized.
func (r *Rule) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte{'"'}) {
		var s string
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
		rules, err := ParseRule(s)
		if err != nil {
			return err
		}
		if len(rules) != 1 {
			return wrong(ErrSyntax, "%d rules in one string: write them one by one", len(rules)).of(s)
		}
		*r = rules[0]
		return nil
	}
	var j ruleJSON
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields() // a misspelt "hostport" must not become port 0
	if err := dec.Decode(&j); err != nil {
		return &Error{Rule: string(data), Kind: ErrSyntax, Text: err.Error(), Err: err}
	}
	n := Rule{
		Proto: Proto(strings.ToLower(string(j.Proto))), HostPort: j.HostPort, Path: j.Path, Count: j.Count,
		Guest: j.Guest, GuestPort: j.GuestPort, Source: j.Source,
	}
	if j.Host != "" {
		var p *problem
		if n.Host, p = parseHost(j.Host); p != nil {
			return p.of(string(data))
		}
	}
	n, err := n.Normalize()
	if err != nil {
		return err
	}
	*r = n
	return nil
}
