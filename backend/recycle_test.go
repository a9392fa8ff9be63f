package backend

import (
	"bytes"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"

	"github.com/vmnetd/vmnetd/backend/link"
)

// The count of references is where findRefs says: a new gVisor that has it elsewhere is seen here.
func TestRecycleCounts(t *testing.T) {
	if refs == nil {
		t.Skip("this system's views are not used again")
	}
	v := buffer.NewViewSize(link.ChunkSize)
	defer v.Release()
	if !isSole(v) {
		t.Fatal("a new view's memory is another's too")
	}
	a, b := v.Clone(), v.Clone()
	if isSole(v) || isSole(a) {
		t.Fatal("three views of one piece of memory, and it is taken for one's own")
	}
	a.Release()
	if isSole(v) {
		t.Fatal("two views of one piece of memory, and it is taken for one's own")
	}
	b.Release()
	if !isSole(v) {
		t.Fatal("the others were let go of, and it is taken for shared")
	}
}

// Memory comes again when, and only when, nobody has it.
func TestRecycle(t *testing.T) {
	if refs == nil {
		t.Skip("this system's views are not used again")
	}
	var r recycler
	defer r.drop()
	at := func(c link.Chunk) *byte { return &c.Mem[0] }
	first := r.take()
	copy(first.Mem, "a guest's bytes")
	kept := first.Ref.(*buffer.View).Clone() // as the stack has it
	kept.TrimFront(2)
	kept.CapLength(7)
	r.give(first)
	second := r.take()
	if at(second) == at(first) {
		t.Fatal("memory that somebody reads is handed out")
	}
	r.give(second)
	if c := r.take(); at(c) != at(second) || len(c.Mem) != link.ChunkSize {
		t.Fatalf("other memory, or %d bytes of it", len(c.Mem))
	} else {
		clear(c.Mem)
		defer r.give(c)
	}
	if got := string(kept.AsSlice()); got != "guest's" {
		t.Fatalf("what somebody reads has become %q", got)
	}
	kept.Release()
	if c := r.take(); at(c) != at(first) || len(c.Mem) != link.ChunkSize {
		t.Fatalf("other memory, or %d bytes of it", len(c.Mem))
	} else {
		r.give(c)
	}

	var held []*buffer.View
	for range 3 * restMost { // a stack that lets go of nothing
		c := r.take()
		held = append(held, c.Ref.(*buffer.View).Clone())
		r.give(c)
		if len(r.rest) > restMost {
			t.Fatalf("%d pieces are kept, want at most %d", len(r.rest), restMost)
		}
	}
	for _, v := range held {
		v.Release()
	}
	r.drop()
	if len(r.rest) != 0 {
		t.Errorf("%d pieces are kept after all", len(r.rest))
	}
}

// What the stack was given does not change while it has it, whatever comes after.
func TestRecycleUnderStack(t *testing.T) {
	b := newBatch()
	defer b.Release()
	var has []*buffer.View
	var want [][]byte
	for i := range 200 {
		n := []int{100, 1500, 20000, 33000, 65535}[i%5]
		v := newView(b, n)
		if v.Size() != n {
			t.Fatalf("%d bytes, want %d", v.Size(), n)
		}
		p := v.AsSlice()
		for j := range p {
			p[j] = byte(i + j)
		}
		has, want = append(has, v), append(want, bytes.Clone(p))
		if i%3 == 0 { // the stack lets go of one
			k := i * 7 % len(has)
			has[k].Release()
			has, want = append(has[:k], has[k+1:]...), append(want[:k], want[k+1:]...)
		}
		for k := range has {
			if !bytes.Equal(has[k].AsSlice(), want[k]) {
				t.Fatalf("after %d: piece %d has changed", i, k)
			}
		}
	}
	for _, v := range has {
		v.Release()
	}
}
