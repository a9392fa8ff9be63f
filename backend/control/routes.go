package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/portforward"
)

var (
	guestParam = param{name: "guest", says: "only of this guest: id, name, MAC or address"}
	guestID    = "a guest's id, name, MAC or address"
)

func (s *Server) routes() []route {
	return slices.Concat(
		s.waitRoutes(),
		s.policyRoutes(),
		limitRoutes(),
		impairRoutes(),
		s.flowRoutes(),
		s.captureRoutes(),
		s.openAPIRoutes(),
		s.networkRoutes(),
		s.mainRoutes(),
		s.labRoutes())
}

func (s *Server) mainRoutes() []route {
	return []route{
		{path: "/v1/status", on: verbs{
			"GET": {do: s.status, says: "Shows the daemon and its networks", gives: Status{}, whole: true}}},
		{path: reloadPath, on: verbs{"POST": {do: s.reload, says: "Reads the daemon's configuration file again, and says what changed and what needs a restart", gives: Reload{}, whole: true}}},
		{path: "/v1/guests", on: verbs{
			"GET": {do: listGuests, says: "Lists who is plugged in, oldest first", gives: []backend.GuestInfo{}, pages: guestPages}}},
		{path: "/v1/guests/{guest}", id: guestID, on: verbs{
			"GET":    {do: getGuest, says: "Shows a guest", gives: backend.GuestInfo{}},
			"DELETE": {do: kickGuest, says: "Ends a guest's wire; one that reconnects comes back"}}},
		{path: "/v1/forwards", tag: forwardsTag, on: verbs{
			"GET":  {do: listForwards, says: "Lists port forwards, with their counters", gives: []portforward.Status{}},
			"POST": {do: addForward, says: "Adds port forwards, all that a text names or none", takes: ForwardRequest{}, gives: []Forward{}, code: http.StatusCreated},
			"PUT":  {do: putForwards, says: "Has these port forwards and no others, all or none; those that are there already notice nothing", takes: ForwardSet{}, gives: []Forward{}}}},
		{path: "/v1/forwards/{id}", id: "a port forward's id, as tcp:127.0.0.1:2222", tag: forwardTag, on: verbs{
			"GET":    {do: getForward, says: "Shows a port forward, with its counters", gives: portforward.Status{}},
			"PUT":    {do: putForward, says: "Adds a port forward, leaves it as it is, or has it lead to another place", takes: ForwardRequest{}, gives: Forward{}, also: http.StatusCreated},
			"DELETE": {do: removeForward, says: "Removes a port forward", query: []param{{name: "cut", says: "end its conversations, too", is: false}}}}},
		{path: "/v1/leases", on: verbs{
			"GET": {do: listLeases, says: "Lists who has which address", gives: []Lease{}, pages: leasePages}}},
		{path: "/v1/leases/{address}", id: "a leased address", on: verbs{
			"DELETE": {do: releaseLease, says: "Frees an address"}}},
		{path: "/v1/events", on: verbs{
			"GET": {do: s.listEvents, says: "Lists what happened, oldest first, or tells it as it happens", gives: []backend.Event{}, streams: backend.Event{}, whole: true, pages: eventPages,
				query: []param{{name: "since", says: "only after the event with this id, or this many microseconds since 1970", is: 0}}}}},
		{path: "/v1/dns", tag: dnsTag, on: verbs{
			"GET":    {do: listDNS, says: "Lists local records", gives: []backend.DNSRecord{}, query: dnsParams},
			"POST":   {do: addDNS, says: "Adds a local record", takes: DNSRequest{}},
			"DELETE": {do: removeDNS, says: "Removes local records of a name", query: dnsParams}}},
	}
}

var dnsParams = []param{
	{name: "name", says: "of this name"},
	{name: "type", says: "of this type, as A"},
	{name: "value", says: "with this value"},
}

// ForwardRequest is port forwards to add: a text in any of portforward's syntaxes, or a rule as an object.
type ForwardRequest struct {
	Rule json.RawMessage `json:"rule"`
}

// ok answers with a list that is [] and not null when it is empty.
func ok[T any](list []T) (reply, error) {
	if list == nil {
		list = []T{}
	}
	return reply{http.StatusOK, list}, nil
}

var done = reply{code: http.StatusNoContent}

func (s *Server) status(c *call) (reply, error) {
	st := Status{Version: s.Version, PID: os.Getpid(), API: s.API, Listen: s.listen(), Networks: []backend.Status{}}
	if st.Listen == nil {
		st.Listen = []string{}
	}
	if s.FlowLog != nil {
		st.FlowLog = s.FlowLog()
	}
	if s.Sandbox != nil {
		box := s.Sandbox()
		st.Sandbox = &box
	}
	for _, n := range s.networks() {
		if one := n.Status(); c.query.Get("network") == "" || n == c.net {
			st.Networks = append(st.Networks, one)
		}
	}
	return reply{http.StatusOK, st}, nil
}

