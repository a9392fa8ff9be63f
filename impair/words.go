package impair

// The words of a Way: one list from which texts are read and printed, and JSON both ways.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Word is one setting of a Way.
type Word struct {
	Name, Example, Help string

	aliases []string
	get     func(*Way) string // "" where it is not set
	set     func(*Way, string) error
}

func timeWord(name, example, help string, at func(*Way) *time.Duration, aliases ...string) Word {
	return Word{name, example, help, aliases,
		func(w *Way) string {
			if *at(w) == 0 {
				return ""
			}
			return printTime(*at(w))
		},
		func(w *Way, s string) (err error) { *at(w), err = parseTime(s); return err }}
}

func shareWord(name, example, help string, at func(*Way) *float64, aliases ...string) Word {
	return Word{name, example, help, aliases,
		func(w *Way) string {
			if *at(w) == 0 {
				return ""
			}
			return printShare(*at(w))
		},
		func(w *Way, s string) (err error) { *at(w), err = parseShare(s); return err }}
}

func sizeWord(name, example, help string, at func(*Way) *int64, aliases ...string) Word {
	return Word{name, example, help, aliases,
		func(w *Way) string {
			if *at(w) == 0 {
				return ""
			}
			return printSize(*at(w))
		},
		func(w *Way, s string) (err error) { *at(w), err = parseSize(s); return err }}
}

func oneOf[T ~uint8](name, example, help string, names []string, at func(*Way) *T, aliases ...string) Word {
	return Word{name, example, help, aliases,
		func(w *Way) string {
			if *at(w) == 0 || int(*at(w)) >= len(names) {
				return ""
			}
			return names[*at(w)]
		},
		func(w *Way, s string) error {
			i := slices.Index(names, strings.ToLower(strings.ReplaceAll(s, "_", "")))
			if i < 0 {
				return fmt.Errorf("want %s or %s", strings.Join(names[:len(names)-1], ", "), names[len(names)-1])
			}
			*at(w) = T(i)
			return nil
		}}
}

