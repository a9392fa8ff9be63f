package impair

import (
	"errors"
	"fmt"
	"time"
)

// Settings is what one guest's wire suffers. The zero Settings is a wire without faults.
type Settings struct {
	// Up is what the guest sends, Down what it gets.
	Up, Down Way
	// Flows are conversations that have settings of their own; the first that matches has the frame. Both of its
	// ways stand in place of Up and Down, of which it takes nothing over.
	Flows []Flow
	// Seed makes a run repeatable: with the same seed the same frames of each class are lost, doubled, damaged, held
	// up or let ahead, counted from the change that set the seed. 0 is: go on with the one in force, or pick one.
	Seed uint64
}

// Flow is some of a guest's conversations.
type Flow struct {
	Name     string // of letters, digits, - and _; not "default"
	Match    Match
	Up, Down Way
}

// A Way is what frames suffer in one direction, in this order: they wait for their turn on a line of some rate, are lost
// on it or damaged, and arrive later. The zero Way does nothing.
type Way struct {
	// Rate is how many bits a second the line carries, counted over Ethernet frames without FCS, as tc(8) does.
	Rate int64
	// Burst is how many bytes pass at once after a pause, at no rate. 0: none, each frame takes its time on the line.
	Burst int64
	// Trace is when the line carries something, in place of Rate.
	Trace *Trace
	// Queue is how many bytes wait for the line, QueueTime the same as the time that the line takes for them. The
	// default is a QueueTime of 100 ms, what home routers' buffers are at least, and no less than ten frames.
	Queue     int64
	QueueTime time.Duration
	// Policy is what happens to frames that come faster than the line is.
	Policy Policy

	// Loss is the share of frames that are lost, each for itself; Gilbert loses them in bursts.
	Loss    float64
	Gilbert *Gilbert
	// Latency is how long a frame is under way.
	Latency time.Duration
	// Jitter is how much longer or less long, by Dist; Share is the share of frames that have it (0: all), and
	// Correlation how alike one frame's is to the one before.
	Jitter      time.Duration
	Dist        Dist
	Share       float64
	Correlation float64
	// Shuffle lets jitter change the order of frames. Without it a frame waits for those before it.
	Shuffle bool
	// Reorder is the share of frames that do not wait for Latency and so get ahead of those that do; with Gap, at most
	// each Gap-th.
	Reorder float64
	Gap     int
	// Duplicate is the share of frames that come twice, Corrupt the share that come with one bit flipped behind the
	// Ethernet header, their checksums as they were.
	Duplicate, Corrupt float64
	// FlapEvery and FlapDown: of each FlapEvery, the last FlapDown the line is down and loses all.
	FlapEvery, FlapDown time.Duration

	// MTU is the longest IP packet of the line that is played. Longer TCP segments, as guests with large MTUs or
	// offloads send them, are cut to it, each piece with a fate of its own; of longer other packets each part that
	// they would be sent in counts for loss. 0 is 1500.
	MTU int
	// Memory is how many bytes may be waiting and under way. What is beyond is dropped. 0 is 16 MiB: 1 Gbit/s for
	// 130 ms.
	Memory int64

	// Steps change the Way as time goes by, counted from the change that set them; with Repeat, again and again.
	Steps  []Step
	Repeat time.Duration
}

// Step is the Way from At on. Its own Steps, Repeat and Memory do not count.
type Step struct {
	At time.Duration
	Way
}

// Policy is what a queue does.
type Policy uint8

const (
	DropTail Policy = iota // what does not fit is dropped
	RED                    // random early detection (Floyd and Jacobson 1993): between a quarter and three quarters full, up to a tenth
	CoDel                  // RFC 8289, target 5 ms, interval 100 ms: what has waited too long for too long is dropped
	Police                 // there is no queue: what is beyond Rate and Burst is dropped
)

// Dist is how jitter is spread.
type Dist uint8

const (
	Uniform Dist = iota // from -Jitter to +Jitter
	Normal              // Jitter is the standard deviation
	Pareto              // as Normal, with a long tail of late ones: shape 3, the mean taken off
)

// Gilbert is loss in bursts: the Gilbert-Elliott model. The line is good or bad, and may turn with each frame.
type Gilbert struct {
	P, R      float64 // from good to bad, and back
	Bad, Good float64 // loss in either: 1-h and 1-k of the literature
}

// Mean is the share that is lost in the long run.
func (g *Gilbert) Mean() float64 { return (g.P*g.Bad + g.R*g.Good) / (g.P + g.R) }

