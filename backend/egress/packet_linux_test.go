package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lentBuffers counts what it lends.
type lentBuffers struct {
	mu        sync.Mutex
	cond      *sync.Cond
	got, back int
}

func (l *lentBuffers) Get() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.got++
	l.signal()
	return make([]byte, 2048)
}

func (l *lentBuffers) Put([]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.back++
	l.signal()
}

func (l *lentBuffers) signal() {
	if l.cond != nil {
		l.cond.Broadcast()
	}
}

func (l *lentBuffers) out() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.got - l.back
}

// wait returns when n loans were made and all of them given back: on Linux n
// readers are then asleep without a buffer.
func (l *lentBuffers) wait(t *testing.T, n int) {
	t.Helper()
	ctx := soon(t)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cond = sync.NewCond(&l.mu)
	defer context.AfterFunc(ctx, l.cond.Broadcast)()
	for l.got < n || l.got != l.back {
		if ctx.Err() != nil {
			t.Fatalf("%d buffers lent, %d back; want %d and all of them", l.got, l.back, n)
		}
		l.cond.Wait()
	}
}

func TestUDPClose(t *testing.T) {
	both(t, func(t *testing.T, lo netip.Addr) {
		pc := listenUDP(t, new(Host), UDPNetwork(lo), netip.AddrPort{})
		lent := &lentBuffers{}
		res := make(chan error)
		go func() {
			_, _, err := pc.ReadBorrowed(lent)
			res <- err
		}()
		lent.wait(t, 1)
		if err := pc.Close(); err != nil {
			t.Error(err)
		}
		if err := <-res; !errors.Is(err, net.ErrClosed) {
			t.Errorf("blocked read: %v", err)
		}
		if _, _, err := pc.ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
		if _, err := pc.WriteTo(nil, netip.AddrPortFrom(lo, 9)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write: %v", err)
		}
		if err := pc.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("close: %v", err)
		}
		if n := lent.out(); n != 0 {
			t.Errorf("%d buffers not given back", n)
		}
	})
}

// readError reads until an error of one destination comes.
func readError(t *testing.T, pc PacketConn) *UnreachableError {
	t.Helper()
	_, _, err := pc.ReadFrom(make([]byte, 2048))
	var u *UnreachableError
	if !errors.As(err, &u) {
		t.Fatalf("read: %v, want news of a destination", err)
	}
	return u
}

func TestUDPPortUnreachable(t *testing.T) {
	both(t, func(t *testing.T, lo netip.Addr) {
		good, bad := echoUDP(t, lo), closedUDP(t, lo)
		pc := listenUDP(t, new(Host), UDPNetwork(lo), netip.AddrPort{})
		if _, err := pc.WriteTo([]byte("x"), bad); err != nil {
			t.Fatal(err)
		}
		// The error is queued: the next write must not be the one to fail.
		if _, err := pc.WriteTo([]byte("y"), good); err != nil {
			t.Fatalf("a good destination, after a bad one: %v", err)
		}
		var echoes, errs int
		buf := make([]byte, 10)
		for echoes+errs < 2 {
			n, from, err := pc.ReadFrom(buf)
			var u *UnreachableError
			switch {
			case errors.As(err, &u):
				errs++
				if u.Dst != bad || u.Kind != PortUnreachable || u.From != lo || !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%v: kind %v for %v from %v", err, u.Kind, u.Dst, u.From)
				}
			case err != nil:
				t.Fatal(err)
			case from == good && string(buf[:n]) == "y":
				echoes++
			}
		}
		if echoes != 1 || errs != 1 {
			t.Errorf("%d echoes, %d errors", echoes, errs)
		}
	})
}

