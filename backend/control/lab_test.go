package control

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/lab/topology"
)

// fakeLab remembers what it was asked for.
type fakeLab struct {
	got   LabRequest
	acts  []string
	ended int
}

func (l *fakeLab) Status() topology.Status {
	return topology.Status{Name: "shop", File: "/x/lab.yaml", PID: os.Getpid(), Since: time.Now(), Nodes: []topology.NodeStatus{
		{Name: "web1", Kind: topology.KindNetns, State: topology.StateReady, Interfaces: []topology.InterfaceStatus{{Name: "eth0", Network: "lan"}}},
		{Name: "web2", Kind: topology.KindQEMU, State: topology.StateFailed, Error: "no kernel"}}}
}

func (l *fakeLab) Apply(_ context.Context, r LabRequest) (LabChanges, error) {
	l.got = r
	if r.Text == "bad" {
		return LabChanges{}, &Problem{Type: "about:blank", Title: "Unprocessable Entity", Status: http.StatusUnprocessableEntity, Detail: r.File + ":3:1: no such key"}
	}
	if r.Text == "same" {
		return LabChanges{Name: "shop"}, nil
	}
	return LabChanges{"shop", []topology.Change{{What: "node web1", Action: "start", Why: "new"}}}, nil
}

func (l *fakeLab) End() { l.ended++ }

func (l *fakeLab) Act(_ context.Context, node string, what NodeAction) error {
	l.acts = append(l.acts, node+" "+string(what))
	return nil
}

func (l *fakeLab) Exec(_ context.Context, node string, c LabCommand) (LabResult, error) {
	if node == "web2" {
		return LabResult{}, errors.New("no agent")
	}
	return LabResult{Exit: 3, Stdout: append([]byte(strings.Join(c.Args, " ")+"\xff"), c.Stdin...)}, nil
}

func TestLab(t *testing.T) {
	l := &fakeLab{}
	r := newRig(t, func(s *Server) { s.Lab = l })
	ctx := t.Context()
	st, err := r.c.Lab(ctx)
	if err != nil || st.Name != "shop" || len(st.Nodes) != 2 || st.Nodes[1].Error != "no kernel" {
		t.Errorf("%+v %v", st, err)
	}
	for _, path := range []string{"/v1/lab", "/v1/lab/nodes"} {
		resp, body := r.do("GET", path, "", "")
		if resp.StatusCode != 200 || strings.Contains(body, "null") {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
		asDescribed(t, resp.Request, resp, body)
	}
	req := LabRequest{File: "/x/lab.yaml", Text: "name: shop", Set: map[string]string{"n": "2"}}
	got, err := r.c.ApplyLab(ctx, req)
	if err != nil || len(got.Changes) != 1 || got.Changes[0].What != "node web1" || l.got.Set["n"] != "2" {
		t.Errorf("%+v %v; the lab was asked for %+v", got, err, l.got)
	}
	b, _ := json.Marshal(LabRequest{File: "/x/lab.yaml", Text: "same"})
	resp, body := r.do("PUT", "/v1/lab", js, string(b))
	if resp.StatusCode != 200 || !strings.Contains(body, `"changes":[]`) {
		t.Errorf("nothing to change: %d %s", resp.StatusCode, body)
	}
	asDescribed(t, resp.Request, resp, body)
	_, err = r.c.ApplyLab(ctx, LabRequest{File: "/x/lab.yaml", Text: "bad"})
	var p *Problem
	if !errors.As(err, &p) || p.Status != 422 || p.Detail != "/x/lab.yaml:3:1: no such key" {
		t.Errorf("a file that is wrong: %v", err)
	}
	for _, what := range []NodeAction{NodeStart, NodeStop, NodeRestart} {
		if err := r.c.Act(ctx, "web1", what); err != nil {
			t.Error(what, err)
		}
	}
	if s := strings.Join(l.acts, ","); s != "web1 start,web1 stop,web1 restart" {
		t.Errorf("acts: %s", s)
	}
	if err := r.c.Act(ctx, "web9", NodeStop); !errors.As(err, &p) || p.Status != 404 || !strings.Contains(p.Hint, "web1, web2") {
		t.Errorf("a node that there is not: %v", err)
	}
	x, err := r.c.ExecLab(ctx, "web1", LabCommand{Args: []string{"echo", "a"}, Stdin: []byte{0, 254}})
	if err != nil || x.Exit != 3 || string(x.Stdout) != "echo a\xff\x00\xfe" || x.Stderr == nil {
		t.Errorf("%+v %v", x, err)
	}
	for body, want := range map[string]int{`{"args":[]}`: 422, `{"args":["a"],"shell":true}`: 400, `[]`: 400, ``: 400} {
		if resp, text := r.do("POST", "/v1/lab/nodes/web1/exec", js, body); resp.StatusCode != want {
			t.Errorf("exec %s: %d %s, want %d", body, resp.StatusCode, text, want)
		}
	}
	if _, err := r.c.ExecLab(ctx, "web2", LabCommand{Args: []string{"true"}}); err == nil {
		t.Error("a node without an agent runs commands")
	}
	if err := r.c.EndLab(ctx); err != nil || l.ended != 1 {
		t.Errorf("end: %v, %d times", err, l.ended)
	}
}

// A daemon without a lab says so; one with a lab and no network yet answers all the same.
func TestNoLab(t *testing.T) {
	r := newRig(t)
	var p *Problem
	if _, err := r.c.Lab(t.Context()); !errors.As(err, &p) || p.Status != 404 || !strings.Contains(p.Hint, "lab up") {
		t.Errorf("%v", err)
	}
	bare := newRig(t, func(s *Server) { s.Networks, s.Lab = nil, &fakeLab{} })
	if st, err := bare.c.Lab(t.Context()); err != nil || st.Name != "shop" {
		t.Errorf("%+v %v", st, err)
	}
	if st, err := bare.c.Status(t.Context()); err != nil || len(st.Networks) != 0 {
		t.Errorf("%+v %v", st, err)
	}
	if _, err := bare.c.Guests(t.Context()); !errors.As(err, &p) || p.Status != 404 {
		t.Errorf("guests of no network: %v", err)
	}
	bare.scrape()
}

// Networks come and go while the server runs.
func TestRemove(t *testing.T) {
	r := newRig(t, func(s *Server) { s.Lab = &fakeLab{} })
	n, err := backend.New(backend.Config{Name: "second", Logger: r.srv.Logger, Prefix4: netip.MustParsePrefix("10.9.0.0/24"),
		Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	count := func() int {
		st, err := r.c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(st.Networks)
	}
	for range 3 {
		r.srv.Add(n, nil)
		if count() != 2 {
			t.Error("a network that came is not shown")
		}
		r.srv.Remove(n)
		if count() != 1 {
			t.Error("a network that went is shown")
		}
	}
	r.srv.Remove(n) // once more does nothing
	r.srv.Add(n, nil)
	n.Close()
	if count() != 2 { // closed, and not yet removed
		t.Error("a closed network ends the status")
	}
	r.scrape()
	r.srv.Remove(n)
}
