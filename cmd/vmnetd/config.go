package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/config"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/policy"
	"github.com/vmnetd/vmnetd/portforward"
)

// didYouMean says which of the known words was likely meant, or which there are.
var didYouMean = config.DidYouMean

// serveFlags are the flags of serve. A file's words become their values, so that what reads flags reads files.
type serveFlags struct {
	n        networkFlags
	box      cageFlags
	api      apiFlags
	sv       serviceFlags
	flowLog  flowLogFlags
	capture  captureFlags
	qos      qosFlags
	addrs    []*[]string
	networks *[]string
	control  string
	file     string
	files    fileReader  // nil: as they are
	given    []givenFlag // on the command line
	only     bool        // those of run
}

func (f *serveFlags) add(fs *pflag.FlagSet) {
	f.n.add(fs, slog.LevelInfo)
	f.box.add(fs)
	f.box.addUser(fs)
	f.api.add(fs)
	f.sv.add(fs)
	f.flowLog.add(fs)
	f.capture.add(fs)
	f.qos.add(fs)
	f.addrs = addDoorFlags(fs.StringArray)
	f.networks = fs.StringArray("network", nil, networkUsage)
	fs.StringVar(&f.control, "control", "", "`PATH` of the control socket (default $VMNETD_CONTROL, else $XDG_RUNTIME_DIR/vmnetd/control.sock)")
	fs.StringVar(&f.file, "config", "", "`FILE` with the same in YAML ('vmnetd config print' makes one); other flags override what it says")
}

// addRun adds those of run: the rest is for daemons of many guests.
func (f *serveFlags) addRun(fs *pflag.FlagSet) {
	f.n.add(fs, slog.LevelWarn)
	f.box.add(fs)
	f.addrs, f.networks, f.only = addDoorFlags(func(string, []string, string) *[]string { return new([]string) }), new([]string), true
	fs.StringVar(&f.control, "control", "", "`PATH` of the control socket (default in a private folder)")
	fs.StringVar(&f.file, "config", "", "`FILE` with the same in YAML: a network, and no doors; other flags override what it says")
}

// fits says what of a file run has not.
func (f *serveFlags) fits(file *config.File, fs *pflag.FlagSet) error {
	for i := 1; i < len(file.Networks) && f.only; i++ {
		return usageError{file.NetworkFault(i, errors.New("a second network: 'vmnetd run' has its command's one; 'vmnetd serve' has any number"))}
	}
	for _, s := range file.Settings() {
		switch {
		case !f.only || fs.Lookup(s.Flag) != nil:
		case slices.ContainsFunc(framings, func(x *framing) bool { return x.name == s.Flag }):
			return usageError{file.Fault(s, errors.New("a door: 'vmnetd run' has its command's wire; doors are for 'vmnetd serve'"))}
		default:
			return usageError{file.Fault(s, fmt.Errorf("'vmnetd run' has no --%s: it is for 'vmnetd serve'", s.Flag))}
		}
	}
	return nil
}

// readFile puts what the file says, if one is named, in place of flags that were not given.
func (f *serveFlags) readFile(fs *pflag.FlagSet) error {
	f.given = givenFlags(fs)
	if f.file == "" {
		return nil
	}
	file, err := readConfig(f.file)
	if err != nil {
		return err
	}
	return f.apply(file, fs)
}

// apply puts what a file says in place of flags that were not given.
func (f *serveFlags) apply(file *config.File, fs *pflag.FlagSet) error {
	if err := f.fits(file, fs); err != nil {
		return err
	}
	var names []string // of networks that the file need not have
	for _, spec := range *f.networks {
		names = append(names, splitCommas(spec)[0])
	}
	if fs.Changed("name") {
		names = append(names, f.n.cfg.Name)
	}
	whole := true // a flag may complete what the file says of a network
	fs.Visit(func(f *pflag.Flag) { whole = whole && (f.Name == "config" || f.Name == "control") })
	if err := checkConfig(file, names, whole, f.files); err != nil {
		return usageError{err}
	}
	return applyConfig(file, fs)
}

// readConfig reads a file; - is standard input.
func readConfig(path string) (*config.File, error) {
	r, name := io.Reader(os.Stdin), "standard input"
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		r, name = file, path
	}
	text, err := io.ReadAll(io.LimitReader(r, config.MaxSize+1))
	if err != nil {
		return nil, err
	}
	f, err := config.Parse(name, text)
	if err != nil {
		return nil, usageError{err}
	}
	return f, nil
}

