package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/link"
)

// chatter keeps a guest asking who has the gateway, and hearing it, until the test ends.
func (r *rig) chatter(wire link.Link) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	arp := make([]byte, 42)
	copy(arp, "\xff\xff\xff\xff\xff\xff\x52\x54\x00\x00\x00\x01\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01\x52\x54\x00\x00\x00\x01\x0a\x00\x02\x0f")
	copy(arp[38:], "\x0a\x00\x02\x02")
	go func() {
		defer func() { done <- struct{}{} }()
		for ctx.Err() == nil {
			if _, err := wire.WriteFrames([]link.Frame{link.NewFrame(arp)}); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		var b link.Batch
		for wire.ReadFrames(&b) == nil {
			b.Next()
		}
	}()
	r.t.Cleanup(func() {
		cancel()
		wire.Close()
		<-done
		<-done
	})
}

// packets counts those of a whole file, by direction.
func packets(t *testing.T, b []byte) (in, out int) {
	t.Helper()
	if len(b) == 0 || binary.LittleEndian.Uint32(b) != 0x0a0d0d0a {
		t.Fatalf("%d bytes that are no pcapng", len(b))
	}
	last := uint32(0)
	for len(b) > 0 {
		n := binary.LittleEndian.Uint32(b[4:])
		if int(n) > len(b) || binary.LittleEndian.Uint32(b[n-4:]) != n {
			t.Fatal("a block is not whole")
		}
		last = binary.LittleEndian.Uint32(b)
		if last == 6 {
			if binary.LittleEndian.Uint32(b[n-12:]) == 1 {
				in++
			} else {
				out++
			}
		}
		b = b[n:]
	}
	if last != 5 {
		t.Errorf("the last block is of type %d: want statistics", last)
	}
	return in, out
}

func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("never came true: %s", what)
		}
	}
}

