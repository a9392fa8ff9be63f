package config

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
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

type place struct{ line, column int }

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
	f := &File{name: name, at: map[string]place{}}
	whole := func(format string, args ...any) (*File, error) {
		return nil, f.fault(place{}, fmt.Sprintf(format, args...))
	}
	if len(text) > MaxSize {
		return whole("more than %d bytes: put long lists of rules in a policy's file", MaxSize)
	}
	if !utf8.Valid(text) {
		return whole("not UTF-8")
	}
	s := strings.ReplaceAll(strings.TrimPrefix(string(text), "\ufeff"), "\r\n", "\n")
	f.lines = strings.Split(s, "\n")
	for i, line := range f.lines {
		if len(line) > maxLine {
			return nil, f.fault(place{i + 1, 1}, fmt.Sprintf("a line of more than %d bytes", maxLine))
		}
		for j, r := range []rune(line) {
			if r < ' ' && r != '\t' || r == '\u007f' {
				return nil, f.fault(place{i + 1, j + 1}, fmt.Sprintf("a control character, %U", r))
			}
		}
	}
	if strings.Count(s, "[")+strings.Count(s, "{") > maxBrackets {
		return whole("more than %d brackets: write lists with dashes", maxBrackets)
	}
	if strings.Count(s, "?") > maxQuestions {
		return whole("more than %d question marks", maxQuestions)
	}
	d := &decoder{f: f}
	tree, err := parseYAML(s)
	if err != nil {
		d.syntax(err)
		return nil, d.err()
	}
	docs := 0
	for _, doc := range tree.Docs {
		if doc.Body == nil {
			continue
		}
		if docs++; docs > 1 {
			d.fail(doc.Body, "a second document: a file has one")
			break
		}
		d.struc(doc.Body, reflect.ValueOf(f).Elem(), "", "the file")
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return f, nil
}

// parseYAML makes of a bug in the library that a file brings out an error: nothing has been kept of the file by then.
func parseYAML(s string) (tree *ast.File, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("no YAML that can be read: %v", r)
		}
	}()
	return parser.ParseBytes([]byte(s), 0, parser.AllowDuplicateMapKey()) // the decoder says better where the first is
}

type decoder struct {
	f      *File
	faults []error
	more   int
}

func (d *decoder) err() error {
	if d.more > 0 {
		d.faults = append(d.faults, &Error{File: d.f.name, What: fmt.Sprintf("and %d more faults", d.more)})
		d.more = 0
	}
	return errors.Join(d.faults...)
}

func (d *decoder) fail(n ast.Node, format string, args ...any) {
	if len(d.faults) == maxFaults {
		d.more++
		return
	}
	d.faults = append(d.faults, d.f.fault(placeOf(n), fmt.Sprintf(format, args...)))
}

func (d *decoder) syntax(err error) {
	var e yaml.Error
	at := place{}
	what := err.Error()
	if errors.As(err, &e) {
		what = e.GetMessage()
		if t := e.GetToken(); t != nil && t.Position != nil {
			at = place{t.Position.Line, t.Position.Column}
		}
	}
	d.faults = append(d.faults, d.f.fault(at, what))
}

func (f *File) fault(p place, what string) error {
	e := &Error{File: f.name, What: what}
	if p.line > 0 && p.line <= len(f.lines) {
		e.Line, e.Column, e.Text = p.line, max(p.column, 1), f.lines[p.line-1]
	}
	return e
}

func placeOf(n ast.Node) place {
	t := n.GetToken()
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 { // its own is that of a colon
		t = m.Values[0].Key.GetToken()
	}
	if m, ok := n.(*ast.MappingValueNode); ok {
		t = m.Key.GetToken()
	}
	if t == nil || t.Position == nil {
		return place{}
	}
	return place{t.Position.Line, t.Position.Column}
}

// entries calls each for the entries of a mapping, once each. what it is the mapping of is for errors.
func (d *decoder) entries(n ast.Node, what string, each func(key ast.Node, name string, value ast.Node)) {
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		d.fail(n, "%s: want keys with values, KEY: VALUE, not %s", what, kind(n))
		return
	}
	seen := map[string]place{}
	for _, v := range values {
		name, ok := text(v.Key)
		if !ok {
			d.fail(v.Key, "a key of %s: want a word, not %s", what, kind(v.Key))
			continue
		}
		if first, twice := seen[name]; twice {
			d.fail(v.Key, "%q is there twice: first in line %d", name, first.line)
			continue
		}
		seen[name] = placeOf(v.Key)
		each(v.Key, name, v.Value)
	}
}

