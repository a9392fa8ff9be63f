package guest

import (
	"fmt"
	"io"
	"strings"
)

// Archive writes an initramfs: the "newc" form of cpio, as the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst has it. Folders go before what is in
// them. Owner and times are 0, so that the same files give the same bytes.
type Archive struct {
	W   io.Writer
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

func (a *Archive) Dir(name string)               { a.entry(name, modeDir|0o755, nil, 0, 0) }
func (a *Archive) Link(name, to string)          { a.entry(name, modeLink|0o777, []byte(to), 0, 0) }
func (a *Archive) Program(name string, b []byte) { a.entry(name, modeFile|0o755, b, 0, 0) }
func (a *Archive) File(name string, b []byte)    { a.entry(name, modeFile|0o644, b, 0, 0) }

// Modules are a kernel's, in the order that init loads them in.
func (a *Archive) Modules(load []Module) {
	var order strings.Builder
	for _, m := range load {
		a.File("lib/modules/"+m.Name+".ko", m.Body)
		fmt.Fprintf(&order, "%s.ko\n", m.Name)
	}
	a.File("lib/modules/order", []byte(order.String()))
}

// Char is a character device. /dev/console must be there before /init can print.
func (a *Archive) Char(name string, major, minor int) {
	a.entry(name, modeChar|0o600, nil, major, minor)
}

func (a *Archive) entry(name string, mode int, body []byte, major, minor int) {
	a.ino++
	// magic, inode, mode, uid, gid, links, time, size, device, special device, name size, checksum
	a.printf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.ino, mode, 0, 0, 1, 0, len(body), 0, 0, major, minor, len(name)+1, 0)
	a.printf("%s\x00", name)
	a.pad(4)
	a.write(body)
	a.pad(4)
}

// Close ends the archive. Its size is rounded up to a cpio block, which costs nothing and keeps
// other readers content.
func (a *Archive) Close() error {
	a.ino = -1 // the trailer's inode is 0
	a.entry("TRAILER!!!", 0, nil, 0, 0)
	a.pad(512)
	return a.err
}

func (a *Archive) pad(to int64) {
	if r := a.n % to; r != 0 {
		a.write(make([]byte, to-r))
	}
}

func (a *Archive) printf(format string, args ...any) { a.write(fmt.Appendf(nil, format, args...)) }

func (a *Archive) write(b []byte) {
	if a.err != nil {
		return
	}
	n, err := a.W.Write(b)
	a.n += int64(n)
	a.err = err
}
