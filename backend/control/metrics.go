package control

// Metrics, in Prometheus's formats: what the networks count anyhow, read when somebody asks. Of guests that have gone
// nothing is kept here, and they leave no series.

import (
	"bytes"
	"cmp"
	"io"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/flows"
)

// metricsPaths: where scrapers look by themselves, and where the rest of the API is.
var metricsPaths = []string{"/metrics", "/v1/metrics"}

// describe makes a metric; all have the name of the network first, unless they are the process's.
func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("vmnetd_"+name, help, labels, nil)
}

func ofNetwork(name, help string, labels ...string) *prometheus.Desc {
	return describe(name, help, append([]string{"network"}, labels...)...)
}

func ofGuest(name, help string, labels ...string) *prometheus.Desc {
	return ofNetwork("guest_"+name, help, append([]string{"guest"}, labels...)...)
}

// metrics is the collector. It is made when the first scraper comes: what nobody asks for takes no memory.
type metrics struct {
	server *Server
	called map[guestAt]calling // of guests that are here; scrapes come one at a time

	build, memory, memoryTarget, memoryHits                         *prometheus.Desc
	since, guests, sentBytes, sentFrames, gotBytes, gotFrames       *prometheus.Desc
	flows, opened, ended, dropped, dial                             *prometheus.Desc
	limit, limitUse, limitHits                                      *prometheus.Desc
	forwardActive, forwardAccepted, forwardRefused                  *prometheus.Desc
	forwardToGuest, forwardToClient                                 *prometheus.Desc
	questions, answers, unanswered, asking, resolvers, leases, dhcp *prometheus.Desc
	up, info, gSentBytes, gSentFrames, gGotBytes, gGotFrames        *prometheus.Desc
	gDropped, gFlows, gQueue, gQueueLimit, gLimit, gLimitUse, gHits *prometheus.Desc
}