func (d *decoder) struc(n ast.Node, v reflect.Value, path, what string) {
	known := fields(v.Type())
	var words []string
	for _, k := range known {
		words = append(words, k.key)
	}
	d.entries(n, what, func(key ast.Node, name string, value ast.Node) {
		for i, k := range known {
			if k.key == name {
				d.value(key, value, v.Field(i), under(path, name), name)
				return
			}
		}
		if len(d.faults) == maxFaults { // the nearest word takes time
			d.more++
			return
		}
		d.fail(key, "no key %.40q in %s: %s", name, what, DidYouMean(name, words))
	})
}

// value reads what stands behind a key, or behind a dash of its list.
func (d *decoder) value(key, n ast.Node, v reflect.Value, path, what string) {
	if n == nil || n.Type() == ast.NullType {
		d.fail(key, "%s has no value: give it one or leave it out", what)
		return
	}
	d.f.at[path] = placeOf(n)
	switch to := v.Addr().Interface().(type) {
	case *string:
		*to = d.text(n, what)
	case **bool:
		s, ok := text(n)
		if !ok || s != "true" && s != "false" {
			d.fail(n, "%s: want true or false, not %s", what, kind(n))
			return
		}
		b := s == "true"
		*to = &b
	case *[]string:
		*to = d.list(n, path, what)
	case *[]Network:
		d.items(n, what, func(i int, node ast.Node) {
			*to = append(*to, Network{})
			d.f.at[item(path, i)] = placeOf(node)
			d.struc(node, reflect.ValueOf(&(*to)[i]).Elem(), item(path, i), "a network")
		})
	case *map[string]string:
		*to = map[string]string{}
		d.stringMap(n, *to, path, what)
	case *map[string][]string:
		*to = map[string][]string{}
		d.entries(n, what, func(key ast.Node, name string, value ast.Node) {
			if value == nil || value.Type() == ast.NullType {
				d.fail(key, "%s has no value: give it one or leave it out", name)
				return
			}
			d.f.at[under(path, name)] = placeOf(key)
			(*to)[name] = d.list(value, under(path, name), name)
		})
	case *map[string]map[string]string:
		*to = map[string]map[string]string{}
		d.entries(n, what, func(key ast.Node, name string, value ast.Node) {
			if value == nil || value.Type() == ast.NullType {
				d.fail(key, "%s has no value: give it one or leave it out", name)
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

func (d *decoder) stringMap(n ast.Node, to map[string]string, path, what string) {
	d.entries(n, what, func(key ast.Node, name string, value ast.Node) {
		var s string
		d.value(key, value, reflect.ValueOf(&s).Elem(), under(path, name), name)
		d.f.at[under(path, name)] = placeOf(key) // the name may be wrong, too
		to[name] = s
	})
}

func (d *decoder) items(n ast.Node, what string, each func(i int, n ast.Node)) {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fail(n, "%s: want a list, of lines that begin with a dash or in [ ], not %s", what, kind(n))
		return
	}
	for i, v := range s.Values {
		if v == nil || v.Type() == ast.NullType {
			d.fail(n, "%s: number %d of the list has no value", what, i+1)
			return
		}
		each(i, v)
	}
}

func (d *decoder) list(n ast.Node, path, what string) []string {
	list := []string{}
	d.items(n, what, func(i int, n ast.Node) {
		d.f.at[item(path, i)] = placeOf(n)
		list = append(list, d.text(n, what))
	})
	return list
}

func (d *decoder) text(n ast.Node, what string) string {
	s, ok := text(n)
	if !ok {
		d.fail(n, "%s: want one value, not %s", what, kind(n))
	}
	return s
}

// text is a scalar as it is written: 010 is no eight, and 2222:22 no number of minutes.
func text(n ast.Node) (string, bool) {
	switch x := n.(type) {
	case *ast.StringNode:
		return x.Value, true
	case *ast.LiteralNode:
		return x.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return strings.TrimSpace(n.GetToken().Value), true
	}
	return "", false
}

func kind(n ast.Node) string {
	if s, ok := text(n); ok {
		return fmt.Sprintf("%.40q", s)
	}
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys with values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
		return "an anchor or what refers to one: say it in full"
	case *ast.TagNode:
		return "a tag"
	}
	return "a " + strings.ToLower(n.Type().String())
}