func listGuests(c *call) (reply, error) { return ok(c.net.Guests()) }

// guest finds one by what people call it.
func (c *call) guest(ref string) (g backend.GuestInfo, err error) {
	if ref == "" {
		return g, problem(http.StatusBadRequest, "name one by id, name, MAC or address", "no guest is named")
	}
	var found []backend.GuestInfo
	all := c.net.Guests()
	addr, _ := netip.ParseAddr(ref)
	for _, g := range all {
		if g.ID == ref {
			return g, nil // an id is never anybody else's name for long: ids win
		}
		if strings.EqualFold(g.Name, ref) || strings.EqualFold(g.MAC, strings.ReplaceAll(ref, "-", ":")) ||
			addr.IsValid() && slices.Contains(g.Addrs, addr.Unmap()) {
			found = append(found, g)
		}
	}
	var ids []string
	for _, g := range found {
		ids = append(ids, g.ID)
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		for _, g := range all {
			ids = append(ids, g.ID)
		}
		hint := "no guest is plugged in"
		if len(ids) > 0 {
			hint = "there is " + short(strings.Join(ids, ", "))
		}
		return g, problem(http.StatusNotFound, hint, "no guest %q", short(ref))
	}
	return g, problem(http.StatusConflict, "name one of "+strings.Join(ids, ", "), "%d guests are %q", len(found), short(ref))
}

func getGuest(c *call) (reply, error) {
	g, err := c.guest(c.PathValue("guest"))
	return reply{http.StatusOK, g}, err
}

func kickGuest(c *call) (reply, error) {
	g, err := c.guest(c.PathValue("guest"))
	if err != nil {
		return reply{}, err
	}
	if err := c.net.Kick(g.ID); err != nil {
		return reply{}, problem(http.StatusNotFound, "it may just have gone", "%v", err)
	}
	return done, nil
}

func listForwards(c *call) (reply, error) { return ok(c.net.Forwards().List()) }

const forwardExample = `{"rule":"127.0.0.1:2222:22/tcp"}`

func addForward(c *call) (reply, error) {
	rules, err := c.rules()
	if err != nil {
		return reply{}, err
	}
	end, err := c.begin()
	if err != nil {
		return reply{}, err
	}
	defer end()
	bound, err := c.net.Forwards().AddAll(c.Context(), rules)
	if err != nil {
		return reply{}, forwardProblem(err)
	}
	added := []Forward{}
	for _, r := range bound {
		added = append(added, Forward{r.ID(), r.String(), r})
	}
	return reply{http.StatusCreated, added}, nil
}

// rules are those of the body's ForwardRequest.
func (c *call) rules() ([]portforward.Rule, error) {
	var body ForwardRequest
	if err := c.decode(&body, forwardExample); err != nil {
		return nil, err
	}
	return forwardRules(body.Rule)
}

// forwardRules reads a text, which may be a list of rules, or one rule as an object.
func forwardRules(raw json.RawMessage) (rules []portforward.Rule, err error) {
	switch raw := bytes.TrimSpace(raw); {
	case len(raw) == 0 || string(raw) == "null":
		return nil, problem(http.StatusBadRequest, "as "+forwardExample, "no rule in the body")
	case raw[0] == '"':
		var text string
		if err := strict(raw, &text, forwardExample); err != nil {
			return nil, err
		}
		rules, err = portforward.ParseRule(text)
	case raw[0] == '{':
		rules = make([]portforward.Rule, 1)
		if err := strict(raw, &rules[0], forwardExample); err != nil {
			return nil, err
		}
	default:
		return nil, problem(http.StatusBadRequest, "as "+forwardExample, "the rule is neither a text nor an object")
	}
	if err != nil {
		return nil, forwardProblem(err)
	}
	return rules, nil
}

func removeForward(c *call) (reply, error) {
	end, err := c.begin()
	if err != nil {
		return reply{}, err
	}
	defer end()
	if _, err := c.net.Forwards().Remove(c.PathValue("id"), c.query.Get("cut") == "true"); err != nil {
		return reply{}, forwardProblem(err)
	}
	return done, nil
}

// forwardProblem gives the port forwards' errors their status codes. What is none of theirs stays as it is.
func forwardProblem(err error) error {
	var e *portforward.Error
	if !errors.As(err, &e) {
		return err
	}
	status := http.StatusUnprocessableEntity
	switch e.Kind {
	case portforward.ErrClash, portforward.ErrInUse, portforward.ErrNotSocket:
		status = http.StatusConflict
	case portforward.ErrNotFound:
		status = http.StatusNotFound
	case portforward.ErrLimit, portforward.ErrClosed:
		status = http.StatusServiceUnavailable
	}
	return problem(status, "", "%v", e)
}

