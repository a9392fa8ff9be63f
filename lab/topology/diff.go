package topology

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Actions of a Change.
const (
	start   = "start"
	stop    = "stop"
	restart = "restart"
	change  = "change"
)

// Diff is what bringing up now changes where old is up, with old nil where nothing is: what stops, then networks, then what
// starts, each once. Networks and nodes are the same if their names are. What changes in place:
//
//   - of a network its policy, forwards, DNS records, limits and impairment, and what its nodes' interfaces have there: fixed
//     addresses in one with an uplink, and impairments. Anything else makes it another network, and restarts its nodes.
//   - of a node what it starts after and waits for, its timeout and its user, all of which matter when it starts next.
//
// Why names what is other, and of texts that may be secret (environment, commands, cloud-init) only that they are.
func Diff(old, now *Lab) []Change {
	if old == nil {
		old = &Lab{}
	}
	var stops, nets, starts []Change
	add := func(list *[]Change, what, action string, why ...string) {
		*list = append(*list, Change{What: what, Action: action, Why: reasons(why)})
	}
	was, is := nodesByName(old), nodesByName(now)
	wasNet, isNet := networksByName(old), networksByName(now)

	for _, n := range old.Nodes {
		if is[n.Name] == nil {
			add(&stops, "node "+n.Name, stop, "gone")
		}
	}
	for _, n := range old.Networks {
		if isNet[n.Name] == nil {
			add(&stops, "network "+n.Name, stop, "gone")
		}
	}
	another := map[string]bool{} // networks
	for _, n := range now.Networks {
		o := wasNet[n.Name]
		if o == nil {
			add(&nets, "network "+n.Name, start, "new")
			another[n.Name] = true
			continue
		}
		anew, inPlace := diffNetwork(o, &n)
		inPlace = append(inPlace, diffGuests(o, &n, old, now)...)
		switch {
		case anew != nil:
			add(&nets, "network "+n.Name, restart, append(anew, inPlace...)...)
			another[n.Name] = true
		case inPlace != nil:
			add(&nets, "network "+n.Name, change, inPlace...)
		}
	}
	for _, n := range now.Nodes {
		o := was[n.Name]
		if o == nil {
			add(&starts, "node "+n.Name, start, "new")
			continue
		}
		anew, inPlace := diffNode(o, &n, func(name string) bool { return was[name] != nil && is[name] != nil })
		said := map[string]bool{}
		for _, f := range n.Interfaces {
			if another[f.Network] && !said[f.Network] && slices.ContainsFunc(o.Interfaces, func(g Interface) bool { return g.Network == f.Network }) {
				said[f.Network] = true
				anew = append(anew, "its network "+f.Network+" is another")
			}
		}
		switch {
		case anew != nil:
			add(&starts, "node "+n.Name, restart, append(anew, inPlace...)...)
		case inPlace != nil:
			add(&starts, "node "+n.Name, change, inPlace...)
		}
	}
	return slices.Concat(stops, nets, starts)
}

// mostReasons are told: a line that people read.
const mostReasons = 5

func reasons(list []string) string {
	if more := len(list) - mostReasons; more > 0 {
		list = append(slices.Clone(list[:mostReasons]), fmt.Sprintf("%d more", more))
	}
	return strings.Join(list, "; ")
}

func nodesByName(l *Lab) map[string]*Node {
	m := map[string]*Node{}
	for i := range l.Nodes {
		m[l.Nodes[i].Name] = &l.Nodes[i]
	}
	return m
}

func networksByName(l *Lab) map[string]*Network {
	m := map[string]*Network{}
	for i := range l.Networks {
		m[l.Networks[i].Name] = &l.Networks[i]
	}
	return m
}

// fieldKeys are fields whose key in the file is not their name in small letters.
var fieldKeys = map[string]string{
	"Prefix4": "net", "Prefix6": "net6", "Gateway4": "gateway", "Gateway6": "gateway6", "Forwards": "forward", "DNS": "dns-record",
	"Resolvers": "resolver", "NoHostLoopback": "no-host-loopback", "StrictLeases": "strict-leases",
	"DiskFormat": "disk-format", "CloudInit": "cloud-init",
}

func fieldKey(name string) string {
	if key, ok := fieldKeys[name]; ok {
		return key
	}
	return strings.ToLower(name)
}

// fields calls each for what two structs of one type have otherwise. Whatever is added to the type is compared.
func fields(old, now any, each func(name string, a, b any)) {
	x, y := reflect.ValueOf(old).Elem(), reflect.ValueOf(now).Elem()
	for i := range x.NumField() {
		a, b := x.Field(i), y.Field(i)
		if k := a.Kind(); (k == reflect.Slice || k == reflect.Map) && a.Len() == 0 && b.Len() == 0 {
			continue // none is none
		}
		if !reflect.DeepEqual(a.Interface(), b.Interface()) {
			each(x.Type().Field(i).Name, a.Interface(), b.Interface())
		}
	}
}

func diffNetwork(old, now *Network) (anew, inPlace []string) {
	fields(old, now, func(name string, a, b any) {
		key := fieldKey(name)
		switch name {
		case "Wire":
			if now.Wire {
				anew = append(anew, "it was no link")
			} else {
				anew = append(anew, "it was a link")
			}
		case "Uplink":
			if old.Wire == now.Wire {
				anew = append(anew, arrow(key, a, b))
			}
		case "Forwards", "DNS":
			inPlace = append(inPlace, lists(key, a.([]string), b.([]string))...)
		case "Policy":
			inPlace = append(inPlace, "policy is another")
		case "Limits":
			inPlace = append(inPlace, "limits are others")
		case "Impair":
			inPlace = append(inPlace, "impair is another")
		default:
			anew = append(anew, arrow(key, a, b))
		}
	})
	return anew, inPlace
}

