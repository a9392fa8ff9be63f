package dns

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// The host's own resolver reads no more of them (MAXNS in resolv.h, the
	// same in musl); a fourth line does nothing on the host, so not here.
	maxServers = 3
	// Real files are a few hundred bytes; more than this is not one of them.
	maxResolvConf = 64 << 10
	// Events of a file that is being written come in bursts: read it once it
	// has been quiet for so long.
	settle = 50 * time.Millisecond
	// A file without a resolver may be one between truncate and write. It is
	// believed when it still has none after so long.
	believeEmpty = 500 * time.Millisecond
	// A file that is bind-mounted into a container, or on a file system
	// without events, is seen to change within this time. One small read.
	pollEvery = 5 * time.Second
	// Links that are followed for one name (MAXSYMLINKS of Linux).
	maxLinks = 40
)

// resolvers is one reading of the host's configuration; never changed after.
type resolvers struct {
	servers  []netip.AddrPort
	search   []string
	try      time.Duration // options timeout; 0: not said
	attempts int           // options attempts; 0: not said
	rotate   bool
	tcp      bool // options use-vc
	from     string
	why      string // when there is no server
	unread   bool   // for want of a descriptor
}

func (r *resolvers) equal(o *resolvers) bool {
	return slices.Equal(r.servers, o.servers) && slices.Equal(r.search, o.search) &&
		r.try == o.try && r.attempts == o.attempts && r.rotate == o.rotate && r.tcp == o.tcp && r.why == o.why
}

// parseResolvConf reads resolv.conf(5). Like the host's resolver it passes
// over what it does not know. Addresses in self are our own: asking them
// would be asking ourselves.
func parseResolvConf(text string, self []netip.Addr) *resolvers {
	r := &resolvers{}
	skipped := 0
	for line := range strings.Lines(text) {
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			a, err := netip.ParseAddr(f[1])
			if err != nil {
				continue
			}
			a = a.Unmap()
			if slices.Contains(self, a.WithZone("")) {
				skipped++
				continue
			}
			if s := netip.AddrPortFrom(a, 53); len(r.servers) < maxServers && !slices.Contains(r.servers, s) {
				r.servers = append(r.servers, s)
			}
		case "domain":
			r.search = []string{f[1]}
		case "search": // the last of domain and search counts
			r.search = f[1:]
		case "options":
			for _, o := range f[1:] {
				key, val, _ := strings.Cut(o, ":")
				n, err := strconv.Atoi(val)
				switch key {
				case "timeout":
					if err == nil && n > 0 {
						r.try = time.Duration(min(n, 30)) * time.Second // 30, 5: resolv.conf(5)
					}
				case "attempts":
					if err == nil && n > 0 {
						r.attempts = min(n, 5)
					}
				case "rotate":
					r.rotate = true
				case "use-vc":
					r.tcp = true
				}
			}
		}
	}
	switch {
	case len(r.servers) > 0:
	case skipped > 0:
		r.why = "names no resolver but this network's own DNS address"
	default:
		r.why = "names no resolver"
	}
	return r
}

func readResolvConf(path string, self []netip.Addr) *resolvers {
	text, err := func() ([]byte, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.LimitReader(f, maxResolvConf))
	}()
	r := &resolvers{why: fmt.Sprint(err)}
	// Nothing is known of a file for which there was no descriptor left.
	r.unread = errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
	if err == nil {
		r = parseResolvConf(string(text), self)
		if r.why != "" {
			r.why = path + " " + r.why
		}
	}
	r.from = path
	return r
}

// hops returns path and every name that it leads to by symbolic links: a
// change of any of them changes what path says.
func hops(path string) []string {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	out := []string{path}
	for range maxLinks {
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = filepath.Clean(to)
		out = append(out, path)
	}
	return out
}

// watcher follows one resolv.conf: the directories that it and its links are
// in, since it is replaced by rename, and a slow poll.
type watcher struct {
	path    string
	self    []netip.Addr
	poll    time.Duration // pollEvery
	believe time.Duration // believeEmpty
	apply   func(*resolvers)
	fs      *fsnotify.Watcher // nil: the poll alone
}

// run reads at once, then at every change, until stop is closed.
func (w *watcher) run(stop <-chan struct{}, last *resolvers) {
	var events <-chan fsnotify.Event
	var errs <-chan error
	if w.fs != nil {
		events, errs = w.fs.Events, w.fs.Errors
		defer w.fs.Close()
	}
	names := w.watch()
	poll := time.NewTicker(w.poll)
	defer poll.Stop()
	quiet := time.NewTimer(0) // what changed before watch was called
	defer quiet.Stop()
	var emptySince time.Time
	for {
		select {
		case <-stop:
			return
		case e, ok := <-events:
			if !ok {
				events = nil
			} else if slices.Contains(names, filepath.Clean(e.Name)) {
				quiet.Reset(settle)
			}
			continue
		case _, ok := <-errs:
			if !ok {
				errs = nil
			}
			quiet.Reset(settle) // events were lost: look
			continue
		case <-poll.C:
		case <-quiet.C:
		}
		names = w.watch()
		now := readResolvConf(w.path, w.self)
		if now.unread && len(last.servers) > 0 {
			quiet.Reset(w.believe)
			continue
		}
		if len(now.servers) == 0 && len(last.servers) > 0 {
			if emptySince.IsZero() {
				emptySince = time.Now()
			}
			if left := w.believe - time.Since(emptySince); left > 0 {
				quiet.Reset(left)
				continue
			}
		}
		emptySince = time.Time{}
		if !now.equal(last) {
			last = now
			w.apply(now)
		}
	}
}

// watch has the directories of every hop watched, and returns the hops.
func (w *watcher) watch() []string {
	names := hops(w.path)
	if w.fs == nil {
		return names
	}
	var dirs []string
	for _, n := range names {
		dirs = append(dirs, filepath.Dir(n))
	}
	have := w.fs.WatchList()
	for _, d := range have {
		if !slices.Contains(dirs, d) {
			_ = w.fs.Remove(d)
		}
	}
	for _, d := range dirs {
		if !slices.Contains(have, d) {
			_ = w.fs.Add(d) // one that is not there yet: the poll tries again
		}
	}
	return names
}
