//go:build unix

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// What a shell offers, in a real bash; in zsh and fish where they are there.
func TestComplete(t *testing.T) {
	l := newCLI(t, "-p", "0:7", "--network", "lab,net=10.9.0.0/24")
	l.plug("web")
	forwards, err := l.c.Forwards(t.Context())
	if err != nil || len(forwards) != 1 {
		t.Fatal(forwards, err)
	}
	cases := []struct {
		line string
		want []string // among what is offered
		not  []string
	}{
		{"vmnetd ", []string{"flows", "wait", "top", "doctor"}, []string{"self-test", "man"}},
		{"vmnetd fl", []string{"flows"}, []string{"forward"}},
		{"vmnetd vm kick --network default ", []string{"web", "g1"}, nil},
		{"vmnetd vm kick --network lab ", nil, []string{"web", "g1"}},
		{"vmnetd vm ls --network ", []string{"default", "lab"}, nil},
		{"vmnetd vm ls -o ", []string{"table", "wide", "json", "yaml"}, nil},
		{"vmnetd flows --network default --guest w", []string{"web"}, []string{"g1"}},
		{"vmnetd forward rm --network default ", []string{forwards[0].ID}, nil},
		{"vmnetd leases release --network default ", []string{"10.0.2.15"}, nil},
		{"vmnetd events --kind guest", []string{"guest-in", "guest-gone"}, []string{"lease"}},
		{"vmnetd policy set sa", []string{"sandbox"}, []string{"open"}},
	}
	for _, shell := range []struct{ name, script string }{
		{"bash", `
# what bash-completion has of it, as far as the script asks
_get_comp_words_by_ref() { cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD; }
source <(vmnetd completion bash)
read -ra COMP_WORDS <<<"$1"
case $1 in *' ') COMP_WORDS+=('');; esac
COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=63 COMP_KEY=9
COLUMNS=200
__start_vmnetd
printf '%s\n' "${COMPREPLY[@]}"`},
		{"fish", "vmnetd completion fish | source; complete -C $argv[1]"},
		{"zsh", "autoload -U compinit && compinit -u -d $HOME/dump && source <(vmnetd completion zsh) && whence -w _vmnetd >/dev/null && w=(${=1#vmnetd }); [[ $1 == *' ' ]] && w+=(''); vmnetd __complete \"${w[@]}\""},
	} {
		path, err := exec.LookPath(shell.name)
		if err != nil {
			if shell.name == "bash" {
				t.Error(err)
			}
			continue
		}
		for _, c := range cases {
			args := []string{"-c", shell.script, shell.name, c.line}
			if shell.name == "fish" {
				args = []string{"-c", shell.script, c.line}
			}
			var out []byte
			var err error
			var offered []string
			// A daemon on a busy machine may take longer than somebody who pressed a key waits: then he presses it again.
			for end := time.Now().Add(cliPatience); ; {
				cmd := exec.Command(path, args...)
				cmd.Env = append(l.command().Env, "HOME="+l.dir, "XDG_CONFIG_HOME="+l.dir, "XDG_DATA_HOME="+l.dir)
				out, err = cmd.CombinedOutput()
				offered = offered[:0]
				for line := range strings.Lines(string(out)) {
					word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
					word, _, _ = strings.Cut(word, " ")
					offered = append(offered, word)
				}
				missing := func(w string) bool { return !slices.Contains(offered, w) }
				if err == nil && !slices.ContainsFunc(c.want, missing) {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%s: %q does not offer all of %q: %v\n%s", shell.name, c.line, c.want, err, out)
				}
			}
			for _, w := range c.not {
				if slices.Contains(offered, w) {
					t.Errorf("%s: %q offers %s", shell.name, c.line, w)
				}
			}
		}
	}

	// Without a daemon nothing is offered, at once.
	cmd := l.command("__complete", "vm", "kick", "--control", "nosuch", "")
	if out, err := cmd.Output(); err != nil || !strings.HasPrefix(string(out), ":") {
		t.Errorf("%v, %s", err, out)
	}
	if out, _, status := l.run("completion", "powershell"); status != 0 || !strings.Contains(out, "Register-ArgumentCompleter") {
		t.Errorf("powershell: status %d, %.200s", status, out)
	}
}

