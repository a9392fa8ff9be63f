package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manCommand writes manual pages of what the commands say of themselves. Made by hand, since cobra's own take the texts for
// Markdown, and rules such as "*.debian.org" for emphasis.
func manCommand() *cobra.Command {
	return &cobra.Command{Use: "man DIR", Short: "Write manual pages into a folder", Hidden: true, Args: args(cobra.ExactArgs(1)),
		Long: "Write a manual page for each command into a folder: vmnetd.1, vmnetd-flows.1, and so on.",
		RunE: func(c *cobra.Command, a []string) error {
			if err := os.MkdirAll(a[0], 0o755); err != nil {
				return err
			}
			return eachPage(c.Root(), func(name, text string) error {
				return os.WriteFile(filepath.Join(a[0], name), []byte(text), 0o644)
			})
		}}
}

// eachPage calls f with the page of a command, and of each below it that is shown.
func eachPage(c *cobra.Command, f func(name, text string) error) error {
	if err := f(manName(c)+".1", manPage(c)); err != nil {
		return err
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			if err := eachPage(sub, f); err != nil {
				return err
			}
		}
	}
	return nil
}

func manName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manPage is a page as man(7) has it.
func manPage(c *cobra.Command) string {
	var b strings.Builder
	section := func(title string) { fmt.Fprintf(&b, ".SH %s\n", title) }
	fmt.Fprintf(&b, ".TH %s 1 \"\" %s vmnetd\n", roffWord(strings.ToUpper(manName(c))), roffWord("vmnetd "+versionString()))
	section("NAME")
	fmt.Fprintf(&b, "%s \\- %s\n", roff(manName(c)), roff(c.Short))
	section("SYNOPSIS")
	if c.Runnable() && (c.HasParent() || !c.HasSubCommands()) {
		fmt.Fprintf(&b, ".nf\n%s\n.fi\n", roff(c.UseLine()))
	}
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(&b, ".nf\n%s\n.fi\n", roff(c.CommandPath()+" COMMAND"))
	}
	section("DESCRIPTION")
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	roffText(&b, long)
	if c.HasAvailableSubCommands() {
		section("COMMANDS")
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(&b, ".TP\n.BR %s (1)\n%s\n", roffWord(manName(sub)), roff(sub.Short))
			}
		}
	}
	var flags strings.Builder
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		flags.WriteString(".TP\n")
		if f.Shorthand != "" {
			fmt.Fprintf(&flags, "\\fB%s\\fR, ", roff("-"+f.Shorthand))
		}
		value, usage := pflag.UnquoteUsage(f)
		fmt.Fprintf(&flags, "\\fB%s\\fR", roff("--"+f.Name))
		if value != "" {
			fmt.Fprintf(&flags, " \\fI%s\\fR", roff(value))
		}
		fmt.Fprintf(&flags, "\n%s", roff(usage))
		switch f.DefValue {
		case "", "false", "[]", "0", "0s":
		default:
			if !strings.Contains(usage, "default") {
				fmt.Fprintf(&flags, " (default %s)", roff(f.DefValue))
			}
		}
		flags.WriteByte('\n')
	})
	if flags.Len() > 0 {
		section("OPTIONS")
		b.WriteString(flags.String())
	}
	if c.Example != "" {
		section("EXAMPLES")
		roffText(&b, c.Example)
	}
	if c.HasParent() {
		section("SEE ALSO")
		fmt.Fprintf(&b, ".BR %s (1)\n", roffWord(manName(c.Parent())))
	}
	return b.String()
}

// roffText writes paragraphs; lines that stand in by two spaces stay as they are.
func roffText(b *strings.Builder, text string) {
	asIs := false
	end := func() {
		if asIs {
			b.WriteString(".fi\n.RE\n")
		}
		asIs = false
	}
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "  "):
			if !asIs {
				b.WriteString(".PP\n.RS 2\n.nf\n")
			}
			asIs = true
			b.WriteString(roff(line[2:]) + "\n")
		case line == "":
			if asIs {
				end()
			}
			b.WriteString(".PP\n")
		default:
			end()
			b.WriteString(roff(line) + "\n")
		}
	}
	end()
}

// roff is text that troff prints as it is.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, "\n", "\n\\&").Replace(s)
	if strings.HasPrefix(s, ".") {
		s = `\&` + s
	}
	return s
}

// roffWord is one argument of a request.
func roffWord(s string) string { return `"` + strings.ReplaceAll(roff(s), `"`, `\(dq`) + `"` }
