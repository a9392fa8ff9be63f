// Package flowlog writes down what becomes of conversations: a line of JSON when one is opened, one when it has ended, and
// one for each attempt that was refused.
//
//	l, err := flowlog.Open(flowlog.Config{Path: "/var/log/vmnetd/flows.jsonl", Size: 10 << 20, Keep: 5})
//	if err != nil {
//		return err
//	}
//	defer l.Close()
//	l.Follow("default", network.Flows(), network.GuestName)
//
// A line has the words of the API (flows.Snapshot), with the time, what happened, the network and the guest's name:
//
//	{"time":"2026-11-21T16:03:23.123Z","event":"ended","network":"default","guest":"g1","guest_name":"web","id":7,
//	 "proto":"tcp","direction":"out","src":"10.0.2.15:40000","dst":"93.184.215.14:443","names":["example.com"],
//	 "name":"example.com","hello":"tls","verdict":"allowed","reason":"closed","opened":"…","duration_ms":1210,
//	 "up_bytes":1800,"down_bytes":90211,"up_packets":9,"down_packets":12}
//
// (one line in the file). Whatever a guest says, a line is one JSON object in valid UTF-8.
//
// It follows the flow table as anybody does, from a goroutine of its own. A disk that is full or slow, and a pipe that
// nobody reads, hold that goroutine and no conversation: what is written too late is lost, and the next line that can be
// written says how much ("event":"lost"). A file grows to Size and is renamed then, to PATH.1, the one before to PATH.2,
// and so on up to Keep. Who rotates it otherwise renames it, or removes it: it is begun anew within a second, without
// being told.
//
// It is no accounting: what is lost is lost, also when the daemon is killed.
package flowlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

// Config says what is written where.
type Config struct {
	// Path of the file, which is made with mode 0600 and appended to. A pipe (mkfifo) may be there instead.
	Path string
	// Writer is written to in place of a file.
	Writer io.Writer
	// Size is how many bytes a file may have before it is renamed; 0: it grows.
	Size int64
	// Keep is how many of those are kept beside the one that is written. With Size, at least 1.
	Keep int
	// Refused leaves out all but what was refused.
	Refused bool
	// Logger hears that it cannot be written, and that it can be again. nil: slog.Default.
	Logger *slog.Logger
}

const (
	// pace is how long changes are gathered before they are written: a line is at most that late, and a thousand
	// conversations a second are ten writes.
	pace = 100 * time.Millisecond
	// lookEvery is how often it is looked whether the file is still the one at Path.
	lookEvery = time.Second
	// complainEvery bounds how often a fault is logged that goes on.
	complainEvery = time.Minute
	// stuckTime is how long a write may take before Status tells of it: longer than a busy disk lets wait.
	stuckTime = 3 * time.Second
	// closeTime is how long Close waits for somebody who does not read.
	closeTime = time.Second
	// LeastSize is the smallest Size: under it there would be a new file with each write.
	LeastSize = 64 << 10
	// MostKeep bounds how many files one rotation renames.
	MostKeep = 1000
)

// Status is how a log does.
type Status struct {
	Path  string `json:"path"`
	Lines uint64 `json:"lines"`           // written
	Lost  uint64 `json:"lost"`            // changes that could not be written, or not in time
	Error string `json:"error,omitempty"` // why it cannot be written now
}

// Log is a log. Its methods may be called by anybody.
type Log struct {
	cfg   Config
	lines atomic.Uint64
	lost  atomic.Uint64
	since atomic.Int64             // when the write that goes on began, in nanoseconds since 1970; 0: none does
	wrong [2]atomic.Pointer[fault] // by what is wrong
	file  atomic.Pointer[os.File]  // nil: Config.Writer is written to

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex // held while it is written
	info    fs.FileInfo
	regular bool
	size    int64
	cut     bool // the last write ended within a line
	untold  map[string]*missing
	looked  time.Time
	rotated time.Time // when that last failed
}

// What can be wrong.
const (
	writing  = iota // lines are lost
	rotating        // the file cannot be renamed, or not be begun anew
)

type fault struct {
	text string
	said time.Time
}

// missing is what of a network is to be told to be lost.
type missing struct {
	n   uint64
	why string
}

