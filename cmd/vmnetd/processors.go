package main

import (
	"os"
	"runtime"
	"sync"
	"time"
)

// processors is how many threads run Go code at a time: as many as guests are plugged in, and no more than there are.
// A guest's loop and its stack hand every segment to one another; on one thread that costs a tenth of what it costs
// between two. Whoever sets GOMAXPROCS is left with it.
type processors struct {
	mu     sync.Mutex
	most   int
	guests int
	lower  *time.Timer // while one is due
}

var procs = processors{most: runtime.GOMAXPROCS(0)}

// lowerAfter is how long fewer guests are there before there are fewer threads: setting their number stops all of them,
// and a guest that comes and goes could have that done a thousand times a second.
const lowerAfter = time.Second

// add says that guests came, or went.
func (p *processors) add(n int) {
	if os.Getenv("GOMAXPROCS") != "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.guests += n
	switch want, now := p.want(), runtime.GOMAXPROCS(0); {
	case want > now:
		runtime.GOMAXPROCS(want)
	case want < now && p.lower == nil:
		p.lower = time.AfterFunc(lowerAfter, p.lowered)
	}
}

func (p *processors) want() int { return min(max(p.guests, 1), p.most) }

// lowered lets go of threads, if there are still more than guests.
func (p *processors) lowered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lower = nil
	if want := p.want(); want < runtime.GOMAXPROCS(0) {
		runtime.GOMAXPROCS(want)
	}
}
