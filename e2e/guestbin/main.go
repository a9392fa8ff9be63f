//go:build linux

// Command guestbin is the tests' own program inside a guest, installed there as /bin/guest. It
// runs what the host asks for (agent), and sends and checks traffic. Everything but agent prints
// one JSON object a line, so that a test can read it without guessing:
//
//	guest agent                          run commands that come in over the virtio-serial port
//	guest tcp [flags] ADDR:PORT          one TCP conversation
//	guest short [flags] ADDR:PORT        many short TCP conversations, counted
//	guest stream [flags] ADDR:PORT       an endless numbered stream, with progress lines
//	guest listen [flags] MODE ADDR:PORT  a TCP server: echo sink source hold reset stream check
//	guest udp [flags] ADDR:PORT          datagrams, and their echoes counted
//	guest udp-echo ADDR:PORT             a UDP echo server
//	guest hello [flags] ADDR:PORT        a conversation whose first bytes say whom it is for
//	guest dns [flags] NAME [TYPE]        one DNS query of any type
//	guest dhcp6 [flags] IFACE            a DHCPv6 exchange
//	guest ra [flags] IFACE               a router solicitation and what came back
//	guest tap [flags] ADDRESS            frames between a TAP and a stream, as gvforwarder
//
// Every command has -h. The exit status is 1 when the thing itself could not be tried; how a
// conversation ended is not a failure but the answer.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sort"
	"strings"
	"syscall"
)

var commands = map[string]func(ctx context.Context, args []string) error{
	"agent":    agent,
	"tcp":      tcp,
	"short":    short,
	"stream":   stream,
	"listen":   listen,
	"udp":      udp,
	"udp-echo": udpEcho,
	"hello":    greet,
	"dns":      query,
	"dhcp6":    dhcp6,
	"ra":       solicitRouter,
	"tap":      tap,
	"scan":     scan,
}

func main() {
	names := make([]string, 0, len(commands))
	for n := range commands {
		names = append(names, n)
	}
	sort.Strings(names)
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: guest", strings.Join(names, "|"), "...")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := commands[os.Args[1]](ctx, os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "guest %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

// say prints one line of JSON.
func say(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }

// parse reads flags and wants between least and most arguments after them.
func parse(fs *flag.FlagSet, args []string, what string, least, most int) error {
	fs.Usage = func() {
		fmt.Fprintf(fs.Output(), "usage: guest %s [flags] %s\n", fs.Name(), what)
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() < least || fs.NArg() > most {
		return fmt.Errorf("want %s, got %q", what, fs.Args())
	}
	return nil
}