func newMetrics(s *Server) *metrics {
	return &metrics{
		server: s, called: map[guestAt]calling{},

		build:        describe("build_info", "1, with the program's version and Go's.", "version", "goversion"),
		memory:       describe("memory_in_use_bytes", "Memory of the process that a collection would leave."),
		memoryTarget: describe("memory_target_bytes", "Memory that the process is to take at most; absent without a target."),
		memoryHits:   describe("memory_squeezes_total", "Times that the guest that holds most memory was squeezed, since the process came to its target."),

		since:      ofNetwork("network_start_time_seconds", "When the network began, in seconds since 1970."),
		guests:     ofNetwork("guests", "Guests that are plugged in."),
		sentBytes:  ofNetwork("network_sent_bytes_total", "Bytes of the frames that guests have sent, those that are gone too."),
		sentFrames: ofNetwork("network_sent_frames_total", "Frames that guests have sent, those that are gone too."),
		gotBytes:   ofNetwork("network_received_bytes_total", "Bytes of the frames that guests were given, those that are gone too."),
		gotFrames:  ofNetwork("network_received_frames_total", "Frames that guests were given, those that are gone too."),

		flows:   ofNetwork("flows", "Conversations, by protocol and state.", "proto", "state"),
		opened:  ofNetwork("flows_opened_total", "Conversations that were let in."),
		ended:   ofNetwork("flows_ended_total", "Conversations that ended, by why.", "reason"),
		dropped: ofNetwork("drops_total", "Conversations that were refused, and packets and frames that were dropped, by why.", "reason"),
		dial:    ofNetwork("dial_duration_seconds", "Time from a TCP conversation's first packet until both sides were there; direction is out if the guest began it.", "direction"),

		limit:     ofNetwork("limit", "A bound for all guests together, in its own unit; absent where there is none.", "limit"),
		limitUse:  ofNetwork("limit_in_use", "What is used of a bound for all guests together.", "limit"),
		limitHits: ofNetwork("limit_hits_total", "Times that something was refused, ended or held back for a bound of all guests.", "limit"),

		forwardActive:   ofNetwork("forward_connections", "Connections through a port forward.", "forward"),
		forwardAccepted: ofNetwork("forward_accepted_total", "Connections that a port forward accepted.", "forward"),
		forwardRefused:  ofNetwork("forward_refused_total", "Of the accepted connections, those that never reached the guest.", "forward"),
		forwardToGuest:  ofNetwork("forward_to_guest_bytes_total", "Bytes through a port forward to the guest.", "forward"),
		forwardToClient: ofNetwork("forward_to_client_bytes_total", "Bytes through a port forward to clients.", "forward"),

		questions:  ofNetwork("dns_questions_total", "Guests' DNS questions: answered here (local), passed on to the host's resolvers (forwarded) or malformed.", "outcome"),
		answers:    ofNetwork("dns_answers_total", "DNS answers that guests were given, by the header's response code.", "rcode"),
		unanswered: ofNetwork("dns_drops_total", "DNS messages and connections of guests that were dropped, by why.", "reason"),
		asking:     ofNetwork("dns_waiting", "DNS questions that wait for the host's resolvers."),
		resolvers:  ofNetwork("dns_resolvers", "The host's resolvers that are asked."),
		dhcp:       ofNetwork("dhcp_messages_total", "DHCP messages, by family, whether guests sent them (received) or were sent them (sent), and type; invalid is what is refused unread.", "family", "direction", "type"),
		leases:     ofNetwork("dhcp_leases", "Addresses that DHCP knows of, by family and state.", "family", "state"),

		up:          ofGuest("up", "1 for each guest that is plugged in."),
		info:        ofGuest("info", "1, with what the guest called itself when it was first looked at.", "name", "mac", "link"),
		gSentBytes:  ofGuest("sent_bytes_total", "Bytes of the frames that the guest has sent."),
		gSentFrames: ofGuest("sent_frames_total", "Frames that the guest has sent."),
		gGotBytes:   ofGuest("received_bytes_total", "Bytes of the frames that the guest was given."),
		gGotFrames:  ofGuest("received_frames_total", "Frames that the guest was given."),
		gDropped:    ofGuest("drops_total", "Frames from and to the guest that were dropped, by why; absent where none was.", "reason"),
		gFlows:      ofGuest("flows", "The guest's conversations."),
		gQueue:      ofGuest("queue_bytes", "Bytes that wait for the guest to read them from its wire."),
		gQueueLimit: ofGuest("queue_limit_bytes", "Bytes that may wait for the guest."),
		gLimit:      ofGuest("limit", "A bound of the guest, in its own unit; absent where there is none.", "limit"),
		gLimitUse:   ofGuest("limit_in_use", "What the guest uses of a bound.", "limit"),
		gHits:       ofGuest("limit_hits_total", "Times that something of the guest was refused, dropped, ended or held back for a bound.", "limit"),
	}
}

// Describe says nothing: which metrics there are depends on what there is.
func (m *metrics) Describe(chan<- *prometheus.Desc) {}

// Collect reads all networks.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	s := sink(out)
	s.gauge(m.build, 1, m.server.Version, runtime.Version())
	nets := m.server.networks()
	for i, n := range nets {
		m.network(s, n, i == 0)
	}
	maps.DeleteFunc(m.called, func(at guestAt, _ calling) bool { return !slices.Contains(nets, at.network) })
}