// One socket, a good destination and 50 that nobody listens at: no write to
// the good one fails, no datagram to it is lost, and each error names its own.
func TestUDPErrorsAmongTraffic(t *testing.T) {
	both(t, func(t *testing.T, lo netip.Addr) {
		const rounds = 500
		good := echoUDP(t, lo)
		pc := listenUDP(t, new(Host), UDPNetwork(lo), netip.AddrPort{})
		bad := map[netip.AddrPort]int{}
		var order []netip.AddrPort
		for range 50 {
			p := closedUDP(t, lo)
			bad[p] = 0
			order = append(order, p)
		}
		echoed := make(chan byte)
		var wg sync.WaitGroup
		wg.Go(func() {
			defer close(echoed)
			buf := make([]byte, 10)
			for {
				n, from, err := pc.ReadFrom(buf)
				var u *UnreachableError
				switch {
				case errors.Is(err, net.ErrClosed):
					return
				case errors.As(err, &u):
					bad[u.Dst]++
					if u.Kind != PortUnreachable {
						t.Errorf("%v", u)
					}
				case err != nil:
					t.Error(err)
					return
				case from == good && n == 1:
					echoed <- buf[0]
				}
			}
		})
		for i := range rounds {
			for j := range 3 {
				pc.WriteTo([]byte("x"), order[(i*3+j)%len(order)])
			}
			if _, err := pc.WriteTo([]byte{byte(i)}, good); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			select {
			case b := <-echoed:
				if b != byte(i) {
					t.Fatalf("round %d: echo %d", i, b)
				}
			case <-time.After(patience):
				t.Fatalf("round %d: no echo", i)
			}
		}
		pc.Close()
		wg.Wait()
		// Kernels limit the ICMP they send, so not each datagram need have
		// its error.
		total := 0
		for dst, n := range bad {
			total += n
			if dst.Addr() != lo || dst == good {
				t.Errorf("an error for %v, which was written to in vain never", dst)
			}
		}
		if len(bad) != len(order) {
			t.Errorf("errors for %d destinations, wrote to %d", len(bad), len(order))
		}
		if total == 0 {
			t.Error("no error at all")
		}
		t.Logf("%d datagrams to nobody, %d errors", rounds*3, total)
	})
}

func TestUDPBroadcast(t *testing.T) {
	pc := listenUDP(t, new(Host), "udp4", netip.AddrPort{})
	if _, err := pc.WriteTo([]byte("x"), netip.MustParseAddrPort("127.255.255.255:9")); Classify(err) != Prohibited {
		t.Errorf("broadcast: %v", err)
	}
}

// Thousands of idle sockets hold no buffer and, closed, leave no descriptor.
func TestUDPManySockets(t *testing.T) {
	const sockets = 2000
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur < sockets+100 {
		t.Skipf("at most %d descriptors here, %v", lim.Cur, err)
	}
	before := descriptors(t)
	lent := &lentBuffers{}
	var conns []PacketConn
	var wg sync.WaitGroup
	for i := range sockets {
		network := "udp4"
		if i%2 == 1 {
			network = "udp6"
		}
		pc, err := new(Host).ListenPacket(context.Background(), network, netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, pc)
		wg.Go(func() {
			for {
				if b, _, err := pc.ReadBorrowed(lent); err == nil {
					lent.Put(b)
				} else if errors.Is(err, net.ErrClosed) {
					return
				} else {
					t.Error(err)
				}
			}
		})
	}
	lent.wait(t, sockets)
	if n := descriptors(t); n < before+sockets {
		t.Errorf("%d descriptors with %d sockets open", n, sockets)
	}
	t.Logf("%d readers asleep, %d buffers lent meanwhile, %d out", sockets, lent.got, lent.out())
	for _, pc := range conns {
		pc.Close()
	}
	wg.Wait()
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

type oneBuffer []byte

func (b *oneBuffer) Get() []byte { return *b }
func (b *oneBuffer) Put([]byte)  {}

func TestUDPAllocates(t *testing.T) {
	lo := netip.MustParseAddr("127.0.0.1")
	pc := listenUDP(t, new(Host), "udp4", netip.AddrPortFrom(lo, 0))
	msg, dst, one := make([]byte, 100), pc.LocalAddr(), oneBuffer(make([]byte, 200))
	if n := testing.AllocsPerRun(100, func() {
		pc.WriteTo(msg, dst)
		pc.ReadBorrowed(&one)
	}); n > 0 {
		t.Errorf("%v allocations a datagram", n)
	}
}

// A listener whose backlog is full drops SYNs, as a black hole does.
func TestDialBlackHole(t *testing.T) {
	both(t, func(t *testing.T, lo netip.Addr) {
		dst := fullBacklog(t, lo)
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		for name, try := range map[string]func() error{
			"context": func() error {
				_, err := new(Host).DialContext(ctx, TCPNetwork(lo), dst)
				return err
			},
			"own limit": func() error {
				h := &Host{DialTimeout: 50 * time.Millisecond}
				_, err := h.DialContext(context.Background(), TCPNetwork(lo), dst)
				return err
			},
		} {
			start := time.Now()
			err := try()
			if Classify(err) != Timeout {
				t.Errorf("%s: %v: %v", name, err, Classify(err))
			}
			if d := time.Since(start); d > patience {
				t.Errorf("%s: took %v", name, d)
			}
		}
	})
}

func fullBacklog(t *testing.T, lo netip.Addr) netip.AddrPort {
	t.Helper()
	family := unix.AF_INET
	if lo.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, sockaddr(netip.AddrPortFrom(lo, 0))), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	var dst netip.AddrPort
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		dst = netip.AddrPortFrom(lo, uint16(sa.Port))
	case *unix.SockaddrInet6:
		dst = netip.AddrPortFrom(lo, uint16(sa.Port))
	}
	// A backlog of 0 takes one connection.
	c, err := new(Host).DialContext(soon(t), TCPNetwork(lo), dst)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return dst
}

