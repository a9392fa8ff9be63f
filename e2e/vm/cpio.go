package vm

import (
	"fmt"
	"io"
	"strings"
)

// archive writes an initramfs: the "newc" form of cpio, as the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst has it. Folders go before what is in
// them. Owner and times are 0, so that the same files give the same bytes.
type archive struct {
	w   io.Writer
	n   int64
	ino int
	err error
}

const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
	modeChar = 0o020000
)

func (a *archive) dir(name string)               { a.entry(name, modeDir|0o755, nil, 0, 0) }
func (a *archive) link(name, to string)          { a.entry(name, modeLink|0o777, []byte(to), 0, 0) }
func (a *archive) program(name string, b []byte) { a.entry(name, modeFile|0o755, b, 0, 0) }
func (a *archive) file(name string, b []byte)    { a.entry(name, modeFile|0o644, b, 0, 0) }

// modules are a kernel's, in the order that init loads them in.
func (a *archive) modules(load []module) {
	var order strings.Builder
	for _, m := range load {
		a.file("lib/modules/"+m.name+".ko", m.body)
		fmt.Fprintf(&order, "%s.ko\n", m.name)
	}
	a.file("lib/modules/order", []byte(order.String()))
}

// char is a character device. /dev/console must be there before /init can print.
func (a *archive) char(name string, major, minor int) {
	a.entry(name, modeChar|0o600, nil, major, minor)
}

func (a *archive) entry(name string, mode int, body []byte, major, minor int) {
	a.ino++
	// magic, inode, mode, uid, gid, links, time, size, device, special device, name size, checksum
	a.printf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.ino, mode, 0, 0, 1, 0, len(body), 0, 0, major, minor, len(name)+1, 0)
	a.printf("%s\x00", name)
	a.pad(4)
	a.write(body)
	a.pad(4)
}

// close ends the archive. Its size is rounded up to a cpio block, which costs nothing and keeps
// other readers content.
func (a *archive) close() error {
	a.ino = -1 // the trailer's inode is 0
	a.entry("TRAILER!!!", 0, nil, 0, 0)
	a.pad(512)
	return a.err
}

func (a *archive) pad(to int64) {
	if r := a.n % to; r != 0 {
		a.write(make([]byte, to-r))
	}
}

func (a *archive) printf(format string, args ...any) { a.write(fmt.Appendf(nil, format, args...)) }

func (a *archive) write(b []byte) {
	if a.err != nil {
		return
	}
	n, err := a.w.Write(b)
	a.n += int64(n)
	a.err = err
}
