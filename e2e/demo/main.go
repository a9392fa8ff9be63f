// Command demo is what "make demo" shows: a real Linux guest in QEMU on a network that vmnetd
// made, seen from both sides. It prints each thing as it happens, then a table of them, and exits
// 0 if all of them happened, else 1 with what did not.
//
//	make demo
//	go run ./e2e/demo -vmnetd bin/vmnetd
//
// It needs QEMU, no rights, and no network beyond Debian's mirror (and that only the first time).
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmnetd/vmnetd/e2e/vm"
)

const (
	// stepTime bounds one thing that is to be shown: the slowest, an IPv6 address, takes three
	// seconds (two duplicate address detections of a second each, RFC 4862 section 5.4).
	stepTime = 15 * time.Second
	// bootTime bounds the boot: two to five seconds without KVM.
	bootTime = 45 * time.Second
)

func main() {
	vmnetd := flag.String("vmnetd", "bin/vmnetd", "the vmnetd `binary`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := show(ctx, os.Stdout, *vmnetd)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

// demo is the run: what there is, and what came of each step.
type demo struct {
	out    io.Writer
	began  time.Time
	dir    string
	vmnetd string
	guest  *vm.Guest
	steps  []step
}

type step struct {
	name, got string
	err       error
}

func show(ctx context.Context, out io.Writer, vmnetd string) error {
	d := &demo{out: out, began: time.Now()}
	var err error
	if d.vmnetd, err = filepath.Abs(vmnetd); err != nil {
		return err
	}
	if _, err := os.Stat(d.vmnetd); err != nil {
		return fmt.Errorf("no vmnetd there (make build): %w", err)
	}
	if d.dir, err = os.MkdirTemp("", "vmnetd-demo-"); err != nil {
		return err
	}
	defer os.RemoveAll(d.dir)
	if err := d.boot(ctx); err != nil {
		return err
	}
	defer d.guest.Close()

	page, err := servePage()
	if err != nil {
		return err
	}
	defer page.Close()

	d.step(ctx, "DHCP lease", d.lease)
	d.step(ctx, "ping of the gateway", d.ping)
	d.step(ctx, "a name from the gateway", d.name)
	d.step(ctx, "the host's page in the guest", func(ctx context.Context) (string, error) { return d.hostPage(ctx, page) })
	d.step(ctx, "the guest's page on the host", d.guestPage)
	d.step(ctx, "IPv6 address", d.ipv6)
	var table string
	d.step(ctx, "flow table", func(ctx context.Context) (got string, err error) {
		got, table, err = d.flows(ctx, page)
		return got, err
	})
	d.step(ctx, "its end", d.end)
	return d.summary(ctx, table)
}

// say prints one line of what goes on.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "%6.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// slowly calls f and says what is waited for once it has taken a second.
func (d *demo) slowly(what string, f func()) {
	told := make(chan struct{})
	t := time.AfterFunc(time.Second, func() {
		d.say("     … %s", what)
		close(told)
	})
	f()
	if !t.Stop() {
		<-told // or the lines would come in the wrong order
	}
}

func (d *demo) step(ctx context.Context, name string, f func(context.Context) (string, error)) {
	if ctx.Err() != nil {
		return // interrupted: summary says so
	}
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	s := step{name: name}
	d.slowly(name, func() { s.got, s.err = f(ctx) })
	if s.err != nil {
		d.say("FAIL %s: %v", name, s.err)
	} else {
		d.say("ok   %s: %s", name, s.got)
	}
	d.steps = append(d.steps, s)
}

func (d *demo) control() string { return filepath.Join(d.dir, "control.sock") }

// boot starts "vmnetd run … -- qemu-system-x86_64 …" and waits for the guest.
func (d *demo) boot(ctx context.Context) error {
	kernel, initrd, err := vm.Image(ctx, d.say)
	if err != nil {
		return err
	}
	accel, why, err := vm.Accel(ctx, d.say)
	if err != nil {
		return err
	}
	qemu, version, err := vm.QEMU(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootTime, fmt.Errorf("it took longer than %v", bootTime))
	defer cancel()
	d.say("booting a guest (QEMU %s, %s: %s)", version, accel, why)
	// Port 0: whatever is free here. "vmnetd forward ls" tells which it became.
	run := []string{d.vmnetd, "run", "-p", "127.0.0.1:0:80", "--control", d.control(), "--"}
	d.say("$ %s %s …", strings.Join(append([]string{"vmnetd"}, run[1:]...), " "), filepath.Base(qemu))
	d.guest, err = vm.Start(context.WithoutCancel(ctx), vm.Config{
		Name: "demo", Wrap: run, Accel: accel, Kernel: kernel, Initrd: initrd,
	})
	if err != nil {
		return err
	}
	d.slowly("waiting for its kernel", func() { err = d.guest.WaitReady(ctx) })
	if err != nil {
		d.guest.Close()
		return err
	}
	d.say("it is up")
	return nil
}

func (d *demo) lease(ctx context.Context) (string, error) {
	l, err := d.guest.Lease(ctx)
	if err != nil {
		return "", err
	}
	if len(l.DNS) == 0 || !l.Router.IsValid() {
		return "", fmt.Errorf("the lease of %s has no gateway or no DNS server: %v", l.Addr, l.All)
	}
	var known []struct {
		Addr netip.Addr `json:"addr"`
	}
	if err := d.ask(ctx, &known, "leases", "ls"); err != nil {
		return "", err
	}
	for _, k := range known {
		if k.Addr == l.Addr.Addr() {
			return fmt.Sprintf("%s, gateway %s, DNS %s, for %v", l.Addr, l.Router, l.DNS[0], l.Time), nil
		}
	}
	return "", fmt.Errorf("the guest has %s, of which vmnetd leases ls knows nothing: %v", l.Addr, known)
}

func (d *demo) ipv6(ctx context.Context) (string, error) {
	all, err := d.guest.IPv6(ctx)
	if err != nil {
		return "", err
	}
	words := make([]string, len(all))
	for i, a := range all {
		words[i] = a.String()
	}
	return strings.Join(words, ", "), nil
}

func (d *demo) ping(ctx context.Context) (string, error) {
	l, err := d.guest.Lease(ctx)
	if err != nil {
		return "", err
	}
	out, err := d.guest.Output(ctx, fmt.Sprintf("ping -c 1 -W 5 %s", l.Router))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if _, t, ok := strings.Cut(line, " time="); ok {
			return fmt.Sprintf("%s answers in %s", l.Router, strings.TrimSpace(t)), nil
		}
	}
	return "", fmt.Errorf("no answer in %q", out)
}

// name asks the gateway's DNS for its own name for the host, and for a name of the real world
// where the host itself can resolve one.
func (d *demo) name(ctx context.Context) (string, error) {
	l, err := d.guest.Lease(ctx)
	if err != nil {
		return "", err
	}
	const own = "host.internal"
	addrs, err := d.lookup(ctx, own)
	if err != nil {
		return "", err
	}
	if len(addrs) == 0 || addrs[0] != l.Router.String() {
		return "", fmt.Errorf("%s is %v, want %s", own, addrs, l.Router)
	}
	got := fmt.Sprintf("%s is %s", own, addrs[0])

	const real = "deb.debian.org"
	short, cancel := context.WithTimeout(ctx, 2*time.Second) // a resolver that answers does so in milliseconds
	defer cancel()
	if _, err := net.DefaultResolver.LookupHost(short, real); err != nil {
		return got + " (this host resolves no others)", nil
	}
	addrs, err = d.lookup(ctx, real)
	if err != nil || len(addrs) == 0 {
		return got + fmt.Sprintf(" (%s did not resolve: %v)", real, err), nil
	}
	return fmt.Sprintf("%s, %s is %s", got, real, addrs[0]), nil
}

// lookup asks in the guest, with the server that its lease named.
func (d *demo) lookup(ctx context.Context, name string) (addrs []string, err error) {
	var r struct {
		Rcode, Error string
		Answer       []string
	}
	if err := d.guest.Decode(ctx, &r, "guest dns "+name+" A"); err != nil {
		return nil, err
	}
	if r.Error != "" || r.Rcode != "NOERROR" {
		return nil, fmt.Errorf("%s: %s%s", name, r.Rcode, r.Error)
	}
	for _, a := range r.Answer {
		if f := strings.Fields(a); len(f) == 5 && f[3] == "A" {
			addrs = append(addrs, f[4])
		}
	}
	return addrs, nil
}

// page is a web server on the host's loopback, with a text that nobody can guess.
type page struct {
	text string
	port int
	srv  *http.Server
}

func servePage() (*page, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &page{text: "hello from the host, " + rand.Text(), port: l.Addr().(*net.TCPAddr).Port}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, p.text) })
	// A page that does not end while anybody reads it, so that there is a conversation to show.
	mux.HandleFunc("GET /endless", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, p.text)
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		<-r.Context().Done()
	})
	p.srv = &http.Server{Handler: mux, ReadHeaderTimeout: stepTime}
	go p.srv.Serve(l)
	return p, nil
}