// applyConfig sets flags that were not given. A policy is one thing: a flag that says which has the file's whole one give
// way. A --network takes the place of the file's network of its name.
func applyConfig(file *config.File, fs *pflag.FlagSet) error {
	given := map[string]bool{}
	fs.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	ownPolicy := slices.ContainsFunc(policyFlagNames, func(name string) bool { return given[name] })
	specs := make([]string, len(file.Networks))
	for i, n := range file.Networks {
		specs[i] = qemuEscape(n.Name)
	}
	for _, s := range file.Settings() {
		switch {
		case s.Network > 0 && s.Flag == "name": // it is the spec's first word
		case s.Network > 0:
			specs[s.Network] += "," + s.Flag + "=" + qemuEscape(s.Value)
		case given[s.Flag] || ownPolicy && slices.Contains(policyFlagNames, s.Flag):
		default:
			if err := fs.Set(s.Flag, s.Value); err != nil {
				return usageError{file.Fault(s, valueFault(err))}
			}
		}
	}
	if fs.Lookup("network") == nil {
		return nil // run's
	}
	more := fs.Lookup("network").Value.(pflag.SliceValue)
	var list []string
	for i, spec := range specs {
		if i > 0 && !slices.ContainsFunc(more.GetSlice(), func(flag string) bool { return splitCommas(flag)[0] == file.Networks[i].Name }) {
			list = append(list, spec)
		}
	}
	if list = append(list, more.GetSlice()...); len(list) > 0 {
		for i, spec := range list {
			set := more.Append
			if i == 0 {
				set = func(s string) error { return more.Replace([]string{s}) }
			}
			if err := set(spec); err != nil {
				return err
			}
		}
	}
	return nil
}

// valueFault is what is wrong with a flag's value, without the flag.
func valueFault(err error) error {
	var e *pflag.InvalidValueError
	if errors.As(err, &e) && e.Unwrap() != nil {
		return e.Unwrap()
	}
	return err
}

// checkConfig finds what is wrong with each thing that a file says by itself, and where; then with its networks as wholes.
// names are of networks that are there beside its own.
func checkConfig(file *config.File, names []string, whole bool, read fileReader) error {
	var errs []error
	for i, n := range file.Networks {
		if n.Name == "" && i == 0 {
			n.Name = "default"
		}
		names = append(names, n.Name)
	}
	if len(file.Networks) == 0 {
		names = append(names, "default")
	}
	settings := file.Settings()
	slices.SortStableFunc(settings, func(a, b config.Setting) int { return cmp.Or(a.Line-b.Line, a.Column-b.Column) })
	for _, s := range settings {
		if err := checkSetting(s, names, read); err != nil {
			errs = append(errs, file.Fault(s, err))
		}
	}
	for i := 1; i < len(file.Networks); i++ {
		if file.Networks[i].Name == "" {
			errs = append(errs, file.NetworkFault(i, errors.New("a network behind the first needs a name")))
		}
	}
	if errs == nil && whole {
		errs = checkNetworks(file, read)
	}
	slices.SortStableFunc(errs, func(a, b error) int { return line(a) - line(b) })
	const most = 10 // as in package config
	if more := len(errs) - most; more > 0 {
		errs = append(errs[:most:most], fmt.Errorf("and %d more faults", more))
	}
	return errors.Join(errs...)
}

func line(err error) int {
	var e *config.Error
	if errors.As(err, &e) {
		return e.Line
	}
	return 0
}

// checkSetting has the flags' own readers read one value alone.
func checkSetting(s config.Setting, networks []string, read fileReader) (err error) {
	defer func() { // which flag it is in says its line
		if err == nil {
			return
		}
		what := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "-p: "), "--dns-record: ")
		for _, head := range []string{"--" + s.Flag + " " + s.Value + ": ", "--" + s.Flag + ": "} {
			what = strings.TrimPrefix(what, head)
		}
		if !strings.Contains(what, s.Value) || s.Value == "" {
			what = fmt.Sprintf("%.60q: %s", s.Value, what)
		}
		err = errors.New(what)
	}()
	var f serveFlags
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.add(fs)
	if err := fs.Set(s.Flag, s.Value); err != nil {
		return valueFault(err)
	}
	if s.Flag == "name" && s.Value == "" {
		return checkName("")
	}
	for i, framing := range framings {
		for _, a := range *f.addrs[i] {
			at, _, err := framing.parse(a)
			if err != nil {
				return err
			}
			if name, ok := at.options["network"]; ok && !slices.Contains(networks, name) {
				return fmt.Errorf("no network %q in the file: there is %s", name, strings.Join(networks, ", "))
			}
		}
	}
	f.n.policy.read = read
	if err = f.flowLog.check(); err == nil {
		_, err = f.n.config(io.Discard)
	}
	var usage usageError
	if errors.As(err, &usage) {
		err = usage.error
	}
	return err
}

