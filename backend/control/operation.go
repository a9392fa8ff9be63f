package control

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// route is a path and what may be done there. It carries its own description, from which the API's document is made
// (openapi.go): what has none fails TestRoutesAreDescribed.
type route struct {
	path string
	id   string // what stands in the path's {…}, for people
	on   verbs
	// tag, if not nil, is what is set here, without counters: its hash is the ETag, for If-Match. See call.begin.
	tag func(*call) (any, error)
}

// verbs are operations by their methods. HEAD and OPTIONS come by themselves.
type verbs map[string]operation

// operation is what one method does.
type operation struct {
	do    handler
	says  string  // what it does, in a sentence
	asks  bool    // it changes nothing, though it is no GET
	query []param // beside network
	takes any     // a value of the body's type; nil: it has no body
	most  int64   // bytes of body, if not maxBody
	gives any     // a value of the answer's type; nil: 204 and nothing
	code  int     // of success, if neither 200 nor 204
	also  int     // another code of success
	// streams is a value of the type of the events that it gives with "Accept: text/event-stream". They may go on for ever.
	streams any
	// as is the type of an answer that is no JSON.
	as string
	// pages, if its answer is a list that grows.
	pages *pager
	// whole: it answers for all networks by itself.
	whole bool
}

// param is a parameter of the query.
type param struct {
	name, says string
	is         any      // a value of its kind: "" or nil, 0 (not negative), false, netip.Prefix{} (or an address)
	one        []string // it is one of these
	least      uint64   // of a number
	most       uint64   // of a number, if not 0
}

// download is a reply's body that is no JSON. It may go on until its client or the server ends.
type download struct {
	typ   string
	write stream
}

// allow are the methods that a route takes.
func (rt route) allow() []string {
	list := []string{http.MethodOptions}
	for m := range rt.on {
		list = append(list, m)
		if m == http.MethodGet {
			list = append(list, http.MethodHead)
		}
	}
	slices.Sort(list)
	return list
}

var networkParam = param{name: "network", says: "the network that is meant, of several"}

// params are all that the query may have.
func (op operation) params() []param {
	return slices.Concat([]param{networkParam}, op.query, op.pages.params())
}

// read reads the query, strictly: a filter that is misspelt and passed over would show, or remove, too much.
func (op operation) read(rt route, r *http.Request) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, problem(http.StatusBadRequest, "name=value&name=value, with % escapes", "the query cannot be read: %s", short(err.Error()))
	}
	params := op.params()
	for k, v := range q {
		i := slices.IndexFunc(params, func(p param) bool { return p.name == k })
		if i < 0 {
			var known []string
			for _, p := range params {
				known = append(known, p.name)
			}
			hint := "it knows " + strings.Join(known, ", ")
			if op.takes != nil {
				hint += "; what is to be done goes into the body"
			}
			return nil, problem(http.StatusBadRequest, hint, "%s %s knows no query parameter %q", r.Method, rt.path, short(k))
		}
		if len(v) > 1 {
			return nil, problem(http.StatusBadRequest, "give it once", "query parameter %q is there %d times", short(k), len(v))
		}
		if err := params[i].check(v[0]); err != nil {
			return nil, err
		}
	}
	return q, nil
}

func (p param) check(v string) error {
	right := ""
	switch p.is.(type) {
	case int:
		most := cmp.Or(p.most, 1<<63-1)
		if n, err := strconv.ParseUint(v, 10, 64); err != nil || n < p.least || n > most {
			right = fmt.Sprintf("a number from %d to %d", p.least, most)
		}
	case netip.Prefix:
		if _, err := prefixOf(v); err != nil {
			right = "an address, or a prefix as 192.0.2.0/24"
		}
	case bool:
		if v != "true" && v != "false" {
			right = "true or false"
		}
	default:
		if p.one != nil && !slices.Contains(p.one, v) {
			right = "one of " + strings.Join(p.one, ", ")
		}
	}
	if right != "" {
		return problem(http.StatusBadRequest, right, "%s=%q in the query", p.name, short(v))
	}
	return nil
}

// prefixOf reads a prefix, or an address, which is the longest.
func prefixOf(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}
