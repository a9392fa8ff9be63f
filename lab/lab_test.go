package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmnetd/vmnetd/lab/topology"
)

// actor is a machine that does as the test says: in no time, or in a time that nobody waits for (synctest).
type actor struct {
	stage *stage
	b     *bench
	name  string

	mu    sync.Mutex
	end   chan struct{}
	exit  int
	err   error
	begun int
}

// stage has the actors, and what happened to them in order.
type stage struct {
	mu     sync.Mutex
	log    []string
	actors map[string]*actor

	start     func(ctx context.Context, a *actor) error // nil: at once
	begin     func(a *actor) error
	exec      func(ctx context.Context, a *actor, c Command) (int, error)
	dial      func(a *actor, port string) error
	reachable func(a *actor) error
	stop      func(ctx context.Context, a *actor) error
}

func (s *stage) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, fmt.Sprintf(format, args...))
}

func (s *stage) notes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

func (s *stage) actor(name string) *actor {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.actors[name]
}

func (s *stage) make(b *bench) (machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &actor{stage: s, b: b, name: b.node.Name, end: make(chan struct{})}
	if s.actors == nil {
		s.actors = map[string]*actor{}
	}
	s.actors[a.name] = a
	return a, nil
}

func (a *actor) start(ctx context.Context) error {
	a.stage.note("start %s", a.name)
	if a.stage.start != nil {
		return a.stage.start(ctx, a)
	}
	return nil
}

func (a *actor) begin(context.Context) error {
	a.stage.note("begin %s", a.name)
	a.mu.Lock()
	a.begun++
	if a.begun > 1 {
		a.end = make(chan struct{})
	}
	a.mu.Unlock()
	if a.stage.begin != nil {
		return a.stage.begin(a)
	}
	return nil
}

// ends is what the actor does when its command ends.
func (a *actor) ends(exit int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.exit, a.err = exit, err
	close(a.end)
}

func (a *actor) exec(ctx context.Context, c Command) (int, error) {
	a.stage.note("exec %s %s", a.name, strings.Join(c.Args, " "))
	if a.stage.exec != nil {
		return a.stage.exec(ctx, a, c)
	}
	return 0, nil
}

func (a *actor) dial(ctx context.Context, network, port string) (net.Conn, error) {
	if a.stage.dial != nil {
		if err := a.stage.dial(a, port); err != nil {
			return nil, err
		}
	}
	c, far := net.Pipe()
	far.Close()
	return c, nil
}

func (a *actor) reachable(context.Context) error {
	if a.stage.reachable != nil {
		return a.stage.reachable(a)
	}
	return nil
}

func (a *actor) pids() []int                 { return []int{4711} }
func (a *actor) spaces() ([]*os.File, error) { return nil, nil }

func (a *actor) ended() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.end
}

func (a *actor) status() (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.exit, a.err
}

func (a *actor) stop(ctx context.Context) error {
	a.stage.note("stop %s", a.name)
	if a.stage.stop != nil {
		return a.stage.stop(ctx, a)
	}
	return nil
}

// play is a lab of actors.
func play(t *testing.T, s *stage) *Lab {
	t.Helper()
	kinds := map[topology.Kind]func(*bench) (machine, error){}
	for _, k := range []topology.Kind{topology.KindNetns, topology.KindQEMU, topology.KindUML, topology.KindExternal} {
		kinds[k] = s.make
	}
	l, err := New(Config{Sockets: t.TempDir(), Keep: t.TempDir(), Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), makers: kinds})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func actorNode(name string, more func(*topology.Node)) topology.Node {
	n := topology.Node{Name: name, Base: name, Kind: topology.KindNetns, Command: []string{"sleep", "inf"}}
	if more != nil {
		more(&n)
	}
	return n
}

func top(nodes ...topology.Node) *topology.Lab {
	return &topology.Lab{Name: "play", Nodes: nodes}
}

func apply(t *testing.T, l *Lab, top *topology.Lab) []topology.Change {
	t.Helper()
	changes, err := l.Apply(t.Context(), top)
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

func states(l *Lab) string {
	var s []string
	for _, n := range l.Status().Nodes {
		s = append(s, n.Name+" "+string(n.State))
	}
	return strings.Join(s, ", ")
}

// bubble runs a test in a time of its own.
func bubble(t *testing.T, do func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, do)
}

func TestStartOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &stage{start: func(ctx context.Context, a *actor) error {
			time.Sleep(time.Second)
			return nil
		}}
		l := play(t, s)
		begin := time.Now()
		apply(t, l, top(
			actorNode("web", func(n *topology.Node) { n.After = []string{"db", "cache"} }),
			actorNode("db", func(n *topology.Node) { n.Setup = []string{"one", "two"} }),
			actorNode("cache", nil),
			actorNode("alone", nil),
		))
		synctest.Wait()
		if got := states(l); got != "web waiting, db starting, cache starting, alone starting" {
			t.Errorf("at first: %s", got)
		}
		if w := l.Node("web").Status().WaitsFor; w != "db" && w != "cache" {
			t.Errorf("web waits for %q", w)
		}
		if err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d < 2*time.Second || d > 3*time.Second {
			t.Errorf("two nodes one behind the other, and others beside, of a second each, took %v", d)
		}
		notes := s.notes()
		for _, order := range [][]string{
			{"start db", "exec db sh -c one", "exec db sh -c two", "begin db", "start web"},
			{"begin cache", "start web", "begin web"},
		} {
			at := -1
			for _, step := range order {
				i := slices.Index(notes, step)
				if i <= at {
					t.Errorf("%q is at %d, behind %d: %q", step, i, at, notes)
				}
				at = i
			}
		}
		st := l.Node("web").Status()
		if st.ReadyAfter < time.Second || st.ReadyAfter > 2*time.Second {
			t.Errorf("web was ready %v after its start, which was late", st.ReadyAfter)
		}
	})
}

// Only so many virtual machines boot at once; and one that waits for another does not keep it from booting.
func TestBootsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		booting, most := 0, 0
		up := map[string]bool{}
		s := &stage{}
		s.start = func(ctx context.Context, a *actor) error {
			mu.Lock()
			booting++
			most = max(most, booting)
			mu.Unlock()
			go func() {
				time.Sleep(5 * time.Second)
				mu.Lock()
				booting--
				up[a.name] = true
				mu.Unlock()
			}()
			return nil
		}
		s.reachable = func(a *actor) error {
			mu.Lock()
			defer mu.Unlock()
			if !up[a.name] {
				return errors.New("boots")
			}
			return nil
		}
		s.dial = func(a *actor, port string) error { // each waits for the last of all
			mu.Lock()
			defer mu.Unlock()
			if !up["vm9"] {
				return errors.New("connection refused")
			}
			return nil
		}
		l := play(t, s)
		var nodes []topology.Node
		for i := range 10 {
			nodes = append(nodes, topology.Node{Name: fmt.Sprintf("vm%d", i), Kind: topology.KindQEMU, Agent: true,
				Wait: []topology.Condition{{Kind: "tcp", Arg: "80"}}})
		}
		apply(t, l, top(nodes...))
		if err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if most != cap(l.boots) {
			t.Errorf("%d booted at once, want %d", most, cap(l.boots))
		}
	})
}

