package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/vmnetd/vmnetd/backend"
)

// LimitChange sets limits by their names: of a guest, or of the network if Guest is empty. A value is a number of what the
// limit counts (things, bytes, bytes a second), or a text as people write it: "10mbit", "4MiB", "none", "default".
type LimitChange struct {
	Guest  string         `json:"guest,omitempty"`
	Limits map[string]any `json:"limits"`
}

const limitExample = `{"guest":"g1","limits":{"flows":100,"up":"10mbit"}}`

func limitRoutes() []route {
	return []route{{path: "/v1/limits", tag: limitsTag, on: verbs{
		"GET": {do: listLimits, says: "Lists limits, what is used of them and was", gives: []backend.LimitInfo{}, query: []param{guestParam}},
		"PUT": {do: changeLimits, says: "Changes limits, all that are named or none", takes: LimitChange{}}}}}
}

// listLimits shows a guest's; without one those of all guests together, and each guest's.
func listLimits(c *call) (reply, error) {
	if ref := c.query.Get("guest"); ref != "" || c.query.Has("guest") {
		g, err := c.guest(ref)
		if err != nil {
			return reply{}, err
		}
		list, err := c.net.Limits(g.ID)
		if err != nil {
			return reply{}, problem(http.StatusNotFound, "it may just have gone", "%v", err)
		}
		return ok(list)
	}
	list, err := c.net.Limits("")
	if err != nil {
		return reply{}, err
	}
	for _, g := range c.net.Guests() {
		if more, err := c.net.Limits(g.ID); err == nil { // else it has just gone
			list = append(list, more...)
		}
	}
	return ok(list)
}

func changeLimits(c *call) (reply, error) {
	var body struct {
		Guest  string                     `json:"guest"`
		Limits map[string]json.RawMessage `json:"limits"`
	}
	if err := c.decode(&body, limitExample); err != nil {
		return reply{}, err
	}
	if len(body.Limits) == 0 {
		return reply{}, problem(http.StatusUnprocessableEntity, "as "+limitExample, "no limit in the body")
	}
	set := map[string]string{}
	for name, raw := range body.Limits {
		raw = bytes.TrimSpace(raw)
		text := string(raw)
		switch {
		case text == "null":
			text = "default"
		case raw[0] == '"':
			if err := strict(raw, &text, limitExample); err != nil {
				return reply{}, err
			}
		case raw[0] != '-' && (raw[0] < '0' || raw[0] > '9'):
			return reply{}, problem(http.StatusUnprocessableEntity, "as "+limitExample, "limit %s: neither a number nor a text", short(name))
		}
		set[name] = text
	}
	guest := ""
	if body.Guest != "" {
		g, err := c.guest(body.Guest)
		if err != nil {
			return reply{}, err
		}
		guest = g.ID
	}
	end, err := c.begin()
	if err != nil {
		return reply{}, err
	}
	defer end()
	if err := c.net.ChangeLimits(guest, set); err != nil {
		return reply{}, problem(http.StatusUnprocessableEntity, "GET /v1/limits has all of them", "%s", short(err.Error()))
	}
	return done, nil
}

// Limits are a guest's, by its id, name, MAC or address; or, if guest is empty, those for all guests together and each guest's.
func (c *Client) Limits(ctx context.Context, guest string) (list []backend.LimitInfo, err error) {
	return list, c.call(ctx, "GET", "limits", values("guest", guest), nil, &list)
}

// ChangeLimits sets limits, all or none.
func (c *Client) ChangeLimits(ctx context.Context, l LimitChange) error {
	return c.call(ctx, "PUT", "limits", nil, l, nil)
}

// limitsTag is of the values, not of what is used.
func limitsTag(c *call) (any, error) {
	var list []string
	add := func(guest string) error {
		all, err := c.net.Limits(guest)
		for _, l := range all {
			list = append(list, fmt.Sprint(l.Guest, " ", l.Name, " ", l.Value, " ", l.Own, l.Each))
		}
		return err
	}
	if err := add(""); err != nil {
		return nil, err
	}
	for _, g := range c.net.Guests() {
		add(g.ID) // or it has just gone
	}
	return list, nil
}
