package main

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend/control"
)

// qosFlags are where synthetic-network's programs are answered.
type qosFlags struct {
	at       string
	listener net.Listener
	server   *http.Server
}

func (f *qosFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.at, "qos", "", "answer /qos and /top as synthetic-network does, for its programs, at `tcp:127.0.0.1:PORT`: the bad line of all guests of the first network, and who talks to whom; every user of this machine can change it there")
}

// open takes the port, before guests are there, who are kept from it.
func (f *qosFlags) open() (err error) {
	if f.at == "" {
		return nil
	}
	at, err := apiAddress(f.at)
	if err == nil && !at.Addr().IsLoopback() {
		err = usagef("want an address of the loopback: whoever reaches it may change every guest's line")
	}
	if err != nil {
		return usagef("--qos: %w", err)
	}
	f.listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	return err
}

// door is the port, which no guest may reach at the gateway's address.
func (f *qosFlags) door() (list []netip.AddrPort) {
	if f == nil || f.listener == nil {
		return nil
	}
	ap := f.listener.Addr().(*net.TCPAddr).AddrPort()
	return []netip.AddrPort{netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}
}

// serve answers until close.
func (f *qosFlags) serve(d *daemon) {
	if f == nil || f.listener == nil {
		return
	}
	f.server = &http.Server{Handler: control.QoS(d.nets[0]), ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, // programs of this machine
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug)}
	d.log.Info("answers as synthetic-network", "at", "http://"+f.listener.Addr().String()+"/qos")
	d.controlling.Go(func() {
		if err := f.server.Serve(f.listener); !errors.Is(err, http.ErrServerClosed) {
			d.failed <- err
		}
	})
}

func (f *qosFlags) close() {
	if f == nil {
		return
	}
	if f.server != nil {
		f.server.Close()
	} else if f.listener != nil {
		f.listener.Close()
	}
}
