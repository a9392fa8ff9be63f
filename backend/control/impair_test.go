package control

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/impair"
)

// A guest's line is set, shown, changed and taken off, by whatever it is called, and what is wrong with one is said.
func TestImpair(t *testing.T) {
	r := newRig(t)
	id, _ := r.guest("52:54:00:00:00:61", "web")
	ctx := context.Background()
	if i, err := r.c.Impairment(ctx, "web"); err != nil || i.Guest != id || i.Name != "web" || !i.Settings.None() || i.Own || len(i.Up) != 0 {
		t.Errorf("%+v, %v", i, err)
	}
	s, err := impair.ParseSettings("down=rate=10mbit,latency=50ms up=loss=1% flow=dns:*:udp:53 down=loss=20% seed=7", nil)
	if err != nil {
		t.Fatal(err)
	}
	i, err := r.c.Impair(ctx, "52:54:00:00:00:61", &s)
	if err != nil || i.Settings.String() != s.String() || !i.Own || len(i.Down) != 2 || i.Down[0].Flow != "dns" {
		t.Errorf("%+v, %v", i, err)
	}
	if list, err := r.c.Impairs(ctx); err != nil || len(list) != 1 || list[0].Settings.String() != s.String() {
		t.Errorf("%+v, %v", list, err)
	}
	for _, tt := range []struct {
		body   string
		status int
		says   string
	}{
		{`"3g"`, 200, `"rate":"1.6mbit"`},
		{`{"down":"latency=20ms"}`, 200, `"latency":"20ms"`},
		{`{"down":{"loss":1.2}}`, 422, "from 0 to 1"},
		{`{"down":{"loss":"120%"}}`, 422, "want 0% to 100%"},
		{`{"down":{"latency":"-5ms"}}`, 422, "want 0s to 1m"},
		{`{"down":{"latency":"5ms","jitter":"6ms"}}`, 422, "at most the latency"},
		{`{"sideways":{}}`, 422, "unknown field"},
		{`"marvel"`, 422, "one of lte"},
		{`{"down":"trace=/etc/passwd"}`, 422, "no file can be named"},
		{`[]`, 400, "not what is wanted"},
		{``, 400, "empty"},
		{`"3g" "3g"`, 422, "more follows"},
	} {
		resp, body := r.do("PUT", "/v1/guests/web/impair", "application/json", tt.body)
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.says) || !json.Valid([]byte(body)) {
			t.Errorf("%s: %d %s, want %d and %q", tt.body, resp.StatusCode, body, tt.status, tt.says)
		}
	}
	if i, _ := r.c.Impairment(ctx, id); i.Settings.Down.String() != "latency=20ms" || i.Settings.Seed != 7 {
		t.Errorf("what was refused changed it, or the seed is another: %+v", i.Settings)
	}
	big := `{"down":{"trace":{"name":"x","opportunities":"1` + strings.Repeat(" 1", 100000) + `"}}}`
	if resp, body := r.do("PUT", "/v1/guests/web/impair", "application/json", big); resp.StatusCode != 200 {
		t.Errorf("a trace of 100,000: %d %.200s", resp.StatusCode, body)
	}
	if _, err := r.c.Impair(ctx, "web", nil); err != nil {
		t.Fatal(err)
	}
	if i, _ := r.c.Impairment(ctx, id); !i.Settings.None() {
		t.Errorf("it was taken off: %+v", i.Settings)
	}
	if _, err := r.c.Impair(ctx, "nobody", &s); err == nil {
		t.Error("nobody is impaired")
	}
	// All that have none of their own.
	other, _ := r.guest("52:54:00:00:00:62", "db")
	if err := r.c.ImpairAll(ctx, &impair.Settings{Up: impair.Way{Loss: 0.5}}); err != nil {
		t.Fatal(err)
	}
	if i, _ := r.c.Impairment(ctx, other); i.Own || i.Settings.Up.Loss != 0.5 {
		t.Errorf("%+v", i)
	}
	if i, _ := r.c.Impairment(ctx, id); !i.Settings.None() {
		t.Errorf("one that was taken off by itself: %+v", i)
	}
	if err := r.c.ImpairAll(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if resp, _ := r.do("GET", "/v1/guests/"+other+"/impair", "", ""); resp.StatusCode != http.StatusOK {
		t.Errorf("%d", resp.StatusCode)
	}
}
