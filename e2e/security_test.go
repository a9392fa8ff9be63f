package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSecurityPage: what SECURITY.md says is shown by a test is shown by one that there is.
func TestSecurityPage(t *testing.T) {
	page, err := os.ReadFile("../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		tests.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z]\w+`).FindAllString(string(page), -1)
	if len(named) < 20 {
		t.Errorf("the page names %d tests", len(named))
	}
	for _, name := range named {
		if !strings.Contains(tests.String(), "func "+name+"(") {
			t.Errorf("SECURITY.md: there is no %s", name)
		}
	}
	for _, group := range regexp.MustCompile("`(?:TestHostile/)?(\\d\\d-[a-z-]+)`").FindAllStringSubmatch(string(page), -1) {
		if !strings.Contains(tests.String(), `"`+group[1]+`"`) {
			t.Errorf("SECURITY.md: TestHostile has no group %s", group[1])
		}
	}
}
