package backend

// Captures: what crosses guests' wires, written down while they run (package capture). Each wire has a capture.Wire right
// around it, inside of whatever disturbs it. Here is which captures there are, which wires each is on, and what their
// packets are called: the conversations, as the flow table tells of them.

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmnetd/vmnetd/capture"
	"github.com/vmnetd/vmnetd/flows"
)

const (
	// maxCaptures is how many a network has at a time, kept ones included: each may have 8 MiB that wait to be written.
	maxCaptures = 16
	// keptBytes is how many one that is kept in memory has, unless it says otherwise, and maxKeptBytes all of them: a page's
	// worth to look at, not an archive.
	keptBytes    = 16 << 20
	maxKeptBytes = 64 << 20
	// minCaptureBytes holds a file's head, a guest's interface, and its figures, with names as long as they may be.
	minCaptureBytes = 16 << 10
)

// CaptureConfig says what a capture is of, and how much.
type CaptureConfig struct {
	Guest      string        `json:"guest,omitempty"`       // id; "": all guests, also those to come
	Filter     string        `json:"filter,omitempty"`      // in tcpdump's language: package capture
	Flow       string        `json:"flow,omitempty"`        // a conversation's id; or a name, example.com or *.example.com; or tcp:443
	Snaplen    int           `json:"snaplen,omitempty"`     // most bytes of a frame; 0: all
	MaxBytes   int64         `json:"max_bytes,omitempty"`   // of the file; 0: any, or 16 MiB of one that is kept
	MaxPackets int64         `json:"max_packets,omitempty"` // 0: any
	MaxTime    time.Duration `json:"-"`                     // 0: for ever

	Program string `json:"-"` // and its version, for the file's head
}

// Errors of StartCapture, besides *capture.FilterError.
var (
	ErrNoGuest      = errors.New("no such guest is plugged in")
	ErrCaptureWish  = errors.New("no such capture can be") // what was asked for is wrong
	ErrCapturesFull = errors.New("too many captures")
)

func captureWish(format string, args ...any) error {
	return wishError{fmt.Sprintf(format, args...)}
}

type wishError struct{ text string }

func (e wishError) Error() string        { return "capture: " + e.text }
func (e wishError) Is(target error) bool { return target == ErrCaptureWish }

// CaptureInfo is a capture at one moment.
type CaptureInfo struct {
	ID string `json:"id"` // "c1", of all networks of a process
	CaptureConfig
	MaxSeconds float64   `json:"max_seconds,omitempty"`
	Kept       bool      `json:"kept"`            // in memory, to be had later; else it goes to who began it
	Running    bool      `json:"running"`         //
	End        string    `json:"end,omitempty"`   // why it is over: stopped, size, packets, time, gone (its guest has), failed
	Error      string    `json:"error,omitempty"` // of failed
	Started    time.Time `json:"started"`
	Ended      time.Time `json:"ended,omitzero"`
	Guests     int       `json:"guests"` // that it is on
	capture.Figures
}

// Capture is one. Its methods may be called by anybody.
type Capture struct {
	net     *Network
	id      string
	cfg     CaptureConfig
	started time.Time
	s       *capture.Session
	kept    *capture.Memory // or nil
	notes   *captureNotes
	taps    map[*port]*capture.Tap // under captures.mu
	ended   atomic.Int64           // when, in Unix nanoseconds
}

// captures are a network's.
type captures struct {
	mu     sync.Mutex
	ports  map[*port]*capture.Wire
	list   []*Capture
	closed bool
	wg     sync.WaitGroup
}

// lastCapture numbers those of the process.
var lastCapture atomic.Uint64

