package backend

import (
	"context"
	"errors"
	"testing"
	"time"

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

// Who is here and says nothing is in nobody's way.
func TestComingSilent(t *testing.T) {
	n, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	const guests = 10 * comingAtOnce
	for range guests {
		near, far := link.Pipe(1)
		defer near.Close()
		go n.Serve(t.Context(), far, "test")
	}
	for deadline := time.Now().Add(30 * time.Second); len(n.Guests()) < guests || len(n.coming) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d guests are in, %d places taken", len(n.Guests()), guests, len(n.coming))
		}
	}
}
