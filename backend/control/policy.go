package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/policy"
)

// maxPolicy is the longest policy that is taken: policy's own bound on rules times a name of ordinary length, with what is
// around it.
const maxPolicy = 16 << 20

// Policy is what a network's guests may reach.
type Policy struct {
	Network string `json:"network"`
	// Guest is the pattern of the guests that have these rules of their own; empty for the whole.
	Guest string `json:"guest,omitempty"`
	// Text is the policy as people write it, and Policy the same as an object.
	Text   string          `json:"text"`
	Policy policy.Document `json:"policy"`
	// Ended is how many conversations were, when it was set with now.
	Ended int `json:"ended,omitempty"`
}

// PolicyRequest is a policy to set: one of its forms.
type PolicyRequest struct {
	Text   *string          `json:"text,omitempty"`
	Policy *policy.Document `json:"policy,omitempty"`
}

// policyPath takes more than other paths do.
const policyPath = "/v1/policy"

const policyExample = `{"text":"preset sandbox\nallow tcp example.com:443"}`

// auditLines bounds the audit's lines of each guest in a second: a guest begins thousands of conversations in one.
const auditLines = 100

// NewPolicy makes a policy of rules for a network, which tells its questions and changes as the network's events. audit, if
// not nil, gets a line for each decision. It is in force once it is given to n.SetPolicy.
func NewPolicy(n *backend.Network, d policy.Document, audit *slog.Logger) (*policy.Policy, error) {
	c := policy.Config{Document: d, Network: n.DefaultPolicy(), Local: n.IsLocalName, Identify: n.Identify,
		OnQuestion: func(q policy.Question) { questionEvent(n, q) },
		OnChange: func(policy.Document) {
			n.Note(backend.Event{Kind: backend.EventPolicy, Text: "an answer became a rule"})
		},
	}
	if audit != nil {
		c.Audit = policy.AuditLog(audit.With("network", n.Config().Name), auditLines)
	}
	return policy.New(c)
}

func questionEvent(n *backend.Network, q policy.Question) {
	e := backend.Event{Kind: backend.EventQuestion, Guest: q.Guest, Subject: strconv.FormatUint(q.ID, 10), Text: q.String()}
	if q.Outcome != "" {
		e.Kind = backend.EventAnswer
	}
	n.Note(e)
}

func (s *Server) policyRoutes() []route {
	part := param{name: "guest", says: "the part of the guests that have this pattern and rules of their own"}
	now := param{name: "now", says: "for conversations that run, too", is: false}
	return []route{
		{path: policyPath, tag: s.policyTag, on: verbs{
			"GET":    {do: s.getPolicy, says: "Shows what guests may reach", gives: Policy{}, query: []param{part}},
			"PUT":    {do: s.putPolicy, says: "Sets what guests may reach", takes: PolicyRequest{}, most: maxPolicy, gives: Policy{}, query: []param{part, now}},
			"DELETE": {do: s.deletePolicy, says: "Takes away the rules that guests have of their own", query: []param{part, now}}}},
		{path: "/v1/policy/test", on: verbs{
			"POST": {do: s.testPolicy, asks: true, says: "Tells what would become of a conversation", takes: PolicyTest{}, gives: policy.Result{}}}},
		{path: "/v1/policy/learn", on: verbs{
			"GET":    {do: s.getLearned, says: "Shows what was learned, and a policy of it", gives: Learned{}, query: []param{guestParam}},
			"POST":   {do: s.startLearning, says: "Begins to learn from what guests reach", takes: LearnRequest{}},
			"DELETE": {do: s.stopLearning, says: "Ends it, and shows what was learned", gives: Learned{}, query: []param{guestParam}}}},
		{path: "/v1/policy/names", on: verbs{
			"GET": {do: s.listNames, says: "Lists the addresses that names' answers opened", gives: []OpenName{}, query: []param{guestParam}}}},
		{path: "/v1/policy/questions", on: verbs{
			"GET": {do: s.listQuestions, says: "Lists what rules with ask ask", gives: []Question{}}}},
		{path: "/v1/policy/questions/{question}", id: "a question's id", on: verbs{
			"POST": {do: s.answerQuestion, says: "Answers a question", takes: Answer{}}}},
	}
}