// Open opens the log.
func Open(c Config) (*Log, error) {
	if c.Size < 0 || c.Size > 0 && c.Size < LeastSize || c.Size > 0 && (c.Keep < 1 || c.Keep > MostKeep) {
		return nil, fmt.Errorf("flow log %s: want a size of %d bytes at least, or 0, and 1 to %d files", c.Path, LeastSize, MostKeep)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	l := &Log{cfg: c, untold: map[string]*missing{}}
	if c.Writer == nil {
		if err := l.open(); err != nil {
			return nil, err
		}
		l.cut = endsWithin(c.Path, l.size)
	}
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l, nil
}

// open opens the file at Path.
func (l *Log) open() error {
	flags := os.O_WRONLY | os.O_APPEND | os.O_CREATE
	if fi, err := os.Stat(l.cfg.Path); err == nil && fi.Mode().Type() == fs.ModeNamedPipe {
		flags = os.O_RDWR // or it would wait for a reader, and fail when that goes
	} else if err == nil && !fi.Mode().IsRegular() && fi.Mode().Type()&fs.ModeDevice == 0 {
		return &fs.PathError{Op: "open", Path: l.cfg.Path, Err: errors.New("neither a file nor a pipe")}
	}
	f, err := os.OpenFile(l.cfg.Path, flags, 0o600)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	if old := l.file.Swap(f); old != nil {
		old.Close()
	}
	l.info, l.regular, l.size, l.cut = fi, fi.Mode().IsRegular(), fi.Size(), false
	return nil
}

// endsWithin says whether a file ends within a line, as one does whose writer was killed.
func endsWithin(path string, size int64) bool {
	f, err := os.Open(path)
	if err != nil || size == 0 {
		return false
	}
	defer f.Close()
	var last [1]byte
	n, _ := f.ReadAt(last[:], size-1)
	return n == 1 && last[0] != '\n'
}

// Folder is where files are made and renamed, absolute; "" for none.
func (l *Log) Folder() string {
	if l.file.Load() == nil || !l.regular {
		return ""
	}
	if dir, err := filepath.Abs(filepath.Dir(l.cfg.Path)); err == nil {
		return dir
	}
	return filepath.Dir(l.cfg.Path)
}

// Rotates says whether the log renames its file by itself.
func (l *Log) Rotates() bool { return l.cfg.Size > 0 && l.Folder() != "" }

// File is what is written to, for whoever changes its owner; nil for none.
func (l *Log) File() *os.File { return l.file.Load() }

// Status says how the log does.
func (l *Log) Status() Status {
	s := Status{Path: l.cfg.Path, Lines: l.lines.Load(), Lost: l.lost.Load()}
	if at := l.since.Load(); at != 0 {
		if d := time.Since(time.Unix(0, at)); d > stuckTime {
			s.Error = fmt.Sprintf("a write has waited for %v: nobody reads", d.Round(time.Second))
			return s
		}
	}
	for i := range l.wrong {
		if f := l.wrong[i].Load(); f != nil && f.text != "" {
			s.Error = f.text
			break
		}
	}
	return s
}

// Follow writes down what becomes of a table's conversations from now on, until the table is closed or the log is. name
// says how a guest is called now; it may be nil.
func (l *Log) Follow(network string, t *flows.Table, name func(guest string) string) {
	f := t.Follow()
	l.wg.Go(func() {
		defer f.Close()
		w := writer{log: l, network: network, name: name, enc: newEncoder(), names: map[string]called{}}
		for l.ctx.Err() == nil && f.Wait(l.ctx) == nil {
			w.turn(f)
			select {
			case <-time.After(pace):
			case <-l.ctx.Done():
			}
		}
		w.turn(f) // what came last
	})
}

// Close writes what has come, and ends. Somebody who does not read has a second.
func (l *Log) Close() error {
	l.stop()
	done := make(chan struct{})
	go func() { l.wg.Wait(); close(done) }()
	wait := func() {
		select {
		case <-done:
		case <-time.After(closeTime):
		}
	}
	wait()
	f := l.file.Load()
	if f == nil {
		return nil
	}
	err := f.Close() // which ends a write to a pipe
	wait()
	return err
}

// writer makes lines of one network's conversations.
type writer struct {
	log     *Log
	network string
	name    func(guest string) string
	enc     encoder
	lines   int
	missed  int
	names   map[string]called
}

type called struct {
	name string
	at   time.Time
}

// mostNames bounds the guests whose names are remembered: those of a big lab.
const mostNames = 1024

// turnBytes is how much is gathered for one write.
const turnBytes = 64 << 10

// turn writes what there is.
func (w *writer) turn(f *flows.Follower) {
	for {
		list, missed := f.Take()
		w.missed += int(missed)
		for _, c := range list {
			w.change(c)
			if w.enc.b.Len() > turnBytes {
				w.flush()
			}
		}
		if len(list) == 0 {
			w.flush()
			return
		}
	}
}

func (w *writer) flush() {
	if w.lines > 0 || w.missed > 0 {
		w.log.write(w.network, w.enc.b.Bytes(), w.lines, w.missed)
	}
	w.enc.b.Reset()
	w.lines, w.missed = 0, 0
}

// called is a guest's name, looked up once a second: what it was called last, if it has gone meanwhile.
func (w *writer) called(guest string) string {
	c, now := w.names[guest], time.Now()
	if w.name == nil || now.Sub(c.at) < time.Second {
		return c.name
	}
	if len(w.names) >= mostNames {
		clear(w.names)
	}
	if name := w.name(guest); name != "" {
		c.name = name
	}
	c.at = now
	w.names[guest] = c
	return c.name
}

func (w *writer) change(c flows.Change) {
	if c.Kind == flows.Changed {
		return
	}
	s := c.Flow.Snapshot()
	if w.log.cfg.Refused && (c.Kind == flows.Opened || s.Verdict != "refused") {
		return
	}
	e := entry{Event: c.Kind.String(), Network: w.network, Guest: s.Guest, GuestName: w.called(s.Guest), ID: s.ID, Proto: s.Proto.String(), Dir: s.Dir.String(),
		Src: s.Src.String(), Dst: s.Dst.String(), Forward: s.Rule, Names: s.Names, Name: s.Name, Hello: s.Hello,
		Verdict: s.Verdict, Policy: s.Policy, Missed: c.Missed}
	if s.Host.IsValid() {
		e.Host = s.Host.String()
	}
	at := s.Ended
	if c.Kind == flows.Opened { // as it was then; it may be over by now
		at, e.Name, e.Hello = s.Opened, "", ""
		first := c.Flow.First()
		if e.Verdict, e.Policy = "allowed", first.Rule; first.Pending != nil {
			e.Verdict = "asked"
		}
	} else {
		e.Reason = s.Reason
	}
	if c.Kind == flows.Ended {
		ms := c.Flow.Age().Milliseconds()
		e.Opened, e.Duration = stamp(s.Opened), &ms
		e.Figures = &Figures{s.UpBytes, s.DownBytes, s.UpPkts, s.DownPkts}
	}
	e.Time = stamp(at)
	w.enc.put(&e)
	w.lines++
}

// stamp is a time as lines have it: UTC, so that logs of machines can be put together.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// entry is a line.
type entry struct {
	Time      string   `json:"time"`
	Event     string   `json:"event"` // opened, ended, refused; lost
	Network   string   `json:"network,omitempty"`
	Guest     string   `json:"guest,omitempty"`
	GuestName string   `json:"guest_name,omitempty"` // of its lease
	ID        uint64   `json:"id,omitempty"`
	Proto     string   `json:"proto,omitempty"`
	Dir       string   `json:"direction,omitempty"`
	Src       string   `json:"src,omitempty"`
	Dst       string   `json:"dst,omitempty"`
	Host      string   `json:"host,omitempty"`  // the far end as the host knows it, if that is another
	Forward   string   `json:"rule,omitempty"`  // the port forward
	Names     []string `json:"names,omitempty"` // what the guest's DNS answers called dst, newest first
	Name      string   `json:"name,omitempty"`  // whom the guest's first bytes named
	Hello     string   `json:"hello,omitempty"`
	Verdict   string   `json:"verdict,omitempty"`
	Policy    string   `json:"policy_rule,omitempty"`
	Reason    string   `json:"reason,omitempty"`
	Opened    string   `json:"opened,omitempty"`
	Duration  *int64   `json:"duration_ms,omitempty"`
	*Figures
	Missed uint64 `json:"missed,omitempty"` // refused attempts of the guest before this one that have no line
	Lost   uint64 `json:"lost,omitempty"`
	Error  string `json:"error,omitempty"`
}

// Figures are what a conversation moved. It is exported for encoding/json.
type Figures struct {
	UpBytes   uint64 `json:"up_bytes"`
	DownBytes uint64 `json:"down_bytes"`
	UpPkts    uint64 `json:"up_packets"`
	DownPkts  uint64 `json:"down_packets"`
}

// encoder makes lines. What guests name is ASCII in all but broken names, and JSON escapes whatever could end a line, or
// a terminal's patience.
type encoder struct {
	b   *bytes.Buffer
	enc *json.Encoder
}

func newEncoder() encoder {
	b := new(bytes.Buffer)
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	return encoder{b, e}
}

func (e encoder) put(v *entry) {
	for _, s := range []*string{&v.GuestName, &v.Name, &v.Network, &v.Guest, &v.Policy, &v.Forward, &v.Error} {
		*s = visible(*s)
	}
	for i, n := range v.Names {
		if s := visible(n); s != n {
			v.Names = append([]string(nil), v.Names...)
			v.Names[i] = s
		}
	}
	e.enc.Encode(v) // of strings and numbers
}

// visible has no control character that JSON leaves as it is (DEL and C1), which terminals obey.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 0x7f && r < 0xa0 {
			return '\uFFFD'
		}
		return r
	}, s)
}

