package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Source is a text of keys and values as Parse reads it, strict and bounded, and what is found wrong with it. Who reads
// another file with it asks for its entries, items and texts, and says by Fail what else is wrong; Err has all of it.
type Source struct {
	name   string
	lines  []string
	faults []error
	more   int
}

// Place is where something stands, from 1, in runes. The zero Place is the file as a whole.
type Place struct{ Line, Column int }

// Value is a part of a Source: one value, keys with values, or a list.
type Value struct{ node ast.Node }

// Open reads text as one document, which has no Value if it is empty. name is for errors, long what to do about a file
// that is too large. What is wrong with a text that can be read all the same is in Source.Err.
func Open(name string, text []byte, long string) (*Source, Value, error) {
	s := &Source{name: name}
	fail := func(p Place, format string, args ...any) (*Source, Value, error) {
		s.Fail(p, format, args...)
		return s, Value{}, s.Err()
	}
	if len(text) > MaxSize {
		return fail(Place{}, "more than %d bytes: %s", MaxSize, long)
	}
	if !utf8.Valid(text) {
		return fail(Place{}, "not UTF-8")
	}
	all := strings.ReplaceAll(strings.TrimPrefix(string(text), "\ufeff"), "\r\n", "\n")
	s.lines = strings.Split(all, "\n")
	for i, line := range s.lines {
		if len(line) > maxLine {
			return fail(Place{i + 1, 1}, "a line of more than %d bytes", maxLine)
		}
		for j, r := range []rune(line) {
			if r < ' ' && r != '\t' || r == '\u007f' {
				return fail(Place{i + 1, j + 1}, "a control character, %U", r)
			}
		}
	}
	if strings.Count(all, "[")+strings.Count(all, "{") > maxBrackets {
		return fail(Place{}, "more than %d brackets: write lists with dashes", maxBrackets)
	}
	if strings.Count(all, "?") > maxQuestions {
		return fail(Place{}, "more than %d question marks", maxQuestions)
	}
	tree, err := parseYAML(all)
	if err != nil {
		s.syntax(err)
		return s, Value{}, s.Err()
	}
	var root Value
	for _, doc := range tree.Docs {
		if doc.Body == nil {
			continue
		}
		if root.node != nil {
			s.Fail(placeOf(doc.Body), "a second document: a file has one")
			break
		}
		root.node = doc.Body
	}
	return s, root, nil
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

// Err is all that was found wrong, each an *Error.
func (s *Source) Err() error {
	faults := s.faults
	if s.more > 0 {
		faults = append(slices.Clone(faults), &Error{File: s.name, What: fmt.Sprintf("and %d more faults", s.more)})
	}
	return errors.Join(faults...)
}

// Sorted has faults that errors.Join joined in the order of their places.
func Sorted(err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	faults := slices.Clone(joined.Unwrap())
	place := func(err error) (int, int) {
		if e, ok := err.(*Error); ok && e.Line > 0 {
			return e.Line, e.Column
		}
		return 1 << 30, 0
	}
	slices.SortStableFunc(faults, func(a, b error) int {
		aLine, aColumn := place(a)
		bLine, bColumn := place(b)
		return cmp.Or(aLine-bLine, aColumn-bColumn)
	})
	return errors.Join(faults...)
}

// Full says that as many faults were found as are told: what takes time to say need not be said.
func (s *Source) Full() bool { return len(s.faults) == maxFaults }

// Faults is how many were found.
func (s *Source) Faults() int { return len(s.faults) + s.more }

// Fail adds a fault.
func (s *Source) Fail(p Place, format string, args ...any) {
	if s.Full() {
		s.more++
		return
	}
	s.faults = append(s.faults, s.Fault(p, fmt.Sprintf(format, args...)))
}

// Fault is an error about a place.
func (s *Source) Fault(p Place, what string) error {
	e := &Error{File: s.name, What: what}
	if p.Line > 0 && p.Line <= len(s.lines) {
		e.Line, e.Column, e.Text = p.Line, max(p.Column, 1), s.lines[p.Line-1]
	}
	return e
}

func (s *Source) syntax(err error) {
	var e yaml.Error
	at := Place{}
	what := err.Error()
	if errors.As(err, &e) {
		what = e.GetMessage()
		if t := e.GetToken(); t != nil && t.Position != nil {
			at = Place{t.Position.Line, t.Position.Column}
		}
	}
	s.Fail(at, "%s", what)
}

func placeOf(n ast.Node) Place {
	t := n.GetToken()
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 { // its own is that of a colon
		t = m.Values[0].Key.GetToken()
	}
	if m, ok := n.(*ast.MappingValueNode); ok {
		t = m.Key.GetToken()
	}
	if t == nil || t.Position == nil {
		return Place{}
	}
	return Place{t.Position.Line, t.Position.Column}
}

// Place is where the value stands.
func (v Value) Place() Place {
	if v.node == nil {
		return Place{}
	}
	return placeOf(v.node)
}

// None says that nothing stands there.
func (v Value) None() bool { return v.node == nil || v.node.Type() == ast.NullType }

// Text is one value as it is written: 010 is no eight, and 2222:22 no number of minutes.
func (v Value) Text() (string, bool) { return text(v.node) }

// Inside is where a line and a column, from 1, of the value's text stand: exactly in a block that has its lines as they are
// (|), and else where the value does.
func (s *Source) Inside(v Value, line, column int) Place {
	at := v.Place()
	l, ok := v.node.(*ast.LiteralNode)
	if !ok || !strings.HasPrefix(l.Start.Value, "|") || line < 1 || at.Line+line > len(s.lines) {
		return at
	}
	for _, first := range s.lines[at.Line:] { // its indentation is the first line's that has something
		if text := strings.TrimLeft(first, " "); text != "" {
			return Place{at.Line + line, len(first) - len(text) + max(column, 1)}
		}
	}
	return at
}

// List says that it is a list.
func (v Value) List() bool {
	_, ok := v.node.(*ast.SequenceNode)
	return ok
}

// Keys says that it is keys with values.
func (v Value) Keys() bool {
	switch v.node.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		_, isText := v.Text()
		return !isText
	}
	return false
}

