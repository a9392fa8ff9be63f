//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// backend is a network that guests can be put behind.
type backend struct {
	name     string
	program  string
	askedBy  []string // what makes it tell its version
	many     bool     // one process is a network for any number of guests; else each guest has its own
	socket   bool     // speaks QEMU's stream framing; else it takes the TAP itself
	greeting string   // its socket takes one guest: the others say this at its API's first
	bigMTU   bool     // takes an MTU other than 1500
	guest4   netip.Addr
	gateway4 string
	gateway6 string // "" without IPv6
	dns      string
	start    func(b *bed, g *guest, p plan) (*proc, error)
	expose   func(api string, port int, guest netip.Addr) error // lets the host in, where start cannot

	path, version string
}

// plan is what a backend is started for.
type plan struct {
	sock    string // where guests plug in; sock.api is for its own API
	forward bool   // the host's iperfPort and echoPort on 127.0.0.1 lead to the same ports of the guest
	six     bool   // IPv6 is wanted
}

// fd00::/64 is the guests' IPv6 prefix everywhere: slirp4netns has no other.
var backends = []backend{
	{name: "vmnetd", program: "vmnetd", askedBy: []string{"version"}, many: true, socket: true, bigMTU: true,
		guest4: netip.MustParseAddr("10.0.2.15"), gateway4: "10.0.2.2", gateway6: "fd00::2", dns: "10.0.2.3", start: startVmnetd},
	{name: "passt", program: "passt", askedBy: []string{"--version"}, socket: true, bigMTU: true,
		guest4: netip.MustParseAddr("10.0.2.15"), gateway4: "10.0.2.2", gateway6: "fe80::1", dns: "10.0.2.3", start: startPasst},
	{name: "gvproxy", program: "gvproxy", askedBy: []string{"-version"}, many: true, socket: true, bigMTU: true,
		greeting: "POST /connect HTTP/1.1\r\nHost: gvproxy\r\n\r\n", // no answer comes to it
		guest4:   netip.MustParseAddr("192.168.127.2"), gateway4: "192.168.127.1", dns: "192.168.127.1", start: startGvproxy, expose: exposeGvproxy},
	{name: "slirp4netns", program: "slirp4netns", askedBy: []string{"--version"}, bigMTU: true,
		guest4: netip.MustParseAddr("10.0.2.15"), gateway4: "10.0.2.2", gateway6: "fd00::2", dns: "10.0.2.3", start: startSlirp4netns, expose: exposeSlirp4netns},
	{name: "libslirp", program: "qemu-system-x86_64", askedBy: []string{"--version"},
		guest4: netip.MustParseAddr("10.0.2.15"), gateway4: "10.0.2.2", gateway6: "fd00::2", dns: "10.0.2.3", start: startLibslirp},
}

func backendNames() (all []string) {
	for _, b := range backends {
		all = append(all, b.name)
	}
	return all
}

// find is where the program is.
func (be backend) find(o *options) (string, error) {
	if be.name != "vmnetd" {
		return exec.LookPath(be.program)
	}
	path, err := filepath.Abs(o.vmnetd)
	if err == nil {
		path, err = exec.LookPath(path)
	}
	if err != nil {
		return "", fmt.Errorf("%w (make build makes it; --vmnetd names another)", err)
	}
	return path, nil
}

// ask is its version: the first line it tells.
func (be backend) ask(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	said, err := exec.CommandContext(ctx, be.path, be.askedBy...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", be.path, strings.Join(be.askedBy, " "), err, bytes.TrimSpace(said))
	}
	line, _, _ := strings.Cut(string(said), "\n")
	if be.name == "libslirp" {
		line = "in " + line
	}
	return strings.TrimSpace(line), nil
}

// cannot is why a test is not for this backend, "" if it is.
func (be backend) cannot(t test, mtu int) string {
	switch {
	case mtu != 1500 && !be.bigMTU:
		return "not measured: it has no option for the MTU"
	case t.name == "watched" && be.name != "vmnetd":
		return "not measured: there is nothing to watch it by"
	case t.six && be.gateway6 == "":
		return "not measured: it has no IPv6"
	case t.together && !be.many:
		return "not measured: it is a network for one guest"
	}
	return ""
}