// miss notes changes that are lost.
func (l *Log) miss(network string, n uint64, why string) {
	l.lost.Add(n)
	m := l.untold[network]
	if m == nil {
		m = &missing{}
		l.untold[network] = m
	}
	m.n, m.why = m.n+n, why
}

// write writes whole lines, and before them how many of the network's are missing.
func (l *Log) write(network string, b []byte, lines, missed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if missed > 0 {
		l.miss(network, uint64(missed), "they came faster than they could be written")
	}
	l.look()
	l.since.Store(time.Now().UnixNano())
	err := l.tellLost(network)
	for err == nil && len(b) > 0 {
		n := l.room(b)
		if err = l.put(b[:n]); err == nil {
			done := bytes.Count(b[:n], newline)
			l.lines.Add(uint64(done))
			lines -= done
			b = b[n:]
		}
	}
	l.since.Store(0)
	l.is(writing, err)
	if err != nil {
		l.miss(network, uint64(lines), err.Error())
	}
}

var newline = []byte("\n")

// room is how much of b, in whole lines, goes into the file, which is another one if none does.
func (l *Log) room(b []byte) int {
	if l.cfg.Size == 0 || !l.regular {
		return len(b)
	}
	for range 2 {
		room := l.cfg.Size - l.size
		if room >= int64(len(b)) {
			return len(b)
		}
		if n := bytes.LastIndexByte(b[:max(0, room)], '\n') + 1; n > 0 {
			return n
		}
		if time.Since(l.rotated) < lookEvery {
			break
		}
		err := l.rotate()
		if l.is(rotating, err); err != nil {
			l.rotated = time.Now()
			break
		}
	}
	return len(b)
}

