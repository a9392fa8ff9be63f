package backend

// Fragments that wait for the rest of their datagram lie in the guest's stack, of each family by itself. gVisor bounds
// them, has no option for how many, and tells nobody: so the bounds are set, and what is held is read, where they lie.

import (
	"reflect"
	"sync/atomic"
	"unsafe"

	gsync "gvisor.dev/gvisor/pkg/sync"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vmnetd/vmnetd/flows"
)

type fragments struct {
	at    [2]store // by family
	limit atomic.Int64
	most  atomic.Int64
	hits  atomic.Uint64 // times that some were forgotten
}

// find looks them up in a new stack.
func (f *fragments) find(s *stack.Stack) {
	for i, proto := range []tcpip.NetworkProtocolNumber{header.IPv4ProtocolNumber, header.IPv6ProtocolNumber} {
		v := reflect.ValueOf(s.NetworkProtocolInstance(proto))
		if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
			continue
		}
		at := v.Elem().FieldByName("fragmentation")
		if !at.IsValid() || at.Kind() != reflect.Pointer || at.IsNil() {
			continue
		}
		t := at.Type().Elem()
		mu, mem, ok := findLockedInt(t, "mu", "memSize")
		_, high, ok2 := findLockedInt(t, "mu", "highLimit")
		_, low, ok3 := findLockedInt(t, "mu", "lowLimit")
		if ok && ok2 && ok3 {
			f.at[i] = store{at.UnsafePointer(), mu, mem, high, low}
		}
	}
}

// store is gVisor's of one family.
type store struct {
	p                  unsafe.Pointer // nil if it keeps them otherwise
	mu, mem, high, low uintptr
}

func (s *store) held() int {
	if s.p == nil {
		return 0
	}
	return lockedInt(s.p, s.mu, s.mem)
}

// bound sets how many bytes of fragments there may be: beyond it the oldest are forgotten until a quarter is free, as Linux
// does.
func (f *fragments) bound(n int) {
	f.limit.Store(int64(n))
	for i := range f.at {
		if s := &f.at[i]; s.p != nil {
			mu := (*gsync.Mutex)(unsafe.Add(s.p, s.mu))
			mu.Lock()
			*(*int)(unsafe.Add(s.p, s.high)) = n / 2
			*(*int)(unsafe.Add(s.p, s.low)) = n / 8 * 3
			mu.Unlock()
		}
	}
}

// count runs deliver, which brings the stack a fragment of size bytes, and sees what became of it.
func (f *fragments) count(v6 bool, size int, deliver func()) {
	s := &f.at[boolInt(v6)]
	before := s.held()
	deliver()
	after := s.held()
	if after < before && int64(before+2*size+segmentCost) >= f.limit.Load()/2 { // what gVisor counts for it besides
		f.hits.Add(1)
	}
	if n := int64(after + f.at[boolInt(!v6)].held()); n > f.most.Load() {
		f.most.Store(n)
	}
}

func (f *fragments) use() flows.Use {
	now := f.at[0].held() + f.at[1].held()
	return flows.Use{Now: now, Most: max(now, int(f.most.Load())), Hits: f.hits.Load()}
}

// isFragment says whether an IP packet is one.
func isFragment(kind uint16, ip []byte) bool {
	switch {
	case kind == etherIPv4 && len(ip) >= header.IPv4MinimumSize:
		return ip[6]&0x3f != 0 || ip[7] != 0 // more follow, or it has an offset
	case kind == etherIPv6 && len(ip) >= header.IPv6MinimumSize:
		return ip[6] == header.IPv6FragmentHeader
	}
	return false
}
