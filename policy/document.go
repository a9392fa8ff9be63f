package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Preset is what a policy ends in, behind its own rules.
type Preset uint8

const (
	NoPreset Preset = iota // of a network: Open; of a guest: the network's own rules follow
	Open                   // everything but link-local addresses
	Sandbox                // what the rules name, and nothing else
	Offline                // other guests, local names and forwards
	Restrict               // forwards only
)

var presets = []string{"", "open", "sandbox", "offline", "restrict"}

func (p Preset) String() string { return presets[min(int(p), len(presets)-1)] }

// MarshalText makes a Preset its name in JSON and YAML.
func (p Preset) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is MarshalText's inverse.
func (p *Preset) UnmarshalText(b []byte) error { return unmarshal(p, "preset", presets, b) }

// FirstBytes is how strictly the first bytes of conversations are looked at that a rule with a name let in.
type FirstBytes uint8

const (
	Default FirstBytes = iota // the preset's: Strict in Sandbox, Offline and Restrict, else Loose
	Strict                    // they must name who was let in
	Loose                     // they must not name somebody else
	Off                       // they are not looked at, but where a rule's check says so
)

var firstBytes = []string{"", "strict", "loose", "off"}

func (f FirstBytes) String() string { return firstBytes[min(int(f), len(firstBytes)-1)] }

// MarshalText makes a FirstBytes its name in JSON and YAML.
func (f FirstBytes) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText is MarshalText's inverse.
func (f *FirstBytes) UnmarshalText(b []byte) error {
	return unmarshal(f, "first-bytes", firstBytes, b)
}

// Refusal is what a guest is told of a name that it may not resolve.
type Refusal uint8

const (
	UsualRefusal Refusal = iota // Refused
	NXDomain                    // as if it did not exist: clients give up at once, and keep it
	Refused                     // clients may ask their next resolver, and people see that it was refused
)

var refusals = []string{"", "nxdomain", "refused"}

func (r Refusal) String() string { return refusals[min(int(r), len(refusals)-1)] }

// MarshalText makes a Refusal its name in JSON and YAML.
func (r Refusal) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is MarshalText's inverse.
func (r *Refusal) UnmarshalText(b []byte) error { return unmarshal(r, "names", refusals, b) }

// Set is an ordered list of rules, of which the first that matches decides, and what holds where none does.
type Set struct {
	Preset     Preset     `json:"preset,omitempty" yaml:"preset,omitempty"`
	FirstBytes FirstBytes `json:"first_bytes,omitempty" yaml:"first_bytes,omitempty"`
	Names      Refusal    `json:"names,omitempty" yaml:"names,omitempty"`
	// Default takes the place of the preset's last word, for what guests begin.
	Default Action `json:"default,omitempty" yaml:"default,omitempty"`
	Rules   []Rule `json:"rules,omitempty" yaml:"rules,omitempty"`
}

// GuestSet is the rules of some guests.
type GuestSet struct {
	Guest string `json:"guest" yaml:"guest"` // a pattern, as Rule.Guest
	Set   `yaml:",inline"`
}

// Document is a whole policy: the network's, and those of guests that have their own. Of these the first whose pattern
// matches is the guest's; if it has no preset, the network's rules follow behind its own.
type Document struct {
	Set    `yaml:",inline"`
	Guests []GuestSet `json:"guests,omitempty" yaml:"guests,omitempty"`
}

// String is the document as Parse reads it. Comments on lines of their own are not part of it.
func (d Document) String() string {
	var b strings.Builder
	d.Set.print(&b, "")
	for i, g := range d.Guests {
		if i > 0 || b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString("guest " + g.Guest + "\n")
		g.Set.print(&b, "  ")
	}
	return b.String()
}

func (s Set) print(b *strings.Builder, indent string) {
	line := func(key, value string) {
		if value != "" {
			b.WriteString(indent + key + " " + value + "\n")
		}
	}
	line("preset", s.Preset.String())
	line("first-bytes", s.FirstBytes.String())
	line("names", s.Names.String())
	for _, r := range s.Rules {
		b.WriteString(indent + r.String() + "\n")
	}
	line("default", s.Default.String())
}

const (
	// mostErrors is how many faults of one document are told at a time.
	mostErrors = 10
	// mostRules bounds one document: blocklists by name have 100,000 lines, which cost their memory (half a KiB each) and no
	// time. Beyond that a mistake is more likely.
	mostRules = 1 << 17
)

