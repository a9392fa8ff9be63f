package control

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Where a route has a tag, its ETag is of what can be set there and not of counters, which change all the time. Two who
// change the same thing keep each other's work when each says which state it has seen (If-Match), or that it takes the
// thing for missing (If-None-Match: *). GET gives no 304: what it shows has counters in it.

// etag is a strong one (RFC 9110 §8.8.3). Its 16 bytes keep states apart; nobody gains by a clash.
func etag(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return fmt.Sprintf(`"%x"`, sum[:16]), nil
}

// tagged notes the ETag of what is there now in the answer, if the route has one and it is there.
func (c *call) tagged() error {
	if c.route.tag == nil {
		return nil
	}
	v, err := c.route.tag(c)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	tag, err := etag(v)
	c.out.Set("ETag", tag)
	return err
}

func isMissing(err error) bool {
	var p *Problem
	return errors.As(err, &p) && p.Status == http.StatusNotFound
}

// begin checks the request's conditions (RFC 9110 §13.1), and keeps others from changing anything of this kind until end is
// called. What the client sends has been read by then: nobody waits for it.
func (c *call) begin() (end func(), err error) {
	c.server.changing.Lock()
	if err := c.conditions(); err != nil {
		c.server.changing.Unlock()
		return nil, err
	}
	return c.server.changing.Unlock, nil
}

func (c *call) conditions() error {
	match, none := c.Header.Values("If-Match"), c.Header.Values("If-None-Match")
	if len(match) == 0 && len(none) == 0 {
		return nil
	}
	if c.route.tag == nil {
		return problem(http.StatusBadRequest, "leave If-Match and If-None-Match out", "%s has no ETag", c.route.path)
	}
	now, there := "", true
	v, err := c.route.tag(c)
	if isMissing(err) {
		there = false
	} else if err != nil {
		return err
	} else if now, err = etag(v); err != nil {
		return err
	}
	switch {
	case len(match) > 0 && !there:
		return problem(http.StatusPreconditionFailed, "leave If-Match out to make it", "If-Match: there is no such thing (any more)")
	case len(match) > 0 && !listed(match, now):
		return problem(http.StatusPreconditionFailed, "get it again, and see what has changed", "If-Match: it has changed meanwhile; its ETag is %s now", now)
	case len(none) > 0 && there && listed(none, now):
		return problem(http.StatusPreconditionFailed, "leave If-None-Match out to replace it", "If-None-Match: it is there already, with the ETag %s", now)
	}
	return nil
}

// listed says whether a condition's tags, or *, are what is there. Ours are strong, so a weak one is none of them.
func listed(values []string, now string) bool {
	for _, v := range values {
		for tag := range strings.SplitSeq(v, ",") { // ours have no comma in them
			if tag = strings.TrimSpace(tag); tag == "*" || tag == now {
				return true
			}
		}
	}
	return false
}
