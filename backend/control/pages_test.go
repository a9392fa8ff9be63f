package control

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/flows"
)

// openFlows begins conversations with distinct destinations, of which bytes have moved.
func openFlows(t *testing.T, n *backend.Network, guest string, count int) []*flows.Flow {
	t.Helper()
	var list []*flows.Flow
	for i := range count {
		f, v := n.Flows().Open(flows.Query{Guest: guest, Proto: flows.TCP, Dir: flows.Out,
			Src: netip.AddrPortFrom(netip.MustParseAddr("10.0.2.15"), uint16(10000+i)),
			Dst: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i%200 + 1)}), uint16(80+i%3))}, nil)
		if f == nil {
			t.Fatal(v)
		}
		f.Up.Bytes.Add(uint64(1000 * i))
		t.Cleanup(func() { f.End(flows.ReasonClosed) })
		list = append(list, f)
	}
	return list
}

// page asks for one page and says where the next is.
func (r *rig) page(path string) (entries []map[string]any, next string) {
	r.t.Helper()
	resp, body := r.do("GET", path, "", "")
	if resp.StatusCode != 200 {
		r.t.Fatalf("GET %s: %d %s", path, resp.StatusCode, body)
	}
	if err := json.Unmarshal([]byte(body), &entries); err != nil {
		r.t.Fatal(err)
	}
	if link := resp.Header.Get("Link"); link != "" {
		target, ok := strings.CutSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`)
		if !ok || !strings.HasPrefix(target, "/v1/") {
			r.t.Fatalf("GET %s: Link: %s", path, link)
		}
		return entries, target
	}
	return entries, ""
}

func TestPages(t *testing.T) {
	r := newRig(t)
	list := openFlows(t, r.net, "g1", 25)
	seen := map[float64]int{}
	sizes := []int{}
	for path, i := "/v1/flows?limit=7&proto=tcp", 0; path != ""; i++ {
		var page []map[string]any
		page, path = r.page(path)
		sizes = append(sizes, len(page))
		for _, f := range page {
			seen[f["id"].(float64)]++
		}
		if i == 1 { // what ends, and what begins, moves nothing from page to page
			list[3].End(flows.ReasonClosed)
			list[13].End(flows.ReasonClosed)
			list[20].End(flows.ReasonClosed)
			list = append(list, openFlows(t, r.net, "g1", 1)...)
		}
	}
	for i, f := range list {
		want := 1
		if i == 20 { // it ended before it was come to
			want = 0
		}
		if seen[float64(f.ID)] != want {
			t.Errorf("conversation %d of %d was on %d pages, want %d", i, len(list), seen[float64(f.ID)], want)
		}
	}
	if len(sizes) != 4 || slices.Max(sizes) != 7 {
		t.Errorf("pages of %v", sizes)
	}
	all, next := r.page("/v1/flows")
	if len(all) != 23 || next != "" {
		t.Errorf("without limit: %d, next %q", len(all), next)
	}
	if page, next := r.page("/v1/flows?limit=23"); len(page) != 23 || next != "" {
		t.Errorf("a page for all: %d, next %q", len(page), next)
	}
	if page, next := r.page("/v1/leases?limit=5"); len(page) != 0 || next != "" {
		t.Errorf("an empty list: %v, next %q", page, next)
	}

	// The client has all as they were at one time: who follows pages while conversations begin may never come to an end.
	ctx := context.Background()
	const more = 1000
	openFlows(t, r.net, "g2", more)
	got, err := r.c.Flows(ctx, FlowFilter{})
	if err != nil || len(got) != more+23 || !slices.IsSortedFunc(got, func(a, b flows.Snapshot) int { return int(a.ID) - int(b.ID) }) {
		t.Errorf("the client has %d, %v", len(got), err)
	}
	if got, err := r.c.Flows(ctx, FlowFilter{Limit: 3}); err != nil || len(got) != 3 {
		t.Errorf("three: %d, %v", len(got), err)
	}

	for i := range 5 {
		r.net.Note(backend.Event{Kind: backend.EventPolicy, Text: fmt.Sprint("number ", i)})
	}
	events := 0
	for path := "/v1/events?limit=2"; path != ""; {
		var page []map[string]any
		page, path = r.page(path)
		events += len(page)
	}
	if kept := len(r.net.Events().List(0)); events != kept || kept < 5 {
		t.Errorf("%d events in pages, %d in all", events, kept)
	}

	for _, q := range []string{"limit=0", "limit=-1", "limit=x", "limit=10001", "limit=1&after=x", "after=1/2/3", "sort=bytes&after=1", "sort=name"} {
		if resp, body := r.do("GET", "/v1/flows?"+q, "", ""); resp.StatusCode != 400 {
			t.Errorf("%s: %d %s", q, resp.StatusCode, body)
		} else {
			checkForm(t, resp, body)
		}
	}
}

// Of several networks the pages go through one after the other.
func TestPagesOfNetworks(t *testing.T) {
	var nets []*backend.Network
	for _, name := range []string{"lab", "odd/name", "empty"} {
		n, err := backend.New(backend.Config{Name: name, Logger: slog.New(slog.DiscardHandler), Egress: &backendtest.Egress{},
			Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		nets = append(nets, n)
	}
	r := newRig(t, func(s *Server) { s.Networks = append(s.Networks, nets...) })
	openFlows(t, r.net, "g1", 4)
	openFlows(t, nets[0], "g1", 5)
	openFlows(t, nets[1], "g1", 3)
	for limit := 1; limit <= 13; limit++ {
		seen := map[string]int{}
		pages, total := 0, 0
		for path := fmt.Sprintf("/v1/flows?limit=%d", limit); path != ""; pages++ {
			var page []map[string]any
			if page, path = r.page(path); len(page) > limit || len(page) == 0 {
				t.Fatalf("limit %d: a page of %d", limit, len(page))
			}
			for _, f := range page {
				seen[fmt.Sprint(f["network"], f["id"])]++
				total++
			}
		}
		if total != 12 || len(seen) != 12 || pages != (12+limit-1)/limit {
			t.Errorf("limit %d: %d entries on %d pages, %d of them different", limit, total, pages, len(seen))
		}
	}
	if got, err := r.c.Flows(context.Background(), FlowFilter{}); err != nil || len(got) != 12 {
		t.Errorf("the client has %d, %v", len(got), err)
	}
	page, next := r.page("/v1/flows?sort=up&limit=5")
	var up []float64
	for _, f := range page {
		up = append(up, f["up_bytes"].(float64))
	}
	if !slices.Equal(up, []float64{4000, 3000, 3000, 2000, 2000}) || next != "" || page[0]["network"] != "lab" {
		t.Errorf("the largest: %v %v", up, page[0])
	}
	for _, after := range []string{"gone/1", "1", "lab/", "/1", "lab/x"} {
		if resp, body := r.do("GET", "/v1/flows?limit=1&after="+url.QueryEscape(after), "", ""); resp.StatusCode != 400 {
			t.Errorf("after=%s: %d %s", after, resp.StatusCode, body)
		}
	}
}

func TestFlowFilters(t *testing.T) {
	r := newRig(t)
	list := openFlows(t, r.net, "g1", 9)
	list[2].SetSaid(flows.Hello{Name: "Www.Example.COM"})
	v6, v := r.net.Flows().Open(flows.Query{Guest: "g1", Proto: flows.UDP, Dir: flows.Out,
		Src: netip.MustParseAddrPort("[fd00::1]:1"), Dst: netip.MustParseAddrPort("[2001:db8::1]:53")}, nil)
	if v6 == nil {
		t.Fatal(v)
	}
	t.Cleanup(func() { v6.End(flows.ReasonClosed) })
	for _, c := range []struct {
		query string
		want  int
	}{
		{"", 10},
		{"name=example", 1},
		{"name=nothing", 0},
		{"address=192.0.2.1", 1},
		{"address=::ffff:192.0.2.1", 1},
		{"address=192.0.2.0/29", 7},
		{"address=10.0.2.0/24", 9},
		{"address=2001:db8::/32", 1},
		{"port=80", 3},
		{"port=53", 1},
		{"min_bytes=7000", 2},
		{"verdict=allowed", 10},
		{"verdict=refused", 0},
		{"reason=closed", 0},
		{"port=80&min_bytes=1&address=192.0.2.4", 1},
		{"sort=bytes&limit=2", 2},
		{"sort=idle", 10},
	} {
		if got, _ := r.page("/v1/flows?" + c.query); len(got) != c.want {
			t.Errorf("%s: %d, want %d", c.query, len(got), c.want)
		}
	}
	if got, _ := r.page("/v1/flows?sort=bytes&limit=2"); got[0]["up_bytes"] != 8000.0 || got[1]["up_bytes"] != 7000.0 {
		t.Errorf("the largest two: %v", got)
	}
	for _, q := range []string{"address=host", "address=10.0.2.0/33", "port=65536", "port=-1", "port=", "min_bytes=1k", "verdict=maybe"} {
		if resp, body := r.do("GET", "/v1/flows?"+q, "", ""); resp.StatusCode != 400 {
			t.Errorf("%s: %d %s", q, resp.StatusCode, body)
		}
	}
	got, err := r.c.Flows(context.Background(), FlowFilter{Address: "192.0.2.0/24", Port: 80, MinBytes: 1, Verdict: "allowed", Sort: "up", Limit: 1})
	if err != nil || len(got) != 1 || got[0].ID != list[6].ID {
		t.Errorf("the client: %+v, %v", got, err)
	}
	list[0].End(flows.ReasonClosed)
	if got, _ := r.page("/v1/flows?state=closed&reason=closed&limit=5"); len(got) != 1 {
		t.Errorf("ended: %v", got)
	}
}
