package main

import (
	"os"
	"runtime"
	"sync"
)

// processors is how many threads run Go code at a time: as many as guests are plugged in, and no more than there are.
// A guest's loop and its stack hand every segment to one another; on one thread that costs a tenth of what it costs
// between two. Whoever sets GOMAXPROCS is left with it.
type processors struct {
	mu     sync.Mutex
	most   int
	guests int
}

var procs = processors{most: runtime.GOMAXPROCS(0)}

// add says that guests came, or went.
func (p *processors) add(n int) {
	if os.Getenv("GOMAXPROCS") != "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.guests += n
	if want := min(max(p.guests, 1), p.most); want != runtime.GOMAXPROCS(0) { // setting it stops the world
		runtime.GOMAXPROCS(want)
	}
}
