package config

import (
	"fmt"
	"slices"
	"strings"
)

// Difference is one value that two files have otherwise, or, in what Same returns, alike.
type Difference struct {
	Network string // the name of whose it is; "" for the daemon's
	Key     string // as in networks[0].limits.flows, with the number of the second file; a list's entries have the list's
	Flag    string
	Old     string // of the first file
	New     string // of the second
	Added   bool   // it is not in the first
	Removed bool   // it is not in the second
}

// entry is a value where it stands, or one of a list.
type entry struct {
	network, key, flag, value string
	list                      bool
	within                    string // the key, without which network
}

// entries are all that is said. number has the networks' numbers by their names.
func (f *File) entries(number func(name string, i int) int) (all []entry) {
	for _, s := range f.Settings() {
		e := entry{flag: s.Flag, value: s.Value}
		parts := strings.Split(s.path, "\x00")[1:]
		if s.Network >= 0 {
			e.network = f.NetworkName(s.Network)
			parts = parts[1:]
		}
		last := len(parts) - 1
		if name, ok := strings.CutSuffix(parts[last], "]"); ok && !strings.HasPrefix(name, "[") {
			parts[last], _, _ = strings.Cut(name, "[")
			e.list = true
		}
		e.within = strings.Join(parts, ".")
		if e.key = e.within; s.Network >= 0 {
			e.key = fmt.Sprintf("networks[%d].%s", number(e.network, s.Network), e.within)
		}
		if _, value, ok := strings.Cut(s.Value, "="); ok && mapped[s.Flag] {
			e.value = value
		}
		all = append(all, e)
	}
	return all
}

// mapped are the flags whose values have their key in front.
var mapped = map[string]bool{"static": true, "limit": true}

// NetworkName is how a network is called, by its number.
func (f *File) NetworkName(i int) string {
	if name := f.Networks[i].Name; name != "" || i > 0 {
		return name
	}
	return "default"
}

// Diff compares two files, and returns what is other and what is alike. Networks are the same if their names are, wherever
// they stand; one that is only in one of the files is one difference. Entries of lists are compared without their order.
func Diff(old, now *File) (other, same []Difference) {
	numbers := map[string]int{}
	in := [2]map[string]bool{{}, {}}
	for i := range now.Networks {
		numbers[now.NetworkName(i)], in[1][now.NetworkName(i)] = i, true
	}
	for i := range old.Networks {
		in[0][old.NetworkName(i)] = true
	}
	number := func(name string, i int) int {
		if n, ok := numbers[name]; ok {
			return n
		}
		return i
	}
	whole := func(f *File, i int, d Difference) {
		d.Network = f.NetworkName(i)
		d.Key = fmt.Sprintf("networks[%d]", number(d.Network, i))
		other = append(other, d)
	}
	for i := range old.Networks {
		if name := old.NetworkName(i); !in[1][name] {
			whole(old, i, Difference{Old: name, Removed: true})
		}
	}
	for i := range now.Networks {
		if name := now.NetworkName(i); !in[0][name] {
			whole(now, i, Difference{New: name, Added: true})
		}
	}
	both := func(e entry) bool { return e.network == "" || in[0][e.network] && in[1][e.network] }
	type place struct{ network, key string }
	left := map[place][]entry{}
	for _, e := range old.entries(number) {
		if both(e) {
			left[place{e.network, e.within}] = append(left[place{e.network, e.within}], e)
		}
	}
	for _, e := range now.entries(number) {
		if !both(e) {
			continue
		}
		at := place{e.network, e.within}
		d := Difference{Network: e.network, Key: e.key, Flag: e.flag, New: e.value}
		was := left[at]
		if i := slices.IndexFunc(was, func(o entry) bool { return o.value == e.value }); i >= 0 {
			d.Old = e.value
			same = append(same, d)
			left[at] = slices.Delete(was, i, i+1)
			continue
		}
		if e.list || len(was) == 0 {
			d.Added = true
		} else {
			d.Old = was[0].value
			left[at] = was[1:]
		}
		other = append(other, d)
	}
	for _, e := range old.entries(number) {
		at := place{e.network, e.within}
		i := slices.IndexFunc(left[at], func(o entry) bool { return o.value == e.value })
		if i < 0 {
			continue
		}
		left[at] = slices.Delete(left[at], i, i+1)
		other = append(other, Difference{Network: e.network, Key: e.key, Flag: e.flag, Old: e.value, Removed: true})
	}
	return other, same
}
