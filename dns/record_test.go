package dns

import (
	"log/slog"
	"strings"
	"testing"
)

func TestSplit(t *testing.T) {
	for _, tt := range []struct {
		line string
		want Record
		data string // as List shows it in the domain internal
	}{
		{"db A 10.0.2.20", Record{Name: "db", Type: "A", Data: "10.0.2.20"}, "10.0.2.20"},
		{"  db\t60  a 10.0.2.20 ", Record{Name: "db", Type: "A", Data: "10.0.2.20", TTL: 60}, "10.0.2.20"},
		{"db IN 1h AAAA fd00::20", Record{Name: "db", Type: "AAAA", Data: "fd00::20", TTL: 3600}, "fd00::20"},
		{"db 60 IN A 10.0.2.20", Record{Name: "db", Type: "A", Data: "10.0.2.20", TTL: 60}, "10.0.2.20"},
		{"www CNAME db", Record{Name: "www", Type: "CNAME", Data: "db"}, "db.internal."},
		{"_http._tcp SRV 0 5 80 www", Record{Name: "_http._tcp", Type: "SRV", Data: "0 5 80 www"}, "0 5 80 www.internal."},
		{`t TXT "a b" "c;d"`, Record{Name: "t", Type: "TXT", Data: `"a b" "c;d"`}, `"a b" "c;d"`},
		{"20.2.0.10.in-addr.arpa. PTR db", Record{Name: "20.2.0.10.in-addr.arpa.", Type: "PTR", Data: "db"}, "db.internal."},
		{"a A 10.0.2.20", Record{Name: "a", Type: "A", Data: "10.0.2.20"}, "10.0.2.20"},
		{`x TYPE65280 \# 2 abcd`, Record{Name: "x", Type: "TYPE65280", Data: `\# 2 abcd`}, `\# 2 abcd`},
	} {
		tt.want.Source = SourceAdmin
		got, err := Split(tt.line)
		if err != nil || got != tt.want {
			t.Errorf("%q: %+v, %v; want %+v", tt.line, got, err, tt.want)
			continue
		}
		s, err := New(Config{Domain: "internal", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		whole, err := s.Parse(tt.line)
		if err != nil || whole.Data != tt.data || !strings.HasSuffix(whole.Name, ".") {
			t.Errorf("%q: %+v, %v; want %q", tt.line, whole, err, tt.data)
		}
		if err := s.Add(tt.line); err != nil {
			t.Error(err)
		}
		found := false
		for _, r := range s.List() {
			found = found || r == whole
		}
		if !found {
			t.Errorf("%q: %+v is not what is listed: %+v", tt.line, whole, s.List())
		}
		s.Close()
	}
	for _, line := range []string{"", "db", "db A", "db A x", "db A 10.0.2.20 more", "$GENERATE 1-9 a A 10.0.2.$", "db NS x", "a A 1.2.3.4\nb A 1.2.3.4", "* A 10.0.2.1"} {
		if r, err := Split(line); err == nil {
			t.Errorf("%q: %+v", line, r)
		}
	}
}

func FuzzSplit(f *testing.F) {
	for _, s := range []string{"db A 10.0.2.20", "db 60 IN A 10.0.2.20", `t TXT "a b" "c;d"`, "A A 10.0.2.20", `a\ b IN TXT x`, `x TYPE65280 \# 2 abcd`, "db ( A 10.0.2.1 )"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		r, err := Split(line)
		if err != nil {
			return
		}
		if _, err := parseRecord(r.Name+" "+r.Type+" "+r.Data, "internal."); err != nil {
			t.Errorf("%q: %+v: %v", line, r, err)
		}
	})
}