func (p *page) Close() error { return p.srv.Close() }

// hostPage goes by name: the host's loopback is where the name leads to.
func (d *demo) hostPage(ctx context.Context, p *page) (string, error) {
	url := fmt.Sprintf("http://host.internal:%d/", p.port)
	out, err := d.guest.Output(ctx, "wget -qO- "+url)
	if err != nil {
		return "", err
	}
	if strings.TrimSpace(out) != p.text {
		return "", fmt.Errorf("%s is %q in the guest, %q on the host", url, out, p.text)
	}
	return fmt.Sprintf("%s says %q", url, p.text), nil
}

// forwarded is where the port forward to the guest's web server listens.
func (d *demo) forwarded(ctx context.Context) (string, error) {
	var rules []struct {
		Rule struct {
			Host string `json:"host"`
			Port int    `json:"host_port"`
		} `json:"rule"`
	}
	if err := d.ask(ctx, &rules, "forward", "ls"); err != nil {
		return "", err
	}
	if len(rules) != 1 || rules[0].Rule.Port == 0 {
		return "", fmt.Errorf("want one port forward with its port: %+v", rules)
	}
	return fmt.Sprintf("%s:%d", rules[0].Rule.Host, rules[0].Rule.Port), nil
}

func (d *demo) guestPage(ctx context.Context) (string, error) {
	addr, err := d.forwarded(ctx)
	if err != nil {
		return "", err
	}
	url := "http://" + addr + "/"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	// A transport of our own: no proxy from the environment, no connection left over.
	tr := &http.Transport{DisableKeepAlives: true}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
	if err != nil {
		return "", err
	}
	if got, want := strings.TrimSpace(string(body)), "hello from demo"; res.StatusCode != http.StatusOK || got != want {
		return "", fmt.Errorf("%s: %s: %q, want %q", url, res.Status, got, want)
	}
	return fmt.Sprintf("%s says %q", url, bytes.TrimSpace(body)), nil
}