func TestConnect(t *testing.T) {
	both(t, func(t *testing.T, lo netip.Addr) {
		open := listenTCP(t, lo, func(c *net.TCPConn) { c.Write([]byte("hi")); c.Close() })
		closed := closedTCP(t, lo)
		var d Descriptors = new(Host)
		fd, err := d.Connect(TCPNetwork(lo), open)
		if err != nil {
			t.Fatal(err)
		}
		if e := awaitConnect(t, fd); e != 0 {
			t.Errorf("connect: %v", e)
		}
		if fl, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); fl&unix.O_NONBLOCK == 0 {
			t.Error("it would block")
		}
		if fl, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); fl&unix.FD_CLOEXEC == 0 {
			t.Error("a child would inherit it")
		}
		if v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY); v != 1 {
			t.Errorf("TCP_NODELAY %d, %v", v, err)
		}
		poll(t, fd, unix.POLLIN)
		buf := make([]byte, 10)
		if n, err := unix.Read(fd, buf); string(buf[:max(0, n)]) != "hi" {
			t.Errorf("%q, %v", buf[:max(0, n)], err)
		}
		unix.Close(fd)

		const failures = 100
		before := descriptors(t)
		for range failures {
			fd, err := d.Connect(TCPNetwork(lo), closed)
			if err == nil {
				if e := awaitConnect(t, fd); e != 0 {
					err = e
				}
				unix.Close(fd)
			}
			if Classify(err) != Refused {
				t.Errorf("closed port: %v", err)
			}
		}
		// The listeners' goroutines may close one meanwhile.
		if n := descriptors(t); n > before+failures/2 {
			t.Errorf("%d descriptors, %d before", n, before)
		}
		if fd, err := d.Connect(TCPNetwork(lo), netip.MustParseAddrPort("[::ffff:127.0.0.1]:80")); fd != -1 || Classify(err) != Prohibited {
			t.Errorf("mapped: %d, %v", fd, err)
		}
	})
}

func poll(t *testing.T, fd int, events int16) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(fds, int(patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			t.Fatalf("poll: %d, %v", n, err)
		}
		return
	}
}

func awaitConnect(t *testing.T, fd int) syscall.Errno {
	t.Helper()
	poll(t, fd, unix.POLLOUT)
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		t.Fatal(err)
	}
	return syscall.Errno(v)
}

// The poller gives up for a moment; the datagram that waits is read all the same.
func TestReadPastThePoller(t *testing.T) {
	lo := netip.IPv6Loopback()
	pc := listenUDP(t, new(Host), "udp6", netip.AddrPortFrom(lo, 0)).(*packetConn)
	pc.rd.raw = gaveUp{pc.rd.raw}
	go pc.WriteTo([]byte("x"), pc.LocalAddr())
	if n, _, err := pc.ReadFrom(make([]byte, 10)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	pc.Close()
	if _, _, err := pc.ReadFrom(make([]byte, 10)); !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
}

type gaveUp struct{ syscall.RawConn }

func (g gaveUp) Read(func(uintptr) bool) error { return fmt.Errorf("not pollable") }