const (
	minRate    = 1e3  // a modem of 1962 had 300; a frame of 1514 bytes takes 12 s here
	maxRate    = 1e12 // beyond any wire, and a frame's time on it is still told from 0
	maxLatency = time.Minute
	maxSteps   = 1000
	minRepeat  = 10 * time.Millisecond // less is work for nobody's use
	maxFlows   = 64                    // they are gone through for each frame

	defaultMTU    = 1500
	minMTU        = 576 // RFC 791: what every host takes
	maxMTU        = 65535
	defaultMemory = 16 << 20
	minMemory     = 128 << 10 // one frame of the longest, and another
	maxMemory     = 1 << 30
	defaultQueue  = 100 * time.Millisecond
	leastQueue    = 10 * 1514
)

// None says that the Way does nothing.
func (w *Way) None() bool {
	return w.Rate == 0 && w.Trace == nil && w.Loss == 0 && w.Gilbert == nil && w.Latency == 0 && w.Jitter == 0 &&
		w.Duplicate == 0 && w.Corrupt == 0 && w.FlapDown == 0 && len(w.Steps) == 0
}

// None says that the settings do nothing.
func (s *Settings) None() bool {
	return s == nil || s.Up.None() && s.Down.None() && len(s.Flows) == 0
}

// whole says that each piece of a large segment would have the same fate as the others, so that it need not be cut.
func (w *Way) whole() bool {
	return w.Rate == 0 && w.Trace == nil && w.Loss == 0 && w.Gilbert == nil && w.Jitter == 0 && w.Reorder == 0 &&
		w.Duplicate == 0 && w.Corrupt == 0 && len(w.Steps) == 0
}

// least is what a frame is under way at the least: nobody need look sooner.
func (w *Way) least() time.Duration {
	if w.Reorder > 0 || w.Dist != Uniform {
		return 0
	}
	return w.Latency - w.Jitter
}

// Check says what is wrong with the settings, and what would be right.
func (s *Settings) Check() error {
	var errs []error
	add := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	add("up", s.Up.Check())
	add("down", s.Down.Check())
	if len(s.Flows) > maxFlows {
		errs = append(errs, fmt.Errorf("%d flows: want at most %d", len(s.Flows), maxFlows))
	}
	seen := map[string]bool{}
	for i := range s.Flows {
		f := &s.Flows[i]
		switch {
		case !isName(f.Name):
			errs = append(errs, fmt.Errorf("flow %.40q: want a name of letters, digits, - and _, at most 32", f.Name))
		case f.Name == defaultName:
			errs = append(errs, fmt.Errorf("flow %s: that is what no flow matches: want another name", f.Name))
		case seen[f.Name]:
			errs = append(errs, fmt.Errorf("flow %s: there are two: want another name", f.Name))
		}
		seen[f.Name] = true
		add("flow "+f.Name, f.Match.check())
		add("flow "+f.Name+" up", f.Up.Check())
		add("flow "+f.Name+" down", f.Down.Check())
	}
	return errors.Join(errs...)
}

const defaultName = "default"

