package backend

// What a guest's TCP conversations hold: bytes that the far side, or the guest, does not read. One budget a guest, for both
// ways together, shared as switches share their memory between queues (Choudhury and Hahne, 1998): each conversation may
// hold a sixteenth of what is left. One that is stuck so has its full window, thousands have little each, a newcomer
// always has something, and together they never come to more. Nothing is asked of a guest with a few conversations:
// they cannot come to half of the budget.
//
// All of it is under mu; what came in since the last look is counted by whoever brings it. Where the guest has a loop,
// that does the looking, since the host sockets are its own.

import (
	"math"
	"math/bits"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"gvisor.dev/gvisor/pkg/atomicbitops"
	gsync "gvisor.dev/gvisor/pkg/sync"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/vmnetd/vmnetd/flows"
)

const (
	// bufferShare is which part of what is left one conversation may hold each way: the budget's default (128 MiB) is
	// so in full for sixteen that hold tcpBuffer, and gives one over a long path its longBuffer.
	bufferShare = 16
	// bufferLeast is the least that one gets: 16,384 of them both ways are the default budget once more.
	bufferLeast = 4 << 10
	// segmentCost is what a piece of data takes beside its bytes: gVisor's segment, its packet and its view.
	segmentCost = 1 << 10

	// longBuffer is what one gets whose guest is far away. gVisor's window is half the buffer, and it asks for more to
	// send once half of it is acknowledged; so this keeps under way what Linux's default does, 4 MiB (tcp_wmem). The
	// window's scale, settled in the handshake by tcpBuffer, just reaches to it.
	longBuffer = 2 * tcpBuffer
	// serviceBuffer is what a conversation with the resolver here gets: the largest message, as RFC 7766 §8 has it.
	serviceBuffer = 64 << 10
)

type buffers struct {
	post func(func()) bool // has the loop do something; nil without one

	grown atomic.Int64 // bytes that came since settle
	slack atomic.Int64 // how many may
	asked atomic.Bool  // the loop is to settle

	mu    sync.Mutex
	limit int     // the guest's
	bound int     // what memory.go leaves of it
	all   []*held // in no order
	clean int     // how many make join look for those that are over
	share int     // what one may hold each way now
	sum   int     // what all held when settle looked
	most  int
	hits  uint64 // conversations that were given less than they would have had
}

// held is what one conversation holds.
type held struct {
	of   *buffers
	ep   tcpip.Endpoint
	flow *flows.Flow // nil for a service's
	want int         // what it gets where there is room
	has  atomic.Int64
	at   int         // its place in of.all; -1 once it has left
	told bool        // the host socket was told less than it would have
	host func(n int) // tells the host socket, on the loop; 0 is for as much as the kernel likes

	crumbs atomic.Int32 // small writes since the guest had taken all
}

func (b *buffers) init(limit int) {
	b.limit, b.bound, b.share = limit, limit, longBuffer
	b.slack.Store(math.MaxInt64)
}

// join has a conversation count, which gets want where there is room.
func (b *buffers) join(ep tcpip.Endpoint, want int, f *flows.Flow) *held {
	h := &held{of: b, ep: ep, want: want, flow: f}
	h.has.Store(tcpBuffer)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.all) > b.clean {
		b.count()
		b.clean = max(64, 2*len(b.all))
	}
	h.at = len(b.all)
	b.all = append(b.all, h)
	h.give(b.share)
	if b.few() {
		b.slack.Store(math.MaxInt64)
	} else if b.slack.Load() == math.MaxInt64 {
		b.slack.Store(0) // the next that comes looks
	}
	return h
}

// wants changes what a conversation gets where there is room.
func (h *held) wants(n int) {
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	h.want = n
	h.give(h.of.share)
}

// few says that all together cannot come to half of what they may hold.
func (b *buffers) few() bool { return len(b.all)*2*longBuffer <= b.bound/2 && b.share >= longBuffer }

func (h *held) leave() {
	if h == nil {
		return
	}
	b := h.of
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(h)
}

func (b *buffers) drop(h *held) {
	if h.at < 0 {
		return
	}
	last := b.all[len(b.all)-1]
	b.all[h.at], last.at = last, h.at
	b.all[len(b.all)-1] = nil
	b.all = b.all[:len(b.all)-1]
	h.at = -1
	if cap(b.all) > 64 && len(b.all) < cap(b.all)/4 {
		b.all = slices.Clone(b.all)
	}
}

