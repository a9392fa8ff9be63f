package main

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

// toJournal says whether standard error is systemd's journal, which knows the time by itself, and the level from a
// number before a line (sd-daemon(3)).
func toJournal() bool {
	is, err := journal.StderrIsJournalStream()
	return is && err == nil
}

// journalPriorities are syslog's, and from which level on.
var journalPriorities = []struct {
	level  slog.Level
	prefix string
}{{slog.LevelError, "<3>"}, {slog.LevelWarn, "<4>"}, {slog.LevelInfo, "<6>"}, {-1 << 31, "<7>"}}

// journalHandler has a handler for each of them.
type journalHandler []slog.Handler

func newJournalHandler(w io.Writer, format func(io.Writer) slog.Handler) slog.Handler {
	var h journalHandler
	for _, p := range journalPriorities {
		h = append(h, format(prefixed{w, p.prefix}))
	}
	return h
}

// prefixed puts something before each line, which is written at once.
type prefixed struct {
	w      io.Writer
	prefix string
}

func (p prefixed) Write(line []byte) (int, error) {
	n, err := p.w.Write(append([]byte(p.prefix), line...))
	return max(0, n-len(p.prefix)), err
}

func (h journalHandler) Enabled(ctx context.Context, l slog.Level) bool { return h[0].Enabled(ctx, l) }

func (h journalHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Time = time.Time{} // it is left out
	for i, p := range journalPriorities {
		if r.Level >= p.level {
			return h[i].Handle(ctx, r)
		}
	}
	return nil
}

func (h journalHandler) each(f func(slog.Handler) slog.Handler) slog.Handler {
	out := make(journalHandler, len(h))
	for i := range h {
		out[i] = f(h[i])
	}
	return out
}

func (h journalHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return h.each(func(x slog.Handler) slog.Handler { return x.WithAttrs(a) })
}

func (h journalHandler) WithGroup(name string) slog.Handler {
	return h.each(func(x slog.Handler) slog.Handler { return x.WithGroup(name) })
}
