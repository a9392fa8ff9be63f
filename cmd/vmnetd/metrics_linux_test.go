package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/backend/guest"
	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/qemu"
)

// counted is a wire that counts what crosses it, at the guest's end.
type counted struct {
	link.Link
	in, out, inFrames, outFrames atomic.Uint64
}

func (c *counted) ReadFrames(b *link.Batch) error {
	err := c.Link.ReadFrames(b)
	for _, f := range b.Frames {
		c.in.Add(uint64(f.Len()))
	}
	c.inFrames.Add(uint64(len(b.Frames)))
	return err
}

func (c *counted) WriteFrames(fs []link.Frame) (int, error) {
	n, err := c.Link.WriteFrames(fs)
	for _, f := range fs[:n] {
		c.out.Add(uint64(f.Len()))
	}
	c.outFrames.Add(uint64(n))
	return n, err
}

// scraped is a scrape's series, as name{label="value",...}.
func scraped(t *testing.T, p *proc) (map[string]float64, string) {
	t.Helper()
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(p.run, "vmnetd/control.sock"))
	}}}
	resp, err := client.Get("http://vmnetd/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%d, %v: %.200s", resp.StatusCode, err, b)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]float64{}
	for name, f := range families {
		for _, x := range f.Metric {
			var labels []string
			for _, l := range x.Label {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			key := name + "{" + strings.Join(labels, ",") + "}"
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				m[key] = x.Counter.GetValue()
			case dto.MetricType_GAUGE:
				m[key] = x.Gauge.GetValue()
			case dto.MetricType_HISTOGRAM:
				m[key] = float64(x.Histogram.GetSampleCount())
			}
		}
	}
	return m, string(b)
}

