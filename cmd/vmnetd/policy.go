package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
	"github.com/vmnetd/vmnetd/flows"
	"github.com/vmnetd/vmnetd/policy"
)

func policyCommand() *cobra.Command {
	in := &inspector{}
	exactly := cobra.ExactArgs

	var showGuest string
	show := in.command("show", "Print the policy", exactly(0), func(ctx context.Context, c *control.Client, _ []string) error {
		names, err := in.networks(ctx, c)
		if err != nil {
			return err
		}
		all := []control.Policy{}
		for _, c.Network = range names {
			p, err := c.Policy(ctx, showGuest)
			if err != nil {
				return err
			}
			all = append(all, p)
		}
		if in.format.data() && len(all) == 1 {
			return in.show(nil, all[0], nil)
		}
		return in.show(nil, all, func(w io.Writer) {
			for _, p := range all {
				if len(all) > 1 {
					fmt.Fprintf(w, "# network %s\n", p.Network)
				}
				text := printable(p.Text)
				if text == "" && showGuest == "" {
					text = "preset open\n" // what no rules are
				}
				io.WriteString(w, text)
			}
		})
	})
	show.Flags().StringVar(&showGuest, "guest", "", "only the part of these guests, by its `PATTERN`")
	show.Long = "Print the policy as it can be read again: vmnetd policy show >FILE, and vmnetd policy set FILE."

	var setGuest string
	var now bool
	var rules []string
	set := in.command("set [open|sandbox|offline|restrict|none|FILE|-]", "Set the policy", cobra.MaximumNArgs(1), func(ctx context.Context, c *control.Client, a []string) error {
		if len(a) == 1 && a[0] == "none" {
			if setGuest == "" || len(rules) > 0 {
				return usagef("none takes the rules away that guests have of their own: --guest PATTERN, and no --allow; for a network it is open")
			}
			return c.DeletePolicy(ctx, setGuest, now)
		}
		text, err := policyText(strings.Join(a, ""), rules, os.Stdin)
		if err != nil {
			return err
		}
		p, err := c.SetPolicy(ctx, text, setGuest, now)
		if err != nil {
			return err
		}
		return in.show(nil, p, func(w io.Writer) {
			if now {
				fmt.Fprintf(w, "%d conversations ended\n", p.Ended)
			}
		})
	})
	set.Long = `Set the policy: a preset, or a file of rules, - for standard input. It holds for new conversations, with --now for those that
run, too: what may not be any more is ended. It lives as long as the daemon: what is to be there from the start is given to
vmnetd serve (--policy, --allow, --policy-file).

  vmnetd policy set sandbox --allow example.com --allow 'tcp *.debian.org:80,443'
  vmnetd policy set --guest 'build*' - <<end
  preset sandbox
  allow tcp proxy.example.com:3128
  end

A file has a thing a line: preset PRESET; rules, of which the first that matches decides; default VERDICT; and behind
guest PATTERN the rules that those guests have of their own. A rule is

  allow|reject|drop|ask [in] any|tcp|udp|icmp [TO[:PORTS]] [checked|tls|http|unchecked] [guest=PATTERN] [# COMMENT]

where TO is an address, a prefix, a name, *.example.com, or one of public, host, private, loopback, link-local, metadata,
doh and any.`
	set.Flags().StringVar(&setGuest, "guest", "", "for guests of this id, name or MAC, as a `PATTERN` with * for any part, in place of what they had; none for nothing of their own")
	set.Flags().BoolVar(&now, "now", false, "for conversations that run, too")
	set.Flags().StringArrayVar(&rules, "allow", nil, "`RULE` before the others, as vmnetd serve's --allow; may be repeated")

	test := in.command("test GUEST PROTOCOL TO[:PORT]", "Say what the policy makes of a conversation: policy test web tcp api.example.com:443", exactly(3),
		func(ctx context.Context, c *control.Client, a []string) error {
			if protos := []string{"tcp", "udp", "icmp"}; !slices.Contains(protos, a[1]) {
				return usagef("protocol %s: %s", a[1], didYouMean(a[1], protos))
			}
			r, err := c.TestPolicy(ctx, control.PolicyTest{Guest: a[0], Proto: a[1], To: a[2]})
			if err := in.show(err, r, func(w io.Writer) { writeTest(w, r) }); err != nil {
				return err
			}
			if r.Verdict != policy.Allow {
				return exitError(exitFailure)
			}
			return nil
		})
	test.Long = `Say what the policy makes of a conversation that a guest would begin: the verdict, the rule that says so, and why. Nobody is
asked, and nothing is sent. GUEST is an id, a name, a MAC or an address, or the name of one that is not there; TO is an
address or a name. Exit status: 0 if it may, 1 if not.`

	list := in.command("ls", "List what is asked", exactly(0), func(ctx context.Context, c *control.Client, _ []string) error {
		qs, err := c.Questions(ctx)
		return in.show(err, qs, func(w io.Writer) { writeQuestions(w, qs) })
	})
	list.Hidden = true // ask --list is what people are told of

	var listOnly bool
	var askGuest, answerGuest string
	scope := scopeValue("session")
	ask := in.lasting("ask", "Answer the policy's questions", exactly(0), func(ctx context.Context, c *control.Client, _ []string) error {
		if listOnly {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			qs, err := c.Questions(ctx)
			return in.show(err, qs, func(w io.Writer) { writeQuestions(w, qs) })
		}
		if in.format.data() {
			return usagef("-o %s is of --list; programs answer by 'vmnetd policy answer', or the API", in.format)
		}
		return askPeople(ctx, c, os.Stdin, os.Stdout, control.Answer{For: string(scope), Guest: askGuest})
	})
	ask.Long = `Show what rules with the verdict ask want to know, as it comes, and take an answer a line: y or n, and for how long if that is
not what --for says: once for the conversations that wait, session until the guest goes, always as a rule of the policy.
A conversation is held for 30 seconds; without an answer by then it is refused.

Without a terminal: vmnetd policy ask --list, and vmnetd policy answer.`
	ask.Flags().BoolVar(&listOnly, "list", false, "print what is asked now, and end")
	ask.Flags().Var(&scope, "for", "how long answers hold: `once`, session or always")
	ask.Flags().StringVar(&askGuest, "guest", "", alwaysGuest)

	answerScope := scopeValue("session")
	answer := in.command("answer QUESTION allow|deny", "Answer one of the policy's questions", exactly(2), func(ctx context.Context, c *control.Client, a []string) error {
		id, err := strconv.ParseUint(a[0], 10, 64)
		if err != nil {
			return usagef("%q is no question's number: 'vmnetd policy ask --list' has them", a[0])
		}
		if a[1] != "allow" && a[1] != "deny" {
			return usagef("answer %s: %s", a[1], didYouMean(a[1], []string{"allow", "deny"}))
		}
		return c.Answer(ctx, id, control.Answer{Answer: a[1], For: string(answerScope), Guest: answerGuest})
	})
	answer.Flags().Var(&answerScope, "for", "how long it holds: `once`, session or always")
	answer.Flags().StringVar(&answerGuest, "guest", "", alwaysGuest)

	var learnGuest string
	var learnOpen bool
	learnStart := in.command("start", "Begin to learn, from nothing", exactly(0), func(ctx context.Context, c *control.Client, _ []string) error {
		how := policy.LearnRecord
		if learnOpen {
			how = policy.LearnAllow
		}
		return c.Learn(ctx, how)
	})
	writeLearned := func(l control.Learned, err error) error {
		return in.show(err, l, func(w io.Writer) { io.WriteString(w, printable(l.Text)) })
	}
	learnShow := in.command("show", "Print a policy of what was learned until now", exactly(0), func(ctx context.Context, c *control.Client, _ []string) error {
		return writeLearned(c.Learned(ctx, learnGuest))
	})
	learnStop := in.command("stop", "Stop, and print a policy of what was learned", exactly(0), func(ctx context.Context, c *control.Client, _ []string) error {
		return writeLearned(c.StopLearning(ctx, learnGuest))
	})
	learnStart.Flags().BoolVar(&learnOpen, "open", false, "let guests reach everything meanwhile, whatever the policy says")
	for _, cmd := range []*cobra.Command{learnShow, learnStop} {
		cmd.Flags().StringVar(&learnGuest, "guest", "", "what was learned of this `GUEST` alone: id, name, MAC or address")
	}
	learn := group("learn", "Learn from what guests reach, and print a policy that lets them", `Learn from what guests reach, and print a policy that lets them reach that and nothing else:

  vmnetd policy learn start
  … the guests do their work …
  vmnetd policy learn stop >FILE
  vmnetd policy set FILE`, learnStart, learnShow, learnStop)

	return group("policy", "Show, set, test and learn what guests may reach", "", show, set, test, ask, answer, learn, list)
}

