package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/flowlog"
	"github.com/vmnetd/vmnetd/guestlog"
	"github.com/vmnetd/vmnetd/policy"
	"github.com/vmnetd/vmnetd/portforward"
)

// grace is how long conversations have to finish once the daemon is told to end: enough for what is in buffers,
// short enough that nobody waits for a shutdown.
const grace = time.Second

func serveCommand() *cobra.Command {
	var f serveFlags
	c := &cobra.Command{
		Use:   "serve [--qemu ADDRESS]... [-p RULE]...",
		Short: "Run a network that guests plug into",
		Long: `Run a network that guests plug into, any number, together or one after another, until SIGINT or SIGTERM.

With --config, a file says what flags say ('vmnetd config print' makes one); flags that are given all the same override it.
SIGHUP, or 'vmnetd reload', has it read again; without a file SIGHUP ends the daemon as SIGTERM does.

Guests come in at doors: a flag says how they speak, its address where. Each door takes any number of guests, but a
connected descriptor, stdio and what is dialled, which are one. Without any it is --qemu
unix:$XDG_RUNTIME_DIR/vmnetd/qemu.sock, and the lines for QEMU are printed.

  --qemu             QEMU's -netdev stream or socket, passt's clients, libkrun's unixstream; a guest that begins with
                     HyperKit's or gvforwarder's handshake is taken as one of --hyperkit
  --hyperkit         HyperKit, and gvforwarder with -url unix:///PATH, vsock://2:PORT/connect, or stdio: and a script that
                     is "exec vmnetd serve --hyperkit stdio"
  --vde              vde_plug, as in: dpipe vde_plug SWITCH = vmnetd serve --vde stdio
  --vfkit            vfkit, krunkit and libkrun's unixgram: any number of guests at one datagram socket; offloading=off where
                     no guest leaves frames unfinished, as libkrun's do with offloading=on
  --dgram            QEMU's -netdev dgram; UDP tunnels of GNS3 and VirtualBox, with peer=ADDRESS:PORT for one with that end
  --bess             User Mode Linux's vec0:transport=bess
  --netns            Linux network namespaces: an interface is made there, pid:PID or path:PATH, with the options ifname,
                     mac, host (the name that it leases under), userns (of a path) and configure=no

  unix:PATH          a socket file of mode 0600; one that is left over is replaced. On most hosts this is also how the
                     guests' vsock comes out: of Firecracker, vfkit and krunkit
  tcp:[HOST:]PORT    on 127.0.0.1 unless HOST says otherwise; port 0 is any free one. Frames are not authenticated:
                     every user of this machine, or of that network, can plug in
  vsock:[CID:]PORT   Linux's AF_VSOCK: guests of this host find it at vsock:2:PORT. CID is a number, any, local or host
  fd:N               a stream socket that vmnetd was started with, connected or listening
                     (of --vfkit, --dgram and --bess: a datagram or seqpacket socket)
  udp:[HOST:]PORT    of --dgram: as tcp
  fds:PATH           of --vfkit: descriptors of guests' sockets are handed over at a unix stream socket, as Lima's vz does
  stdio              standard input and output: one guest's wire. What is else printed goes to standard error
  dial:unix:PATH     the other way round: a VMM that listens, as QEMU does with server=on, is dialled and dialled again
  dial:tcp:HOST:PORT, dial:vsock:CID:PORT

A comma in an address is written twice; behind a single one stand options, NAME=VALUE. All have network=NAME, for a
network that --network makes: several networks in one daemon know nothing of one another, and may have the same prefix.

  vmnetd serve --qemu unix:/tmp/a.sock --network lab,net=10.7.0.0/24,isolate,forward=2222:22 --qemu unix:/tmp/b.sock,network=lab

With --mtu auto each guest finds its own: DHCP offers 65520 in a frame of that length, which cards such as virtio's take
and hear, and 1500 in a short one. A guest whose system does not ask DHCP for an MTU goes by its card's host_mtu.

Under systemd it takes the sockets that are handed over, each by its FileDescriptorName=: qemu, hyperkit, vde, vfkit, dgram or
bess, with an address's options behind it (qemu,network=lab), control, or api; and it tells when it is ready, how many guests
there are, that it is alive (WatchdogSec=) and that it ends.

Flags of the network have QEMU's names as well: --host, --dns, --dhcpstart, --ipv6-net, --dnssearch, --hostfwd, ...

At the end conversations get a second; a second signal ends them at once. Exit status: 0 after a signal, or when the
last guest of connected descriptors has gone; 1 if it failed, with the reason on stderr; 2 if the command line was wrong.`,
		Args: args(cobra.NoArgs),
	}
	f.add(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) (err error) {
		// Descriptors first: what we open ourselves must not be taken for one that we were handed.
		sv, err := f.sv.begin(true)
		if err != nil {
			return err
		}
		defer func() { sv.end(err) }()
		if err := f.readFile(c.Flags()); err != nil {
			return err
		}
		n, addrs, ctl := &f.n, f.addrs, f.control
		log := n.openLog(os.Stderr)
		defer log.Close()
		plans, err := f.plans(c.Flags(), log)
		if err != nil {
			return err
		}
		cfg := plans[0].cfg
		d := &daemon{log: cfg.Logger, profile: n.profile, policy: n.chosen, more: plans[1:], cage: confinement{cageFlags: f.box, drops: true}, service: sv}
		for i, framing := range framings {
			for _, a := range *addrs[i] {
				if err := checkNetwork(a, plans); err != nil {
					return usagef("--%s %s: %w", framing.name, a, err)
				}
			}
		}
		defer d.stop(0)
		// Descriptors first, as above. Then the control socket: to find another daemon there disturbs nobody, at a door it
		// would be a guest that comes and goes.
		if err := d.openDoors(addrs, handed); err != nil {
			return err
		}
		if err := d.activate(handedSockets(), addrs, plans); err != nil {
			return err
		}
		sv.connect(d.log)
		switch {
		case d.handedControl && ctl != "":
			return usagef("--control %s: systemd has handed over another control socket, %s: leave one of them out", ctl, d.control)
		case d.handedControl:
		default:
			if ctl == "" && os.Getenv(controlEnv) == "" {
				dir, err := makeRuntimeDir()
				if err != nil {
					return err
				}
				d.dirs = append(d.dirs, dir)
			}
			if err := d.listen(controlPath(ctl)); err != nil {
				return err
			}
		}
		if err := d.openAPI(&f.api); err != nil {
			return err
		}
		if err := f.qos.open(); err != nil {
			return err
		}
		d.qos = &f.qos
		if err := d.openDoors(addrs, func(a string) bool { return !handed(a) }); err != nil {
			return err
		}
		if len(d.doors) == 0 {
			dir, err := makeRuntimeDir()
			if err != nil {
				return err
			}
			d.dirs = append(d.dirs, dir)
			if err := d.open(&qemuFraming, defaultDoor(dir)); err != nil {
				return err
			}
		}
		signals, again := make(chan os.Signal, 2), make(chan os.Signal, 1)
		if d.reload, err = newReloader(d, &f, plans, log); err != nil {
			return err
		}
		ends := slices.Clone(endSignals)
		if d.reload != nil {
			notify(again, hangup)
			ends = slices.DeleteFunc(ends, func(s os.Signal) bool { return slices.Contains(hangup, s) })
		}
		notify(signals, ends)
		if d.capture, err = f.capture.open(); err != nil {
			return err
		}
		if err := f.flowLog.open(d); err != nil {
			return err
		}
		if err := d.start(cfg); err != nil {
			return err
		}
		d.tell(c)
		if err := sv.up(d); err != nil {
			return err
		}
		d.reload.ready()
		for {
			select {
			case <-again:
				d.controlling.Go(func() { d.reload.run(context.Background()) }) // it tells what came of it
			case s := <-signals:
				d.log.Info("ending", "signal", s)
				go func() {
					s := <-signals
					d.removeFiles()
					os.Exit(128 + signalNumber(s))
				}()
				d.stop(grace)
				return nil
			case err := <-d.failed:
				return err
			case <-d.idle:
				d.log.Info("ending: the last guest has gone and none can come")
				return nil
			}
		}
	}
	return c
}

