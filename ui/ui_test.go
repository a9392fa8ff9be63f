package ui

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"testing"
)

func get(t *testing.T, method, path string) *http.Response {
	t.Helper()
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w.Result()
}

// What the browser is told with each file: nothing but the page's own may run, and nobody may put it into a frame.
func TestHeaders(t *testing.T) {
	err := fs.WalkDir(page, "page", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		at := strings.TrimPrefix(name, "page")
		if at == "/index.html" {
			at = "/"
		}
		r := get(t, "GET", at)
		want := map[string]string{".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}[path.Ext(name)]
		if r.StatusCode != 200 || r.Header.Get("Content-Type") != want {
			t.Errorf("%s: %s, %s; want %s", at, r.Status, r.Header.Get("Content-Type"), want)
		}
		for k, want := range map[string]string{"Content-Security-Policy": Policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"} {
			if got := r.Header.Get(k); got != want {
				t.Errorf("%s: %s: %q", at, k, got)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"'unsafe", "http:", "https:", "*"} {
		if strings.Contains(Policy, bad) {
			t.Errorf("the policy has %s", bad)
		}
	}
	if r := get(t, "GET", "/../ui.go"); r.StatusCode == 200 {
		t.Error("a file beside the page is served")
	}
	if r := get(t, "POST", "/"); r.StatusCode != 405 {
		t.Errorf("POST: %s", r.Status)
	}
}

// The policy would keep these from working, and the browser would say so only to who looks.
func TestNothingInlineNothingElsewhere(t *testing.T) {
	markup := regexp.MustCompile(`(?i)<style|<script>|\sstyle=|\son[a-z]+=|javascript:`)
	reads := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\("style"|DOMParser|srcdoc`)
	elsewhere := regexp.MustCompile(`(src|href)="(https?:)?//|\burl\(["'a-z]|@import|from "[^.]|import\("`)
	names := regexp.MustCompile(`(?:src|href|from) ?=? ?"(\./)?([a-z]+\.[a-z]+)"`)
	err := fs.WalkDir(page, "page", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(page, name)
		if err != nil {
			return err
		}
		text := string(b)
		checks := []*regexp.Regexp{elsewhere}
		switch path.Ext(name) {
		case ".html":
			checks = append(checks, markup)
		case ".js":
			checks = append(checks, reads)
		}
		for _, c := range checks {
			if found := c.FindString(text); found != "" {
				t.Errorf("%s has %q", name, found)
			}
		}
		for _, m := range names.FindAllStringSubmatch(text, -1) {
			if _, err := fs.Stat(page, "page/"+m[2]); err != nil {
				t.Errorf("%s wants %s: %v", name, m[2], err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
