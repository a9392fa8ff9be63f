//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// key is what was measured.
type key struct {
	Cores   int    `json:"cores"`
	MTU     int    `json:"mtu"`
	Test    string `json:"test"`
	Backend string `json:"backend"`
}

// String names it without the backend.
func (k key) String() string { return fmt.Sprintf("MTU %d, processors %d, %s", k.MTU, k.Cores, k.Test) }

// report gathers what a run found out.
type report struct {
	Date     string            `json:"date"`
	Machine  string            `json:"machine"`
	Kernel   string            `json:"kernel"`
	Versions map[string]string `json:"versions"`
	Rounds   int               `json:"rounds"`
	Seconds  int               `json:"seconds"`
	Command  string            `json:"command"`
	Results  []*result         `json:"results"`
	Failures []string          `json:"failures"`

	o *options
}

// result is one value's course over the rounds.
type result struct {
	key
	Metric string    `json:"metric"`
	Median float64   `json:"median"`
	Values []float64 `json:"values"`
}

func newReport(ctx context.Context, o *options) *report {
	r := &report{Date: time.Now().UTC().Format("2006-01-02"), Machine: machine(), Versions: map[string]string{}, Rounds: o.rounds, Seconds: o.seconds, o: o}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease") // missing: not told
	r.Kernel = strings.TrimSpace(string(kernel))
	r.Command = strings.Join(append([]string{"go run ./e2e/bench"}, os.Args[1:]...), " ")
	if said, err := exec.CommandContext(ctx, "iperf3", "--version").Output(); err == nil {
		line, _, _ := bytes.Cut(said, []byte("\n"))
		r.Versions["iperf3"] = string(line)
	}
	return r
}

func machine() string {
	b, _ := os.ReadFile("/proc/cpuinfo") // missing: only the number is told
	for line := range strings.Lines(string(b)) {
		if name, model, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return fmt.Sprintf("%d × %s", runtime.NumCPU(), strings.TrimSpace(model))
		}
	}
	return fmt.Sprintf("%d × %s", runtime.NumCPU(), runtime.GOARCH)
}

func (r *report) fail(out io.Writer, backend, where string, err error) {
	s := backend
	if where != "" {
		s += ", " + where
	}
	s += ": " + strings.ReplaceAll(err.Error(), "\n", " ")
	fmt.Fprintln(out, s)
	if !slices.Contains(r.Failures, s) {
		r.Failures = append(r.Failures, s)
	}
}

func (r *report) find(k key, metric string) *result {
	for _, x := range r.Results {
		if x.key == k && x.Metric == metric {
			return x
		}
	}
	return nil
}

func (r *report) add(k key, got values) {
	for metric, v := range got {
		x := r.find(k, metric)
		if x == nil {
			x = &result{key: k, Metric: metric}
			r.Results = append(r.Results, x)
		}
		x.Values = append(x.Values, v)
		x.Median = median(x.Values)
	}
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func (r *report) json() string {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err.Error() // not for these types: no NaN is kept
	}
	return string(b) + "\n"
}

// markdown is a table for each number of processors and MTU.
func (r *report) markdown() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s, %s, Linux %s; %d rounds of %d s, medians; in brackets a backend's figure divided by %s's.\n",
		r.Date, r.Machine, r.Kernel, r.Rounds, r.Seconds, r.o.backends[0].name)
	for _, cores := range r.o.cores {
		for _, mtu := range r.o.mtus {
			head := fmt.Sprintf("MTU %d", mtu)
			if len(r.o.cores) > 1 || cores != runtime.NumCPU() {
				head += fmt.Sprintf(", processors: %d", cores)
			}
			fmt.Fprintf(&s, "\n| %s |", head)
			for _, b := range r.o.backends {
				fmt.Fprintf(&s, " %s |", b.name)
			}
			fmt.Fprintf(&s, "\n|---|%s\n", strings.Repeat("---|", len(r.o.backends)))
			for _, t := range r.o.tests {
				for _, m := range t.metrics {
					r.row(&s, key{Cores: cores, MTU: mtu, Test: t.name}, t, m)
				}
			}
		}
	}
	s.WriteString("\n")
	for _, b := range r.o.backends {
		fmt.Fprintf(&s, "%s is %s. ", b.name, strings.TrimPrefix(r.Versions[b.name], b.name+" "))
	}
	fmt.Fprintf(&s, "Bulk by %s. slirp4netns and libslirp take the TAP themselves, without a socket and a process between. Reproduce: `%s`\n", r.Versions["iperf3"], r.Command)
	for _, f := range r.Failures {
		fmt.Fprintf(&s, "- %s\n", f)
	}
	return s.String()
}

func (r *report) row(s *strings.Builder, k key, t test, m metric) {
	label := t.what
	if m.label != "" {
		label += ": " + m.label
	}
	if m.unit != "" {
		label += ", " + m.unit
	}
	var base *result
	line := fmt.Sprintf("| %s |", label)
	any := false
	for i, b := range r.o.backends {
		k.Backend = b.name
		x := r.find(k, m.key)
		if i == 0 {
			base = x
		}
		switch {
		case x == nil:
			line += " – |"
			continue
		case i > 0 && base != nil && base.Median > 0:
			line += fmt.Sprintf(" %.*f (%.2f) |", m.places, x.Median, x.Median/base.Median)
		default:
			line += fmt.Sprintf(" %.*f |", m.places, x.Median)
		}
		any = true
	}
	if any {
		s.WriteString(line + "\n")
	}
}
