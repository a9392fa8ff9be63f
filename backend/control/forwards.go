package control

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/vmnetd/vmnetd/portforward"
)

// ForwardSet is all port forwards of a network: each a text or an object, as in ForwardRequest.
type ForwardSet struct {
	Rules []json.RawMessage `json:"rules"`
}

const forwardSetExample = `{"rules":["127.0.0.1:2222:22/tcp"]}`

// forwardsTag is what a PUT of all sets.
func forwardsTag(c *call) (any, error) {
	list := []string{}
	for _, f := range c.net.Forwards().List() {
		list = append(list, f.Text)
	}
	slices.Sort(list)
	return list, nil
}

func forwardTag(c *call) (any, error) {
	f, err := c.forward()
	return f.Text, err
}

// forward is the one that the path names by its id.
func (c *call) forward() (portforward.Status, error) {
	for _, f := range c.net.Forwards().List() {
		if f.ID == c.PathValue("id") {
			return f, nil
		}
	}
	return portforward.Status{}, problem(http.StatusNotFound, "GET /v1/forwards has the ids there are, as tcp:127.0.0.1:2222", "no port forward %q", short(c.PathValue("id")))
}

func getForward(c *call) (reply, error) {
	f, err := c.forward()
	return reply{http.StatusOK, f}, err
}

// putForward makes a forward, or leaves it as it is, or has it lead to another place.
func putForward(c *call) (reply, error) {
	rules, err := c.rules()
	if err != nil {
		return reply{}, err
	}
	if len(rules) != 1 || rules[0].ID() != c.PathValue("id") {
		return reply{}, problem(http.StatusUnprocessableEntity, "PUT it at /v1/forwards/"+rules[0].ID()+", or POST it to /v1/forwards",
			"the body has the rule %s, and the path %q", rules[0], short(c.PathValue("id")))
	}
	end, err := c.begin()
	if err != nil {
		return reply{}, err
	}
	defer end()
	code := http.StatusOK
	var old []portforward.Rule
	if f, err := c.forward(); err != nil {
		code = http.StatusCreated
	} else if f.Rule == rules[0] {
		return reply{code, Forward{f.ID, f.Text, f.Rule}}, nil
	} else {
		old = append(old, f.Rule)
	}
	bound, err := c.net.Forwards().Replace(c.Context(), old, rules)
	if err != nil {
		return reply{}, forwardProblem(err)
	}
	return reply{code, Forward{bound[0].ID(), bound[0].String(), bound[0]}}, nil
}

// putForwards has these forwards and no others. Those that stay notice nothing.
func putForwards(c *call) (reply, error) {
	var body ForwardSet
	if err := c.decode(&body, forwardSetExample); err != nil {
		return reply{}, err
	}
	if body.Rules == nil {
		return reply{}, problem(http.StatusUnprocessableEntity, "as "+forwardSetExample+"; none at all is an empty list", "no rules in the body")
	}
	var want []portforward.Rule
	for _, raw := range body.Rules {
		rules, err := forwardRules(raw)
		if err != nil {
			return reply{}, err
		}
		for _, r := range rules {
			if r.Proto != portforward.Unix && r.HostPort == 0 {
				return reply{}, problem(http.StatusUnprocessableEntity, "name a port, or POST it", "%s: any port would be another one each time", r)
			}
			if !slices.Contains(want, r) {
				want = append(want, r)
			}
		}
	}
	end, err := c.begin()
	if err != nil {
		return reply{}, err
	}
	defer end()
	var old, fresh []portforward.Rule
	for _, f := range c.net.Forwards().List() {
		if !slices.Contains(want, f.Rule) {
			old = append(old, f.Rule)
		}
	}
	for _, r := range want {
		if !slices.ContainsFunc(c.net.Forwards().List(), func(f portforward.Status) bool { return f.Rule == r }) {
			fresh = append(fresh, r)
		}
	}
	if _, err := c.net.Forwards().Replace(c.Context(), old, fresh); err != nil {
		return reply{}, forwardProblem(err)
	}
	list := []Forward{}
	for _, f := range c.net.Forwards().List() {
		list = append(list, Forward{f.ID, f.Text, f.Rule})
	}
	return reply{http.StatusOK, list}, nil
}
