//go:build linux

package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if p := os.Getenv(partEnv); p != "" {
		if err := bePart(p, os.Args[1:]); err != nil {
			io.WriteString(os.Stderr, err.Error()+"\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"", ""},
		{"--backends passt,vmnetd --tests up,rr,up --mtu 1500,65520 --rounds 3 --size 64M", ""},
		{"--backends vmnet", `no backend "vmnet": want some of vmnetd,passt`},
		{"--tests up,sideways", `no test "sideways": want default, all, or some of`},
		{"--mtu 100", `--mtu 100: "100": want numbers from 1280 to 65520`},
		{"--mtu 1500,", "want numbers"},
		{"--cores 0", "--cores 0"},
		{"--rounds 0", "--rounds 0: want 1 to 100"},
		{"--seconds -1", "--seconds -1"},
		{"--held 1000000", "--held 1000000: want 1 to 50000"},
		{"--size 1T", "--size 1T: want bytes"},
		{"--size 0", "--size 0"},
		{"--size 99999999999G", "--size"},
		{"up", `["up"]: want flags only`},
	} {
		o, err := parseFlags(strings.Fields(tt.args), io.Discard)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: error %v, want %q", tt.args, err, tt.want)
		}
		if strings.HasPrefix(tt.args, "--backends passt") && (len(o.tests) != 2 || o.backends[0].name != "vmnetd" || o.size != 64<<20) {
			t.Errorf("%q: %d tests, first %s, %d bytes", tt.args, len(o.tests), o.backends[0].name, o.size)
		}
	}
}

func TestParseIperf(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     iperfResult
		err      string
	}{
		{"up", `{"start":{"test_start":{"reverse":0}},"intervals":[{"sum":{"bytes":100}},{"sum":{"bytes":50}}],"end":{"sum_received":{"bytes":90,"bits_per_second":8e9}}}`,
			iperfResult{up: 8e9, bytes: 150}, ""},
		{"down", `{"start":{"test_start":{"reverse":1}},"intervals":[{"sum":{"bytes":100}}],"end":{"sum_received":{"bits_per_second":2e9}}}`,
			iperfResult{down: 2e9, bytes: 100}, ""},
		{"both", `{"start":{"test_start":{"reverse":0}},"intervals":[{"sum":{"bytes":1},"sum_bidir_reverse":{"bytes":2}}],"end":{"sum_received":{"bits_per_second":3},"sum_received_bidir_reverse":{"bits_per_second":4}}}`,
			iperfResult{up: 3, down: 4, bytes: 3}, ""},
		{"refused", `{"start":{},"intervals":[],"end":{},"error":"unable to connect to server: Connection refused"}`, iperfResult{}, "Connection refused"},
		{"nothing", `{"end":{"sum_received":{"bits_per_second":0}}}`, iperfResult{}, "nothing arrived"},
		{"no end", `{"end":{}}`, iperfResult{}, "nothing arrived"},
		{"words", `iperf3: error`, iperfResult{}, "iperf3 printed"},
	} {
		got, err := parseIperf([]byte(tt.in))
		if got != tt.want && tt.err == "" || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %+v, %v; want %+v, %q", tt.name, got, err, tt.want, tt.err)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 9}, 3}} {
		in := slices.Clone(tt.in)
		if got := median(tt.in); got != tt.want || !slices.Equal(in, tt.in) {
			t.Errorf("median(%v) = %v, want %v", in, got, tt.want)
		}
	}
}

// two is a report of two backends, of which the second failed one test.
func two(t *testing.T) *report {
	t.Helper()
	o, err := parseFlags(strings.Fields("--backends vmnetd,passt --tests up,down,rr --cores 1"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	r := newReport(t.Context(), o)
	r.Machine = `a "<machine>" & co`
	for _, v := range []float64{2, 4, 3} {
		r.add(key{1, 1500, "up", "vmnetd"}, values{"gbps": v, "cpu_s_per_gb": 1.5})
		r.add(key{1, 1500, "up", "passt"}, values{"gbps": v / 2, "cpu_s_per_gb": 3})
		r.add(key{1, 1500, "down", "vmnetd"}, values{"gbps": 10 * v, "cpu_s_per_gb": 0.25})
	}
	r.fail(io.Discard, "passt", "MTU 1500, processors 1, down", errors.New("iperf3: it broke\noff"))
	return r
}

func TestTable(t *testing.T) {
	got := two(t).markdown()
	for _, want := range []string{
		"| vmnetd | passt |\n|---|---|---|\n",
		"| guest to server, one TCP stream, Gbit/s | 3.00 | 1.50 (0.50) |\n",
		"| guest to server, one TCP stream: its processor time, s/GB | 1.50 | 3.00 (2.00) |\n",
		"| server to guest, one TCP stream, Gbit/s | 30.00 | – |\n",
		"- passt, MTU 1500, processors 1, down: iperf3: it broke off\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "request and response") {
		t.Errorf("a row without any value in\n%s", got)
	}
}

func TestSVG(t *testing.T) {
	got := two(t).svg()
	words := ""
	bars := 0
	for d := xml.NewDecoder(strings.NewReader(got)); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, got)
		}
		switch tok := tok.(type) {
		case xml.CharData:
			words += string(tok) + "\n"
		case xml.StartElement:
			bars += b2i(tok.Name.Local == "rect")
		}
	}
	for _, want := range []string{"Gbit/s, more is better", "seconds per GB, less is better", "vmnetd", "passt", "30.00", "not measured", "\n0\n", "\n20\n", "\n30\n", `a "<machine>" & co`} {
		if !strings.Contains(words, want) {
			t.Errorf("the picture does not say %q", want)
		}
	}
	if bars != 6 {
		t.Errorf("%d bars, want 6", bars)
	}
}

func TestTick(t *testing.T) {
	for _, most := range []float64{0.003, 0.9, 1, 1.1, 4.9, 5.1, 9.99, 10, 23.5, 104} {
		if n := most / tick(most); n < 1 || n > 5.001 {
			t.Errorf("tick(%v) = %v: %v of them", most, tick(most), n)
		}
	}
}

// A run of two quick tests leaves figures, a table and nothing else.
func TestRun(t *testing.T) {
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("namespaces need root, and some seconds: not with -short")
	}
	for _, tool := range []string{"ip", "iperf3"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	vmnetd := filepath.Join(dir, "vmnetd")
	if said, err := exec.Command("go", "build", "-o", vmnetd, "github.com/vmnetd/vmnetd/cmd/vmnetd").CombinedOutput(); err != nil {
		t.Fatalf("building vmnetd: %v: %s", err, said)
	}
	table := filepath.Join(dir, "table.md")
	o, err := parseFlags([]string{"--backends", "vmnetd", "--vmnetd", vmnetd, "--tests", "rr,fwdcrr", "--seconds", "1", "--markdown", table}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	before := links(t)
	var out strings.Builder
	if err := run(t.Context(), o, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	got, err := os.ReadFile(table)
	if err != nil || strings.Count(string(got), "\n| ") != 7 || strings.Contains(string(got), "–") { // two tests of three rows, and the head
		t.Errorf("table, %v:\n%s\n%s", err, got, out.String())
	}
	if left, _ := filepath.Glob("/tmp/vmnet-bench-" + strconv.Itoa(os.Getpid()) + "-*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if after := links(t); after != before {
		t.Errorf("network links before:\n%s\nafter:\n%s", before, after)
	}
}

// links is what ip(8) sees of the host's own namespace.
func links(t *testing.T) string {
	t.Helper()
	b, err := exec.Command("ip", "-o", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
