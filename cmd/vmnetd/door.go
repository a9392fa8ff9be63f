package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/link"
)

// framings are the ways in which a guest's frames come, each with a flag of its name. To add one, make it in a file of
// its own and name it here.
var framings = []*framing{&qemuFraming, &hyperkitFraming, &vdeFraming, &vfkitFraming, &dgramFraming, &bessFraming, &netnsFraming}

// framing is how bytes or datagrams become frames.
type framing struct {
	name    string
	usage   string   // of its flag
	forms   []form   // where it can be had
	options []string // that an address may have, behind a comma: name=value
	lines   func(*door) string
}

// form is a kind of place and how guests come in there.
type form struct {
	kind string // what stands before an address's first colon; "dial:" and the kind for what we dial ourselves
	says string // how it is spelt: "unix:PATH"
	// open sets the door's in or only, and addr as it came out. It may set remove and note.
	open func(*door, address) error
}

// places is a list of the forms for people: "unix:PATH, tcp:[HOST:]PORT or fd:N".
func (f *framing) places() string {
	var says []string
	for _, o := range f.forms {
		says = append(says, o.says)
	}
	last := len(says) - 1
	if last < 1 {
		return strings.Join(says, "")
	}
	return strings.Join(says[:last], ", ") + " or " + says[last]
}

func (f *framing) form(kind string) (form, bool) {
	for _, o := range f.forms {
		if o.kind == kind {
			return o, true
		}
	}
	return form{}, false
}

// address is what a door's flag says: [dial:]KIND[:REST][,NAME=VALUE]... A comma that belongs to REST, as to a path's
// name, is written twice, as QEMU has it.
type address struct {
	kind    string // "unix", "dial:unix"
	rest    string
	options map[string]string
}

func parseAddress(s string) (a address, err error) {
	parts := splitCommas(s)
	kind, rest, _ := strings.Cut(parts[0], ":")
	if kind == "dial" {
		kind, rest, _ = strings.Cut(rest, ":")
		kind = "dial:" + kind
	}
	a.kind, a.rest = kind, rest
	for _, o := range parts[1:] {
		name, value, ok := strings.Cut(o, "=")
		if !ok || name == "" {
			return a, fmt.Errorf("%q behind the comma is no NAME=VALUE; a comma in a path is written twice", o)
		}
		if _, twice := a.options[name]; twice {
			return a, fmt.Errorf("%s= is there twice", name)
		}
		if a.options == nil {
			a.options = map[string]string{}
		}
		a.options[name] = value
	}
	return a, nil
}

// splitCommas splits at single commas and makes one of two.
func splitCommas(s string) []string {
	parts := []string{""}
	for i := 0; i < len(s); i++ {
		last := &parts[len(parts)-1]
		switch {
		case s[i] != ',':
			*last += s[i : i+1]
		case i+1 < len(s) && s[i+1] == ',':
			*last += ","
			i++
		default:
			parts = append(parts, "")
		}
	}
	return parts
}

// door is a place where guests plug in.
type door struct {
	framing *framing
	addr    string       // as it came out: "unix:/run/…", "tcp:127.0.0.1:7001", "fd:3"
	network string       // the name of its guests' network, or nothing for the first
	in      accepter     // nil if only is all there is
	only    *caller      // the one guest that can come
	space   *space       // it, if it is a network namespace
	said    string       // the address as it was given
	end     func()       // has nobody let in any more
	remove  func()       // takes the socket file away; never nil
	stdio   bool         // it has standard output, where nothing else may be printed
	note    string       // what the user should know
	bound   string       // where a descriptor of systemd's is bound, as addr would have it; the file there is not ours
	log     *slog.Logger // of what guests cause: whoever reaches a door can try what is wrong in a loop

	// Of the network, once there is one:
	mtu    int           // of the cards that lines has; 0: their own
	told   int           // the MTU of guests whose framing has a limit or a word for it; 0: 1500
	came   func()        // is told of each guest
	gone   func()        // and of its end
	places chan struct{} // one for each guest that may be there; shared by the daemon's doors
}

// accepter is where guests come in, one after another.
type accepter interface {
	// accept waits for the next. It must not wait for what a guest has to say: that is for its wire.
	accept() (*caller, error)
	Close() error
	Addr() net.Addr
}

// caller is a guest at the door.
type caller struct {
	peer string // " pid 17", " from 127.0.0.1:40000": what tells it from the door's others
	// wire is called once, in the guest's own goroutine. It does the handshake, if the framing has one, and gives up
	// by itself on a guest that does not come to its end, or when close is called.
	wire func() (link.Link, error)
	// close ends it, before or after wire. It is called at least once, when the guest has gone or was turned away.
	close func()
}

// linkListener is what package vfkit's listeners are: they give whole links.
type linkListener interface {
	Accept() (l link.Link, peer string, err error)
	Close() error
	Addr() net.Addr
}

// whole is a guest whose link needs no handshake.
func whole(l link.Link, peer string) *caller {
	return &caller{peer, func() (link.Link, error) { return l, nil }, func() { l.Close() }}
}

