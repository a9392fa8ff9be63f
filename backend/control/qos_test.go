package control

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A program of synthetic-network's reads a line, changes it and reads it again, in its own words.
func TestQoS(t *testing.T) {
	r := newRig(t)
	id, _ := r.guest("52:54:00:00:00:71", "web")
	srv := httptest.NewServer(QoS(r.net))
	defer srv.Close()
	ask := func(method, body string, change ...func(*http.Request)) (int, string) {
		t.Helper()
		req, err := http.NewRequest(method, srv.URL+"/qos", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		for _, f := range change {
			f(req)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, strings.TrimSpace(string(b))
	}
	const none = `{"rate":10000000000,"loss":0,"latency":0,"jitter":0,"jitter_strength":0,"reorder_packets":false}`
	if code, body := ask("GET", ""); code != 200 || body != `{"default_link":{"ingress":`+none+`,"egress":`+none+`},"flows":[]}` {
		t.Errorf("%d %s", code, body)
	}
	// 192.0.2.1 as its clients write it, the first byte lowest.
	const spec = `{"default_link":{"ingress":{"rate":10000000,"loss":0.01,"latency":50,"jitter":10,"jitter_strength":0.5,"reorder_packets":true},"egress":` + none + `},` +
		`"flows":[{"label":"dns","flow":{"ip":16908480,"protocol":17,"port_min":53,"port_max":53},"link":{"ingress":` + none + `,"egress":{"rate":64000,"loss":0.2,"latency":0,"jitter":0,"jitter_strength":0,"reorder_packets":false}}},` +
		`{"label":"any","flow":{"ip":0,"protocol":1,"port_min":0,"port_max":65535},"link":{"ingress":` + none + `,"egress":` + none + `}}]}`
	if code, body := ask("POST", spec); code != 200 || body != "OK" {
		t.Fatalf("%d %s", code, body)
	}
	if code, body := ask("GET", ""); code != 200 || body != spec {
		t.Errorf("%d\n%s, want\n%s", code, body, spec)
	}
	// A rate of 0 lets nothing pass there, and ports are counted from 0.
	dead := strings.NewReplacer(`"rate":10000000,`, `"rate":0,`, `"port_min":53`, `"port_min":0`).Replace(spec)
	if code, body := ask("POST", dead); code != 200 || body != "OK" {
		t.Fatalf("%d %s", code, body)
	}
	if code, body := ask("GET", ""); code != 200 || body != dead {
		t.Errorf("%d\n%s, want\n%s", code, body, dead)
	}
	if i, err := r.c.Impairment(t.Context(), id); err != nil || i.Settings.Down.FlapDown == 0 || i.Settings.Down.FlapDown != i.Settings.Down.FlapEvery ||
		i.Settings.Flows[0].Match.String() != "192.0.2.1:udp:0-53" {
		t.Errorf("%+v, %v", i.Settings, err)
	}
	if code, body := ask("POST", spec); code != 200 || body != "OK" {
		t.Fatalf("%d %s", code, body)
	}
	i, err := r.net.Impairment(id)
	if err != nil {
		t.Fatal(err)
	}
	i.Settings.Seed = 0
	if got, want := i.Settings.String(), "down=rate=10mbit,loss=1%,latency=55ms,jitter=5ms,share=50%,shuffle=yes flow=dns:192.0.2.1:udp:53 up=rate=64kbit,loss=20% flow=any:*:icmp"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for body, says := range map[string]string{
		strings.Replace(spec, `"loss":0.01`, `"loss":1.2`, 1):      "0% to 100%",
		strings.Replace(spec, `"latency":50`, `"latency":-50`, 1):  "want",
		strings.Replace(spec, `"rate":64000`, `"rate":5`, 1):       "bits a second",
		strings.Replace(spec, `"label":"dns"`, `"label":"d d"`, 1): "letters",
		`{`: "unexpected end",
	} {
		if code, got := ask("POST", body); code != 400 || !strings.Contains(got, says) {
			t.Errorf("%d %s, want 400 and %q", code, got, says)
		}
	}
	if code, body := ask("GET", ""); code != 200 || body != spec {
		t.Errorf("what was refused changed it: %s", body)
	}
	for what, f := range map[string]func(*http.Request){
		"another page":        func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") },
		"another page's name": func(r *http.Request) { r.Host = "evil.example:80" },
	} {
		if code, _ := ask("POST", spec, f); code != 403 {
			t.Errorf("%s: %d", what, code)
		}
	}
}