func TestFailures(t *testing.T) {
	for _, d := range []struct {
		name  string
		node  func(n *topology.Node)
		stage func(s *stage)
		want  string // in the error
		after time.Duration
	}{
		{"start", nil, func(s *stage) {
			s.start = func(context.Context, *actor) error { return errors.New("no such image") }
		}, "web: no such image", 0},
		{"setup", func(n *topology.Node) { n.Setup = []string{"true", "ip addr add x"} }, func(s *stage) {
			s.exec = func(_ context.Context, _ *actor, c Command) (int, error) {
				if c.Args[2] == "true" {
					return 0, nil
				}
				io.WriteString(c.Stderr, "Error: any valid prefix is expected\n")
				return 1, nil
			}
		}, "web: setup, line 2 (ip addr add x): exit status 1: Error: any valid prefix is expected", 0},
		{"timeout", func(n *topology.Node) {
			n.Wait = []topology.Condition{{Kind: "tcp", Arg: "80"}}
			n.Timeout = 20 * time.Second
		}, func(s *stage) {
			s.begin = func(a *actor) error { io.WriteString(a.b.console, "loading…\n"); return nil }
			s.dial = func(*actor, string) error { return errors.New("connection refused") }
		}, "web: after 20s still waiting for tcp:80: connection refused; its console's last line: loading…", 20 * time.Second},
		{"default timeout", func(n *topology.Node) { n.Wait = []topology.Condition{{Kind: "log", Arg: "never"}} }, nil,
			"web: after 1m0s still waiting for log:never", time.Minute},
		{"hangs in start", nil, func(s *stage) {
			s.start = func(ctx context.Context, _ *actor) error { <-ctx.Done(); return ctx.Err() }
		}, "web: after 1m0s still waiting for its machine to start", time.Minute},
		{"ends before it is ready", func(n *topology.Node) { n.Wait = []topology.Condition{{Kind: "tcp", Arg: "80"}} }, func(s *stage) {
			s.begin = func(a *actor) error { io.WriteString(a.b.console, "bind: in use\n"); a.ends(3, nil); return nil }
			s.dial = func(*actor, string) error { return errors.New("connection refused") }
		}, "web: its command has ended with status 3; its console's last line: bind: in use", 0},
		{"killed", nil, func(s *stage) {
			s.begin = func(a *actor) error { a.ends(-1, errors.New("signal: killed")); return nil }
		}, "web: its command has ended: signal: killed", 0},
		{"a machine that ends", func(n *topology.Node) { n.Kind, n.Agent = topology.KindQEMU, true }, func(s *stage) {
			s.start = func(_ context.Context, a *actor) error { a.ends(0, nil); return nil }
			s.reachable = func(*actor) error { return errors.New("no answer") }
		}, "web: its machine has ended before it was ready", 0},
		{"exit", func(n *topology.Node) { n.Wait = []topology.Condition{{Kind: "exit"}} }, func(s *stage) {
			s.begin = func(a *actor) error { go func() { time.Sleep(time.Second); a.ends(7, nil) }(); return nil }
		}, "web: its command has ended with status 7", time.Second},
		{"what cannot be", func(n *topology.Node) { n.Wait = []topology.Condition{{Kind: "ping", Arg: "10.0.0.1"}} }, func(s *stage) {
			s.exec = func(context.Context, *actor, Command) (int, error) {
				return 0, fmt.Errorf("no agent: %w", errors.ErrUnsupported)
			}
		}, "web: ping:10.0.0.1: no agent", 0},
		{"a bug in start", nil, func(s *stage) {
			s.start = func(context.Context, *actor) error { panic("oops") }
		}, "web: a bug of vmnetd's: oops", 0},
		{"a bug in what it waits for", func(n *topology.Node) { n.Wait = []topology.Condition{{Kind: "tcp", Arg: "80"}} }, func(s *stage) {
			s.dial = func(*actor, string) error { panic("oops") }
		}, "web: a bug of vmnetd's: oops", 0},
	} {
		t.Run(d.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := &stage{}
				if d.stage != nil {
					d.stage(s)
				}
				// Others go on, and those that start after it do not wait for ever.
				only := func(f func(context.Context, *actor) error) func(context.Context, *actor) error {
					return func(ctx context.Context, a *actor) error {
						if f == nil || a.name != "web" {
							return nil
						}
						return f(ctx, a)
					}
				}
				s.start = only(s.start)
				if reachable := s.reachable; reachable != nil {
					s.reachable = func(a *actor) error {
						if a.name != "web" {
							return nil
						}
						return reachable(a)
					}
				}
				if begin := s.begin; begin != nil {
					s.begin = func(a *actor) error {
						if a.name != "web" {
							return nil
						}
						return begin(a)
					}
				}
				l := play(t, s)
				lab := top(actorNode("web", d.node), actorNode("other", nil),
					actorNode("behind", func(n *topology.Node) { n.After = []string{"web"} }))
				begin := time.Now()
				apply(t, l, lab)
				err := l.Wait(t.Context())
				if err == nil || !strings.Contains(err.Error(), d.want) {
					t.Errorf("got %v, want %s", err, d.want)
				}
				if took := time.Since(begin); took < d.after || took > d.after+2*time.Second {
					t.Errorf("that took %v, want %v", took, d.after)
				}
				if err != nil && !strings.Contains(err.Error(), "behind: not started: web, which it starts after, has failed") {
					t.Errorf("of the node behind it is said: %v", err)
				}
				if got := states(l); got != "web failed, other ready, behind failed" {
					t.Errorf("afterwards: %s", got)
				}
				// The same again starts what has failed, and nothing else.
				changes := apply(t, l, lab)
				slices.SortFunc(changes, func(a, b topology.Change) int { return strings.Compare(a.What, b.What) })
				want := []topology.Change{{What: "node behind", Action: "start", Why: "it had failed"}, {What: "node web", Action: "start", Why: "it had failed"}}
				if !slices.Equal(changes, want) {
					t.Errorf("the same again: %v", changes)
				}
				if err := l.Close(); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Minute) // what actors still do
				notes := s.notes()
				count := func(what string) (n int) {
					for _, x := range notes {
						if x == what {
							n++
						}
					}
					return n
				}
				if count("start other") != 1 || count("stop other") != 1 {
					t.Errorf("the other was started %d times and stopped %d times", count("start other"), count("stop other"))
				}
				if a, b := count("start web"), count("stop web"); a != b || a == 0 {
					t.Errorf("web was started %d times and stopped %d times", a, b)
				}
			})
		})
	}
}

