package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strings"
)

// Where a daemon has several networks and a request names none: the status and the lists are of all, each entry with its
// network's name. For what is one network's only, the request must say which, since an id, an address or a name may be
// in each.

// names are the networks', the first one's first.
func (s *Server) names() []string {
	var list []string
	for _, n := range s.networks() {
		list = append(list, n.Config().Name)
	}
	return list
}

// ofAll answers a request that names no network, of several.
func (s *Server) ofAll(rt route, op operation, c *call) (reply, error) {
	if op.whole || op.streams != nil && follows(c.Header.Get("Accept")) {
		return op.do(c)
	}
	if strings.Contains(rt.path, "{") || c.Method != http.MethodGet && c.Method != http.MethodHead {
		return reply{}, s.which()
	}
	all := []json.RawMessage{}
	var missing error
	found := false
	for _, n := range s.networks() {
		one := *c
		one.net = n
		rep, err := op.do(&one)
		var p *Problem
		if errors.As(err, &p) && p.Status == http.StatusNotFound { // a guest that is in another network
			missing = err
			continue
		}
		if err != nil {
			return reply{}, err
		}
		if reflect.TypeOf(rep.body).Kind() != reflect.Slice {
			return reply{}, s.which()
		}
		found = true
		list, err := named(rep.body, n.Config().Name)
		if err != nil {
			return reply{}, err
		}
		all = append(all, list...)
	}
	if !found {
		return reply{}, missing
	}
	return reply{http.StatusOK, all}, nil
}

func (s *Server) which() error {
	return problem(http.StatusConflict, "say --network NAME, or network=NAME in the query; there is "+strings.Join(s.names(), ", "),
		"which network? the daemon has %d", len(s.networks()))
}

// named is a list of objects, as JSON, with the network in each.
func named(list any, network string) ([]json.RawMessage, error) {
	b, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	var all []json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, err
	}
	name, err := json.Marshal(network)
	if err != nil {
		return nil, err
	}
	for i, o := range all {
		rest, ok := bytes.CutPrefix(o, []byte("{"))
		if !ok || bytes.HasPrefix(rest, []byte(`"network":`)) {
			continue // it has no place for it, or has it
		}
		sep := ","
		if bytes.HasPrefix(rest, []byte("}")) {
			sep = ""
		}
		all[i] = append([]byte(`{"network":`+string(name)+sep), rest...)
	}
	return all, nil
}
