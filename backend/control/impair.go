package control

import (
	"context"
	"net/http"
	"net/url"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/impair"
)

const (
	impairExample = `{"down":{"rate":"10mbit","latency":"50ms","loss":"1%"},"up":{"rate":"1mbit"}}`
	// maxImpair is a body's: a trace of some minutes of LTE, written as it is in JSON, has a few hundred kB.
	maxImpair = 4 << 20
)

// impairRoutes are a guest's bad line, and that of all guests that have none of their own.
func impairRoutes() []route {
	return []route{
		{path: "/v1/impair", on: verbs{
			"GET":    {do: listImpairs, says: "Lists each guest's bad line, and what became of its frames", gives: []backend.ImpairInfo{}},
			"PUT":    {do: putImpairs, says: "Plays a bad line to all guests of the network that have none of their own", takes: impair.Settings{}, most: maxImpair},
			"DELETE": {do: removeImpairs, says: "Takes that off again"}}},
		{path: "/v1/guests/{guest}/impair", id: guestID, on: verbs{
			"GET":    {do: getImpair, says: "Shows a guest's bad line, and what became of its frames", gives: backend.ImpairInfo{}},
			"PUT":    {do: putImpair, says: "Plays a bad line to a guest; what waits and is under way stays so", takes: impair.Settings{}, gives: backend.ImpairInfo{}, most: maxImpair},
			"DELETE": {do: removeImpair, says: "Takes a guest's bad line off"}}},
	}
}

func listImpairs(c *call) (reply, error) {
	list := []backend.ImpairInfo{}
	for _, g := range c.net.Guests() {
		if i, err := c.net.Impairment(g.ID); err == nil { // else it has just gone
			list = append(list, i)
		}
	}
	return ok(list)
}

// settings reads a body.
func (c *call) settings() (s impair.Settings, err error) {
	b, err := c.read(impairExample)
	if err != nil {
		return s, err
	}
	if len(b) == 0 {
		return s, problem(http.StatusBadRequest, "as "+impairExample, "the body is empty")
	}
	if err := strict(b, &s, impairExample); err != nil {
		p, is := err.(*Problem)
		if is && p.Status == http.StatusBadRequest && len(b) > 0 && (b[0] == '{' || b[0] == '"') {
			p.Status = http.StatusUnprocessableEntity
		}
		return s, err
	}
	return s, nil
}

func putImpairs(c *call) (reply, error) {
	s, err := c.settings()
	if err != nil {
		return reply{}, err
	}
	if err := c.net.Impair("", &s); err != nil {
		return reply{}, problem(http.StatusUnprocessableEntity, "as "+impairExample, "%s", short(err.Error()))
	}
	return done, nil
}

func removeImpairs(c *call) (reply, error) {
	if err := c.net.Impair("", nil); err != nil {
		return reply{}, err
	}
	return done, nil
}

func getImpair(c *call) (reply, error) {
	g, err := c.guest(c.PathValue("guest"))
	if err != nil {
		return reply{}, err
	}
	return c.impairment(g.ID)
}

func (c *call) impairment(id string) (reply, error) {
	i, err := c.net.Impairment(id)
	if err != nil {
		return reply{}, problem(http.StatusNotFound, "it may just have gone", "%v", err)
	}
	return reply{http.StatusOK, i}, nil
}

func putImpair(c *call) (reply, error) {
	g, err := c.guest(c.PathValue("guest"))
	if err != nil {
		return reply{}, err
	}
	s, err := c.settings()
	if err != nil {
		return reply{}, err
	}
	if err := c.net.Impair(g.ID, &s); err != nil {
		return reply{}, problem(http.StatusNotFound, "it may just have gone", "%s", short(err.Error()))
	}
	return c.impairment(g.ID)
}

func removeImpair(c *call) (reply, error) {
	g, err := c.guest(c.PathValue("guest"))
	if err != nil {
		return reply{}, err
	}
	if err := c.net.Impair(g.ID, &impair.Settings{}); err != nil {
		return reply{}, problem(http.StatusNotFound, "it may just have gone", "%v", err)
	}
	return done, nil
}

// Impairs are all guests' bad lines.
func (c *Client) Impairs(ctx context.Context) (list []backend.ImpairInfo, err error) {
	return list, c.call(ctx, "GET", "impair", nil, nil, &list)
}

// ImpairAll plays a bad line to all guests that have none of their own; nil takes it off.
func (c *Client) ImpairAll(ctx context.Context, s *impair.Settings) error {
	if s == nil {
		return c.call(ctx, "DELETE", "impair", nil, nil, nil)
	}
	return c.call(ctx, "PUT", "impair", nil, s, nil)
}

// Impairment is a guest's bad line, by its id, name, MAC or address.
func (c *Client) Impairment(ctx context.Context, guest string) (i backend.ImpairInfo, err error) {
	return i, c.call(ctx, "GET", "guests/"+url.PathEscape(guest)+"/impair", nil, nil, &i)
}

// Impair plays a bad line to a guest; nil takes it off.
func (c *Client) Impair(ctx context.Context, guest string, s *impair.Settings) (i backend.ImpairInfo, err error) {
	if s == nil {
		return i, c.call(ctx, "DELETE", "guests/"+url.PathEscape(guest)+"/impair", nil, nil, nil)
	}
	return i, c.call(ctx, "PUT", "guests/"+url.PathEscape(guest)+"/impair", nil, s, &i)
}
