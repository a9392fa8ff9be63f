package control

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/backendtest"
	"github.com/vmnetd/vmnetd/backend/link"
)

// scrape is one reading: values by the metric's name and labels, in the order of their names.
type scrape map[string]float64

func (r *rig) scrape() (scrape, string) {
	r.t.Helper()
	resp, body := r.do("GET", "/metrics", "", "")
	if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		r.t.Fatalf("%d %s: %.300s", resp.StatusCode, resp.Header.Get("Content-Type"), body)
	}
	return parse(r.t, body), body
}

func parse(t *testing.T, text string) scrape {
	t.Helper()
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	s := scrape{}
	for name, f := range families {
		for _, m := range f.Metric {
			key := name
			for _, l := range m.Label {
				key += " " + l.GetName() + "=" + l.GetValue()
			}
			switch {
			case m.Counter != nil:
				s[key] = m.Counter.GetValue()
			case m.Gauge != nil:
				s[key] = m.Gauge.GetValue()
			case m.Histogram != nil:
				s[key] = float64(m.Histogram.GetSampleCount())
			}
		}
	}
	return s
}

func (s scrape) want(t *testing.T, key string, want float64) {
	t.Helper()
	if got, there := s[key]; !there || got != want {
		t.Errorf("%s is %v (there: %v), want %v", key, got, there, want)
	}
}