// StartCapture begins a capture that is written to w, which gets whole blocks of pcapng; with w nil it is kept in memory,
// until ForgetCapture. It goes on until it is stopped, w fails, or it has what it was to have; one of a guest, also until
// that goes. Nothing waits for w: what it is too slow for is missing, and counted.
func (n *Network) StartCapture(c CaptureConfig, w capture.Writer) (*Capture, error) {
	o := capture.Options{Snaplen: c.Snaplen, MaxBytes: c.MaxBytes, MaxPackets: c.MaxPackets, MaxTime: c.MaxTime,
		Application: cmp.Or(c.Program, "vmnetd"), OS: runtime.GOOS + "/" + runtime.GOARCH, Note: c.note(n.cfg.Name)}
	if c.Snaplen < 0 || c.MaxBytes < 0 || c.MaxPackets < 0 || c.MaxTime < 0 {
		return nil, captureWish("a bound is below 0")
	}
	if c.MaxBytes > 0 && c.MaxBytes < minCaptureBytes {
		return nil, captureWish("%d bytes hold nothing: want %d at least", c.MaxBytes, minCaptureBytes)
	}
	x := &Capture{net: n, cfg: c, started: time.Now(), taps: map[*port]*capture.Tap{}}
	if w == nil {
		x.kept = &capture.Memory{}
		w = x.kept
		x.cfg.MaxBytes = cmp.Or(c.MaxBytes, keptBytes)
		o.MaxBytes = x.cfg.MaxBytes
	}
	wish, err := parseFlowWish(c.Flow)
	if err != nil {
		return nil, err
	}
	if !wish.any() && c.Snaplen > 0 && c.Snaplen < capture.HeadLen {
		return nil, captureWish("flow %s: which conversation a frame is of is in its first %d bytes: want a snaplen of %[2]d at least, or none", shortText(c.Flow), capture.HeadLen)
	}
	if o.Filter, err = capture.ParseFilter(c.Filter); err != nil {
		return nil, err
	}
	if text := wish.filter; text != "" {
		if o.Filter != nil {
			text = "(" + c.Filter + ") and " + text
		}
		if o.Filter, err = capture.ParseFilter(text); err != nil {
			return nil, err
		}
	}

	cs := &n.captures
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.closed {
		return nil, ErrClosed
	}
	var kept int64
	for _, y := range cs.list {
		if y.kept != nil {
			kept += y.cfg.MaxBytes
		}
	}
	if x.kept != nil && x.cfg.MaxBytes > maxKeptBytes-kept {
		return nil, fmt.Errorf("%w: all that are kept have %d bytes at most", ErrCapturesFull, maxKeptBytes)
	}
	if len(cs.list) >= maxCaptures {
		return nil, fmt.Errorf("%w: there are %d", ErrCapturesFull, len(cs.list))
	}
	on := map[*port]*capture.Wire{}
	for p, w := range cs.ports {
		if c.Guest == "" || c.Guest == p.id {
			on[p] = w
		}
	}
	if c.Guest != "" && len(on) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNoGuest, c.Guest)
	}
	x.id = fmt.Sprintf("c%d", lastCapture.Add(1))
	x.notes = newCaptureNotes(n, wish)
	o.Judge = x.judge
	x.s = capture.Start(w, o)
	for p, w := range on {
		x.add(p, w)
	}
	cs.list = append(cs.list, x)
	n.log.Info("capture begun", "capture", x.id, "guest", c.Guest, "filter", c.Filter, "flow", c.Flow)
	n.note(EventCapture, c.Guest, x.id, "begun, of %s", c.what())
	cs.wg.Go(x.watch)
	return x, nil
}

// what is what the capture is of, for people.
func (c CaptureConfig) what() string {
	parts := []string{"all guests"}
	if c.Guest != "" {
		parts[0] = "guest " + c.Guest
	}
	if c.Filter != "" {
		parts = append(parts, strconv.Quote(c.Filter))
	}
	if c.Flow != "" {
		parts = append(parts, "flow "+c.Flow)
	}
	return strings.Join(parts, ", ")
}

func (c CaptureConfig) note(network string) string {
	return "network " + network + ", " + c.what() + "; inbound is from the guest"
}

// add puts the capture on a port's wire, under captures.mu.
func (x *Capture) add(p *port, w *capture.Wire) {
	x.taps[p] = x.s.Add(w, func() capture.Interface { return p.asInterface() })
	x.notes.guest(x.taps[p], p.id)
}

// asInterface is how the port stands in a capture.
func (p *port) asInterface() capture.Interface {
	g := p.info()
	i := capture.Interface{Name: p.id}
	if g.Name != "" {
		i.Name += " " + g.Name
	}
	parts := []string{"guest " + p.id, "network " + p.net.cfg.Name, g.Link}
	for _, a := range g.Addrs {
		parts = append(parts, a.String())
	}
	i.Description = strings.Join(parts, ", ")
	if g.MAC != "" {
		i.MAC, _ = net.ParseMAC(g.MAC)
	}
	return i
}