// Others' time runs out while some still wait: the error says what for.
func TestWaitIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &stage{dial: func(*actor, string) error { return errors.New("connection refused") }}
		l := play(t, s)
		apply(t, l, top(actorNode("web", func(n *topology.Node) { n.Wait = []topology.Condition{{Kind: "tcp", Arg: "80"}} })))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := l.Wait(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "web: still starting, for tcp:80: connection refused") {
			t.Errorf("got %v", err)
		}
		if st := l.Node("web").Status(); st.State != topology.StateStarting || st.WaitsFor != "tcp:80: connection refused" {
			t.Errorf("it is %s and waits for %q", st.State, st.WaitsFor)
		}
	})
}

func TestConditions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		tries, gaps, last := map[string]int{}, []time.Duration(nil), time.Time{}
		from := time.Now()
		s := &stage{
			dial: func(_ *actor, port string) error {
				mu.Lock()
				defer mu.Unlock()
				tries["tcp"+port]++
				if !last.IsZero() {
					gaps = append(gaps, time.Since(last))
				}
				last = time.Now()
				if time.Since(from) < 10*time.Second {
					return errors.New("connection refused")
				}
				return nil
			},
			exec: func(_ context.Context, _ *actor, c Command) (int, error) {
				mu.Lock()
				defer mu.Unlock()
				what := strings.Join(c.Args, " ")
				tries[what]++
				if tries[what] < 3 {
					return 1, nil
				}
				return 0, nil
			},
		}
		l := play(t, s)
		apply(t, l, top(actorNode("web", func(n *topology.Node) {
			n.Wait = []topology.Condition{{Kind: "address"}, {Kind: "agent"}, {Kind: "tcp", Arg: "80"}, {Kind: "exec", Arg: "test -e /x"},
				{Kind: "ping", Arg: "10.0.0.9"}, {Kind: "tcp", Arg: "db:5432"}, {Kind: "log", Arg: "^started$"}, {Kind: "exit"}}
		})))
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if w := l.Node("web").Status().WaitsFor; w != "log:^started$" {
			t.Fatalf("it waits for %q", w)
		}
		io.WriteString(l.Node("web").Console(), "started\n")
		synctest.Wait()
		if w := l.Node("web").Status().WaitsFor; w != "its end" {
			t.Fatalf("it waits for %q", w)
		}
		s.actor("web").ends(0, nil)
		if err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := states(l); got != "web ended" {
			t.Errorf("it is %s", got)
		}
		if changes := apply(t, l, l.Topology()); len(changes) != 0 {
			t.Errorf("what has done what it is for is started again: %v", changes)
		}
		for _, what := range []string{"sh -c test -e /x", "ping -c 1 -W 1 10.0.0.9", "nc -z -w 2 db 5432"} {
			if tries[what] != 3 {
				t.Errorf("%q was run %d times", what, tries[what])
			}
		}
		if !slices.IsSorted(gaps) || gaps[0] != pauseFirst || gaps[len(gaps)-1] != pauseMost {
			t.Errorf("the pauses between tries are %v", gaps)
		}
	})
}

func TestRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		var times []time.Time
		s := &stage{begin: func(a *actor) error {
			mu.Lock()
			defer mu.Unlock()
			times = append(times, time.Now())
			if len(times) <= 6 {
				a.ends(len(times)%2, nil)
			}
			return nil
		}}
		l := play(t, s)
		apply(t, l, top(actorNode("web", func(n *topology.Node) { n.Restart = true })))
		time.Sleep(time.Minute)
		synctest.Wait()
		if st := l.Node("web").Status(); st.State != topology.StateReady || st.Restarts != 6 {
			t.Errorf("it is %s after %d restarts", st.State, st.Restarts)
		}
		for i, want := 1, restartFirst; i < len(times); i, want = i+1, 2*want {
			if got := times[i].Sub(times[i-1]); got != want {
				t.Errorf("restart %d came after %v, want %v", i, got, want)
			}
		}
		// After a good while it is as new.
		mu.Lock()
		times = times[:0]
		mu.Unlock()
		died := time.Now()
		s.actor("web").ends(1, nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		mu.Lock()
		if got := times[0].Sub(died); got != restartFirst {
			t.Errorf("after a good while it was started again after %v", got)
		}
		mu.Unlock()
		// Between two, it is stopped at once.
		s.actor("web").ends(1, nil)
		synctest.Wait()
		begin := time.Now()
		l.Close()
		if d := time.Since(begin); d != 0 {
			t.Errorf("to close took %v", d)
		}
	})
}

// A bug that is met where a machine is stopped, or one that does not stop, holds up nobody for ever.
func TestStopIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &stage{stop: func(ctx context.Context, a *actor) error {
			switch a.name {
			case "bug":
				panic("oops")
			case "slow":
				<-ctx.Done()
			case "stuck":
				time.Sleep(time.Hour)
			}
			return nil
		}}
		l := play(t, s)
		apply(t, l, top(actorNode("bug", nil), actorNode("slow", nil), actorNode("stuck", nil), actorNode("good", nil)))
		if err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d != stopPatience+killPatience {
			t.Errorf("to close took %v, want %v", d, stopPatience+killPatience)
		}
		if _, err := l.Apply(t.Context(), top()); !errors.Is(err, ErrClosed) {
			t.Errorf("Apply after Close: %v", err)
		}
		if err := l.Wait(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Wait after Close: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("Close after Close: %v", err)
		}
		time.Sleep(time.Hour) // the bubble wants to see the stuck one end
	})
}

// What is being waited for is given up when the lab closes, wherever a node is.
func TestCloseWhileStarting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &stage{
			start: func(ctx context.Context, a *actor) error {
				if a.name == "starts" {
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			},
			exec: func(ctx context.Context, a *actor, c Command) (int, error) {
				<-ctx.Done()
				return 0, ctx.Err()
			},
			dial: func(*actor, string) error { return errors.New("refused") },
		}
		l := play(t, s)
		apply(t, l, top(
			actorNode("starts", nil),
			actorNode("setup", func(n *topology.Node) { n.Setup = []string{"sleep inf"} }),
			actorNode("tcp", func(n *topology.Node) { n.Wait = []topology.Condition{{Kind: "tcp", Arg: "80"}} }),
			actorNode("log", func(n *topology.Node) { n.Wait = []topology.Condition{{Kind: "log", Arg: "x"}} }),
			actorNode("exit", func(n *topology.Node) { n.Wait = []topology.Condition{{Kind: "exit"}} }),
			actorNode("waits", func(n *topology.Node) { n.After = []string{"starts"} }),
		))
		synctest.Wait()
		waited := make(chan error, 1)
		go func() { waited <- l.Wait(t.Context()) }()
		synctest.Wait()
		begin := time.Now()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d != 0 {
			t.Errorf("to close took %v", d)
		}
		if err := <-waited; !errors.Is(err, ErrClosed) {
			t.Errorf("who waited got %v", err)
		}
		for _, dir := range []string{l.cfg.Sockets, l.cfg.Keep} {
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("%s has %v", dir, left)
			}
		}
	})
}

