package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// disk is a file that a machine has for its disk.
type disk struct {
	path   string
	format string // "": QEMU is to look, which keeps the guest from making it look like another
	unsafe bool   // nobody reads it once this machine has crashed
}

// qcow2 is QEMU's format, as its docs/interop/qcow2.txt has it.
const (
	qcow2Magic       = "QFI\xfb"
	qcow2ClusterBits = 16 // QEMU's default
	qcow2Cluster     = 1 << qcow2ClusterBits
	// qcow2Covers is how much of the disk an entry of the first table is for: a cluster of pointers to clusters.
	qcow2Covers  = qcow2Cluster * (qcow2Cluster / 8)
	qcow2Backing = 0xE2792ACA // header extension: the backing file's format
	// qcow2Name is the longest backing file's name.
	qcow2Name = 1023
)

// openDisk says what the disk at path is. With overlay, what is written goes to a file in dir, and is there again when the
// disk is opened anew; without, to path itself.
func openDisk(ctx context.Context, path, format string, overlay bool, dir string) (*disk, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	defer f.Close()
	head := make([]byte, 4096)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("disk: %w", err)
	}
	looks := formatOf(head[:n])
	if !overlay {
		if w, err := os.OpenFile(path, os.O_WRONLY, 0); err != nil {
			return nil, fmt.Errorf("disk: it is to be written to itself (overlay: false): %w", err)
		} else {
			w.Close()
		}
		if format == "" && looks != "raw" {
			format = looks
		}
		return &disk{path: path, format: format}, nil
	}
	if format == "" {
		format = looks
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	over, there, err := overlayOf(dir, abs, format, ".qcow2")
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	if there {
		return &disk{path: over, format: "qcow2", unsafe: true}, nil
	}
	half := over + ".new" // one that was not written to its end is none
	var size uint64
	switch format {
	case "raw":
		end, err := f.Seek(0, io.SeekEnd) // a block device has a length as well
		if err != nil {
			return nil, fmt.Errorf("disk: %w", err)
		}
		size = (uint64(end) + 511) &^ 511 // as QEMU sees it: whole sectors
	case "qcow2":
		if n < 32 || looks != "qcow2" {
			return nil, fmt.Errorf("disk %s: no qcow2 image", path)
		}
		size = binary.BigEndian.Uint64(head[24:])
	default:
		// qemu-img knows them all.
		if err := qemuImgOverlay(ctx, abs, format, half); err != nil {
			return nil, fmt.Errorf("disk %s: %w", path, err)
		}
		if err := os.Rename(half, over); err != nil {
			return nil, err
		}
		return &disk{path: over, format: "qcow2", unsafe: true}, nil
	}
	if size == 0 {
		return nil, fmt.Errorf("disk %s: is empty", path)
	}
	if err := writeOverlay(half, abs, format, size); err != nil {
		return nil, fmt.Errorf("disk %s: %w", path, err)
	}
	if err := os.Rename(half, over); err != nil {
		return nil, err
	}
	return &disk{path: over, format: "qcow2", unsafe: true}, nil
}

// overlayOf is the file in dir that has what is written to a disk, and whether it is there. What was written is nothing without
// what it was written over: to another disk, or one that has changed since, there is another file, and those before go.
func overlayOf(dir, base, format, ext string) (path string, there bool, err error) {
	fi, err := os.Stat(base)
	if err != nil {
		return "", false, err
	}
	of := fmt.Appendf(nil, "%s\x00%s", base, format)
	if fi.Mode().IsRegular() { // a device's time is not that of its contents
		of = fmt.Appendf(of, "\x00%d %d", fi.Size(), fi.ModTime().UnixNano())
	}
	sum := sha256.Sum256(of)
	path = filepath.Join(dir, "overlay-"+hex.EncodeToString(sum[:8])+ext)
	all, err := fs.Glob(os.DirFS(dir), "overlay-*") // whose folder's name is not a pattern
	if err != nil {
		return "", false, err
	}
	for _, name := range all {
		if p := filepath.Join(dir, name); p == path {
			there = true
		} else if err := os.Remove(p); err != nil {
			return "", false, err
		}
	}
	return path, there, nil
}