// policyTag is of the whole, or of the part that the query names.
func (s *Server) policyTag(c *call) (any, error) {
	p, err := s.policy(c)
	if err != nil {
		return nil, err
	}
	rep, err := c.policyReply(p.Document())
	if err != nil {
		return nil, err
	}
	return rep.body.(Policy).Text, nil
}

// policy is the network's, unless it is the program's own.
func (s *Server) policy(c *call) (*policy.Policy, error) {
	if p := s.policyOf(c.net.Config().Name); p != nil {
		return p, nil
	}
	hint := "it is what the program that made the network says"
	if c.net.Config().NoUplink {
		hint = "it has no uplink: nothing goes out that could be judged"
	}
	return nil, problem(http.StatusNotFound, hint, "network %s has no policy of rules", c.net.Config().Name)
}

func (s *Server) getPolicy(c *call) (reply, error) {
	p, err := s.policy(c)
	if err != nil {
		return reply{}, err
	}
	return c.policyReply(p.Document())
}

// policyReply is a document, or its part for the guests that the query names.
func (c *call) policyReply(d policy.Document) (reply, error) {
	out := Policy{Network: c.net.Config().Name, Guest: c.query.Get("guest"), Policy: d}
	if out.Guest != "" {
		i, err := partFor(d, out.Guest)
		if err != nil {
			return reply{}, err
		}
		out.Policy = policy.Document{Set: d.Guests[i].Set}
	}
	out.Text = out.Policy.String()
	return reply{http.StatusOK, out}, nil
}

func partFor(d policy.Document, guest string) (int, error) {
	i := slices.IndexFunc(d.Guests, func(g policy.GuestSet) bool { return g.Guest == guest })
	if i >= 0 {
		return i, nil
	}
	hint := "no guests have"
	var known []string
	for _, g := range d.Guests {
		known = append(known, g.Guest)
	}
	if len(known) > 0 {
		hint = "there is " + short(strings.Join(known, ", "))
	}
	return 0, problem(http.StatusNotFound, hint, "no rules of their own for guests %q", short(guest))
}

func (s *Server) putPolicy(c *call) (reply, error) {
	var body PolicyRequest
	if err := c.decode(&body, policyExample); err != nil {
		return reply{}, err
	}
	var d policy.Document
	switch {
	case (body.Text == nil) == (body.Policy == nil):
		return reply{}, problem(http.StatusBadRequest, "as "+policyExample, "one of text and policy is wanted")
	case body.Text != nil:
		var err error
		if d, err = policy.Parse(*body.Text); err != nil {
			return reply{}, policyProblem(err)
		}
	default:
		d = *body.Policy
	}
	return s.changePolicy(c, func(whole *policy.Document) error {
		guest := c.query.Get("guest")
		if guest == "" {
			*whole = d
			return nil
		}
		if len(d.Guests) > 0 {
			return problem(http.StatusUnprocessableEntity, "their rules alone", "a part for guests %q inside the part for guests %q", short(d.Guests[0].Guest), short(guest))
		}
		part := policy.GuestSet{Guest: guest, Set: d.Set}
		whole.Guests = slices.Clone(whole.Guests)
		if i, err := partFor(*whole, guest); err == nil {
			whole.Guests[i] = part
		} else {
			whole.Guests = append(whole.Guests, part)
		}
		return nil
	})
}

