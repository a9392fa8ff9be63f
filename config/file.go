// Package config is the daemon's configuration file: what stands in it, where, and what is wrong with it.
//
//	f, err := config.Parse("vmnetd.yaml", text)
//	if err != nil {
//		log.Fatal(err) // vmnetd.yaml:4:5: no key "gatway" in a network: did you mean gateway?
//	}
//	for _, s := range f.Settings() {
//		fmt.Println(s.Network, s.Flag, s.Value, s.Line)
//	}
//	fmt.Print(f) // the same file again, in one form
//
// A file has the words of vmnetd's flags, and each thing in it is a flag's value: Settings lists them, with the place where
// each was said, and whoever reads flags reads them. So what an address or a rule of a forward looks like is not known here,
// and said once. Parse is strict: no key that is not known, none twice, none without a value, no anchors, tags or second
// documents; JSON is read as what it is, YAML. All faults are told, with their lines, up to ten.
//
// It opens nothing, knows no network, and does not follow the file as it changes.
package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// File is a daemon's configuration. What is zero was not said.
type File struct {
	Networks []Network `yaml:"networks" json:"networks,omitempty"`
	Doors    Doors     `yaml:"doors" json:"doors,omitzero"`
	Control  string    `yaml:"control" json:"control,omitempty" flag:"control"`
	API      []string  `yaml:"api" json:"api,omitempty" flag:"api"`
	Memory   string    `yaml:"memory" json:"memory,omitempty" flag:"memory"`
	Log      Log       `yaml:"log" json:"log,omitzero"`
	FlowLog  FlowLog   `yaml:"flow-log" json:"flow-log,omitzero"`
	Sandbox  Sandbox   `yaml:"sandbox" json:"sandbox,omitzero"`
	Pprof    *bool     `yaml:"pprof" json:"pprof,omitempty" flag:"pprof"`

	name  string
	lines []string
	at    map[string]Place // of values and networks, by path
}

// Network is one network. The first is the daemon's own, and what others do not say they have as it has it, but for
// prefixes, addresses, static leases, forwards and DNS records.
type Network struct {
	Name           string                       `yaml:"name" json:"name,omitempty" flag:"name"`
	Net            string                       `yaml:"net" json:"net,omitempty" flag:"net"`
	Gateway        string                       `yaml:"gateway" json:"gateway,omitempty" flag:"gateway"`
	DNSAddr        string                       `yaml:"dns-addr" json:"dns-addr,omitempty" flag:"dns-addr"`
	First          string                       `yaml:"first" json:"first,omitempty" flag:"first"`
	Net6           string                       `yaml:"net6" json:"net6,omitempty" flag:"net6"`
	Gateway6       string                       `yaml:"gateway6" json:"gateway6,omitempty" flag:"gateway6"`
	DNSAddr6       string                       `yaml:"dns-addr6" json:"dns-addr6,omitempty" flag:"dns-addr6"`
	MTU            string                       `yaml:"mtu" json:"mtu,omitempty" flag:"mtu"`
	Domain         string                       `yaml:"domain" json:"domain,omitempty" flag:"domain"`
	Search         []string                     `yaml:"search" json:"search,omitempty" flag:"search"`
	Resolver       []string                     `yaml:"resolver" json:"resolver,omitempty" flag:"resolver"`
	Static         map[string][]string          `yaml:"static" json:"static,omitempty" flag:"static"` // addresses by MAC
	Forward        []string                     `yaml:"forward" json:"forward,omitempty" flag:"forward"`
	DNSRecord      []string                     `yaml:"dns-record" json:"dns-record,omitempty" flag:"dns-record"`
	Policy         Policy                       `yaml:"policy" json:"policy,omitzero"`
	NoHostLoopback *bool                        `yaml:"no-host-loopback" json:"no-host-loopback,omitempty" flag:"no-host-loopback"`
	OpenLinkLocal  []string                     `yaml:"open-link-local" json:"open-link-local,omitempty" flag:"open-link-local"`
	Route          []string                     `yaml:"route" json:"route,omitempty" flag:"route"`
	Isolate        *bool                        `yaml:"isolate" json:"isolate,omitempty" flag:"isolate"`
	StrictLeases   *bool                        `yaml:"strict-leases" json:"strict-leases,omitempty" flag:"strict-leases"`
	StateDir       string                       `yaml:"state-dir" json:"state-dir,omitempty" flag:"state-dir"`
	Limits         map[string]string            `yaml:"limits" json:"limits,omitempty" flag:"limit"`
	Impair         []string                     `yaml:"impair" json:"impair,omitempty" flag:"impair"`
	GuestLimits    map[string]map[string]string `yaml:"guest-limits" json:"guest-limits,omitempty" flag:"limit"` // by MAC
}

