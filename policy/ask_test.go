package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

// told is a verdict that was waited for.
func told(t testing.TB, v flows.Verdict) flows.Verdict {
	t.Helper()
	if v.Pending == nil {
		t.Fatalf("nobody is asked: %s (%s)", say(v), v.Rule)
	}
	select {
	case a := <-v.Pending:
		return a
	case <-time.After(10 * time.Second):
		t.Fatal("no answer came")
	}
	panic("not reached")
}

// heard collects what OnQuestion is told.
type heard struct {
	mu   sync.Mutex
	list []string
}

func (h *heard) add(q Question) {
	h.mu.Lock()
	defer h.mu.Unlock()
	to := q.Name
	if to == "" {
		to = q.Dst.Addr().String()
	}
	h.list = append(h.list, fmt.Sprintf("%d %s %s %s:%d held=%d %s", q.ID, q.Guest, q.Proto, to, q.Dst.Port(), q.Held, q.Outcome))
}

func (h *heard) want(t *testing.T, want ...string) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.list, want) {
		t.Errorf("heard\n%s\nwant\n%s", strings.Join(h.list, "\n"), strings.Join(want, "\n"))
	}
}

func askLab(t testing.TB, text string, change ...func(*Config)) (*lab, *heard) {
	h := &heard{}
	return newLab(t, text, append(change, func(c *Config) { c.OnQuestion = h.add })...), h
}

func (l *lab) reply(id uint64, allow bool, s Scope) {
	l.t.Helper()
	if err := l.Answer(id, Reply{Allow: allow, Scope: s}); err != nil {
		l.t.Error(err)
	}
}

func TestAskOnce(t *testing.T) {
	l, h := askLab(t, "preset sandbox\ndefault ask")
	l.answer("g1", "api.example.com", time.Minute, "192.0.2.1", "192.0.2.2")
	a := l.judge("tcp 192.0.2.1:443", "ask")
	b := l.judge("tcp 192.0.2.2:443", "ask") // the same name
	l.judge("tcp 10.1.1.1:443", "reject policy")
	if q := l.Questions(); len(q) != 1 || q[0].Name != "api.example.com" || q[0].Held != 2 || q[0].Rule != "default ask" ||
		q[0].Until.Sub(q[0].Since) != 30*time.Second {
		t.Errorf("questions: %+v", q)
	}
	l.reply(1, true, Once)
	for _, v := range []flows.Verdict{a, b} {
		v = told(t, v)
		if say(v) != "allow +inspect" {
			t.Errorf("told %s", say(v))
		}
		// It was asked about this name, and is for no other.
		l.firstBytes(v, tlsFor("api.example.com"), "allow")
		l.firstBytes(v, tlsFor("evil.example"), "reject other-name")
	}
	if err := l.Answer(1, Reply{Allow: true}); !errors.Is(err, ErrNoQuestion) {
		t.Errorf("a second answer: %v", err)
	}
	c := l.judge("tcp 192.0.2.1:443", "ask") // asked again
	l.reply(2, false, Once)
	if v := told(t, c); say(v) != "reject policy" || v.Rule != "default ask (answered: reject)" {
		t.Errorf("told %s (%s)", say(v), v.Rule)
	}
	h.want(t,
		"1 g1 tcp api.example.com:443 held=1 ",
		"1 g1 tcp api.example.com:443 held=2 allow",
		"2 g1 tcp api.example.com:443 held=1 ",
		"2 g1 tcp api.example.com:443 held=1 reject")
	if q := l.Questions(); len(q) != 0 {
		t.Errorf("still asked: %+v", q)
	}
}