// watch ends with the capture.
func (x *Capture) watch() {
	err := x.s.Wait()
	x.ended.Store(time.Now().UnixNano())
	f, why := x.s.Figures()
	cs := &x.net.captures
	cs.mu.Lock()
	clear(x.taps)
	if x.kept == nil {
		cs.list = slices.DeleteFunc(cs.list, func(y *Capture) bool { return x == y })
	}
	cs.mu.Unlock()
	x.notes.close()
	text := fmt.Sprintf("over (%s): %d packets, %d bytes, %d missing", why, f.Packets, f.Bytes, f.Dropped)
	if err != nil {
		text += ": " + err.Error()
		x.net.log.Warn("capture failed", "capture", x.id, "error", err, "packets", f.Packets)
	} else {
		x.net.log.Info("capture over", "capture", x.id, "end", string(why), "packets", f.Packets, "missing", f.Dropped)
	}
	x.net.note(EventCapture, x.cfg.Guest, x.id, "%s", text)
}

// came says that a port's wire is about to be used.
func (cs *captures) came(p *port, w *capture.Wire) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.ports == nil {
		cs.ports = map[*port]*capture.Wire{}
	}
	cs.ports[p] = w
	for _, x := range cs.list {
		if x.cfg.Guest == "" || x.cfg.Guest == p.id {
			x.add(p, w)
		}
	}
}

// gone says that it is no more.
func (cs *captures) gone(p *port) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	delete(cs.ports, p)
	for _, x := range cs.list {
		if t := x.taps[p]; t != nil {
			delete(x.taps, p)
			t.Remove()
			x.notes.gone(t)
		}
		if x.cfg.Guest == p.id {
			x.s.StopAs(capture.WireGone)
		}
	}
}

// close ends all captures. What they are written to must not wait for ever then.
func (cs *captures) close() {
	cs.mu.Lock()
	cs.closed = true
	list := slices.Clone(cs.list)
	cs.mu.Unlock()
	for _, x := range list {
		x.Stop()
	}
	cs.wg.Wait()
}

// Captures are those that run and those that are kept, oldest first.
func (n *Network) Captures() []*Capture {
	n.captures.mu.Lock()
	defer n.captures.mu.Unlock()
	return slices.Clone(n.captures.list)
}

// ForgetCapture stops a capture, and lets go of one that is kept.
func (n *Network) ForgetCapture(x *Capture) {
	x.Stop()
	n.captures.mu.Lock()
	defer n.captures.mu.Unlock()
	n.captures.list = slices.DeleteFunc(n.captures.list, func(y *Capture) bool { return x == y })
}

// ID names the capture.
func (x *Capture) ID() string { return x.id }

// Ending is closed when it takes nothing more: what it has is being written.
func (x *Capture) Ending() <-chan struct{} { return x.s.Ending() }

// Stop ends it. What has crossed by now is still written.
func (x *Capture) Stop() { x.s.Stop() }

// Done is closed when all is written.
func (x *Capture) Done() <-chan struct{} { return x.s.Done() }

// Wait waits for that, and says what the writer failed by.
func (x *Capture) Wait() error { return x.s.Wait() }

// Kept reads what a capture in memory has by now, a whole file, and says how many bytes that are; nil for others.
func (x *Capture) Kept() (io.Reader, int64) {
	if x.kept == nil {
		return nil, 0
	}
	return x.kept.Reader()
}

// CopyKept writes what a capture in memory has to w, and what it comes to have, until it is over or stop is closed. It
// writes in pieces that end anywhere.
func (x *Capture) CopyKept(stop <-chan struct{}, w io.Writer) error {
	if x.kept == nil {
		return captureWish("%s is not kept", x.id)
	}
	buf := make([]byte, 256<<10) // what the capture writes at a time
	for off, last := int64(0), false; ; {
		n, more := x.kept.From(buf, off)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			off += int64(n)
			continue
		}
		if last {
			return nil
		}
		select {
		case <-more:
		case <-x.Done():
			last = true // all is written, perhaps just now
		case <-stop:
			return nil
		}
	}
}

// Info is the capture at this moment.
func (x *Capture) Info() CaptureInfo {
	f, why := x.s.Figures()
	i := CaptureInfo{ID: x.id, CaptureConfig: x.cfg, MaxSeconds: x.cfg.MaxTime.Seconds(), Kept: x.kept != nil, Started: x.started, Guests: x.s.Taps(), Figures: f}
	select {
	case <-x.s.Done():
		i.End = string(why)
		if err := x.s.Wait(); err != nil {
			i.Error = err.Error()
		}
		if t := x.ended.Load(); t > 0 {
			i.Ended = time.Unix(0, t)
		}
	default:
		i.Running = true
	}
	return i
}

// flowWish is which conversations a capture wants.
type flowWish struct {
	id     uint64
	name   string // in small letters
	filter string // instead
}

func (w flowWish) any() bool { return w.id == 0 && w.name == "" }

