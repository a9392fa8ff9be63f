package control

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vmnetd/vmnetd/portforward"
)

// ask sends a request with headers.
func (r *rig) ask(method, path, body string, header ...string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, "http://vmnetd"+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", js)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.http.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	asDescribed(r.t, req, resp, string(b))
	checkForm(r.t, resp, string(b))
	return resp, string(b)
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestPutForward(t *testing.T) {
	r := newRig(t)
	port := freePort(t)
	path := fmt.Sprintf("/v1/forwards/tcp:127.0.0.1:%d", port)
	rule := func(guest int) string { return fmt.Sprintf(`{"rule":"%d:%d"}`, port, guest) }
	want := func(code int, has string) func(*http.Response, string) string {
		t.Helper()
		return func(resp *http.Response, body string) string {
			t.Helper()
			if resp.StatusCode != code || !strings.Contains(body, has) {
				t.Fatalf("%s %s: %d %s, want %d with %q", resp.Request.Method, resp.Request.URL, resp.StatusCode, body, code, has)
			}
			return resp.Header.Get("ETag")
		}
	}
	want(404, "no port forward")(r.ask("GET", path, ""))
	want(412, "no such thing")(r.ask("PUT", path, rule(22), "If-Match", "*"))
	tag := want(201, `"guest_port":22`)(r.ask("PUT", path, rule(22), "If-None-Match", "*"))
	if tag == "" {
		t.Error("no ETag")
	}
	since := r.net.Forwards().List()[0].Since
	if again := want(200, `"guest_port":22`)(r.ask("PUT", path, rule(22))); again != tag || r.net.Forwards().List()[0].Since != since {
		t.Errorf("the same again: ETag %s, was %s; it was opened anew: %v", again, tag, r.net.Forwards().List()[0].Since != since)
	}
	want(412, "already")(r.ask("PUT", path, rule(22), "If-None-Match", "*"))
	want(412, "already")(r.ask("PUT", path, rule(22), "If-None-Match", `"x", `+tag))
	if get := want(200, `"accepted":0`)(r.ask("GET", path, "")); get != tag {
		t.Errorf("GET has ETag %s, PUT had %s", get, tag)
	}
	next := want(200, `"guest_port":80`)(r.ask("PUT", path, rule(80), "If-Match", `"x", `+tag))
	if next == tag {
		t.Error("another rule has the same ETag")
	}
	want(412, next[1:len(next)-1])(r.ask("PUT", path, rule(443), "If-Match", tag))
	want(412, "changed")(r.ask("PUT", path, rule(443), "If-Match", "W/"+next))
	want(412, "changed")(r.ask("DELETE", path, "", "If-Match", tag))
	want(422, "PUT it at")(r.ask("PUT", "/v1/forwards/tcp:127.0.0.1:1", rule(22)))
	want(422, "PUT it at")(r.ask("PUT", path, `{"rule":"8000-8001"}`))
	want(204, "")(r.ask("DELETE", path, "", "If-Match", next))
	want(404, "no port forward")(r.ask("GET", path, ""))

	rules, err := portforward.ParseRule(fmt.Sprintf("%d:22", port))
	if err != nil {
		t.Fatal(err)
	}
	f, err := r.c.PutForward(t.Context(), rules[0])
	if again, err2 := r.c.PutForward(t.Context(), rules[0]); err != nil || err2 != nil || f != again || f.Rule != rules[0] {
		t.Errorf("the client: %v, %v, %+v, %+v", err, err2, f, again)
	}
	if err := r.c.RemoveForward(t.Context(), f.ID, false); err != nil {
		t.Error(err)
	}

	// Of many who make it, one does.
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for i := range 8 {
		wg.Go(func() {
			req, _ := http.NewRequest("PUT", "http://vmnetd"+path, strings.NewReader(rule(100+i)))
			req.Header.Set("Content-Type", js)
			req.Header.Set("If-None-Match", "*")
			resp, err := r.http.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			mu.Lock()
			defer mu.Unlock()
			codes[resp.StatusCode]++
		})
	}
	wg.Wait()
	if codes[201] != 1 || codes[412] != 7 {
		t.Errorf("eight at once: %v", codes)
	}
}

func TestPutForwards(t *testing.T) {
	r := newRig(t)
	a, b, c := freePort(t), freePort(t), freePort(t)
	set := func(rules ...string) string { return `{"rules":[` + strings.Join(rules, ",") + `]}` }
	text := func(port, guest int) string { return fmt.Sprintf(`"%d:%d"`, port, guest) }
	have := func() string {
		var list []string
		for _, f := range r.net.Forwards().List() {
			list = append(list, fmt.Sprint(f.Rule.HostPort, ":", f.Rule.GuestPort))
		}
		return strings.Join(list, " ")
	}
	resp, body := r.ask("PUT", "/v1/forwards", set(text(a, 22), fmt.Sprintf(`{"proto":"tcp","host_port":%d,"guest_port":80}`, b), text(a, 22)))
	if resp.StatusCode != 200 || have() != fmt.Sprintf("%d:22 %d:80", a, b) {
		t.Fatalf("%d %s; there is %s", resp.StatusCode, body, have())
	}
	tag := resp.Header.Get("ETag")
	since := r.net.Forwards().List()[0].Since
	if resp, _ := r.ask("GET", "/v1/forwards", ""); resp.Header.Get("ETag") != tag {
		t.Errorf("GET has another ETag")
	}
	resp, body = r.ask("PUT", "/v1/forwards", set(text(a, 22), text(c, 80)), "If-Match", tag)
	if resp.StatusCode != 200 || have() != fmt.Sprintf("%d:22 %d:80", a, c) || r.net.Forwards().List()[0].Since != since {
		t.Errorf("%d %s; there is %s", resp.StatusCode, body, have())
	}
	if resp, _ := r.ask("PUT", "/v1/forwards", set(), "If-Match", tag); resp.StatusCode != 412 {
		t.Errorf("an old ETag: %d", resp.StatusCode)
	}
	// What cannot be, is not, and the rest stays.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	before := have()
	idle := r.net.Forwards().List()
	for _, bad := range []string{set(text(l.Addr().(*net.TCPAddr).Port, 22)), set(text(a, 22), text(a, 23)), set(`"0:22"`), set(`5`), `{}`, `{"rules":null}`, `[]`} {
		resp, body := r.ask("PUT", "/v1/forwards", bad)
		if resp.StatusCode < 400 || resp.StatusCode >= 500 || len(strings.Fields(have())) != 2 {
			t.Errorf("%s: %d %s; there is %s, was %s", bad, resp.StatusCode, body, have(), before)
		}
		for _, f := range r.net.Forwards().List() {
			if !slices.ContainsFunc(idle, func(was portforward.Status) bool { return was.ID == f.ID && was.Since == f.Since }) {
				t.Errorf("%s: %s was taken away and put back", bad, f.ID)
			}
		}
	}
	if resp, body := r.ask("PUT", "/v1/forwards", set()); resp.StatusCode != 200 || have() != "" || strings.TrimSpace(body) != "[]" {
		t.Errorf("none: %d %s; there is %s", resp.StatusCode, body, have())
	}
}

func TestETags(t *testing.T) {
	r := newRig(t)
	for _, x := range []struct{ path, method, change, body string }{
		{"/v1/dns", "POST", "/v1/dns", `{"name":"db","type":"A","value":"10.0.2.20"}`},
		{"/v1/limits", "PUT", "/v1/limits", `{"limits":{"flows":77}}`},
		{"/v1/forwards", "POST", "/v1/forwards", `{"rule":"0:22"}`},
	} {
		get := func() string {
			resp, _ := r.ask("GET", x.path, "")
			return resp.Header.Get("ETag")
		}
		before := get()
		if before == "" || get() != before {
			t.Errorf("%s: ETag %q, then %q", x.path, before, get())
		}
		if resp, body := r.ask(x.method, x.change, x.body, "If-Match", `"other"`); resp.StatusCode != 412 || get() != before {
			t.Errorf("%s with another ETag: %d %s", x.path, resp.StatusCode, body)
		}
		if resp, body := r.ask(x.method, x.change, x.body, "If-Match", before); resp.StatusCode >= 300 || get() == before {
			t.Errorf("%s with its ETag: %d %s; it is %s, was %s", x.path, resp.StatusCode, body, get(), before)
		}
	}
	if resp, body := r.ask("GET", "/v1/networks", ""); resp.StatusCode != 200 || !strings.Contains(body, `"config":{`) {
		t.Errorf("networks: %d %s", resp.StatusCode, body)
	}
	if resp, body := r.ask("GET", "/v1/networks/default", ""); resp.StatusCode != 200 || !strings.Contains(body, `"first4":"10.0.2.15"`) {
		t.Errorf("network: %d %s", resp.StatusCode, body)
	}
	if resp, body := r.ask("GET", "/v1/networks/none", ""); resp.StatusCode != 404 || !strings.Contains(body, "there is default") {
		t.Errorf("no network: %d %s", resp.StatusCode, body)
	}
}
