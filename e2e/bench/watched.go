//go:build linux

package main

// What it costs to be looked at: vmnetd's throughput and connections while a client follows all that becomes of
// conversations, another reads the metrics each second, and many conversations are there, as parts of those without.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

var watchedMetrics = []metric{
	{"up_ratio", "up", "of unwatched", 3}, {"crr_ratio", "connections", "of unwatched", 3},
	{"held_up_ratio", "up with --held", "of without", 3}, {"held_crr_ratio", "connections with --held", "of without", 3},
	{"watched_up_ratio", "up with both", "of neither", 3}, {"watched_crr_ratio", "connections with both", "of neither", 3},
	{"told_mb", "told", "MB", 1},
}

func watchedTest(b *bed) (values, error) {
	out := values{}
	// Each is measured beside its own without, since a machine is not the same minutes later.
	measure := func() (up, crr float64, err error) {
		r, err := b.iperf(first(b), server4, iperfPort)
		if err != nil {
			return 0, 0, err
		}
		v, err := b.load(first(b), "crr", net.JoinHostPort(server4, strconv.Itoa(echoPort)), 8, 1)
		return r.up, v["per_s"], err
	}
	plainUp, plainCRR, err := measure()
	if err != nil {
		return nil, err
	}
	watch := func(what string) error {
		w := watchVmnetd(b.ctx, b.control)
		up, crr, err := measure()
		told, werr := w.end()
		if err := errors.Join(err, werr); err != nil {
			return err
		}
		out[what+"up_ratio"], out[what+"crr_ratio"] = up/plainUp, crr/plainCRR
		out["told_mb"] = float64(told) / 1e6
		return nil
	}
	if err := watch(""); err != nil {
		return nil, err
	}
	v, finish, err := b.hold()
	if err != nil {
		return nil, err
	}
	if missing := float64(b.held) - v["opened"]; missing > 0 {
		out["errors"] = missing
	}
	up, crr, err := measure()
	if err == nil {
		out["held_up_ratio"], out["held_crr_ratio"] = up/plainUp, crr/plainCRR
		err = watch("watched_")
	}
	_, ferr := finish()
	return out, errors.Join(err, ferr)
}

// watcher follows the conversations and reads the metrics each second.
type watcher struct {
	stop  context.CancelFunc
	wg    sync.WaitGroup
	told  atomic.Int64
	mu    sync.Mutex
	fault error
}

func watchVmnetd(ctx context.Context, control string) *watcher {
	w := &watcher{}
	ctx, w.stop = context.WithCancel(ctx)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", control)
	}}}
	get := func(path, accept string, to io.Writer) {
		req, err := http.NewRequestWithContext(ctx, "GET", "http://vmnetd"+path, nil)
		if err == nil {
			req.Header.Set("Accept", accept)
			var resp *http.Response
			if resp, err = client.Do(req); err == nil {
				if resp.StatusCode != http.StatusOK {
					err = fmt.Errorf("%s: %s", path, resp.Status)
				} else {
					_, err = io.Copy(to, resp.Body)
				}
				resp.Body.Close()
			}
		}
		if err != nil && ctx.Err() == nil {
			w.mu.Lock()
			w.fault = err
			w.mu.Unlock()
		}
	}
	w.wg.Go(func() { get("/v1/flows", "text/event-stream", countWriter{&w.told}) })
	w.wg.Go(func() {
		for ctx.Err() == nil {
			get("/metrics", "text/plain", io.Discard)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
		client.CloseIdleConnections()
	})
	return w
}

// end returns how many bytes were told of conversations.
func (w *watcher) end() (int64, error) {
	w.stop()
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.told.Load(), w.fault
}

type countWriter struct{ n *atomic.Int64 }

func (w countWriter) Write(b []byte) (int, error) {
	w.n.Add(int64(len(b)))
	return len(b), nil
}
