package lab

// What makes a node ready: that it is up, by its kind, and then the conditions of its Wait, in order. What can only be tried
// is tried again after a pause that grows, so that a node that is slow is not made slower; what is told is waited for.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vmnetd/vmnetd/lab/topology"
)

// Kinds of topology.Condition.
const (
	condAddress = "address"
	condPing    = "ping"
	condTCP     = "tcp"
	condUDP     = "udp"
	condExec    = "exec"
	condLog     = "log"
	condAgent   = "agent"
	condExit    = "exit"
)

const (
	// The pauses between tries: what people do not notice at first, and half of what they count in at last.
	pauseFirst = 50 * time.Millisecond
	pauseMost  = time.Second
	// tryTimeout bounds one try: some retransmissions of a SYN, or a shell line that hangs.
	tryTimeout = 10 * time.Second
	// settle is how long a command has to run until its node counts as ready if nothing else says that it is: one that
	// does not know its flags, or finds its port taken, says so by then.
	settle = 100 * time.Millisecond
	// udpSilence is how long no refusal of a datagram counts as its being taken: a round trip in any lab that is not
	// impaired on purpose.
	udpSilence = 300 * time.Millisecond
	// udpFarSilence is the same of another node, which may not be there at all: a kernel says so after asking three times, a
	// second each, for its MAC (arp(7), mcast_solicit).
	udpFarSilence = 3500 * time.Millisecond
)

// farDialer is a machine that dials from inside it: to another node.
type farDialer interface {
	dialFrom(ctx context.Context, network, address string) (net.Conn, error)
}

// waits says that a node has a condition of this kind.
func waits(t *topology.Node, kind string) bool {
	for _, c := range t.Wait {
		if c.Kind == kind {
			return true
		}
	}
	return false
}

// checkCondition says what is wrong with one.
func checkCondition(c topology.Condition) error {
	switch c.Kind {
	case condAddress, condAgent, condExit:
		return nil
	case condPing, condExec:
		if c.Arg == "" {
			return fmt.Errorf("wait: %s: for what?", c.Kind)
		}
		return nil
	case condLog:
		if _, err := regexp.Compile(c.Arg); err != nil {
			return fmt.Errorf("wait: log: %w", err)
		}
		return nil
	case condTCP, condUDP:
		_, port := splitTarget(c.Arg)
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("wait: %s: %q is neither a port nor HOST:PORT", c.Kind, c.Arg)
		}
		return nil
	}
	return fmt.Errorf("wait: there is no %q; there are address, ping, tcp, udp, exec, log, agent and exit", c.Kind)
}

// splitTarget splits HOST:PORT; a port alone is the node's own.
func splitTarget(s string) (host, port string) {
	if h, p, err := net.SplitHostPort(s); err == nil {
		return h, p
	}
	return "", s
}

// up waits until the node is up.
func (f *life) up(ctx context.Context, m machine) error {
	switch {
	case f.t.Kind == topology.KindExternal:
		return nil // its doors are open; when somebody comes is not the lab's to say
	case f.t.Kind == topology.KindNetns:
		if err := f.poll(ctx, "its namespaces", m.reachable); err != nil {
			return err
		}
		return f.poll(ctx, "its addresses", f.addressed)
	case f.t.Agent:
		return f.poll(ctx, "its agent", m.reachable)
	}
	for i := range f.t.Interfaces {
		if f.uplink(i) && !f.t.Interfaces[i].Mirror {
			return f.poll(ctx, "an address", func(context.Context) error { return f.someAddress(i) })
		}
	}
	return nil
}