// checkNetworks makes each of a file's networks, which opens nothing, and says what their values are wrong in together.
func checkNetworks(file *config.File, read fileReader) (errs []error) {
	var f serveFlags
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.add(fs)
	if err := applyConfig(file, fs); err != nil {
		return []error{err}
	}
	f.n.policy.read = read
	first, err := f.n.config(io.Discard)
	if err != nil {
		return []error{file.NetworkFault(0, err)}
	}
	plans := []plan{{cfg: first, policy: f.n.chosen}}
	seen := map[string]bool{nameOf(first): true}
	for i, spec := range *f.networks {
		p, err := parseNetwork(spec, fs, io.Discard, read)
		if err == nil && seen[p.cfg.Name] {
			err = fmt.Errorf("there is a network %s already", p.cfg.Name)
		}
		if err != nil {
			errs = append(errs, file.NetworkFault(i+1, err))
			continue
		}
		seen[p.cfg.Name] = true
		plans = append(plans, p)
	}
	if errs != nil {
		return errs
	}
	for i, p := range plans {
		if _, err := p.whole(); err != nil {
			errs = append(errs, file.NetworkFault(i, err))
		}
	}
	return errs
}

// whole is the plan's configuration with all defaults.
func (p plan) whole() (backend.Config, error) {
	c := p.cfg
	c.StateDir, c.Forwards, c.Memory = "", nil, nil // nothing is read, written or opened, and what the process has is left alone
	c.Logger = slog.New(slog.DiscardHandler)
	n, err := backend.New(c)
	if err != nil {
		return c, err
	}
	c = n.Config()
	c.StateDir, c.Forwards, c.Memory = p.cfg.StateDir, p.cfg.Forwards, p.cfg.Memory
	return c, n.Close()
}