// grew says that n bytes have come, and looks if it is time. It is for the guest's reader.
func (b *buffers) grew(n int) {
	if b.grown.Add(int64(n)) > b.slack.Load() {
		b.settle()
	}
}

// grewHere is grew for any goroutine.
func (b *buffers) grewHere(n int) {
	if b.grown.Add(int64(n)) > b.slack.Load() {
		b.settleSoon()
	}
}

// settleSoon is settle for any goroutine.
func (b *buffers) settleSoon() {
	if b.post == nil {
		b.settle()
	} else if !b.asked.Swap(true) && !b.post(b.settle) {
		b.asked.Store(false)
	}
}

// settle finds out what is held, and changes what each conversation may hold.
func (b *buffers) settle() {
	b.asked.Store(false)
	if !b.mu.TryLock() {
		return // somebody does
	}
	defer b.mu.Unlock()
	b.grown.Store(0) // by nobody else: who only asks what is held must not put this off
	b.count()
	left := max(b.bound-b.sum, 0)
	b.share = b.shareOf(left)
	for _, h := range b.all {
		h.give(b.share)
	}
	b.slack.Store(int64(max(left/8, b.bound/64)))
	if b.few() {
		b.slack.Store(math.MaxInt64)
	}
}

// shareOf is how much of what is left one may hold: by steps of two, so that few are told.
func (*buffers) shareOf(left int) int {
	share := max(left/bufferShare, bufferLeast)
	return min(1<<(bits.Len(uint(share))-1), longBuffer)
}

// count adds up what is held, under mu, and lets go of what is over.
func (b *buffers) count() {
	b.sum = 0
	for i := 0; i < len(b.all); {
		h := b.all[i]
		n := h.holds()
		if n == 0 {
			switch tcp.EndpointState(h.ep.State()) {
			case tcp.StateClose, tcp.StateError:
				b.drop(h)
				continue
			}
		}
		b.sum += n
		i++
	}
	b.most = max(b.most, b.sum)
}

// give tells gVisor how much the conversation may hold. What it holds already it keeps; more it does not take, and says
// so in its window. Raised it is by steps of four, so that it does not go back and forth.
func (h *held) give(share int) {
	n, has := min(h.want, share), int(h.has.Load())
	if n == has || n > has && n < h.want && n < 4*has {
		return
	}
	if n < has && n < h.want {
		h.of.hits++
	}
	h.has.Store(int64(n))
	h.tell()
	o := h.ep.SocketOptions()
	o.SetReceiveBufferSize(int64(n), true)
	o.SetSendBufferSize(int64(n), true)
}

// tell has the host's kernel hold as little: it would else take in megabytes for each conversation, of what the guest sends
// and of what it does not take, and all of the host's TCP has to do with what the kernel has for it (tcp_mem).
func (h *held) tell() {
	n := int(h.has.Load())
	switch {
	case h.host == nil:
	case n < min(h.want, tcpBuffer):
		h.host(n)
		h.told = true
	case h.told:
		h.host(0)
		h.told = false
	}
}

// hosts says how the host socket is told. It runs on the loop.
func (h *held) hosts(tell func(n int)) {
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	h.host = tell
	h.tell()
}

// holds is how much memory the conversation takes for data.
func (h *held) holds() int {
	sent := sending(h.ep)
	if sent > 0 {
		sent += int(h.crumbs.Load()) * segmentCost
	}
	return sent + received(h.ep)
}

// crumbBelow is what counts as a small piece: as memory it is segmentCost, whatever its bytes. Once those that wait for
// the guest come to what it may hold, what the far side trickles is left where the host's kernel puts it together.
const crumbBelow = 2 << 10

// crumb counts a piece of n bytes that was written to the guest, and says whether the next is to wait.
func (h *held) crumb(n int) bool {
	if h == nil || n >= crumbBelow || n == 0 {
		return false
	}
	c := h.crumbs.Add(1)
	if c%64 == 0 {
		if sending(h.ep) == 0 {
			h.crumbs.Store(0)
			return false
		}
		h.of.grew(64 * segmentCost)
	}
	return int64(c)*segmentCost >= h.has.Load()
}

