//go:build linux

package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"strings"
)

// Sizes of the picture, in pixels.
const (
	panelWidth = 430
	nameWidth  = 92  // the longest backend's name at 12 pixels
	plotWidth  = 270 // a longest bar; its figure stands behind it
	barHeight  = 14
	barStep    = 18
	groupStep  = 26 // of a heading and the space before it
	axisHeight = 44
)

// svg is a picture of the tests up and down: what goes through, and what it costs, at each MTU. Without a background
// of its own it reads on a light and on a dark page.
func (r *report) svg() string {
	var s strings.Builder
	panelHeight := 30 + 2*(groupStep+len(r.o.backends)*barStep) + axisHeight
	width, height := 2*panelWidth, len(r.o.mtus)*panelHeight+34
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img" font-family="system-ui, sans-serif" font-size="12">
<title>Throughput and processor time per GB of %s</title>
<style>
text { fill: #1f2328 } .small { fill: #59636e; font-size: 11px } .head { font-weight: 600 }
line { stroke: #d1d9e0 } .peer { fill: #8c959f } .own { fill: #0969da }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .small { fill: #9198a1 } line { stroke: #3d444d } .peer { fill: #656c76 } .own { fill: #4493f8 }
}
</style>
`, width, height, escape(strings.Join(r.names(), ", ")))
	for i, mtu := range r.o.mtus {
		for j, m := range []metric{gbps, perGB} {
			r.panel(&s, float64(j*panelWidth), float64(i*panelHeight), mtu, m)
		}
	}
	fmt.Fprintf(&s, `<text class="small" x="8" y="%d">%s</text>
</svg>
`, height-12, escape(fmt.Sprintf("%s, %s, Linux %s; medians of %d rounds of %d s; one TCP stream", r.Date, r.Machine, r.Kernel, r.Rounds, r.Seconds)))
	return s.String()
}

func (r *report) names() (all []string) {
	for _, b := range r.o.backends {
		all = append(all, b.name)
	}
	return all
}

func (r *report) panel(s *strings.Builder, left, top float64, mtu int, m metric) {
	title, axis := "Throughput", m.unit+", more is better"
	if m.key == perGB.key {
		title, axis = "Processor time of the backend", "seconds per GB, less is better"
	}
	var most float64
	at := func(test, backend string) *result {
		return r.find(key{Cores: r.o.cores[0], MTU: mtu, Test: test, Backend: backend}, m.key)
	}
	directions := []struct{ test, label string }{{"up", "guest to server"}, {"down", "server to guest"}}
	for _, d := range directions {
		for _, b := range r.names() {
			if x := at(d.test, b); x != nil {
				most = max(most, x.Median)
			}
		}
	}
	step := tick(most)
	most = max(step, step*math.Ceil(most/step))
	x0 := left + nameWidth
	scale := plotWidth / most
	fmt.Fprintf(s, `<text class="head" x="%.0f" y="%.0f">%s, MTU %d</text>`+"\n", left+8, top+20, title, mtu)
	bottom := top + 30 + float64(2*(groupStep+len(r.o.backends)*barStep))
	for n := 0; float64(n)*step <= most*1.001; n++ {
		x := x0 + float64(n)*step*scale
		fmt.Fprintf(s, `<line x1="%.1f" y1="%.0f" x2="%.1f" y2="%.0f"/>`, x, top+30, x, bottom+4)
		fmt.Fprintf(s, `<text class="small" x="%.1f" y="%.0f" text-anchor="middle">%g</text>`+"\n", x, bottom+18, math.Round(float64(n)*step*1e6)/1e6)
	}
	fmt.Fprintf(s, `<text class="small" x="%.0f" y="%.0f" text-anchor="middle">%s</text>`+"\n", x0+plotWidth/2, bottom+34, axis)
	y := top + 30
	for _, d := range directions {
		fmt.Fprintf(s, `<text class="small" x="%.0f" y="%.0f">%s</text>`+"\n", left+8, y+18, d.label)
		y += groupStep
		for _, b := range r.names() {
			fmt.Fprintf(s, `<text x="%.0f" y="%.0f" text-anchor="end">%s</text>`, x0-6, y+11, escape(b))
			if x := at(d.test, b); x == nil {
				fmt.Fprintf(s, `<text class="small" x="%.0f" y="%.0f">not measured</text>`+"\n", x0+4, y+11)
			} else {
				class := "peer"
				if b == "vmnetd" {
					class = "own"
				}
				fmt.Fprintf(s, `<rect class="%s" x="%.0f" y="%.0f" width="%.1f" height="%d"/><text x="%.1f" y="%.0f">%.*f</text>`+"\n",
					class, x0, y, x.Median*scale, barHeight, x0+x.Median*scale+4, y+11, m.places, x.Median)
			}
			y += barStep
		}
	}
}

// tick is a round step that makes two to five of most.
func tick(most float64) float64 {
	if most <= 0 {
		return 1
	}
	step := math.Pow(10, math.Floor(math.Log10(most)))
	for _, f := range []float64{0.2, 0.5, 1, 2} {
		if most/(step*f) <= 5 {
			return step * f
		}
	}
	return 5 * step
}

func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a strings.Builder takes all
	return b.String()
}