// has says whether it wants f.
func (w flowWish) has(f *flows.Flow) bool {
	switch {
	case w.id != 0:
		return f.ID == w.id
	case w.name != "":
		if h, ok := f.Said(); ok && w.isNamed(h.Name) {
			return true
		}
		return slices.ContainsFunc(f.Names(), w.isNamed)
	}
	return true
}

func (w flowWish) isNamed(s string) bool {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if parent, ok := strings.CutPrefix(w.name, "*"); ok {
		return strings.HasSuffix(s, parent) && len(s) > len(parent)
	}
	return s == w.name
}

func parseFlowWish(s string) (w flowWish, err error) {
	const right = "want a conversation's id as 17, a name as example.com or *.example.com, or a protocol and port as tcp:443"
	if s == "" {
		return w, nil
	}
	if id, err := strconv.ParseUint(s, 10, 64); err == nil && id > 0 {
		return flowWish{id: id}, nil
	}
	if proto, port, ok := strings.Cut(s, ":"); ok {
		if n, err := strconv.ParseUint(port, 10, 16); (proto == "tcp" || proto == "udp") && err == nil {
			return flowWish{filter: fmt.Sprintf("%s port %d", proto, n)}, nil
		}
		return w, captureWish("flow %q: %s", shortText(s), right)
	}
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	base := strings.TrimPrefix(name, "*.")
	// 253 bytes: RFC 1035, 2.3.4.
	if base == "" || len(base) > 253 || strings.ContainsFunc(base, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_' || r > 127)
	}) {
		return w, captureWish("flow %q: %s", shortText(s), right)
	}
	return flowWish{name: name}, nil
}

// captureNotes are what a capture's packets are called. All but guest, gone and close is of the capture's writer.
type captureNotes struct {
	net    *Network
	wish   flowWish
	follow *flows.Follower

	mu     sync.Mutex
	guests map[*capture.Tap]string // ids

	flows map[noteKey]*note
	ended []*note // flows that are over, oldest first: their last packets may still come
}

// noteKey is a conversation as the guest's wire has it. Of UDP's, which may have any number of far ends, only the guest's
// end counts, and of pings only the addresses.
type noteKey struct {
	guest    string
	proto    flows.Proto
	near, to netip.AddrPort
}

type note struct {
	key    noteKey
	flow   *flows.Flow // nil: none is known
	told   bool
	named  bool // and by what its first bytes named
	misses int
	over   time.Time
}

const (
	// noteTries is how many packets of no known conversation are asked about: the first may be here before the table has
	// it. What has none are the gateway's own services, and other guests.
	noteTries = 3
	// noteAfter is how long after its end a conversation's packets still have its name: as long as a guest repeats what it
	// has not heard the answer to.
	noteAfter = 10 * time.Second
	// maxNotes bounds what is remembered of packets without a conversation: a guest may make up any number.
	maxNotes = 32 << 10
)

func newCaptureNotes(n *Network, w flowWish) *captureNotes {
	c := &captureNotes{net: n, wish: w, follow: n.flows.Follow(), guests: map[*capture.Tap]string{}, flows: map[noteKey]*note{}}
	c.learnAll()
	return c
}

func (c *captureNotes) close() { c.follow.Close() }

func (c *captureNotes) guest(t *capture.Tap, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.guests[t] = id
}

// gone is called when the tap's last packets are still on their way.
func (c *captureNotes) gone(t *capture.Tap) {
	time.AfterFunc(noteAfter, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.guests, t)
	})
}

func (c *captureNotes) learnAll() {
	for _, f := range c.net.flows.All() {
		c.learn(f)
	}
}

// keyOf is where packets of a conversation are found.
func keyOf(q *flows.Query) noteKey {
	k := noteKey{q.Guest, q.Proto, q.Src, q.Dst}
	if q.Dir == flows.In {
		k.near, k.to = q.Dst, q.Src
	}
	return k.rounded()
}

func (k noteKey) rounded() noteKey {
	switch k.proto {
	case flows.ICMP, flows.ICMPv6:
		k.near, k.to = netip.AddrPortFrom(k.near.Addr(), 0), netip.AddrPortFrom(k.to.Addr(), 0)
	}
	return k
}

// anyFar is the key of a UDP mapping.
func (k noteKey) anyFar() noteKey { k.to = netip.AddrPort{}; return k }

func (c *captureNotes) learn(f *flows.Flow) {
	k := keyOf(&f.Query)
	if x := c.flows[k]; x != nil && x.flow == f {
		return
	}
	x := &note{key: k, flow: f}
	c.flows[k] = x
	if f.Proto == flows.UDP && f.Dir == flows.Out {
		c.flows[k.anyFar()] = x
	}
}

