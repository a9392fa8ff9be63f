package main

// Doors where a frame is a datagram: vfkit's sockets, QEMU's -netdev dgram and UDP tunnels, and seqpacket "bess".

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/vmnetd/vmnetd/backend/link"
	"github.com/vmnetd/vmnetd/vfkit"
)

var (
	vfkitFraming = framing{
		name:    "vfkit",
		usage:   "take vfkit's, krunkit's and other datagram guests at `ADDRESS`",
		forms:   []form{{"unix", "unix:PATH", openGram}, {"fds", "fds:PATH", openHanded}, {"fd", "fd:N", openMessages}},
		options: []string{"offloading"},
		lines:   vfkitLines,
	}
	dgramFraming = framing{
		name:    "dgram",
		usage:   "take QEMU's -netdev dgram guests, and UDP tunnels, at `ADDRESS`",
		forms:   []form{{"unix", "unix:PATH", openGram}, {"udp", "udp:[HOST:]PORT", openUDP}, {"fd", "fd:N", openMessages}},
		options: []string{"offloading", "peer"},
		lines:   dgramLines,
	}
	bessFraming = framing{
		name:    "bess",
		usage:   "take User Mode Linux's transport=bess guests at `ADDRESS`",
		forms:   []form{{"unix", "unix:PATH", openSeqpacket}, {"fd", "fd:N", openMessages}},
		options: []string{"offloading"},
		lines:   bessLines,
	}
)

// packets are the options of a door's wires, but for what is not known before the network is.
func (d *door) packets(a address) (o vfkit.Options, err error) {
	switch v := a.options["offloading"]; v {
	case "": // krunkit has it on where it is not told, and its guests cannot be told from vfkit's
		o.Offload = d.framing.name == "vfkit"
	case "on":
		o.Offload = true
	case "off":
	default:
		return o, usagef("offloading=%s: want on, if frames may come unfinished, as libkrun's do, or off", v)
	}
	o.Refused = func(err error) { d.log.Warn("guest turned away", "door", d.String(), "error", err) }
	return o, nil
}

// known adds what is known once there is a network: Apple's and libkrun's guests have buffers of their MTU, and User
// Mode Linux's cards refuse another.
func (d *door) known(o vfkit.Options) vfkit.Options {
	if d.framing.name != "dgram" {
		o.MTU = cmp.Or(d.told, ethernetMTU)
	}
	return o
}

// shared are the guests that send to one socket.
func (d *door) shared(c vfkit.Conn, o vfkit.Options) accepter {
	return keepWires(c.LocalAddr(), func() linkListener { return vfkit.Listen(c, d.known(o)) })
}

// message is the guest of a connected socket.
func (d *door) message(c net.Conn, o vfkit.Options) *caller {
	return messages(o).caller(d, c, "")
}

// messages are guests of connected sockets.
func messages(o vfkit.Options) shake {
	return func(d *door, c net.Conn) (link.Link, error) { return vfkit.NewLink(c, d.known(o)), nil }
}

// openGram is a unix datagram socket for any number of guests.
func openGram(d *door, a address) error {
	if a.options["peer"] != "" {
		return usagef("peer= is for udp: at a unix socket a guest is whoever sends")
	}
	o, err := d.packets(a)
	if err != nil {
		return err
	}
	var c *net.UnixConn
	bind := func(lc net.ListenConfig, path string) (io.Closer, error) {
		pc, err := lc.ListenPacket(context.Background(), "unixgram", path)
		if err != nil {
			return nil, err
		}
		c = pc.(*net.UnixConn)
		return c, nil
	}
	f, err := bindUnix(a.rest, bind)
	if err != nil {
		return err
	}
	o.Again = func() (vfkit.Conn, error) {
		if err := f.replace(bind); err != nil {
			return nil, err
		}
		return c, nil
	}
	d.addr, d.remove = "unix:"+f.path, f.remove
	d.in = d.shared(c, o)
	return nil
}