// use is what is held now, and was.
func (b *buffers) use() flows.Use {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count()
	return flows.Use{Now: b.sum, Most: b.most, Hits: b.hits}
}

// set changes the budget.
func (b *buffers) set(limit int) {
	b.mu.Lock()
	if b.limit == 0 {
		b.init(limit)
	}
	if b.bound == b.limit || b.bound > limit { // else it is squeezed, and stays so
		b.bound = limit
	}
	same := b.limit == limit
	b.limit = limit
	b.mu.Unlock()
	if !same {
		b.settleSoon()
	}
}

// squeeze makes the budget smaller for a time; 0 gives all of it back.
func (b *buffers) squeeze(bound int) {
	b.mu.Lock()
	if bound == 0 || bound > b.limit {
		bound = b.limit
	}
	b.bound = bound
	b.mu.Unlock()
	b.settleSoon()
}

// ease gives half of what squeeze took back, and says whether that is all.
func (b *buffers) ease() bool {
	b.mu.Lock()
	b.bound = min(2*b.bound, b.limit)
	all := b.bound == b.limit
	b.mu.Unlock()
	b.settleSoon()
	return all
}

// byFlow is what each conversation holds.
func (b *buffers) byFlow() map[*flows.Flow]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := make(map[*flows.Flow]int, len(b.all))
	for _, h := range b.all {
		if h.flow != nil {
			m[h.flow] += h.holds()
		}
	}
	return m
}

// received is how much memory the data take that came from the guest and were not read, with all that belongs to a
// segment; sending is how many bytes the guest has not acknowledged. gVisor bounds both, and tells neither: they are read
// where they lie.
func received(ep tcpip.Endpoint) int {
	if e, ok := ep.(*tcp.Endpoint); ok && places.received != 0 {
		return int((*atomicbitops.Int32)(unsafe.Add(unsafe.Pointer(e), places.received)).Load())
	}
	n, _ := ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
	return n
}

func sending(ep tcpip.Endpoint) int {
	e, ok := ep.(*tcp.Endpoint)
	if !ok || places.sending == 0 {
		return 0
	}
	return lockedInt(unsafe.Pointer(e), places.sendMutex, places.sending)
}

// places is where gVisor has them in an endpoint; 0 if it keeps them otherwise, which a test tells.
var places = func() (at struct{ received, sendMutex, sending uintptr }) {
	t := reflect.TypeFor[tcp.Endpoint]()
	if f, ok := t.FieldByName("rcvMemUsed"); ok && f.Type == reflect.TypeFor[atomicbitops.Int32]() {
		at.received = f.Offset
	}
	q, ok := t.FieldByName("sndQueueInfo")
	if !ok || q.Type.Kind() != reflect.Struct {
		return at
	}
	if mu, used, ok := findLockedInt(q.Type, "sndQueueMu", "SndBufUsed"); ok {
		at.sendMutex, at.sending = q.Offset+mu, q.Offset+used
	}
	return at
}()

// findLockedInt finds a mutex of gVisor's and an int beside it in a struct.
func findLockedInt(t reflect.Type, mutex, number string) (mu, at uintptr, ok bool) {
	m, ok := t.FieldByName(mutex)
	if !ok {
		return 0, 0, false
	}
	if m.Type != reflect.TypeFor[gsync.Mutex]() { // or one around it, for a checker of locks that is not built in
		if m.Type.Kind() != reflect.Struct || m.Type.NumField() != 1 || m.Type.Field(0).Type != reflect.TypeFor[gsync.Mutex]() {
			return 0, 0, false
		}
	}
	f, ok := t.FieldByName(number)
	if !ok || f.Type.Kind() != reflect.Int {
		return 0, 0, false
	}
	off := uintptr(0)
	for _, i := range f.Index { // promoted, perhaps
		x := t.Field(i)
		if x.Type.Kind() == reflect.Pointer {
			return 0, 0, false
		}
		off, t = off+x.Offset, x.Type
	}
	return m.Offset, off, true
}

func lockedInt(p unsafe.Pointer, mutex, number uintptr) int {
	mu := (*gsync.Mutex)(unsafe.Add(p, mutex))
	mu.Lock()
	defer mu.Unlock()
	return *(*int)(unsafe.Add(p, number))
}