const alwaysGuest = "whose rule always makes: a `PATTERN` of id, name or MAC, * for all guests (default the id of the one that asks, which has another when it comes back)"

// networks are those that a command is about: the one that is named, or all.
func (in *inspector) networks(ctx context.Context, c *control.Client) ([]string, error) {
	if in.network != "" {
		return []string{in.network}, nil
	}
	st, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range st.Networks {
		names = append(names, n.Name)
	}
	return names, nil
}

// printable is text for a terminal, which guests have had a hand in.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && (r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0) {
			return '?'
		}
		return r
	}, text)
}

type scopeValue string

func (v *scopeValue) String() string { return string(*v) }
func (v *scopeValue) Type() string   { return "scope" }

var scopes = []string{"once", "session", "always"}

func (v *scopeValue) Set(s string) error {
	if !slices.Contains(scopes, s) {
		return errors.New(didYouMean(s, scopes))
	}
	*v = scopeValue(s)
	return nil
}

// maxPolicyFile is what the daemon takes at most.
const maxPolicyFile = 16 << 20

// policyText is what 'policy set' was told: a preset or a file, with rules before it.
func policyText(from string, rules []string, in io.Reader) (string, error) {
	var d policy.Document
	switch {
	case from == "" && len(rules) == 0:
		return "", usagef("which policy? %s, a file of rules, or - for standard input", strings.Join(presetNames, ", "))
	case from == "":
	case slices.Contains(presetNames, from):
		if err := d.Preset.UnmarshalText([]byte(from)); err != nil {
			return "", err
		}
	default:
		name := from
		if from == "-" {
			name = "standard input"
		} else {
			f, err := os.Open(from)
			if errors.Is(err, fs.ErrNotExist) {
				if !strings.ContainsAny(from, "/.") {
					return "", usagef("%q is no preset and no file: %s", from, didYouMean(from, presetNames))
				}
				return "", err
			}
			if err != nil {
				return "", err
			}
			defer f.Close()
			in = f
		}
		b, err := io.ReadAll(io.LimitReader(in, maxPolicyFile+1))
		if err != nil {
			return "", err
		}
		if len(b) > maxPolicyFile {
			return "", fmt.Errorf("%s: more than %d bytes: that is no policy", name, maxPolicyFile)
		}
		if d, err = parsePolicy(string(b)); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
	}
	var first []policy.Rule
	for _, s := range rules {
		r, err := parsePolicyRule(s)
		if err != nil {
			return "", usagef("--allow: %w", err)
		}
		first = append(first, r)
	}
	d.Rules = append(first, d.Rules...)
	return d.String(), nil
}

