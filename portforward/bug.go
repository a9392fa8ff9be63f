package portforward

import (
	"fmt"
	"runtime/debug"
)

// Bug is what a conversation met that broke off because of a panic: Relay's
// error then, instead of the end of the process.
type Bug struct {
	Value any
	Stack []byte
}

func (b *Bug) Error() string { return fmt.Sprintf("a bug was met: %v", b.Value) }

// caught, deferred, makes a panic an error.
func caught(err *error) {
	if r := recover(); r != nil {
		*err = &Bug{r, debug.Stack()}
	}
}

// guard, deferred, has a panic end what it is deferred in, and nothing else.
func (e *entry) guard(what string, end func()) {
	if r := recover(); r != nil {
		e.met(what, r, debug.Stack())
		end()
	}
}

func (e *entry) met(what string, r any, stack []byte) {
	defer func() { recover() }() // the log's may be the bug
	e.t.log.Error("port forward: a bug was met, and its conversation ended", "rule", e.text, "in", what, "panic", r, "stack", string(stack))
}