var words = []Word{
	{"rate", "10mbit", "bits a second: kbit, mbit, gbit, or bytes: kB/s, MB/s", []string{"rate_bps"},
		func(w *Way) string {
			if w.Rate == 0 {
				return ""
			}
			return printRate(w.Rate)
		},
		func(w *Way, s string) (err error) { w.Rate, err = parseRate(s); return err }},
	{"trace", "FILE", "Mahimahi's file of milliseconds at which the line takes 1500 bytes, in place of rate", nil,
		func(w *Way) string {
			if w.Trace == nil {
				return ""
			}
			return w.Trace.Name
		}, nil},
	sizeWord("burst", "15kB", "what passes at once after a pause", func(w *Way) *int64 { return &w.Burst }, "burst_bytes"),
	{"queue", "100ms", "what waits for the line, in time or bytes (100kB)", []string{"queue_bytes"},
		func(w *Way) string {
			switch {
			case w.Queue != 0:
				return printSize(w.Queue)
			case w.QueueTime != 0:
				return printTime(w.QueueTime)
			}
			return ""
		},
		func(w *Way, s string) error {
			d, terr := parseTime(s)
			if terr == nil && d != 0 {
				w.Queue, w.QueueTime = 0, d
				return nil
			}
			n, err := parseSize(s)
			if err != nil {
				return errors.New("want a time as 100ms or a size as 100kB")
			}
			w.Queue, w.QueueTime = n, 0
			return nil
		}},
	oneOf("policy", "codel", "what the queue does: droptail, red, codel; police is none", []string{"droptail", "red", "codel", "police"}, func(w *Way) *Policy { return &w.Policy }, "queue_policy"),
	shareWord("loss", "1%", "share of frames that are lost", func(w *Way) *float64 { return &w.Loss }),
	{"gilbert", "1%/25%", "loss in bursts: the chance that the line turns bad, and good again; /loss while bad (100%) and good (0%)", []string{"gemodel"},
		func(w *Way) string {
			g := w.Gilbert
			if g == nil {
				return ""
			}
			list := []float64{g.P, g.R, g.Bad, g.Good}
			n := 4
			if g.Good == 0 {
				if n = 3; g.Bad == 1 {
					n = 2
				}
			}
			var out []string
			for _, f := range list[:n] {
				out = append(out, printShare(f))
			}
			return strings.Join(out, "/")
		},
		func(w *Way, s string) error {
			if isOff(s) {
				w.Gilbert = nil
				return nil
			}
			parts := strings.Split(s, "/")
			if len(parts) < 2 || len(parts) > 4 {
				return errors.New("want P/R[/BAD[/GOOD]] as 1%/25% or 1%/25%/50%/0.1%")
			}
			list := []float64{0, 0, 1, 0}
			for i, p := range parts {
				var err error
				if list[i], err = parseShare(p); err != nil {
					return fmt.Errorf("%q: %w", p, err)
				}
			}
			w.Gilbert = &Gilbert{list[0], list[1], list[2], list[3]}
			return nil
		}},
	timeWord("latency", "50ms", "how long a frame is under way", func(w *Way) *time.Duration { return &w.Latency }, "delay", "latency_ms"),
	timeWord("jitter", "10ms", "how much more or less, at most (uniform) or as standard deviation", func(w *Way) *time.Duration { return &w.Jitter }, "jitter_ms"),
	oneOf("dist", "normal", "how jitter is spread: uniform, normal, pareto", []string{"uniform", "normal", "pareto"}, func(w *Way) *Dist { return &w.Dist }, "distribution", "jitter_dist"),
	shareWord("share", "30%", "share of frames that jitter (default all)", func(w *Way) *float64 { return &w.Share }, "jitter_share", "jitter_strength"),
	shareWord("correlation", "25%", "how alike a frame's jitter is to the one before", func(w *Way) *float64 { return &w.Correlation }),
	{"shuffle", "yes", "jitter may change the order of frames", []string{"reorder_packets"},
		func(w *Way) string {
			if w.Shuffle {
				return "yes"
			}
			return ""
		},
		func(w *Way, s string) error {
			switch strings.ToLower(s) {
			case "yes", "true", "on":
				w.Shuffle = true
			case "no", "false", "off":
				w.Shuffle = false
			default:
				return errors.New("want yes or no")
			}
			return nil
		}},
	shareWord("reorder", "1%", "share of frames that do not wait for the latency", func(w *Way) *float64 { return &w.Reorder }),
	{"gap", "5", "at most each so-manyth frame is reordered", []string{"reorder_gap"}, func(w *Way) string { return printInt(w.Gap) },
		func(w *Way, s string) (err error) { w.Gap, err = parseInt(s); return err }},
	shareWord("duplicate", "1%", "share of frames that come twice", func(w *Way) *float64 { return &w.Duplicate }, "dup"),
	shareWord("corrupt", "0.1%", "share of frames in which a bit is flipped", func(w *Way) *float64 { return &w.Corrupt }),
	{"flap", "30s/2s", "of each 30 s the line is down for the last 2", nil,
		func(w *Way) string {
			if w.FlapEvery == 0 {
				return ""
			}
			return printTime(w.FlapEvery) + "/" + printTime(w.FlapDown)
		},
		func(w *Way, s string) error {
			if isOff(s) {
				w.FlapEvery, w.FlapDown = 0, 0
				return nil
			}
			every, down, ok := strings.Cut(s, "/")
			a, aerr := parseTime(every)
			b, berr := parseTime(down)
			if !ok || aerr != nil || berr != nil {
				return errors.New("want EVERY/DOWN as 30s/2s")
			}
			w.FlapEvery, w.FlapDown = a, b
			return nil
		}},
	{"mtu", "1500", "the longest IP packet of the line; longer TCP segments are cut", nil, func(w *Way) string { return printInt(w.MTU) },
		func(w *Way, s string) (err error) { w.MTU, err = parseInt(s); return err }},
	sizeWord("memory", "16MiB", "what may be waiting and under way, at most", func(w *Way) *int64 { return &w.Memory }),
}

// Words returns the words of a Way, in the order in which they are printed.
func Words() []Word { return slices.Clone(words) }