// notify asks for signals, but for those that whoever started us wants ignored, as nohup does.
func notify(ch chan<- os.Signal, sigs []os.Signal) {
	for _, s := range sigs {
		if !signal.Ignored(s) {
			signal.Notify(ch, s)
		}
	}
}

// daemon is a network, or several, with doors and a control socket.
type daemon struct {
	log        *slog.Logger
	forgetting forgetting
	profile    bool         // --pprof
	qos        *qosFlags    // --qos
	guestLog   *slog.Logger // of the doors
	doors      []*door
	more       []plan       // of the networks beside the first
	policy     chosenPolicy // of the first
	policies   map[string]*policy.Policy
	plans      []plan             // of all, once they are made
	net        *backend.Network   // the first
	nets       []*backend.Network // all
	dirs       []string           // folders of ours, outermost first: they go if they are empty by then

	controlAt     *net.UnixListener
	control       string // its path
	api           []*apiPort
	removeControl func()
	cage          confinement
	handedControl bool           // it is systemd's
	capture       *daemonCapture // --capture
	flowLog       *flowlog.Log   // nil: none is wanted
	service       *service       // for who supervises us; nil: nobody

	mu     sync.Mutex // guards doors, nets and policies from when guests are let in
	reload *reloader  // nil without a file
	server *control.Server

	failed chan error    // what went wrong while running
	idle   chan struct{} // closed when no guest is here or can come

	doorsCtx, wiresCtx             context.Context
	guests                         chan struct{} // a place for each that may be there
	endDoors, endWires, endControl context.CancelFunc
	running                        sync.WaitGroup // doors and wires
	controlling                    sync.WaitGroup
	once                           sync.Once
}

