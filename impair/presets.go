package impair

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// PresetInfo is a line that is known to people by name.
type PresetInfo struct {
	Name, Title, Source string

	down, up Way
}

const (
	ms   = time.Millisecond
	kbit = 1000
	mbit = 1000 * kbit
)

// wpt is one of WebPageTest's connectivity profiles: rates as they are, and half of the round trip each way, as dummynet
// has it there.
func wpt(name, title string, down, up int64, rtt time.Duration) PresetInfo {
	return PresetInfo{name, title, "WebPageTest, settings/connectivity.ini",
		Way{Rate: down, Latency: rtt / 2}, Way{Rate: up, Latency: rtt / 2}}
}

var presets = []PresetInfo{
	wpt("lte", "LTE: 12 Mbit/s both ways, 70 ms", 12*mbit, 12*mbit, 70*ms),
	wpt("4g", "4G: 9 Mbit/s both ways, 170 ms", 9*mbit, 9*mbit, 170*ms),
	wpt("3g", "3G: 1.6 Mbit/s down, 768 kbit/s up, 300 ms", 1600*kbit, 768*kbit, 300*ms),
	wpt("edge", "EDGE: 240 kbit/s down, 200 kbit/s up, 840 ms", 240*kbit, 200*kbit, 840*ms),
	wpt("dsl", "DSL: 1.5 Mbit/s down, 384 kbit/s up, 50 ms", 1500*kbit, 384*kbit, 50*ms),
	wpt("cable", "Cable: 5 Mbit/s down, 1 Mbit/s up, 28 ms", 5*mbit, 1*mbit, 28*ms),
	wpt("fiber", "Fiber: 20 Mbit/s down, 5 Mbit/s up, 4 ms", 20*mbit, 5*mbit, 4*ms),
	{"satellite", "geostationary satellite: 25 Mbit/s down, 3 Mbit/s up, 560 ms",
		"RFC 2488 section 2: up to 279 ms each way; the rates are the FCC's broadband of 2015 (FCC 15-10), which such services are sold as",
		Way{Rate: 25 * mbit, Latency: 280 * ms, QueueTime: 500 * ms}, Way{Rate: 3 * mbit, Latency: 280 * ms, QueueTime: 500 * ms}},
	{"flaky-wifi", "Wi-Fi at the end of its reach: 20 Mbit/s, losses of 5 in a row, late ones, and gone for 1 s in 60",
		"figures of our own, since no two such are alike; losses in bursts by Gilbert 1960 and Elliott 1963",
		flaky(20 * mbit), flaky(20 * mbit)},
}

// flaky loses 2 % in bursts of five frames: what is left of a fade once a card has repeated itself in vain. It delays by
// 10 ms and a tail, for the repeating.
func flaky(rate int64) Way {
	return Way{Rate: rate, Latency: 10 * ms, Jitter: 5 * ms, Dist: Pareto, Gilbert: &Gilbert{P: 0.004, R: 0.2, Bad: 1},
		FlapEvery: time.Minute, FlapDown: time.Second}
}

// Presets returns all presets.
func Presets() []PresetInfo { return slices.Clone(presets) }

// Preset returns the settings that people know by this name.
func Preset(name string) (Settings, error) {
	var names []string
	for _, p := range presets {
		if p.Name == strings.ToLower(name) {
			s := Settings{Up: p.up, Down: p.down}
			for _, w := range []*Way{&s.Up, &s.Down} {
				if w.Gilbert != nil {
					g := *w.Gilbert
					w.Gilbert = &g
				}
			}
			return s, nil
		}
		names = append(names, p.Name)
	}
	return Settings{}, fmt.Errorf("preset %.40q: want one of %s", name, strings.Join(names, ", "))
}

// Settings are the preset's.
func (p PresetInfo) Settings() Settings { s, _ := Preset(p.Name); return s }