// Nodes may be stopped and started by hand; Apply brings them back.
func TestStopStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &stage{}
		l := play(t, s)
		lab := top(actorNode("web", nil), actorNode("db", nil))
		apply(t, l, lab)
		if err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		n := l.Node("web")
		console := n.Console()
		if err := n.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := states(l); got != "web stopped, db ready" {
			t.Errorf("stopped: %s", got)
		}
		if _, err := n.Exec(t.Context(), Command{Args: []string{"true"}}); err == nil || err.Error() != "node web is stopped" {
			t.Errorf("a command in it: %v", err)
		}
		if _, err := n.Dial(t.Context(), "tcp", "80"); err == nil || err.Error() != "node web is stopped" {
			t.Errorf("its port: %v", err)
		}
		if err := n.Stop(t.Context()); err != nil {
			t.Errorf("stopped again: %v", err)
		}
		for range 2 {
			if err := n.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.Stop(t.Context())
		if got := apply(t, l, lab); len(got) != 1 || got[0] != (topology.Change{What: "node web", Action: "start", Why: "it was stopped"}) {
			t.Errorf("the same file again: %v", got)
		}
		if err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if l.Node("web") != n || n.Console() != console {
			t.Error("a node that was started again is another")
		}
		want := []string{"start web", "begin web", "stop web", "start web", "begin web", "stop web", "start web", "begin web"}
		if got := slices.DeleteFunc(s.notes(), func(s string) bool { return !strings.HasSuffix(s, "web") }); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestImpossible(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &stage{}
		l := play(t, s)
		apply(t, l, top(actorNode("web", nil)))
		for _, d := range []struct {
			lab  *topology.Lab
			want string
		}{
			{&topology.Lab{Name: "other"}, "this lab is play: it cannot become other"},
			{top(actorNode("a", nil), actorNode("a", nil)), `node "a": another one has this name`},
			{top(actorNode("../a", nil)), `node "../a"`},
			{top(actorNode("a", func(n *topology.Node) { n.Kind = "docker" })), `there is no kind "docker"`},
			{top(actorNode("a", func(n *topology.Node) { n.Interfaces = []topology.Interface{{Name: "eth0", Network: "lan"}} })), `in "lan", which is no network`},
			{top(actorNode("a", func(n *topology.Node) { n.After = []string{"b"} })), "after b, which is no node"},
			{top(actorNode("a", func(n *topology.Node) { n.After = []string{"b"} }), actorNode("b", func(n *topology.Node) { n.After = []string{"a"} })),
				"nodes wait for each other: a after b after a"},
			{top(actorNode("a", func(n *topology.Node) { n.Wait = []topology.Condition{{Kind: "log", Arg: "("}} })), "wait: log: error parsing regexp"},
			{top(actorNode("a", func(n *topology.Node) { n.Wait = []topology.Condition{{Kind: "tcp", Arg: "http"}} })), "neither a port nor HOST:PORT"},
			{top(actorNode("a", func(n *topology.Node) { n.Wait = []topology.Condition{{Kind: "moon"}} })), `there is no "moon"`},
			{&topology.Lab{Name: "play", Networks: []topology.Network{{Name: "x"}, {Name: "x"}}}, `network "x": another one`},
		} {
			if _, err := l.Apply(t.Context(), d.lab); err == nil || !strings.Contains(err.Error(), d.want) {
				t.Errorf("got %v, want %s", err, d.want)
			}
		}
		if err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := states(l); got != "web ready" {
			t.Errorf("what was refused has changed something: %s", got)
		}
	})
}

// While one changes the lab another waits, for as long as he likes.
func TestOneAtATime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &stage{stop: func(ctx context.Context, a *actor) error { time.Sleep(5 * time.Second); return nil }}
		l := play(t, s)
		apply(t, l, top(actorNode("web", nil)))
		if err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		first := make(chan error, 1)
		go func() { _, err := l.Apply(t.Context(), top(actorNode("db", nil))); first <- err }()
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Apply(short, top()); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "being changed by somebody else") {
			t.Errorf("who waits for a second got %v", err)
		}
		if _, err := l.Apply(t.Context(), top(actorNode("db", nil), actorNode("web", nil))); err != nil {
			t.Error(err)
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
		if err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := states(l); got != "db ready, web ready" {
			t.Errorf("afterwards: %s", got)
		}
	})
}

func TestOutput(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &stage{exec: func(_ context.Context, _ *actor, c Command) (int, error) {
			io.WriteString(c.Stdout, "out")
			c.Stderr.Write(bytes.Repeat([]byte("e"), 10*errorTail))
			io.WriteString(c.Stderr, "end\n")
			if c.Args[0] == "false" {
				return 1, nil
			}
			return 0, nil
		}}
		l := play(t, s)
		apply(t, l, top(actorNode("web", nil)))
		if err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		out, err := l.Node("web").Output(t.Context(), "true")
		if string(out) != "out" || err != nil {
			t.Errorf("got %q, %v", out, err)
		}
		_, err = l.Node("web").Output(t.Context(), "false", "x")
		var exit *ExitError
		if !errors.As(err, &exit) || exit.Status != 1 || len(exit.Stderr) > errorTail || !strings.HasPrefix(err.Error(), "false x in node web: exit status 1: eee") ||
			!strings.HasSuffix(err.Error(), "eend") {
			t.Errorf("got %v", err)
		}
	})
}

func testLogger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}