func (m *metrics) network(s sink, n *backend.Network, first bool) {
	c := n.Config()
	name := c.Name
	guests, traffic := n.Guests(), n.Traffic()
	s.gauge(m.guests, float64(len(guests)), name)
	s.count(m.sentBytes, traffic.RxBytes, name)
	s.count(m.sentFrames, traffic.RxFrames, name)
	s.count(m.gotBytes, traffic.TxBytes, name)
	s.count(m.gotFrames, traffic.TxFrames, name)
	s.gauge(m.since, float64(n.Since().UnixMilli())/1000, name)

	f := n.Flows().Figures()
	s.count(m.opened, f.Opened, name)
	for _, l := range f.Now {
		s.gauge(m.flows, float64(l.Count), name, l.Proto.String(), l.State.String())
	}
	for r := range flows.NumReasons {
		if r := flows.Reason(r); r != flows.ReasonNone {
			s.count(m.ended, f.Ended[r], name, r.String())
			s.count(m.dropped, f.Dropped[r], name, r.String())
		}
	}
	bounds := flows.WaitBounds()
	for d, w := range f.Waited {
		buckets, sum := map[float64]uint64{}, uint64(0)
		for i, count := range w.Within {
			sum += count
			buckets[bounds[i].Seconds()] = sum
		}
		s.add(prometheus.NewConstHistogram(m.dial, sum+w.More, w.Sum.Seconds(), buckets, name, flows.Direction(d).String()))
	}

	limits, _ := n.Limits("") // it knows the network
	for _, l := range limits {
		switch {
		case l.Each:
		case l.Name == "memory":
			if first { // all networks have the same
				s.gauge(m.memory, float64(l.Now))
				s.count(m.memoryHits, l.Hits)
				if l.Value > 0 {
					s.gauge(m.memoryTarget, float64(l.Value))
				}
			}
		default:
			m.bound(s, [3]*prometheus.Desc{m.limit, m.limitUse, m.limitHits}, l, name, l.Name)
		}
	}

	for _, f := range n.Forwards().List() {
		s.gauge(m.forwardActive, float64(f.Active), name, f.ID)
		s.count(m.forwardAccepted, f.Accepted, name, f.ID)
		s.count(m.forwardRefused, f.Refused, name, f.ID)
		s.count(m.forwardToGuest, f.ToGuest, name, f.ID)
		s.count(m.forwardToClient, f.ToClient, name, f.ID)
	}

	d := n.DNS().Status()
	s.count(m.questions, d.Local, name, "local")
	s.count(m.questions, d.Forwarded, name, "forwarded")
	s.count(m.questions, d.Malformed, name, "malformed")
	for i, count := range d.Answers {
		if i < len(rcodes) || count > 0 {
			s.count(m.answers, count, name, rcode(i))
		}
	}
	for why, count := range d.Dropped {
		s.count(m.unanswered, count, name, string(why))
	}
	s.gauge(m.asking, float64(d.InFlight), name)
	s.gauge(m.resolvers, float64(len(d.Resolvers)), name)

	type kind struct{ family, state string }
	leases := map[kind]int{{"ipv4", "bound"}: 0, {"ipv6", "bound"}: 0}
	for _, l := range n.Leases() {
		family := "ipv6"
		if l.Addr.Is4() {
			family = "ipv4"
		}
		leases[kind{family, string(l.State)}]++
	}
	for k, count := range leases {
		s.gauge(m.leases, float64(count), name, k.family, k.state)
	}

	for _, c := range n.DHCPMessages() {
		family, direction := "ipv4", "received"
		if c.V6 {
			family = "ipv6"
		}
		if c.Sent {
			direction = "sent"
		}
		s.count(m.dhcp, c.Count, name, family, direction, c.Type)
	}

	for _, g := range guests {
		m.guest(s, n, name, g)
	}
	maps.DeleteFunc(m.called, func(at guestAt, _ calling) bool {
		return at.network == n && !slices.ContainsFunc(guests, func(g backend.GuestInfo) bool { return g.ID == at.guest })
	})
}

// guestAt is a guest of a network.
type guestAt struct {
	network *backend.Network
	guest   string
}

// calling is what a guest calls itself: what it first did when somebody looked. Else one that goes by another name at
// each look would be another series each time.
type calling struct{ name, mac string }

func (m *metrics) calling(n *backend.Network, g backend.GuestInfo) calling {
	c := m.called[guestAt{n, g.ID}]
	c = calling{cmp.Or(c.name, g.Name), cmp.Or(c.mac, g.MAC)}
	m.called[guestAt{n, g.ID}] = c
	return c
}