func isOff(s string) bool { return s == "none" || s == "off" || s == "0" }

func printInt(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func parseInt(s string) (int, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return 0, errors.New("want a whole number")
	}
	return int(n), nil
}

// Files opens the file that a trace is in. Without one, texts may not name files.
type Files func(name string) (*Trace, error)

// OpenTrace is Files of this process's file system.
func OpenTrace(name string) (*Trace, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadTrace(name, f)
}

// set sets one word.
func (w *Way) set(name, value string, files Files) error {
	for i := range words {
		x := &words[i]
		if x.Name != name && !slices.Contains(x.aliases, name) {
			continue
		}
		if strings.HasSuffix(name, "_ms") && !strings.ContainsFunc(value, func(r rune) bool { return r >= 'a' && r <= 'z' }) {
			value += "ms"
		}
		if x.set == nil { // trace
			if isOff(value) || value == "" {
				w.Trace = nil
				return nil
			}
			if files == nil {
				return errors.New("trace: no file can be named here: want its milliseconds")
			}
			t, err := files(value)
			if err != nil {
				return err
			}
			w.Trace = t
			return nil
		}
		if value == "none" || value == "" {
			switch x.Name {
			case "shuffle":
				value = "no"
			case "policy":
				value = "droptail"
			case "dist":
				value = "uniform"
			default:
				value = "0"
			}
		}
		if err := x.set(w, value); err != nil {
			return fmt.Errorf("%s %.40q: %w", x.Name, value, err)
		}
		return nil
	}
	return fmt.Errorf("%.40q is none of a line's words: want %s", name, wordNames())
}

func wordNames() string {
	var names []string
	for i := range words {
		names = append(names, words[i].Name)
	}
	return strings.Join(names, ", ")
}

// ParseWay reads NAME=VALUE,… and, behind semicolons, steps that begin with at=TIME and say what changes then; the last
// may be repeat=TIME: rate=10mbit,latency=50ms;at=5s,loss=10%;at=8s,loss=0%;repeat=10s. "none" is a Way without faults.
func ParseWay(s string, files Files) (w Way, err error) {
	if s = strings.TrimSpace(s); s == "none" || s == "" {
		return w, nil
	}
	for i, part := range strings.Split(s, ";") {
		to := &w
		for j, field := range strings.Split(part, ",") {
			name, value, ok := strings.Cut(strings.TrimSpace(field), "=")
			name, value = strings.TrimSpace(name), strings.TrimSpace(value)
			if !ok && name == "shuffle" {
				ok, value = true, "yes"
			}
			if !ok {
				return w, fmt.Errorf("%.40q: want NAME=VALUE as rate=10mbit,latency=50ms", field)
			}
			if i > 0 && j == 0 {
				switch name {
				case "repeat":
					if w.Repeat, err = parseTime(value); err != nil {
						return w, fmt.Errorf("repeat %.40q: %w", value, err)
					}
					to = nil
					continue
				case "at":
					at, err := parseTime(value)
					if err != nil {
						return w, fmt.Errorf("at %.40q: %w", value, err)
					}
					if len(w.Steps) == maxSteps {
						return w, fmt.Errorf("want at most %d steps", maxSteps)
					}
					w.Steps = append(w.Steps, Step{At: at, Way: w.before(len(w.Steps))})
					to = &w.Steps[len(w.Steps)-1].Way
					continue
				}
				return w, fmt.Errorf("%.40q: a step begins with at=TIME, or is repeat=TIME", part)
			}
			if to == nil {
				return w, fmt.Errorf("%.40q: nothing follows repeat=TIME", field)
			}
			if err := to.set(name, value, files); err != nil {
				return w, err
			}
		}
	}
	return w, w.Check()
}

// before is the Way in force before the i-th step.
func (w *Way) before(i int) Way {
	b := *w
	if i > 0 {
		b = w.Steps[i-1].Way
	}
	b.Steps, b.Repeat = nil, 0
	return b
}

