package control

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// What a route does not tell of itself cannot be in the API's document.
func TestRoutesAreDescribed(t *testing.T) {
	sentence := func(where, s string) {
		t.Helper()
		if s == "" || !unicode.IsUpper([]rune(s)[0]) || strings.HasSuffix(s, ".") {
			t.Errorf("%s: says is %q; want what it does, in a sentence without its full stop: \"Lists the guests, oldest first\"", where, s)
		}
	}
	seen := map[string]bool{}
	for _, rt := range (&Server{}).routes() {
		if seen[rt.path] {
			t.Errorf("%s is there twice: have one route with all of its methods", rt.path)
		}
		seen[rt.path] = true
		if strings.Contains(rt.path, "{") != (rt.id != "") {
			t.Errorf("%s: id is %q; want what stands in the braces, and nothing if there are none", rt.path, rt.id)
		}
		if strings.Count(rt.path, "{") > 1 {
			t.Errorf("%s: more than one name in the path", rt.path)
		}
		for method, op := range rt.on {
			where := method + " " + rt.path
			sentence(where, op.says)
			if op.do == nil {
				t.Errorf("%s does nothing", where)
			}
			if !slices.Contains([]string{"GET", "POST", "PUT", "PATCH", "DELETE"}, method) {
				t.Errorf("%s: want GET, POST, PUT, PATCH or DELETE; HEAD and OPTIONS come by themselves", where)
			}
			if reads := method == "GET" || method == "DELETE"; reads && op.takes != nil {
				t.Errorf("%s takes a body, which nobody has to read there (RFC 9110 §9.3)", where)
			} else if (method == "PUT" || method == "PATCH") && op.takes == nil {
				t.Errorf("%s: takes is missing, a value of the body's type", where)
			}
			if method == "GET" && op.gives == nil && op.as == "" {
				t.Errorf("%s: gives is missing, a value of the answer's type, or as, its media type if it is no JSON", where)
			}
			if op.gives != nil && op.as != "" {
				t.Errorf("%s gives JSON and %s: one of them", where, op.as)
			}
			names := map[string]bool{}
			for _, p := range op.params() {
				if names[p.name] {
					t.Errorf("%s: parameter %s is there twice", where, p.name)
				}
				names[p.name] = true
				if p.says == "" {
					t.Errorf("%s: parameter %s says nothing", where, p.name)
				}
				switch p.is.(type) {
				case nil, string, int, bool, netip.Prefix:
				default:
					t.Errorf("%s: parameter %s is a %T: want a text, a number, a bool or a prefix", where, p.name, p.is)
				}
			}
		}
	}
}