func isName(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for _, c := range []byte(s) {
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// Check says what is wrong with the way, and what would be right.
func (w *Way) Check() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	share := func(name string, f float64) {
		if !(f >= 0 && f <= 1) {
			bad("%s %s: want 0%% to 100%%", name, printShare(f))
		}
	}
	within := func(name string, d, most time.Duration) {
		if d < 0 || d > most {
			bad("%s %s: want 0s to %s", name, printTime(d), printTime(most))
		}
	}
	if w.Rate != 0 && (w.Rate < minRate || w.Rate > maxRate) {
		bad("rate %s: want %s to %s, or 0 for none", printRate(w.Rate), printRate(minRate), printRate(maxRate))
	}
	if w.Trace != nil {
		if w.Rate != 0 {
			bad("rate and trace: a line has one or the other")
		}
		if err := w.Trace.check(); err != nil {
			errs = append(errs, err)
		}
		if w.Policy == Police || w.Burst != 0 {
			bad("a trace has neither burst nor policer: want rate for these")
		}
	}
	line := w.Rate != 0 || w.Trace != nil
	if !line && (w.Burst != 0 || w.Queue != 0 || w.QueueTime != 0 || w.Policy != DropTail) {
		bad("burst, queue and policy are a line's: want a rate or a trace beside them")
	}
	if w.Burst < 0 || w.Burst > maxMemory {
		bad("burst %s: want 0B to %s", printSize(w.Burst), printSize(maxMemory))
	}
	if w.Queue < 0 || w.Queue > maxMemory {
		bad("queue %s: want 0B to %s", printSize(w.Queue), printSize(maxMemory))
	}
	within("queue", w.QueueTime, maxLatency)
	if w.Queue != 0 && w.QueueTime != 0 {
		bad("queue in bytes and in time: want one of them")
	}
	if w.Policy > Police {
		bad("policy %d: want droptail, red, codel or police", w.Policy)
	}
	if w.Policy == Police && (w.Queue != 0 || w.QueueTime != 0) {
		bad("a policer has no queue: want a burst, or another policy")
	}
	if least := int64(w.mtu() + ethLen); w.Policy == Police && w.Burst > 0 && w.Burst < least {
		bad("burst %s: a policer lets no frame pass that is longer: want %s or more", printSize(w.Burst), printSize(least))
	}
	share("loss", w.Loss)
	if g := w.Gilbert; g != nil {
		if w.Loss != 0 {
			bad("loss and gilbert: want one of them")
		}
		share("gilbert's p", g.P)
		share("gilbert's r", g.R)
		share("gilbert's loss while bad", g.Bad)
		share("gilbert's loss while good", g.Good)
		if g.P+g.R == 0 {
			bad("gilbert 0%%/0%%: the line never turns: want p or r above 0%%")
		}
	}
	within("latency", w.Latency, maxLatency)
	within("jitter", w.Jitter, maxLatency)
	if w.Jitter > w.Latency {
		bad("jitter %s: want at most the latency, %s: nothing arrives before it was sent", printTime(w.Jitter), printTime(w.Latency))
	}
	if w.Dist > Pareto {
		bad("distribution %d: want uniform, normal or pareto", w.Dist)
	}
	share("jitter's share", w.Share)
	if !(w.Correlation >= 0 && w.Correlation < 1) {
		bad("correlation %s: want 0%% to 99%%", printShare(w.Correlation))
	}
	if w.Jitter == 0 && (w.Dist != Uniform || w.Share != 0 || w.Correlation != 0 || w.Shuffle) {
		bad("distribution, share, correlation and shuffle are jitter's: want a jitter beside them")
	}
	share("reorder", w.Reorder)
	if w.Reorder > 0 && w.Latency == 0 {
		bad("reorder %s: want a latency beside it: a frame gets ahead of those that are delayed", printShare(w.Reorder))
	}
	if w.Gap < 0 || w.Gap > 1e6 || w.Gap > 0 && w.Reorder == 0 {
		bad("gap %d: want 1 to 1000000, beside a share to reorder", w.Gap)
	}
	share("duplicate", w.Duplicate)
	share("corrupt", w.Corrupt)
	within("flap", w.FlapEvery, 24*time.Hour)
	if w.FlapDown < 0 || w.FlapDown > w.FlapEvery || w.FlapEvery > 0 && w.FlapDown == 0 {
		bad("flap %s/%s: want EVERY/DOWN, as 30s/2s, the second no longer than the first", printTime(w.FlapEvery), printTime(w.FlapDown))
	}
	if w.MTU != 0 && (w.MTU < minMTU || w.MTU > maxMTU) {
		bad("mtu %d: want %d to %d", w.MTU, minMTU, maxMTU)
	}
	if w.Memory != 0 && (w.Memory < minMemory || w.Memory > maxMemory) {
		bad("memory %s: want %s to %s", printSize(w.Memory), printSize(minMemory), printSize(maxMemory))
	}
	if len(w.Steps) > maxSteps {
		bad("%d steps: want at most %d", len(w.Steps), maxSteps)
	}
	last := time.Duration(0)
	for i := range w.Steps {
		s := &w.Steps[i]
		within("at", s.At, 24*time.Hour)
		if s.At <= last && (i > 0 || s.At < 0) {
			bad("at %s: want steps in order, each later than the one before", printTime(s.At))
		}
		last = s.At
		if len(s.Steps) > 0 || s.Repeat != 0 {
			bad("at %s: a step has no steps of its own", printTime(s.At))
		} else if err := s.Way.Check(); err != nil {
			bad("at %s: %w", printTime(s.At), err)
		}
	}
	if w.Repeat != 0 && (len(w.Steps) == 0 || w.Repeat <= last || w.Repeat < minRepeat || w.Repeat > 24*time.Hour) {
		bad("repeat %s: want steps beside it, and a time after the last of them, from %s to a day", printTime(w.Repeat), printTime(minRepeat))
	}
	return errors.Join(errs...)
}

func (w *Way) mtu() int {
	if w.MTU == 0 {
		return defaultMTU
	}
	return w.MTU
}

func (w *Way) memory() int64 {
	if w.Memory == 0 {
		return defaultMemory
	}
	return w.Memory
}

// queueBytes is how many bytes may wait.
func (w *Way) queueBytes() int64 {
	if w.Queue != 0 {
		return w.Queue
	}
	t := w.QueueTime
	if t == 0 {
		t = defaultQueue
	}
	rate := float64(w.Rate)
	if w.Trace != nil {
		rate = w.Trace.Mean()
	}
	return min(max(int64(rate/8*t.Seconds()), leastQueue), maxMemory)
}

// burst is Burst; a policer's default is a tenth of a second, so that a window's worth of TCP passes, and no less than ten frames.
func (w *Way) burst() int64 {
	if w.Policy == Police && w.Burst == 0 {
		return max(w.Rate/8/10, leastQueue)
	}
	return w.Burst
}
