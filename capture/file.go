package capture

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// File is a file, or a ring of them, that a capture's bytes are put into, cut as they may be: whole blocks are written, so
// that it can be read at any time, whatever becomes of whoever writes it. It is nobody else's to read. One goroutine at a time
// may use it.
type File struct {
	// Packets are in it, and Dropped are missing, as far as the capture has said by now: it does so at its end.
	Packets, Dropped uint64

	out   io.Writer
	f     *os.File // what is open, if it is a regular file
	good  int64    // bytes of it that are whole blocks
	rest  []byte   // of a block that is not whole yet
	err   error
	ring  Ring
	path  string
	count int      // files of the ring so far
	names []string // those that are kept, oldest first

	section []byte
	ifaces  map[uint32]*ringInterface // of a ring, by their ids in the capture
	stream  uint32                    // the next of these
	reserve int64                     // bytes for what the capture would end with, were it over now
	nextID  uint32                    // the next in the open file
	buf     []byte                    // for the open file of the ring
	now     func() time.Time
}

// Ring is in how many files a capture is kept: when one has Size bytes the next is begun, and the oldest removed. The zero
// Ring is one file.
type Ring struct {
	Files int
	Size  int64
}

// ringInterface is an interface whose wire is there. Each file of a ring describes those that it has packets of.
type ringInterface struct {
	block []byte
	file  int    // the last that describes it
	id    uint32 // in there
}

// size is what it takes in a file that does not describe it.
func (i *ringInterface) size() int64 { return int64(len(i.block) + statisticsLen) }

// minRing holds a file's head and the longest frame.
const minRing = 100 << 10

// OpenFile makes a file of mode 0600, or empties one of our own that is there. With a ring, files are called
// name_00001_20261121163000.pcapng, by a number and the time at which each was begun. A symbolic link is not followed.
// What is no regular file, a pipe or a device, is written to as it is.
func OpenFile(path string, ring Ring) (*File, error) {
	w := &File{path: path, ring: ring, now: time.Now}
	if ring == (Ring{}) {
		f, regular, err := create(path)
		if err != nil {
			return nil, err
		}
		w.out = f
		if regular {
			w.f = f
		}
		return w, nil
	}
	if ring.Files < 1 || ring.Size < minRing {
		return nil, fmt.Errorf("%s: a ring has a file at least, each of %d bytes at least", path, minRing)
	}
	w.ifaces = make(map[uint32]*ringInterface)
	return w, w.next()
}

// NewFile is a File that writes to out.
func NewFile(out io.Writer) *File { return &File{out: out} }

func create(path string) (f *os.File, regular bool, err error) {
	f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|noFollow, 0o600)
	if err != nil {
		if isLoop(err) {
			err = fmt.Errorf("%s is a symbolic link, and is not followed: name the file itself", path)
		}
		return nil, false, err
	}
	fi, err := f.Stat()
	if err == nil && fi.Mode().IsRegular() {
		regular = true
		if err = f.Chmod(0o600); err == nil { // of somebody else's it fails, and that is right
			err = f.Truncate(0)
		}
	}
	if err != nil {
		f.Close()
		return nil, false, err
	}
	return f, regular, nil
}

// next begins the next file of a ring.
func (w *File) next() error {
	if w.f != nil {
		if err := w.f.Close(); err != nil {
			return err
		}
		w.f = nil
	}
	if len(w.names) == w.ring.Files {
		os.Remove(w.names[0])
		w.names = w.names[1:]
	}
	w.count++
	ext := filepath.Ext(w.path)
	name := fmt.Sprintf("%s_%05d_%s%s", strings.TrimSuffix(w.path, ext), w.count, w.now().Format("20060102150405"), ext)
	f, regular, err := create(name)
	if err != nil {
		return err
	}
	if !regular {
		f.Close()
		return fmt.Errorf("%s is no regular file", name)
	}
	w.f, w.out, w.good = f, f, 0
	w.names = append(w.names, name)
	w.buf = append(w.buf[:0], w.section...)
	w.nextID, w.reserve = 0, 0
	for _, i := range w.ifaces {
		i.file = 0
		w.reserve += i.size()
	}
	return nil
}

