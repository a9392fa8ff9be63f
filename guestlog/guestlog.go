// Package guestlog bounds what guests can write into a log: whoever plugs in and out ten thousand times, or tries what is
// wrong in a loop, leaves a few lines and a count.
//
//	log := slog.New(guestlog.New(slog.Default().Handler()))
//	log.Info("guest plugged in", "guest", "g1") // the first ones as they are, then one every ten seconds
//	log.Info("guest plugged in", "guest", "g9") // … not_logged_before=7
//
// Lines are told apart by their message, so a message is a constant and what varies is in attributes. Debug lines pass as
// they are: who asks for those wants all. It is for what guests cause; what people do is logged elsewhere, each time.
package guestlog

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// A message passes burst times at once, enough for a lab of VMs that starts, and then every period: a line that is of
	// use is still there within the time in which somebody looks.
	burst  = 20
	period = 10 * time.Second
	// All messages together pass totalBurst times and then every totalPeriod: under a line a second however many kinds.
	totalBurst  = 60
	totalPeriod = 2 * time.Second
	// maxMessages bounds the table if somebody puts what varies into messages after all: the rest share one place.
	maxMessages = 256
)

// Handler bounds the lines of another one. Those made of it by WithAttrs and WithGroup have one account together.
type Handler struct {
	slog.Handler
	account *account
}

type account struct {
	now func() time.Time

	mu       sync.Mutex
	total    bucket
	messages map[string]*bucket
}

// bucket is a token bucket, and how often it was empty.
type bucket struct {
	tokens float64
	last   time.Time
	left   int // since the last line that passed
}

// New returns a handler that bounds h's lines.
func New(h slog.Handler) *Handler {
	return newHandler(h, time.Now)
}

func newHandler(h slog.Handler, now func() time.Time) *Handler {
	return &Handler{h, &account{now: now, total: bucket{tokens: totalBurst, last: now()}, messages: map[string]*bucket{}}}
}

// Handle implements slog.Handler.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelInfo {
		left, ok := h.account.pass(r.Message)
		if !ok {
			return nil
		}
		if left > 0 {
			r = r.Clone()
			r.AddAttrs(slog.Int("not_logged_before", left))
		}
	}
	return h.Handler.Handle(ctx, r)
}

// pass says whether a line may pass, and how many of its message did not before it.
func (a *account) pass(message string) (left int, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	b := a.messages[message]
	if b == nil {
		if len(a.messages) >= maxMessages {
			message = ""
			b = a.messages[message]
		}
		if b == nil {
			b = &bucket{tokens: burst, last: now}
			a.messages[message] = b
		}
	}
	b.fill(now, burst, period)
	a.total.fill(now, totalBurst, totalPeriod)
	if b.tokens < 1 || a.total.tokens < 1 {
		b.left++
		return 0, false
	}
	b.tokens--
	a.total.tokens--
	left, b.left = b.left, 0
	return left, true
}

func (b *bucket) fill(now time.Time, most float64, every time.Duration) {
	b.tokens = min(most, b.tokens+float64(now.Sub(b.last))/float64(every))
	b.last = now
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.Handler.WithAttrs(attrs), h.account}
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.Handler.WithGroup(name), h.account}
}

var _ slog.Handler = (*Handler)(nil)