// String is what ParseWay reads, in one order and in the same units whatever was read. A trace is its name.
func (w *Way) String() string {
	var b strings.Builder
	list := func(x, before *Way) {
		for i := range words {
			s, was := words[i].get(x), ""
			if before != nil {
				was = words[i].get(before)
			}
			if s == was {
				continue
			}
			if s == "" {
				s = "none"
			}
			if b.Len() > 0 {
				b.WriteByte(',')
			}
			b.WriteString(words[i].Name + "=" + s)
		}
	}
	list(w, nil)
	for i := range w.Steps {
		if b.Len() == 0 {
			b.WriteString("latency=0s")
		}
		before := w.before(i)
		b.WriteString(";at=" + printTime(w.Steps[i].At))
		list(&w.Steps[i].Way, &before)
	}
	if w.Repeat != 0 {
		b.WriteString(";repeat=" + printTime(w.Repeat))
	}
	if b.Len() == 0 {
		return "none"
	}
	return b.String()
}

// MarshalJSON makes an object of words: {"rate":"10mbit","latency":"50ms"}.
func (w Way) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	add := func(name string, v any) {
		if len(b) > 1 && b[len(b)-1] != '{' {
			b = append(b, ',')
		}
		text, _ := json.Marshal(v)
		b = append(b, fmt.Sprintf("%q:", name)...)
		b = append(b, text...)
	}
	list := func(x, before *Way) {
		for i := range words {
			s, was := words[i].get(x), ""
			if before != nil {
				was = words[i].get(before)
			}
			if words[i].Name == "trace" {
				if x.Trace != nil && (before == nil || x.Trace != before.Trace) {
					add("trace", map[string]string{"name": x.Trace.Name, "opportunities": x.Trace.text()})
					continue
				} else if x.Trace != nil {
					continue
				}
			}
			switch {
			case s == was:
				continue
			case s == "":
				s = "none"
			}
			add(words[i].Name, s)
		}
	}
	list(&w, nil)
	if len(w.Steps) > 0 {
		b = append(b, bytes.Repeat([]byte{','}, min(1, len(b)-1))...)
		b = append(b, `"steps":[`...)
		for i := range w.Steps {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, '{')
			add("at", printTime(w.Steps[i].At))
			before := w.before(i)
			list(&w.Steps[i].Way, &before)
			b = append(b, '}')
		}
		b = append(b, ']')
	}
	if w.Repeat != 0 {
		add("repeat", printTime(w.Repeat))
	}
	return append(b, '}'), nil
}

// UnmarshalJSON takes ParseWay's text, or an object of words, whose values may be texts as in it, or numbers: bits a
// second, bytes, milliseconds, and shares from 0 to 1.
func (w *Way) UnmarshalJSON(b []byte) error {
	b = bytes.TrimSpace(b)
	*w = Way{}
	switch {
	case string(b) == "null":
		return nil
	case len(b) > 0 && b[0] == '"':
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		got, err := ParseWay(s, nil)
		*w = got
		return err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return errors.New(`a way is neither a text nor an object: want {"rate":"10mbit","latency":"50ms"}`)
	}
	if err := w.setJSON(fields, true); err != nil {
		return err
	}
	return w.Check()
}

