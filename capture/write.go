package capture

import "time"

// run is the writer's goroutine.
func (s *Session) run() {
	defer close(s.done)
	w := &writing{s: s}
	defer w.close()
	var over <-chan time.Time
	if s.o.MaxTime > 0 {
		t := time.NewTimer(s.o.MaxTime)
		defer t.Stop()
		over = t.C
	}
	wait := time.NewTimer(gather)
	defer wait.Stop()
	if !w.write(section(s.o)) {
		return
	}
	for {
		select {
		case <-s.wake:
		case <-over:
			s.end(TimeOver, nil)
		case <-s.stop:
		}
		wait.Reset(gather)
		select {
		case <-wait.C:
		case <-s.hurry:
		case <-s.stop:
		}
		for w.turn() {
		}
		if w.ended {
			return
		}
		select {
		case <-s.stop: // all has been taken
			w.finish()
			return
		default:
		}
	}
}

// writing is what only the writer's goroutine knows.
type writing struct {
	s       *Session
	taps    map[uint32]*Tap // described and not gone
	coming  []*Tap          // not described yet
	reserve int64           // bytes for what is written at the end
	bytes   int64
	packets uint64
	ending  bool // what a file ends with is being written
	ended   bool
	out     []byte
}

// turn writes what waits, and says whether there is more.
func (w *writing) turn() bool {
	s := w.s
	s.mu.Lock()
	blocks, changed := s.full, s.changed
	s.full, s.changed = nil, nil
	if len(s.cur) > 0 {
		blocks = append(blocks, s.cur)
		s.cur = nil
	}
	if len(blocks)+len(changed) == 0 {
		s.asleep = !s.over
		s.mu.Unlock()
		return false
	}
	var leaving []*Tap // one that goes from here on has frames behind these
	for _, t := range changed {
		if t.gone && !t.left {
			leaving = append(leaving, t)
		}
	}
	s.mu.Unlock()
	for _, t := range changed {
		if !t.met {
			t.met = true
			w.coming = append(w.coming, t)
		}
	}
	w.introduce(len(blocks) > 0)
	for _, b := range blocks {
		if !w.ended {
			w.block(b)
		}
		s.mu.Lock()
		if len(s.free) < queueBlocks {
			s.free = append(s.free, b[:0])
		}
		s.mu.Unlock()
	}
	for _, t := range leaving { // behind its last frame
		if !w.ended && !t.left {
			t.left = true
			w.introduce(true)
			w.farewell(t)
			s.mu.Lock()
			delete(s.taps, t.id)
			s.mu.Unlock()
		}
	}
	return !w.ended
}

// introduce describes the wires that came: those of which there is something to say or, before a frame, all.
func (w *writing) introduce(all bool) {
	rest := w.coming[:0]
	for _, t := range w.coming {
		if i := t.look(); all || i.MAC != nil {
			w.describe(t, i)
		} else {
			rest = append(rest, t)
		}
	}
	clear(w.coming[len(rest):])
	w.coming = rest
}

func (w *writing) describe(t *Tap, i Interface) {
	filter := ""
	if f := w.s.o.Filter; f != nil {
		filter = f.text
	}
	b := describe(i, w.s.snaplen, filter)
	if w.ended || !w.fits(len(b)+statisticsLen) {
		w.enough(FullBytes)
		return
	}
	if w.taps == nil {
		w.taps = make(map[uint32]*Tap)
	}
	w.taps[t.id] = t
	w.reserve += statisticsLen
	w.write(b)
}

// farewell says how much there was at an interface.
func (w *writing) farewell(t *Tap) {
	if w.taps[t.id] == nil {
		return
	}
	delete(w.taps, t.id)
	w.reserve -= statisticsLen
	s := w.s
	s.mu.Lock()
	b := statistics(t.id, s.began, now(), t.seen, t.accepted, t.dropped)
	s.mu.Unlock()
	w.write(b)
}

// finish writes what a file ends with.
func (w *writing) finish() {
	w.introduce(true)
	for id := uint32(0); len(w.taps) > 0 && !w.ended; id++ {
		if t := w.taps[id]; t != nil {
			w.farewell(t)
		}
	}
}

// block writes a block of the queue: packets, as they are but for those that are commented.
func (w *writing) block(b []byte) {
	from := 0
	for at := 0; at < len(b); {
		n := int(le.Uint32(b[at+4:]))
		p := b[at : at+n]
		comment := ""
		if judge := w.s.o.Judge; judge != nil {
			data := p[packetHead:][:le.Uint32(p[20:])]
			out := p[len(p)-packetTail+4] == flagOutbound
			wanted := false
			if t := w.taps[le.Uint32(p[8:])]; t != nil {
				comment, wanted = judge(t, parsePacket(data, out))
			}
			if !wanted {
				if !w.write(b[from:at]) {
					return
				}
				at += n
				from = at
				continue
			}
		}
		if most := w.s.o.MaxPackets; most > 0 && w.packets >= uint64(most) {
			w.write(b[from:at])
			w.enough(FullPackets)
			return
		}
		extra := 0
		if comment != "" {
			extra = 4 + pad(min(len(comment), maxText))
		}
		if !w.fitsBehind(at-from, n+extra) {
			w.write(b[from:at])
			w.enough(FullBytes)
			return
		}
		w.packets++
		if comment != "" {
			w.out = commented(w.out[:0], p, comment)
			if !w.write(b[from:at]) || !w.write(w.out) {
				return
			}
			from = at + n
		}
		at += n
	}
	w.write(b[from:])
	if most := w.s.o.MaxPackets; most > 0 && w.packets >= uint64(most) {
		w.enough(FullPackets)
	}
}

func (w *writing) fits(n int) bool { return w.fitsBehind(0, n) }

// fitsBehind says whether n bytes may be written behind those that wait already, and ends the capture if not.
func (w *writing) fitsBehind(waiting, n int) bool {
	most := w.s.o.MaxBytes
	return most == 0 || w.bytes+int64(waiting+n)+w.reserve <= most
}

// enough ends the capture with a whole file.
func (w *writing) enough(why Ending) {
	if w.ended || w.ending {
		return
	}
	w.ending = true
	w.s.end(why, nil)
	w.finish()
	w.ended = true
}

func (w *writing) write(b []byte) bool {
	if w.ended || len(b) == 0 {
		return !w.ended
	}
	n, err := w.s.w.Write(b)
	w.bytes += int64(n)
	w.s.mu.Lock()
	w.s.figures.Bytes, w.s.figures.Packets = w.bytes, w.packets
	w.s.mu.Unlock()
	if err != nil {
		w.ended = true
		w.s.end(WriterFailed, err)
	}
	return err == nil
}

// close lets go of wires and memory.
func (w *writing) close() {
	s := w.s
	s.mu.Lock()
	s.over = true
	s.figures.Packets = w.packets
	var taps []*Tap
	for _, t := range s.taps {
		t.gone = true
		taps = append(taps, t)
	}
	s.taps, s.changed, s.cur, s.full, s.free = nil, nil, nil, nil, nil
	s.mu.Unlock()
	for _, t := range taps {
		t.wire.remove(t)
	}
}