func (s *Server) deletePolicy(c *call) (reply, error) {
	guest := c.query.Get("guest")
	if guest == "" {
		return reply{}, problem(http.StatusBadRequest, "DELETE /v1/policy?guest=web; for the whole, PUT another", "whose? no guest in the query")
	}
	rep, err := s.changePolicy(c, func(whole *policy.Document) error {
		i, err := partFor(*whole, guest)
		if err == nil {
			whole.Guests = slices.Delete(slices.Clone(whole.Guests), i, i+1)
		}
		return err
	})
	if err != nil {
		return rep, err
	}
	return done, nil
}

// changePolicy sets what change makes of the policy in force.
func (s *Server) changePolicy(c *call, change func(*policy.Document) error) (reply, error) {
	p, err := s.policy(c)
	if err != nil {
		return reply{}, err
	}
	now := c.query.Get("now")
	end, err := c.begin() // two who change parts of it keep each other's
	if err != nil {
		return reply{}, err
	}
	defer end()
	d := p.Document()
	if err := change(&d); err != nil {
		return reply{}, err
	}
	if err := p.Replace(d); err != nil {
		return reply{}, policyProblem(err)
	}
	ended := c.net.SetPolicy(p, now == "true")
	guest := c.query.Get("guest")
	text := "the policy was set"
	if guest != "" {
		text += " for guests " + guest
	}
	if now == "true" {
		text += fmt.Sprintf(", for running conversations too: %d were ended", ended)
	}
	c.net.Note(backend.Event{Kind: backend.EventPolicy, Subject: guest, Text: text})
	if c.Method == http.MethodDelete {
		return done, nil
	}
	rep, err := c.policyReply(p.Document())
	if set, ok := rep.body.(Policy); ok {
		set.Ended = ended
		rep.body = set
	}
	return rep, err
}

// policyProblem gives a policy's errors their status code.
func policyProblem(err error) error {
	return problem(http.StatusUnprocessableEntity, "", "%v", err)
}

// PolicyTest is a conversation that a guest might begin.
type PolicyTest struct {
	Guest string `json:"guest"` // id, name, MAC or address; or the name of one that is not there
	Proto string `json:"proto"` // tcp, udp or icmp
	To    string `json:"to"`    // as example.com:443, 192.0.2.1:22, [2001:db8::1]:443; without a port for icmp
}

const testExample = `{"guest":"web","proto":"tcp","to":"example.com:443"}`

func (s *Server) testPolicy(c *call) (reply, error) {
	p, err := s.policy(c)
	if err != nil {
		return reply{}, err
	}
	var t PolicyTest
	if err := c.decode(&t, testExample); err != nil {
		return reply{}, err
	}
	if t.Guest == "" || t.Proto == "" || t.To == "" {
		return reply{}, problem(http.StatusUnprocessableEntity, "as "+testExample, "a guest, a protocol and to where are wanted, and one is missing")
	}
	if t.Guest, err = c.guestOrName(t.Guest); err != nil {
		return reply{}, err
	}
	r, err := p.Test(t.Guest, t.Proto, t.To)
	if err != nil {
		return reply{}, policyProblem(err)
	}
	return reply{http.StatusOK, r}, nil
}

// guestOrName is a guest's id, or what it was called by if it is not there.
func (c *call) guestOrName(ref string) (string, error) {
	g, err := c.guest(ref)
	var p *Problem
	switch {
	case err == nil:
		return g.ID, nil
	case errors.As(err, &p) && p.Status == http.StatusNotFound:
		return ref, nil
	}
	return "", err
}

// Learned is what guests reached, and a policy of it.
type Learned struct {
	Network  string           `json:"network"`
	Learning policy.Learning  `json:"learning"` // off, record or allow
	Text     string           `json:"text"`
	Policy   policy.Document  `json:"policy"`
	Learned  []policy.Learned `json:"learned"`
	Missed   uint64           `json:"missed,omitempty"` // there was no room for so many
}

func (s *Server) getLearned(c *call) (reply, error) {
	p, err := s.policy(c)
	if err != nil {
		return reply{}, err
	}
	return c.learned(p)
}

