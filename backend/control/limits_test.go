package control

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend"
)

// Limits are shown for each guest, changed all or none, and what is wrong with a change is said.
func TestLimits(t *testing.T) {
	r := newRig(t)
	id, _ := r.guest("52:54:00:00:00:31", "web")
	ctx := context.Background()
	value := func(guest, name string) (l backend.LimitInfo) {
		t.Helper()
		list, err := r.c.Limits(ctx, guest)
		if err != nil {
			t.Fatal(err)
		}
		for _, l = range list {
			if l.Name == name && !l.Each {
				return l
			}
		}
		t.Fatalf("no %s in %+v", name, list)
		return l
	}
	if l := value("", "flows"); l.Guest != id || l.Value != 16384 || l.Own {
		t.Errorf("%+v", l)
	}
	if l := value("web", "leases"); l.Now != 1 || l.Most != 1 {
		t.Errorf("%+v", l)
	}
	if err := r.c.ChangeLimits(ctx, LimitChange{Guest: "web", Limits: map[string]any{"flows": 100, "up": "10mbit"}}); err != nil {
		t.Fatal(err)
	}
	if l := value("52:54:00:00:00:31", "up"); l.Value != 1_250_000 || l.Text != "10mbit" || !l.Own {
		t.Errorf("%+v", l)
	}
	if err := r.c.ChangeLimits(ctx, LimitChange{Limits: map[string]any{"flows": 200, "dns": 3}}); err != nil {
		t.Fatal(err)
	}
	if l, d := value(id, "flows"), value(id, "dns"); l.Value != 100 || d.Value != 3 || d.Own {
		t.Errorf("%+v %+v", l, d)
	}
	for _, tt := range []struct {
		body   string
		status int
		says   string
	}{
		{`{"guest":"web","limits":{"flow":1}}`, 422, "did you mean flows?"},
		{`{"guest":"web","limits":{"flows":1,"udp":"many"}}`, 422, "want a number"},
		{`{"guest":"web","limits":{"total":1}}`, 422, "network's"},
		{`{"guest":"web","limits":{"flows":true}}`, 422, "neither a number nor a text"},
		{`{"guest":"web","limits":{"flows":-1}}`, 422, "1 at least"},
		{`{"guest":"web","limits":{}}`, 422, "no limit in the body"},
		{`{"guest":"web","limit":{"flows":1}}`, 400, `unknown field \"limit\"`},
		{`{"guest":"nobody","limits":{"flows":1}}`, 404, "no guest"},
		{`[]`, 400, "not what is wanted"},
		{``, 400, "empty"},
	} {
		resp, body := r.do("PUT", "/v1/limits", "application/json", tt.body)
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.says) || !json.Valid([]byte(body)) {
			t.Errorf("%s: %d %s, want %d and %q", tt.body, resp.StatusCode, body, tt.status, tt.says)
		}
	}
	if l := value(id, "flows"); l.Value != 100 {
		t.Errorf("a change that was refused is there: %+v", l)
	}
	if resp, body := r.do("PUT", "/v1/limits", "application/json", `{"guest":"web","limits":{"flows":null,"up":"default"}}`); resp.StatusCode != http.StatusNoContent {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if l := value(id, "flows"); l.Value != 200 || l.Own {
		t.Errorf("%+v", l)
	}
	if resp, body := r.do("GET", "/v1/limits?guest=nobody", "", ""); resp.StatusCode != 404 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, body := r.do("PUT", "/v1/limits?guest=web", "application/json", `{"limits":{"flows":1}}`); resp.StatusCode != 400 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}
