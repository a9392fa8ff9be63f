//go:build unix

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Who asks for --help finds each command in a group.
func TestHelpGroups(t *testing.T) {
	root := rootCommand()
	for _, g := range helpGroups {
		for _, name := range g.commands {
			if c, _, err := root.Find([]string{name}); err != nil || c.GroupID != g.title {
				t.Errorf("%s of %q: %v", name, g.title, err)
			}
		}
	}
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	var each func(c *cobra.Command)
	each = func(c *cobra.Command) {
		if c.Parent() == root && c.IsAvailableCommand() && c.GroupID == "" {
			t.Errorf("%s is in no group of --help", c.Name())
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short help %q: want a sentence without its end", c.CommandPath(), c.Short)
		}
		for _, sub := range c.Commands() {
			each(sub)
		}
	}
	each(root)
}

// What is asked of a daemon that has nothing yet.
func TestNothingYet(t *testing.T) {
	l := newCLI(t)
	rules, complaint, status := l.run("policy", "show")
	if rules != "preset open\n" || status != 0 {
		t.Errorf("policy show: %d %q %s", status, rules, complaint)
	}
	file := filepath.Join(l.dir, "rules")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, complaint, status := l.run("policy", "set", file); status != 0 {
		t.Errorf("policy set: %d %s", status, complaint)
	}
	if again, _, _ := l.run("policy", "show"); again != rules {
		t.Errorf("policy show: %q, and once more %q", rules, again)
	}

	if _, complaint, status := l.run("capture", "save", "c1", "-w", file); status == 0 || !strings.Contains(complaint, `no capture "c1"`) {
		t.Errorf("capture save: %d %s", status, complaint)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != rules {
		t.Errorf("what was there was overwritten: %q %v", b, err)
	}
}
