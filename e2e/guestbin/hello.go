//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/vmnetd/vmnetd/e2e/traffic"
)

// helloReport is how far a conversation came that says whom it is for.
type helloReport struct {
	Connected bool    `json:"connected"`
	Answered  bool    `json:"answered"` // by the server, once it had heard the name
	Said      string  `json:"said,omitempty"`
	Error     string  `json:"error,omitempty"`
	Seconds   float64 `json:"seconds"`
}

// greet opens a conversation and says in its first bytes whom it is for.
func greet(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("hello", flag.ContinueOnError)
	as := fs.String("as", "tls", "how: `tls`, http, text, or udp for one datagram")
	name := fs.String("name", "", "whom: the TLS server name or HTTP's Host; none if empty")
	file := fs.String("hex", "", "the datagram, as hex in a `FILE`, - for standard input; lines that begin with # say nothing")
	timeout := fs.Duration("timeout", 10*time.Second, "for each step")
	if err := parse(fs, args, "ADDR:PORT", 1, 1); err != nil {
		return err
	}
	var r helloReport
	began := time.Now()
	said, err := func() (string, error) {
		network := "tcp"
		payload := []byte("hello\n")
		if *as == "udp" {
			network = "udp"
			if *file != "" {
				var err error
				if payload, err = readHex(*file); err != nil {
					return "", err
				}
			}
		}
		c, err := (&net.Dialer{Timeout: *timeout}).DialContext(ctx, network, fs.Arg(0))
		if err != nil {
			return "", err
		}
		defer c.Close()
		r.Connected = true
		c.SetDeadline(time.Now().Add(*timeout))
		switch *as {
		case "tls":
			t := tls.Client(c, &tls.Config{ServerName: *name, InsecureSkipVerify: true}) // whose certificate it is, is not the question
			if err := t.HandshakeContext(ctx); err != nil {
				return "", err
			}
			c = t
		case "http":
			payload = []byte("GET / HTTP/1.0\r\n\r\n")
			if *name != "" {
				payload = fmt.Appendf(nil, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", *name)
			}
		case "text", "udp":
		default:
			return "", fmt.Errorf("-as %s: want tls, http, text or udp", *as)
		}
		if _, err := c.Write(payload); err != nil {
			return "", err
		}
		if *as == "http" {
			return readHTTP(c)
		}
		b := make([]byte, 2048)
		n, err := c.Read(b)
		if n > 0 {
			err = nil
		}
		return strings.ToValidUTF8(string(b[:min(n, 64)]), "?"), err
	}()
	r.Seconds = time.Since(began).Seconds()
	if err != nil {
		r.Error = traffic.End(err)
	} else {
		r.Answered, r.Said = true, said
	}
	return say(r)
}

func readHTTP(c net.Conn) (string, error) {
	b, err := io.ReadAll(io.LimitReader(c, 1<<16))
	head, body, ok := bytes.Cut(b, []byte("\r\n\r\n"))
	if err == nil && (!ok || !bytes.HasPrefix(head, []byte("HTTP/1."))) {
		err = io.ErrUnexpectedEOF
	}
	return string(body), err
}

func readHex(file string) ([]byte, error) {
	in := io.Reader(os.Stdin)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, 1<<20))
	if err != nil {
		return nil, err
	}
	var b []byte
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		part, err := hex.DecodeString(strings.TrimSpace(line))
		if err != nil {
			return nil, err
		}
		b = append(b, part...)
	}
	return b, nil
}
