package topology

import (
	"fmt"
	"strings"

	"github.com/vmnetd/vmnetd/config"
)

// maxExpanded bounds what all values of a file come to once variables are set and counts unrolled: the whole file for each
// of some dozen nodes. Variables that stand for one another double with each line.
const maxExpanded = 16 << 20

// own are variables that nobody sets.
var own = map[string]string{
	"lab":  "the lab's name",
	"name": "the name of the node",
	"n":    "the number of a node in its count",
}

// scope is what ${NAME} stands for where a value is read.
type scope map[string]string

func (sc scope) with(name, value string) scope {
	to := scope{name: value}
	for k, v := range sc {
		if k != name {
			to[k] = v
		}
	}
	return to
}

// expand sets variables. $${ is ${ itself, and every other $ is a $.
func (r *reader) expand(s string, at config.Place) (string, bool) {
	if !strings.Contains(s, "${") {
		return s, true
	}
	var b strings.Builder
	for s != "" {
		before, after, found := strings.Cut(s, "${")
		if !found {
			b.WriteString(s)
			break
		}
		if lit, ok := strings.CutSuffix(before, "$"); ok {
			b.WriteString(lit + "${")
			s = after
			continue
		}
		name, rest, closed := strings.Cut(after, "}")
		if !closed {
			r.fail(at, "${ without its }: for a text that has one, write $${")
			return "", false
		}
		value, ok := r.vars[name]
		if !ok {
			r.unknownVar(name, at)
			return "", false
		}
		b.WriteString(before + value)
		if r.expanded > maxExpanded { // it was told of
			return "", false
		}
		if r.expanded += len(before) + len(value); r.expanded > maxExpanded {
			r.fail(at, "with its variables set, the file is more than %d MiB: want less of them, or texts in files of their own", maxExpanded>>20)
			return "", false
		}
		s = rest
	}
	return b.String(), true
}

func (r *reader) unknownVar(name string, at config.Place) {
	if r.src.Full() {
		r.fail(at, "no variable %.40q", name)
		return
	}
	if what, ok := own[name]; ok {
		r.fail(at, "${%s} is %s, and this is not in one", name, what)
		return
	}
	if env, ok := strings.CutPrefix(name, "env:"); ok && variable(strings.ToLower(env)) {
		r.fail(at, "${%s}: the environment is no part of a lab: give it a variable, and set that by --set %s=$%s", name, strings.ToLower(env), env)
		return
	}
	if !variable(name) {
		r.fail(at, "${%.40s}: want a variable's name, or $${ for what a shell is to make something of", name)
		return
	}
	r.fail(at, "no variable %.40q: %s; for a shell's own write $${%.40s}", name, config.DidYouMean(name, sorted(r.vars)), name)
}

// variable says that it may be a variable's name.
func variable(s string) bool {
	for i, c := range []byte(s) {
		if letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'; !letter && (i == 0 || c != '_' && c != '-' && (c < '0' || c > '9')) {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

// readVars reads the file's variables, each of which may have those above it in its value, and puts set in their place.
func (r *reader) readVars(v config.Value, set map[string]string) {
	var names []string
	if !v.None() {
		r.src.Entries(v, "vars", func(key config.Value, name string, value config.Value) {
			if what, ok := own[name]; ok {
				r.fail(key.Place(), "the variable %s is %s: call yours otherwise", name, what)
				return
			}
			if !variable(name) {
				r.fail(key.Place(), "a variable's name %.40q: want letters, digits, - and _, a letter first", name)
				return
			}
			names = append(names, name)
			if s, ok := set[name]; ok {
				r.vars[name] = s
				return
			}
			if value.None() {
				r.fail(key.Place(), `the variable %s has no value: give it one ("" for none)`, name)
				return
			}
			if s, ok := r.text(value, name); ok {
				r.vars[name] = s
			}
		})
	}
	for _, name := range sorted(set) {
		if _, ok := r.vars[name]; !ok {
			r.fail(config.Place{}, "--set %s: the file has no such variable: %s", fmt.Sprintf("%.40s", name), config.DidYouMean(name, names))
		}
	}
}