func configCommand() *cobra.Command {
	check := &cobra.Command{Use: "check FILE", Short: "Say what is wrong with a configuration file, and where", Args: args(cobra.ExactArgs(1)),
		Long: `Say what is wrong with a configuration file, each fault with its line. Nothing is opened, and no daemon asked; files that
it names are read. FILE may be -, for standard input. Exit status: 0 if nothing is wrong, 2 if something is.`,
		RunE: func(_ *cobra.Command, a []string) error {
			f, err := readConfig(a[0])
			if err == nil {
				if err = checkConfig(f, nil, true, nil); err != nil {
					err = usageError{err}
				}
			}
			return err
		}}
	var f serveFlags
	show := &cobra.Command{Use: "print [--config FILE] [FLAG]...", Short: "Print what serve would run with, as a configuration file", Args: args(cobra.NoArgs),
		Long: `Print what 'vmnetd serve' would run with, given the same file and flags, with its defaults. What is printed is a file for
--config. Limits are there that were set; 'vmnetd limits' shows all. What serve finds out as it starts is not: the sandbox's
means, the host's resolvers, free ports for port 0.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.readFile(c.Flags()); err != nil {
				return err
			}
			file, err := f.inForce(c.Flags())
			if err == nil {
				_, err = io.WriteString(c.OutOrStdout(), file.String())
			}
			return err
		}}
	f.add(show.Flags())
	return group("config", "Check and print configuration files", `Check and print configuration files: what 'vmnetd serve --config FILE' reads.`, check, show)
}

// inForce is the file that says all that the flags come to.
func (f *serveFlags) inForce(fs *pflag.FlagSet) (*config.File, error) {
	plans, err := f.plans(fs, io.Discard)
	if err != nil {
		return nil, err
	}
	return f.fileOf(plans)
}

// plans are the networks that the flags come to, the first one's first.
func (f *serveFlags) plans(fs *pflag.FlagSet, log io.Writer) ([]plan, error) {
	f.n.policy.read = f.files
	first, err := f.n.config(log)
	if err != nil {
		return nil, err
	}
	more, err := others(*f.networks, fs, first, log, f.files)
	if err != nil {
		return nil, err
	}
	return append([]plan{{cfg: first, policy: f.n.chosen}}, more...), nil
}

// fileOf is the file that says what the flags come to.
func (f *serveFlags) fileOf(plans []plan) (*config.File, error) {
	out := &config.File{Control: controlPath(f.control), API: f.api.specs, Memory: f.n.memory.String(), Pprof: &f.n.profile,
		Log:     config.Log{Level: strings.ToLower(f.n.logLevel.String()), Format: f.n.logFormat},
		Sandbox: config.Sandbox{Mode: f.box.mode.String(), Folders: f.box.folders, CoreDumps: &f.box.coreDumps, User: f.box.user}}
	out.FlowLog = f.flowLog.file()
	for _, p := range plans {
		n, err := p.file()
		if err != nil {
			return nil, usageError{err}
		}
		out.Networks = append(out.Networks, n)
	}
	any := false
	for i, framing := range framings {
		for _, a := range *f.addrs[i] {
			if _, _, err := framing.parse(a); err != nil {
				return nil, usagef("--%s %s: %w", framing.name, a, err)
			}
			if err := checkNetwork(a, plans); err != nil {
				return nil, usagef("--%s %s: %w", framing.name, a, err)
			}
			*doorsOf(out, framing) = append(*doorsOf(out, framing), a)
			any = true
		}
	}
	if !any {
		out.Doors.QEMU = []string{defaultDoor(runtimeDir())}
	}
	return out, nil
}

// defaultDoor is where guests of QEMU plug in when no flag says where.
func defaultDoor(dir string) string { return "unix:" + qemuEscape(filepath.Join(dir, "qemu.sock")) }

// file is the network as a file says it.
func (p plan) file() (config.Network, error) {
	c, err := p.whole()
	if err != nil {
		return config.Network{}, err
	}
	n := config.Network{Name: c.Name, Net: c.Prefix4.String(), Gateway: c.Gateway4.String(), DNSAddr: c.DNS4.String(), First: c.First4.String(),
		Net6: c.Prefix6.String(), Gateway6: c.Gateway6.String(), DNSAddr6: c.DNS6.String(), MTU: mtuOf(c).String(), Domain: c.Domain, Search: c.Search,
		Resolver: texts(c.Resolvers), Forward: texts(c.Forwards), DNSRecord: texts(c.Records), NoHostLoopback: &c.NoHostLoopback, OpenLinkLocal: texts(c.OpenLinkLocal), Route: texts(c.Routes),
		Isolate: &c.Isolate, StrictLeases: &c.StrictLeases, StateDir: c.StateDir, Limits: limitTexts(p.cfg.Limits)}
	for mac, addrs := range c.Static {
		if n.Static == nil {
			n.Static = map[string][]string{}
		}
		n.Static[mac] = texts(addrs)
	}
	for mac, l := range p.cfg.GuestLimits {
		if n.GuestLimits == nil {
			n.GuestLimits = map[string]map[string]string{}
		}
		n.GuestLimits[mac] = limitTexts(l)
	}
	n.Impair = impairTexts(&c)
	audit := p.policy.audit != nil
	n.Policy.Audit = &audit
	preset := p.policy.doc.Preset
	if preset == policy.NoPreset {
		preset = policy.Open
	}
	if doc := p.policy.doc.String(); strings.Count(doc, "\n") > 1 || doc != "" && p.policy.doc.Preset == policy.NoPreset {
		n.Policy.Rules = doc
	} else {
		n.Policy.Preset = preset.String()
	}
	return n, nil
}

// mtuOf is mtuValue.set's inverse.
func mtuOf(c backend.Config) *mtuValue {
	v := mtuValue(c.MTU)
	switch {
	case c.LargeNICs:
		v = mtuValue(c.LargeMTU)
	case c.LargeMTU != 0:
		v = 0
	}
	return &v
}

func texts[T interface {
	netip.Addr | netip.AddrPort | netip.Prefix | portforward.Rule | backend.DNSRecord
	fmt.Stringer
}](list []T) (s []string) {
	for _, x := range list {
		s = append(s, x.String())
	}
	return s
}

// limitTexts are the limits that were set. That of all conversations is set by the daemon as well, from what this machine
// lets it have.
func limitTexts(l flows.Limits) map[string]string {
	if limit, ok := fileLimit(); ok && l.Total == conversations(limit) {
		l.Total = 0
	}
	m := map[string]string{}
	for _, x := range flows.AllLimits() {
		if v := x.Of(&l); v != 0 {
			m[x.Name] = x.Format(v)
			var back flows.Limits // it may have been rounded for people
			if back.Set(x.Name, m[x.Name]) != nil || x.Of(&back) != v {
				m[x.Name] = strconv.Itoa(v)
			}
		}
	}
	if len(m) == 0 {
		return nil
	}
	return m
}