// Write implements Writer. After an error nothing more is written, and what is there is whole.
func (w *File) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n := len(p)
	if len(w.rest) > 0 {
		w.rest = append(w.rest, p...)
		p = w.rest
	}
	whole := 0
	for {
		b, err := nextBlock(p[whole:])
		if err != nil {
			w.err = err
			break
		}
		if b == nil {
			break
		}
		w.note(b)
		if w.ifaces != nil {
			if err := w.keep(b); err != nil {
				w.err = err
				break
			}
		}
		whole += len(b)
	}
	var err error
	if w.ifaces != nil {
		err = w.flush()
	} else {
		err = w.put(p[:whole])
	}
	if w.err = errors.Join(w.err, err); w.err != nil {
		return 0, w.err
	}
	w.rest = append(w.rest[:0], p[whole:]...)
	return n, nil
}

// note counts.
func (w *File) note(b []byte) {
	switch le.Uint32(b) {
	case blockPacket:
		w.Packets++
	case blockStatistics:
		for o := b[min(20, len(b)-4) : len(b)-4]; len(o) >= 4; {
			code, size := le.Uint16(o), int(le.Uint16(o[2:]))
			if code == optEnd || len(o) < 4+pad(size) {
				break
			}
			if code == optDropped && size == 8 {
				w.Dropped += le.Uint64(o[4:])
			}
			o = o[4+pad(size):]
		}
	}
}

// put writes whole blocks, all of them or, to a regular file, none.
func (w *File) put(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	n, err := w.out.Write(b)
	if err == nil {
		w.good += int64(n)
		return nil
	}
	// As many whole blocks as there was room for stay.
	whole := 0
	for {
		k, kerr := nextBlock(b[whole:])
		if kerr != nil || k == nil || whole+len(k) > n {
			break
		}
		whole += len(k)
	}
	w.good += int64(whole)
	if w.f != nil {
		w.f.Truncate(w.good)
	}
	return err
}

// keep puts a block into the ring's file, or the next one.
func (w *File) keep(b []byte) error {
	id := func() uint32 { return le.Uint32(b[8:]) }
	switch le.Uint32(b) {
	case blockSection:
		w.section = append([]byte(nil), b...)
		w.buf = append(w.buf, b...)
		return nil
	case blockInterface:
		i := &ringInterface{block: append([]byte(nil), b...)}
		w.ifaces[w.stream] = i
		w.stream++
		w.reserve += i.size()
		return nil
	case blockPacket, blockStatistics:
		i := w.ifaces[id()]
		if i == nil || len(b) < 12 {
			return fmt.Errorf("not a capture: no interface %d", id())
		}
		need := int64(len(b))
		if le.Uint32(b) == blockPacket && w.reserve < w.ring.Size/2 { // a lab of thousands ends in files of its own
			need += w.reserve
		} else if i.file != w.count {
			need += int64(len(i.block))
		}
		if w.good+int64(len(w.buf))+need > w.ring.Size && w.good+int64(len(w.buf)) > int64(len(w.section)) {
			if err := w.flush(); err != nil {
				return err
			}
			if err := w.next(); err != nil {
				return err
			}
		}
		if i.file != w.count {
			i.file, i.id = w.count, w.nextID
			w.nextID++
			w.buf = append(w.buf, i.block...)
			w.reserve -= int64(len(i.block))
		}
		at := len(w.buf)
		w.buf = append(w.buf, b...)
		le.PutUint32(w.buf[at+8:], i.id)
		if le.Uint32(b) == blockStatistics { // its wire is gone
			delete(w.ifaces, id())
			w.reserve -= statisticsLen
		}
		return nil
	}
	w.buf = append(w.buf, b...)
	return nil
}

func (w *File) flush() error {
	err := w.put(w.buf)
	w.buf = w.buf[:0]
	return err
}

// Names are the files that are kept, oldest first.
func (w *File) Names() []string {
	if w.ring == (Ring{}) {
		return []string{w.path}
	}
	return w.names
}

// Close closes what is open. It fails if the capture broke off within a block, which is not in the file then.
func (w *File) Close() error {
	err := w.err
	if c, ok := w.out.(io.Closer); ok {
		err = errors.Join(err, c.Close())
	}
	if err == nil && len(w.rest) > 0 {
		err = errTorn
	}
	return err
}