// Policy is what guests may reach. Rules are a whole document, as 'vmnetd policy show' prints it, in the file itself.
type Policy struct {
	Preset string   `yaml:"preset" json:"preset,omitempty" flag:"policy"`
	Allow  []string `yaml:"allow" json:"allow,omitempty" flag:"allow"`
	Rules  string   `yaml:"rules" json:"rules,omitempty" flag:"policy-rules"`
	File   string   `yaml:"file" json:"file,omitempty" flag:"policy-file"`
	Audit  *bool    `yaml:"audit" json:"audit,omitempty" flag:"policy-audit"`
}

// Doors are where guests plug in, by how they speak.
type Doors struct {
	QEMU     []string `yaml:"qemu" json:"qemu,omitempty" flag:"qemu"`
	HyperKit []string `yaml:"hyperkit" json:"hyperkit,omitempty" flag:"hyperkit"`
	VDE      []string `yaml:"vde" json:"vde,omitempty" flag:"vde"`
	VFKit    []string `yaml:"vfkit" json:"vfkit,omitempty" flag:"vfkit"`
	Dgram    []string `yaml:"dgram" json:"dgram,omitempty" flag:"dgram"`
	Bess     []string `yaml:"bess" json:"bess,omitempty" flag:"bess"`
	Netns    []string `yaml:"netns" json:"netns,omitempty" flag:"netns"`
}

// Log is the daemon's log.
type Log struct {
	Level  string `yaml:"level" json:"level,omitempty" flag:"log-level"`
	Format string `yaml:"format" json:"format,omitempty" flag:"log-format"`
}

// FlowLog is where it is written what becomes of conversations.
type FlowLog struct {
	File string `yaml:"file" json:"file,omitempty" flag:"flow-log"`
	Size string `yaml:"size" json:"size,omitempty" flag:"flow-log-size"`
	Keep string `yaml:"keep" json:"keep,omitempty" flag:"flow-log-keep"`
	Only string `yaml:"only" json:"only,omitempty" flag:"flow-log-only"`
}

// Sandbox is how the daemon shuts itself in.
type Sandbox struct {
	Mode      string   `yaml:"mode" json:"mode,omitempty" flag:"sandbox"`
	Folders   []string `yaml:"folders" json:"folders,omitempty" flag:"sandbox-folder"`
	CoreDumps *bool    `yaml:"core-dumps" json:"core-dumps,omitempty" flag:"core-dumps"`
	User      string   `yaml:"user" json:"user,omitempty" flag:"user"`
}

// Setting is one value of one flag, and where it was said.
type Setting struct {
	Network      int // whose, as in File.Networks, or Daemon
	Flag, Value  string
	Line, Column int // from 1; 0 in a File that Parse did not make
	path         string
}

// Daemon is the Network of a Setting that is no network's.
const Daemon = -1

// Settings are all that a file says, as flags' values, in the struct's order.
func (f *File) Settings() []Setting {
	var list []Setting
	f.walk(reflect.ValueOf(f).Elem(), "", "", Daemon, &list)
	for i, s := range list {
		p := f.at[s.path]
		list[i].Line, list[i].Column = p.Line, p.Column
	}
	return list
}

func (f *File) walk(v reflect.Value, path, flag string, network int, list *[]Setting) {
	add := func(path, value string) {
		*list = append(*list, Setting{Network: network, Flag: flag, Value: value, path: path})
	}
	switch x := v.Interface().(type) {
	case string:
		if _, said := f.at[path]; said || x != "" {
			add(path, x)
		}
		return
	case *bool:
		if x != nil {
			add(path, fmt.Sprint(*x))
		}
		return
	case []string:
		for i, s := range x {
			add(item(path, i), s)
		}
		return
	case []Network:
		for i := range x {
			f.walk(v.Index(i), item(path, i), "", i, list)
		}
		return
	case map[string]string:
		for _, k := range keys(x) {
			add(under(path, k), k+"="+x[k])
		}
		return
	case map[string][]string:
		for _, k := range keys(x) {
			add(under(path, k), k+"="+strings.Join(x[k], ","))
		}
		return
	case map[string]map[string]string:
		for _, k := range keys(x) {
			for _, name := range keys(x[k]) {
				add(under(under(path, k), name), k+","+name+"="+x[k][name])
			}
		}
		return
	}
	for i, field := range fields(v.Type()) {
		f.walk(v.Field(i), under(path, field.key), field.flag, network, list)
	}
}

