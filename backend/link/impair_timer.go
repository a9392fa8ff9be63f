package link

import "time"

// dueTimer is a way's. Its methods are called under the way's lock.
type dueTimer interface {
	Reset(d time.Duration)
	Stop()
	end()
}

// goTimer is Go's, which goes by a test's time too.
type goTimer struct{ t *time.Timer }

func newGoTimer(fire func()) dueTimer {
	t := goTimer{time.AfterFunc(time.Hour, fire)}
	t.Stop()
	return t
}

func (t goTimer) Reset(d time.Duration) { t.t.Reset(d) }
func (t goTimer) Stop()                 { t.t.Stop() }
func (t goTimer) end()                  { t.t.Stop() }