func (d *daemon) open(f *framing, addr string) error {
	d.makeGuestLog()
	opened, err := openDoor(f, addr, d.guestLog)
	if err != nil {
		if errors.Is(err, errInUse) {
			err = hintError{err, "if it is a daemon that can be used as it is, 'vmnetd status' shows it; else name another place with --" + f.name + " and --control"}
		}
		return err
	}
	if opened.stdio && slices.ContainsFunc(d.doors, func(x *door) bool { return x.stdio }) {
		opened.only.close()
		return usagef("--%s %s: there is but one standard input, and another flag has it: name stdio in one of them", f.name, addr)
	}
	d.doors = append(d.doors, opened)
	return nil
}

func (d *daemon) makeGuestLog() {
	if d.guestLog == nil {
		d.guestLog = slog.New(guestlog.New(d.log.Handler()))
	}
}

// listen opens the control socket.
func (d *daemon) listen(path string) error {
	if strings.HasPrefix(path, "tcp:") {
		return usagef("control socket %s: the daemon's is a file; over TCP the API is --api %[1]s, beside it", path)
	}
	l, remove, err := listenUnix(path)
	if errors.Is(err, errInUse) {
		err = hintError{err, "a daemon runs there: 'vmnetd status' shows it; a second one needs places of its own, --control PATH and --qemu unix:PATH"}
	}
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	d.controlAt, d.control, d.removeControl = l, l.Addr().String(), remove
	return nil
}

// complete is the configuration of the plan with this number, with what it has of the daemon's.
func (d *daemon) complete(plans []plan, i int, doors []*door) backend.Config {
	c := plans[i].cfg
	c.Memory = plans[0].cfg.Memory // of the process
	c.AllowForward = d.allowForward
	c.Doors = d.closedToGuests()
	for _, door := range doors {
		if ap, ok := door.closedTo(); ok {
			c.Doors = append(c.Doors, ap)
		}
		if door.network == nameOf(c) || door.network == "" && i == 0 {
			door.mtu, door.told = c.LargeMTU, c.MTU
			if c.LargeNICs {
				door.told = c.LargeMTU
			}
		}
	}
	if c.Limits.Total > 0 { // one process's descriptors are all networks'
		c.Limits.Total = max(1, c.Limits.Total/len(plans))
	}
	return c
}

// makeNetwork makes one, with its policy. The network may be there with an error.
func (d *daemon) makeNetwork(p plan) (*backend.Network, error) {
	n, err := backend.New(p.cfg)
	if err != nil {
		var file *fs.PathError
		var forward *portforward.Error
		if errors.As(err, &file) || errors.As(err, &forward) { // the state folder's, or a port's
			return nil, err
		}
		return nil, usageError{err} // what else a Config can be wrong in came from flags
	}
	if err := d.setPolicy(n, p.policy); err != nil {
		return n, usageError{err}
	}
	return n, n.Keep(context.Background())
}

// start makes the network and lets guests in. After an error the daemon needs its stop all the same.
func (d *daemon) start(cfg backend.Config) (err error) {
	plans := append([]plan{{cfg: cfg, policy: d.policy}}, d.more...)
	d.plans = plans
	for i := range plans {
		plans[i].cfg = d.complete(plans, i, d.doors)
		n, err := d.makeNetwork(plans[i])
		if n != nil {
			d.nets = append(d.nets, n)
			d.net = d.nets[0]
		}
		if err != nil {
			return err
		}
	}
	if err := d.capture.begin(d.net); err != nil {
		return err
	}
	for _, n := range d.nets {
		d.logFlows(n)
	}
	srv := &control.Server{Networks: slices.Clone(d.nets), Policies: d.givenPolicies(), Listen: d.places(), Version: versionString(), Logger: cfg.Logger, Profile: d.profile, Sandbox: d.sandbox, FlowLog: d.flowLogStatus, API: d.apiPlaces()}
	d.server = srv
	if d.reload != nil {
		srv.Reload = d.reload.run
	}
	for _, door := range d.doors {
		if door.note != "" {
			d.log.Warn(door.note, "door", door.String())
		}
	}
	if err := d.service.opened(d); err != nil {
		return err
	}
	if !d.cage.late { // everything is open, and nobody has been let in yet
		if err := d.shutIn(0); err != nil {
			return err
		}
	}
	d.failed = make(chan error, len(d.doors)+len(d.api)+2) // the control socket, and --qos
	d.guests = make(chan struct{}, maxGuests())
	d.idle = make(chan struct{})
	var ctl context.Context
	d.doorsCtx, d.endDoors = context.WithCancel(context.Background())
	d.wiresCtx, d.endWires = context.WithCancel(context.Background())
	ctl, d.endControl = context.WithCancel(context.Background())
	d.controlling.Go(func() {
		if err := srv.Serve(ctl, d.controlAt); err != nil {
			d.failed <- err
		}
	})
	d.serveAPI(ctl, srv)
	d.qos.serve(d)
	for _, door := range d.doors {
		d.letIn(door)
	}
	d.controlling.Go(func() {
		d.running.Wait()
		close(d.idle)
	})
	forgetStart()
	return nil
}

