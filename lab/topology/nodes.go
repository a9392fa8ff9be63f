package topology

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/vmnetd/vmnetd/config"
)

// count is a node's, before anything else of it is read.
func (r *reader) count(v config.Value) (n int, ok bool) {
	ok = true
	if !v.Keys() {
		return 0, true
	}
	faults := r.src.Faults()
	r.src.Entries(v, "a node", func(_ config.Value, key string, value config.Value) {
		if key == "count" {
			n, ok = r.number(value, "count", 1, maxNodes)
		}
	})
	return n, ok && r.src.Faults() == faults
}

func (r *reader) node(at place, name string, v config.Value) {
	if v.None() {
		r.fail(at, "%s: what kind is it? want kind: netns, qemu, uml or external", name)
		return
	}
	count, ok := r.count(v)
	if !ok {
		return
	}
	outer := r.vars
	defer func() { r.vars = outer }()
	for i := range max(count, 1) {
		full := name
		if count > 0 {
			full = fmt.Sprintf("%s%d", name, i+1)
		}
		if len(r.nodes) == maxNodes {
			r.fail(at, "more than %d nodes", maxNodes)
			return
		}
		if !isName(full) {
			r.fail(at, "%.70q: %s", full, wantName)
			return
		}
		if j := slices.IndexFunc(r.nodes, func(n *node) bool { return n.Name == full }); j >= 0 {
			r.fail(at, "%s is a node in line %d: want another name", full, r.nodes[j].at.Line)
			return
		}
		r.vars = outer.with("name", full)
		if count > 0 {
			r.vars = r.vars.with("n", strconv.Itoa(i+1))
		}
		faults := r.src.Faults()
		r.nodes = append(r.nodes, r.oneNode(v, at, full, name, count))
		if r.src.Faults() > faults { // the others have it as well
			for i++; i < count && len(r.nodes) < maxNodes; i++ { // their names are there
				n := *r.nodes[len(r.nodes)-1]
				n.Name = fmt.Sprintf("%s%d", name, i+1)
				n.ifaces, n.after, n.Routes, n.routes = nil, nil, nil, nil
				r.nodes = append(r.nodes, &n)
			}
			return
		}
	}
}

// fits says which kinds of nodes have a key. Those that are not in it all have.
var fits = map[string][]Kind{
	"command": {KindNetns}, "dir": {KindNetns}, "env": {KindNetns}, "restart": {KindNetns},
	"forwarding": {KindNetns, KindQEMU, KindUML}, "routes": {KindNetns, KindQEMU, KindUML}, "setup": {KindNetns, KindQEMU, KindUML},
	"kernel": {KindQEMU}, "disk-format": {KindQEMU}, "cpus": {KindQEMU}, "machine": {KindQEMU}, "accel": {KindQEMU},
	"cpu": {KindQEMU}, "qemu": {KindQEMU}, "agent": {KindQEMU}, "cloud-init": {KindQEMU},
	"initrd": {KindQEMU, KindUML}, "append": {KindQEMU, KindUML}, "disk": {KindQEMU, KindUML}, "overlay": {KindQEMU, KindUML},
	"memory": {KindQEMU, KindUML}, "args": {KindQEMU, KindUML},
	"uml":  {KindUML},
	"user": {KindQEMU, KindUML, KindExternal},
}

var kinds = []Kind{KindNetns, KindQEMU, KindUML, KindExternal}