func (d *door) String() string { return d.framing.name + " " + d.shown().addr }

// shown is the door for people: where others find it.
func (d *door) shown() *door {
	if d.bound == "" {
		return d
	}
	s := *d
	s.addr = d.bound
	return &s
}

// parse says what an address names, and in which of the framing's forms.
func (f *framing) parse(addr string) (address, form, error) {
	a, err := parseAddress(addr)
	if err != nil {
		return a, form{}, err
	}
	o, ok := f.form(a.kind)
	if !ok {
		return a, o, fmt.Errorf("want %s", f.places())
	}
	for _, name := range slices.Sorted(maps.Keys(a.options)) {
		if name != "network" && !slices.Contains(f.options, name) { // every framing has it
			return a, o, fmt.Errorf("no option %s=; a comma in a path is written twice", name)
		}
	}
	return a, o, nil
}

// openDoor opens what an address names.
func openDoor(f *framing, addr string, log *slog.Logger) (*door, error) {
	a, o, err := f.parse(addr)
	if err != nil {
		return nil, usagef("--%s %s: %w", f.name, addr, err)
	}
	network := a.options["network"]
	delete(a.options, "network")
	d := &door{framing: f, addr: addr, said: addr, network: network, log: log, remove: func() {}}
	if err := o.open(d, a); err != nil {
		return nil, fmt.Errorf("--%s %s: %w", f.name, addr, err)
	}
	return d, nil
}

// handed says whether an address is a descriptor that we were started with: those are opened before any of our own.
func handed(addr string) bool {
	a, err := parseAddress(addr)
	return err == nil && (a.kind == "fd" || a.kind == "stdio")
}

// closedTo is the host's address that no guest may reach, since guests plug in there.
func (d *door) closedTo() (netip.AddrPort, bool) {
	if d.in == nil {
		return netip.AddrPort{}, false
	}
	var ap netip.AddrPort
	switch a := d.in.Addr().(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), ap.IsValid()
}

// plug serves one guest until it has gone.
func (d *door) plug(wires context.Context, n *backend.Network, g *caller) {
	procs.add(1)
	defer procs.add(-1)
	if d.came != nil {
		d.came()
	}
	if d.gone != nil {
		defer d.gone()
	}
	defer g.close()
	defer context.AfterFunc(wires, g.close)()
	name := d.String() + g.peer
	defer func() { // a network sees to its guests itself: this one has not come to that
		if r := recover(); r != nil {
			d.log.Error("guest turned away: a bug was met", "link", name, "panic", r, "stack", string(debug.Stack()))
		}
	}()
	l, err := g.wire()
	what := "guest turned away"
	if err == nil {
		what = "guest's wire ended"
		err = n.Serve(wires, l, name)
	}
	switch {
	case err == nil, wires.Err() != nil, errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, context.Canceled),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE): // a VMM that ends with frames unread
	default:
		d.log.Warn(what, "link", name, "error", err)
	}
}

// serve takes guests until ctx is done, and returns when nobody can come any more and the guests have gone. It
// closes the door. The error is why it could not go on.
func (d *door) serve(ctx, wires context.Context, n *backend.Network) error {
	var guests sync.WaitGroup
	defer guests.Wait()
	if d.only != nil {
		d.plug(wires, n, d.only)
		return nil
	}
	defer context.AfterFunc(ctx, d.close)()
	const least, most = 50 * time.Millisecond, time.Second // net/http waits as long: memory and descriptors come back
	wait, full := least, false
	for {
		g, err := d.in.accept()
		switch {
		case err == nil:
			wait = least
			select {
			case d.places <- struct{}{}:
				full = false
				guests.Go(func() {
					defer func() { <-d.places }()
					d.plug(wires, n, g)
				})
			default:
				g.close()
				if !full { // once, or whoever tries in a loop fills the log
					d.log.Warn("guest turned away: as many are here as descriptors allow", "door", d.String(), "most", cap(d.places))
				}
				full = true
			}
		case ctx.Err() != nil:
			return nil
		case temporary(err):
			d.log.Warn("cannot take a guest", "door", d.String(), "error", err, "again_in", wait)
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			wait = min(2*wait, most)
		default:
			d.close()
			return fmt.Errorf("%s: %w", d, err)
		}
	}
}

func temporary(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (d *door) close() {
	d.remove()
	if d.in != nil {
		d.in.Close()
	}
}

// addDoorFlags gives each framing its flag.
func addDoorFlags(add func(name string, value []string, usage string) *[]string) []*[]string {
	addrs := make([]*[]string, len(framings))
	for i, f := range framings {
		addrs[i] = add(f.name, nil, f.usage+"; may be repeated")
	}
	return addrs
}

// openDoors opens what the flags name, in their framings' order.
func (d *daemon) openDoors(addrs []*[]string, which func(addr string) bool) error {
	for i, f := range framings {
		for _, a := range *addrs[i] {
			if which(a) {
				if err := d.open(f, a); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