// letIn has guests come in at a door, until its end is called or the daemon ends.
func (d *daemon) letIn(x *door) {
	ctx, end := context.WithCancel(d.doorsCtx)
	x.end, x.places, x.came, x.gone = end, d.guests, d.guestCame, d.service.touch
	d.running.Go(func() {
		defer end()
		if err := x.serve(ctx, d.wiresCtx, d.network(x.network)); err != nil {
			select {
			case d.failed <- err:
			default: // one is enough to end the daemon
			}
		}
	})
}

// places are where guests plug in, for status.
func (d *daemon) places() (list []string) {
	for _, door := range d.listDoors() {
		at := door.String()
		if door.network != "" {
			at += " for network " + door.network
		}
		list = append(list, at)
	}
	return list
}

// listDoors are those that there are now.
func (d *daemon) listDoors() []*door {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.doors)
}

// stop ends everything, conversations after patience, and takes our files away. It may be called again, and after a
// start that failed half way.
func (d *daemon) stop(patience time.Duration) {
	d.once.Do(func() {
		d.reload.stop()
		d.service.ending()
		d.qos.close()
		for _, door := range d.doors {
			if door.only != nil && d.endWires == nil {
				door.only.close()
			}
			door.close() // nobody new; the files go first, so that nobody tries
		}
		d.cage.swept.doors()
		if d.endDoors != nil {
			d.endDoors()
		}
		for _, p := range d.policies {
			p.Close() // nobody is there to answer what they ask
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		var ending sync.WaitGroup
		for _, n := range d.nets {
			ending.Go(func() {
				if err := n.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
					d.log.Warn("network ended badly", "error", err)
				}
				n.Close()
			})
		}
		ending.Wait()
		if d.flowLog != nil {
			d.flowLog.Close()
		}
		d.capture.close()
		cancel()
		if d.endDoors != nil {
			d.endWires()
			d.running.Wait()
			d.removeFiles()
			d.endControl()
			d.controlling.Wait()
			return
		}
		d.removeFiles()
		d.closeAPI()
		if d.controlAt != nil {
			d.controlAt.Close()
		}
	})
}

func (d *daemon) removeFiles() {
	for _, door := range d.listDoors() {
		door.remove()
	}
	if d.removeControl != nil {
		d.removeControl()
	}
	d.service.remove()
	for _, dir := range slices.Backward(d.dirs) {
		os.Remove(dir) // does nothing to one that is not empty
	}
	d.cage.swept.all()
	d.cage.library.close()
}

// tell prints how guests plug in, and what the system picked.
func (d *daemon) tell(c *cobra.Command) {
	out := c.OutOrStdout()
	if slices.ContainsFunc(d.doors, func(door *door) bool { return door.stdio }) || d.flowLog != nil && d.flowLog.File() == nil {
		out = c.ErrOrStderr()
	}
	for _, n := range d.nets {
		st, name := n.Status(), ""
		if len(d.nets) > 1 {
			name = st.Name + " "
		}
		fmt.Fprintf(out, "network %s%s and %s, gateway %s and %s\n", name, st.Prefix4, st.Prefix6, st.Gateway4, st.Gateway6)
		for _, r := range n.Bound() {
			fmt.Fprintf(out, "forward %s\n", r)
		}
	}
	for _, door := range d.doors {
		if door.in != nil {
			if door.network != "" && len(d.nets) > 1 {
				fmt.Fprintf(out, "network %s: ", door.network)
			}
			fmt.Fprint(out, door.framing.lines(door.shown()))
		}
	}
	flag := ""
	if d.control != controlPath("") {
		flag = " --control " + shellQuote(d.control)
	}
	fmt.Fprintf(out, "control %s\n  vmnetd status%s\n", d.control, flag)
	d.tellAPI(out)
}

// qemuEscape doubles commas, which end a value in QEMU's option syntax.
func qemuEscape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func shellQuote(s string) string {
	if strings.ContainsFunc(s, func(c rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+,./:@%[]", c)
	}) {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}

// randomMAC is in the block that QEMU and libvirt use, 52:54:00, locally administered.
func randomMAC() string {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0}
	rand.Read(mac[3:])
	return mac.String()
}