func (r *reader) oneNode(v config.Value, at place, name, base string, count int) *node {
	n := &node{Node: Node{Name: name, Base: base}, at: at, of: count, said: map[string]place{}}
	var wait config.Value
	text := func(to *string) func(config.Value) {
		return func(v config.Value) { *to, _ = r.word(v, "the value") }
	}
	file := func(to *string, what, sort string) func(config.Value) {
		return func(v config.Value) { *to = r.file(v, what, sort) }
	}
	flag := func(to *bool, what string) func(config.Value) {
		return func(v config.Value) { *to, _ = r.bool(v, what) }
	}
	faults := r.src.Faults()
	r.keys(v, "a node", []key{
		{"kind", func(v config.Value) {
			s, ok := r.text(v, "kind")
			if ok && !slices.Contains(kinds, Kind(s)) {
				r.fail(v.Place(), "kind: no kind %.40q: %s", s, config.DidYouMean(s, wordsOf(kinds)))
				return
			}
			n.Kind = Kind(s)
		}},
		{"count", func(config.Value) {}},
		{"interfaces", func(v config.Value) { r.interfaces(v, n) }},
		{"routes", func(v config.Value) { r.routes(v, n) }},
		{"forwarding", flag(&n.Forwarding, "forwarding")},
		{"command", func(v config.Value) { n.Command = r.command(v) }},
		{"dir", file(&n.Dir, "dir", dir)},
		{"env", func(v config.Value) {
			n.Env = map[string]string{}
			r.src.Entries(v, "env", func(key config.Value, name string, value config.Value) {
				if name == "" || strings.ContainsAny(name, "=\n") {
					r.fail(key.Place(), "env: %.40q is no variable's name", name)
				}
				if s, ok := r.text(value, name); ok {
					n.Env[name] = s
				}
			})
		}},
		{"restart", flag(&n.Restart, "restart")},
		{"setup", func(v config.Value) { n.Setup = texts(r.listOrOne(v, "setup")) }},
		{"after", func(v config.Value) { n.after = r.listOrOne(v, "after") }},
		{"wait", func(v config.Value) { wait = v }},
		{"timeout", func(v config.Value) { n.Timeout = r.duration(v, "timeout") }},
		{"kernel", file(&n.Kernel, "kernel", regular)},
		{"initrd", file(&n.Initrd, "initrd", regular)},
		{"append", text(&n.Append)},
		{"disk", func(v config.Value) { n.Disk, n.diskAt = r.file(v, "disk", image), v.Place() }},
		{"disk-format", func(v config.Value) {
			s, ok := r.text(v, "disk-format")
			if formats := []string{"qcow2", "raw"}; ok && !slices.Contains(formats, s) {
				r.fail(v.Place(), "disk-format: no format %.40q: %s", s, config.DidYouMean(s, formats))
			}
			n.DiskFormat = s
		}},
		{"overlay", func(v config.Value) {
			if b, ok := r.bool(v, "overlay"); ok {
				n.overlay = &b
			}
		}},
		{"memory", func(v config.Value) { n.Memory = r.memory(v) }},
		{"cpus", func(v config.Value) { n.CPUs, _ = r.number(v, "cpus", 1, mostCPUs) }},
		{"machine", text(&n.Machine)},
		{"accel", text(&n.Accel)},
		{"cpu", text(&n.CPU)},
		{"qemu", file(&n.QEMU, "qemu", program)},
		{"args", func(v config.Value) { n.Args = texts(r.list(v, "args")) }},
		{"agent", flag(&n.Agent, "agent")},
		{"user", text(&n.User)},
		{"cloud-init", func(v config.Value) { n.CloudInit = r.cloudInit(v) }},
		{"uml", file(&n.UML, "uml", program)},
	}, func(name string, at place) { n.said[name] = at })
	r.settle(n, r.src.Faults() > faults)
	if !wait.None() {
		r.wait(wait, n)
	}
	return n
}

// command is a list of words, or a line for the shell.
func (r *reader) command(v config.Value) []string {
	if !v.List() {
		s, ok := r.text(v, "command")
		if ok && strings.TrimSpace(s) == "" {
			r.fail(v.Place(), "command: want a program, or no command")
		}
		return []string{"/bin/sh", "-c", s}
	}
	faults := r.src.Faults()
	list := texts(r.list(v, "command"))
	if r.src.Faults() == faults && (len(list) == 0 || list[0] == "") {
		r.fail(v.Place(), "command: want a program, or no command")
	}
	return list
}

