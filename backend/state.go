package backend

// What survives a restart beside leases: forwards and DNS records that were added while the network ran, so that a
// daemon that was killed comes back with them. What the configuration adds is its own and is not written.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vmnetd/vmnetd/dns"
	"github.com/vmnetd/vmnetd/portforward"
	"github.com/vmnetd/vmnetd/state"
)

// keptVersion changes when an older daemon could not read the file.
const keptVersion = 1

// maxKept bounds the file that is read: portforward.DefaultMaxPorts rules and as many records at some 300 bytes, four
// times over.
const maxKept = 16 << 20

// kept is the file.
type kept struct {
	Version  int         `json:"version"`
	Forwards []string    `json:"forwards"` // as portforward.Rule prints them
	DNS      []DNSRecord `json:"dns"`
}

// keptRetry is how often a forward is tried whose port another program has: soon beside how long people look for why it
// does not work, and each try is a line in the log.
const keptRetry = 30 * time.Second

// keeper is what a network knows of its file.
type keeper struct {
	mu      sync.Mutex
	on      bool
	tried   time.Time
	path    string
	given   map[string]bool // forwards that are not written, by their print: the configuration's
	records map[DNSRecord]bool
	// What a program added before it called Keep is its own to add again.
	before        []string
	recordsBefore []DNSRecord
	waiting       []string // forwards whose socket could not be opened: another program has the port
	last          []byte   // as written
}

// Keep brings back the forwards and DNS records that were added while an earlier network with this name and
// Config.StateDir ran, and keeps those that are added from now on, beside what is there by then. Call it once. A forward whose port another program has is tried again until it works, or is added anew or removed. Without a StateDir it
// does nothing. A damaged file is set aside and reported in Status.
func (n *Network) Keep(ctx context.Context) error {
	if n.cfg.StateDir == "" {
		return nil
	}
	n.reloading.Lock()
	defer n.reloading.Unlock()
	k := &n.keep
	k.mu.Lock()
	defer k.mu.Unlock()
	k.path = filepath.Join(n.cfg.StateDir, "added-"+n.cfg.Name+".json")
	k.before, k.recordsBefore = nil, nil
	n.configured()
	for _, r := range n.forwards.List() {
		if !k.given[r.Text] {
			k.before = append(k.before, r.Text)
		}
	}
	for _, r := range n.addedRecords() {
		if !k.records[r] {
			k.recordsBefore = append(k.recordsBefore, r)
		}
	}
	n.configured()
	old, err := readKept(k.path)
	switch {
	case errors.Is(err, errDamaged):
		aside := k.path + ".damaged"
		if rerr := os.Rename(k.path, aside); rerr != nil {
			return fmt.Errorf("network %s: %s: %w, and it cannot be set aside: %w", n.cfg.Name, k.path, err, rerr)
		}
		n.complain("forwards and records of before", fmt.Errorf("%s: %w; it was set aside as %s", k.path, err, aside))
	case err != nil:
		return fmt.Errorf("network %s: %w", n.cfg.Name, err)
	}
	for _, r := range old.DNS {
		if err := n.AddDNS(r); err != nil && !errors.Is(err, ErrNameTaken) {
			n.complain("DNS record of before", err)
		}
	}
	k.waiting, k.on = old.Forwards, true
	n.retryForwards(ctx)
	return n.writeAdded()
}

// addedRecords are the DNS records that people added, without those of leases and of the gateway.
func (n *Network) addedRecords() []DNSRecord {
	return slices.DeleteFunc(n.DNSRecords(), func(r DNSRecord) bool { return r.Source != dns.SourceAdmin })
}

// retryForwards opens those that wait, and forgets those that can never be opened or that the table has by now.
func (n *Network) retryForwards(ctx context.Context) {
	const what = "a forward of before"
	k := &n.keep
	k.tried = time.Now()
	var still []string
	for _, text := range k.waiting {
		rules, err := portforward.ParseRule(text)
		if err == nil {
			_, err = n.forwards.AddAll(ctx, rules)
		}
		var e *portforward.Error
		switch {
		case err == nil:
		case !errors.As(err, &e), e.Kind == portforward.ErrClosed, e.Kind == portforward.ErrInUse, e.Kind == portforward.ErrBind, e.Kind == portforward.ErrLimit:
			still = append(still, text)
			n.complain(what, err)
		case e.Kind == portforward.ErrClash: // given again, by the configuration or by people
		default:
			n.complain(what, err)
		}
	}
	if len(still) == 0 && len(k.waiting) > 0 {
		n.recovered(what)
	}
	k.waiting = still
}

// saveAdded is for tend: it tries what waits, and writes the file if it would differ. After the last time it does no more,
// as the table then ends.
func (n *Network) saveAdded(last bool) {
	k := &n.keep
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.on {
		return
	}
	k.on = !last
	if len(k.waiting) > 0 && !last && time.Since(k.tried) >= keptRetry {
		n.retryForwards(n.ctx)
	}
	const what = "forwards and DNS records are not saved"
	if err := n.writeAdded(); err != nil {
		n.complain(what, err)
	} else {
		n.recovered(what)
	}
}

func (n *Network) writeAdded() error {
	k := &n.keep
	f := kept{Version: keptVersion, Forwards: []string{}, DNS: []DNSRecord{}}
	for _, r := range n.forwards.List() {
		if !k.given[r.Text] {
			f.Forwards = append(f.Forwards, r.Text)
		}
	}
	f.Forwards = append(f.Forwards, k.waiting...)
	for _, r := range n.addedRecords() {
		if !k.records[r] {
			f.DNS = append(f.DNS, r)
		}
	}
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	if b = append(b, '\n'); bytes.Equal(b, k.last) {
		return nil
	}
	if err := state.WriteFile(k.path, b); err != nil {
		return err
	}
	k.last = b
	return nil
}

var errDamaged = errors.New("damaged")

func readKept(path string) (k kept, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return k, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKept+1))
	if err != nil {
		return k, err
	}
	if len(b) > maxKept {
		return k, fmt.Errorf("%w: larger than %d bytes", errDamaged, maxKept)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&k); err != nil {
		return kept{}, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if k.Version != keptVersion {
		return kept{}, fmt.Errorf("%w: version %d, want %d", errDamaged, k.Version, keptVersion)
	}
	return k, nil
}