// The command's metrics are what its guest did and counted itself, and their names are as Prometheus wants them.
func TestMetricsOfTraffic(t *testing.T) {
	p := program(t, "vmnetd", "serve").start()
	p.says("control")
	c, err := net.Dial("unix", filepath.Join(p.run, "vmnetd/qemu.sock"))
	if err != nil {
		t.Fatal(err)
	}
	wire := &counted{Link: qemu.NewLink(c)}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	g, err := guest.New(ctx, wire, guest.Config{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	port := loopbackServer(t, false, 1<<20, func(c net.Conn) {
		io.Copy(io.Discard, c)
		c.Close()
	})
	const conns, each = 5, 100_000
	for range conns {
		conn, err := g.DialContext(ctx, "tcp", fmt.Sprintf("host.internal:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(make([]byte, each)); err != nil {
			t.Fatal(err)
		}
		conn.(interface{ CloseWrite() error }).CloseWrite()
		io.Copy(io.Discard, conn)
		conn.Close()
	}
	const refused = 3
	for range refused {
		if _, err := g.DialContext(ctx, "tcp", "169.254.169.254:80"); err == nil {
			t.Fatal("the metadata service answers")
		}
	}
	const udp = 200
	u, err := g.DialContext(ctx, "udp", "10.0.2.2:9")
	if err != nil {
		t.Fatal(err)
	}
	for range udp {
		u.Write(make([]byte, 100))
	}

	of := `{guest="g1",network="default"}`
	var m map[string]float64
	var text string
	// A guest says something by itself now and then: what both have counted at one moment is the same.
	waitUntil(t.Fatalf, "what the guest counted", func() bool {
		before := [...]uint64{wire.in.Load(), wire.out.Load(), wire.inFrames.Load(), wire.outFrames.Load()}
		m, text = scraped(t, p)
		after := [...]uint64{wire.in.Load(), wire.out.Load(), wire.inFrames.Load(), wire.outFrames.Load()}
		return before == after && m["vmnetd_guest_received_bytes_total"+of] == float64(after[0]) && m["vmnetd_guest_sent_bytes_total"+of] == float64(after[1]) &&
			m["vmnetd_guest_received_frames_total"+of] == float64(after[2]) && m["vmnetd_guest_sent_frames_total"+of] == float64(after[3]) &&
			m[`vmnetd_flows_ended_total{network="default",reason="closed"}`] >= conns
	})
	for key, want := range map[string]float64{
		"vmnetd_guest_up" + of:                                                                             1,
		`vmnetd_network_sent_bytes_total{network="default"}`:                                               m["vmnetd_guest_sent_bytes_total"+of],
		`vmnetd_drops_total{network="default",reason="link-local"}`:                                        refused,
		`vmnetd_guest_drops_total{guest="g1",network="default",reason="link-local"}`:                       refused,
		`vmnetd_dial_duration_seconds{direction="out",network="default"}`:                                  conns,
		`vmnetd_flows{network="default",proto="udp",state="open"}`:                                         1,
		`vmnetd_flows{network="default",proto="tcp",state="open"}`:                                         0,
		`vmnetd_flows_opened_total{network="default"}`:                                                     conns + 1,
		`vmnetd_dhcp_messages_total{direction="received",family="ipv4",network="default",type="discover"}`: 1,
		`vmnetd_dhcp_messages_total{direction="sent",family="ipv4",network="default",type="offer"}`:        1,
		`vmnetd_dhcp_messages_total{direction="received",family="ipv4",network="default",type="request"}`:  1,
		`vmnetd_dhcp_messages_total{direction="sent",family="ipv4",network="default",type="ack"}`:          1,
		`vmnetd_dhcp_messages_total{direction="received",family="ipv4",network="default",type="invalid"}`:  0,
		`vmnetd_dhcp_leases{family="ipv4",network="default",state="bound"}`:                                1,
		`vmnetd_guest_queue_bytes` + of:                                                                    0,
		`vmnetd_guest_limit_in_use{guest="g1",limit="udp",network="default"}`:                              1,
	} {
		if got, there := m[key]; !there || got != want {
			t.Errorf("%s is %v (there: %v), want %v", key, got, there, want)
		}
	}
	if n := m[`vmnetd_dns_answers_total{network="default",rcode="NOERROR"}`]; n < conns {
		t.Errorf("%v answers of the resolver", n)
	}
	if sent := m["vmnetd_guest_sent_bytes_total"+of]; sent < conns*each+udp*100 || sent > 1.2*conns*each {
		t.Errorf("%v bytes sent", sent)
	}
	if problems, err := promlint.New(strings.NewReader(text)).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %+v", err, problems)
	}

	// A guest has no way to make series: what it calls itself is told as it was first.
	series := len(m)
	g.Close()
	for i := range 3 {
		g := goGuest(t, p, fmt.Sprint("name", i))
		scraped(t, p)
		g.Close()
	}
	waitUntil(t.Fatalf, "the guests' end", func() bool {
		m, text = scraped(t, p)
		return m[`vmnetd_guests{network="default"}`] == 0
	})
	if len(m) >= series || strings.Contains(text, `guest="`) {
		t.Errorf("%d series without a guest, %d with one:\n%s", len(m), series, text)
	}
}

// A scrape of many guests with many conversations is soon there, and not large.
func TestMetricsOfMany(t *testing.T) {
	bin, err := plainVmnetd()
	if err != nil {
		t.Fatal(err)
	}
	p := program(t, bin, "serve", "--net", "10.0.0.0/16").start()
	p.says("control")
	c := control.NewClient(filepath.Join(p.run, "vmnetd/control.sock"))
	t.Cleanup(c.Close)
	const guests, each = 100, 100
	sink, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	port := sink.LocalAddr().(*net.UDPAddr).Port
	var starting sync.WaitGroup // each takes its time to see that its addresses are nobody else's
	for i := range guests {
		conn, err := net.Dial("unix", filepath.Join(p.run, "vmnetd/qemu.sock"))
		if err != nil {
			t.Fatal(err)
		}
		starting.Go(func() {
			a := netip.AddrFrom4([4]byte{10, 0, 1, byte(10 + i)})
			g, err := guest.New(t.Context(), qemu.NewLink(conn), guest.Config{Static: true, Addrs: []netip.Prefix{netip.PrefixFrom(a, 16)}, Gateway4: netip.MustParseAddr("10.0.0.2")})
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { g.Close() })
			for j := range each {
				u, err := g.DialUDP(netip.AddrPortFrom(a, uint16(20000+j)), netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(port)))
				if err != nil {
					t.Error(err)
					return
				}
				t.Cleanup(func() { u.Close() })
				if _, err := u.Write([]byte("x")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	starting.Wait()
	var m map[string]float64
	var text string
	var took time.Duration
	waitUntil(t.Fatalf, "ten thousand conversations", func() bool {
		began := time.Now()
		m, text = scraped(t, p)
		took = time.Since(began)
		return m[`vmnetd_flows{network="default",proto="udp",state="open"}`] == guests*each && m[`vmnetd_guests{network="default"}`] == guests
	})
	t.Logf("%d series, %d KiB, %v", len(m), len(text)>>10, took)
	if len(m) > guests*60+1000 || took > 10*time.Second {
		t.Errorf("%d series, %d bytes, after %v", len(m), len(text), took)
	}
	if list, err := c.Flows(t.Context(), control.FlowFilter{}); err != nil || len(list) != guests*each {
		t.Errorf("%d conversations are listed: %v", len(list), err)
	}
}