// forgetMissed ends those whose end was missed: a capture that is read slowly must not remember all that guests ever opened.
func (c *captureNotes) forgetMissed() {
	there := map[*flows.Flow]bool{}
	for _, f := range c.net.flows.All() {
		there[f] = true
	}
	for _, x := range c.flows {
		if x.flow != nil && x.over.IsZero() && !there[x.flow] {
			x.over = time.Now()
			c.ended = append(c.ended, x)
		}
	}
}

// update hears what became of conversations.
func (c *captureNotes) update() {
	for {
		list, missed := c.follow.Take()
		if missed > 0 {
			c.learnAll()
			c.forgetMissed()
		}
		if len(list) == 0 {
			break
		}
		for _, ch := range list {
			switch ch.Kind {
			case flows.Opened, flows.Refused:
				c.learn(ch.Flow)
				if ch.Kind == flows.Opened {
					break
				}
				fallthrough
			case flows.Ended:
				if x := c.flows[keyOf(&ch.Flow.Query)]; x != nil && x.flow == ch.Flow {
					x.over = time.Now()
					c.ended = append(c.ended, x)
				}
			}
		}
	}
	for len(c.ended) > 0 && time.Since(c.ended[0].over) > noteAfter {
		x := c.ended[0]
		c.ended = c.ended[1:]
		for _, k := range []noteKey{x.key, x.key.anyFar()} {
			if c.flows[k] == x {
				delete(c.flows, k)
			}
		}
	}
}

// find is the note of a packet's conversation.
func (c *captureNotes) find(t *capture.Tap, p capture.Packet) *note {
	c.mu.Lock()
	guest := c.guests[t]
	c.mu.Unlock()
	k := noteKey{guest, flows.Proto(p.Proto), p.Guest, p.Far}.rounded()
	look := func() *note {
		if x := c.flows[k]; x != nil {
			return x
		}
		if k.proto == flows.UDP {
			return c.flows[k.anyFar()]
		}
		return nil
	}
	x := look()
	if x != nil && (x.flow == nil && x.misses >= noteTries || x.flow != nil && x.over.IsZero()) {
		return x
	}
	c.update()
	if x = look(); x == nil {
		if len(c.flows) > maxNotes+c.net.flows.Len() {
			for k, x := range c.flows {
				if x.flow == nil {
					delete(c.flows, k)
				}
			}
		}
		x = &note{key: k}
		c.flows[k] = x
	}
	if x.flow == nil {
		x.misses++
	}
	return x
}

// judge says what is to stand with a packet, and whether it is wanted.
func (x *Capture) judge(t *capture.Tap, p capture.Packet) (comment string, wanted bool) {
	c := x.notes
	if p.Proto == 0 || p.Fragment {
		return "", c.wish.any()
	}
	n := c.find(t, p)
	if n.flow == nil {
		return "", c.wish.any()
	}
	if !c.wish.has(n.flow) {
		return "", false
	}
	if n.told && n.named {
		return "", true
	}
	h, said := n.flow.Said()
	switch {
	case !n.told:
		n.told, n.named = true, said
		return flowComment(n.flow), true
	case said:
		n.named = true
		if h.Name != "" {
			return fmt.Sprintf("flow %d: the guest says %s (%s)", n.flow.ID, h.Name, h.How), true
		}
	}
	return "", true
}

// flowComment is a conversation in a line.
func flowComment(f *flows.Flow) string {
	s := f.Snapshot()
	var b strings.Builder
	fmt.Fprintf(&b, "flow %d: %s %s %s > %s, %s", s.ID, s.Proto, s.Dir, s.Src, s.Dst, s.Verdict)
	if s.Verdict == "refused" && s.Reason != "" {
		fmt.Fprintf(&b, " (%s)", s.Reason)
	}
	if s.Policy != "" {
		fmt.Fprintf(&b, " by %s", s.Policy)
	}
	if s.Rule != "" {
		fmt.Fprintf(&b, ", forward %s", s.Rule)
	}
	if s.Host.IsValid() {
		fmt.Fprintf(&b, ", on the host %s", s.Host)
	}
	if len(s.Names) > 0 {
		fmt.Fprintf(&b, ", DNS %s", strings.Join(s.Names, " "))
	}
	if s.Name != "" {
		fmt.Fprintf(&b, ", %s (%s)", s.Name, s.Hello)
	}
	return b.String()
}
