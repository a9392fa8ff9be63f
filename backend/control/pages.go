package control

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/flows"
)

// Lists that grow come in pages, for who asks for them: ?limit= is how many entries one has, and the Link header (RFC 8288)
// leads to the next, which is all that is behind the last entry in the order of keys. So an entry that is there all the
// time is on one page exactly, whatever comes and goes meanwhile.

// maxPage is the longest page: some 4 MB of conversations.
const maxPage = 10000

// pager cuts lists of one kind.
type pager struct {
	// param is the query's, that says behind which entry a page begins.
	param string
	// behind sorts a list and returns what is behind the entry with the key after, all if that is empty.
	behind func(list any, after string) (rest any, err error)
	key    func(list any, i int) string
}

// byKey is a pager of lists of T, which have distinct keys.
func byKey[T, K any](param string, key func(*T) K, text func(K) string, parse func(string) (K, error), compare func(a, b K) int) *pager {
	return &pager{
		param: param,
		behind: func(list any, after string) (any, error) {
			all := slices.Clone(list.([]T))
			slices.SortFunc(all, func(a, b T) int { return compare(key(&a), key(&b)) })
			if after == "" {
				return all, nil
			}
			k, err := parse(after)
			if err != nil {
				return nil, err
			}
			i, found := slices.BinarySearchFunc(all, k, func(e T, k K) int { return compare(key(&e), k) })
			if found {
				i++
			}
			return all[i:], nil
		},
		key: func(list any, i int) string { return text(key(&list.([]T)[i])) },
	}
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

func parseNumber(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }

var (
	flowPages  = byKey("after", func(f *flows.Snapshot) uint64 { return f.ID }, number, parseNumber, cmp.Compare)
	guestPages = byKey("after", func(g *backend.GuestInfo) uint64 { return guestNumber(g.ID) }, number, parseNumber, cmp.Compare)
	leasePages = byKey("after", func(l *Lease) netip.Addr { return l.Addr }, netip.Addr.String, netip.ParseAddr, netip.Addr.Compare)
	// The handler itself has left out what is before.
	eventPages = &pager{param: "since", behind: func(list any, _ string) (any, error) { return list, nil },
		key: func(list any, i int) string { return number(list.([]backend.Event)[i].ID) }}
)

// guestNumber: ids are g1, g2, …
func guestNumber(id string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimLeft(id, "abcdefghijklmnopqrstuvwxyz"), 10, 64)
	return n
}

// params are what a list in pages takes.
func (p *pager) params() []param {
	if p == nil {
		return nil
	}
	list := []param{{name: "limit", says: "at most so many; the Link header leads to the rest", is: 0, least: 1, most: maxPage}}
	if p.param == "after" {
		list = append(list, param{name: "after", says: "only what is behind this place, which a Link header has"})
	}
	return list
}

func (c *call) limit() int {
	n, _ := strconv.Atoi(c.query.Get("limit")) // it was checked
	return n
}

// cut makes a page of a network's list, of at most limit entries if that is not 0, and says behind which of its entries the
// next one begins; "" if there is none.
func (p *pager) cut(list any, after string, limit int) (page any, next string, err error) {
	rest, err := p.behind(list, after)
	if err != nil {
		return nil, "", problem(http.StatusBadRequest, "follow the Link header of the page before, or begin without it", "%s=%q leads nowhere", p.param, short(after))
	}
	v := reflect.ValueOf(rest)
	if limit == 0 || v.Len() <= limit {
		return rest, "", nil
	}
	return v.Slice(0, limit).Interface(), p.key(rest, limit-1), nil
}

// link has the answer lead to the next page.
func (c *call) link(p *pager, next string) {
	q := url.Values{}
	for k, v := range c.query {
		q[k] = v
	}
	q.Set(p.param, next)
	u := url.URL{Path: c.URL.Path, RawQuery: q.Encode()}
	c.out.Set("Link", fmt.Sprintf(`<%s>; rel="next"`, u.String()))
}

// paged is whether a request is for a page.
func (c *call) paged() bool { return c.query.Has("limit") || c.query.Has("after") }

// page cuts what a handler answered, where the client wants pages.
func (c *call) page(op operation, rep reply) (reply, error) {
	if op.pages == nil || !c.paged() || c.query.Has("sort") || reflect.ValueOf(rep.body).Kind() != reflect.Slice {
		return rep, nil
	}
	list, next, err := op.pages.cut(rep.body, c.query.Get("after"), c.limit())
	if err != nil {
		return rep, err
	}
	if next != "" {
		c.link(op.pages, next)
	}
	return reply{rep.code, list}, nil
}
