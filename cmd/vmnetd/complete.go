package main

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/backend"
	"github.com/vmnetd/vmnetd/backend/control"
)

// completeTime is how long the daemon may take: somebody has pressed a key and waits for the prompt.
const completeTime = 500 * time.Millisecond

// words are what may come next; behind a tab, what it is.
type words func(ctx context.Context, c *control.Client) ([]string, error)

// argWords are what arguments of commands are completed with, by the command's path without "vmnetd "; those of argument
// i, and of all behind the last.
var argWords = map[string][]words{
	"vm kick":        {guestWords},
	"limits":         {guestWords},
	"limits set":     {guestWords, nil},
	"forward rm":     {forwardWords},
	"leases release": {leaseWords},
	"dns rm":         {recordWords, nil},
	"policy set":     {fixed("open", "sandbox", "offline", "restrict", "none"), nil},
	"policy test":    {guestWords, fixed("tcp", "udp", "icmp"), nil},
	"policy answer":  {questionWords, fixed("allow", "deny"), nil},
	"wait guest":     {guestWords, nil},
	"wait lease":     {guestWords, nil},
	"wait gone":      {guestWords, nil},
	"wait port":      {portWords, nil},
	"wait forward":   {forwardWords, nil},
	"dns add":        {nil, fixed("A", "AAAA", "CNAME", "TXT", "SRV", "MX", "PTR"), nil},
}

// flagWords are what values of flags are completed with, by the flag's name, in commands that ask a daemon.
var flagWords = map[string]words{
	"guest":     guestWords,
	"network":   networkWords,
	"proto":     fixed("tcp", "udp", "icmp", "icmp6"),
	"state":     fixed("dialing", "open", "closing", "closed", "refused"),
	"direction": fixed("in", "out"),
	"verdict":   fixed("allowed", "asked", "refused"),
	"sort":      fixed("bytes", "up", "down", "opened", "idle"),
	"view":      fixed(topViews...),
	"for":       fixed(scopes...),
	"kind":      fixed(kindWords()...),
}

// anyFlagWords are the same in all commands.
var anyFlagWords = map[string]words{
	"output":     fixed(outputFormats...),
	"policy":     fixed("open", "sandbox", "offline", "restrict"),
	"sandbox":    fixed("auto", "on", "off"),
	"log-level":  fixed("debug", "info", "warn", "error"),
	"log-format": fixed("text", "json"),
}

// complete gives all commands their completions.
func complete(c *cobra.Command) {
	for _, sub := range c.Commands() {
		complete(sub)
	}
	asks := c.Flags().Lookup("control") != nil && !slices.Contains([]string{"serve", "run", "attach", "print"}, c.Name()) // of those it is their own
	if list := argWords[strings.TrimPrefix(c.CommandPath(), "vmnetd ")]; list != nil && c.ValidArgsFunction == nil {
		c.ValidArgsFunction = func(c *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
			w := list[min(len(args), len(list)-1)]
			return wordsFrom(c, w, args, start)
		}
	} else if asks && c.ValidArgsFunction == nil {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
	c.Flags().VisitAll(func(f *pflag.Flag) {
		w := anyFlagWords[f.Name]
		if w == nil && asks {
			w = flagWords[f.Name]
		}
		if _, has := c.GetFlagCompletionFunc(f.Name); w != nil && !has {
			c.RegisterFlagCompletionFunc(f.Name, func(c *cobra.Command, _ []string, start string) ([]string, cobra.ShellCompDirective) {
				return wordsFrom(c, w, nil, start)
			})
		}
	})
}

// wordsFrom asks for words, and gives those that are not there yet.
func wordsFrom(c *cobra.Command, w words, have []string, start string) ([]string, cobra.ShellCompDirective) {
	if w == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), completeTime)
	defer cancel()
	value := func(name string) string {
		if f := c.Flags().Lookup(name); f != nil {
			return f.Value.String()
		}
		return ""
	}
	client := anotherClient(value("control"))
	defer client.Close()
	if f := c.Flags().Lookup("network"); f != nil && f.Value.Type() == "string" {
		client.Network = f.Value.String()
	}
	list, err := w(ctx, client)
	if err != nil { // nobody reads it there: nothing is completed
		cobra.CompDebugln(err.Error(), false)
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, s := range list {
		word, _, _ := strings.Cut(s, "\t")
		if strings.HasPrefix(word, start) && !slices.Contains(have, word) && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	if len(out) > 0 && !slices.ContainsFunc(out, func(s string) bool { return !strings.HasSuffix(s, ":") }) {
		return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// word is one, with what it is. Guests choose names: one that a shell would take for more than a word is left out.
func word(s, what string) []string {
	plain := func(r rune) bool {
		return r < 0x80 && (r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("-_.:/[]@%+,", r))
	}
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) || s[0] == '-' {
		return nil
	}
	return []string{s + "\t" + visible(what)}
}

func fixed(list ...string) words {
	return func(context.Context, *control.Client) ([]string, error) { return list, nil }
}

func guestWords(ctx context.Context, c *control.Client) ([]string, error) {
	list, err := c.Guests(ctx)
	var out []string
	for _, g := range list {
		addr := ""
		if len(g.Addrs) > 0 {
			addr = g.Addrs[0].String()
		}
		if g.Name != "" {
			out = append(out, word(g.Name, g.ID+" "+addr)...)
		}
		out = append(out, word(g.ID, g.MAC+" "+addr)...)
	}
	return out, err
}

// portWords are guests whose port comes behind.
func portWords(ctx context.Context, c *control.Client) ([]string, error) {
	list, err := guestWords(ctx, c)
	for i, w := range list {
		list[i], _, _ = strings.Cut(w, "\t")
		list[i] += ":"
	}
	return list, err
}

func networkWords(ctx context.Context, c *control.Client) ([]string, error) {
	c.Network = "" // which is being asked for
	st, err := c.Status(ctx)
	var out []string
	for _, n := range st.Networks {
		out = append(out, word(n.Name, n.Prefix4.String())...)
	}
	return out, err
}

func forwardWords(ctx context.Context, c *control.Client) ([]string, error) {
	list, err := c.Forwards(ctx)
	var out []string
	for _, f := range list {
		out = append(out, word(f.ID, f.Text)...)
	}
	return out, err
}

func leaseWords(ctx context.Context, c *control.Client) ([]string, error) {
	list, err := c.Leases(ctx)
	var out []string
	for _, l := range list {
		out = append(out, word(l.Addr.String(), leaseName(l))...)
	}
	return out, err
}

func recordWords(ctx context.Context, c *control.Client) ([]string, error) {
	list, err := c.DNS(ctx)
	var out []string
	for _, r := range list {
		out = append(out, word(strings.TrimSuffix(r.Name, "."), r.Type+" "+r.Value)...)
	}
	return out, err
}

func questionWords(ctx context.Context, c *control.Client) ([]string, error) {
	list, err := c.Questions(ctx)
	var out []string
	for _, q := range list {
		out = append(out, word(strconv.FormatUint(q.ID, 10), q.Guest)...)
	}
	return out, err
}

func kindWords() []string {
	var list []string
	for _, k := range backend.EventKinds {
		list = append(list, string(k))
	}
	return list
}
