package lab

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/vmnetd/vmnetd/lab/topology"
	"github.com/vmnetd/vmnetd/netns"
)

// TB is what Up needs of a *testing.T or a *testing.B, so that programs with this package need not have package testing.
type TB interface {
	Helper()
	Cleanup(func())
	Context() context.Context
	Output() io.Writer
	Failed() bool
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Option is one of Up's.
type Option func(*upOptions)

type upOptions struct {
	set    map[string]string
	skip   bool
	level  slog.Level
	config func(*Config)
}

// Set gives a variable of the file another value.
func Set(name, value string) Option { return func(o *upOptions) { o.set[name] = value } }

// SkipWithoutNamespaces skips the test, in place of failing it, where this user may make no network namespaces and the lab
// has nodes that are some.
func SkipWithoutNamespaces() Option { return func(o *upOptions) { o.skip = true } }

// Verbose logs with the test what the lab and its networks do. Without it only warnings are.
func Verbose() Option { return func(o *upOptions) { o.level = slog.LevelDebug } }

// With changes the Config.
func With(change func(*Config)) Option { return func(o *upOptions) { o.config = change } }

const (
	// upPatience bounds Up where the test has no deadline: what a node may take if it says nothing else, and those that
	// start after it.
	upPatience = 10 * time.Minute
	// upReserve is kept of a test's deadline for taking the lab down.
	upReserve = 15 * time.Second
	// failTail is how much of each console is logged with a test that has failed: two screens full.
	failTail = 4 << 10
)

// Up brings up the lab of a file for a test, in the test's own process and as whoever runs it, and waits until all nodes are
// ready. The lab ends with the test. If the test fails, what its nodes said last is in its log.
func Up(t TB, file string, options ...Option) *Lab {
	t.Helper()
	o := upOptions{set: map[string]string{}, level: slog.LevelWarn}
	for _, f := range options {
		f(&o)
	}
	top, err := topology.Read(file, o.set)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return up(t, top, file, &o)
}

// UpTopology is Up for a lab that the test has made itself.
func UpTopology(t TB, top *topology.Lab, options ...Option) *Lab {
	t.Helper()
	o := upOptions{set: map[string]string{}, level: slog.LevelWarn}
	for _, f := range options {
		f(&o)
	}
	return up(t, top, "", &o)
}

func up(t TB, top *topology.Lab, file string, o *upOptions) *Lab {
	t.Helper()
	for i := range top.Nodes {
		if top.Nodes[i].Kind != topology.KindNetns {
			continue
		}
		if why := whyNoSpaces(); why != "" && o.skip {
			t.Skipf("node %s: %s", top.Nodes[i].Name, why)
		}
		break
	}
	c := Config{File: file, Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: o.level}))}
	if file != "" {
		c.Base = filepath.Dir(file)
	}
	if o.config != nil {
		o.config(&c)
	}
	l, err := New(c)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range l.Nodes() {
				t.Logf("node %s is %s; its console:\n%s", n.Name(), brief(n), n.Console().Tail(failTail))
			}
		}
		if err := l.Close(); err != nil {
			t.Errorf("the lab has not ended: %v", err)
		}
	})
	patience := upPatience
	if d, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		if at, ok := d.Deadline(); ok {
			patience = min(patience, max(time.Until(at)-upReserve, time.Second))
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := l.Apply(ctx, top); err != nil {
		t.Fatalf("lab %s: %v", top.Name, err)
	}
	if err := l.Wait(ctx); err != nil {
		t.Fatalf("lab %s:\n%v", top.Name, err)
	}
	return l
}

func brief(n *Node) string {
	st := n.Status()
	s := string(st.State)
	if st.Error != "" {
		s += fmt.Sprintf(" (%s)", st.Error)
	} else if st.WaitsFor != "" {
		s += fmt.Sprintf(" (for %s)", st.WaitsFor)
	}
	return s
}

// whyNoSpaces says why this user may make no network namespaces, or no interfaces in them: "" if he may.
func whyNoSpaces() string {
	s, err := netns.NewSpace(netns.SpaceOptions{})
	if err != nil {
		return err.Error()
	}
	defer s.Close()
	tap, err := s.Attach(context.Background(), netns.Config{})
	if err != nil {
		return err.Error()
	}
	tap.Close()
	return ""
}