// diffGuests is what a network does otherwise for single interfaces.
func diffGuests(o, n *Network, old, now *Lab) (list []string) {
	type guest struct {
		mac, addrs string
		impair     any
		node       bool
	}
	guests := func(l *Lab, uplink bool) map[string]guest {
		m := map[string]guest{}
		for _, node := range l.Nodes {
			for _, f := range node.Interfaces {
				if f.Network != n.Name {
					continue
				}
				g := guest{node: true}
				if uplink && len(f.Addrs) > 0 {
					g.mac, g.addrs = f.MAC.String(), fmt.Sprint(f.Addrs)
				}
				if f.Impair != nil {
					g.mac, g.impair = f.MAC.String(), *f.Impair
				}
				m[node.Name+"'s "+f.Name] = g
			}
		}
		return m
	}
	a, b := guests(old, o.Uplink), guests(now, n.Uplink)
	names := maps.Clone(a)
	maps.Copy(names, b)
	for _, name := range sorted(names) {
		x, y := a[name], b[name]
		switch {
		case x.addrs != y.addrs || x.addrs != "" && x.mac != y.mac:
			if y.addrs == "" {
				list = append(list, "no fixed address for "+name)
			} else {
				list = append(list, "fixed address for "+name)
			}
		case !reflect.DeepEqual(x.impair, y.impair) || x.mac != y.mac:
			if y.node {
				list = append(list, "impair of "+name+" is another")
			} else {
				list = append(list, name+" is gone, with its impair")
			}
		}
	}
	return list
}

// diffNode compares two nodes. both says that a node is in the old lab and the new one.
func diffNode(old, now *Node, both func(name string) bool) (anew, inPlace []string) {
	fields(old, now, func(name string, a, b any) {
		key := fieldKey(name)
		switch name {
		case "Base":
		case "Interfaces":
			anew = append(anew, diffInterfaces(old.Interfaces, now.Interfaces)...)
		case "After":
			gone := func(name string) bool { return !both(name) } // with a count all are meant, and that has changed
			x, y := slices.DeleteFunc(slices.Clone(old.After), gone), slices.DeleteFunc(slices.Clone(now.After), gone)
			if !slices.Equal(x, y) {
				inPlace = append(inPlace, key+" is another")
			}
		case "Wait":
			inPlace = append(inPlace, key+" is another")
		case "Timeout", "User":
			inPlace = append(inPlace, arrow(key, a, b))
		case "Env":
			for _, k := range sorted(union(old.Env, now.Env)) {
				x, had := old.Env[k]
				y, has := now.Env[k]
				if had != has || x != y {
					anew = append(anew, "env "+k+" is another")
				}
			}
		case "Command", "Setup", "Args", "Routes", "CloudInit", "Append":
			verb := " is another"
			if name == "Args" || name == "Routes" {
				verb = " are others"
			}
			anew = append(anew, key+verb)
		default:
			anew = append(anew, arrow(key, a, b))
		}
	})
	return anew, inPlace
}

func union[V any](a, b map[string]V) map[string]V {
	m := maps.Clone(a)
	if m == nil {
		m = map[string]V{}
	}
	maps.Copy(m, b)
	return m
}

func diffInterfaces(old, now []Interface) (list []string) {
	for i := range max(len(old), len(now)) {
		switch {
		case i >= len(now):
			list = append(list, "interface "+old[i].Name+" is gone")
			continue
		case i >= len(old):
			list = append(list, "interface "+now[i].Name+" is new")
			continue
		}
		fields(&old[i], &now[i], func(name string, a, b any) {
			switch name {
			case "Impair": // its network's to change
			case "Addrs":
				list = append(list, now[i].Name+": "+arrow("address", a, b))
			default:
				list = append(list, now[i].Name+": "+arrow(fieldKey(name), a, b))
			}
		})
	}
	return list
}

// lists are entries that came and went.
func lists(key string, old, now []string) (list []string) {
	for _, s := range old {
		if !slices.Contains(now, s) {
			list = append(list, fmt.Sprintf("%s %s is gone", key, s))
		}
	}
	for _, s := range now {
		if !slices.Contains(old, s) {
			list = append(list, fmt.Sprintf("%s %s is new", key, s))
		}
	}
	if list == nil {
		list = append(list, key+": another order")
	}
	return list
}

// arrow is a value before and now.
func arrow(key string, a, b any) string {
	text := func(v any) string {
		x := reflect.ValueOf(v)
		if (x.Kind() == reflect.Int || x.Kind() == reflect.Int64) && x.IsZero() {
			return "default"
		}
		if p, ok := v.(interface{ IsValid() bool }); ok && !p.IsValid() || x.Kind() != reflect.Bool && x.IsZero() || x.Kind() == reflect.Slice && x.Len() == 0 {
			return "none"
		}
		if x.Kind() == reflect.Slice && x.Type().Elem().Kind() != reflect.Uint8 {
			return strings.Trim(fmt.Sprint(v), "[]")
		}
		return fmt.Sprint(v)
	}
	return key + " " + text(a) + " → " + text(b)
}