func (m *metrics) guest(s sink, n *backend.Network, name string, g backend.GuestInfo) {
	s.gauge(m.up, 1, name, g.ID)
	c := m.calling(n, g)
	s.gauge(m.info, 1, name, g.ID, c.name, c.mac, g.Link)
	s.count(m.gSentBytes, g.RxBytes, name, g.ID)
	s.count(m.gSentFrames, g.RxFrames, name, g.ID)
	s.count(m.gGotBytes, g.TxBytes, name, g.ID)
	s.count(m.gGotFrames, g.TxFrames, name, g.ID)
	s.gauge(m.gFlows, float64(g.Flows), name, g.ID)
	s.gauge(m.gQueue, float64(g.Queued), name, g.ID)
	s.gauge(m.gQueueLimit, float64(g.QueueSize), name, g.ID)
	for _, why := range slices.Sorted(maps.Keys(g.Dropped)) {
		s.count(m.gDropped, g.Dropped[why], name, g.ID, why)
	}
	limits, err := n.Limits(g.ID)
	if err != nil {
		return // it has just gone
	}
	for _, l := range limits {
		m.bound(s, [3]*prometheus.Desc{m.gLimit, m.gLimitUse, m.gHits}, l, name, g.ID, l.Name)
	}
}

// bound shows a limit: what it is, what is used, how often it was met.
func (m *metrics) bound(s sink, as [3]*prometheus.Desc, l backend.LimitInfo, labels ...string) {
	if l.Value > 0 {
		s.gauge(as[0], float64(l.Value), labels...)
	}
	s.gauge(as[1], float64(l.Now), labels...)
	s.count(as[2], l.Hits, labels...)
}

// rcodes are those of a server that knows no updates (RFC 1035 section 4.1.1).
var rcodes = [...]string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"}

func rcode(i int) string {
	if i < len(rcodes) {
		return rcodes[i]
	}
	return "other-" + string("0123456789abcdef"[i&15])
}

// sink takes metrics.
type sink chan<- prometheus.Metric

func (s sink) add(m prometheus.Metric, err error) {
	if err == nil {
		s <- m
	}
}

func (s sink) value(d *prometheus.Desc, t prometheus.ValueType, v float64, labels []string) {
	for i := range labels {
		labels[i] = strings.ToValidUTF8(labels[i], "\uFFFD") // else the scrape had none of it
	}
	s.add(prometheus.NewConstMetric(d, t, v, labels...))
}

func (s sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.value(d, prometheus.GaugeValue, v, labels)
}

func (s sink) count(d *prometheus.Desc, v uint64, labels ...string) {
	s.value(d, prometheus.CounterValue, float64(v), labels)
}

// scraper answers scrapes, one after the other: two at a time would tell the same, at twice the cost.
type scraper struct {
	server *Server

	mu       sync.Mutex
	registry *prometheus.Registry
}

func (s *scraper) write(w io.Writer, format expfmt.Format) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.registry == nil {
		s.registry = prometheus.NewRegistry()
		s.registry.MustRegister(newMetrics(s.server), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	all, err := s.registry.Gather()
	if err != nil {
		return err
	}
	enc := expfmt.NewEncoder(w, format)
	for _, f := range all {
		if err := enc.Encode(f); err != nil {
			return err
		}
	}
	if c, ok := enc.(expfmt.Closer); ok {
		return c.Close()
	}
	return nil
}

// metrics adds the paths. They take no parameters: scrapers add some of their own.
func (s *Server) metrics(mux *http.ServeMux) {
	scrape := &scraper{server: s}
	for _, path := range metricsPaths {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				w.Header().Set("Allow", "GET, HEAD")
				s.fail(w, r, problem(http.StatusMethodNotAllowed, "it takes GET, HEAD", "%s takes no %s", path, short(r.Method)))
				return
			}
			format := expfmt.NegotiateIncludingOpenMetrics(r.Header)
			var b bytes.Buffer // a slow reader holds nobody else's
			if err := scrape.write(&b, format); err != nil {
				s.fail(w, r, err)
				return
			}
			w.Header().Set("Content-Type", string(format))
			w.Header().Set("Cache-Control", "no-store")
			if r.Method != http.MethodHead {
				w.Write(b.Bytes())
			}
		})
	}
}