func listLeases(c *call) (reply, error) {
	list := []Lease{}
	for _, l := range c.net.Leases() {
		list = append(list, Lease{Addr: l.Addr, MAC: l.MAC.String(), ClientID: l.ClientID, IAID: l.IAID, Guest: l.Guest, Away: l.Away,
			Hostname: l.Hostname, Name: l.Name, State: string(l.State), Static: l.Static, Start: l.Start, Expires: l.Expires})
	}
	return ok(list)
}

func releaseLease(c *call) (reply, error) {
	a, err := netip.ParseAddr(c.PathValue("address"))
	if err != nil {
		return reply{}, problem(http.StatusBadRequest, "as /v1/leases/10.0.2.15", "%q is no address", short(c.PathValue("address")))
	}
	for _, l := range c.net.Leases() {
		if l.Addr == a.Unmap() {
			if err := c.net.ReleaseLease(l.Addr); err != nil {
				return reply{}, problem(http.StatusConflict, "", "%v", err)
			}
			return done, nil
		}
	}
	return reply{}, problem(http.StatusNotFound, "the list of leases has those there are", "no lease of %s", a)
}

// DNSRequest is a record to add.
type DNSRequest struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Value string `json:"value"`
	TTL   uint32 `json:"ttl,omitempty"` // 0: the server's own default
}

// dnsTag is of the records that were added; those of guests and of the network come and go by themselves.
func dnsTag(c *call) (any, error) {
	return slices.DeleteFunc(c.net.DNSRecords(), func(r backend.DNSRecord) bool { return r.Source != "admin" }), nil
}

func listDNS(c *call) (reply, error) {
	q := c.query
	return ok(slices.DeleteFunc(c.net.DNSRecords(), func(r backend.DNSRecord) bool {
		return !matches(r, q.Get("name"), q.Get("type"), q.Get("value"))
	}))
}

// matches compares names as DNS does, and takes a wish that is empty for any.
func matches(r backend.DNSRecord, name, typ, value string) bool {
	dot := func(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }
	return (name == "" || dot(name) == dot(r.Name)) && (typ == "" || strings.EqualFold(typ, r.Type)) &&
		(value == "" || dot(value) == dot(r.Value))
}

const dnsExample = `{"name":"db.internal","type":"A","value":"10.0.2.20"}`

func addDNS(c *call) (reply, error) {
	var r DNSRequest
	if err := c.decode(&r, dnsExample); err != nil {
		return reply{}, err
	}
	if r.Name == "" || r.Type == "" || r.Value == "" {
		return reply{}, problem(http.StatusUnprocessableEntity, "as "+dnsExample, "a record has a name, a type and a value, and one is missing")
	}
	if err := oneWord(r.Name, r.Type); err != nil {
		return reply{}, err
	}
	end, err := c.begin()
	if err != nil {
		return reply{}, err
	}
	defer end()
	if err := c.net.AddDNS(backend.DNSRecord{Name: r.Name, Type: r.Type, Value: r.Value, TTL: r.TTL}); err != nil {
		status, right := http.StatusUnprocessableEntity, "as "+dnsExample
		switch {
		case errors.Is(err, backend.ErrNameTaken):
			status, right = http.StatusConflict, "another name, or remove that record first"
		case errors.Is(err, backend.ErrDNSFull):
			status, right = http.StatusServiceUnavailable, "remove records that are not needed"
		}
		return reply{}, problem(status, right, "%s", short(err.Error()))
	}
	return done, nil
}

func removeDNS(c *call) (reply, error) {
	q := c.query
	name, typ, value := q.Get("name"), q.Get("type"), q.Get("value")
	if name == "" {
		return reply{}, problem(http.StatusBadRequest, "DELETE /v1/dns?name=db.internal&type=A", "which record? no name in the query")
	}
	if value != "" && typ == "" {
		return reply{}, problem(http.StatusBadRequest, "DELETE /v1/dns?name=db.internal&type=A&value=10.0.2.20", "a value without its type")
	}
	if err := oneWord(name, typ); err != nil {
		return reply{}, err
	}
	end, err := c.begin()
	if err != nil {
		return reply{}, err
	}
	defer end()
	if err := c.net.RemoveDNS(name, typ, value); err != nil {
		return reply{}, problem(http.StatusNotFound, "the list has those there are; a lease's go with it, and the gateway's stay", "%s", short(err.Error()))
	}
	return done, nil
}

// oneWord keeps a name from being read as a name and more: the records become lines of a zone file.
func oneWord(fields ...string) error {
	for _, f := range fields {
		if strings.ContainsFunc(f, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) || strings.ContainsRune(`;"()`, r) }) {
			return problem(http.StatusUnprocessableEntity, "names have letters, digits, - _ and .", "%q is not one word", short(f))
		}
	}
	return nil
}
