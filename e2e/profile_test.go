//go:build linux

package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestProfiles: Go's profiles of the daemon, through its control socket, if it was started for that.
func TestProfiles(t *testing.T) {
	t.Parallel()
	need(t)
	l := newLab(t)
	on := l.serve(t, "--pprof")
	off := l.serveAt(t, "other.sock", "other-control.sock", nil)
	get := func(d *daemon, path string) (int, []byte) {
		t.Helper()
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.control)
		}}}
		resp, err := c.Get("http://vmnetd/v1/debug/pprof/" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, b
	}
	if code, body := get(off, "heap"); code != http.StatusNotFound || !strings.Contains(string(body), "--pprof") {
		t.Errorf("without the flag: %d %s", code, body)
	}
	// A profile is a gzip of protobuf (github.com/google/pprof, proto/profile.proto), with what was measured by name.
	for path, kinds := range map[string][]string{
		"heap": {"inuse_space", "alloc_objects"}, "profile?seconds=1": {"samples", "cpu", "nanoseconds"},
	} {
		code, body := get(on, path)
		z, err := gzip.NewReader(bytes.NewReader(body))
		if code != http.StatusOK || err != nil {
			t.Errorf("%s: %d, %v: %.200q", path, code, err, body)
			continue
		}
		profile, err := io.ReadAll(z)
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		for _, k := range append(kinds, "/vmnetd") { // the program's file among the mappings
			if !bytes.Contains(profile, []byte(k)) {
				t.Errorf("%s: %d bytes without %q", path, len(profile), k)
			}
		}
	}
}
