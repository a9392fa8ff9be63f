package main

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// stdio is a connection of two files, what comes in and what goes out: a pipe's ends, or two.
type stdio struct {
	in, out *os.File
	restore func() // gives back how they were found
	once    sync.Once
}

func (s *stdio) Read(b []byte) (int, error)  { return s.in.Read(b) }
func (s *stdio) Write(b []byte) (int, error) { return s.out.Write(b) }

func (s *stdio) Close() error {
	s.once.Do(func() {
		s.restore()
		s.in.Close()
		s.out.Close()
	})
	return nil
}

func (s *stdio) LocalAddr() net.Addr                { return dialled("stdio") }
func (s *stdio) RemoteAddr() net.Addr               { return dialled("stdio") }
func (s *stdio) SetReadDeadline(t time.Time) error  { return s.in.SetReadDeadline(t) }
func (s *stdio) SetWriteDeadline(t time.Time) error { return s.out.SetWriteDeadline(t) }
func (s *stdio) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

var errTerminal = usageError{errors.New("standard input or output is a terminal: stdio is a wire for a program, as in: dpipe vde_plug = vmnetd serve --vde stdio")}