// formatOf knows images by how they begin. What begins like none of them is a raw one.
func formatOf(head []byte) string {
	for _, f := range []struct {
		at            int
		begins, named string
	}{
		{0, qcow2Magic, "qcow2"},
		{0, "QED\x00", "qed"},
		{0, "KDMV", "vmdk"},
		{0, "# Disk DescriptorFile", "vmdk"},
		{0, "vhdxfile", "vhdx"},
		{0, "conectix", "vpc"},
		{64, "\x7f\x10\xda\xbe", "vdi"},
	} {
		if len(head) >= f.at+len(f.begins) && string(head[f.at:f.at+len(f.begins)]) == f.begins {
			return f.named
		}
	}
	return "raw"
}

// writeOverlay makes a qcow2 image in which nothing has been written yet: all is read from base.
func writeOverlay(path, base, format string, size uint64) error {
	if len(base) > qcow2Name {
		return fmt.Errorf("its path is longer than the %d bytes that an overlay can name", qcow2Name)
	}
	tables := (size + qcow2Covers - 1) / qcow2Covers
	l1 := (tables*8 + qcow2Cluster - 1) / qcow2Cluster // clusters
	// Header, reference counts in two steps, and the first table. One block counts 32768 clusters: the table of a disk
	// of 100 PiB, far more than a file system takes.
	used := 3 + l1
	if used > qcow2Cluster/2 {
		return fmt.Errorf("%d bytes are too many for an overlay", size)
	}
	var h bytes.Buffer
	put := func(v any) { binary.Write(&h, binary.BigEndian, v) } // a Buffer takes all
	extensions := 8 + (len(format)+7)&^7 + 8
	const headerLength = 104 // of version 3
	h.WriteString(qcow2Magic)
	put(uint32(3))
	put(uint64(headerLength + extensions)) // the backing file's name
	put(uint32(len(base)))
	put(uint32(qcow2ClusterBits))
	put(size)
	put(uint32(0)) // not encrypted
	put(uint32(tables))
	put(uint64(3 * qcow2Cluster)) // the first table
	put(uint64(qcow2Cluster))     // the table of reference counts
	put(uint32(1))                // its clusters
	put([3]uint32{})              // no snapshots
	put([3]uint64{})              // no features
	put(uint32(4))                // counts of 1 << 4 bits
	put(uint32(headerLength))
	put(uint32(qcow2Backing))
	put(uint32(len(format)))
	h.WriteString(format)
	h.Write(make([]byte, -len(format)&7))
	put([2]uint32{}) // the end of extensions
	h.WriteString(base)

	counts := make([]byte, 2*used)
	for i := range used {
		binary.BigEndian.PutUint16(counts[2*i:], 1)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(h.Bytes(), 0)
	if err == nil {
		_, err = f.WriteAt(binary.BigEndian.AppendUint64(nil, 2*qcow2Cluster), qcow2Cluster)
	}
	if err == nil {
		_, err = f.WriteAt(counts, 2*qcow2Cluster)
	}
	if err == nil {
		err = f.Truncate(int64(used * qcow2Cluster))
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// qemuImgOverlay has qemu-img make an overlay of an image in another format.
func qemuImgOverlay(ctx context.Context, base, format, over string) error {
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		return fmt.Errorf("an overlay of a %s image is qemu-img's to make: %w (on Debian: apt-get install qemu-utils)", format, err)
	}
	if out, err := exec.CommandContext(ctx, tool, "create", "-q", "-f", "qcow2", "-b", base, "-F", format, over).CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-img create: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// arguments are QEMU's.
func (d *disk) arguments() []string {
	drive := "if=none,id=disk0,file=" + escape(d.path)
	if d.format != "" {
		drive += ",format=" + escape(d.format)
	}
	if d.unsafe {
		drive += ",cache=unsafe"
	}
	return []string{"-drive", drive, "-device", "virtio-blk-pci,drive=disk0"}
}

// escape doubles commas, which end a value in QEMU's options.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
