package backend

// Memory that a guest's frames are read into, in gVisor's views, so that its buffers can share it. gVisor's pool clears
// 64 KiB for each that it hands out, as much work as half the copy that fills it. What the stack has let go of is
// therefore used again as it is, by the same guest. Of the port's reader only.

import (
	"reflect"
	"sync/atomic"
	"unsafe"

	"gvisor.dev/gvisor/pkg/buffer"

	"github.com/vmnetd/vmnetd/backend/link"
)

// restMost is how many pieces are kept for being let go of. Two reads' worth: the stack has what one read brought while
// the next comes. More only find the processor's cache cold.
const restMost = 8

// recycler hands out pieces of memory with whatever they hold.
type recycler struct {
	rest []*buffer.View // the stack may still refer to the same memory; last in, first out
}

func (r *recycler) take() link.Chunk {
	for i := len(r.rest) - 1; i >= 0; i-- {
		if v := r.rest[i]; isSole(v) {
			r.rest = append(r.rest[:i], r.rest[i+1:]...)
			v.Reset()
			v.Grow(link.ChunkSize)
			return link.Chunk{Mem: v.AsSlice(), Ref: v}
		}
	}
	v := buffer.NewViewSize(link.ChunkSize)
	return link.Chunk{Mem: v.AsSlice(), Ref: v}
}

func (r *recycler) give(c link.Chunk) {
	v := c.Ref.(*buffer.View)
	if refs == nil {
		v.Release()
		return
	}
	if len(r.rest) == restMost { // the oldest belongs to whoever still has it
		r.rest[0].Release()
		r.rest = append(r.rest[:0], r.rest[1:]...)
	}
	r.rest = append(r.rest, v)
}

// drop gives all back to gVisor.
func (r *recycler) drop() {
	for i, v := range r.rest {
		v.Release()
		r.rest[i] = nil
	}
	r.rest = r.rest[:0]
}

// isSole says whether nobody else refers to v's memory. gVisor counts that and does not tell, so the count is read
// where it lies; an atomic load, so that what others did with the memory has happened before.
func isSole(v *buffer.View) bool {
	chunk := *(*unsafe.Pointer)(unsafe.Add(unsafe.Pointer(v), refs.chunk))
	return atomic.LoadInt64((*int64)(unsafe.Add(chunk, refs.count))) == 1
}

// refs is where the count lies; nil if this gVisor keeps it otherwise, and nothing is used again then.
var refs = findRefs()

type refsAt struct{ chunk, count uintptr } // offsets of a view's pointer to its chunk, and of the chunk's count

func findRefs() *refsAt {
	chunk, ok := reflect.TypeFor[buffer.View]().FieldByName("chunk")
	if !ok || chunk.Type.Kind() != reflect.Pointer || chunk.Type.Elem().Kind() != reflect.Struct {
		return nil
	}
	count, ok := chunk.Type.Elem().FieldByName("refCount")
	if !ok || count.Type.Kind() != reflect.Struct || unsafe.Sizeof(uintptr(0)) < 8 { // 32-bit systems have it aligned in a way of its own
		return nil
	}
	value, ok := count.Type.FieldByName("value")
	if !ok || value.Type.Kind() != reflect.Int64 {
		return nil
	}
	// refCount is promoted from an embedded struct, whose offset is part of the way.
	off, t := uintptr(0), chunk.Type.Elem()
	for _, i := range count.Index {
		f := t.Field(i)
		off, t = off+f.Offset, f.Type
	}
	return &refsAt{chunk.Offset, off + value.Offset}
}
