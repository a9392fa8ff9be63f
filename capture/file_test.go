package capture

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/backend/link"
)

// captured is a capture of n frames on each of two wires, the first of which goes half way.
func captured(t testing.TB, n int) []byte {
	t.Helper()
	var file bytes.Buffer
	s := Start(&file, Options{})
	a, _ := wired(t, 4)
	b, _ := wired(t, 4)
	one := s.Add(a, named("one"))
	s.Add(b, named("two"))
	for i := range n {
		if i == n/2 {
			one.Remove()
			one = s.Add(a, named("again"))
		}
		for _, w := range []*Wire{a, b} {
			(*w.taps.Load())[0].wrote([]link.Frame{link.NewFrame(udpFrame(uint16(i), 3000))})
		}
	}
	s.Stop()
	if err := s.Wait(); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

// A file has whole blocks however what it is given is cut.
func TestFile(t *testing.T) {
	whole := captured(t, 50)
	dir := t.TempDir()
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 2))
		path := filepath.Join(dir, "a.pcapng")
		if err := os.WriteFile(path, []byte("of old"), 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := OpenFile(path, Ring{})
		if err != nil {
			t.Fatal(err)
		}
		for rest := whole; len(rest) > 0; {
			n := min(len(rest), 1+r.IntN(10_000))
			if _, err := f.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
			have, err := os.ReadFile(path)
			if err != nil || !bytes.HasPrefix(whole, have) {
				t.Fatal("another file", err)
			}
			blocksOf(t, have)
		}
		if err := f.Close(); err != nil || f.Packets != 100 || f.Dropped != 0 {
			t.Fatalf("%d packets, %v", f.Packets, err)
		}
		if have, _ := os.ReadFile(path); !bytes.Equal(have, whole) {
			t.Fatal("the file is another")
		}
		if fi, _ := os.Stat(path); runtime.GOOS != "windows" && fi.Mode().Perm() != 0o600 {
			t.Fatalf("mode %v", fi.Mode())
		}
	}
	f, err := OpenFile(filepath.Join(dir, "torn.pcapng"), Ring{})
	if err != nil {
		t.Fatal(err)
	}
	f.Write(whole[:len(whole)-5])
	if err := f.Close(); !errors.Is(err, errTorn) {
		t.Errorf("a torn one: %v", err)
	}
	have, _ := os.ReadFile(filepath.Join(dir, "torn.pcapng"))
	blocksOf(t, have)
	if _, err := NewFile(&bytes.Buffer{}).Write([]byte("HTTP/1.1 200 OK\r\n\r\n")); err == nil {
		t.Error("what is no capture is taken")
	}
}

func TestFileRefusals(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	if err := os.WriteFile(target, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	alias := filepath.Join(dir, "link")
	if err := os.Symlink(target, alias); err != nil {
		t.Skip(err)
	}
	if _, err := OpenFile(alias, Ring{}); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("a link: %v", err)
	}
	if b, _ := os.ReadFile(target); string(b) != "mine" {
		t.Error("what a link leads to was emptied")
	}
	if _, err := OpenFile(filepath.Join(dir, "no", "such"), Ring{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := OpenFile(filepath.Join(dir, "ring"), Ring{Files: 2, Size: 100}); err == nil {
		t.Error("a ring of files that hold nothing")
	}
	f, err := OpenFile(os.DevNull, Ring{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(captured(t, 2)); err != nil {
		t.Error(err)
	}
	f.Close()
}

// A ring keeps the newest files, each no larger than it may be, and each whole by itself.
func TestFileRing(t *testing.T) {
	whole := captured(t, 200) // 1.2 MB
	dir := t.TempDir()
	const size = 150_000
	f, err := OpenFile(filepath.Join(dir, "lab.pcapng"), Ring{Files: 3, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	for rest := whole; len(rest) > 0; {
		n := min(len(rest), 40_001)
		if _, err := f.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	list, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	if len(list) != 3 || !slices.Equal(list, f.Names()) {
		t.Fatalf("%q, and it says %q", list, f.Names())
	}
	var all []block
	for _, path := range list {
		if !regexp.MustCompile(`lab_\d{5}_\d{14}\.pcapng$`).MatchString(path) {
			t.Errorf("called %s", path)
		}
		b, err := os.ReadFile(path)
		if err != nil || len(b) > size {
			t.Errorf("%s: %d bytes, %v", path, len(b), err)
		}
		blocks := blocksOf(t, b)
		if blocks[0].typ != blockSection {
			t.Fatalf("%s begins with %#x", path, blocks[0].typ)
		}
		names := []string{}
		for _, k := range blocks {
			switch k.typ {
			case blockInterface:
				names = append(names, k.options[optName])
			case blockPacket, blockStatistics:
				if int(k.id) >= len(names) {
					t.Fatalf("%s: interface %d of %d", path, k.id, len(names))
				}
				k.options[optName] = names[k.id]
			}
		}
		all = append(all, packetsOf(blocks)...)
		if path == list[2] {
			read(t, b, len(packetsOf(blocks)))
		}
	}
	// They are the last of the whole, in order, on their own interfaces.
	want := packetsOf(blocksOf(t, whole))
	want = want[len(want)-len(all):]
	for i, p := range all {
		if !bytes.Equal(p.data, want[i].data) || p.at != want[i].at || p.options[optName] != []string{"one", "two", "again"}[want[i].id] {
			t.Fatalf("packet %d is another", i)
		}
	}
	if len(all) < 60 || f.Packets != 400 {
		t.Errorf("%d packets of %d", len(all), f.Packets)
	}
}

func FuzzFile(f *testing.F) {
	whole := captured(f, 3)
	f.Add(whole, 7)
	f.Add(whole[:len(whole)-3], 100)
	f.Add([]byte{6, 0, 0, 0, 12, 0, 0, 0, 12, 0, 0, 0}, 5)
	f.Add([]byte{5, 0, 0, 0, 12, 0, 0, 0, 12, 0, 0, 0}, 50)
	f.Add([]byte{5, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 5, 0, 255, 255, 24, 0, 0, 0, 24, 0, 0, 0}, 50)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		for _, ring := range []Ring{{}, {Files: 2, Size: minRing}} {
			w, err := OpenFile(filepath.Join(t.TempDir(), "f"), ring)
			if err != nil {
				t.Fatal(err)
			}
			cut = max(1, cut)
			for rest := b; len(rest) > 0; {
				n := min(cut, len(rest))
				if _, err := w.Write(rest[:n]); err != nil {
					break
				}
				rest = rest[n:]
			}
			w.Close()
		}
	})
}