func writeTest(w io.Writer, r policy.Result) {
	row(w, "verdict", r.Verdict)
	row(w, "rule", r.Rule)
	if r.Reason != flows.ReasonNone {
		row(w, "reason", r.Reason)
	}
	if r.Name != "" {
		row(w, "name", r.Name)
	}
	if r.ResolveRule != "" {
		row(w, "resolved", fmt.Sprintf("%s, by %s", map[bool]string{true: "yes", false: "no"}[r.Resolves], r.ResolveRule))
	}
	if r.Dst.Addr().IsValid() {
		row(w, "address", r.Dst.Addr())
	}
	if len(r.Opened) > 0 {
		row(w, "opened", strings.Trim(fmt.Sprint(r.Opened), "[]"))
	}
	if r.FirstBytes != "" {
		row(w, "first bytes", r.FirstBytes)
	}
}

func writeQuestions(w io.Writer, list []control.Question) {
	head(w, "ID", "NETWORK", "GUEST", "PROTO", "TO", "WAITS", "LEFT", "RULE")
	for _, q := range list {
		row(w, q.ID, q.Network, q.Guest, q.Proto, destination(q), q.Held, max(0, time.Until(q.Until)).Round(time.Second), q.Rule)
	}
}

func destination(q control.Question) string {
	if q.Name != "" {
		return fmt.Sprintf("%s:%d (%s)", q.Name, q.Dst.Port(), q.Dst.Addr())
	}
	return q.Dst.String()
}