func (c *call) learned(p *policy.Policy) (reply, error) {
	guest := c.query.Get("guest")
	if guest != "" {
		var err error
		if guest, err = c.guestOrName(guest); err != nil {
			return reply{}, err
		}
	}
	l := Learned{Network: c.net.Config().Name, Learning: p.Learning(), Text: p.LearnedText(guest), Policy: p.LearnedDocument(guest)}
	l.Learned, l.Missed = p.Learned()
	l.Learned = append([]policy.Learned{}, slices.DeleteFunc(l.Learned, func(x policy.Learned) bool { return guest != "" && x.Guest != guest })...)
	return reply{http.StatusOK, l}, nil
}

// LearnRequest is how to learn.
type LearnRequest struct {
	Learning policy.Learning `json:"learning"`
}

const learnExample = `{"learning":"record"}`

func (s *Server) startLearning(c *call) (reply, error) {
	p, err := s.policy(c)
	if err != nil {
		return reply{}, err
	}
	l := LearnRequest{Learning: policy.LearnRecord}
	if err := c.decode(&l, learnExample); err != nil {
		return reply{}, err
	}
	if l.Learning == policy.LearnOff {
		return reply{}, problem(http.StatusUnprocessableEntity, "record or allow; DELETE ends it", "begin to learn %q", l.Learning)
	}
	if p.Learning() != l.Learning {
		p.Learn(l.Learning)
		text := "the policy learns"
		if l.Learning == policy.LearnAllow {
			text += ", and everything is open meanwhile"
		}
		c.net.Note(backend.Event{Kind: backend.EventPolicy, Text: text})
	}
	return done, nil
}

func (s *Server) stopLearning(c *call) (reply, error) {
	p, err := s.policy(c)
	if err != nil {
		return reply{}, err
	}
	if p.Learning() != policy.LearnOff {
		p.Learn(policy.LearnOff)
		c.net.Note(backend.Event{Kind: backend.EventPolicy, Text: "the policy has learned"})
	}
	return c.learned(p)
}

// OpenName is an address that an answer opened for a guest.
type OpenName struct {
	Network string `json:"network"`
	policy.OpenName
}

func (s *Server) listNames(c *call) (reply, error) {
	guest := c.query.Get("guest")
	if guest != "" {
		g, err := c.guest(guest)
		if err != nil {
			return reply{}, err
		}
		guest = g.ID
	}
	list := []OpenName{}
	p, err := s.policy(c)
	if err != nil {
		return ok(list)
	}
	for _, g := range c.net.Guests() {
		if guest == "" || g.ID == guest {
			for _, n := range p.Names(g.ID) {
				list = append(list, OpenName{c.net.Config().Name, n})
			}
		}
	}
	return ok(list)
}

func (s *Server) listQuestions(c *call) (reply, error) {
	p, err := s.policy(c)
	if err != nil {
		return ok([]Question{}) // nobody asks
	}
	list := []Question{}
	for _, q := range p.Questions() {
		list = append(list, Question{c.net.Config().Name, q})
	}
	return ok(list)
}

// Question is one that a policy asks.
type Question struct {
	Network string `json:"network"`
	policy.Question
}

// Answer is what becomes of it.
type Answer struct {
	Answer string `json:"answer"`        // allow or deny
	For    string `json:"for,omitempty"` // once, session (the default) or always
	// Guest is for whom always is, as a pattern; by default the one that asked, by its id. * is all.
	Guest string `json:"guest,omitempty"`
}

const answerExample = `{"answer":"allow","for":"session"}`

