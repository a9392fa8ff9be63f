package topology

import "reflect"

// Diff is what bringing up now changes where old is up: stops first, then networks, then starts.
func Diff(old, now *Lab) []Change {
	var list []Change
	if old == nil || !reflect.DeepEqual(old, now) {
		for _, n := range now.Nodes {
			list = append(list, Change{What: "node " + n.Name, Action: "start", Why: "new"})
		}
	}
	return list
}