// Parse reads a document, one thing a line:
//
//	# what the build machines may do
//	preset sandbox
//	allow tcp *.debian.org:80,443
//	allow udp 10.0.0.123:123
//
//	guest web*
//	  preset open
//	  reject any private
//
//	guest 52:54:00:12:34:56
//	  allow tcp host:5432
//
// Beside rules there are preset NAME, default VERDICT, first-bytes strict|loose|off and names nxdomain|refused. What is
// behind guest PATTERN is those guests'. All faults are told, each as an *Error.
func Parse(text string) (Document, error) {
	var d Document
	var errs []error
	set := &d.Set
	n := 0
	fail := func(line int, s string, e *Error) {
		e.Line, e.Column = line, column(s, e.off)
		errs = append(errs, e)
	}
	for s := range strings.SplitSeq(text, "\n") {
		n++
		s = strings.TrimSuffix(s, "\r")
		w, _, err := split(s)
		if err == nil && len(w) == 0 {
			continue
		}
		if err == nil {
			if w[0].s == "guest" {
				// The section is begun even if its pattern is wrong: the network gets nothing that was not meant for it.
				g := GuestSet{}
				if len(w) != 2 {
					err = at(w[0].off, "guest with "+fmt.Sprint(len(w)-1)+" patterns", "one: an id, a name or a MAC, with * for any part of it")
				} else if err = validGuest(w[1].s); err != nil {
					err.off += w[1].off
				} else {
					g.Guest = w[1].s
				}
				d.Guests = append(d.Guests, g)
				set = &d.Guests[len(d.Guests)-1].Set
			} else {
				err = set.line(s, w)
			}
		}
		if err != nil {
			if fail(n, s, err); len(errs) == mostErrors {
				return Document{}, errors.Join(errs...)
			}
		}
	}
	if len(errs) > 0 {
		return Document{}, errors.Join(errs...)
	}
	return d, nil
}

func (s *Set) line(text string, w []word) *Error {
	setting := func(v *uint8, names []string) *Error {
		i := -1
		if len(w) == 2 {
			i = slices.Index(names[1:], w[1].s) + 1
		}
		switch {
		case i < 1:
			return at(w[min(1, len(w)-1)].off, w[0].s+" "+quote(strings.TrimSpace(text)), "one of "+oneOf(names))
		case *v != 0:
			return at(w[0].off, "a second "+w[0].s, "one in each part of the policy")
		}
		*v = uint8(i)
		return nil
	}
	switch w[0].s {
	case "preset":
		return setting((*uint8)(&s.Preset), presets)
	case "default":
		return setting((*uint8)(&s.Default), actions)
	case "first-bytes":
		return setting((*uint8)(&s.FirstBytes), firstBytes)
	case "names":
		return setting((*uint8)(&s.Names), refusals)
	}
	if !slices.Contains(actions, w[0].s) {
		return at(w[0].off, quote(w[0].s), oneOf(actions)+" to begin a rule, or preset, default, first-bytes, names or guest")
	}
	r, err := parseRule(text)
	if err != nil {
		return err
	}
	s.Rules = append(s.Rules, r)
	return nil
}

// Validate says what is wrong with a document that was not parsed.
func (d Document) Validate() error {
	_, err := d.normalize()
	return err
}

// normalize makes a document what its text would be read as.
func (d Document) normalize() (Document, error) {
	total := 0
	one := func(where string, s Set) (Set, error) {
		if int(s.Preset) >= len(presets) || int(s.FirstBytes) >= len(firstBytes) || int(s.Names) >= len(refusals) || int(s.Default) >= len(actions) {
			return s, fmt.Errorf("policy: %sa preset, default, first-bytes or names that is none: want this package's constants", where)
		}
		if total += len(s.Rules); total > mostRules {
			return s, fmt.Errorf("policy: more than %d rules: want prefixes, *.example.com or a preset", mostRules)
		}
		s.Rules = slices.Clone(s.Rules)
		for i := range s.Rules {
			r := &s.Rules[i]
			text := r.String()
			if err := r.normalize(); err != nil {
				err.Text = text
				return s, fmt.Errorf("%srule %d: %w", where, i+1, err)
			}
		}
		return s, nil
	}
	var err error
	if d.Set, err = one("", d.Set); err != nil {
		return d, err
	}
	d.Guests = slices.Clone(d.Guests)
	for i := range d.Guests {
		g := &d.Guests[i]
		if err := validGuest(g.Guest); err != nil {
			return d, fmt.Errorf("policy: part %d for guests: %w", i+1, err)
		}
		if g.Set, err = one("guest "+g.Guest+": ", g.Set); err != nil {
			return d, err
		}
	}
	return d, nil
}