// askPeople shows questions one after another and takes answers.
func askPeople(ctx context.Context, c *control.Client, in io.Reader, out io.Writer, usual control.Answer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed, ended := make(chan struct{}, 1), make(chan error, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	// From the newest event on: which questions there are now is asked for after it is known that no later one is missed.
	list, err := c.Events(ctx, 0)
	if err != nil {
		return err
	}
	var since uint64
	if len(list) > 0 {
		since = list[len(list)-1].ID
	}
	go func() {
		ended <- c.FollowEvents(ctx, since, func(e backend.Event, lost uint64) error {
			if e.Kind == backend.EventQuestion || e.Kind == backend.EventAnswer || lost > 0 {
				poke()
			}
			return nil
		})
	}()
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(in); s.Scan(); {
			select {
			case lines <- s.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	poke()
	tick := time.NewTicker(time.Second) // guests can cause so many events that questions are not among those that are kept
	defer tick.Stop()
	var shown *control.Question
	next := func() error {
		qs, err := c.Questions(ctx)
		if err != nil {
			return err
		}
		if shown != nil {
			if slices.ContainsFunc(qs, func(q control.Question) bool { return q.ID == shown.ID && q.Network == shown.Network }) {
				return nil
			}
			fmt.Fprintln(out, "\n  it was answered elsewhere, or it is too late")
			shown = nil
		}
		if len(qs) == 0 {
			return nil
		}
		shown = &qs[0]
		name := shown.Guest
		one := *c
		one.Network = shown.Network
		if g, err := one.Guest(ctx, shown.Guest); err == nil && g.Name != "" {
			name = fmt.Sprintf("%s (%s)", g.Name, g.ID)
		}
		fmt.Fprintf(out, "%s to %s %s, by rule %q; %s left. Allow? y or n [once, session, always; else %s] ",
			printable(name), shown.Proto, printable(destination(*shown)), printable(shown.Rule), max(0, time.Until(shown.Until)).Round(time.Second), usual.For)
		return nil
	}
	for {
		select {
		case <-changed:
			if err := next(); err != nil {
				return err
			}
		case <-tick.C:
			if shown != nil && time.Now().Before(shown.Until) {
				continue
			}
			if err := next(); err != nil {
				return err
			}
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return errors.New("the daemon has ended")
			}
			return err
		case line, ok := <-lines:
			if !ok {
				return hintError{errors.New("standard input has ended: nobody can answer"), "'vmnetd policy ask --list' shows what is asked, 'vmnetd policy answer' answers"}
			}
			if shown == nil {
				continue
			}
			a, err := readAnswer(line, usual)
			if err != nil {
				fmt.Fprintf(out, "  %v: ", err)
				continue
			}
			one := *c
			one.Network = shown.Network
			err = one.Answer(ctx, shown.ID, a)
			var p *control.Problem
			if errors.As(err, &p) && p.Status == http.StatusNotFound {
				fmt.Fprintln(out, "  too late")
			} else if err != nil {
				return err
			}
			shown = nil
			poke()
		}
	}
}

// readAnswer reads "y", "no always".
func readAnswer(line string, a control.Answer) (control.Answer, error) {
	words := strings.Fields(strings.ToLower(line))
	if len(words) == 2 && slices.Contains(scopes, words[1]) {
		a.For = words[1]
		words = words[:1]
	}
	if a.For != "always" {
		a.Guest = "" // only a rule can be others'
	}
	if len(words) == 1 {
		switch words[0] {
		case "y", "yes", "allow":
			a.Answer = "allow"
			return a, nil
		case "n", "no", "deny":
			a.Answer = "deny"
			return a, nil
		}
	}
	return a, errors.New("want y or n, and once, session or always if you like")
}

// chosenPolicy is what the flags of a network say of what guests may reach.
type chosenPolicy struct {
	doc   policy.Document
	audit *slog.Logger // nil: none
}

// setPolicy gives a network its policy of rules, an open one too, so that it can be tested, learned and set at any time.
func (d *daemon) setPolicy(n *backend.Network, c chosenPolicy) error {
	p, err := control.NewPolicy(n, c.doc, c.audit)
	if err != nil {
		return err
	}
	n.SetPolicy(p, false)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.policies == nil {
		d.policies = map[string]*policy.Policy{}
	}
	d.policies[n.Config().Name] = p
	return nil
}