func (r *reader) cloudInit(v config.Value) *CloudInit {
	c := &CloudInit{}
	from := map[string]string{}
	text := func(what string, to *string) []key {
		once := func(from map[string]string, key string, at place) bool {
			if first, twice := from[what]; twice {
				r.fail(at, "%s is there already, as %s: leave one out", what, first)
				return false
			}
			from[what] = key
			return true
		}
		return []key{
			{what, func(v config.Value) {
				if v.Keys() || v.List() {
					r.fail(v.Place(), "%s: want a text, as %s: | with the text below it, not %s", what, what, v.Kind())
				} else if s, ok := r.text(v, what); ok && once(from, what, v.Place()) {
					*to = s
				}
			}},
			{what + "-file", func(v config.Value) {
				if s, ok := r.contents(v, what+"-file"); ok && once(from, what+"-file", v.Place()) {
					*to = s
				}
			}},
		}
	}
	known := slices.Concat(text("user-data", &c.UserData), text("network-config", &c.NetworkConfig), text("vendor-data", &c.VendorData))
	known = append(known, key{"meta-data", func(v config.Value) {
		c.MetaData = map[string]string{}
		r.src.Entries(v, "meta-data", func(key config.Value, name string, value config.Value) {
			if name == "instance-id" || name == "local-hostname" {
				r.fail(key.Place(), "%s is the lab's to say: leave it out", name)
			} else if s, ok := r.text(value, name); ok {
				c.MetaData[name] = s
			}
		})
	}})
	r.keys(v, "cloud-init", known, nil)
	return c
}

func (r *reader) interfaces(v config.Value, n *node) {
	r.src.Items(v, "interfaces", func(i int, item config.Value) {
		if i >= maxInterfaces {
			if i == maxInterfaces {
				r.fail(item.Place(), "more than %d interfaces", maxInterfaces)
			}
			return
		}
		f := &iface{at: item.Place(), netAt: item.Place()}
		n.ifaces = append(n.ifaces, f)
		if item.Keys() {
			r.iface(item, n, f)
		} else {
			f.Network, _ = r.text(item, "an interface")
		}
	})
	for i, f := range n.ifaces { // of a name that another has by itself it was told already, or will be
		if f.Name == "" {
			f.Name = fmt.Sprintf("eth%d", i)
		}
		for _, g := range n.ifaces[:i] {
			if g.Name == f.Name {
				r.fail(cmpPlace(f.nameAt, f.at), "%s has two interfaces %s: want another name", n.Name, f.Name)
				break
			}
		}
	}
}

// cmpPlace is the first of two places that is one.
func cmpPlace(a, b place) place {
	if a.Line > 0 {
		return a
	}
	return b
}

func (r *reader) iface(v config.Value, n *node, f *iface) {
	in := func(link bool) func(config.Value) {
		return func(v config.Value) {
			if f.Network != "" {
				r.fail(v.Place(), "an interface is in one network: want net or link")
				return
			}
			f.netAt, f.link = v.Place(), link
			f.Network, _ = r.text(v, "its network")
		}
	}
	faults := r.src.Faults()
	r.keys(v, "an interface", []key{
		{"net", in(false)},
		{"link", in(true)},
		{"name", func(v config.Value) {
			s, ok := r.text(v, "name")
			if ok && !interfaceName(s) {
				r.fail(v.Place(), "name: %.40q is no interface's: want letters, digits, - _ and ., %d at most, and not lo", s, maxInterfaceName)
				return
			}
			f.Name, f.nameAt = s, v.Place()
		}},
		{"mac", func(v config.Value) { f.MAC, f.macAt = r.mac(v), v.Place() }},
		{"address", func(v config.Value) {
			f.addrs, f.addrsAt = r.listOrOne(v, "address"), v.Place()
			f.noAddrs = v.List() && len(f.addrs) == 0
			if len(f.addrs) > maxAddrs {
				r.fail(f.addrs[maxAddrs].at, "address: more than %d: want fewer", maxAddrs)
				f.addrs = nil
			}
		}},
		{"impair", func(v config.Value) { f.Impair = r.impair(v, false) }},
		{"promiscuous", func(v config.Value) { f.Promiscuous, _ = r.bool(v, "promiscuous") }},
		{"mirror", func(v config.Value) { f.Mirror, _ = r.bool(v, "mirror") }},
		{"door", func(v config.Value) { f.Door = r.door(v, n) }},
	}, nil)
	if f.Network == "" && r.src.Faults() == faults {
		r.fail(v.Place(), "an interface without a network: want net: or link:")
	}
}