// flows holds one conversation open each way and finds both in the table.
func (d *demo) flows(ctx context.Context, p *page) (got, table string, err error) {
	l, err := d.guest.Lease(ctx)
	if err != nil {
		return "", "", err
	}
	out, err := d.guest.Start(ctx, fmt.Sprintf("exec wget -qO- http://%s:%d/endless", l.Router, p.port))
	if err != nil {
		return "", "", err
	}
	defer out.Kill()
	first := make(chan error, 1) // the first bytes have come: the conversation is open
	go func() {
		_, err := out.Stdout.Read(make([]byte, 1))
		first <- err
	}()
	select {
	case err := <-first:
		if err != nil {
			return "", "", fmt.Errorf("the page that does not end: %w", err)
		}
	case <-ctx.Done():
		return "", "", fmt.Errorf("the page that does not end: %w", ctx.Err())
	}
	addr, err := d.forwarded(ctx)
	if err != nil {
		return "", "", err
	}
	var dial net.Dialer
	in, err := dial.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", "", err
	}
	defer in.Close()

	for {
		if table, err = d.cli(ctx, "flows", "ls"); err != nil {
			return "", "", err
		}
		var rows []string
		for line := range strings.Lines(table) {
			if strings.Contains(line, fmt.Sprint(":", p.port)) || strings.Contains(line, l.Addr.Addr().String()+":80") {
				rows = append(rows, line)
			}
		}
		if len(rows) >= 2 {
			return fmt.Sprintf("vmnetd flows ls shows %d, one out to port %d, one in to port 80", len(rows), p.port), table, nil
		}
		select {
		case <-time.After(50 * time.Millisecond): // the forward opens its flow in its own time
		case <-ctx.Done():
			return "", table, fmt.Errorf("no conversation each way in\n%s", table)
		}
	}
}

// end switches the guest off: vmnetd run must end with its exit status and leave nothing.
func (d *demo) end(ctx context.Context) (string, error) {
	if err := d.guest.PowerOff(ctx); err != nil {
		return "", fmt.Errorf("vmnetd run ended with: %w", err)
	}
	if _, err := os.Stat(d.control()); !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("vmnetd run left its control socket: %v", err)
	}
	return "the guest is off, vmnetd run ended with exit status 0 and left no file", nil
}

// cli runs one of vmnetd's commands as a user would.
func (d *demo) cli(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, d.vmnetd, append(args, "--control", d.control())...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("vmnetd %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out.String(), nil
}

func (d *demo) ask(ctx context.Context, v any, args ...string) error {
	out, err := d.cli(ctx, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("vmnetd %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// summary prints the table and returns what did not happen.
func (d *demo) summary(ctx context.Context, table string) error {
	var missing []string
	fmt.Fprintln(d.out)
	for _, s := range d.steps {
		mark, got := "ok  ", s.got
		if s.err != nil {
			mark, missing = "FAIL", append(missing, s.name)
			got, _, _ = strings.Cut(s.err.Error(), "\n")
		}
		fmt.Fprintf(d.out, "  %s  %-28s  %s\n", mark, s.name, got)
	}
	if table != "" {
		fmt.Fprintf(d.out, "\n$ vmnetd flows ls\n%s", table)
	}
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if len(missing) > 0 {
		fmt.Fprintf(d.out, "\n%s\n", d.guest.Console())
		return fmt.Errorf("did not happen: %s", strings.Join(missing, ", "))
	}
	fmt.Fprintf(d.out, "\nAll of it happened, in %.0f seconds.\n", time.Since(d.began).Seconds())
	return nil
}
