package cage

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const testArch = 0xc000003e

// call is a system call as a filter sees it.
type call struct {
	arch, number uint32
	args         [6]uint64
}

// run has a program judge. The interpreter is for packets and reads words big-endian, so they are laid out like that.
func (c call) run(t *testing.T, vm *bpf.VM) action {
	t.Helper()
	b := make([]byte, 64)
	binary.BigEndian.PutUint32(b[offNumber:], c.number)
	binary.BigEndian.PutUint32(b[offArch:], c.arch)
	for i, a := range c.args {
		binary.BigEndian.PutUint32(b[offArgs+8*i:], uint32(a))
		binary.BigEndian.PutUint32(b[offArgs+8*i+4:], uint32(a>>32))
	}
	n, err := vm.Run(b)
	if err != nil {
		t.Fatal(err)
	}
	return action(uint32(n))
}

// judge is what the rules say, read one after the other.
func judge(c call, foreign uint32, rules []rule, rest action) action {
	if c.arch != testArch || foreign != 0 && c.number >= foreign {
		return kill
	}
	for _, r := range rules {
		if r.number != c.number {
			continue
		}
		if len(r.cases) == 0 {
			return r.then
		}
		for _, k := range r.cases {
			all := true
			for _, m := range k {
				half := uint32(c.args[m.arg])
				if m.high {
					half = uint32(c.args[m.arg] >> 32)
				}
				all = all && half&m.mask == m.value
			}
			if all {
				return r.then
			}
		}
		return r.otherwise
	}
	return rest
}

// The program finds what a list would find, for every number and for arguments around the conditions' values.
func TestAssemble(t *testing.T) {
	eperm, enosys := refuse(unix.EPERM), refuse(unix.ENOSYS)
	rng := rand.New(rand.NewPCG(1, 2))
	var many []rule
	for n := range uint32(400) {
		if rng.IntN(3) == 0 {
			continue
		}
		r := rule{number: n, then: []action{allow, eperm, kill}[rng.IntN(3)], otherwise: []action{allow, eperm}[rng.IntN(2)]}
		for range rng.IntN(8) - 3 {
			var c []match
			for range 1 + rng.IntN(3) {
				m := match{arg: rng.IntN(6), high: rng.IntN(4) == 0, mask: []uint32{^uint32(0), 0xf, 4}[rng.IntN(3)]}
				m.value = uint32(rng.IntN(8)) & m.mask
				c = append(c, m)
			}
			r.cases = append(r.cases, c)
		}
		many = append(many, r)
	}
	for _, tt := range []struct {
		name  string
		rules []rule
	}{
		{"None", nil},
		{"First", []rule{{number: 0, then: allow}}},
		{"Neighbours", []rule{{number: 3, then: allow}, {number: 4, then: allow}, {number: 5, then: eperm}}},
		{"Argument", []rule{{number: 7, then: allow, otherwise: eperm, cases: [][]match{{is(0, 2), {arg: 1, mask: 0xf, value: 1}}, {is(0, 10)}}}}},
		{"Many", many},
	} {
		t.Run(tt.name, func(t *testing.T) {
			prog, err := assemble(testArch, 0x40000000, tt.rules, enosys)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := bpf.Assemble(prog); err != nil {
				t.Fatal(err)
			}
			if len(prog) > 4096 { // BPF_MAXINSNS
				t.Errorf("%d instructions are more than the kernel takes", len(prog))
			}
			vm, err := bpf.NewVM(prog)
			if err != nil {
				t.Fatal(err)
			}
			for n := range uint32(420) {
				for range 40 {
					c := call{arch: testArch, number: n}
					for i := range c.args {
						c.args[i] = uint64(rng.IntN(8)) | uint64(rng.IntN(2)*rng.IntN(8))<<32
					}
					if got, want := c.run(t, vm), judge(c, 0x40000000, tt.rules, enosys); got != want {
						t.Fatalf("%+v: %#x, want %#x", c, got, want)
					}
				}
			}
			for _, c := range []call{{arch: 0x40000003}, {arch: testArch, number: 0x40000000}, {arch: testArch, number: 0x40000007}, {arch: testArch, number: 1 << 31}} {
				if got := c.run(t, vm); got != kill {
					t.Errorf("%+v: %#x, want the end of the process", c, got)
				}
			}
		})
	}
	if _, err := assemble(testArch, 0, []rule{{number: 7, then: allow}, {number: 7, then: kill}}, enosys); err == nil {
		t.Error("two rules for one call")
	}
}
