// Package space makes network namespaces that leave nothing behind, for tests and benchmarks. A namespace is a thread
// that is in it: sockets that the thread makes and processes that it starts stay there, and the namespace ends with the
// thread and with what runs in it, also when this process is killed. It has no name, so no two runs can clash.
//
//	s, err := space.New()
//	if err != nil {
//		return err
//	}
//	defer s.Close()
//	err = s.IP("addr add 192.0.2.1/24 dev peer0\nlink set peer0 up")
//	err = s.Do(func() (err error) { l, err = net.Listen("tcp", "192.0.2.1:0"); return err })
//
// It needs root and iproute2.
package space

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Space is a network namespace.
type Space struct {
	work chan func()
	path string
	gone chan struct{}
}

// New makes one, with its loopback up. What is started in it runs on the named processors, on any when none is named.
func New(cpus ...int) (*Space, error) {
	s := &Space{work: make(chan func()), gone: make(chan struct{})}
	made := make(chan error)
	go func() {
		defer close(s.gone)
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- err
			return
		}
		if len(cpus) > 0 {
			var set unix.CPUSet
			for _, c := range cpus {
				set.Set(c)
			}
			if err := unix.SchedSetaffinity(0, &set); err != nil {
				made <- fmt.Errorf("processors %v: %w", cpus, err)
				return
			}
		}
		s.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		made <- nil
		for f := range s.work {
			f()
		}
	}()
	if err := <-made; err != nil {
		<-s.gone
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	if err := s.IP("link set lo up"); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close ends the thread. Processes with Pdeathsig that it started hear of it.
func (s *Space) Close() { close(s.work); <-s.gone }

// Path names the namespace for ip(8) and others, while it is there.
func (s *Space) Path() string { return s.path }

// Do calls f in the namespace. f must not end the goroutine (as t.Fatal does).
func (s *Space) Do(f func() error) error {
	done := make(chan error, 1)
	s.work <- func() { done <- f() }
	return <-done
}

// IP runs one ip(8) command a line.
func (s *Space) IP(lines string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(lines + "\n")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := s.Run(cmd); err != nil {
		return fmt.Errorf("ip: %w: %s\n%s", err, said.String(), lines)
	}
	return nil
}

// Start starts a process in the namespace.
func (s *Space) Start(cmd *exec.Cmd) error { return s.Do(cmd.Start) }

// Run runs a process in the namespace to its end.
func (s *Space) Run(cmd *exec.Cmd) error {
	if err := s.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// Sysctl sets a variable below net: /proc/sys/net is that of the thread that looks.
func (s *Space) Sysctl(name, value string) error {
	return s.Do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) })
}

// Dial opens a connection from the namespace.
func (s *Space) Dial(network, address string, most time.Duration) (c net.Conn, err error) {
	err = s.Do(func() error {
		d := net.Dialer{Timeout: most}
		c, err = d.Dial(network, address)
		return err
	})
	return c, err
}

// OpenTAP makes a TAP in the calling thread's namespace, which is gone once its descriptor is closed. Frames have no
// header before them. A Go file of it can be closed while it is read; a descriptor for another process blocks.
func OpenTAP(name string, blocking bool) (*os.File, error) {
	mode := unix.O_RDWR | unix.O_CLOEXEC
	if !blocking {
		mode |= unix.O_NONBLOCK
	}
	fd, err := unix.Open("/dev/net/tun", mode, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("TAP %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