// One that is kept: begun, looked at, fetched while it runs, stopped, fetched, forgotten.
func TestCaptureKept(t *testing.T) {
	r := newRig(t)
	id, wire := r.guest("52:54:00:00:00:01", "web")
	r.chatter(wire)
	ctx := context.Background()
	i, err := r.c.AddCapture(ctx, CaptureRequest{Guest: "web", Filter: "arp", MaxSeconds: 3600})
	if err != nil || i.Guest != id || !i.Kept || !i.Running || i.MaxBytes != 16<<20 || i.MaxSeconds != 3600 {
		t.Fatalf("%+v, %v", i, err)
	}
	follow, err := r.c.CaptureFile(ctx, i.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	defer follow.Close()
	r.until("packets", func() bool {
		list, err := r.c.Captures(ctx)
		return err == nil && len(list) == 1 && list[0].ID == i.ID && list[0].Packets > 20
	})
	if now, err := r.c.CaptureFile(ctx, i.ID, false); err != nil {
		t.Error(err)
	} else {
		b, err := io.ReadAll(now)
		now.Close()
		if err != nil || len(b) == 0 {
			t.Errorf("while it runs: %d bytes, %v", len(b), err)
		}
	}
	end, err := r.c.StopCapture(ctx, i.ID)
	if err != nil || end.Running || end.End != "stopped" || end.Ended.IsZero() && end.Packets == 0 {
		t.Errorf("%+v, %v", end, err)
	}
	resp, body := r.do("GET", "/v1/captures/"+i.ID+"/file", "", "")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != pcapngType || resp.ContentLength != int64(len(body)) || !strings.Contains(resp.Header.Get("Content-Disposition"), i.ID+".pcapng") {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	in, out := packets(t, []byte(body))
	if in == 0 || out == 0 || uint64(in+out) != end.Packets || int64(len(body)) != end.Bytes {
		t.Errorf("%d from the guest, %d to it; %+v", in, out, end)
	}
	if all, err := io.ReadAll(follow); err != nil || string(all) != body {
		t.Errorf("who followed has %d bytes of %d: %v", len(all), len(body), err)
	}
	if err := r.c.RemoveCapture(ctx, i.ID); err != nil {
		t.Error(err)
	}
	if _, err := r.c.Capture(ctx, i.ID); err == nil || !strings.Contains(err.Error(), "no capture") {
		t.Errorf("%v", err)
	}
}

// One that is streamed ends as a file does when it is stopped, and at once when its client goes.
func TestCaptureStream(t *testing.T) {
	r := newRig(t)
	_, wire := r.guest("52:54:00:00:00:01", "web")
	r.chatter(wire)
	ctx := context.Background()
	s, err := r.c.StreamCapture(ctx, CaptureRequest{})
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 4096)
	if _, err := io.ReadFull(s, head); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.StopCapture(ctx, s.ID); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(s)
	if err != nil || s.End() != "stopped" {
		t.Errorf("%v, ended by %q", err, s.End())
	}
	if in, out := packets(t, append(head, rest...)); in == 0 || out == 0 {
		t.Errorf("%d from the guest, %d to it", in, out)
	}

	if s, err = r.c.StreamCapture(ctx, CaptureRequest{MaxPackets: 10}); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(s); err != nil || s.End() != "packets" {
		t.Errorf("%v, ended by %q", err, s.End())
	} else if in, out := packets(t, b); in+out != 10 {
		t.Errorf("%d packets", in+out)
	}

	if s, err = r.c.StreamCapture(ctx, CaptureRequest{}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	r.until("the capture of a client that has gone is over", func() bool { return len(r.net.Captures()) == 0 })
}

// A client that does not read holds neither the guests nor the daemon's end.
func TestCaptureStuckClient(t *testing.T) {
	r := newRig(t)
	_, wire := r.guest("52:54:00:00:00:01", "web")
	s, err := r.c.StreamCapture(context.Background(), CaptureRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	frame := make([]byte, 60000) // to nobody
	copy(frame, "\x02\x00\x00\x00\x00\x09\x52\x54\x00\x00\x00\x01\x88\xb5")
	r.until("frames are missing", func() bool {
		wire.WriteFrames([]link.Frame{link.NewFrame(frame), link.NewFrame(frame)})
		list := r.net.Captures()
		return len(list) == 1 && list[0].Info().Dropped > 10
	})
	begin := time.Now()
	r.stop()
	if err := r.net.Close(); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("the end took %v", d)
	}
}

// Many, one after the other and together, leave nothing.
func TestCaptureChurn(t *testing.T) {
	r := newRig(t)
	_, wire := r.guest("52:54:00:00:00:01", "web")
	r.chatter(wire)
	ctx := context.Background()
	r.c.Status(ctx)
	before := runtime.NumGoroutine()
	for i := range 50 {
		s, err := r.c.StreamCapture(ctx, CaptureRequest{Filter: "arp"})
		if err != nil {
			t.Fatal(err)
		}
		k, err := r.c.AddCapture(ctx, CaptureRequest{Snaplen: 54})
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if _, err := r.c.StopCapture(ctx, s.ID); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, s); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
		if err := r.c.RemoveCapture(ctx, k.ID); err != nil {
			t.Fatal(err)
		}
		r.until("the captures are over", func() bool { return len(r.net.Captures()) == 0 })
	}
	r.c.Close()
	r.until("no goroutine is left", func() bool { return runtime.NumGoroutine() <= before+2 })
}

func TestCaptureRefusals(t *testing.T) {
	r := newRig(t)
	r.guest("52:54:00:00:00:01", "web")
	for body, want := range map[string]struct {
		code int
		text string
	}{
		`{"guest":"nobody"}`:                            {404, `no guest \"nobody\"`},
		`{"filter":"tcp prt 80"}`:                       {422, `at 5`},
		`{"flow":"tcp:http"}`:                           {422, `tcp:443`},
		`{"snaplen":-1}`:                                {422, `below 0`},
		`{"max_bytes":100}`:                             {422, `at least`},
		`{"max_bytes":1000000000}`:                      {503, `67108864`},
		`{"max_bytes":9223372036854775807}`:             {503, `67108864`},
		`{"flow":"17","snaplen":60}`:                    {422, `want a snaplen of 82`},
		`{"max_seconds":1e300}`:                         {422, `a year`},
		`{"filtre":"tcp"}`:                              {400, `filtre`},
		`{"snaplen":"60"}`:                              {400, `snaplen`},
		`{"filter":"` + strings.Repeat("(", 300) + `"}`: {422, `in one another`},
	} {
		resp, text := r.do("POST", "/v1/captures", "application/json", body)
		if resp.StatusCode != want.code || !strings.Contains(text, want.text) {
			t.Errorf("%.60s: %d %s", body, resp.StatusCode, text)
		}
	}
	if len(r.net.Captures()) != 0 {
		t.Error("a refused capture is there")
	}
	k, err := r.c.AddCapture(t.Context(), CaptureRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp, text := r.do("POST", "/v1/captures", "application/json", `{"max_bytes":9223372036854775807}`); resp.StatusCode != 503 {
		t.Errorf("all memory there can be, beside another one: %d %s", resp.StatusCode, text)
	}
	if err := r.c.RemoveCapture(t.Context(), k.ID); err != nil {
		t.Fatal(err)
	}
	for range 16 {
		if _, err := r.net.StartCapture(backend.CaptureConfig{}, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	if resp, text := r.do("POST", "/v1/captures", "application/json", `{}`); resp.StatusCode != 503 {
		t.Errorf("the seventeenth: %d %s", resp.StatusCode, text)
	}
	x := r.net.Captures()[3]
	if resp, text := r.do("GET", "/v1/captures/"+x.ID()+"/file", "", ""); resp.StatusCode != 409 {
		t.Errorf("the file of one that is not kept: %d %s", resp.StatusCode, text)
	}
	if resp, text := r.do("GET", "/v1/captures/c0", "", ""); resp.StatusCode != 404 || !strings.Contains(text, x.ID()) {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	if resp, _ := r.do("DELETE", "/v1/captures/"+x.ID(), "", ""); resp.StatusCode != http.StatusNoContent {
		t.Errorf("%d", resp.StatusCode)
	}
}

// A guest's capture ends with it; the network's goes on with who comes.
func TestCaptureGuestGoes(t *testing.T) {
	r := newRig(t)
	id, wire := r.guest("52:54:00:00:00:01", "web")
	ctx := context.Background()
	of, err := r.c.AddCapture(ctx, CaptureRequest{Guest: id})
	if err != nil {
		t.Fatal(err)
	}
	all, err := r.c.AddCapture(ctx, CaptureRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wire.Close()
	r.until("the guest's capture is over", func() bool {
		i, err := r.c.Capture(ctx, of.ID)
		return err == nil && i.End == "gone"
	})
	again, _ := r.guest("52:54:00:00:00:02", "db")
	end, err := r.c.StopCapture(ctx, all.ID)
	if err != nil || end.Packets < 2 {
		t.Fatalf("%+v, %v", end, err)
	}
	_, file := r.do("GET", "/v1/captures/"+all.ID+"/file", "", "")
	for _, name := range []string{id, again} {
		if !bytes.Contains([]byte(file), []byte("guest "+name+",")) {
			t.Errorf("no interface is %s", name)
		}
	}
	var events []backend.Event
	_, text := r.do("GET", "/v1/events", "", "")
	if err := json.Unmarshal([]byte(text), &events); err != nil {
		t.Fatal(err)
	}
	begun, over := 0, 0
	for _, e := range events {
		if e.Kind == backend.EventCapture && strings.HasPrefix(e.Text, "begun") {
			begun++
		} else if e.Kind == backend.EventCapture {
			over++
		}
	}
	if begun != 2 || over < 1 {
		t.Errorf("%d captures begun, %d over, in the events", begun, over)
	}
}