func TestAskSession(t *testing.T) {
	l, _ := askLab(t, "ask tcp any:22\nask udp any")
	v := l.judge("tcp 192.0.2.1:22", "ask")
	l.reply(1, true, Session)
	told(t, v)
	l.judge("tcp 192.0.2.1:22", "allow")
	l.judge("tcp 192.0.2.1:23", "allow")
	v = l.judge("tcp 192.0.2.2:22", "ask")
	l.reply(2, false, Session)
	told(t, v)
	l.judge("tcp 192.0.2.2:22", "reject policy")
	l.judge("g2 tcp 192.0.2.1:22", "ask")
	l.Forget("g1") // and comes again
	l.judge("tcp 192.0.2.1:22", "ask")
}

func TestAskAlways(t *testing.T) {
	var changed []string
	l, _ := askLab(t, "reject tcp any:22\nask tcp *.example.com:22,443 checked\nreject tcp any\n\nguest g2\npreset offline\ndefault ask\n",
		func(c *Config) { c.OnChange = func(d Document) { changed = append(changed, d.String()) } })
	l.answer("g1", "api.example.com", time.Hour, "192.0.2.1")
	l.judge("tcp 192.0.2.1:22", "reject policy")
	v := l.judge("tcp 192.0.2.1:443", "ask")
	l.reply(1, true, Always)
	told(t, v)
	l.judge("tcp 192.0.2.1:443", "allow +inspect")
	l.judge("tcp 192.0.2.1:22", "reject policy") // the rules before it still come first
	v = l.judge("g2 icmp 192.0.2.9", "ask")
	if err := l.Answer(2, Reply{Scope: Always, Guest: "*"}); err != nil {
		t.Error(err)
	}
	told(t, v)
	l.judge("g2 icmp 192.0.2.9", "reject policy")
	want := `reject tcp any:22
allow tcp api.example.com:443 checked guest=g1 # asked 2026-01-01
ask tcp *.example.com:22,443 checked
reject tcp

guest g2
  preset offline
  reject icmp 192.0.2.9 # asked 2026-01-01
  default ask
`
	if got := l.Document().String(); got != want {
		t.Errorf("document is\n%s\nwant\n%s", got, want)
	}
	if len(changed) != 2 || changed[1] != want {
		t.Errorf("told of changes: %q", changed)
	}
	if err := l.Answer(9, Reply{Scope: Always, Guest: "a b"}); err == nil || errors.Is(err, ErrNoQuestion) {
		t.Errorf("a pattern with a space: %v", err)
	}
}