func metricsRig(t *testing.T) (*rig, *backend.Network) {
	lab, err := backend.New(backend.Config{Name: "lab", Logger: slog.New(slog.DiscardHandler), Egress: &backendtest.Egress{},
		Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	return newRig(t, func(s *Server) { s.Networks = append(s.Networks, lab) }), lab
}

// Two networks: what each guest and network counts is what the API tells, and stays when the guest has gone.
func TestMetrics(t *testing.T) {
	r, lab := metricsRig(t)
	backendtest.Plug(t, r.net, backendtest.Config{Name: "web"}).Up(t)
	g := backendtest.Plug(t, lab, backendtest.Config{Name: "db"}).Up(t)

	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	go func() {
		for {
			c, err := host.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(io.Discard, c); c.Close() }()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), backendtest.Patience)
	defer cancel()
	port := uint16(host.Addr().(*net.TCPAddr).Port)
	conn, err := g.Dial(ctx, "tcp", netip.AddrPortFrom(lab.Config().Gateway4, port))
	if err != nil {
		t.Fatal(err)
	}
	const sent = 300_000
	if _, err := conn.Write(make([]byte, sent)); err != nil {
		t.Fatal(err)
	}
	udp, err := g.DialUDP(netip.AddrPortFrom(lab.Config().DNS4, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, name := range []string{"db.internal.", "www.example."} { // ours, NOERROR; and the resolver's, that is not there: SERVFAIL
		q, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := udp.Write(q); err != nil {
			t.Fatal(err)
		}
		if _, err := udp.Read(make([]byte, 1500)); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, "the bytes", func() bool { return lab.Flows().Len() == 1 && lab.Flows().List()[0].UpBytes == sent })

	s, text := r.scrape()
	info := lab.Guests()[0]
	of := " guest=" + info.ID + " network=lab"
	s.want(t, "vmnetd_guests network=default", 1)
	s.want(t, "vmnetd_guest_up"+of, 1)
	s.want(t, "vmnetd_guest_info guest="+info.ID+" link=pipe db mac="+info.MAC+" name="+info.Name+" network=lab", 1)
	if got := s["vmnetd_guest_sent_bytes_total"+of]; got < sent || got > float64(info.RxBytes) {
		t.Errorf("the guest sent %v bytes, want %d to %d", got, sent, info.RxBytes)
	}
	if got := s["vmnetd_guest_received_frames_total"+of]; got < 3 {
		t.Errorf("the guest was given %v frames", got)
	}
	s.want(t, "vmnetd_flows network=lab proto=tcp state=open", 1)
	s.want(t, "vmnetd_flows network=lab proto=tcp state=dialing", 0)
	s.want(t, "vmnetd_flows network=default proto=tcp state=open", 0)
	s.want(t, "vmnetd_flows_opened_total network=lab", 1)
	s.want(t, "vmnetd_dial_duration_seconds direction=out network=lab", 1)
	s.want(t, "vmnetd_guest_flows"+of, 1)
	s.want(t, "vmnetd_guest_limit guest="+info.ID+" limit=flows network=lab", 16384)
	s.want(t, "vmnetd_guest_limit_in_use guest="+info.ID+" limit=flows network=lab", 1)
	s.want(t, "vmnetd_dns_questions_total network=lab outcome=local", 1)
	s.want(t, "vmnetd_dns_questions_total network=lab outcome=forwarded", 1)
	s.want(t, "vmnetd_dns_answers_total network=lab rcode=NOERROR", 1)
	s.want(t, "vmnetd_dns_answers_total network=lab rcode=SERVFAIL", 1)
	s.want(t, "vmnetd_dhcp_leases family=ipv4 network=lab state=bound", 1)
	if s["process_resident_memory_bytes"] == 0 && s["go_goroutines"] == 0 {
		t.Error("nothing of the process")
	}
	if problems, err := promlint.New(strings.NewReader(text)).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %+v", err, problems)
	}

	// Gone: its series are, what it moved is not.
	was := s["vmnetd_network_sent_bytes_total network=lab"]
	conn.Close()
	g.Close()
	wait(t, "the guest's end", func() bool { return len(lab.Guests()) == 0 && lab.Flows().Len() == 0 })
	s, text = r.scrape()
	if strings.Contains(text, `guest="`+info.ID+`",network="lab"`) {
		t.Errorf("the guest has gone, and is there:\n%s", text)
	}
	if got := s["vmnetd_network_sent_bytes_total network=lab"]; got < was || got < sent {
		t.Errorf("%v bytes sent, were %v", got, was)
	}
	s.want(t, "vmnetd_flows network=lab proto=tcp state=open", 0)
	s.want(t, "vmnetd_flows network=lab proto=tcp state=closing", 0)
	ends := 0.0
	for k, v := range s {
		if strings.HasPrefix(k, "vmnetd_flows_ended_total network=lab") {
			ends += v
		}
	}
	if ends != 1 {
		t.Errorf("%v conversations ended, want 1", ends)
	}
}

// The paths, the formats, and what they do not take.
func TestMetricsPaths(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{"/metrics", "/v1/metrics", "/metrics?job=x"} {
		if resp, body := r.do("GET", path, "", ""); resp.StatusCode != 200 || !strings.Contains(body, "\nvmnetd_build_info{") {
			t.Errorf("%s: %d %.100s", path, resp.StatusCode, body)
		}
	}
	if resp, body := r.do("HEAD", "/metrics", "", ""); resp.StatusCode != 200 || body != "" {
		t.Errorf("HEAD: %d %.100s", resp.StatusCode, body)
	}
	if resp, body := r.do("POST", "/metrics", js, "{}"); resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, HEAD" || !json.Valid([]byte(body)) {
		t.Errorf("POST: %d %s", resp.StatusCode, body)
	}
	req, err := http.NewRequest("GET", "http://vmnetd/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
	resp, err := r.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/openmetrics-text") || !strings.HasSuffix(string(b), "# EOF\n") {
		t.Errorf("OpenMetrics: %v %s ends in %q", err, resp.Header.Get("Content-Type"), b[max(0, len(b)-20):])
	}
}

// What a guest or a link calls itself cannot write lines of its own, nor spoil the others'.
func TestMetricsHostile(t *testing.T) {
	r := newRig(t)
	hostile := "x\"} 1\nvmnetd_guests{network=\"evil\"} 99\n\\\xff"
	wire, far := link.Pipe(4)
	done := make(chan error, 1)
	go func() { done <- r.net.Serve(context.Background(), far, hostile) }()
	defer func() { wire.Close(); <-done }()
	wait(t, "the guest", func() bool { return len(r.net.Guests()) == 1 })
	r.guest("52:54:00:00:00:66", "a\"\n} 7\\")
	s, text := r.scrape()
	s.want(t, "vmnetd_guests network=default", 2)
	if _, there := s["vmnetd_guests network=evil"]; there || strings.Contains(text, "\nvmnetd_guests{network=\"evil\"}") {
		t.Errorf("a line of the guest's own:\n%s", text)
	}
	found := false
	for k := range s {
		found = found || strings.Contains(k, "link="+strings.ToValidUTF8(hostile, "\uFFFD"))
	}
	if !found {
		t.Errorf("the link's name is not there as it is:\n%s", text)
	}
}

// Two hundred scrapes while guests come and go: each is whole, what counts never becomes less, and the last is no longer
// than the first.
func TestMetricsWhileGuestsComeAndGo(t *testing.T) {
	r, lab := metricsRig(t)
	_, text := r.scrape()
	empty := strings.Count(text, "\n")
	stop := make(chan struct{})
	var guests sync.WaitGroup
	for _, n := range []*backend.Network{r.net, lab} {
		guests.Go(func() {
			for mac := byte(0); ; mac++ {
				select {
				case <-stop:
					return
				default:
				}
				wire, far := link.Pipe(8)
				done := make(chan error, 1)
				go func() { done <- n.Serve(context.Background(), far, "pipe") }()
				frame := append([]byte{255, 255, 255, 255, 255, 255, 0x52, 0x54, 0, 0, 1, mac, 8, 0}, make([]byte, 46)...)
				wire.WriteFrames([]link.Frame{link.NewFrame(frame)})
				wire.Close()
				<-done
			}
		})
	}
	const scrapers, each = 4, 50
	var all sync.WaitGroup
	for range scrapers {
		all.Go(func() {
			was := scrape{}
			for i := range each {
				req, _ := http.NewRequest("GET", "http://vmnetd/metrics", nil)
				resp, err := r.http.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 200 {
					t.Errorf("%d %v %.300s", resp.StatusCode, err, b)
					return
				}
				if i%5 != 0 {
					continue // reading them takes longer than writing them
				}
				p := expfmt.NewTextParser(model.LegacyValidation)
				if _, err := p.TextToMetricFamilies(strings.NewReader(string(b))); err != nil {
					t.Error(err)
					return
				}
				for _, key := range []string{"vmnetd_network_sent_bytes_total{network=\"lab\"} ", "vmnetd_network_sent_bytes_total{network=\"default\"} "} {
					_, after, _ := strings.Cut(string(b), key)
					line, _, _ := strings.Cut(after, "\n")
					var v float64
					if err := json.Unmarshal([]byte(line), &v); err != nil || v < was[key] {
						t.Errorf("%s%s, was %v (%v)", key, line, was[key], err)
					}
					was[key] = v
				}
			}
		})
	}
	all.Wait()
	close(stop)
	guests.Wait()
	wait(t, "the guests' end", func() bool { return len(r.net.Guests())+len(lab.Guests()) == 0 })
	if lab.Traffic().RxFrames == 0 {
		t.Error("no guest has sent anything")
	}
	_, text = r.scrape()
	if lines := strings.Count(text, "\n"); lines > empty+10 { // Go's own may have begun to count something
		t.Errorf("%d lines after all guests have gone, were %d before:\n%s", lines, empty, text)
	}
}

// The dashboard asks for metrics that there are, by labels that they have.
func TestDashboard(t *testing.T) {
	b, err := os.ReadFile("../../contrib/grafana/vmnetd.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Title  string `json:"title"`
		Panels []struct {
			Title   string `json:"title"`
			Type    string `json:"type"`
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
		Templating struct {
			List []struct {
				Type  string `json:"type"`
				Query string `json:"query"`
			} `json:"list"`
		} `json:"templating"`
	}
	if err := json.Unmarshal(b, &board); err != nil {
		t.Fatal(err)
	}
	var exprs []string
	for _, p := range board.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q asks for nothing", p.Title)
		}
		for _, target := range p.Targets {
			exprs = append(exprs, target.Expr)
		}
	}
	for _, v := range board.Templating.List {
		if v.Type == "query" {
			exprs = append(exprs, v.Query)
		}
	}
	if len(exprs) < 12 {
		t.Errorf("%d expressions", len(exprs))
	}

	r := newRig(t)
	r.guest("52:54:00:00:00:41", "web")
	r.net.Guests()
	if _, err := r.c.AddForward(context.Background(), "127.0.0.1:0:22"); err != nil {
		t.Fatal(err)
	}
	s, text := r.scrape()
	names := map[string]bool{"vmnetd_memory_target_bytes": true, "vmnetd_guest_drops_total": true} // with a target, once something was dropped
	labels := map[string]bool{"le": true, "reason": true}
	for k := range s {
		parts := strings.Split(k, " ")
		names[parts[0]] = true
	}
	for _, m := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(text, -1) {
		labels[m[1]] = true
	}
	for _, e := range exprs {
		found := regexp.MustCompile(`\b(?:vmnetd|go|process)_\w+`).FindAllString(e, -1)
		if len(found) == 0 {
			t.Errorf("%q asks for nothing of ours", e)
		}
		for _, name := range found {
			if !names[name] && !names[strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")] && !names[strings.TrimSuffix(name, "_sum")] {
				t.Errorf("%q: there is no %s, but %v", e, name, slices.Sorted(maps.Keys(names)))
			}
		}
		for _, m := range regexp.MustCompile(`(\w+)\s*[=!]~?\s*"|by \(([\w, ]+)\)`).FindAllStringSubmatch(e, -1) {
			for _, l := range strings.Split(m[1]+m[2], ",") {
				if !labels[strings.TrimSpace(l)] {
					t.Errorf("%q: there is no label %q", e, l)
				}
			}
		}
	}
}
