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
	if op.whole || op.streams != nil && follows(c.Header.Get("Accept")) || c.query.Has("sort") {
		rep, err := op.do(c)
		if err != nil {
			return rep, err
		}
		return c.page(op, rep)
	}
	if strings.Contains(rt.path, "{") || c.Method != http.MethodGet && c.Method != http.MethodHead {
		return reply{}, s.which()
	}
	all := []json.RawMessage{}
	var missing error
	found := false
	// A page's place has the network, too. Where limit has been reached, one more entry says that there is a next page.
	from, after := "", c.query.Get("after")
	if i := strings.LastIndexByte(after, '/'); i >= 0 {
		from, after = after[:i], after[i+1:]
	}
	if op.pages != nil && (from == "") != (after == "") {
		return reply{}, problem(http.StatusBadRequest, "follow the Link header of the page before, or begin without it", "after=%q leads nowhere", short(c.query.Get("after")))
	}
	last := "" // the place of the last entry that is in the answer
	for _, n := range s.networks() {
		name := n.Config().Name
		if from != "" && from != name {
			continue
		}
		from = ""
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
		if op.pages != nil && c.paged() {
			left := 0
			if c.limit() > 0 {
				left = max(1, c.limit()-len(all)) // the one that is more
			}
			page, next, err := op.pages.cut(rep.body, after, left)
			if err != nil {
				return reply{}, err
			}
			after = ""
			n := reflect.ValueOf(page).Len()
			if c.limit() > 0 && len(all) == c.limit() {
				if n > 0 {
					c.link(op.pages, last)
					break
				}
				continue
			}
			if n > 0 {
				last = name + "/" + op.pages.key(page, n-1)
			}
			rep.body = page
			if next != "" {
				c.link(op.pages, last)
				more, err := named(page, name)
				return reply{http.StatusOK, append(all, more...)}, err
			}
		}
		list, err := named(rep.body, name)
		if err != nil {
			return reply{}, err
		}
		all = append(all, list...)
	}
	if from != "" {
		return reply{}, problem(http.StatusBadRequest, "begin without after", "after=%q: network %s is gone", short(c.query.Get("after")), short(from))
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
