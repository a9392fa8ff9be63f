package backend

import (
	"context"
	"errors"
	"testing"

	"github.com/vmnetd/vmnetd/backend/link"
)

// A guest waits for its turn to have a stack made, and not longer than it is wanted.
func TestComing(t *testing.T) {
	n, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for range comingAtOnce {
		n.coming <- struct{}{}
	}
	serve := func(ctx context.Context) (near link.Link, ended chan error) {
		near, far := link.Pipe(1)
		ended = make(chan error, 1)
		go func() { ended <- n.Serve(ctx, far, "test") }()
		return near, ended
	}
	ctx, cancel := context.WithCancel(t.Context())
	near, ended := serve(ctx)
	defer near.Close()
	patient, goesIn := serve(t.Context())
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v", err)
	}
	var b link.Batch
	if err := near.ReadFrames(&b); err == nil {
		t.Error("its wire is open")
	}
	if g := len(n.Guests()); g != 0 {
		t.Errorf("%d guests, and there was no place for one", g)
	}
	for range comingAtOnce {
		<-n.coming
	}
	patient.Close()
	if err := <-goesIn; err != nil {
		t.Errorf("Serve of who waited: %v", err)
	}
}
