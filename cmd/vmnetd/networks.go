package main

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend"
)

// plan is a network before it is made.
type plan struct {
	cfg    backend.Config
	policy chosenPolicy
}

const networkUsage = "one more `NETWORK`, NAME[,FLAG[=VALUE]]...: its name and flags as here, without dashes; what it does not say it has as the " +
	"first one, but for prefixes, addresses, static leases, forwards and DNS records. Doors have ,network=NAME; may be repeated"

// ofDaemon are the flags that are the daemon's and not one network's.
var ofDaemon = []string{"pprof", "memory", "log-level", "log-format"}

// own are the flags that each network says for itself or has the defaults of. Two networks may have the same prefix:
// they do not know of one another.
var own = []string{"name", "net", "gateway", "dns-addr", "first", "net6", "gateway6", "dns-addr6", "static", "forward", "dns-record"}

// others makes plans of what --network says, beside the first network, whose flags are in base.
func others(specs []string, base *pflag.FlagSet, first backend.Config, log io.Writer, read fileReader) ([]plan, error) {
	names := []string{nameOf(first)}
	var plans []plan
	for _, spec := range specs {
		p, err := parseNetwork(spec, base, log, read)
		if err != nil {
			return nil, usagef("--network %s: %w", spec, err)
		}
		if slices.Contains(names, p.cfg.Name) {
			return nil, usagef("--network %s: there is a network %s already: %s", spec, p.cfg.Name, strings.Join(names, ", "))
		}
		names = append(names, p.cfg.Name)
		plans = append(plans, p)
	}
	return plans, nil
}

func parseNetwork(spec string, base *pflag.FlagSet, log io.Writer, read fileReader) (plan, error) {
	var n networkFlags
	n.policy.read = read
	fs := pflag.NewFlagSet("network", pflag.ContinueOnError)
	n.add(fs, slog.LevelInfo)
	parts := splitCommas(spec)
	if strings.Contains(parts[0], "=") {
		return plan{}, fmt.Errorf("want a name first, as in lab,net=10.7.0.0/24,isolate")
	}
	n.cfg.Name = parts[0]
	if err := checkName(n.cfg.Name); err != nil {
		return plan{}, err
	}
	for _, o := range parts[1:] {
		name, value, given := strings.Cut(o, "=")
		f := fs.Lookup(name)
		switch {
		case f == nil:
			return plan{}, fmt.Errorf("no flag of a network is called %q; a comma in a value is written twice", name)
		case slices.Contains(ofDaemon, f.Name):
			return plan{}, fmt.Errorf("%s is the whole daemon's: --%s", name, f.Name)
		case f.Name == "name":
			return plan{}, fmt.Errorf("its name stands first: %s", n.cfg.Name)
		case !given && f.NoOptDefVal == "":
			return plan{}, fmt.Errorf("%s needs a value: %s=%s", name, name, strings.ToUpper(f.Value.Type()))
		case !given:
			value = f.NoOptDefVal
		}
		if _, list := f.Value.(pflag.SliceValue); f.Changed && !list {
			return plan{}, fmt.Errorf("%s is there twice", name)
		}
		if err := fs.Set(f.Name, value); err != nil {
			return plan{}, err
		}
	}
	ownPolicy := slices.ContainsFunc(policyFlagNames, func(name string) bool { return fs.Lookup(name).Changed })
	var failed error
	base.Visit(func(b *pflag.Flag) {
		f := fs.Lookup(b.Name)
		if f == nil || f.Changed || slices.Contains(own, b.Name) || ownPolicy && slices.Contains(policyFlagNames, b.Name) {
			return
		}
		err := error(nil)
		if list, ok := b.Value.(pflag.SliceValue); ok {
			err = f.Value.(pflag.SliceValue).Replace(list.GetSlice())
		} else {
			err = fs.Set(b.Name, b.Value.String())
		}
		if err != nil && failed == nil {
			failed = err
		}
	})
	if failed != nil {
		return plan{}, failed
	}
	cfg, err := n.config(log)
	return plan{cfg: cfg, policy: n.chosen}, err
}

// checkName keeps a name usable as one word of a command line, and as part of a file's name in --state-dir.
func checkName(name string) error {
	if name == "" || name[0] == '.' || name[0] == '-' || len(name) > 64 || strings.ContainsFunc(name, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", r)
	}) {
		return fmt.Errorf("a network's name %q: want up to 64 letters, digits, dots, - and _", name)
	}
	return nil
}

// nameOf is a network's name before it is made.
func nameOf(c backend.Config) string {
	if c.Name == "" {
		return "default"
	}
	return c.Name
}

// names are the networks' of the daemon, the first one's first.
func names(plans []plan) []string {
	var list []string
	for _, p := range plans {
		list = append(list, nameOf(p.cfg))
	}
	return list
}

// network is the network that a name means; none means the first.
func (d *daemon) network(name string) *backend.Network {
	if n := d.named(name); n != nil {
		return n
	}
	return d.net
}

// checkNetwork says whether a door's address names a network that will be there.
func checkNetwork(addr string, plans []plan) error {
	a, err := parseAddress(addr)
	if err != nil {
		return nil // openDoor says so
	}
	name, ok := a.options["network"]
	if known := names(plans); ok && !slices.Contains(known, name) {
		return fmt.Errorf("no network %q: there is %s; --network %s makes one", name, strings.Join(known, ", "), name)
	}
	return nil
}
