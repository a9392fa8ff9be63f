package control

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/impair"
)

// QoS is the HTTP interface of daily-co's synthetic-network, for programs that were written for it: GET and POST of /qos, all
// of a line in one JSON value, and GET of /top/ingress.profile and /top/egress.profile, what guests get and send, counted from
// this call on. The line is that of all guests of n that have none of their own; the profiles are of all. What synthetic-network cannot say
// (bursts of loss, IPv6 flows, a seed, …) is not shown, and gone after a POST.
//
// As there, nobody is asked who he is: it is for a port of the loopback, on request. What a web page elsewhere sends, which
// every browser on this machine might, is refused.
func QoS(n *backend.Network) http.Handler {
	m := http.NewServeMux()
	tally := n.Tally()
	for name, up := range map[string]bool{"ingress": false, "egress": true} {
		m.HandleFunc("GET /top/"+name+".profile", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "no-store")
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Write(tally.Profile(up))
		})
	}
	m.HandleFunc("GET /qos", func(w http.ResponseWriter, r *http.Request) {
		s := n.ImpairedAll()
		send(w, r, http.StatusOK, "application/json; charset=utf-8", qosOf(&s))
	})
	m.HandleFunc("POST /qos", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		var q qos
		if err == nil {
			err = json.Unmarshal(b, &q)
		}
		var s impair.Settings
		if err == nil {
			s, err = q.settings()
		}
		if err == nil {
			err = n.Impair("", &s)
		}
		if err != nil {
			http.Error(w, short(err.Error()), http.StatusBadRequest)
			return
		}
		io.WriteString(w, "OK") // word for word
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		a, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if !(host == "localhost" || err == nil && a.IsLoopback()) || r.Header.Get("Origin") != "" && r.Header.Get("Origin") != "http://"+r.Host {
			http.Error(w, "want to be asked as localhost, and by no other page", http.StatusForbidden)
			return
		}
		m.ServeHTTP(w, r)
	})
}

// qos is synthetic-network's value.
type qos struct {
	Default qosLink   `json:"default_link"`
	Flows   []qosFlow `json:"flows"`
}

// qosLink has what the guest gets, and what it sends.
type qosLink struct {
	Ingress qosWay `json:"ingress"`
	Egress  qosWay `json:"egress"`
}

type qosFlow struct {
	Label string   `json:"label"`
	Flow  qosMatch `json:"flow"`
	Link  qosLink  `json:"link"`
}

type qosMatch struct {
	IP       uint32 `json:"ip"` // the first byte lowest; 0: any
	Protocol uint8  `json:"protocol"`
	PortMin  uint16 `json:"port_min"`
	PortMax  uint16 `json:"port_max"`
}

type qosWay struct {
	Rate     float64 `json:"rate"` // bits a second
	Loss     float64 `json:"loss"`
	Latency  float64 `json:"latency"` // ms
	Jitter   float64 `json:"jitter"`  // ms, added to latency: from 0 to this
	Strength float64 `json:"jitter_strength"`
	Reorder  bool    `json:"reorder_packets"`
}

// qosRate is what it says of a line without a rate: its own default, and more than it carries.
const qosRate = 10_000_000_000

// deadLine is how long, and how often, a line is down on which nothing passes.
const deadLine = time.Second

func (q *qos) settings() (s impair.Settings, err error) {
	link := func(l *qosLink) (up, down impair.Way, err error) {
		if up, err = l.Egress.way(); err == nil {
			down, err = l.Ingress.way()
		}
		return up, down, err
	}
	if s.Up, s.Down, err = link(&q.Default); err != nil {
		return s, err
	}
	for i := range q.Flows {
		f := &q.Flows[i]
		flow := impair.Flow{Name: f.Label, Match: impair.Match{Proto: int(f.Flow.Protocol)}}
		if ip := f.Flow.IP; ip != 0 {
			a := netip.AddrFrom4([4]byte{byte(ip), byte(ip >> 8), byte(ip >> 16), byte(ip >> 24)})
			flow.Match.Prefix = netip.PrefixFrom(a, 32)
		}
		if p := f.Flow; (p.Protocol == 0 || p.Protocol == 6 || p.Protocol == 17) && (p.PortMin > 0 || p.PortMax < 65535) && p.PortMax > 0 {
			flow.Match.MinPort, flow.Match.MaxPort = p.PortMin, p.PortMax
		}
		if flow.Up, flow.Down, err = link(&f.Link); err != nil {
			return s, fmt.Errorf("flow %.40s: %w", f.Label, err)
		}
		s.Flows = append(s.Flows, flow)
	}
	return s, s.Check()
}

// way is the same in our words. Its jitter comes on top of the latency; ours is around it.
func (q qosWay) way() (w impair.Way, err error) {
	millis := func(f float64) time.Duration {
		return time.Duration(min(max(f, -1e9), 1e9) * float64(time.Millisecond))
	}
	if !(q.Rate >= 0) || q.Rate > 1e15 {
		return w, fmt.Errorf("rate %v: want bits a second, 1000 or more, or 0 for a line on which nothing passes", q.Rate)
	}
	if q.Rate < qosRate {
		w.Rate = int64(math.Round(q.Rate))
	}
	if q.Rate > 0 && q.Rate < 1000 {
		return w, fmt.Errorf("rate %v: want bits a second, 1000 or more, or 0 for a line on which nothing passes", q.Rate)
	}
	if q.Rate == 0 { // nothing passes there
		w.FlapEvery, w.FlapDown = deadLine, deadLine
	}
	w.Loss = q.Loss
	w.Latency = millis(q.Latency)
	if q.Jitter != 0 && q.Strength > 0 {
		w.Jitter = millis(q.Jitter) / 2
		w.Latency += w.Jitter
		w.Share, w.Shuffle = q.Strength, q.Reorder
	}
	return w, w.Check()
}

func qosOf(s *impair.Settings) qos {
	way := func(w *impair.Way) qosWay {
		ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
		q := qosWay{Rate: qosRate, Loss: w.Loss, Latency: ms(w.Latency - w.Jitter), Jitter: ms(2 * w.Jitter), Strength: w.Share, Reorder: w.Shuffle}
		switch {
		case w.FlapDown > 0 && w.FlapDown == w.FlapEvery:
			q.Rate = 0
		case w.Rate != 0:
			q.Rate = float64(w.Rate)
		}
		if w.Jitter > 0 && w.Share == 0 {
			q.Strength = 1
		}
		return q
	}
	link := func(up, down *impair.Way) qosLink { return qosLink{Ingress: way(down), Egress: way(up)} }
	q := qos{Default: link(&s.Up, &s.Down), Flows: []qosFlow{}}
	for i := range s.Flows {
		f := &s.Flows[i]
		m := qosMatch{Protocol: uint8(f.Match.Proto), PortMin: f.Match.MinPort, PortMax: f.Match.MaxPort}
		if m.PortMax == 0 {
			m.PortMax = 65535
		}
		if p := f.Match.Prefix; p.IsValid() {
			if !p.Addr().Is4() || !p.IsSingleIP() {
				continue // it has no word for these
			}
			b := slices.Clone(p.Addr().AsSlice())
			m.IP = uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
		}
		q.Flows = append(q.Flows, qosFlow{f.Name, m, link(&f.Up, &f.Down)})
	}
	return q
}