// await waits for a condition.
func (f *life) await(ctx context.Context, m machine, c topology.Condition) error {
	what := c.Kind
	if c.Arg != "" {
		what += ":" + c.Arg
	}
	switch c.Kind {
	case condAddress:
		return f.poll(ctx, "its addresses", f.addressed)
	case condAgent:
		return f.poll(ctx, "its agent", m.reachable)
	case condExec:
		return f.poll(ctx, what, func(ctx context.Context) error {
			return trial(ctx, m, "sh", "-c", c.Arg)
		})
	case condPing:
		return f.poll(ctx, what, func(ctx context.Context) error {
			return trial(ctx, m, "ping", "-c", "1", "-W", "1", c.Arg)
		})
	case condTCP, condUDP:
		host, port := splitTarget(c.Arg)
		return f.poll(ctx, what, func(ctx context.Context) error {
			return tryPort(ctx, m, c.Kind, host, port)
		})
	case condLog:
		re, err := regexp.Compile(c.Arg)
		if err != nil {
			return err
		}
		f.holds(what, nil)
		_, err = f.n.console.Match(ctx, re)
		return err
	case condExit:
		f.holds("its end", nil)
		select {
		case <-f.over: // with another status than 0 it has failed, and ctx ends
			f.lab.mu.Lock()
			defer f.lab.mu.Unlock()
			if f.exit != nil && *f.exit == 0 {
				return nil
			}
			return fmt.Errorf("it has ended with status %d", *f.exit)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return checkCondition(c)
}

// poll tries until there is no error, or ctx ends. What cannot be at all is not tried again.
func (f *life) poll(ctx context.Context, what string, try func(context.Context) error) error {
	f.holds(what, nil)
	for pause := pauseFirst; ; pause = min(pause*3/2, pauseMost) {
		tctx, cancel := context.WithTimeout(ctx, tryTimeout)
		err := try(tctx)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errors.ErrUnsupported):
			return fmt.Errorf("%s: %w", what, err)
		}
		f.holds(what, err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// trial runs a command that is to end with status 0.
func trial(ctx context.Context, m machine, args ...string) error {
	var said tail
	code, err := m.exec(ctx, Command{Args: args, Stdout: io.Discard, Stderr: &said})
	if err != nil {
		return err
	}
	if code != 0 {
		return said.because(code)
	}
	return nil
}

// tryPort tries a port of the node's own, or of somebody else's as the node reaches it.
func tryPort(ctx context.Context, m machine, network, host, port string) error {
	var c net.Conn
	var err error
	if d, ok := m.(farDialer); host == "" {
		c, err = m.dial(ctx, network, port)
	} else if ok {
		c, err = d.dialFrom(ctx, network, net.JoinHostPort(host, port))
	} else {
		args := []string{"nc", "-z", "-w", "2", host, port}
		if network == condUDP {
			args = []string{"nc", "-u", "-z", "-w", "2", host, port}
		}
		return trial(ctx, m, args...)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	if network != condUDP {
		return nil
	}
	// Nobody says yes to a datagram; ICMP says no.
	silence := udpSilence
	if host != "" {
		silence = udpFarSilence
		hearErrors(c)
	}
	if _, err := c.Write(nil); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(silence))
	if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// addressed says which interface has no address yet. One in a network without an uplink has what the lab sets, or none.
func (f *life) addressed(context.Context) error {
	for i := range f.t.Interfaces {
		t := &f.t.Interfaces[i]
		if t.Mirror || !f.uplink(i) {
			continue
		}
		if err := f.someAddress(i); err != nil {
			return err
		}
	}
	return nil
}

// someAddress says that interface i has none that is seen.
func (f *life) someAddress(i int) error {
	t := &f.t.Interfaces[i]
	have := f.addrs(i, nil)
	missing := func(a netip.Addr) bool {
		for _, h := range have {
			if h == a {
				return false
			}
		}
		return true
	}
	var want []string
	for _, p := range t.Addrs {
		if p.Addr().Is4() && missing(p.Addr()) { // a fixed IPv6 one is a guest's choice: DHCPv6 or its own
			want = append(want, p.Addr().String())
		}
	}
	if len(want) > 0 {
		return fmt.Errorf("its interface %s has no %s yet", t.Name, strings.Join(want, " and no "))
	}
	for _, a := range have {
		if !a.IsLinkLocalUnicast() {
			return nil
		}
	}
	return fmt.Errorf("its interface %s has no address yet", t.Name)
}