func (l *Log) tellLost(network string) error {
	m := l.untold[network]
	if m == nil {
		return nil
	}
	e := newEncoder()
	e.put(&entry{Time: stamp(time.Now()), Event: "lost", Network: network, Lost: m.n, Error: m.why})
	if err := l.put(e.b.Bytes()); err != nil {
		return err
	}
	l.lines.Add(1)
	delete(l.untold, network)
	return nil
}

// put writes b, all of it or nothing that stays.
func (l *Log) put(b []byte) error {
	out := l.cfg.Writer
	f := l.file.Load()
	if f != nil {
		out = f
	}
	if l.cut { // of the last write something is there
		if _, err := out.Write([]byte("\n")); err != nil {
			return err
		}
		l.cut = false
		l.size++
	}
	n, err := out.Write(b)
	l.size += int64(n)
	if err != nil && n > 0 {
		l.cut = true
		if f != nil && l.regular && f.Truncate(l.size-int64(n)) == nil {
			l.size -= int64(n)
			l.cut = false
		}
	}
	return err
}

// look sees to it that the file is the one at Path.
func (l *Log) look() {
	if l.file.Load() == nil || !l.regular {
		return
	}
	if now := time.Now(); now.Sub(l.looked) > lookEvery {
		l.looked = now
		fi, err := os.Stat(l.cfg.Path)
		switch {
		case errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(fi, l.info):
			l.is(rotating, l.open())
		case err == nil && fi.Size() < l.size: // somebody has cut it
			l.size = fi.Size()
		}
	}
}

// rotate renames the files, and begins another one. What fails leaves it where it is.
func (l *Log) rotate() error {
	if runtime.GOOS == "windows" { // what is open has its name there
		l.file.Load().Close()
	}
	var err error
	for i := l.cfg.Keep; i > 0 && err == nil; i-- {
		from := l.cfg.Path
		if i > 1 {
			from = fmt.Sprintf("%s.%d", l.cfg.Path, i-1)
		}
		if err = os.Rename(from, fmt.Sprintf("%s.%d", l.cfg.Path, i)); i > 1 && errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil && runtime.GOOS != "windows" {
		return err
	}
	return errors.Join(err, l.open())
}

// is notes whether something is wrong, and logs it, now and then.
func (l *Log) is(what int, err error) {
	was := l.wrong[what].Load()
	switch {
	case err == nil && (was == nil || was.text == ""):
	case err == nil:
		l.cfg.Logger.Info("flow log is written again", "path", l.cfg.Path, "lost", l.lost.Load())
		l.wrong[what].Store(&fault{said: was.said})
	default:
		now := fault{text: err.Error()}
		if was != nil {
			now.said = was.said
		}
		if time.Since(now.said) > complainEvery {
			now.said = time.Now()
			l.cfg.Logger.Warn("flow log is not written as it should be", "path", l.cfg.Path, "error", now.text)
		}
		l.wrong[what].Store(&now)
	}
}
