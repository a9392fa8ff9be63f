package cage

import (
	"fmt"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A seccomp filter is a program of classic BPF over struct seccomp_data (seccomp(2)): the call's number, the processor's
// calling convention, and six arguments of 64 bits.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// action is what becomes of a call.
type action uint32

const (
	allow action = unix.SECCOMP_RET_ALLOW
	kill  action = unix.SECCOMP_RET_KILL_PROCESS
)

// refuse has the call fail.
func refuse(e unix.Errno) action { return action(unix.SECCOMP_RET_ERRNO | uint32(e)) }

// match is a condition on one half of an argument: its bits of mask have the value.
type match struct {
	arg         int
	high        bool // the upper 32 bits; of an int the kernel looks at the lower ones alone
	mask, value uint32
}

func is(arg int, value uint32) match { return match{arg: arg, mask: ^uint32(0), value: value} }

// rule is what becomes of the call with a number: then, if all conditions of one of cases hold or there are none, or
// else otherwise.
type rule struct {
	number          uint32
	then, otherwise action
	cases           [][]match
}

// span is a rule for numbers from low on, to the next span.
type span struct {
	low uint32
	rule
}

func (s span) same(t span) bool { return len(s.cases) == 0 && len(t.cases) == 0 && s.then == t.then }

// assemble makes the program. Numbers without a rule have what rest says. The search for a number is a binary one: some
// seven comparisons, which the kernel does away with for calls that are always allowed (since Linux 5.11 it has a bit for
// each of those).
//
// From number foreign on, if it is not 0, are those of another convention, which no program of ours uses.
func assemble(arch, foreign uint32, rules []rule, rest action) ([]bpf.Instruction, error) {
	rules = slices.Clone(rules)
	slices.SortFunc(rules, func(a, b rule) int { return int(a.number) - int(b.number) })
	spans := []span{{0, rule{then: rest}}}
	add := func(s span) {
		if last := spans[len(spans)-1]; last.low == s.low {
			spans = spans[:len(spans)-1]
		}
		if len(spans) == 0 || !spans[len(spans)-1].same(s) {
			spans = append(spans, s)
		}
	}
	for i, r := range rules {
		if i > 0 && rules[i-1].number == r.number {
			return nil, fmt.Errorf("system call %d has two rules", r.number)
		}
		add(span{r.number, r})
		add(span{r.number + 1, rule{then: rest}})
	}
	if foreign != 0 {
		add(span{foreign, rule{then: kill}})
	}
	head := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arch, SkipTrue: 1},
		bpf.RetConstant{Val: uint32(kill)}, // a program for another convention, 32 bits: none of ours
		bpf.LoadAbsolute{Off: offNumber, Size: 4},
	}
	return append(head, search(spans)...), nil
}

// search finds the span of the number that is loaded.
func search(spans []span) []bpf.Instruction {
	if len(spans) == 1 {
		return decide(spans[0].rule)
	}
	mid := len(spans) / 2
	left, right := search(spans[:mid]), search(spans[mid:])
	var jump []bpf.Instruction
	if len(left) <= 255 { // what a conditional jump may skip
		jump = []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[mid].low, SkipTrue: uint8(len(left))}}
	} else {
		jump = []bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[mid].low, SkipFalse: 1},
			bpf.Jump{Skip: uint32(len(left))},
		}
	}
	return slices.Concat(jump, left, right)
}

// decide is the end of the way for a number.
func decide(r rule) []bpf.Instruction {
	var out []bpf.Instruction
	for _, c := range r.cases {
		// From behind: each condition that fails skips the rest of its case.
		code := []bpf.Instruction{bpf.RetConstant{Val: uint32(r.then)}}
		for _, m := range slices.Backward(c) {
			off := uint32(offArgs + 8*m.arg) // both processors that we know put the lower half first
			if m.high {
				off += 4
			}
			test := []bpf.Instruction{bpf.LoadAbsolute{Off: off, Size: 4}}
			if m.mask != ^uint32(0) {
				test = append(test, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: m.mask})
			}
			test = append(test, bpf.JumpIf{Cond: bpf.JumpEqual, Val: m.value, SkipFalse: uint8(len(code))})
			code = append(test, code...)
		}
		out = append(out, code...)
	}
	if len(r.cases) == 0 {
		return []bpf.Instruction{bpf.RetConstant{Val: uint32(r.then)}}
	}
	return append(out, bpf.RetConstant{Val: uint32(r.otherwise)})
}
