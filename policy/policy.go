// Package policy decides which conversations guests may have, by rules that people write.
package policy

import (
	"net/netip"
	"time"

	"github.com/vmnetd/vmnetd/flows"
)

// Config is a policy and the network that it is for.
type Config struct {
	Document

	// Network is what of the network's own addresses holds whatever the rules say, as it does without rules.
	Network flows.Default
	// Local, if not nil, says of a name in lower case without a final dot that the network itself answers for it. Such
	// names are resolved whatever the rules say, but under Restrict.
	Local func(name string) bool
	// Identify, if not nil, tells a guest's MAC, as 52:54:00:12:34:56, and the name that it leased under, either of
	// them empty if it is not known. It must not wait. Both are the guest's own claims unless leases are strict.
	Identify func(guest string) (mac, name string)

	// OnQuestion, if not nil, is told of each question as it is asked, and again as it is answered or runs out
	// (Question.Outcome is set then).
	OnQuestion func(Question)
	// OnChange, if not nil, is told the new document when an answer that holds always has changed it.
	OnChange func(Document)
	// Audit, if not nil, is told of each decision (Policy.SetAudit).
	Audit func(Decision)

	// Now tells the time. Default time.Now.
	Now func() time.Time
}

// Question is a destination that somebody is asked about.
type Question struct {
	ID    uint64         `json:"id"`
	Guest string         `json:"guest"`
	Proto flows.Proto    `json:"proto"`
	Name  string         `json:"name,omitempty"` // whose address it is, if an answer gave it to the guest
	Dst   netip.AddrPort `json:"dst"`
	Rule  string         `json:"rule"` // that asks
	Since time.Time      `json:"since"`
	Until time.Time      `json:"until"` // it is taken for a no then
	Held  int            `json:"held"`  // conversations that wait for the answer
	// Outcome is empty while it is asked, then allow, deny or unanswered.
	Outcome string `json:"outcome,omitempty"`
}

// Scope is how long an answer holds.
type Scope uint8

const (
	Once    Scope = iota // for the conversations that wait
	Session              // until the guest goes, or the policy is closed
	Always               // as a rule of the document
)

// Decision is one line of the audit.
type Decision struct {
	Time    time.Time       `json:"time"`
	Kind    string          `json:"kind"` // conversation, first-bytes, name, answer, question
	Guest   string          `json:"guest"`
	Proto   flows.Proto     `json:"proto,omitempty"`
	Dir     flows.Direction `json:"direction,omitempty"`
	Src     netip.AddrPort  `json:"src,omitzero"`
	Dst     netip.AddrPort  `json:"dst,omitzero"`
	Name    string          `json:"name,omitempty"`
	Verdict string          `json:"verdict"` // allow, reject, drop or ask
	Rule    string          `json:"rule,omitempty"`
	Reason  flows.Reason    `json:"reason,omitempty"`
}