func (w *Way) setJSON(fields map[string]json.RawMessage, steps bool) error {
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		raw := bytes.TrimSpace(fields[name])
		switch name {
		case "steps", "repeat", "at":
			continue
		case "trace":
			if err := w.setTrace(raw); err != nil {
				return err
			}
			continue
		}
		var v any
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			return fmt.Errorf("%.40s: %w", name, err)
		}
		text := ""
		switch v := v.(type) {
		case nil:
			text = "none"
		case string:
			text = v
		case bool:
			text = strconv.FormatBool(v)
		case json.Number:
			text = v.String()
			f, err := v.Float64()
			if err != nil {
				return fmt.Errorf("%.40s %.40s: want a smaller number", name, text)
			}
			switch name {
			case "latency", "delay", "jitter", "latency_ms", "jitter_ms":
				text = strconv.FormatFloat(f, 'f', -1, 64) + "ms"
			case "loss", "share", "jitter_share", "jitter_strength", "correlation", "reorder", "duplicate", "dup", "corrupt":
				if !(f >= 0 && f <= 1) {
					return fmt.Errorf(`%s %.40s: want a number from 0 to 1, or a text as "1%%"`, name, text)
				}
				text = strconv.FormatFloat(f*100, 'f', -1, 64) + "%"
			case "rate", "rate_bps", "burst", "burst_bytes", "queue", "queue_bytes", "memory":
				text = strconv.FormatFloat(f, 'f', -1, 64)
			}
		default:
			return fmt.Errorf("%.40s: want a text or a number", name)
		}
		if err := w.set(name, text, nil); err != nil {
			return err
		}
	}
	if !steps {
		return nil
	}
	if raw, ok := fields["repeat"]; ok {
		var s string
		if json.Unmarshal(raw, &s) != nil {
			return errors.New(`repeat: want a text as "20s"`)
		}
		var err error
		if w.Repeat, err = parseTime(s); err != nil {
			return fmt.Errorf("repeat %.40q: %w", s, err)
		}
	}
	if raw, ok := fields["steps"]; ok {
		var list []map[string]json.RawMessage
		if err := json.Unmarshal(raw, &list); err != nil {
			return errors.New(`steps: want a list as [{"at":"5s","loss":"10%"}]`)
		}
		if len(list) > maxSteps {
			return fmt.Errorf("%d steps: want at most %d", len(list), maxSteps)
		}
		for i, fields := range list {
			var at string
			if json.Unmarshal(fields["at"], &at) != nil {
				return fmt.Errorf(`step %d: want "at" as "5s"`, i+1)
			}
			d, err := parseTime(at)
			if err != nil {
				return fmt.Errorf("at %.40q: %w", at, err)
			}
			s := Step{At: d, Way: w.before(i)}
			if err := s.Way.setJSON(fields, false); err != nil {
				return fmt.Errorf("at %s: %w", printTime(d), err)
			}
			w.Steps = append(w.Steps, s)
		}
	}
	return nil
}

func (w *Way) setTrace(raw []byte) error {
	if string(raw) == "null" || string(raw) == `"none"` {
		w.Trace = nil
		return nil
	}
	var o struct{ Name, Opportunities string }
	if err := json.Unmarshal(raw, &o); err != nil {
		return errors.New(`trace: want {"name":"…","opportunities":"0 3 1*2 …"}, the milliseconds between them`)
	}
	t, err := parseTrace(o.Opportunities)
	if err != nil {
		return err
	}
	if strings.ContainsAny(o.Name, ",;=\n\r") || len(o.Name) > 255 {
		return errors.New("trace: want a name without , ; = and at most 255 long")
	}
	t.Name = o.Name
	if t.Name == "" {
		t.Name = "trace"
	}
	w.Trace = t
	return nil
}

// settingsJSON is Settings as JSON has it.
type settingsJSON struct {
	Up    *Way       `json:"up,omitempty"`
	Down  *Way       `json:"down,omitempty"`
	Flows []flowJSON `json:"flows,omitempty"`
	Seed  uint64     `json:"seed,omitempty"`
}

type flowJSON struct {
	Name  string `json:"name"`
	Match Match  `json:"match"`
	Up    *Way   `json:"up,omitempty"`
	Down  *Way   `json:"down,omitempty"`
}

func wayOrNil(w *Way) *Way {
	if w.None() && w.MTU == 0 && w.Memory == 0 {
		return nil
	}
	return w
}

// MarshalJSON makes {"up":…,"down":…,"flows":[{"name":"dns","match":"*:udp:53","down":…}],"seed":7}.
func (s Settings) MarshalJSON() ([]byte, error) {
	j := settingsJSON{Up: wayOrNil(&s.Up), Down: wayOrNil(&s.Down), Seed: s.Seed}
	for i := range s.Flows {
		f := &s.Flows[i]
		j.Flows = append(j.Flows, flowJSON{f.Name, f.Match, wayOrNil(&f.Up), wayOrNil(&f.Down)})
	}
	return json.Marshal(j)
}

// maxRepeats is how many opportunities settings may have by repeating: some bytes of text are else gigabytes of traces.
const maxRepeats = 4 * maxTrace

