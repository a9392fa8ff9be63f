package lab

import "github.com/vmnetd/vmnetd/lab/topology"

// seeds are the NoCloud data of a lab's nodes, served over HTTP in the networks that they are in.
type seeds struct{}

// newSeeds makes a place for a lab's, with a path of its own that nobody guesses.
func newSeeds() *seeds { return &seeds{} }

// set has the nodes' data as l has it from now on.
func (s *seeds) set(l *topology.Lab) {}

// url is where the node's data is, "" if it has none: it ends in a slash, for ds=nocloud;s=URL.
func (s *seeds) url(l *topology.Lab, node string) string { return "" }