// interfaceName says whether Linux takes it: no slash, colon or blank, and no name that has another meaning where it stands
// in files' names and commands.
func interfaceName(s string) bool {
	if s == "" || len(s) > maxInterfaceName || s[0] == '-' || slices.Contains([]string{"lo", "all", "default", ".", ".."}, s) {
		return false
	}
	return !strings.ContainsFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.", c))
	})
}

func (r *reader) mac(v config.Value) net.HardwareAddr {
	s, ok := r.text(v, "mac")
	if !ok {
		return nil
	}
	m, err := net.ParseMAC(s)
	switch {
	case err != nil || len(m) != 6:
		r.fail(v.Place(), "mac: want one as 52:54:00:12:34:56, not %.40q", s)
	case m[0]&1 != 0:
		r.fail(v.Place(), "mac: %s is a group's: want one whose first byte is even, as 52:54:00:12:34:56", m)
	case slices.Max(m) == 0:
		r.fail(v.Place(), "mac: %s is nobody's: want one as 52:54:00:12:34:56", m)
	default:
		return m
	}
	return nil
}

func (r *reader) door(v config.Value, n *node) string {
	s, ok := r.text(v, "door")
	if !ok {
		return ""
	}
	path, unix := strings.CutPrefix(s, "unix:")
	if !unix || path == "" {
		r.fail(v.Place(), "door: want unix:PATH, not %.60q", s)
		return ""
	}
	if r.files != nil {
		path = r.files.whole(path)
	}
	if len(path) > maxSocketPath {
		r.fail(v.Place(), "door: a socket's path has %d bytes at most, and %.60q… has %d", maxSocketPath, path, len(path))
	}
	return "unix:" + path
}

func (r *reader) routes(v config.Value, n *node) {
	for _, s := range r.listOrOne(v, "routes") {
		w := strings.Fields(s.text)
		if len(w) != 3 || w[1] != "via" {
			r.fail(s.at, "routes: want PREFIX via ADDRESS, as 10.9.0.0/16 via 10.1.0.3 or default via fd00::1, not %.60q", s.text)
			continue
		}
		via, err := netip.ParseAddr(w[2])
		if err != nil || via.Zone() != "" || via.Is4In6() {
			r.fail(s.at, "routes: %.60q is no address: want PREFIX via ADDRESS, as 10.9.0.0/16 via 10.1.0.3", w[2])
			continue
		}
		to, err := netip.ParsePrefix(w[0])
		switch {
		case w[0] == "default" && via.Is4():
			to, err = netip.PrefixFrom(netip.IPv4Unspecified(), 0), nil
		case w[0] == "default":
			to, err = netip.PrefixFrom(netip.IPv6Unspecified(), 0), nil
		case err != nil:
			var a netip.Addr
			if a, err = netip.ParseAddr(w[0]); err == nil && a.Zone() == "" {
				to = netip.PrefixFrom(a, a.BitLen())
			}
		}
		switch {
		case err != nil || !to.IsValid() || to.Addr().Is4In6():
			r.fail(s.at, "routes: %.60q is no prefix: want PREFIX via ADDRESS, as 10.9.0.0/16 via 10.1.0.3", w[0])
		case to != to.Masked():
			r.fail(s.at, "routes: %s has bits behind its prefix: want %s", to, to.Masked())
		case to.Addr().Is4() != via.Is4():
			r.fail(s.at, "routes: %s is not of the family of %s", to, via)
		case slices.ContainsFunc(n.Routes, func(o Route) bool { return o.To == to }):
			r.fail(s.at, "routes: two to %s: want one", w[0])
		default:
			n.Routes = append(n.Routes, Route{To: to, Via: via})
			n.routes = append(n.routes, s.at)
		}
	}
}

// agents are kinds of nodes that do as they are told, if a guest has an agent.
var agents = []Kind{KindNetns, KindQEMU, KindUML}

func wantAgent(k Kind) string {
	if k == KindUML {
		return "want no disk and no initrd, which is the small guest, and has one"
	}
	return "want agent: true, and one in the guest"
}