// Fault is an error about a setting, with its place.
func (f *File) Fault(s Setting, err error) error {
	return f.fault(Place{s.Line, s.Column}, err.Error())
}

// NetworkFault is an error about a network as a whole.
func (f *File) NetworkFault(network int, err error) error {
	return f.fault(f.at[item(under("", "networks"), network)], err.Error())
}

// String is the file as Parse reads it, in one form.
func (f *File) String() string {
	var b strings.Builder
	write(&b, reflect.ValueOf(f).Elem(), "")
	return b.String()
}

// write has each line behind indent.
func write(b *strings.Builder, v reflect.Value, indent string) {
	for i, field := range fields(v.Type()) {
		v := v.Field(i)
		if v.IsZero() {
			continue
		}
		head := indent + field.key + ":"
		switch x := v.Interface().(type) {
		case string:
			fmt.Fprintf(b, "%s %s\n", head, scalar(x, indent+"  "))
		case *bool:
			fmt.Fprintf(b, "%s %t\n", head, *x)
		case []string:
			writeList(b, head, indent, x)
		case []Network:
			if len(x) > 0 {
				fmt.Fprintln(b, head)
			}
			for j := range x {
				var one strings.Builder
				write(&one, v.Index(j), indent+"    ")
				if one.Len() == 0 {
					fmt.Fprintf(b, "%s  - {}\n", indent)
					continue
				}
				b.WriteString(indent + "  - " + one.String()[len(indent)+4:])
			}
		case map[string]string:
			writeMap(b, head, indent, x)
		case map[string][]string:
			if len(x) > 0 {
				fmt.Fprintln(b, head)
			}
			for _, k := range keys(x) {
				writeList(b, indent+"  "+scalar(k, "")+":", indent+"  ", x[k])
			}
		case map[string]map[string]string:
			if len(x) > 0 {
				fmt.Fprintln(b, head)
			}
			for _, k := range keys(x) {
				writeMap(b, indent+"  "+scalar(k, "")+":", indent+"  ", x[k])
			}
		default:
			fmt.Fprintln(b, head)
			write(b, v, indent+"  ")
		}
	}
}

func writeList(b *strings.Builder, head, indent string, list []string) {
	if len(list) == 0 {
		fmt.Fprintln(b, head, "[]")
		return
	}
	fmt.Fprintln(b, head)
	for _, s := range list {
		fmt.Fprintf(b, "%s  - %s\n", indent, scalar(s, ""))
	}
}

func writeMap(b *strings.Builder, head, indent string, m map[string]string) {
	if len(m) == 0 {
		fmt.Fprintln(b, head, "{}")
		return
	}
	fmt.Fprintln(b, head)
	for _, k := range keys(m) {
		fmt.Fprintf(b, "%s  %s: %s\n", indent, scalar(k, ""), scalar(m[k], ""))
	}
}

// scalar is a string as YAML: plain where no reader could take it for anything else, a block where it has lines and the
// block's indent is given, else quoted.
func scalar(s, indent string) string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	odd := func(more string) func(rune) bool {
		return func(r rune) bool { return !strings.ContainsRune(letters+more, r) }
	}
	if s != "" && !strings.ContainsFunc(s[:1], odd("/")) && !strings.ContainsFunc(s, odd("/._-:=,%")) && !strings.HasSuffix(s, ":") &&
		!strings.EqualFold(s, "null") {
		return s
	}
	if indent != "" && strings.HasSuffix(s, "\n") && len(s) > 1 && !strings.HasPrefix(s, " ") && !strings.HasPrefix(s, "\n") && !strings.HasSuffix(s, "\n\n") &&
		!strings.Contains(s, " \n") && !strings.ContainsFunc(s, func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }) {
		var b strings.Builder
		b.WriteByte('|')
		for line := range strings.SplitSeq(strings.TrimSuffix(s, "\n"), "\n") {
			b.WriteByte('\n')
			if line != "" {
				b.WriteString(indent + line)
			}
		}
		return b.String()
	}
	return quote(s)
}

// quote is a double-quoted scalar (YAML 1.2 §5.7).
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case r >= ' ' && r <= '~':
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

type field struct{ key, flag string }

// fields are the exported ones, which come first.
func fields(t reflect.Type) []field {
	var list []field
	for i := range t.NumField() {
		if f := t.Field(i); f.IsExported() {
			list = append(list, field{f.Tag.Get("yaml"), f.Tag.Get("flag")})
		}
	}
	return list
}

func keys[V any](m map[string]V) []string {
	list := make([]string, 0, len(m))
	for k := range m {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}

func item(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }
func under(path, key string) string  { return path + "\x00" + key }