func (s *Server) answerQuestion(c *call) (reply, error) {
	p, err := s.policy(c)
	if err != nil {
		return reply{}, err
	}
	id, err := strconv.ParseUint(c.PathValue("question"), 10, 64)
	if err != nil {
		return reply{}, problem(http.StatusBadRequest, "as /v1/policy/questions/7", "%q is no question's id", short(c.PathValue("question")))
	}
	var a Answer
	if err := c.decode(&a, answerExample); err != nil {
		return reply{}, err
	}
	if a.Answer != "allow" && a.Answer != "deny" {
		return reply{}, problem(http.StatusUnprocessableEntity, "allow or deny", "answer %q", short(a.Answer))
	}
	r := policy.Reply{Allow: a.Answer == "allow", Scope: policy.Session, Guest: a.Guest}
	if a.For != "" {
		if err := r.Scope.UnmarshalText([]byte(a.For)); err != nil {
			return reply{}, problem(http.StatusUnprocessableEntity, "once, session or always", "for %q", short(a.For))
		}
	}
	if a.Guest != "" && r.Scope != policy.Always {
		return reply{}, problem(http.StatusUnprocessableEntity, "leave it out", "an answer for guest %q that holds for %s: only a rule can be another guest's", short(a.Guest), r.Scope)
	}
	if err := p.Answer(id, r); errors.Is(err, policy.ErrNoQuestion) {
		return reply{}, problem(http.StatusNotFound, "the list of questions has what is asked now", "%v", err)
	} else if err != nil {
		return reply{}, policyProblem(err)
	}
	return done, nil
}

// Policy is the network's policy, or the part of the guests whose pattern is guest, if that is not empty.
func (c *Client) Policy(ctx context.Context, guest string) (p Policy, err error) {
	return p, c.call(ctx, "GET", "policy", values("guest", guest), nil, &p)
}

// SetPolicy sets the network's policy as a text, or that of the guests whose pattern is guest. It holds for new
// conversations, and with now for those that run.
func (c *Client) SetPolicy(ctx context.Context, text, guest string, now bool) (p Policy, err error) {
	return p, c.call(ctx, "PUT", "policy", changeValues(guest, now), PolicyRequest{Text: &text}, &p)
}

// DeletePolicy takes away the rules that guests have of their own.
func (c *Client) DeletePolicy(ctx context.Context, guest string, now bool) error {
	return c.call(ctx, "DELETE", "policy", changeValues(guest, now), nil, nil)
}

func changeValues(guest string, now bool) url.Values {
	q := values("guest", guest)
	if now {
		q.Set("now", "true")
	}
	return q
}

// TestPolicy says what would become of a conversation.
func (c *Client) TestPolicy(ctx context.Context, t PolicyTest) (r policy.Result, err error) {
	return r, c.call(ctx, "POST", "policy/test", nil, t, &r)
}

// Learn begins to learn from what guests reach.
func (c *Client) Learn(ctx context.Context, l policy.Learning) error {
	return c.call(ctx, "POST", "policy/learn", nil, LearnRequest{l}, nil)
}

// Learned is what was learned of a guest, or of all if guest is empty.
func (c *Client) Learned(ctx context.Context, guest string) (l Learned, err error) {
	return l, c.call(ctx, "GET", "policy/learn", values("guest", guest), nil, &l)
}

// StopLearning ends it and returns what was learned.
func (c *Client) StopLearning(ctx context.Context, guest string) (l Learned, err error) {
	return l, c.call(ctx, "DELETE", "policy/learn", values("guest", guest), nil, &l)
}

// OpenNames are the addresses that answers opened, of a guest, or of all if guest is empty.
func (c *Client) OpenNames(ctx context.Context, guest string) (list []OpenName, err error) {
	return list, c.call(ctx, "GET", "policy/names", values("guest", guest), nil, &list)
}

// Questions are what policies ask.
func (c *Client) Questions(ctx context.Context) (list []Question, err error) {
	return list, c.call(ctx, "GET", "policy/questions", nil, nil, &list)
}

// Answer answers a question.
func (c *Client) Answer(ctx context.Context, id uint64, a Answer) error {
	return c.call(ctx, "POST", "policy/questions/"+strconv.FormatUint(id, 10), nil, a, nil)
}
