package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/policy"
)

// policyFlags are the flags of what guests may reach.
type policyFlags struct {
	preset   presetValue
	restrict switchValue
	rules    []string
	file     string
	text     string // a file's own
	audit    bool
	read     fileReader // of file; nil: as it is
}

// policyFlagNames are those that say together which policy it is: a network that says one of them has none of the first
// network's.
var policyFlagNames = []string{"policy", "restrict", "allow", "policy-file", "policy-rules"}

func (f *policyFlags) add(fs *pflag.FlagSet) {
	fs.Var(&f.preset, "policy", "what guests reach, a `PRESET`: open (default), sandbox for what --allow and --policy-file name and nothing else, offline for one another and forwards, restrict for forwards only")
	fs.StringArrayVar(&f.rules, "allow", nil, "`RULE` before the policy's own: example.com, 'tcp *.debian.org:80,443', or with another verdict, 'reject any private'; may be repeated, the first that matches decides")
	fs.StringVar(&f.file, "policy-file", "", "`FILE` of rules, as 'vmnetd policy show' prints them, behind those of --allow")
	fs.StringVar(&f.text, "policy-rules", "", "`RULES` as in a --policy-file, itself")
	fs.MarkHidden("policy-rules") // of a configuration file: a command line has --allow
	fs.Var(&f.restrict, "restrict", "`on` as QEMU's restrict=on: --policy restrict")
	fs.Lookup("restrict").NoOptDefVal = "on"
	fs.BoolVar(&f.audit, "policy-audit", false, "a log line for each of the policy's decisions")
}

// presetNames are the presets.
var presetNames = func() (list []string) {
	for p := policy.Open; p.String() != "" && !slices.Contains(list, p.String()); p++ {
		list = append(list, p.String())
	}
	return list
}()

type presetValue struct{ policy.Preset }

func (v *presetValue) Type() string { return "preset" }

func (v *presetValue) Set(s string) error {
	if s == "" || v.UnmarshalText([]byte(s)) != nil {
		return errors.New(didYouMean(s, presetNames))
	}
	return nil
}

// switchValue is a boolean as QEMU writes it.
type switchValue bool

func (v *switchValue) Type() string { return "switch" }

func (v *switchValue) String() string {
	if *v {
		return "on"
	}
	return "off"
}

func (v *switchValue) Set(s string) error {
	switch s {
	case "on", "yes", "y", "true":
		*v = true
	case "off", "no", "n", "false":
		*v = false
	default:
		return errors.New("want on or off")
	}
	return nil
}

// document is what the flags make.
func (f *policyFlags) document() (policy.Document, error) {
	var d policy.Document
	from := "--policy-file " + f.file
	if f.text != "" {
		if f.file != "" {
			return d, errors.New("a policy's rules stand in one place: leave out policy-rules or policy-file")
		}
		var err error
		if d, err = parsePolicy(f.text); err != nil {
			return d, err
		}
		from = "policy-rules"
	}
	if f.file != "" {
		b, err := f.read.read(f.file, maxPolicyFile)
		var path *fs.PathError
		if errors.As(err, &path) {
			err = path.Err // its name is said
		}
		if err == nil {
			d, err = parsePolicy(string(b))
		}
		if err != nil {
			return d, fmt.Errorf("--policy-file %s: %w", f.file, err)
		}
	}
	preset := f.preset.Preset
	if f.restrict {
		if preset != policy.NoPreset && preset != policy.Restrict {
			return d, fmt.Errorf("--restrict is --policy restrict, and --policy %s says otherwise: leave one out", preset)
		}
		preset = policy.Restrict
	}
	if preset != policy.NoPreset {
		if d.Preset != policy.NoPreset && d.Preset != preset {
			return d, fmt.Errorf("--policy %s: %s has preset %s: leave one out", preset, from, d.Preset)
		}
		d.Preset = preset
	}
	var rules []policy.Rule
	for _, s := range f.rules {
		r, err := parsePolicyRule(s)
		if err != nil {
			return d, fmt.Errorf("--allow: %w", err)
		}
		rules = append(rules, r)
	}
	d.Rules = append(rules, d.Rules...)
	return d, nil
}

var (
	policyVerdicts = []string{"allow", "reject", "drop", "ask"}
	policyProtos   = []string{"any", "tcp", "udp", "icmp"}
	policyWords    = slices.Concat(policyVerdicts, policyProtos, presetNames, []string{"preset", "default", "first-bytes", "names", "guest", "strict", "loose",
		"off", "nxdomain", "refused", "checked", "unchecked", "tls", "http", "public", "host", "private", "loopback", "link-local", "metadata", "doh"})
)

// parsePolicyRule reads a rule whose verdict, and of a single word the protocol, may be left out.
func parsePolicyRule(s string) (policy.Rule, error) {
	words := strings.Fields(s)
	full := s
	switch {
	case len(words) > 0 && (slices.Contains(policyVerdicts, words[0]) || isNear(words[0], policyVerdicts) && len(words) > 1 && slices.Contains(policyProtos, words[1])):
	case len(words) == 1 && !slices.Contains(policyProtos, words[0]):
		full = "allow any " + s
	default:
		full = "allow " + s
	}
	r, err := policy.ParseRule(full)
	return r, nearWord(err, full)
}

// parsePolicy is policy.Parse with errors that say which word was likely meant.
func parsePolicy(text string) (policy.Document, error) {
	d, err := policy.Parse(text)
	return d, nearWord(err, text)
}

// nearWord adds to the first fault in a text which of a policy's words is nearest, if one is near.
func nearWord(err error, text string) error {
	var e *policy.Error
	if !errors.As(err, &e) || e.Column == 0 {
		return err
	}
	line := e.Text
	if e.Line > 0 {
		line = strings.Split(text, "\n")[e.Line-1]
	}
	runes := []rune(line)
	if e.Column > len(runes) {
		return err
	}
	words := strings.FieldsFunc(string(runes[e.Column-1:]), func(r rune) bool { return r == ' ' || r == '\t' || r == ':' || r == '\r' })
	if len(words) == 0 || slices.Contains(policyWords, words[0]) || !isNear(words[0], policyWords) {
		return err
	}
	return fmt.Errorf("%w; %s", err, didYouMean(words[0], policyWords))
}

func isNear(word string, known []string) bool {
	return strings.HasPrefix(didYouMean(word, known), "did ")
}
