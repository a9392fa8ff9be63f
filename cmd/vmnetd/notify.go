package main

// What systemd is told, by sd_notify(3)'s protocol: lines in a datagram to $NOTIFY_SOCKET. The socket is connected at the
// start, since in the sandbox there is no new one; go-systemd's own SdNotify makes one for each word.

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
)

const (
	notifyReady     = sd.SdNotifyReady
	notifyStopping  = sd.SdNotifyStopping
	notifyReloading = sd.SdNotifyReloading
	notifyWatchdog  = sd.SdNotifyWatchdog
	notifyStatus    = "STATUS="

	// notifyPatience: systemd reads at once, or hangs, and a daemon does not hang with it.
	notifyPatience = time.Second
	// maxNotifyStatus: systemd takes 4096 bytes of a datagram (NOTIFY_BUFFER_MAX), and a status is for one line of a terminal.
	maxNotifyStatus = 512
	// statusSettle is how long what systemd shows may be behind: many guests that start together are one line.
	statusSettle = time.Second
	// statusEvery is how often it is looked at without a guest that came or went. It is less than the two minutes after
	// which the control socket closes idle connections.
	statusEvery = 30 * time.Second
)

// bell is systemd's notification socket. nil is nobody's.
type bell struct {
	mu   sync.Mutex
	conn *net.UnixConn
	dog  time.Duration // between two signs of life at most; 0: none is wanted
}

// newBell connects to whom the environment names, and takes that away from it: what we start is not this service.
func newBell(log *slog.Logger) *bell {
	path := os.Getenv("NOTIFY_SOCKET")
	dog, err := sd.SdWatchdogEnabled(true)
	os.Unsetenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	if err != nil {
		log.Warn("systemd's watchdog gets no sign of life", "error", err)
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		log.Warn("systemd is told nothing", "error", err)
		return nil
	}
	return &bell{conn: c, dog: dog}
}

// send tells it some things at once. What it does not take is lost: systemd that has ended is no reason to.
func (b *bell) send(lines ...string) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, l := range lines {
		if text, ok := strings.CutPrefix(l, notifyStatus); ok {
			lines[i] = notifyStatus + oneLine(text)
		}
	}
	b.conn.SetWriteDeadline(time.Now().Add(notifyPatience))
	b.conn.Write([]byte(strings.Join(lines, "\n")))
}

// oneLine keeps a text from being several things.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' }), " ")
	if len(s) > maxNotifyStatus {
		s = s[:maxNotifyStatus]
	}
	return strings.ToValidUTF8(s, "?") // or systemd refuses it
}

func (b *bell) close() {
	if b != nil {
		b.conn.Close()
	}
}

// reloading is told when what the configuration says is about to change, and reloaded when it has.
func (s *service) reloading() {
	if s != nil {
		s.bell.send(notifyReloading, strings.TrimSpace(sd.SdNotifyMonotonicUsec()))
	}
}

func (s *service) reloaded() {
	if s != nil {
		s.bell.send(notifyReady)
		s.touch() // there may be other networks
	}
}

// watch tells systemd how many guests there are, and that the daemon answers, while it does. said is what it was told.
func (s *service) watch(ctx context.Context, log *slog.Logger, said string) {
	every := statusEvery
	if dog := s.bell.dog; dog > 0 {
		every = min(every, dog/2) // sd_watchdog_enabled(3)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	settle := time.NewTimer(0)
	<-settle.C
	settling, silent := false, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.changed:
			if !settling {
				settling = true
				settle.Reset(statusSettle)
			}
			continue
		case <-settle.C:
			settling = false
		case <-tick.C:
		}
		asked, cancel := context.WithTimeout(ctx, readyPatience)
		says, err := s.ask(asked)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !silent {
				log.Error("the daemon does not answer itself; systemd gets no sign of life", "error", err)
			}
			silent = true
			continue
		}
		silent = false
		var lines []string
		if s.bell.dog > 0 {
			lines = append(lines, notifyWatchdog)
		}
		if says != said {
			said = says
			lines = append(lines, notifyStatus+says)
		}
		if len(lines) > 0 {
			s.bell.send(lines...)
		}
	}
}