func startVmnetd(b *bed, g *guest, p plan) (*proc, error) {
	args := []string{b.be.path, "serve", "--log-level", "warn", "--control", p.sock + ".api", "--qemu", "unix:" + p.sock,
		"--mtu", strconv.Itoa(b.mtu), "--net6", "fd00::/64"}
	if p.forward {
		for _, port := range []int{iperfPort, echoPort} {
			args = append(args, "-p", fmt.Sprintf("tcp:127.0.0.1:%d-%s:%d", port, g.addr4, port))
		}
	}
	b.control = p.sock + ".api"
	return b.start(b.host, nil, true, args...)
}

func startPasst(b *bed, g *guest, p plan) (*proc, error) {
	// With -1 it ends with its guest: its change of user undoes what would end it with us.
	args := []string{b.be.path, "-f", "-q", "-1", "-s", p.sock, "-m", strconv.Itoa(b.mtu), "--no-map-gw",
		"-a", g.addr4.String(), "-n", "24", "-g", b.be.gateway4, "--dns-forward", b.be.dns}
	if p.six {
		args = append(args, "-a", g.addr6.String(), "-g", b.be.gateway6)
	} else {
		args = append(args, "-4")
	}
	if p.forward {
		args = append(args, "-t", fmt.Sprintf("127.0.0.1/%d,%d", iperfPort, echoPort))
	}
	return b.start(b.host, nil, true, args...)
}

func startGvproxy(b *bed, _ *guest, p plan) (*proc, error) {
	return b.start(b.host, nil, true, b.be.path, "-listen-qemu", "unix://"+p.sock, "-listen", "unix://"+p.sock+".api",
		"-mtu", strconv.Itoa(b.mtu), "-ssh-port", "-1")
}

func exposeGvproxy(api string, port int, guest netip.Addr) error {
	c := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", api)
		},
	}}
	body, err := json.Marshal(map[string]string{"local": fmt.Sprintf("127.0.0.1:%d", port), "remote": fmt.Sprintf("%s:%d", guest, port)})
	if err != nil {
		return err
	}
	r, err := c.Post("http://gvproxy/services/forwarder/expose", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(r.Body, 1<<10)) // only shown
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", r.Status, said)
	}
	return nil
}

func startSlirp4netns(b *bed, g *guest, p plan) (*proc, error) {
	args := []string{b.be.path, "--netns-type=path", "--mtu", strconv.Itoa(b.mtu), "--cidr", "10.0.2.0/24", "--api-socket", p.sock + ".api"}
	if p.six {
		args = append(args, "--enable-ipv6")
	}
	return b.start(b.host, nil, true, append(args, g.Path(), "tap0")...)
}

func exposeSlirp4netns(api string, port int, guest netip.Addr) error {
	c, err := net.DialTimeout("unix", api, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if err := json.NewEncoder(c).Encode(map[string]any{"execute": "add_hostfwd", "arguments": map[string]any{
		"proto": "tcp", "host_addr": "127.0.0.1", "host_port": port, "guest_addr": guest.String(), "guest_port": port}}); err != nil {
		return err
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil { // the end of the request
		return err
	}
	var answer struct{ Error *struct{ Desc string } }
	if err := json.NewDecoder(c).Decode(&answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return errors.New(answer.Error.Desc)
	}
	return nil
}

// startLibslirp starts a QEMU without a machine that passes frames between the TAP and its user network.
func startLibslirp(b *bed, g *guest, p plan) (*proc, error) {
	tap, err := b.tap(g)
	if err != nil {
		return nil, err
	}
	defer tap.Close()
	user := "user,id=u,ipv4=on,net=10.0.2.0/24"
	if p.six {
		user += ",ipv6=on,ipv6-net=fd00::/64"
	}
	if p.forward {
		for _, port := range []int{iperfPort, echoPort} {
			user += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-%s:%d", port, g.addr4, port)
		}
	}
	return b.start(b.host, []*os.File{tap}, true, b.be.path, "-M", "none", "-nodefaults", "-nographic", "-monitor", "none", "-serial", "none",
		"-netdev", "tap,id=t,fd=3", "-netdev", "hubport,id=h1,hubid=0,netdev=t", "-netdev", user, "-netdev", "hubport,id=h2,hubid=0,netdev=u")
}