// conditions are those to wait for, and whether they have an argument.
var conditions = []struct {
	kind  string
	arg   string // what it is, with an example; "": none
	kinds []Kind
}{
	{"address", "", kinds},
	{"ping", "an address or node, as ping:10.1.0.2", agents},
	{"tcp", "a port, as tcp:80, or tcp:HOST:80", kinds},
	{"udp", "a port, as udp:53, or udp:HOST:53", kinds},
	{"exec", "a shell line, as exec: test -f /x", agents},
	{"log", `a regular expression, as log: "login:"`, []Kind{KindNetns, KindQEMU, KindUML}},
	{"agent", "", []Kind{KindQEMU, KindUML}},
	{"exit", "", []Kind{KindNetns, KindQEMU, KindUML}},
}

func (r *reader) wait(v config.Value, n *node) {
	one := func(kind, arg string, hasArg bool, at place) {
		var words []string
		for _, c := range conditions {
			words = append(words, c.kind)
			if c.kind != kind {
				continue
			}
			switch {
			case c.arg == "" && hasArg:
				r.fail(at, "wait: %s has nothing behind it", kind)
			case c.arg != "" && arg == "":
				r.fail(at, "wait: %s wants %s", kind, c.arg)
			case n.Kind != "" && !slices.Contains(c.kinds, n.Kind):
				r.fail(at, "wait: a node of kind %s has no %s: %s", n.Kind, kind, wantKinds(c.kinds))
			default:
				if err := checkCondition(kind, arg); err != nil {
					r.fail(at, "wait: %s", err)
					return
				}
				if slices.Contains([]string{"exec", "ping", "agent"}, kind) && n.Kind != KindNetns && !n.Agent {
					r.fail(at, "wait: %s is the guest agent's: %s", kind, wantAgent(n.Kind))
					return
				}
				if kind == "exit" && n.Kind == KindNetns && n.Command == nil {
					r.fail(at, "wait: there is no command that would exit")
					return
				}
				n.Wait = append(n.Wait, Condition{Kind: kind, Arg: arg})
			}
			return
		}
		r.fail(at, "wait: nothing is called %.40q: %s", kind, config.DidYouMean(kind, words))
	}
	item := func(v config.Value) {
		if v.Keys() {
			r.src.Entries(v, "wait", func(key config.Value, name string, value config.Value) {
				if s, ok := r.text(value, name); ok {
					one(name, s, true, key.Place())
				}
			})
			return
		}
		if s, ok := r.text(v, "wait"); ok {
			kind, arg, has := strings.Cut(s, ":")
			one(strings.TrimSpace(kind), strings.TrimSpace(arg), has, v.Place())
		}
	}
	if !v.List() {
		item(v)
		return
	}
	r.src.Items(v, "wait", func(i int, v config.Value) {
		if !r.most(i, v, maxWait, "wait") {
			item(v)
		}
	})
}

func wordsOf[S ~string](list []S) []string {
	words := make([]string, len(list))
	for i, s := range list {
		words[i] = string(s)
	}
	return words
}

func wantKinds(list []Kind) string {
	return "it is for " + strings.Join(wordsOf(list), ", ")
}

// checkCondition checks a condition's argument by its shape.
func checkCondition(kind, arg string) error {
	switch kind {
	case "ping":
		if _, err := netip.ParseAddr(arg); err != nil && !hostName(arg) {
			return fmt.Errorf("ping: want an address or a name, not %.60q", arg)
		}
	case "tcp", "udp":
		host, port, err := net.SplitHostPort(arg)
		if err != nil {
			host, port, err = "", arg, nil
		}
		if n, perr := strconv.ParseUint(port, 10, 16); perr != nil || n == 0 {
			return fmt.Errorf("%s: want a port, as %s:80 or %s:HOST:80, not %.60q", kind, kind, kind, arg)
		}
		if _, aerr := netip.ParseAddr(host); host != "" && aerr != nil && !hostName(host) {
			return fmt.Errorf("%s: want an address or a name before the port, not %.60q", kind, host)
		}
		return err
	case "log":
		if _, err := regexp.Compile(arg); err != nil {
			return fmt.Errorf("log: %w", err)
		}
	}
	return nil
}

func hostName(s string) bool {
	for part := range strings.SplitSeq(strings.TrimSuffix(strings.ToLower(s), "."), ".") {
		if !dnsLabel.MatchString(part) {
			return false
		}
	}
	return len(s) < 254
}
