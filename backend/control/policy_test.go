package control

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/policy"
)

// rules gives a network a policy of rules.
func rules(t *testing.T, s *Server, n *backend.Network, text string, audit *slog.Logger) *policy.Policy {
	t.Helper()
	d, err := policy.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPolicy(n, d, audit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	n.SetPolicy(p, false)
	if s.Policies == nil {
		s.Policies = map[string]*policy.Policy{}
	}
	s.Policies[n.Config().Name] = p
	return p
}

func TestPolicy(t *testing.T) {
	const text = "preset sandbox\nallow tcp example.com:443\n"
	var p *policy.Policy
	r := newRig(t, func(s *Server) { p = rules(t, s, s.Networks[0], text, nil) })
	ctx := t.Context()
	got, err := r.c.Policy(ctx, "")
	if err != nil || got.Text != text || got.Network != "default" || got.Policy.Preset != policy.Sandbox || len(got.Policy.Rules) != 1 {
		t.Fatalf("policy: %+v, %v", got, err)
	}
	// As it came out it goes in, as text and as an object.
	b, err := json.Marshal(PolicyRequest{Policy: &got.Policy})
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{string(b), `{"text":` + strconv.Quote(text) + `}`} {
		resp, said := r.do("PUT", "/v1/policy", "application/json", body)
		var set Policy
		if err := json.Unmarshal([]byte(said), &set); resp.StatusCode != 200 || err != nil || set.Text != text {
			t.Errorf("PUT %s: %d %s", body, resp.StatusCode, said)
		}
	}
	// Parts for guests.
	if _, err := r.c.SetPolicy(ctx, "preset open\nreject any private", "web*", false); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.SetPolicy(ctx, "allow tcp b.example:1", "db", true); err != nil {
		t.Fatal(err)
	}
	if got, err = r.c.Policy(ctx, "web*"); err != nil || got.Text != "preset open\nreject any private\n" || got.Guest != "web*" {
		t.Errorf("part: %+v, %v", got, err)
	}
	if _, err := r.c.SetPolicy(ctx, "preset open", "web*", false); err != nil {
		t.Fatal(err)
	}
	want := text + "\nguest web*\n  preset open\n\nguest db\n  allow tcp b.example:1\n"
	if got, err = r.c.Policy(ctx, ""); err != nil || got.Text != want {
		t.Errorf("with parts: %q, %v, want %q", got.Text, err, want)
	}
	if err := r.c.DeletePolicy(ctx, "web*", false); err != nil || len(p.Document().Guests) != 1 {
		t.Errorf("delete: %v, %v", err, p.Document())
	}

	for _, c := range []struct {
		method, path, body string
		code               int
		says               string
	}{
		{"GET", "/v1/policy?guest=nobody", "", 404, "there is db"},
		{"GET", "/v1/policy?now=true", "", 400, "no query parameter"},
		{"DELETE", "/v1/policy", "", 400, "whose"},
		{"DELETE", "/v1/policy?guest=nobody", "", 404, "no rules of their own"},
		{"PUT", "/v1/policy?now=yes", `{"text":"preset open"}`, 400, "true or false"},
		{"PUT", "/v1/policy", `{}`, 400, "one of text and policy"},
		{"PUT", "/v1/policy", `{"text":"preset open","policy":{}}`, 400, "one of text and policy"},
		{"PUT", "/v1/policy", `{"txt":"preset open"}`, 400, "txt"},
		{"PUT", "/v1/policy", `{"text":"preset opn"}`, 422, "open, sandbox, offline or restrict"},
		{"PUT", "/v1/policy", `{"text":"preset open\nallow tpc x.example:1"}`, 422, "line 2, column 7"},
		{"PUT", "/v1/policy", `{"policy":{"preset":"opn"}}`, 400, "opn"},
		{"PUT", "/v1/policy", `{"policy":{"rules":[{"verdict":"allow","to":"nowhere"}]}}`, 422, "rule 1"},
		{"PUT", "/v1/policy?guest=a", `{"text":"guest b\npreset open"}`, 422, "inside"},
		{"PUT", "/v1/policy?guest=a%20b", `{"text":"preset open"}`, 422, "without spaces"},
		{"PUT", "/v1/policy?gest=a", `{"text":"preset open"}`, 400, "gest"},
		{"POST", "/v1/policy/test", `{"guest":"x","proto":"tcp"}`, 422, "one is missing"},
		{"POST", "/v1/policy/test", `{"guest":"x","proto":"tpc","to":"example.com:443"}`, 422, "tcp, udp or icmp"},
		{"POST", "/v1/policy/test", `{"guest":"x","proto":"tcp","to":"example.com"}`, 422, "one port"},
		{"POST", "/v1/policy/learn?guest=x", `{}`, 400, "no query parameter"},
		{"POST", "/v1/policy/learn", `{"learning":"off"}`, 422, "DELETE ends it"},
		{"POST", "/v1/policy/learn", `{"learning":"all"}`, 400, "off, record or allow"},
		{"GET", "/v1/policy/names?guest=x", "", 404, "no guest"},
		{"POST", "/v1/policy/questions/x", `{"answer":"allow"}`, 400, "no question's id"},
		{"POST", "/v1/policy/questions/1", `{"answer":"allow"}`, 404, "question 1"},
		{"POST", "/v1/policy/questions/1", `{"answer":"yes"}`, 422, "allow or deny"},
		{"POST", "/v1/policy/questions/1", `{"answer":"deny","for":"ever"}`, 422, "once, session or always"},
		{"POST", "/v1/policy/questions/1", `{"answer":"deny","guest":"*"}`, 422, "only a rule"},
		{"GET", "/v1/policy/questions/1", "", 405, "takes no GET"},
	} {
		typ := ""
		if c.body != "" {
			typ = "application/json"
		}
		resp, said := r.do(c.method, c.path, typ, c.body)
		if resp.StatusCode != c.code || !strings.Contains(said, c.says) {
			t.Errorf("%s %s %s: %d %s, want %d and %q", c.method, c.path, c.body, resp.StatusCode, said, c.code, c.says)
		}
	}
	if after := p.Document().String(); after != text+"\nguest db\n  allow tcp b.example:1\n" {
		t.Errorf("what was refused changed the policy: %s", after)
	}
	kinds := 0
	for _, e := range r.net.Events().List(0) {
		if e.Kind == backend.EventPolicy {
			kinds++
		}
	}
	if kinds != 6 {
		t.Errorf("%d events of the policy, want one for each change: 6", kinds)
	}
}

// A long policy is taken, a longer one refused, and other requests stay short.
func TestPolicySize(t *testing.T) {
	r := newRig(t, func(s *Server) { rules(t, s, s.Networks[0], "", nil) })
	var b strings.Builder
	for i := range 20_000 {
		b.WriteString("reject any ads" + strconv.Itoa(i) + ".example.com\n")
	}
	got, err := r.c.SetPolicy(t.Context(), b.String(), "", false)
	if err != nil || len(got.Policy.Rules) != 20_000 {
		t.Fatalf("20,000 rules: %d, %v", len(got.Policy.Rules), err)
	}
	_, err = r.c.SetPolicy(t.Context(), strings.Repeat("# nothing\n", maxPolicy/10+1), "", false)
	var p *Problem
	if !errors.As(err, &p) || p.Status != 413 {
		t.Errorf("more than is taken: %v", err)
	}
	if resp, _ := r.do("POST", "/v1/policy/test", "application/json", `{"guest":"`+strings.Repeat("x", maxBody)+`"}`); resp.StatusCode != 413 {
		t.Errorf("a test of more than %d bytes: %d", maxBody, resp.StatusCode)
	}
	if log := r.log.String(); !strings.Contains(log, "/v1/policy") || strings.Contains(log, "/v1/policy/test") {
		t.Errorf("a test is no change, and is logged as one: %s", log)
	}
}

// Whether it is one network's, all networks', or a program's own policy.
func TestPolicyNetworks(t *testing.T) {
	lab, err := backend.New(backend.Config{Name: "lab", Logger: slog.New(slog.DiscardHandler), Egress: &backendtest.Egress{},
		Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	r := newRig(t, func(s *Server) {
		s.Networks = append(s.Networks, lab)
		rules(t, s, lab, "preset offline", nil)
	})
	for _, c := range []struct {
		method, path, body string
		code               int
		says               string
	}{
		{"GET", "/v1/policy", "", 409, "which network"},
		{"PUT", "/v1/policy", `{"text":"preset open"}`, 409, "which network"},
		{"GET", "/v1/policy/learn", "", 409, "which network"},
		{"GET", "/v1/policy?network=default", "", 404, "no policy of rules"},
		{"GET", "/v1/policy?network=lab", "", 200, `"network":"lab"`},
		{"GET", "/v1/policy/questions", "", 200, "[]"},
		{"GET", "/v1/policy/names", "", 200, "[]"},
		{"POST", "/v1/policy/questions/1", `{"answer":"allow"}`, 409, "which network"},
		{"POST", "/v1/policy/learn?network=lab", `{}`, 204, ""},
		{"GET", "/v1/policy/learn?network=lab", "", 200, `"learning":"record"`},
		{"DELETE", "/v1/policy/learn?network=lab", "", 200, `"learning":"off"`},
	} {
		typ := ""
		if c.body != "" {
			typ = "application/json"
		}
		resp, said := r.do(c.method, c.path, typ, c.body)
		if resp.StatusCode != c.code || !strings.Contains(said, c.says) {
			t.Errorf("%s %s: %d %s, want %d and %q", c.method, c.path, resp.StatusCode, said, c.code, c.says)
		}
	}
}

// A guest by each of its names is tested, what its names opened is listed, and it is told apart by MAC and name.
func TestPolicyGuests(t *testing.T) {
	r := newRig(t, func(s *Server) {
		rules(t, s, s.Networks[0], "preset sandbox\nguest web\n  preset open\n", nil)
	})
	g := backendtest.Plug(t, r.net, backendtest.Config{Name: "web"}).Up(t)
	info, err := r.c.Guest(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	mac, name := r.net.Identify(info.ID)
	if mac != info.MAC || name != "web" {
		t.Errorf("identified as %q, %q, want %q and web", mac, name, info.MAC)
	}
	if mac, name := r.net.Identify("g99"); mac != "" || name != "" {
		t.Errorf("nobody is %q, %q", mac, name)
	}
	for _, ref := range []string{info.ID, "web", info.MAC, info.Addrs[0].String()} {
		res, err := r.c.TestPolicy(t.Context(), PolicyTest{ref, "tcp", "192.0.2.1:80"})
		if err != nil || res.Verdict != policy.Allow || res.Guest != info.ID {
			t.Errorf("test as %s: %+v, %v", ref, res, err)
		}
	}
	if res, err := r.c.TestPolicy(t.Context(), PolicyTest{"other", "tcp", "192.0.2.1:80"}); err != nil || res.Verdict != policy.Reject || res.Reason != flows.ReasonPolicy || res.Rule == "" {
		t.Errorf("test as another: %+v, %v", res, err)
	}
	for name, want := range map[string]bool{"web.internal": true, "gateway.internal": true, "host.docker.internal": true, "example.com": false, "2.2.0.10.in-addr.arpa": true} {
		if r.net.IsLocalName(name) != want {
			t.Errorf("%s is local: %v, want %v", name, !want, want)
		}
	}
	p := r.srv.Policies["default"]
	p.Answered(info.ID, "example.com", []netip.Addr{netip.MustParseAddr("192.0.2.1")}, 0, false)
	names, err := r.c.OpenNames(t.Context(), "web")
	if err != nil || len(names) != 1 || names[0].Name != "example.com" || names[0].Network != "default" || names[0].Guest != info.ID {
		t.Errorf("names: %+v, %v", names, err)
	}
	// Once it has gone, nothing is kept of it.
	g.Close()
	wait(t, "the names of a guest that has gone", func() bool { return len(p.Names(info.ID)) == 0 })
}

// A question is listed and told as an event, its answer ends the waiting, and always makes a rule.
func TestPolicyQuestions(t *testing.T) {
	var log logBuffer
	r := newRig(t, func(s *Server) {
		rules(t, s, s.Networks[0], "preset sandbox\nask tcp any:22", slog.New(slog.NewTextHandler(&log, nil)))
	})
	ask := func(to string) <-chan flows.Verdict {
		t.Helper()
		v := r.net.Flows().Judge(flows.Query{Guest: "g1", Proto: flows.TCP, Dir: flows.Out, Dst: netip.MustParseAddrPort(to)})
		if v.Pending == nil {
			t.Fatalf("%s: not asked: %+v", to, v)
		}
		return v.Pending
	}
	held := ask("192.0.2.1:22")
	list, err := r.c.Questions(t.Context())
	if err != nil || len(list) != 1 || list[0].Dst.String() != "192.0.2.1:22" || list[0].Network != "default" || list[0].Held != 1 {
		t.Fatalf("questions: %+v, %v", list, err)
	}
	id := list[0].ID
	if err := r.c.Answer(t.Context(), id, Answer{Answer: "allow", For: "always", Guest: "*"}); err != nil {
		t.Fatal(err)
	}
	if v := <-held; !v.Allow {
		t.Errorf("after a yes: %+v", v)
	}
	if text := r.srv.Policies["default"].Document().String(); !strings.Contains(text, "allow tcp 192.0.2.1:22 #") {
		t.Errorf("no rule of it: %s", text)
	}
	held = ask("192.0.2.2:22")
	if list, err = r.c.Questions(t.Context()); err != nil || len(list) != 1 {
		t.Fatalf("questions: %+v, %v", list, err)
	}
	if err := r.c.Answer(t.Context(), list[0].ID, Answer{Answer: "deny"}); err != nil {
		t.Fatal(err)
	}
	if v := <-held; v.Allow || v.Reason != flows.ReasonPolicy {
		t.Errorf("after a no: %+v", v)
	}
	var said []string
	for _, e := range r.net.Events().List(0) {
		said = append(said, string(e.Kind)+" "+e.Subject+" "+e.Text)
	}
	want := []string{"question 1 tcp 192.0.2.1:22?", "policy  an answer became a rule", "answer 1 tcp 192.0.2.1:22: allow",
		"question 2 tcp 192.0.2.2:22?", "answer 2 tcp 192.0.2.2:22: reject"}
	if strings.Join(said, "\n") != strings.Join(want, "\n") {
		t.Errorf("events: %q, want %q", said, want)
	}
	if s := log.String(); !strings.Contains(s, "verdict=ask") || !strings.Contains(s, "dst=192.0.2.2:22") || !strings.Contains(s, "network=default") {
		t.Errorf("audit: %s", s)
	}
}
