package portforward

import (
	"errors"
	"fmt"
)

// What can be wrong with a rule, one value each, so that a caller (the control
// API's status codes, a test) can ask with errors.Is. The text a user reads is
// in Error, which every function of this package returns.
var (
	// ErrSyntax: the text is not a rule in any of the syntaxes.
	ErrSyntax = errors.New("not a port forward")
	// ErrRange: a port or a range of ports that cannot be.
	ErrRange = errors.New("bad port range")
	// ErrClash: another rule of the same table has that host end.
	ErrClash = errors.New("clash with another rule")
	// ErrInUse: another program has that address or that socket file.
	ErrInUse = errors.New("address in use by another program")
	// ErrPrivileged: the system keeps that port for privileged programs.
	ErrPrivileged = errors.New("privileged port")
	// ErrNoAddress: this host does not have the address to bind to.
	ErrNoAddress = errors.New("not an address of this host")
	// ErrPathTooLong: a unix socket's path does not fit the system's sockaddr.
	ErrPathTooLong = errors.New("unix socket path too long")
	// ErrNotSocket: the path exists and is something else; it is never removed.
	ErrNotSocket = errors.New("path exists and is not a socket")
	// ErrBind: the system refused the host end for a reason of its own.
	ErrBind = errors.New("cannot listen")
	// ErrLimit: the table is full.
	ErrLimit = errors.New("table full")
	// ErrNotFound: no rule of the table has that name or that host end.
	ErrNotFound = errors.New("no such rule")
	// ErrClosed: the table has been closed or is closing.
	ErrClosed = errors.New("table closed")

	// ErrNoGuest is for implementations of Guest: DialGuest returns an error
	// that wraps it while the guest a rule names is not plugged in.
	ErrNoGuest = errors.New("no such guest at the moment")
)

// Error is what is wrong with one rule.
type Error struct {
	Rule  string // the rule, or the text that was meant as one
	Kind  error  // one of the Err values of this package
	Text  string // what is wrong and what would be right
	Other string // ErrClash: the rule that was there first
	Err   error  // the system's own error, where there is one
}

func (e *Error) Error() string {
	// User text goes into logs: quoted, and never longer than a line.
	return fmt.Sprintf("port forward %s: %s", quote(e.Rule), e.Text)
}

// Unwrap lets errors.Is find the kind and the system's error.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// maxQuoted keeps one bad rule from filling a log: longer than any canonical
// rule without a path (two scoped IPv6 addresses, two ranges, an option).
const maxQuoted = 160

func quote(s string) string {
	if len(s) > maxQuoted {
		return fmt.Sprintf("%q…", s[:maxQuoted])
	}
	return fmt.Sprintf("%q", s)
}

// problem is an error before it is known which rule it belongs to.
type problem struct {
	kind  error
	text  string
	other string
	err   error
}

func (p *problem) of(rule string) *Error {
	return &Error{Rule: rule, Kind: p.kind, Text: p.text, Other: p.other, Err: p.err}
}

func wrong(kind error, format string, args ...any) *problem {
	return &problem{kind: kind, text: fmt.Sprintf(format, args...)}
}