func TestCompletedWords(t *testing.T) {
	for _, bad := range []string{"", "-rf", "a b", "$(reboot)", "`x`", "a;b", "\x1b[2J", "é"} {
		if w := word(bad, ""); w != nil {
			t.Errorf("%q is offered as %q", bad, w)
		}
	}
	if w := word("web-1.lab", "\x1b[2J"); len(w) != 1 || w[0] != "web-1.lab\t?[2J" {
		t.Errorf("%q", w)
	}
	// A path that is misspelt completes nothing.
	root := rootCommand()
	for path := range argWords {
		if c, _, err := root.Find(strings.Fields(path)); err != nil || c.CommandPath() != "vmnetd "+path {
			t.Errorf("there is no command %q", path)
		}
	}
}

// Each command has a page, which troff reads without a word.
func TestMan(t *testing.T) {
	dir := filepath.Join(shortDir(t), "man")
	if status := vmnetd([]string{"man", dir}); status != 0 {
		t.Fatalf("status %d", status)
	}
	var each func(c *cobra.Command)
	pages := 0
	each = func(c *cobra.Command) {
		if !c.IsAvailableCommand() && c.HasParent() {
			return
		}
		text, err := os.ReadFile(filepath.Join(dir, manName(c)+".1"))
		if err != nil {
			t.Error(err)
		}
		pages++
		if c.Short == "" || !strings.Contains(string(text), ".SH NAME\n"+roff(manName(c))+` \- `+roff(c.Short)) {
			t.Errorf("%s: %.300s", c.CommandPath(), text)
		}
		for _, sub := range c.Commands() {
			each(sub)
		}
	}
	each(rootCommand())
	if pages < 30 {
		t.Errorf("%d pages", pages)
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		return // Debian has it in its base system, other systems need not
	}
	all, _ := filepath.Glob(filepath.Join(dir, "*.1"))
	out, err := exec.Command(groff, append([]string{"-man", "-K", "utf8", "-T", "utf8", "-ww", "-z"}, all...)...).CombinedOutput()
	if strings.Contains(string(out), "preconv") && err != nil {
		return // groff's smallest part has none
	}
	if err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
	out, err = exec.Command(groff, "-man", "-T", "ascii", "-P", "-cbou", filepath.Join(dir, "vmnetd-flows.1")).Output()
	for _, want := range []string{"vmnetd-flows - List conversations", "--follow", "vmnetd flows --guest web --sort bytes --limit 10", "vmnetd flows --follow -o json | jq 'select(.kind == \"ended\")'"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("vmnetd-flows.1 does not say %q: %v\n%s", want, err, out)
		}
	}
}

// A word that is misspelt is answered with the one that was likely meant.
func TestHints(t *testing.T) {
	for line, want := range map[string]string{
		"flow":                 "did you mean flows?",
		"vm lst":               "did you mean ls?",
		"flows lss":            "did you mean ls?",
		"limits set":           "want vmnetd limits set",
		"forwrad ls":           "did you mean forward?",
		"vm":                   "which command? kick, ls",
		"status --ouput json":  "did you mean --output?",
		"status -o yml":        "did you mean yaml?",
		"wait prot web:22":     "did you mean port?",
		"wait port web:22/tpc": "did you mean tcp?",
		"wait gone":            "want vmnetd wait gone GUEST",
		"top --view flws":      "did you mean flows?",
	} {
		c := exec.Command("vmnetd", strings.Fields(line)...)
		out, err := c.CombinedOutput()
		if err == nil || c.ProcessState.ExitCode() != exitUsage || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, %s, want %q", line, err, out, want)
		}
	}
}