// replace puts another socket where f is. Who has connected to the one before stays with that. Calls are one at a time.
func (f *socketFile) replace(bind func(net.ListenConfig, string) (io.Closer, error)) error {
	dir := filepath.Dir(f.path)
	beside := filepath.Join(dir, "."+strconv.FormatUint(uint64(os.Getpid()), 36)+"-"+filepath.Base(f.path))
	if len(beside) > maxUnixPath { // one that is shorter is as good
		beside = filepath.Join(dir, "."+strconv.FormatUint(uint64(os.Getpid()), 36))
	}
	if len(beside) > maxUnixPath {
		return fmt.Errorf("%s is too long a path for another beside it", f.path)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mine == nil {
		return net.ErrClosed
	}
	if now, err := os.Lstat(f.path); err != nil || !os.SameFile(now, f.mine) {
		return fmt.Errorf("%s is another's by now", f.path)
	}
	os.Remove(beside) // of a daemon that had our number and was killed between here and there
	mine, c, err := bindAt(beside, bind)
	if err != nil {
		return err
	}
	if err := os.Rename(beside, f.path); err != nil {
		c.Close()
		os.Remove(beside)
		return err
	}
	f.mine = mine
	return nil
}

// openUDP is a UDP port: for any number of guests, or a tunnel for the one at the other end.
func openUDP(d *door, a address) error {
	o, err := d.packets(a)
	if err != nil {
		return err
	}
	ap, err := hostPort(d, a.rest)
	if err != nil {
		return err
	}
	if p := a.options["peer"]; p != "" {
		to, err := netip.ParseAddrPort(p)
		if err != nil || to.Port() == 0 {
			return usagef("peer=%s: want ADDRESS:PORT, the tunnel's other end", p)
		}
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(ap), net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		d.note = "" // the system takes datagrams from there alone
		d.addr = "udp:" + c.LocalAddr().String() + ",peer=" + to.String()
		d.only = d.message(c, o)
		return nil
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(ap))
	if err != nil {
		return err
	}
	d.addr = "udp:" + c.LocalAddr().String()
	d.in = d.shared(c, o)
	return nil
}

// openSeqpacket is a seqpacket socket, where each connection is a guest.
func openSeqpacket(d *door, a address) error {
	o, err := d.packets(a)
	if err != nil {
		return err
	}
	l, remove, err := listenUnixAs("unixpacket", a.rest)
	if err != nil {
		return err
	}
	d.in, d.remove, d.addr = messages(o).at(d, l), remove, "unix:"+l.Addr().String()
	return nil
}

// openMessages is a descriptor that we were started with: of one guest if it is connected, else of any number.
func openMessages(d *door, a address) error {
	if a.options["peer"] != "" {
		return usagef("peer= is for udp: a descriptor is connected, or not")
	}
	o, err := d.packets(a)
	if err != nil {
		return err
	}
	n, err := descriptor(a.rest)
	if err != nil {
		return err
	}
	l, shared, one, err := inheritedMessages(n)
	if err != nil {
		return err
	}
	d.addr = "fd:" + strconv.Itoa(n)
	switch {
	case l != nil:
		d.in = messages(o).at(d, l)
	case shared != nil:
		d.in = d.shared(shared, o)
	default:
		d.only = d.message(one, o)
	}
	return nil
}

// openHanded is a unix stream socket at which descriptors are handed over, a guest's wire each.
func openHanded(d *door, a address) error {
	o, err := d.packets(a)
	if err != nil {
		return err
	}
	l, remove, err := listenUnix(a.rest)
	if err != nil {
		return err
	}
	take := shake(func(d *door, c net.Conn) (link.Link, error) { return vfkit.AcceptDescriptor(c, d.known(o)) })
	d.in, d.remove, d.addr = take.at(d, l), remove, "fds:"+l.Addr().String()
	return nil
}

// keepWires makes guests of a listener whose Close ends their wires too. Here it comes when the last guest has gone:
// conversations have a moment to finish when the daemon ends. The listener is opened when guests are let in.
func keepWires(at net.Addr, open func() linkListener) accepter {
	k := &keeper{at: at, come: make(chan *caller), over: make(chan struct{}), ended: make(chan struct{})}
	k.open = sync.OnceValue(open)
	k.start = sync.OnceFunc(func() { go k.pump(k.open()) })
	return k
}

type keeper struct {
	at    net.Addr
	open  func() linkListener
	start func()
	come  chan *caller
	over  chan struct{} // closed by Close
	ended chan struct{} // closed when the listener gives nobody any more
	err   error         // why

	mu     sync.Mutex
	guests int
	closed bool
}

func (k *keeper) Addr() net.Addr { return k.at }

func (k *keeper) pump(from linkListener) {
	defer close(k.ended)
	for {
		l, peer, err := from.Accept()
		if err != nil {
			k.err = err
			return
		}
		g := whole(l, peer)
		end := g.close
		g.close = sync.OnceFunc(func() {
			end()
			k.leave()
		})
		k.mu.Lock()
		k.guests++
		k.mu.Unlock()
		select {
		case k.come <- g:
		case <-k.over:
			g.close()
		}
	}
}

func (k *keeper) leave() {
	k.mu.Lock()
	k.guests--
	last := k.closed && k.guests == 0
	k.mu.Unlock()
	if last {
		k.open().Close()
	}
}

func (k *keeper) accept() (*caller, error) {
	k.start()
	select {
	case <-k.over: // before whoever waits
		return nil, net.ErrClosed
	default:
	}
	select {
	case g := <-k.come:
		return g, nil
	case <-k.over:
		return nil, net.ErrClosed
	case <-k.ended:
		return nil, k.err
	}
}

// Close lets nobody in any more.
func (k *keeper) Close() error {
	k.mu.Lock()
	first := !k.closed
	k.closed = true
	last := k.guests == 0
	k.mu.Unlock()
	if !first {
		return nil
	}
	close(k.over)
	if last {
		return k.open().Close()
	}
	return nil
}

// vfkitLines are what vfkit and krunkit are given.
func vfkitLines(d *door) string {
	kind, path, _ := strings.Cut(d.addr, ":")
	switch kind {
	case "unix":
		return fmt.Sprintf("guests plug in at %s:\n  vfkit … --device %s\n  krunkit … --device %s\n", d.addr,
			shellQuote("virtio-net,unixSocketPath="+path+",mac="+randomMAC()),
			shellQuote("virtio-net,type=unixgram,path="+path+",mac="+randomMAC()))
	case "fds":
		return fmt.Sprintf("descriptors of guests are taken at the unix stream socket %s\n", path)
	}
	return fmt.Sprintf("guests plug in at %s\n", d.addr)
}

// dgramLines are what QEMU, GNS3 and VirtualBox are given.
func dgramLines(d *door) string {
	kind, rest, _ := strings.Cut(d.addr, ":")
	card := " -device virtio-net-pci,netdev=net0,mac=" + randomMAC() + "\n"
	switch kind {
	case "unix":
		return fmt.Sprintf("guests plug in at %s; for QEMU 7.2 and later, with a path of its own for each:\n  -netdev %s%s", d.addr,
			shellQuote("dgram,id=net0,local.type=unix,local.path="+qemuEscape(rest)+".1,remote.type=unix,remote.path="+qemuEscape(rest)), card)
	case "udp":
		at, peer, _ := strings.Cut(rest, ",peer=")
		host, port, _ := net.SplitHostPort(at)
		mine, myPort := host, "10001"
		if peer != "" {
			mine, myPort, _ = net.SplitHostPort(peer)
		}
		return fmt.Sprintf("guests plug in at %s; for QEMU 7.2 and later, and VirtualBox, with a port of its own for each:\n  -netdev %s%s"+
			"  VBoxManage modifyvm VM --nic1 generic --nicgenericdrv1 UDPTunnel --nicproperty1 dest=%s --nicproperty1 sport=%s --nicproperty1 dport=%s\n",
			d.addr, shellQuote(fmt.Sprintf("dgram,id=net0,local.type=inet,local.host=%s,local.port=%s,remote.type=inet,remote.host=%s,remote.port=%s",
				mine, myPort, host, port)), card, host, myPort, port)
	}
	return fmt.Sprintf("guests plug in at %s\n", d.addr)
}

// bessLines are what User Mode Linux is given.
func bessLines(d *door) string {
	if path, ok := strings.CutPrefix(d.addr, "unix:"); ok {
		return fmt.Sprintf("guests plug in at %s:\n  linux.uml … %s\n", d.addr, shellQuote("vec0:transport=bess,dst="+path+",depth=128,gro=1,mac="+randomMAC()))
	}
	return fmt.Sprintf("guests plug in at %s\n", d.addr)
}
