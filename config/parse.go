package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

const (
	// MaxSize bounds a file: a hundred networks with a hundred lines each. Long lists of rules are a policy's file of its own.
	MaxSize = 256 << 10
	// maxLine bounds a line, and with it how deep one can nest.
	maxLine = 4096
	// maxBrackets bounds [ and { that a file has in all: what nests goes down a stack, and nothing here is four deep.
	maxBrackets = 10_000
	// maxQuestions bounds question marks: "? KEY" takes the library time by the square, and no key here is written so.
	maxQuestions = 1000
	// maxFaults is how many are told at a time.
	maxFaults = 10
	// shownRunes is how much of a line is shown: a terminal's width.
	shownRunes = 76
)

// Error is one fault of a file.
type Error struct {
	File         string
	Line, Column int    // from 1, in runes; 0 for the file as a whole
	Text         string // the line
	What         string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.What
	}
	text, mark := e.shown()
	return fmt.Sprintf("%s:%d:%d: %s\n    %s\n    %s^", e.File, e.Line, e.Column, e.What, text, mark)
}

// shown is the line, or what is around the column of a long one, and the blanks that stand before its mark.
func (e *Error) shown() (text, mark string) {
	runes := []rune(e.Text)
	at := min(max(e.Column-1, 0), len(runes))
	if from := at - shownRunes/2; from > 0 && len(runes) > shownRunes {
		runes, at = runes[from:], at-from
	}
	runes = runes[:min(len(runes), shownRunes)]
	for i, r := range runes {
		if !strconv.IsPrint(r) { // a terminal would obey it
			runes[i] = ' '
		}
	}
	return strings.TrimRight(string(runes), " "), strings.Repeat(" ", at)
}

// Parse reads a file. name is for errors, each of which is an *Error; errors.Join has them together.
func Parse(name string, text []byte) (*File, error) {
	f := &File{name: name, at: map[string]Place{}}
	source, root, err := Open(name, text, "put long lists of rules in a policy's file")
	if err != nil {
		return nil, err
	}
	f.lines = source.lines
	if d := (&decoder{source, f}); root.node != nil {
		d.struc(root, reflect.ValueOf(f).Elem(), "", "the file")
	}
	if err := source.Err(); err != nil {
		return nil, err
	}
	return f, nil
}

type decoder struct {
	*Source
	f *File
}

func (f *File) fault(p Place, what string) error {
	return (&Source{name: f.name, lines: f.lines}).Fault(p, what)
}

func (d *decoder) struc(n Value, v reflect.Value, path, what string) {
	known := fields(v.Type())
	var words []string
	for _, k := range known {
		words = append(words, k.key)
	}
	d.Entries(n, what, func(key Value, name string, value Value) {
		for i, k := range known {
			if k.key == name {
				d.value(key, value, v.Field(i), under(path, name), name)
				return
			}
		}
		d.Unknown(key, "key", name, what, words)
	})
}

// value reads what stands behind a key, or behind a dash of its list.
func (d *decoder) value(key, n Value, v reflect.Value, path, what string) {
	if n.None() {
		d.Fail(key.Place(), "%s has no value: give it one or leave it out", what)
		return
	}
	d.f.at[path] = n.Place()
	switch to := v.Addr().Interface().(type) {
	case *string:
		*to = d.text(n, what)
	case **bool:
		s, ok := n.Text()
		if !ok || s != "true" && s != "false" {
			d.Fail(n.Place(), "%s: want true or false, not %s", what, n.Kind())
			return
		}
		b := s == "true"
		*to = &b
	case *[]string:
		*to = d.list(n, path, what)
	case *[]Network:
		d.Items(n, what, func(i int, node Value) {
			*to = append(*to, Network{})
			d.f.at[item(path, i)] = node.Place()
			d.struc(node, reflect.ValueOf(&(*to)[i]).Elem(), item(path, i), "a network")
		})
	case *map[string]string:
		*to = map[string]string{}
		d.stringMap(n, *to, path, what)
	case *map[string][]string:
		*to = map[string][]string{}
		d.Entries(n, what, func(key Value, name string, value Value) {
			if value.None() {
				d.Fail(key.Place(), "%s has no value: give it one or leave it out", name)
				return
			}
			d.f.at[under(path, name)] = key.Place()
			(*to)[name] = d.list(value, under(path, name), name)
		})
	case *map[string]map[string]string:
		*to = map[string]map[string]string{}
		d.Entries(n, what, func(key Value, name string, value Value) {
			if value.None() {
				d.Fail(key.Place(), "%s has no value: give it one or leave it out", name)
				return
			}
			m := map[string]string{}
			(*to)[name] = m
			d.stringMap(value, m, under(path, name), name)
		})
	default:
		d.struc(n, v, path, what)
	}
}

func (d *decoder) stringMap(n Value, to map[string]string, path, what string) {
	d.Entries(n, what, func(key Value, name string, value Value) {
		var s string
		d.value(key, value, reflect.ValueOf(&s).Elem(), under(path, name), name)
		d.f.at[under(path, name)] = key.Place() // the name may be wrong, too
		to[name] = s
	})
}

func (d *decoder) list(n Value, path, what string) []string {
	list := []string{}
	d.Items(n, what, func(i int, n Value) {
		d.f.at[item(path, i)] = n.Place()
		list = append(list, d.text(n, what))
	})
	return list
}

func (d *decoder) text(n Value, what string) string {
	s, ok := n.Text()
	if !ok {
		d.Fail(n.Place(), "%s: want one value, not %s", what, n.Kind())
	}
	return s
}