// Kind says what it is, in words for people.
func (v Value) Kind() string {
	if v.node == nil {
		return "nothing"
	}
	return kind(v.node)
}

// Entries calls each for the entries of keys with values, once each. what it is that has them is for errors.
func (s *Source) Entries(v Value, what string, each func(key Value, name string, value Value)) {
	var values []*ast.MappingValueNode
	switch m := v.node.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	}
	if _, isText := v.Text(); isText || values == nil && !v.Keys() {
		s.Fail(v.Place(), "%s: want keys with values, KEY: VALUE, not %s", what, v.Kind())
		return
	}
	seen := map[string]Place{}
	for _, e := range values {
		name, ok := text(e.Key)
		if !ok {
			s.Fail(placeOf(e.Key), "a key of %s: want a word, not %s", what, kind(e.Key))
			continue
		}
		if first, twice := seen[name]; twice {
			s.Fail(placeOf(e.Key), "%q is there twice: first in line %d", name, first.Line)
			continue
		}
		seen[name] = placeOf(e.Key)
		each(Value{e.Key}, name, Value{e.Value})
	}
}

// Unknown says that there is no such word, and which was likely meant: no KEY "gatway" in a network.
func (s *Source) Unknown(at Value, sort, name, in string, known []string) {
	if s.Full() { // the nearest word takes time
		s.more++
		return
	}
	s.Fail(at.Place(), "no %s %.40q in %s: %s", sort, name, in, DidYouMean(name, known))
}

// Items calls each for the items of a list.
func (s *Source) Items(v Value, what string, each func(i int, item Value)) {
	list, ok := v.node.(*ast.SequenceNode)
	if !ok {
		s.Fail(v.Place(), "%s: want a list, of lines that begin with a dash or in [ ], not %s", what, v.Kind())
		return
	}
	for i, n := range list.Values {
		if (Value{n}).None() {
			s.Fail(v.Place(), "%s: number %d of the list has no value", what, i+1)
			return
		}
		each(i, Value{n})
	}
}

func text(n ast.Node) (string, bool) {
	switch x := n.(type) {
	case *ast.StringNode:
		return x.Value, true
	case *ast.LiteralNode:
		return x.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return strings.TrimSpace(n.GetToken().Value), true
	case *ast.MappingValueNode:
		return joined(x)
	case *ast.MappingNode:
		if len(x.Values) == 1 && x.Start != nil && x.Start.Value != "{" {
			return joined(x.Values[0])
		}
	}
	return "", false
}

// joined is 2222:22 of {forward: [2222:22]}: a colon is one of a key only with a blank behind it (YAML 1.2 §7.3.3), but
// between braces the library takes any for one.
func joined(n *ast.MappingValueNode) (string, bool) {
	plain := func(n ast.Node) (*token.Token, string, bool) {
		if _, nested := n.(*ast.MappingValueNode); n == nil || nested {
			return nil, "", false
		}
		s, ok := text(n)
		t := n.GetToken()
		return t, s, ok && t != nil && t.Position != nil && t.Indicator != token.QuotedScalarIndicator && t.Indicator != token.BlockScalarIndicator
	}
	k, key, ok := plain(n.Key)
	v, value, ok2 := plain(n.Value)
	if !ok || !ok2 || n.Start == nil || n.Start.Position == nil {
		return "", false
	}
	at := *n.Start.Position
	if k.Position.Line != at.Line || v.Position.Line != at.Line || v.Position.Column != at.Column+1 || k.Position.Column+utf8.RuneCountInString(key) != at.Column {
		return "", false
	}
	return key + ":" + value, true
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