// repeats adds up the TIMES of all MILLISECONDS*TIMES.
func repeats(b []byte) (n uint64) {
	for {
		i := bytes.IndexByte(b, '*')
		if i < 0 {
			return n
		}
		times := uint64(0)
		for b = b[i+1:]; len(b) > 0 && b[0] >= '0' && b[0] <= '9' && times < maxRepeats; b = b[1:] {
			times = 10*times + uint64(b[0]-'0')
		}
		n += times
	}
}

// UnmarshalJSON is MarshalJSON's inverse. A name that it does not know is an error. A text is a preset's name.
func (s *Settings) UnmarshalJSON(b []byte) error {
	b = bytes.TrimSpace(b)
	if len(b) > 0 && b[0] == '"' {
		var name string
		if err := json.Unmarshal(b, &name); err != nil {
			return err
		}
		got, err := Preset(name)
		*s = got
		return err
	}
	if n := repeats(b); n > maxRepeats {
		return fmt.Errorf("traces of %d opportunities and more: want at most %d in all flows together", n, maxRepeats)
	}
	var j settingsJSON
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return err
	}
	*s = Settings{Seed: j.Seed}
	or := func(w *Way) (v Way) {
		if w != nil {
			v = *w
		}
		return v
	}
	s.Up, s.Down = or(j.Up), or(j.Down)
	for _, f := range j.Flows {
		s.Flows = append(s.Flows, Flow{f.Name, f.Match, or(f.Up), or(f.Down)})
	}
	return s.Check()
}

// ParseSettings reads settings in one line: a preset's name; a Way, for both directions; or a list of up=WAY, down=WAY,
// both=WAY, flow=NAME:MATCH and seed=N with spaces between, in which up, down and both behind a flow are the flow's:
//
//	3g
//	rate=10mbit,latency=50ms
//	down=rate=10mbit up=rate=1mbit flow=dns:*:udp:53 down=loss=20% seed=7
func ParseSettings(text string, files Files) (s Settings, err error) {
	fields := strings.Fields(text)
	if len(fields) == 1 && !strings.Contains(text, "=") && fields[0] != "none" {
		return Preset(fields[0])
	}
	up, down := &s.Up, &s.Down
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		switch name {
		case "flow":
			flow, match, ok := strings.Cut(value, ":")
			if !ok {
				return s, fmt.Errorf("flow %.40q: want NAME:MATCH as flow=dns:*:udp:53", value)
			}
			m, err := ParseMatch(match)
			if err != nil {
				return s, fmt.Errorf("flow %.40s: %w", flow, err)
			}
			s.Flows = append(s.Flows, Flow{Name: flow, Match: m})
			up, down = &s.Flows[len(s.Flows)-1].Up, &s.Flows[len(s.Flows)-1].Down
		case "seed":
			if s.Seed, err = strconv.ParseUint(value, 10, 53); err != nil { // what JSON's numbers hold
				return s, fmt.Errorf("seed %.40q: want a number up to 9007199254740991", value)
			}
		case "up", "down", "both":
			w, err := ParseWay(value, files)
			if err != nil {
				return s, fmt.Errorf("%s: %w", name, err)
			}
			if name != "down" {
				*up = w
			}
			if name != "up" {
				*down = w
			}
		default:
			w, err := ParseWay(f, files)
			if err != nil {
				return s, err
			}
			*up, *down = w, w
		}
	}
	return s, s.Check()
}

// String is what ParseSettings reads.
func (s *Settings) String() string {
	var list []string
	ways := func(up, down *Way) {
		a, b := up.String(), down.String()
		if a == b && a != "none" {
			list = append(list, "both="+a)
			return
		}
		if a != "none" {
			list = append(list, "up="+a)
		}
		if b != "none" {
			list = append(list, "down="+b)
		}
	}
	ways(&s.Up, &s.Down)
	for i := range s.Flows {
		list = append(list, "flow="+s.Flows[i].Name+":"+s.Flows[i].Match.String())
		ways(&s.Flows[i].Up, &s.Flows[i].Down)
	}
	if s.Seed != 0 {
		list = append(list, fmt.Sprintf("seed=%d", s.Seed))
	}
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, " ")
}