func TestAskRunsOut(t *testing.T) {
	l, h := askLab(t, "default ask", func(c *Config) { c.AskFor = 20 * time.Millisecond })
	v := l.judge("udp 192.0.2.1:99", "ask")
	if got := told(t, v); say(got) != "reject unanswered" {
		t.Errorf("told %s", say(got))
	}
	if err := l.Answer(1, Reply{Allow: true, Scope: Always}); !errors.Is(err, ErrNoQuestion) {
		t.Errorf("too late: %v", err)
	}
	// Answers come before OnQuestion is told of them.
	for range 1000 {
		h.mu.Lock()
		n := len(h.list)
		h.mu.Unlock()
		if n == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	h.want(t, "1 g1 udp 192.0.2.1:99 held=1 ", "1 g1 udp 192.0.2.1:99 held=1 unanswered")
}

func TestAskEnds(t *testing.T) {
	l, _ := askLab(t, "default ask")
	gone := l.judge("tcp 192.0.2.1:99", "ask")
	left := l.judge("g2 tcp 192.0.2.1:99", "ask")
	l.Forget("g1")
	if v := told(t, gone); say(v) != "reject guest-gone" {
		t.Errorf("told %s", say(v))
	}
	if q := l.Questions(); len(q) != 1 || q[0].Guest != "g2" {
		t.Errorf("questions: %+v", q)
	}
	l.Close()
	if v := told(t, left); say(v) != "reject unanswered" {
		t.Errorf("told %s", say(v))
	}
	l.judge("tcp 192.0.2.1:99", "reject unanswered")
}

// A guest cannot bury people in questions, nor hold more than so many conversations.
func TestAskIsBounded(t *testing.T) {
	l, _ := askLab(t, "default ask")
	for i := range 1000 {
		want := "ask"
		if i >= mostQuestions {
			want = "reject unanswered"
		}
		l.judge(fmt.Sprintf("tcp 192.0.2.1:%d", i+1), want)
	}
	for i := range 1000 {
		want := "ask"
		if i >= mostHeld-1 {
			want = "reject unanswered"
		}
		l.judge("tcp 192.0.2.1:1", want)
	}
	for i := range 100 {
		for port := range mostQuestions {
			l.Judge(query(fmt.Sprintf("g%d tcp 192.0.2.1:%d", i+2, port+1)))
		}
	}
	if n := len(l.Questions()); n != questionsTotal {
		t.Errorf("%d questions", n)
	}
	l.Close()
	if n := len(l.Questions()); n != 0 || len(l.asks.about) != 0 || len(l.asks.guests) != 0 {
		t.Errorf("%d questions are left, %d destinations, %d guests", n, len(l.asks.about), len(l.asks.guests))
	}
}

func TestAnswersAreBounded(t *testing.T) {
	l, _ := askLab(t, "default ask")
	for i := range 2 * mostAnswers {
		l.judge(fmt.Sprintf("udp 192.0.2.1:%d", i+1), "ask")
		l.reply(uint64(i+1), true, Session)
	}
	if n := len(l.known("g1").answers); n != mostAnswers {
		t.Errorf("%d answers are remembered", n)
	}
}

// Who runs when the rules change is not asked about again.
func TestAskAndRunning(t *testing.T) {
	l, _ := askLab(t, "ask tcp any:22")
	v := l.judge("tcp 192.0.2.1:22", "ask")
	l.reply(1, true, Once)
	was := told(t, v)
	l.Replace(mustParse(t, "reject udp\nask tcp any:22"))
	if got := l.JudgeRunning(query("tcp 192.0.2.1:22"), was); say(got) != "allow" {
		t.Errorf("running: %s", say(got))
	}
	if got := l.JudgeRunning(query("tcp 192.0.2.2:22"), flows.Verdict{Allow: true, Rule: "open: default allow"}); got.Pending == nil {
		t.Errorf("nobody said yes to this one: %s", say(got))
	}
	l.Replace(mustParse(t, "reject tcp any:22"))
	if got := l.JudgeRunning(query("tcp 192.0.2.1:22"), was); say(got) != "reject policy" {
		t.Errorf("running: %s", say(got))
	}
}

// Answers, timeouts, guests that go and new documents, all at a time: every conversation hears exactly one answer.
func TestAskConcurrently(t *testing.T) {
	l, _ := askLab(t, "default ask", func(c *Config) { c.AskFor = time.Millisecond; c.Now = time.Now })
	var askers, rest sync.WaitGroup
	stop := make(chan struct{})
	for g := range 4 {
		askers.Go(func() {
			for i := range 300 {
				v := l.Judge(query(fmt.Sprintf("g%d tcp 192.0.2.1:%d", g, i%7+1)))
				if v.Pending != nil {
					v = told(t, v)
				}
				if v.Pending != nil || v.Allow == (v.Reason != flows.ReasonNone) {
					t.Errorf("told %+v", v)
				}
			}
		})
	}
	loop := func(f func(i int)) {
		rest.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					f(i)
				}
			}
		})
	}
	loop(func(i int) {
		for _, q := range l.Questions() {
			l.Answer(q.ID, Reply{Allow: i%2 == 0, Scope: Scope(i % 2)})
		}
	})
	loop(func(i int) {
		l.Forget(fmt.Sprintf("g%d", i%4))
		l.Replace(mustParse(t, fmt.Sprintf("reject tcp any:%d\ndefault ask", i%3+1)))
		time.Sleep(100 * time.Microsecond)
	})
	askers.Wait()
	close(stop)
	rest.Wait()
}
